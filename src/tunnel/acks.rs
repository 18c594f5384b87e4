//! Fewer acknowledgements where packets were delivered late and together.
//!
//! A repair releases all that waited for it. TCP acknowledges each of these packets, and most of them were under way
//! for far longer than a round trip. A sender in slow start that sees eight such acknowledgements takes the time for
//! a queue and ends slow start (HyStart, RFC 9406 §4.2). The last acknowledgement says all that the ones before it
//! say, and it is that of the packet that waited least.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{flow, repair::Moment};
use crate::wire::{
    packet::Packet,
    transport::{Protocol, Transport},
};

/// How long acknowledgements of what was released gather: the hosts of a local network answer one packet after the
/// other.
const GATHERED: Duration = Duration::from_millis(1);
/// How long the hosts take to answer all of it.
const ANSWERED: Duration = Duration::from_millis(5);
/// An acknowledgement that stands for many is sent once more after so long: in another packet of QUIC's.
const COPIED: Duration = Duration::from_millis(4);
/// Smaller packets fill no path.
const LARGE: usize = 512;
/// A path on which nothing arrives for this part of a round trip, and for this, is not full.
const PAUSE_PART: u32 = 8;
const PAUSE: Duration = Duration::from_millis(3);

/// Round trips in a row that bring hardly more than the one before, until a path is full. The outer connection
/// is in slow start as well, so that one of them does not tell much.
const STEADY: u8 = 2;

/// When acknowledgements are thinned: after a repair, unless the path is full.
///
/// A path is full when data arrives without a pause and in each round trip hardly more than in the one before. Slow
/// start must end there, or it overflows the queue in front of the path.
#[derive(Debug, Default)]
pub(crate) struct Thinning {
    /// When packets were last delivered that had waited for another one.
    released: Option<Instant>,
    /// When the last large packet arrived.
    arrived: Option<Instant>,
    /// Since when packets are counted, how many there were, and how many in the round trip before.
    since: Option<Instant>,
    count: u32,
    before: u32,
    /// Round trips in a row that brought hardly more than the one before.
    steady: u8,
    /// The datagram of the last acknowledgement that was sent for many, and when it is sent once more.
    copy: Option<(Instant, Bytes)>,
}

impl Thinning {
    /// A packet of so many bytes arrived.
    pub(crate) fn arrived(&mut self, size: usize, Moment { now, rtt }: Moment) {
        if size < LARGE {
            return;
        }
        let passed = |since: Option<Instant>| since.map(|at| now.saturating_duration_since(at));
        if passed(self.arrived).is_none_or(|pause| pause > PAUSE.max(rtt / PAUSE_PART)) {
            (self.since, self.count, self.before, self.steady) = (Some(now), 0, 0, 0);
        } else if passed(self.since).is_some_and(|time| time >= rtt) {
            let has_grown = self.count > self.before + self.before / 4;
            self.steady = if has_grown { 0 } else { self.steady.saturating_add(1) };
            (self.since, self.count, self.before) = (Some(now), 0, self.count);
        }
        self.arrived = Some(now);
        self.count += 1;
    }

    /// Packets are delivered that had waited for another one.
    pub(crate) fn released(&mut self, now: Instant) {
        self.released = Some(now);
    }

    /// Until when acknowledgements should wait for further ones.
    pub(crate) fn gathers_until(&self, now: Instant) -> Option<Instant> {
        let until = self.released? + GATHERED;
        (now < until && !self.is_full()).then_some(until)
    }

    /// Removes the acknowledgements that the next packet of `batch` makes superfluous, where that is of use. Returns the
    /// place of the last one that stands for others, for [`Self::copy_later`].
    pub(crate) fn thin(&self, batch: &mut Vec<Packet>, now: Instant) -> Option<usize> {
        let is_over = |at| now.saturating_duration_since(at) > ANSWERED;
        if self.is_full() || self.released.is_none_or(is_over) {
            return None;
        }
        thin(batch)
    }

    /// An acknowledgement that stands for others is sent in this datagram, and once more soon. With its number, the other
    /// side takes it only once: TCP takes an acknowledgement that comes twice for a loss.
    pub(crate) fn copy_later(&mut self, datagram: Bytes, now: Instant) {
        self.copy = Some((now + COPIED, datagram));
    }

    fn is_full(&self) -> bool {
        self.steady >= STEADY
    }

    /// The acknowledgement that is to be sent once more, if it is time to do so.
    pub(crate) fn copy(&mut self, now: Instant) -> Option<Bytes> {
        self.copy.take_if(|(due, _)| *due <= now).map(|(_, datagram)| datagram)
    }

    /// When [`Self::copy`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.copy.as_ref().map(|(due, _)| *due)
    }
}

/// The flags of a bare acknowledgement (RFC 9293 §3.1), with the low bits of the byte before them: no accurate ECN
/// (RFC 9768), since its sender counts marks with each acknowledgement.
const FLAGS: [u8; 2] = [0x00, 0x10];
/// Timestamps (RFC 7323 §3.2), as they are aligned by everybody. Other options may say what no later packet says.
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Removes the acknowledgements that the next packet of `batch` makes superfluous. Returns the place of the last one that
/// stands for others.
fn thin(batch: &mut Vec<Packet>) -> Option<usize> {
    let (mut at, mut last) = (0, None);
    batch.dedup_by(|later, earlier| {
        let superfluous = is_replaced(earlier.ip(), later.ip());
        if superfluous {
            std::mem::swap(later, earlier);
            last = Some(at);
        } else {
            at += 1;
        }
        superfluous
    });
    last
}

/// Whether `later` acknowledges more of the same connection, and otherwise says the same. The sequence number of a
/// keep-alive or of a probe of a closed window is another one, and the other side must answer it.
fn is_replaced(earlier: &[u8], later: &[u8]) -> bool {
    let bare = || Some((bare(earlier)?, bare(later)?));
    flow::is_same(earlier, later)
        && bare().is_some_and(|(earlier, later)| {
            earlier.sequence == later.sequence
                && later.acknowledged.wrapping_sub(earlier.acknowledged).cast_signed() > 0
        })
}

/// What a bare acknowledgement says.
struct Bare {
    sequence: u32,
    acknowledged: u32,
}

/// Reads a bare acknowledgement.
fn bare(ip: &[u8]) -> Option<Bare> {
    let Transport { protocol, start, end } = Transport::of(ip)?;
    let tcp = &ip[start..end];
    let is_bare = protocol == Protocol::Tcp
        && end == ip.len()
        && [tcp[12] & 0x0f, tcp[13]] == FLAGS
        && (tcp.len() == 20 || tcp.len() == 32 && tcp[20..24] == TIMESTAMPS);
    is_bare.then(|| Bare {
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        acknowledged: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
    })
}

#[cfg(test)]
mod slow_start;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::flow::tests::of_flow;

    /// A segment of the flow of `port`.
    fn segment(
        v6: bool,
        port: u16,
        acknowledged: u32,
        flags: u8,
        options: &[u8],
        data: usize,
    ) -> Packet {
        let start = if v6 { 40 } else { 20 };
        let mut bytes = of_flow(v6, 6, port, start + 20 + options.len() + data);
        bytes[start + 8..start + 12].copy_from_slice(&acknowledged.to_be_bytes());
        bytes[start + 12] = (5 + options.len() as u8 / 4) << 4;
        bytes[start + 13] = flags;
        bytes[start + 20..start + 20 + options.len()].copy_from_slice(options);
        bytes.into()
    }

    fn bare(acknowledged: u32) -> Packet {
        segment(false, 1, acknowledged, 0x10, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], 0)
    }

    /// The same as a keep-alive: one number before what is next.
    fn keep_alive(acknowledged: u32) -> Packet {
        let mut bytes = bare(acknowledged).ip().to_vec();
        let sequence = u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
        bytes[24..28].copy_from_slice(&sequence.wrapping_sub(1).to_be_bytes());
        bytes.into()
    }

    fn left_of(packets: &[Packet]) -> Vec<Packet> {
        let mut batch = packets.to_vec();
        thin(&mut batch);
        batch
    }

    const MS: Duration = Duration::from_millis(1);

    /// How many of three acknowledgements are left, so long after a release.
    fn left_after(since: Duration, arrivals: impl Iterator<Item = u32>) -> usize {
        let (start, mut thinning) = (Instant::now(), Thinning::default());
        let moment = |at| Moment { now: start + at, rtt: 40 * MS };
        for at in arrivals {
            thinning.arrived(1400, moment(at * MS));
        }
        thinning.released(start + 150 * MS);
        let mut batch = vec![bare(1000), bare(2000), bare(3000)];
        let moment = moment(150 * MS + since);
        thinning.thin(&mut batch, moment.now);
        let gathers = thinning.gathers_until(moment.now).is_some();
        assert_eq!(gathers, since < MS && batch.len() == 1);
        batch.len()
    }

    #[test]
    fn acknowledgements_are_thinned_right_after_a_repair_unless_the_path_is_full() {
        assert_eq!(left_after(Duration::ZERO, [150].into_iter()), 1);
        assert_eq!(left_after(4 * MS, [150].into_iter()), 1);
        assert_eq!(left_after(6 * MS, [150].into_iter()), 3, "too late for an answer");
        assert_eq!(left_after(MS, 0..=150), 3, "the path is full");
        assert_eq!(left_after(MS, (0..=150).step_by(10)), 1, "there are pauses");
        assert_eq!(left_after(MS, 50..=150), 1, "less than three round trips");
        let growing = (0..=45).step_by(4).chain((46..=95).step_by(2)).chain(96..=150);
        assert_eq!(left_after(MS, growing), 1, "twice as much in each round trip");
        let mut batch = vec![bare(1000), bare(2000)];
        let moment = Moment { now: Instant::now(), rtt: MS };
        Thinning::default().thin(&mut batch, moment.now);
        assert_eq!(batch.len(), 2, "nothing was repaired");
    }

    #[test]
    fn an_acknowledgement_that_stands_for_many_is_sent_twice() {
        let (start, mut thinning) = (Instant::now(), Thinning::default());
        thinning.released(start);
        assert_eq!(thinning.thin(&mut vec![bare(1000)], start), None, "it stands for itself");
        let of_other_flow = |acknowledged| segment(false, 2, acknowledged, 0x10, &[], 0);
        let mut batch = vec![
            of_other_flow(1),
            bare(1000),
            bare(2000),
            bare(3000),
            of_other_flow(2),
            bare(4000),
        ];
        assert_eq!(thinning.thin(&mut batch, start), Some(1));
        assert_eq!(batch[1], bare(3000));
        assert_eq!(thinning.next_deadline(), None);
        let datagram = Bytes::from_static(&[3]);
        thinning.copy_later(datagram.clone(), start);
        assert_eq!(thinning.copy(start + 3 * MS), None);
        let due = thinning.next_deadline().unwrap();
        assert_eq!((due, thinning.copy(due)), (start + 4 * MS, Some(datagram)));
        assert_eq!((thinning.copy(due), thinning.next_deadline()), (None, None));
    }

    #[test]
    fn the_last_of_several_acknowledgements_is_left() {
        assert_eq!(left_of(&[bare(1000), bare(2000), bare(3000)]), [bare(3000)]);
        let wrapped = [bare(u32::MAX - 10), bare(5)];
        assert_eq!(left_of(&wrapped), wrapped[1..]);
    }

    #[test]
    fn whatever_says_something_of_its_own_is_left() {
        let sack = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        for other in [
            bare(1000),
            keep_alive(900),
            keep_alive(2000),
            segment(false, 1, 2000, 0x10, &sack, 0),
            segment(false, 1, 2000, 0x10, &[], 100),
            segment(false, 1, 2000, 0x11, &[], 0),
            segment(false, 1, 2000, 0x50, &[], 0),
            segment(false, 2, 2000, 0x10, &[], 0),
            segment(true, 1, 2000, 0x10, &[], 0),
            of_flow(false, 17, 1, 60).into(),
        ] {
            let batch = [bare(1000), other.clone(), bare(1000)];
            assert_eq!(left_of(&batch), batch, "{other:?}");
        }
    }

    fn any_segment() -> impl Strategy<Value = Packet> {
        let flags = prop_oneof![8 => Just(0x10), 1 => any::<u8>()];
        let options = prop_oneof![
            Just(Vec::new()),
            proptest::collection::vec(any::<u8>(), 8)
                .prop_map(|times| [&TIMESTAMPS[..], &times].concat()),
            proptest::collection::vec(any::<u8>(), 12),
        ];
        (
            any::<bool>(),
            1u16..3,
            any::<u32>(),
            flags,
            options,
            prop_oneof![8 => Just(0usize), 1 => 1usize..50],
        )
            .prop_map(|(v6, port, acknowledged, flags, options, data)| {
                segment(v6, port, acknowledged, flags, &options, data)
            })
    }

    proptest! {
        #[test]
        fn each_acknowledgement_that_is_dropped_has_a_later_one(
            batch in proptest::collection::vec(any_segment(), 0..30),
        ) {
            let left = left_of(&batch);
            let mut at = 0;
            for packet in &batch {
                if left.get(at) == Some(packet) {
                    at += 1;
                    continue;
                }
                let is_replaced = left[at..].first().is_some_and(|last| {
                    is_bare(packet) && is_bare(last) && flow::is_same(packet.ip(), last.ip())
                });
                prop_assert!(is_replaced, "{packet:?}");
            }
            prop_assert_eq!(at, left.len(), "nothing is invented, and the order is kept");
        }

        #[test]
        fn random_bytes_never_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..80), 0..8)) {
            let packets: Vec<Packet> = packets.into_iter().map(Packet::from).collect();
            prop_assert!(left_of(&packets).len() <= packets.len());
        }
    }

    fn is_bare(packet: &Packet) -> bool {
        super::bare(packet.ip()).is_some()
    }
}
