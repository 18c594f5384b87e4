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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use crate::{clock, wire::packet::Packet};
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
        queue.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).share = Share::of(pool);
        queue
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Pauses CoDel for one second: the connection has migrated and does not know the new path's rate yet,
    /// and senders must be ready when it does.
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
mod tests {
    use super::flow::tests::of_flow;
    use super::*;

    const TCP: u8 = 6;

    fn queue(capacity: usize) -> Queue {
        let queue = Queue::new(capacity);
        queue.hold(false);
        queue
    }

    fn packets(lengths: &[usize]) -> Vec<Packet> {
        lengths.iter().map(|length| of_flow(false, TCP, 22, *length).into()).collect()
    }

    fn pop(queue: &Queue, limit: usize) -> Vec<usize> {
        let mut batch = Vec::new();
        let _ = queue.pop(&mut batch, limit, usize::MAX);
        batch.iter().map(Packet::size).collect()
    }

    /// A transfer waits behind a stream of small packets, each of which leaves at once.
    #[tokio::test(start_paused = true)]
    async fn a_queue_stands_for_as_long_as_something_always_waits() {
        let queue = queue(100_000);
        let second = Duration::from_secs(1);
        assert_eq!(queue.stands(), Duration::ZERO);
        let _ = queue.push(&mut packets(&[1000; 4]));
        for turn in 1..4 {
            tokio::time::sleep(second).await;
            assert_eq!(queue.stands(), turn * second);
            let _ = queue.push(&mut packets(&[40]));
            pop(&queue, 1);
        }
        pop(&queue, 100);
        assert_eq!((queue.bytes(), queue.stands()), (0, Duration::ZERO));
        tokio::time::sleep(second).await;
        let _ = queue.push(&mut packets(&[40]));
        assert_eq!(queue.stands(), Duration::ZERO);

        let mut sent = Vec::new();
        let _ = queue.pop(&mut sent, 1, usize::MAX);
        tokio::time::sleep(second).await;
        queue.put_back_all(sent);
        assert_eq!(queue.stands(), Duration::ZERO, "it comes back");
        queue.hold(true);
        tokio::time::sleep(second).await;
        assert_eq!(queue.stands(), Duration::ZERO, "it has no path");
        queue.hold(false);
        assert_eq!(queue.stands(), Duration::ZERO, "now it has one");
        tokio::time::sleep(second).await;
        assert_eq!(queue.stands(), second);
    }

    #[test]
    fn packets_of_a_flow_leave_in_the_order_in_which_they_came() {
        let queue = queue(10_000);
        assert_eq!(queue.push(&mut packets(&[41, 42, 43])), Dropped::default());
        assert_eq!(pop(&queue, 2), [41, 42]);
        assert_eq!(pop(&queue, 2), [43]);
        assert_eq!(queue.bytes(), 0);
        assert!(pop(&queue, 2).is_empty());
    }

    #[test]
    fn a_queue_that_overflows_drops_its_oldest_packet() {
        let queue = queue(100 + 3 * OVERHEAD);
        assert_eq!(queue.push(&mut packets(&[44, 45])).full, 0);
        assert_eq!(queue.push(&mut packets(&[43])).full, 1);
        assert_eq!(pop(&queue, 9), [45, 43]);
    }

    #[test]
    fn a_held_queue_gives_nothing_until_it_is_released() {
        let queue = Queue::new(1000);
        queue.push(&mut packets(&[41]));
        assert!(pop(&queue, 9).is_empty());
        queue.hold(false);
        assert_eq!(pop(&queue, 9), [41]);
    }

    #[test]
    fn a_queue_that_forgets_has_its_memory_back() {
        let pool = Pool::new(10_000);
        let queue = Queue::sharing(pool.clone(), 10_000);
        queue.push(&mut packets(&[41, 42, 43]));
        let (early, _) = queue.take_early(42);
        queue.put_back(early);
        assert_eq!((queue.clear(), queue.bytes()), (3, 0));
        queue.push(&mut packets(&[44]));
        queue.hold(false);
        assert_eq!(pop(&queue, 9), [44]);
    }

    #[test]
    fn early_packets_go_back_into_the_queue_in_order() {
        let queue = Queue::new(10_000);
        queue.push(&mut packets(&[100, 200, 300, 400]));
        queue.push(&mut vec![of_flow(false, 17, 53, 50).into()]);
        let (early, _) = queue.take_early(350);
        assert_eq!(early.datagrams().iter().map(Bytes::len).collect::<Vec<_>>(), [100, 200]);
        queue.put_back(early);
        assert_eq!(queue.bytes(), 1050);
        queue.hold(false);
        assert_eq!(pop(&queue, 9), [100, 200, 300, 400, 50]);
    }

    #[test]
    fn only_what_is_copied_leaves_out_of_turn() {
        let queue = queue(100_000);
        let tcp = |port, length| {
            let mut packet = of_flow(false, TCP, port, length);
            packet[32] = 0x50; // a header of 20 bytes
            packet.into()
        };
        let mut batch = Vec::new();
        // A full segment, a short one behind it, and a bare acknowledgement.
        queue.push(&mut vec![tcp(1, 1400), tcp(1, 100), tcp(2, 600), tcp(3, 40)]);
        assert!(!queue.has_sparse());
        queue.pop_sparse(&mut batch, 9);
        assert_eq!((batch.len(), queue.bytes()), (0, 2140));
        // What was typed leaves, with the acknowledgement before it.
        queue.push(&mut vec![tcp(3, 76), tcp(3, 40)]);
        queue.pop_sparse(&mut batch, 9);
        assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [40, 76]);
        assert!(!queue.has_sparse());
        assert_eq!(queue.bytes(), 2140);
    }

    #[test]
    fn what_sends_little_is_found_behind_what_sends_much() {
        let queue = queue(100_000);
        queue.push(&mut packets(&[1400; 10]));
        assert_eq!(pop(&queue, 3), [1400; 3], "it has had its first turn");
        assert!(!queue.has_sparse());
        queue.push(&mut vec![of_flow(false, 17, 53, 60).into(), of_flow(false, 17, 54, 61).into()]);
        assert!(queue.has_sparse());
        let mut batch = Vec::new();
        assert_eq!(queue.pop_sparse(&mut batch, 9), Dropped::default());
        assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [60, 61]);
        assert!(!queue.has_sparse());
        assert_eq!(pop(&queue, 9), [1400; 7]);
    }

    /// A flow that was empty a moment ago waits for its turn behind the upload, which has none while nothing may leave.
    #[tokio::test(start_paused = true)]
    async fn sparse_flows_leave_whosever_turn_it_is() {
        let queue = queue(100_000);
        let key = || vec![of_flow(false, 17, 53, 60).into()];
        queue.push(&mut packets(&[1400; 10]));
        queue.push(&mut key());
        assert_eq!(pop(&queue, 4), [1400, 1400, 60, 1400]);
        let mut batch = Vec::new();
        for _ in 0..100 {
            queue.push(&mut key());
            assert!(queue.has_sparse());
            queue.pop_sparse(&mut batch, 9);
            assert!(!queue.has_sparse(), "the upload has more waiting");
        }
        assert_eq!(batch.iter().map(Packet::size).collect::<Vec<_>>(), [60; 100]);
        assert_eq!(pop(&queue, 9), [1400; 7]);
    }

    /// A burst of 400 ms on a path of 300.
    #[tokio::test(start_paused = true)]
    async fn a_burst_of_more_than_a_round_trip_passes_while_losses_are_repaired() {
        for (is_repaired, passes) in [(true, true), (false, false)] {
            let queue = queue(1 << 20);
            queue.set_round_trip(Duration::from_millis(300));
            if is_repaired {
                queue.note_repair();
            }
            queue.push(&mut packets(&[1000; 100]));
            let mut slow = 0;
            for _ in 0..100 {
                tokio::time::advance(Duration::from_millis(4)).await;
                slow += queue.pop(&mut Vec::new(), 1, usize::MAX).slow;
            }
            assert_eq!(slow == 0, passes, "{slow}");
        }
    }

    /// Typing beside uploads of three senders, a packet each millisecond: bytes of bulk that left, the longest wait of a
    /// key, and packets dropped to slow their sender down.
    async fn typing_beside_bulk(queue: &Queue, milliseconds: u32) -> (usize, Duration, u64) {
        let (mut bulk, mut longest, mut slow) = (0, Duration::ZERO, 0);
        let mut batch = Vec::new();
        let mut typed = None;
        for at in 0..milliseconds {
            if queue.bytes() < 200_000 {
                for sender in 1..4 {
                    queue.push_from(sender, &mut packets(&[1400; 10]));
                }
            }
            if at % 100 == 0 {
                queue.push_from(1, &mut vec![of_flow(false, TCP, 23, 100).into()]);
                typed = Some(clock::now());
            }
            slow += queue.pop(&mut batch, 1, usize::MAX).slow;
            for packet in batch.drain(..) {
                if packet.size() == 100 {
                    longest = longest.max(clock::now() - typed.take().unwrap());
                } else {
                    bulk += packet.size();
                }
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(typed, None, "each key left before the next one came");
        (bulk, longest, slow)
    }

    #[tokio::test(start_paused = true)]
    async fn held_bulk_trickles_while_keys_pass_and_all_of_it_goes_on_at_once() {
        let queue = queue(1 << 20);
        let (bulk, longest, _) = typing_beside_bulk(&queue, 20_000).await;
        assert!(bulk > 20_000 * 1300, "{bulk}");
        assert!(longest <= Duration::from_millis(12), "{longest:?}");
        queue.hold_bulk(true);
        let _ = typing_beside_bulk(&queue, 1000).await;
        let (bulk, longest, slow) = typing_beside_bulk(&queue, 60_000).await;
        assert_eq!(slow, 0, "nobody is told to slow down");
        assert!((60 * 950..=60 * 1100).contains(&bulk), "{bulk}");
        assert!(longest <= Duration::from_millis(2), "{longest:?}");
        assert!(queue.bytes() > 100_000 && queue.delay() < Duration::from_millis(1));
        queue.hold_bulk(false);
        assert_eq!(pop(&queue, 3), [1400; 3]);
        let (bulk, ..) = typing_beside_bulk(&queue, 1000).await;
        assert!(bulk > 1000 * 1300, "{bulk}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_bulk_that_was_held_makes_the_queue_patient_when_it_flows() {
        let queue = queue(1 << 20);
        queue.hold_bulk(false);
        assert_eq!(queue.lock().patient_until, None, "each session begins so");
        queue.hold_bulk(true);
        queue.hold_bulk(false);
        assert_eq!(queue.lock().patient_until, Some(clock::now() + PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_woken_for_bulk_that_is_held() {
        let queue = queue(1 << 20);
        queue.hold_bulk(true);
        queue.push(&mut packets(&[1400; 100]));
        let left: usize = pop(&queue, 100).iter().sum();
        assert!((65_000..70_000).contains(&left), "{left}");
        let begun = clock::now();
        for trickled in 1..5_u32 {
            assert!(!queue.is_ready());
            queue.ready().await;
            assert_eq!(pop(&queue, 100), [1400]);
            let expected = trickled * Duration::from_secs_f64(1400.0 / 1024.0);
            let waited = clock::now() - begun;
            assert!(waited.abs_diff(expected) < Duration::from_millis(20), "{waited:?}");
        }
        let woken = tokio::time::timeout(Duration::from_secs(1), queue.ready()).await;
        assert!(woken.is_err());
        queue.push(&mut vec![of_flow(false, TCP, 23, 100).into()]);
        assert_eq!(pop(&queue, 100), [100]);
    }

    #[tokio::test]
    async fn a_push_wakes_the_reader() {
        let queue = std::sync::Arc::new(queue(1000));
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move {
                let mut batch = Vec::new();
                queue.ready().await;
                let _ = queue.pop(&mut batch, 1, usize::MAX);
                batch
            }
        });
        tokio::task::yield_now().await;
        queue.push(&mut packets(&[47]));
        assert_eq!(reader.await.unwrap(), packets(&[47]));
    }
}
