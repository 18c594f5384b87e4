//! The order in which packets leave: fair between flows, short for each (FQ-CoDel, RFC 8290).
//!
//! Flows take turns by bytes (deficit round robin). One that has just begun, or that sends less
//! than its share, goes first: a keystroke does not wait behind an upload. A flow whose packets wait
//! too long is told by a congestion mark (ECN) or by a loss.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use hashbrown::HashTable;

use super::codel::Codel;
use crate::{
    tunnel::{ecn, flow::Flow},
    wire::packet::Packet,
};

/// Bytes that a flow sends in one turn: a packet (RFC 8290 §5.2).
const QUANTUM: isize = 1514;
/// A packet of a protocol that does not repeat is worthless after so long: less than a second, with
/// the way still before it.
const STALE: Duration = Duration::from_millis(750);
/// Linux gives a TCP connection up after about so long without an answer (tcp_retries2 of tcp(7)).
const TCP_STALE: Duration = Duration::from_secs(15 * 60);
/// Queues of ended flows that are kept for new ones.
const SPARE: usize = 64;

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// For want of room.
    pub full: u64,
    /// Because they waited too long to be of use.
    pub stale: u64,
    /// To tell their sender to slow down.
    pub slow: u64,
}

/// Whether a packet that came at `since` is of no use any more.
pub(super) fn is_stale(is_tcp: bool, since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) > if is_tcp { TCP_STALE } else { STALE }
}

/// Flows and their packets.
#[derive(Debug, Default)]
pub(super) struct Fair {
    flows: HashTable<FlowQueue>,
    /// Flows that have not used up their first turn.
    new: VecDeque<u64>,
    /// All others that wait.
    old: VecDeque<u64>,
    spare: Vec<FlowQueue>,
    bytes: usize,
    patient_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct FlowQueue {
    hash: u64,
    packets: VecDeque<Waiting>,
    bytes: usize,
    credit: isize,
    is_tcp: bool,
    codel: Codel,
}

#[derive(Debug)]
struct Waiting {
    packet: Packet,
    since: Instant,
}

impl Fair {
    /// Tells nobody to slow down until then.
    pub(super) fn be_patient(&mut self, until: Instant) {
        self.patient_until = Some(until);
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds packets of one flow.
    pub(super) fn push(
        &mut self,
        flow: Flow,
        packets: impl Iterator<Item = Packet>,
        now: Instant,
        dropped: &mut Dropped,
    ) {
        let Flow { hash, is_tcp } = flow;
        let entry = self.flows.entry(hash, |queue| queue.hash == hash, |queue| queue.hash);
        let queue = entry
            .or_insert_with(|| {
                self.new.push_back(hash);
                let spare = self.spare.pop().unwrap_or_default();
                FlowQueue { hash, is_tcp, credit: QUANTUM, ..spare }
            })
            .into_mut();
        // Where nobody takes packets out, the stale ones make room here.
        while queue.packets.front().is_some_and(|head| is_stale(is_tcp, head.since, now)) {
            self.bytes -= queue.drop_head();
            dropped.stale += 1;
        }
        let before = queue.bytes;
        for packet in packets {
            queue.bytes += packet.size();
            queue.packets.push_back(Waiting { packet, since: now });
        }
        self.bytes += queue.bytes - before;
    }

    /// Drops packets until at most `capacity` bytes wait: those of the flow with the most bytes,
    /// oldest first. While the queue is `held`, TCP is spared as long as there is anything else, and
    /// keeps what came first: the receiver needs that before all that follows.
    pub(super) fn shrink(&mut self, capacity: usize, held: bool, dropped: &mut Dropped) {
        while self.bytes > capacity {
            let full = self.flows.iter_mut().filter(|queue| queue.bytes > 0);
            let fattest = full.max_by_key(|queue| (held && !queue.is_tcp, queue.bytes));
            let Some(queue) = fattest else { return };
            self.bytes -= if held && queue.is_tcp { queue.drop_tail() } else { queue.drop_head() };
            dropped.full += 1;
        }
    }

    /// The next packet, and when it came.
    pub(super) fn pop(&mut self, now: Instant, dropped: &mut Dropped) -> Option<(Instant, Packet)> {
        loop {
            let is_new = !self.new.is_empty();
            let hash = *if is_new { self.new.front() } else { self.old.front() }?;
            let queue = self.flows.find_mut(hash, |queue| queue.hash == hash)?;
            if queue.credit <= 0 {
                queue.credit += QUANTUM;
                self.leave_turn(is_new, Some(hash));
                continue;
            }
            let before = queue.bytes;
            let patient = self.patient_until.is_some_and(|until| now < until);
            let packet = queue.take(now, patient, dropped);
            self.bytes -= before - queue.bytes;
            if packet.is_some() {
                return packet;
            }
            if is_new && !self.old.is_empty() {
                // Gone at once it could come back as new and starve the others (RFC 8290 §4.2).
                self.leave_turn(is_new, Some(hash));
            } else {
                self.leave_turn(is_new, None);
                self.end(hash);
            }
        }
    }

    /// Takes the first flow off its list; `back` goes to the end of the line.
    fn leave_turn(&mut self, is_new: bool, back: Option<u64>) {
        let list = if is_new { &mut self.new } else { &mut self.old };
        list.pop_front();
        self.old.extend(back);
    }

    fn end(&mut self, hash: u64) {
        if let Ok(entry) = self.flows.find_entry(hash, |queue| queue.hash == hash)
            && let (queue, _) = entry.remove()
            && self.spare.len() < SPARE
        {
            self.spare.push(FlowQueue { packets: queue.packets, ..FlowQueue::default() });
        }
    }
}

impl FlowQueue {
    fn take(
        &mut self,
        now: Instant,
        patient: bool,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        while let Some(Waiting { packet, since }) = self.packets.pop_front() {
            self.bytes -= packet.size();
            if is_stale(self.is_tcp, since, now) {
                dropped.stale += 1;
                continue;
            }
            let short = patient || self.bytes < QUANTUM.unsigned_abs();
            let wait = now.saturating_duration_since(since);
            let packet = if self.codel.signals(wait, short, now) {
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

    fn drop_head(&mut self) -> usize {
        self.packets.pop_front().map_or(0, |waiting| self.dropped(&waiting))
    }

    fn drop_tail(&mut self) -> usize {
        self.packets.pop_back().map_or(0, |waiting| self.dropped(&waiting))
    }

    fn dropped(&mut self, waiting: &Waiting) -> usize {
        self.bytes -= waiting.packet.size();
        waiting.packet.size()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, iter::once};

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BULK: Flow = Flow { hash: 1, is_tcp: true };
    const KEYS: Flow = Flow { hash: 2, is_tcp: true };
    const VOICE: Flow = Flow { hash: 3, is_tcp: false };

    fn packet(flow: Flow, length: usize) -> Packet {
        vec![0x40 | flow.hash as u8; length].into()
    }

    /// The flow's hash, or whatever else stands in the first byte.
    fn number(packet: &Packet) -> u64 {
        u64::from(packet.ip()[0] & 0x0f)
    }

    fn drain(fair: &mut Fair, now: Instant) -> (Vec<u64>, Dropped) {
        let mut dropped = Dropped::default();
        let mut flows = Vec::new();
        while let Some((_, packet)) = fair.pop(now, &mut dropped) {
            flows.push(number(&packet));
        }
        (flows, dropped)
    }

    #[test]
    fn a_keystroke_overtakes_an_upload() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        for _ in 0..100 {
            fair.push(BULK, once(packet(BULK, 1400)), now, &mut dropped);
        }
        for _ in 0..10 {
            fair.pop(now, &mut dropped).unwrap();
        }
        fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
        assert_eq!(number(&fair.pop(now, &mut dropped).unwrap().1), 2);
    }

    #[test]
    fn nobody_is_told_to_slow_down_while_the_queue_is_patient() {
        let (mut fair, start, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(BULK, (0..1000).map(|_| packet(BULK, 1400)), start, &mut dropped);
        fair.be_patient(start + 500 * MS);
        let mut told = |times: std::ops::Range<u32>| {
            // These packets understand the mark (ECN).
            let popped = times.filter_map(|at| fair.pop(start + at * MS, &mut dropped));
            popped.filter(|(_, packet)| packet.ip()[1] & 0b11 == 0b11).count()
        };
        assert_eq!(told(0..500), 0);
        assert!(told(500..700) > 0);
    }

    #[test]
    fn two_bulk_flows_share_by_bytes() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        for _ in 0..1000 {
            fair.push(BULK, once(packet(BULK, 1400)), now, &mut dropped);
            fair.push(VOICE, once(packet(VOICE, 200)), now, &mut dropped);
        }
        let mut bytes = [0_usize; 4];
        for _ in 0..500 {
            let (_, packet) = fair.pop(now, &mut dropped).unwrap();
            bytes[number(&packet) as usize] += packet.size();
        }
        let ratio = bytes[1] as f64 / bytes[3] as f64;
        assert!((0.8..1.25).contains(&ratio), "{bytes:?}");
    }

    #[test]
    fn a_full_queue_takes_from_the_one_who_fills_it() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
        for _ in 0..20 {
            fair.push(BULK, once(packet(BULK, 1000)), now, &mut dropped);
        }
        fair.shrink(10_000, false, &mut dropped);
        assert_eq!((dropped.full, fair.bytes()), (11, 9080));
        assert!(drain(&mut fair, now).0.contains(&2));
    }

    #[test]
    fn a_held_queue_spares_tcp_and_keeps_what_its_receiver_needs_first() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        for number in 0..10 {
            fair.push(VOICE, once(packet(VOICE, 1000)), now, &mut dropped);
            fair.push(BULK, once(vec![0x40 | number; 900].into()), now, &mut dropped);
        }
        fair.shrink(4500, true, &mut dropped);
        let kept: Vec<_> = drain(&mut fair, now).0;
        assert_eq!(kept, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn stale_packets_are_dropped_but_tcp_is_kept() {
        let (mut fair, start, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(VOICE, once(packet(VOICE, 100)), start, &mut dropped);
        fair.push(KEYS, once(packet(KEYS, 100)), start, &mut dropped);
        let later = start + Duration::from_secs(90);
        fair.push(VOICE, once(packet(VOICE, 200)), later, &mut dropped);
        assert_eq!(dropped.stale, 1, "already when the next one comes");
        let (mut flows, _) = drain(&mut fair, later + 500 * MS);
        flows.sort_unstable();
        assert_eq!(flows, [2, 3]);
        fair.push(VOICE, once(packet(VOICE, 100)), start, &mut dropped);
        assert_eq!(drain(&mut fair, later), (vec![], Dropped { stale: 1, ..Dropped::default() }));
    }

    proptest! {
        #[test]
        fn every_packet_leaves_once_or_is_counted_and_flows_keep_their_order(
            steps in proptest::collection::vec((0u64..6, 40usize..1500, any::<bool>(), 0u64..20), 1..300),
            capacity in 2000usize..60_000,
        ) {
            let (mut fair, mut now) = (Fair::default(), Instant::now());
            let mut dropped = Dropped::default();
            let (mut pushed, mut popped) = (0_u64, 0_u64);
            let mut last = HashMap::new();
            let mut check = |packet: Packet| {
                let number = u64::from_be_bytes(packet.ip()[8..16].try_into().unwrap());
                let flow = u64::from_be_bytes(packet.ip()[..8].try_into().unwrap());
                let before = last.insert(flow, number);
                before.is_none_or(|before| before < number)
            };
            for (hash, length, pop, pause) in steps {
                now += Duration::from_millis(pause);
                let flow = Flow { hash, is_tcp: hash % 2 == 0 };
                let mut bytes = vec![0; length];
                bytes[..8].copy_from_slice(&hash.to_be_bytes());
                bytes[8..16].copy_from_slice(&pushed.to_be_bytes());
                fair.push(flow, once(bytes.into()), now, &mut dropped);
                fair.shrink(capacity, false, &mut dropped);
                pushed += 1;
                prop_assert!(fair.bytes() <= capacity);
                if pop && let Some((_, packet)) = fair.pop(now, &mut dropped) {
                    popped += 1;
                    prop_assert!(check(packet));
                }
            }
            while let Some((_, packet)) = fair.pop(now, &mut dropped) {
                popped += 1;
                prop_assert!(check(packet));
            }
            prop_assert_eq!(pushed, popped + dropped.full + dropped.stale + dropped.slow);
            prop_assert_eq!((fair.bytes(), fair.flows.len()), (0, 0));
            prop_assert!(fair.new.is_empty() && fair.old.is_empty());
        }
    }
}
