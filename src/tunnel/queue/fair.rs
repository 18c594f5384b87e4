//! The order in which packets leave: fair between flows, short for each (FQ-CoDel, RFC 8290).
//!
//! Flows take turns by bytes (deficit round robin). A flow that has just begun, or that sends less than its
//! share, goes first: a keystroke does not wait behind an upload. A flow whose packets wait too long gets a
//! congestion mark (ECN) or a loss.
//!
//! The work per packet does not grow with the number of flows, and the memory of a flow counts as memory of
//! the queue: flows share a fixed number of buckets by their hash, and a flow with nothing to send is
//! removed.

mod backlog;

use std::time::Instant;

pub(super) use self::backlog::OVERHEAD;
pub(crate) use self::backlog::is_stale;
use self::backlog::{Backlog, QUANTUM};
use super::{
    codel::Tolerance,
    list::{Link, List, NONE, Slot},
    sizes::{self, Sizes},
    thrift::Thrift,
};
use crate::{tunnel::flow::Flow, wire::packet::Packet};

/// Buckets for TCP flows, and as many for all other flows. Flows in the same bucket share the share of one
/// flow (RFC 8290 §4.1.2).
const BUCKETS: usize = 1024;
/// Slots of ended flows that are always kept for new flows.
const SPARE: usize = 64;

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

/// A flow's packets, and where it stands among the others.
#[derive(Debug, Default)]
struct FlowQueue {
    backlog: Backlog,
    bucket: usize,
    turn: Turn,
    is_sparse: bool,
    size: u8,
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
        self.change(slot, |backlog| {
            // Where nobody takes packets out, the stale ones make room here.
            backlog.drop_stale(now, dropped);
            packets.for_each(|packet| backlog.push(packet, now));
        });
        self.end_if_empty(slot);
    }

    /// Drops packets until the waiting packets take at most `capacity` bytes of memory: those of the largest
    /// flow, oldest first. While the queue is `held`, TCP packets are dropped last, and newest first: the
    /// receiver needs the oldest before all that follow.
    pub(super) fn shrink(&mut self, capacity: usize, held: bool, dropped: &mut Dropped) {
        while self.cost > capacity {
            let [others, tcp] = self.sizes.each_ref().map(Sizes::largest);
            let fattest = if held { others.or(tcp) } else { others.max(tcp) };
            let Some((_, slot)) = fattest else { return };
            self.change(slot, |backlog| {
                if held && backlog.is_tcp() { backlog.drop_tail() } else { backlog.drop_head() }
            });
            dropped.full += 1;
            self.end_if_empty(slot);
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
            let packet = self.change(slot, |backlog| {
                let credit = backlog.credit;
                let packet = backlog.take(now, tolerance, dropped);
                backlog.credit = credit;
                packet
            });
            self.end_if_empty(slot);
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
                && !queue.backlog.is_empty()
                && thrift.is_bulk(queue.bucket, now)
            {
                self.put(slot, Turn::Bulk);
                continue;
            }
            if queue.backlog.credit <= 0 {
                queue.backlog.credit += QUANTUM;
                self.put(slot, Turn::Old);
                continue;
            }
            let packet = self.change(slot, |backlog| backlog.take(now, tolerance, dropped));
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
            let packet = self.change(slot, |backlog| backlog.take(now, Tolerance::ANY, dropped));
            let queue = &self.flows[usize::from(slot)];
            if let Some((_, packet)) = &packet {
                thrift.trickled(queue.bucket, packet.size(), now);
            }
            if queue.backlog.is_empty() {
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
        queue.backlog.begin(is_tcp);
        (queue.bucket, queue.turn, queue.is_sparse, queue.size) =
            (bucket, Turn::New, false, sizes::EMPTY);
        self.buckets[bucket] = slot;
        self.lists.new.push(&mut self.turns, slot);
        slot
    }

    /// Changes a flow's packets by `change` and updates its size and all sums.
    fn change<T>(&mut self, slot: Slot, change: impl FnOnce(&mut Backlog) -> T) -> T {
        #[cfg(test)]
        {
            self.steps += 1;
        }
        let queue = &mut self.flows[usize::from(slot)];
        let backlog = &mut queue.backlog;
        let (packets, bytes, cost) = (backlog.packets(), backlog.bytes(), backlog.cost());
        let result = change(backlog);
        self.packets = self.packets + backlog.packets() - packets;
        self.bytes = self.bytes + backlog.bytes() - bytes;
        self.cost = self.cost + backlog.cost() - cost;
        let size = sizes::class(backlog.cost());
        let before = std::mem::replace(&mut queue.size, size);
        if size != before {
            let sizes = &mut self.sizes[usize::from(backlog.is_tcp())];
            sizes.resize(&mut self.neighbours, slot, before, size);
        }
        let is_sparse = backlog.is_sparse();
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

    fn end_if_empty(&mut self, slot: Slot) {
        if self.flows[usize::from(slot)].backlog.is_empty() {
            self.end(slot);
        }
    }

    /// Removes a flow without packets.
    fn end(&mut self, slot: Slot) {
        self.leave_turn(slot);
        let queue = &mut self.flows[usize::from(slot)];
        self.buckets[queue.bucket] = NONE;
        queue.backlog.end();
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
            let FlowQueue { ref backlog, bucket, turn, is_sparse, size } = queue;
            let is_tcp = backlog.is_tcp();
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

#[cfg(test)]
mod tests;
