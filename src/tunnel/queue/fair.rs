//! The order in which packets leave: fair between flows, short for each (FQ-CoDel, RFC 8290).
//!
//! Flows take turns by bytes (deficit round robin). A flow that has just begun, or that sends less than its
//! share, goes first: a keystroke does not wait behind an upload. A flow whose packets wait too long gets a
//! congestion mark (ECN) or a loss.
//!
//! The work per packet does not grow with the number of flows, and the memory of a flow counts as memory of
//! the queue: flows share a fixed number of buckets by their hash, and a flow with nothing to send is
//! removed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    codel::{Codel, Tolerance},
    list::{Link, List, NONE, Slot},
    sizes::{self, Sizes},
    thrift::Thrift,
};
use crate::{
    tunnel::{
        ecn,
        flow::{self, Flow},
    },
    wire::packet::Packet,
};

/// Bytes that a flow sends in one turn: a packet (RFC 8290 §5.2).
const QUANTUM: isize = 1514;
/// Buckets for TCP flows, and as many for all other flows. Flows in the same bucket share the share of one
/// flow (RFC 8290 §4.1.2).
const BUCKETS: usize = 1024;
/// Bytes of memory that a packet takes beside its contents, and a flow beside its packets.
pub(super) const OVERHEAD: usize = 256;
/// A packet of a protocol that does not retransmit is worthless after this time: less than a
/// second, since it has yet to cross the network.
const STALE: Duration = Duration::from_millis(750);
/// Linux gives a TCP connection up after about so long without an answer (tcp_retries2 of tcp(7)).
const TCP_STALE: Duration = Duration::from_secs(15 * 60);
/// Slots of ended flows that are always kept for new flows, and the packets that each has room for.
const SPARE: usize = 64;
const SPARE_PACKETS: usize = 16;

/// Dropped packets, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Because the queue was full.
    pub full: u64,
    /// Because they waited too long to be useful.
    pub stale: u64,
    /// To signal congestion to their sender.
    pub slow: u64,
}

/// When something may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ready {
    Now,
    At(Instant),
}

impl Ready {
    pub(super) fn is_now(self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(at) => at <= now,
        }
    }
}

/// Whether a packet that arrived at `since` has become useless.
pub(super) fn is_stale(is_tcp: bool, since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) > if is_tcp { TCP_STALE } else { STALE }
}

/// Flows and their packets.
#[derive(Debug)]
pub(super) struct Fair {
    flows: Vec<FlowQueue>,
    /// The flow of each bucket; allocated with the first flow.
    buckets: Vec<Slot>,
    /// Flows with packets, and free slots.
    lists: Lists,
    spare: List,
    spares: usize,
    turns: Vec<Link>,
    /// Flows by size: all but TCP, and TCP.
    sizes: [Sizes; 2],
    neighbours: Vec<Link>,
    /// Flows for [`Self::pop_sparse`], by when they became such.
    sparse: List,
    beside: Vec<Link>,
    packets: usize,
    bytes: usize,
    cost: usize,
    /// How often a flow was examined.
    #[cfg(test)]
    steps: u64,
}

#[derive(Debug, Default)]
struct FlowQueue {
    bucket: usize,
    is_tcp: bool,
    turn: Turn,
    is_sparse: bool,
    size: u8,
    packets: VecDeque<Waiting>,
    bytes: usize,
    /// Packets that are worth a copy.
    copied: usize,
    credit: isize,
    codel: Codel,
}

/// Where flows wait for their turn: in their first one, those that are held back, and all others.
#[derive(Debug)]
struct Lists {
    new: List,
    old: List,
    bulk: List,
}

impl Lists {
    const EMPTY: Self = Self { new: List::EMPTY, old: List::EMPTY, bulk: List::EMPTY };

    fn of(&mut self, turn: Turn) -> &mut List {
        match turn {
            Turn::New => &mut self.new,
            Turn::Old => &mut self.old,
            Turn::Bulk => &mut self.bulk,
        }
    }
}

/// On which list a flow waits for its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    New,
    Old,
    Bulk,
}

#[derive(Debug)]
struct Waiting {
    packet: Packet,
    since: Instant,
    /// Whether it is worth a copy.
    is_copied: bool,
}

impl Default for Fair {
    fn default() -> Self {
        Self {
            flows: Vec::new(),
            buckets: Vec::new(),
            lists: Lists::EMPTY,
            spare: List::EMPTY,
            spares: 0,
            turns: Vec::new(),
            sizes: Default::default(),
            neighbours: Vec::new(),
            sparse: List::EMPTY,
            beside: Vec::new(),
            packets: 0,
            bytes: 0,
            cost: 0,
            #[cfg(test)]
            steps: 0,
        }
    }
}

impl Fair {
    /// Bytes of all waiting packets.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of waiting packets.
    pub(super) fn packets(&self) -> usize {
        self.packets
    }

    /// Adds packets of one flow.
    pub(super) fn push(
        &mut self,
        flow: Flow,
        packets: impl Iterator<Item = Packet>,
        now: Instant,
        dropped: &mut Dropped,
    ) {
        let slot = self.slot(flow);
        self.change(slot, |queue| {
            // Where nobody takes packets out, the stale ones make room here.
            while queue.packets.front().is_some_and(|head| is_stale(queue.is_tcp, head.since, now))
            {
                queue.drop_head();
                dropped.stale += 1;
            }
            for packet in packets {
                let is_copied = flow::is_copied(&packet);
                queue.bytes += packet.size();
                queue.copied += usize::from(is_copied);
                queue.packets.push_back(Waiting { packet, since: now, is_copied });
            }
        });
        if self.flows[usize::from(slot)].packets.is_empty() {
            self.end(slot);
        }
    }

    /// Drops packets until the waiting packets take at most `capacity` bytes of memory: those of the largest
    /// flow, oldest first. While the queue is `held`, TCP packets are dropped last, and newest first: the
    /// receiver needs the oldest before all that follow.
    pub(super) fn shrink(&mut self, capacity: usize, held: bool, dropped: &mut Dropped) {
        while self.cost > capacity {
            let [others, tcp] = self.sizes.each_ref().map(Sizes::largest);
            let fattest = if held { others.or(tcp) } else { others.max(tcp) };
            let Some((_, slot)) = fattest else { return };
            self.change(slot, |queue| {
                if held && queue.is_tcp { queue.drop_tail() } else { queue.drop_head() }
            });
            dropped.full += 1;
            if self.flows[usize::from(slot)].packets.is_empty() {
                self.end(slot);
            }
        }
    }

    /// Bytes of memory.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Bulk is not held back any more: its flows wait for their turn as all others.
    pub(super) fn release(&mut self) {
        while let Some(slot) = self.lists.bulk.first() {
            self.put(slot, Turn::Old);
        }
    }

    /// When [`Self::pop`] may have something; none without packets. While bulk is held back, it leaves at `trickle`.
    pub(super) fn ready_at(&self, trickle: Option<Instant>) -> Option<Ready> {
        match trickle {
            _ if self.packets == 0 => None,
            Some(at) if self.lists.new.is_empty() && self.lists.old.is_empty() => {
                Some(Ready::At(at))
            }
            _ => Some(Ready::Now),
        }
    }

    /// Whether [`Self::pop_sparse`] may have something.
    pub(super) fn has_sparse(&self) -> bool {
        !self.sparse.is_empty()
    }

    /// The next packet, a small one, of a flow that has packets worth a copy and no more waiting than leaves in one turn,
    /// whosever turn it is: while nothing else may leave, turns do not come round. It does not count as a turn of the flow,
    /// which would pay for it long after. CoDel accepts what `tolerance` says.
    pub(super) fn pop_sparse(
        &mut self,
        now: Instant,
        tolerance: Tolerance,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        while let Some(slot) = self.sparse.first() {
            let packet = self.change(slot, |queue| {
                let credit = queue.credit;
                let packet = queue.take(now, tolerance, dropped);
                queue.credit = credit;
                packet
            });
            if self.flows[usize::from(slot)].packets.is_empty() {
                self.end(slot);
            }
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// The next packet and its time of arrival. CoDel accepts what `tolerance` says; `thrift` holds bulk back.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        tolerance: Tolerance,
        mut thrift: Option<&mut Thrift>,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        loop {
            let Some(slot) = self.lists.new.first().or_else(|| self.lists.old.first()) else {
                return self.pop_bulk(now, thrift?, dropped);
            };
            let queue = &mut self.flows[usize::from(slot)];
            if let Some(thrift) = thrift.as_deref_mut()
                && !queue.packets.is_empty()
                && thrift.is_bulk(queue.bucket, now)
            {
                self.put(slot, Turn::Bulk);
                continue;
            }
            if queue.credit <= 0 {
                queue.credit += QUANTUM;
                self.put(slot, Turn::Old);
                continue;
            }
            let packet = self.change(slot, |queue| queue.take(now, tolerance, dropped));
            let queue = &self.flows[usize::from(slot)];
            if let (Some((_, packet)), Some(thrift)) = (&packet, thrift.as_deref_mut()) {
                thrift.took(queue.bucket, packet.size());
            }
            if packet.is_some() {
                return packet;
            }
            if queue.turn == Turn::New && !self.lists.old.is_empty() {
                // Gone at once it could come back as new and starve the others (RFC 8290 §4.2).
                self.put(slot, Turn::Old);
            } else {
                self.end(slot);
            }
        }
    }

    /// The next packet of a flow that is held back, once it may leave. That it waited says nothing of the path: CoDel does
    /// not see it.
    fn pop_bulk(
        &mut self,
        now: Instant,
        thrift: &mut Thrift,
        dropped: &mut Dropped,
    ) -> Option<(Instant, Packet)> {
        while let Some(slot) = self.lists.bulk.first()
            && thrift.next() <= now
        {
            let packet = self.change(slot, |queue| queue.take(now, Tolerance::ANY, dropped));
            let queue = &self.flows[usize::from(slot)];
            if let Some((_, packet)) = &packet {
                thrift.trickled(queue.bucket, packet.size(), now);
            }
            if queue.packets.is_empty() {
                self.end(slot);
            } else {
                self.put(slot, Turn::Bulk);
            }
            if let Some((_, packet)) = packet {
                return Some((now, packet));
            }
        }
        None
    }

    /// The slot of a flow: that of its bucket, or a new one.
    fn slot(&mut self, Flow { hash, is_tcp }: Flow) -> Slot {
        self.buckets.resize(2 * BUCKETS, NONE);
        let bucket = hash as usize % BUCKETS * 2 + usize::from(is_tcp);
        if self.buckets[bucket] != NONE {
            return self.buckets[bucket];
        }
        let slot = match self.spare.first() {
            Some(slot) => {
                self.spare.remove(&mut self.turns, slot);
                self.spares -= 1;
                slot
            }
            None => self.add(FlowQueue::default()),
        };
        let queue = &mut self.flows[usize::from(slot)];
        let packets = std::mem::take(&mut queue.packets);
        *queue = FlowQueue {
            bucket,
            is_tcp,
            turn: Turn::New,
            credit: QUANTUM,
            packets,
            ..FlowQueue::default()
        };
        self.buckets[bucket] = slot;
        self.lists.new.push(&mut self.turns, slot);
        slot
    }

    /// Changes a flow by `change` and updates its size and all sums.
    fn change<T>(&mut self, slot: Slot, change: impl FnOnce(&mut FlowQueue) -> T) -> T {
        #[cfg(test)]
        {
            self.steps += 1;
        }
        let queue = &mut self.flows[usize::from(slot)];
        let (packets, bytes, cost) = (queue.packets.len(), queue.bytes, queue.cost());
        let result = change(queue);
        self.packets = self.packets + queue.packets.len() - packets;
        self.bytes = self.bytes + queue.bytes - bytes;
        self.cost = self.cost + queue.cost() - cost;
        let size = sizes::class(queue.cost());
        let before = std::mem::replace(&mut queue.size, size);
        if size != before {
            let sizes = &mut self.sizes[usize::from(queue.is_tcp)];
            sizes.resize(&mut self.neighbours, slot, before, size);
        }
        let is_sparse = queue.is_sparse();
        if std::mem::replace(&mut queue.is_sparse, is_sparse) != is_sparse {
            if is_sparse {
                self.sparse.push(&mut self.beside, slot);
            } else {
                self.sparse.remove(&mut self.beside, slot);
            }
        }
        result
    }

    /// Moves a flow to the end of a list.
    fn put(&mut self, slot: Slot, turn: Turn) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
        self.leave_turn(slot);
        self.flows[usize::from(slot)].turn = turn;
        self.lists.of(turn).push(&mut self.turns, slot);
    }

    fn leave_turn(&mut self, slot: Slot) {
        let turn = self.flows[usize::from(slot)].turn;
        self.lists.of(turn).remove(&mut self.turns, slot);
    }

    /// Removes a flow without packets.
    fn end(&mut self, slot: Slot) {
        self.leave_turn(slot);
        let queue = &mut self.flows[usize::from(slot)];
        self.buckets[queue.bucket] = NONE;
        if queue.packets.capacity() > SPARE_PACKETS {
            queue.packets = VecDeque::new();
        }
        self.spare.push(&mut self.turns, slot);
        self.spares += 1;
        // At least as many flows ended since the last time as are moved.
        if self.flows.len() > SPARE && self.spares > self.flows.len() / 4 * 3 {
            self.give_places_back();
        }
    }

    /// Moves all flows to the first slots and frees the others.
    fn give_places_back(&mut self) {
        let (mut flows, turns) = (std::mem::take(&mut self.flows), std::mem::take(&mut self.turns));
        let Lists { new, old, bulk } = std::mem::replace(&mut self.lists, Lists::EMPTY);
        let lists = [new, old, bulk].map(|list| list.iter(&turns).collect::<Vec<_>>());
        (self.spare, self.spares) = (List::EMPTY, 0);
        (self.neighbours, self.sizes) = Default::default();
        (self.beside, self.sparse) = (Vec::new(), List::EMPTY);
        for slot in lists.into_iter().flatten() {
            let queue = std::mem::take(&mut flows[usize::from(slot)]);
            let (bucket, is_tcp, turn, size) = (queue.bucket, queue.is_tcp, queue.turn, queue.size);
            let is_sparse = queue.is_sparse;
            let slot = self.add(queue);
            if is_sparse {
                self.sparse.push(&mut self.beside, slot);
            }
            self.buckets[bucket] = slot;
            self.lists.of(turn).push(&mut self.turns, slot);
            self.sizes[usize::from(is_tcp)].resize(&mut self.neighbours, slot, sizes::EMPTY, size);
        }
    }

    fn add(&mut self, queue: FlowQueue) -> Slot {
        self.flows.push(queue);
        self.turns.push(Link::default());
        self.neighbours.push(Link::default());
        self.beside.push(Link::default());
        (self.flows.len() - 1) as Slot
    }
}

impl FlowQueue {
    /// Bytes of memory.
    fn cost(&self) -> usize {
        match self.packets.len() {
            0 => 0,
            count => self.bytes + OVERHEAD * (1 + count),
        }
    }

    /// See [`Fair::pop_sparse`].
    fn is_sparse(&self) -> bool {
        self.copied > 0
            && self.bytes <= QUANTUM.unsigned_abs()
            && self.packets.front().is_some_and(|head| flow::is_small(&head.packet))
    }

    fn take(
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

    fn drop_head(&mut self) {
        if let Some(head) = self.packets.pop_front() {
            self.gone(&head);
        }
    }

    fn drop_tail(&mut self) {
        if let Some(tail) = self.packets.pop_back() {
            self.gone(&tail);
        }
    }

    /// Counts a packet that left, and frees memory when far fewer packets remain.
    fn gone(&mut self, Waiting { packet, is_copied, .. }: &Waiting) {
        self.bytes -= packet.size();
        self.copied -= usize::from(*is_copied);
        let count = self.packets.len();
        if self.packets.capacity() > SPARE_PACKETS.max(4 * count) {
            self.packets.shrink_to(2 * count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, iter::once};

    use proptest::prelude::*;

    use super::*;

    fn usual() -> Tolerance {
        Tolerance::of(Duration::ZERO)
    }

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
        while let Some((_, packet)) = fair.pop(now, usual(), None, &mut dropped) {
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
            fair.pop(now, usual(), None, &mut dropped).unwrap();
        }
        fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
        assert_eq!(number(&fair.pop(now, usual(), None, &mut dropped).unwrap().1), 2);
    }

    /// While a path is late they leave out of turn. Later they owe nothing.
    #[test]
    fn what_left_out_of_turn_is_not_paid_for_later() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        let key = || once(packet(KEYS, 200));
        fair.push(BULK, (0..100).map(|_| packet(BULK, 1400)), now, &mut dropped);
        fair.push(KEYS, (0..8).map(|_| packet(KEYS, 200)), now, &mut dropped);
        (0..6).for_each(|_| drop(fair.pop(now, usual(), None, &mut dropped)));
        for _ in 0..500 {
            fair.push(KEYS, key(), now, &mut dropped);
            assert_eq!(number(&fair.pop_sparse(now, usual(), &mut dropped).unwrap().1), 2);
        }
        fair.push(KEYS, key(), now, &mut dropped);
        let mut next = || number(&fair.pop(now, usual(), None, &mut dropped).unwrap().1);
        assert!((0..3).any(|_| next() == 2), "within one round");
    }

    #[test]
    fn no_congestion_is_signalled_while_the_queue_is_patient() {
        let (mut fair, start, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(BULK, (0..1000).map(|_| packet(BULK, 1400)), start, &mut dropped);
        let patient = Tolerance { target: Duration::MAX, ..usual() };
        let mut told = |times: std::ops::Range<u32>, tolerance| {
            // These packets understand the mark (ECN).
            let popped =
                times.filter_map(|at| fair.pop(start + at * MS, tolerance, None, &mut dropped));
            popped.filter(|(_, packet)| packet.ip()[1] & 0b11 == 0b11).count()
        };
        assert_eq!(told(0..500, patient), 0);
        assert!(told(500..700, usual()) > 0);
    }

    #[test]
    fn the_flow_table_shrinks_after_a_flood() {
        for held in [false, true] {
            let (mut fair, now, mut dropped) =
                (Fair::default(), Instant::now(), Dropped::default());
            fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
            flood(&mut fair, held, false, now);
            assert!(fair.flows.capacity() > BUCKETS / 2);
            fair.shrink(20 * (28 + 2 * OVERHEAD), held, &mut dropped);
            assert!(fair.flows.capacity() <= 2 * SPARE, "{} places", fair.flows.capacity());
            let packets = fair.packets;
            assert_eq!(drain(&mut fair, now).0.len(), packets);
        }
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
            let (_, packet) = fair.pop(now, usual(), None, &mut dropped).unwrap();
            bytes[number(&packet) as usize] += packet.size();
        }
        let ratio = bytes[1] as f64 / bytes[3] as f64;
        assert!((0.8..1.25).contains(&ratio), "{bytes:?}");
    }

    #[test]
    fn a_full_queue_drops_from_the_flow_that_fills_it() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
        for _ in 0..20 {
            fair.push(BULK, once(packet(BULK, 1000)), now, &mut dropped);
        }
        fair.shrink(10_000 + 12 * OVERHEAD, false, &mut dropped);
        assert_eq!((dropped.full, fair.bytes()), (11, 9080));
        assert!(drain(&mut fair, now).0.contains(&2));
    }

    #[test]
    fn a_full_held_queue_keeps_the_oldest_tcp_packets() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        for number in 0..10 {
            fair.push(VOICE, once(packet(VOICE, 1000)), now, &mut dropped);
            fair.push(BULK, once(vec![0x40 | number; 900].into()), now, &mut dropped);
        }
        fair.shrink(4500 + 6 * OVERHEAD, true, &mut dropped);
        let kept: Vec<_> = drain(&mut fair, now).0;
        assert_eq!(kept, [0, 1, 2, 3, 4]);
    }

    /// As many packets of 28 bytes, each of another flow, and how many steps each took.
    fn flood(fair: &mut Fair, held: bool, is_tcp: bool, now: Instant) -> f64 {
        const PACKETS: u64 = 100_000;
        let (before, mut dropped) = (fair.steps, Dropped::default());
        for number in 0..PACKETS {
            let flow = Flow { hash: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8, is_tcp };
            fair.push(flow, once(packet(flow, 28)), now, &mut dropped);
            fair.shrink(1 << 20, held, &mut dropped);
            assert!(fair.cost <= 1 << 20);
        }
        (fair.steps - before) as f64 / PACKETS as f64
    }

    #[test]
    fn a_hundred_thousand_flows_cost_no_more_for_each_packet_than_one() {
        let now = Instant::now();
        for held in [false, true] {
            let mut fair = Fair::default();
            for is_tcp in [false, true, false] {
                let steps = flood(&mut fair, held, is_tcp, now);
                // One to come, one to go; those of the flood before have to go as well.
                assert!(steps <= 2.1, "{steps}, held: {held}, TCP: {is_tcp}");
                assert!(fair.flows.len() <= 2 * BUCKETS);
                let places = fair.buckets.iter().filter(|bucket| **bucket != NONE).count();
                let used = fair.flows.iter().filter(|queue| !queue.packets.is_empty()).count();
                assert_eq!(places, used, "a flow with nothing in it does not stay");
            }
            let (before, packets) = (fair.steps, fair.packets as u64);
            let mut leave = || fair.pop_sparse(now, usual(), &mut Dropped::default()).is_some();
            (0..packets / 2).for_each(|_| assert!(leave()));
            drain(&mut fair, now);
            assert!(fair.steps - before <= 4 * packets, "{} for {packets}", fair.steps - before);
            assert!(fair.flows.capacity() <= 2 * SPARE, "nor does its place");
        }
    }

    #[test]
    fn a_held_queue_keeps_tcp_against_a_flood_of_flows() {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(KEYS, (0..100).map(|_| packet(KEYS, 1400)), now, &mut dropped);
        flood(&mut fair, true, false, now);
        let kept = drain(&mut fair, now).0;
        assert!(kept.iter().filter(|flow| **flow == 2).count() >= 100);
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
            steps in proptest::collection::vec((0u64..7, 40usize..1500, any::<bool>(), 0u64..20), 1..300),
            capacity in 2000usize..60_000,
        ) {
            let (mut fair, mut now) = (Fair::default(), Instant::now());
            let (mut dropped, mut thrift) = (Dropped::default(), None::<Thrift>);
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
                if hash == 6 {
                    thrift = pop.then(|| Thrift::new(now));
                    if !pop {
                        fair.release();
                    }
                    now += Duration::from_secs(pause / 4);
                }
                let flow = Flow { hash, is_tcp: hash % 2 == 0 };
                let mut bytes = vec![0; length];
                bytes[..8].copy_from_slice(&hash.to_be_bytes());
                bytes[8..16].copy_from_slice(&pushed.to_be_bytes());
                fair.push(flow, once(bytes.into()), now, &mut dropped);
                fair.shrink(capacity, false, &mut dropped);
                pushed += 1;
                prop_assert!(fair.cost <= capacity);
                let next = match (pop, pushed % 3) {
                    (true, 0) => fair.pop_sparse(now, usual(), &mut dropped),
                    (true, _) => fair.pop(now, usual(), thrift.as_mut(), &mut dropped),
                    (false, _) => None,
                };
                if let Some((_, packet)) = next {
                    popped += 1;
                    prop_assert!(check(packet));
                }
            }
            let ready = fair.ready_at(thrift.as_ref().map(Thrift::next));
            let is_ready = ready.is_some_and(|ready| ready.is_now(now));
            prop_assert!(is_ready || fair.pop(now, usual(), thrift.as_mut(), &mut dropped).is_none());
            fair.release();
            while let Some((_, packet)) = fair.pop(now, usual(), None, &mut dropped) {
                popped += 1;
                prop_assert!(check(packet));
            }
            prop_assert_eq!(pushed, popped + dropped.full + dropped.stale + dropped.slow);
            prop_assert_eq!((fair.packets, fair.bytes, fair.cost), (0, 0, 0));
            prop_assert!(fair.lists.new.is_empty() && fair.lists.old.is_empty() && fair.lists.bulk.is_empty());
            prop_assert!(!fair.has_sparse());
            prop_assert!(fair.buckets.iter().all(|bucket| *bucket == NONE));
            prop_assert!(fair.sizes.iter().all(|sizes| sizes.largest().is_none()));
        }
    }
}
