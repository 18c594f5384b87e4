//! Counters of the datapath: relaxed atomics, written by the pumps, read by `status`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

use super::{queue::Dropped, repair::Events};

/// Makes the enum, its table and its words from one list, so that a new reason is one line.
macro_rules! drop_reasons {
    ($($(#[$meta:meta])* $reason:ident = $words:literal,)*) => {
        /// Why an inner packet or a datagram was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum DropReason {
            $($(#[$meta])* $reason,)*
        }

        impl DropReason {
            /// Every reason, in the order in which they are shown.
            pub const ALL: [Self; [$($words),*].len()] = [$(Self::$reason),*];
        }

        impl fmt::Display for DropReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$reason => $words,)*
                })
            }
        }
    };
}

drop_reasons! {
    /// Not an IP packet, or its length contradicts its header.
    Malformed = "malformed",
    /// The inner source address is not one that the other side may send from.
    ForeignSource = "with a foreign source",
    /// The inner destination address is nobody's in the tunnel, or, on a client, not one of its own.
    UnknownDestination = "for nobody in the tunnel",
    /// The peer is at another server, and this host has no route there.
    Elsewhere = "for a peer at another server",
    /// Too large for the connection even in pieces.
    TooLarge = "too large",
    /// The queue was full, and the flow with the most bytes in it gave way.
    QueueFull = "from a full queue",
    /// It waited in the queue until it was of no use any more.
    Stale = "stale",
    /// To tell its sender to slow down (CoDel, RFC 8289).
    SlowDown = "to slow their sender down",
    /// A piece of a split packet never came, or came twice.
    LostPiece = "for want of a piece",
    /// A datagram of an unknown kind.
    UnknownDatagram = "of an unknown kind",
    /// The TUN device did not take the packet.
    Device = "not taken by the device",
}

/// Packets and bytes in one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// Counts `packets` of `bytes` together.
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

/// The counters of one tunnel end (the client) or of one peer (the server).
#[derive(Debug, Default)]
pub struct Counters {
    /// Inner packets sent into the connection.
    pub sent: Traffic,
    /// Inner packets received from the connection and delivered.
    pub received: Traffic,
    /// Inner packets that were sent in pieces.
    pub split: AtomicU64,
    repeated: AtomicU64,
    resumed: AtomicU64,
    repaired: AtomicU64,
    given_up: AtomicU64,
    missing: AtomicU64,
    duplicates: AtomicU64,
    copied: AtomicU64,
    rescued: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts `count` drops for `reason`.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        if count > 0 {
            self.drops[reason as usize].fetch_add(count, Relaxed);
        }
    }

    /// Inner packets that crossed the tunnel so far, both ways.
    pub(crate) fn crossed(&self) -> u64 {
        [&self.sent, &self.received].iter().map(|it| it.packets.load(Relaxed)).sum()
    }

    /// Counts what a queue dropped.
    pub fn dropped_by_queue(&self, dropped: Dropped) {
        self.dropped(DropReason::QueueFull, dropped.full);
        self.dropped(DropReason::Stale, dropped.stale);
        self.dropped(DropReason::SlowDown, dropped.slow);
    }

    /// Counts packets that were sent once more because the other side missed them.
    pub(crate) fn repeated(&self, count: u64) {
        if count > 0 {
            self.repeated.fetch_add(count, Relaxed);
        }
    }

    /// Counts those of them that a path had taken with it.
    pub(crate) fn resumed(&self, count: u64) {
        if count > 0 {
            self.resumed.fetch_add(count, Relaxed);
        }
    }

    /// Counts packets that were sent a second time over the standby.
    pub(crate) fn copied(&self, count: u64) {
        if count > 0 {
            self.copied.fetch_add(count, Relaxed);
        }
    }

    /// Counts a packet that came over the standby before it came over the path in use.
    pub(crate) fn rescued(&self) {
        self.rescued.fetch_add(1, Relaxed);
    }

    /// Counts what a receiver repaired, or could not.
    pub(crate) fn repair(&self, events: Events) {
        if events != Events::default() {
            let Events { repaired, given_up, awaited, duplicates } = events;
            self.repaired.fetch_add(repaired, Relaxed);
            self.given_up.fetch_add(awaited, Relaxed);
            self.missing.fetch_add(repaired + given_up, Relaxed);
            self.duplicates.fetch_add(duplicates, Relaxed);
        }
    }

    /// Packets and bytes that were received so far, and packets that were missing at first, whether others waited for
    /// them or not.
    #[must_use]
    pub(crate) fn arrivals(&self) -> [u64; 3] {
        [&self.received.packets, &self.received.bytes, &self.missing].map(|it| it.load(Relaxed))
    }

    /// Packets that were also sent over a standby so far, and those that came over one first.
    #[must_use]
    pub(crate) fn copies(&self) -> [u64; 2] {
        [&self.copied, &self.rescued].map(|it| it.load(Relaxed))
    }

    /// The present values.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            sent_packets: self.sent.packets.load(Relaxed),
            sent_bytes: self.sent.bytes.load(Relaxed),
            received_packets: self.received.packets.load(Relaxed),
            received_bytes: self.received.bytes.load(Relaxed),
            split_packets: self.split.load(Relaxed),
            repeated_packets: self.repeated.load(Relaxed),
            resumed_packets: self.resumed.load(Relaxed),
            repaired_packets: self.repaired.load(Relaxed),
            lost_packets: self.given_up.load(Relaxed),
            duplicate_packets: self.duplicates.load(Relaxed),
            copied_packets: self.copied.load(Relaxed),
            rescued_packets: self.rescued.load(Relaxed),
            dropped: DropReason::ALL
                .into_iter()
                .map(|reason| (reason, self.drops[reason as usize].load(Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

/// Values of [`Counters`] at one moment, as `status` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Snapshot {
    /// Inner packets sent into the connection.
    pub sent_packets: u64,
    /// Their bytes, inner IP headers included.
    pub sent_bytes: u64,
    /// Inner packets delivered from the connection.
    pub received_packets: u64,
    /// Their bytes, inner IP headers included.
    pub received_bytes: u64,
    /// Inner packets that crossed in pieces.
    pub split_packets: u64,
    /// Packets that were sent once more because the other side missed them.
    pub repeated_packets: u64,
    /// Those of them that may have been lost with a path that died or was silent.
    #[serde(default)]
    pub resumed_packets: u64,
    /// Packets that were missing, were asked for, and came in time.
    pub repaired_packets: u64,
    /// Packets that did not come in time although others of their flow waited for them. Datagrams (UDP, ICMP) and bare
    /// acknowledgements, which nothing waits for, are not counted: they may not be sent again at all.
    pub lost_packets: u64,
    /// Packets that came once more and were dropped.
    pub duplicate_packets: u64,
    /// Packets that were sent a second time over the standby, because the path in use was late.
    #[serde(default)]
    pub copied_packets: u64,
    /// Packets that came over the standby before they came over the path in use.
    #[serde(default)]
    pub rescued_packets: u64,
    /// Drops by reason; reasons that never happened are left out.
    pub dropped: BTreeMap<DropReason, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let counters = Counters::default();
        for (times, reason) in (1..).zip(DropReason::ALL) {
            counters.dropped(reason, times);
        }
        let expected = DropReason::ALL.into_iter().zip(1..).collect();
        assert_eq!(counters.snapshot().dropped, expected);
    }

    #[test]
    fn the_reference_lists_every_reason() {
        let row = include_str!("../../docs/control.md")
            .lines()
            .find_map(|line| line.strip_prefix("| `traffic.dropped` |"))
            .unwrap();
        let listed: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        let words = DropReason::ALL.map(|reason| serde_json::to_value(reason).unwrap());
        assert_eq!(listed, words.each_ref().map(|word| word.as_str().unwrap()));
    }

    #[test]
    fn a_datagram_that_nothing_waits_for_was_missing_but_is_not_shown_as_lost() {
        let counters = Counters::default();
        counters.repair(Events { repaired: 2, given_up: 5, awaited: 1, duplicates: 0 });
        assert_eq!(counters.arrivals(), [0, 0, 7]);
        assert_eq!(counters.snapshot().lost_packets, 1);
    }

    #[test]
    fn drops_are_serialized_as_a_map() {
        let counters = Counters::default();
        counters.dropped(DropReason::ForeignSource, 3);
        counters.sent.add(2, 2800);
        let json = serde_json::to_value(counters.snapshot()).unwrap();
        assert_eq!(json["dropped"], serde_json::json!({ "foreign-source": 3 }));
        assert_eq!(json["sent-bytes"], 2800);
    }
}
