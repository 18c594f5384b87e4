//! The packets of one flow that wait, and what the flow may send of them in this turn.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Dropped;
use crate::{
    tunnel::{
        ecn, flow,
        queue::codel::{Codel, Tolerance},
    },
    wire::packet::Packet,
};

/// Bytes that a flow sends in one turn: a packet (RFC 8290 §5.2).
pub(super) const QUANTUM: isize = 1514;
/// Bytes of memory that a packet takes beside its contents, and a flow beside its packets.
pub(crate) const OVERHEAD: usize = 256;
/// A packet of a protocol that does not retransmit is worthless after this time: less than a
/// second, since it has yet to cross the network.
const STALE: Duration = Duration::from_millis(750);
/// Linux gives a TCP connection up after about so long without an answer (tcp_retries2 of tcp(7)).
const TCP_STALE: Duration = Duration::from_secs(15 * 60);
/// The packets that a flow without any has room for.
const SPARE: usize = 16;

/// Whether a packet that arrived at `since` has become useless.
pub(crate) fn is_stale(is_tcp: bool, since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) > if is_tcp { TCP_STALE } else { STALE }
}

/// The waiting packets of a flow, oldest first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    is_tcp: bool,
    packets: VecDeque<Waiting>,
    bytes: usize,
    /// Packets that are worth a copy.
    copied: usize,
    /// Bytes that it may still send in this turn.
    pub(super) credit: isize,
    codel: Codel,
}

#[derive(Debug)]
struct Waiting {
    packet: Packet,
    since: Instant,
    /// Whether it is worth a copy.
    is_copied: bool,
}

impl Backlog {
    /// Another flow begins here, with the room of the one before.
    pub(super) fn begin(&mut self, is_tcp: bool) {
        let packets = std::mem::take(&mut self.packets);
        *self = Self { is_tcp, packets, credit: QUANTUM, ..Self::default() };
    }

    /// Its flow has ended: much room is not kept for the next one.
    pub(super) fn end(&mut self) {
        if self.packets.capacity() > SPARE {
            self.packets = VecDeque::new();
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The number of packets.
    pub(super) fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Bytes of all packets.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory.
    pub(super) fn cost(&self) -> usize {
        match self.packets.len() {
            0 => 0,
            count => self.bytes + OVERHEAD * (1 + count),
        }
    }

    /// See [`super::Fair::pop_sparse`].
    pub(super) fn is_sparse(&self) -> bool {
        self.copied > 0
            && self.bytes <= QUANTUM.unsigned_abs()
            && self.packets.front().is_some_and(|head| flow::is_small(&head.packet))
    }

    pub(super) fn push(&mut self, packet: Packet, now: Instant) {
        let is_copied = flow::is_copied(&packet);
        self.bytes += packet.size();
        self.copied += usize::from(is_copied);
        self.packets.push_back(Waiting { packet, since: now, is_copied });
    }

    /// Takes the oldest packet that is of use and pays for it. CoDel accepts what `tolerance` says.
    pub(super) fn take(
        &mut self,
        now: Instant,
        tolerance: Tolerance,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        while let Some(head) = self.packets.pop_front() {
            self.gone(&head);
            let Waiting { packet, since, .. } = head;
            if is_stale(self.is_tcp, since, now) {
                dropped.stale += 1;
                continue;
            }
            let short = self.bytes < QUANTUM.unsigned_abs();
            let wait = now.saturating_duration_since(since);
            let packet = if self.codel.signals(wait, tolerance, short, now) {
                let Some(marked) = ecn::mark(&packet) else {
                    dropped.slow += 1;
                    continue;
                };
                marked
            } else {
                packet
            };
            self.credit -= packet.size().cast_signed();
            return Some((since, packet));
        }
        None
    }

    /// Drops the oldest packets as long as they are of no use any more.
    pub(super) fn drop_stale(&mut self, now: Instant, dropped: &mut Dropped) {
        while self.packets.front().is_some_and(|head| is_stale(self.is_tcp, head.since, now)) {
            self.drop_head();
            dropped.stale += 1;
        }
    }

    pub(super) fn drop_head(&mut self) {
        if let Some(head) = self.packets.pop_front() {
            self.gone(&head);
        }
    }

    pub(super) fn drop_tail(&mut self) {
        if let Some(tail) = self.packets.pop_back() {
            self.gone(&tail);
        }
    }

    /// Counts a packet that left, and frees memory when far fewer packets remain.
    fn gone(&mut self, Waiting { packet, is_copied, .. }: &Waiting) {
        self.bytes -= packet.size();
        self.copied -= usize::from(*is_copied);
        let count = self.packets.len();
        if self.packets.capacity() > SPARE.max(4 * count) {
            self.packets.shrink_to(2 * count);
        }
    }
}
