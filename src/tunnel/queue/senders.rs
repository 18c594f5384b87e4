//! The senders that share a queue. Each has its own flows, and senders take turns by bytes.
//!
//! A sender with a thousand flows gets as much of the queue, and of what leaves it, as one with a single flow.
//! A queue with one sender is that sender's [`Fair`].

use std::time::Instant;

use super::{
    codel::Tolerance,
    fair::{Dropped, Fair, Ready},
    thrift::Thrift,
};
use crate::wire::packet::Packet;

/// Maximum of senders that are kept apart; beyond it, several share one place.
const LANES: usize = 64;
/// Bytes that a sender may send in one turn: one packet.
const QUANTUM: isize = 1514;
/// Senders that are kept allocated when the queue is empty.
const SPARE: usize = 4;

/// Senders with their waiting packets.
#[derive(Debug)]
pub(super) struct Senders {
    /// Grows with the number of senders; at least one.
    lanes: Vec<Lane>,
    /// The index of the sender whose turn it is.
    turn: usize,
    /// While bulk is held back.
    thrift: Option<Thrift>,
}

#[derive(Debug, Default)]
struct Lane {
    sender: usize,
    credit: isize,
    fair: Fair,
}

impl Default for Senders {
    fn default() -> Self {
        Self { lanes: vec![Lane::default()], turn: 0, thrift: None }
    }
}

impl Senders {
    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.fair.bytes()).sum()
    }

    /// Packets that wait.
    pub(super) fn packets(&self) -> usize {
        self.lanes.iter().map(|lane| lane.fair.packets()).sum()
    }

    /// Bytes of memory.
    pub(super) fn cost(&self) -> usize {
        self.lanes.iter().map(|lane| lane.fair.cost()).sum()
    }

    /// Holds bulk back, or not any more; whether that is a change.
    pub(super) fn hold_bulk(&mut self, held: bool, now: Instant) -> bool {
        if held == self.thrift.is_some() {
            return false;
        }
        self.thrift = held.then(|| Thrift::new(now));
        self.lanes.iter_mut().for_each(|lane| lane.fair.release());
        true
    }

    /// The same without packets.
    #[must_use]
    pub(super) fn emptied(&mut self) -> Self {
        Self { thrift: self.thrift.take(), ..Self::default() }
    }

    /// When [`Self::pop`] may have something; none without packets.
    pub(super) fn ready_at(&self) -> Option<Ready> {
        let trickle = self.thrift.as_ref().map(Thrift::next);
        self.lanes.iter().filter_map(|lane| lane.fair.ready_at(trickle)).min()
    }

    /// The flows of a sender.
    pub(super) fn of(&mut self, sender: usize) -> &mut Fair {
        let sender = sender % LANES;
        let at = match self.lanes.iter().position(|lane| lane.sender == sender) {
            Some(at) => at,
            None => {
                // One that has nothing waiting makes room.
                let idle = self.lanes.iter().position(|lane| lane.fair.packets() == 0);
                let at = idle.unwrap_or_else(|| {
                    self.lanes.push(Lane::default());
                    self.lanes.len() - 1
                });
                (self.lanes[at].sender, self.lanes[at].credit) = (sender, 0);
                at
            }
        };
        &mut self.lanes[at].fair
    }

    /// Drops packets of the largest senders until the waiting packets take at most `capacity` bytes of
    /// memory.
    pub(super) fn shrink(&mut self, capacity: usize, held: bool, dropped: &mut Dropped) {
        loop {
            let excess = self.cost().saturating_sub(capacity);
            if excess == 0 {
                return;
            }
            let (mut most, mut second) = (0, 0);
            for at in 1..self.lanes.len() {
                let cost = self.lanes[at].fair.cost();
                if cost > self.lanes[most].fair.cost() {
                    second = self.lanes[most].fair.cost();
                    most = at;
                } else {
                    second = second.max(cost);
                }
            }
            let fair = &mut self.lanes[most].fair;
            // Down to the second, or one packet if they are equal.
            let keep = (fair.cost() - 1).min(second.max(fair.cost().saturating_sub(excess)));
            fair.shrink(keep, held, dropped);
        }
    }

    /// Whether [`Self::pop_sparse`] may have something.
    pub(super) fn has_sparse(&self) -> bool {
        self.lanes.iter().any(|lane| lane.fair.has_sparse())
    }

    /// The next packet that is worth a copy, of any flow that has little waiting.
    pub(super) fn pop_sparse(
        &mut self,
        now: Instant,
        tolerance: Tolerance,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        self.lanes.iter_mut().find_map(|lane| lane.fair.pop_sparse(now, tolerance, dropped))
    }

    /// The next packet and its time of arrival. CoDel accepts what `tolerance` says.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        tolerance: Tolerance,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        if let [only] = &mut self.lanes[..] {
            return only.fair.pop(now, tolerance, self.thrift.as_mut(), dropped);
        }
        let (count, mut idle) = (self.lanes.len(), 0);
        while idle < count {
            let lane = &mut self.lanes[self.turn % count];
            if lane.credit > 0
                && let Some((since, packet)) =
                    lane.fair.pop(now, tolerance, self.thrift.as_mut(), dropped)
            {
                lane.credit -= packet.size().cast_signed();
                return Some((since, packet));
            }
            self.turn = (self.turn + 1) % count;
            let next = &mut self.lanes[self.turn];
            let trickle = self.thrift.as_ref().map(Thrift::next);
            if next.fair.ready_at(trickle).is_some_and(|ready| ready.is_now(now)) {
                (next.credit, idle) = (next.credit + QUANTUM, 0);
            } else {
                (next.credit, idle) = (0, idle + 1);
            }
        }
        // What is held back stays.
        let kept =
            self.lanes.iter().rposition(|lane| lane.fair.packets() > 0).map_or(0, |it| it + 1);
        self.lanes.truncate(kept.max(SPARE));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use proptest::prelude::*;

    use std::time::Duration;

    use super::*;
    use crate::tunnel::flow::Flow;
    use crate::tunnel::queue::fair::OVERHEAD;

    /// A packet with its sender in the first byte.
    fn packet(sender: usize, length: usize) -> Packet {
        vec![0x40 | sender as u8; length].into()
    }

    fn sender(packet: &Packet) -> usize {
        usize::from(packet.ip()[0] & 0x0f)
    }

    fn push(senders: &mut Senders, from: usize, hash: u64, is_tcp: bool, length: usize) {
        let (flow, packet) = (Flow { hash, is_tcp }, packet(from, length));
        senders.of(from).push(flow, once(packet), Instant::now(), &mut Dropped::default());
    }

    fn drain(senders: &mut Senders, limit: usize) -> [usize; 16] {
        let mut bytes = [0; 16];
        for _ in 0..limit {
            let Some((_, packet)) =
                senders.pop(Instant::now(), Tolerance::of(Duration::ZERO), &mut Dropped::default())
            else {
                break;
            };
            bytes[sender(&packet)] += packet.size();
        }
        bytes
    }

    #[test]
    fn a_sender_with_a_thousand_flows_gets_half_of_what_leaves() {
        let mut senders = Senders::default();
        for number in 0..1000 {
            push(&mut senders, 1, number, false, 100);
            push(&mut senders, 2, 7, true, 100);
        }
        let bytes = drain(&mut senders, 500);
        assert!(bytes[1].abs_diff(bytes[2]) <= 2 * QUANTUM.unsigned_abs(), "{bytes:?}");
    }

    #[test]
    fn a_sender_with_little_traffic_waits_for_one_round_of_the_others() {
        let mut senders = Senders::default();
        for number in 0..3000 {
            push(&mut senders, 1 + number as usize % 3, number, false, 1400);
        }
        drain(&mut senders, 10);
        push(&mut senders, 0, 1, true, 80);
        let before = drain(&mut senders, 7);
        assert_eq!(before[0], 80, "{before:?}");
    }

    #[test]
    fn a_sender_with_nothing_queued_occupies_no_lane() {
        let mut senders = Senders::default();
        for number in 0..10_000 {
            push(&mut senders, number, 1, false, 100);
            drain(&mut senders, usize::MAX);
            assert_eq!(senders.lanes.len(), 1);
        }
        (0..10_000).for_each(|number| push(&mut senders, number, 1, false, 100));
        assert_eq!(senders.lanes.len(), LANES);
        drain(&mut senders, usize::MAX);
        assert_eq!((senders.lanes.len(), senders.bytes(), senders.cost()), (SPARE, 0, 0));
    }

    proptest! {
        #[test]
        fn no_sender_loses_packets_within_its_share(
            flood in proptest::collection::vec((0usize..4, any::<u64>(), any::<bool>(), 20usize..1500), 1..2000),
            honest in proptest::collection::vec((any::<u64>(), any::<bool>(), 20usize..1500), 1..12),
            held in any::<bool>(),
        ) {
            const CAPACITY: usize = 150_000;
            let mut senders = Senders::default();
            let mut dropped = Dropped::default();
            let every = flood.len() / honest.len() + 1;
            let mut sent = 0;
            let mut honest = honest.into_iter();
            for (at, (from, hash, is_tcp, length)) in flood.into_iter().enumerate() {
                if at % every == 0 && let Some((hash, is_tcp, length)) = honest.next() {
                    push(&mut senders, 9, hash, is_tcp, length);
                    sent += length;
                }
                push(&mut senders, from, hash, is_tcp, length);
                senders.shrink(CAPACITY, held, &mut dropped);
                prop_assert!(senders.cost() <= CAPACITY);
            }
            // Five senders share the memory, and this one has at most a fifth.
            const { assert!(12 * (1500 + 2 * OVERHEAD) <= CAPACITY / 5) };
            prop_assert_eq!(drain(&mut senders, usize::MAX)[9], sent);
            prop_assert_eq!((senders.packets(), senders.bytes(), senders.cost()), (0, 0, 0));
        }
    }
}
