//! The queue between the TUN device and the connection.
//!
//! Bounded in memory, fair between senders, then between their flows, and short for each flow (FQ-CoDel, RFC
//! 8290). While no path works the queue is *held*: packets stay, those of TCP longest, and leave when a path
//! works.
//!
//! Both ends work in batches: one lock and one look at the clock serve many packets.
//!
//! A packet is a slice of a buffer of up to 64 KB that it shares with other packets and keeps in memory. That
//! is fine for a packet that leaves at once. A packet that waits behind many others is copied.

mod codel;
mod fair;
mod list;
mod senders;
mod sizes;
mod thrift;

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

use self::{
    codel::Tolerance,
    fair::{OVERHEAD, Ready},
    senders::Senders,
};
use super::{
    flow::{self, Classifier},
    pool::{Pool, Share},
};
use crate::{clock, mutex::Mutex, wire::packet::Packet};
pub(crate) use fair::{Dropped, is_stale};

/// Packets that may wait without being copied: a few batches. A longer queue does not flow freely.
const UNCOPIED: usize = 256;
/// How long CoDel pauses after a migration: several round trips.
const PATIENCE: Duration = Duration::from_secs(1);
/// Packets that are examined in the search for early ones.
const EARLY_LOOKS: usize = 256;

/// A bounded queue of inner packets.
#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes [`Self::ready`]: packets may have arrived.
    ready: Notify,
    taken: Notify,
    classifier: Classifier,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// How long the packet that left last had waited.
    delay: Duration,
    /// Since when there is always a packet that may leave.
    stands_since: Option<Instant>,
    held: bool,
    /// Packets that leave before all others.
    again: VecDeque<(Instant, Packet)>,
    again_bytes: usize,
    senders: Senders,
    patient_until: Option<Instant>,
    repaired_until: Option<Instant>,
    /// The round trip of what leaves.
    rtt: Duration,
    share: Share,
}

/// Packets that were taken out of a queue and can be put back.
#[derive(Debug)]
pub struct Taken(Vec<(Instant, Packet)>);

impl From<Vec<(Instant, Packet)>> for Taken {
    /// Packets in their order, each with the time since when it waits.
    fn from(packets: Vec<(Instant, Packet)>) -> Self {
        Self(packets)
    }
}

impl Taken {
    /// The packets as datagrams that every peer understands.
    #[must_use]
    pub fn datagrams(&self) -> Arc<[Bytes]> {
        let checked = self.0.iter().filter_map(|(_, packet)| packet.checked());
        checked.map(|packet| packet.datagram().clone()).collect()
    }
}

impl Queue {
    /// A queue of at most `capacity` bytes of memory. It is held until [`Self::hold`] releases it.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting { held: true, ..Waiting::default() }),
            ready: Notify::new(),
            taken: Notify::new(),
            classifier: Classifier::default(),
            capacity,
        }
    }

    /// The same for one of several queues that also share the memory of `pool`.
    #[must_use]
    pub fn sharing(pool: Arc<Pool>, capacity: usize) -> Self {
        let mut queue = Self::new(capacity);
        queue.waiting.get_mut().share = Share::of(pool);
        queue
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Appends all packets of `batch`; returns the packets that were dropped for them.
    pub fn push(&self, batch: &mut Vec<Packet>) -> Dropped {
        self.push_from(0, batch)
    }

    /// The same for a batch of one of several senders.
    pub fn push_from(&self, sender: usize, batch: &mut Vec<Packet>) -> Dropped {
        let (mut dropped, now) = (Dropped::default(), clock::now());
        let runs = batch.chunk_by(|left, right| flow::is_same(left.ip(), right.ip()));
        let runs: Vec<_> = runs.map(|run| (self.classifier.flow(run[0].ip()), run.len())).collect();
        {
            let waiting = &mut *self.lock();
            waiting.begin_to_stand(now);
            let mut room = waiting.uncopied_room();
            let mut packets = batch.drain(..).map(|packet| match room.checked_sub(1) {
                Some(left) => {
                    room = left;
                    packet
                }
                None => packet.detached(),
            });
            let fair = waiting.senders.of(sender);
            for (flow, length) in runs {
                fair.push(flow, packets.by_ref().take(length), now, &mut dropped);
            }
            let limit = self.capacity.min(waiting.share.limit(waiting.held));
            let capacity = limit.saturating_sub(waiting.again_cost());
            waiting.senders.shrink(capacity, waiting.held, &mut dropped);
            waiting.take_share();
        }
        self.ready.notify_one();
        dropped
    }

    /// Waits until the queue has packets that may leave. Cancel safe.
    pub async fn ready(&self) {
        loop {
            let ready = self.lock().ready_at();
            let at = match ready {
                Some(ready) if ready.is_now(clock::now()) => return,
                Some(Ready::At(at)) => Some(at),
                Some(Ready::Now) | None => None,
            };
            tokio::select! {
                () = self.ready.notified() => {}
                () = clock::sleep_until(at) => {}
            }
        }
    }

    /// Whether the queue has packets that may leave.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Moves packets to the end of `batch` unless the queue is held: at most `limit` packets, and none after
    /// the first `room` bytes. Returns the packets that were dropped on the way.
    pub fn pop(&self, batch: &mut Vec<Packet>, limit: usize, room: usize) -> Dropped {
        let mut dropped = Dropped::default();
        if self.pop_now(batch, limit, room, &mut dropped) {
            self.taken.notify_one();
        }
        dropped
    }

    fn pop_now(
        &self,
        batch: &mut Vec<Packet>,
        limit: usize,
        mut room: usize,
        dropped: &mut Dropped,
    ) -> bool {
        let waiting = &mut *self.lock();
        if !waiting.is_ready() {
            return false;
        }
        let (now, before) = (clock::now(), batch.len());
        while batch.len() < before + limit
            && room > 0
            && let Some((since, packet)) = waiting.next(now, dropped)
        {
            waiting.delay = now.saturating_duration_since(since);
            room = room.saturating_sub(packet.size());
            batch.push(packet);
        }
        waiting.take_share();
        batch.len() > before
    }

    /// Whether [`Self::pop_sparse`] may have something.
    #[must_use]
    pub(crate) fn has_sparse(&self) -> bool {
        let waiting = self.lock();
        waiting.is_ready() && waiting.senders.has_sparse()
    }

    /// Moves at most `limit` packets that are worth a copy, of flows that have little waiting, to the end of `batch`, unless
    /// the queue is held. Returns the packets that were dropped on the way.
    pub(crate) fn pop_sparse(&self, batch: &mut Vec<Packet>, limit: usize) -> Dropped {
        let (mut dropped, now) = (Dropped::default(), clock::now());
        let waiting = &mut *self.lock();
        if waiting.is_ready() {
            let mut next = || waiting.senders.pop_sparse(now, Tolerance::ANY, &mut dropped);
            batch.extend(std::iter::from_fn(|| next().map(|(_, packet)| packet)).take(limit));
            waiting.take_share();
        }
        dropped
    }

    /// Takes at most `limit` bytes of TCP packets, also from a held queue, to send them before the handshake
    /// is complete. Packets of other protocols stay, because they could arrive too late to be of use.
    /// [`Self::put_back`] returns the packets. The second value counts packets that were dropped on the way.
    pub fn take_early(&self, limit: usize) -> (Taken, Dropped) {
        let waiting = &mut *self.lock();
        let (mut taken, mut others, now) = (Vec::new(), Vec::new(), clock::now());
        let mut dropped = Dropped::default();
        let mut room = limit;
        for _ in 0..EARLY_LOOKS {
            let Some(next) = waiting.next(now, &mut dropped) else { break };
            if next.1.size() <= room && flow::is_tcp(next.1.ip()) {
                room -= next.1.size();
                taken.push(next);
            } else {
                others.push(next);
            }
        }
        waiting.go_first(others);
        (Taken(taken), dropped)
    }

    /// Puts packets in front of all others, in their order.
    pub fn put_back(&self, Taken(packets): Taken) {
        {
            let waiting = &mut *self.lock();
            waiting.begin_to_stand(clock::now());
            waiting.go_first(packets);
        }
        self.ready.notify_one();
    }

    /// Puts packets that have just left in front of all others, in their order.
    pub fn put_back_all(&self, packets: Vec<Packet>) {
        let now = clock::now();
        self.put_back(Taken(packets.into_iter().map(|packet| (now, packet)).collect()));
    }

    /// Holds the queue, or releases it.
    pub fn hold(&self, held: bool) {
        let before = {
            let waiting = &mut *self.lock();
            waiting.begin_to_stand(clock::now());
            std::mem::replace(&mut waiting.held, held)
        };
        if before && !held {
            self.ready.notify_one();
        }
    }

    /// Holds bulk back, or not any more: each byte costs money. Flows that take little leave as ever, and what is held
    /// back leaves at a trickle.
    pub fn hold_bulk(&self, held: bool) {
        let now = clock::now();
        let waiting = &mut *self.lock();
        waiting.begin_to_stand(now);
        if waiting.senders.hold_bulk(held, now) && !held {
            // What was held is no sign of a queue on the path.
            waiting.patient_until = waiting.patient_until.max(Some(now + PATIENCE));
            self.ready.notify_one();
        }
    }

    /// Forgets all that waits; returns how many packets that was.
    pub(crate) fn clear(&self) -> usize {
        let waiting = &mut *self.lock();
        let packets = waiting.again.len() + waiting.senders.packets();
        (waiting.again, waiting.again_bytes) = (VecDeque::new(), 0);
        waiting.senders = waiting.senders.emptied();
        waiting.take_share();
        packets
    }

    /// Pauses CoDel for one second: the connection does not know the path's rate, as it has migrated or its slow start was cut
    /// short, and senders must be ready when it does.
    pub fn be_patient(&self) {
        self.lock().patient_until = Some(clock::now() + PATIENCE);
    }

    /// Packets of this queue were lost and are sent once more: for one second CoDel takes the bursts that this makes
    /// for what they are.
    pub(crate) fn note_repair(&self) {
        self.lock().repaired_until = Some(clock::now() + PATIENCE);
    }

    /// What leaves takes so long to cross the network and be acknowledged: CoDel judges by it.
    pub(crate) fn set_round_trip(&self, rtt: Duration) {
        self.lock().rtt = rtt;
    }

    /// Waits until packets have left.
    pub async fn taken(&self) {
        self.taken.notified().await;
    }

    /// How long the packet that left last had waited; zero if no packet waits.
    #[must_use]
    pub fn delay(&self) -> Duration {
        let waiting = self.lock();
        if waiting.bytes() == 0 { Duration::ZERO } else { waiting.delay }
    }

    /// For how long there has always been a packet that may leave. What waits behind others shows here, and in
    /// [`Self::delay`] only once it leaves.
    #[must_use]
    pub(crate) fn stands(&self) -> Duration {
        let waiting = self.lock();
        let since = waiting.stands_since.filter(|_| waiting.stands());
        since.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since))
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes()
    }
}

impl Waiting {
    /// Whether a packet may leave that is not held back for its cost.
    fn stands(&self) -> bool {
        matches!(self.ready_at(), Some(Ready::Now))
    }

    /// Takes note of the time if nothing may leave yet, before something may.
    fn begin_to_stand(&mut self, now: Instant) {
        if !self.stands() {
            self.stands_since = Some(now);
        }
    }

    fn is_ready(&self) -> bool {
        self.ready_at().is_some_and(|ready| ready.is_now(clock::now()))
    }

    /// When a packet may leave; none while there is none, or the queue is held.
    fn ready_at(&self) -> Option<Ready> {
        match self.held {
            true => None,
            false if !self.again.is_empty() => Some(Ready::Now),
            false => self.senders.ready_at(),
        }
    }

    fn bytes(&self) -> usize {
        self.again_bytes + self.senders.bytes()
    }

    /// The number of further packets that may wait without being copied.
    fn uncopied_room(&self) -> usize {
        if self.held { 0 } else { UNCOPIED.saturating_sub(self.senders.packets()) }
    }

    /// Bytes of memory of the packets that leave first.
    fn again_cost(&self) -> usize {
        self.again_bytes + OVERHEAD * self.again.len()
    }

    fn next(&mut self, now: Instant, dropped: &mut Dropped) -> Option<(Instant, Packet)> {
        while let Some((since, packet)) = self.again.pop_front() {
            self.again_bytes -= packet.size();
            if !is_stale(flow::is_tcp(packet.ip()), since, now) {
                return Some((since, packet));
            }
            dropped.stale += 1;
        }
        let is_until = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let tolerance = if is_until(self.patient_until) {
            Tolerance::ANY
        } else if is_until(self.repaired_until) {
            Tolerance::of_repaired(self.rtt)
        } else {
            Tolerance::of(self.rtt)
        };
        self.senders.pop(now, tolerance, dropped)
    }

    /// Tells the pool how much memory the waiting packets take.
    fn take_share(&mut self) {
        self.share.take(self.senders.cost() + self.again_cost());
    }

    fn go_first(
        &mut self,
        packets: impl IntoIterator<Item = (Instant, Packet), IntoIter: DoubleEndedIterator>,
    ) {
        for (since, packet) in packets.into_iter().rev() {
            self.again_bytes += packet.size();
            self.again.push_front((since, packet));
        }
    }
}

#[cfg(test)]
mod tests;
