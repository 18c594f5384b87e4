//! The controllers of one connection, from outside: what they know is told, and what they should know is told to them.

use std::{
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    LARGEST_BARE_ACK, Remembered,
    control::{Growth, PathControl},
    round_trip::RoundTrip,
};
use crate::{
    clock::{self, AtomicInstant},
    mutex::Mutex,
    quic::{lateness::Lateness, liveness::Owed},
};

/// The controllers of one connection, from outside.
#[derive(Clone, Debug, Default)]
pub struct CongestionHandle(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    epoch: AtomicU64,
    /// What is remembered of the path of the next start.
    remembered: Mutex<Option<Remembered>>,
    pub(super) in_flight: AtomicU64,
    /// The part of `in_flight` that is sure to be acknowledged.
    pub(super) owed: AtomicU64,
    /// Since when something is in flight and nothing was acknowledged.
    unacknowledged: AtomicInstant,
    /// When the newest packet that was acknowledged was sent.
    acknowledged: AtomicInstant,
    /// When the present path began.
    pub(super) began: AtomicInstant,
    /// Bytes that the present path delivered of late in its shortest round trip; zero is unknown.
    pub(super) in_round_trip: AtomicU64,
    pub(super) path_left: Notify,
    round_trip: RoundTrip,
    pub(super) delivered_packets: AtomicU64,
    pub(super) delivered_bytes: AtomicU64,
    /// Whether the other side asks for what it misses, and how many bytes it asked for.
    pub(super) asks: AtomicBool,
    pub(super) asked: AtomicU64,
    lateness: Mutex<OfPath>,
    /// By how much packets overtake one another on the present path, in microseconds: see `quic::reordering`.
    pub(super) reordering: AtomicU64,
    pub(super) start_on_trial: AtomicBool,
}

/// How long acknowledgements take on the present path.
#[derive(Debug, Default)]
struct OfPath {
    /// What was sent before is for another path.
    since: Option<Instant>,
    lateness: Lateness,
}

impl CongestionHandle {
    /// Forgets what was learnt of the old path.
    pub fn restart_cold(&self) {
        self.start_with(None);
    }

    /// The same, for a path that was left not long ago: what is remembered of it is used with care.
    pub(crate) fn restart_warm(&self, path: Remembered) {
        self.start_with(Some(path));
    }

    fn start_with(&self, path: Option<Remembered>) {
        *self.0.remembered.lock() = path;
        self.0.epoch.fetch_add(1, Relaxed);
        self.0.reordering.store(0, Relaxed);
        self.0.start_on_trial.store(false, Relaxed);
        self.0.began.advance(clock::now());
    }

    /// What is to be remembered of the present path.
    pub(crate) fn known(&self) -> Option<Remembered> {
        let rtt = self.shortest_round_trip()?;
        let window = self.0.in_round_trip.load(Relaxed);
        (window > 0).then_some(Remembered { window, rtt })
    }

    pub(super) fn set_delivered<G: Growth>(&self, path: &PathControl<G>) {
        let delivered = self.shortest_round_trip().map_or(0, |rtt| path.delivered_in(rtt));
        self.0.in_round_trip.store(delivered, Relaxed);
    }

    /// What is remembered of the path of the next start.
    pub(crate) fn remembered(&self) -> Option<Remembered> {
        *self.0.remembered.lock()
    }

    /// What the other side has to acknowledge.
    #[must_use]
    pub(crate) fn owed(&self) -> Owed {
        if self.0.owed.load(Relaxed) > 0 {
            Owed::Answer
        } else if self.0.in_flight.load(Relaxed) > 0 {
            Owed::Perhaps
        } else {
            Owed::Nothing
        }
    }

    /// Since when something waits to be acknowledged and nothing was. A path that works one way only, from
    /// the other side to us, shows here alone.
    #[must_use]
    pub fn unacknowledged_since(&self) -> Option<Instant> {
        self.0.unacknowledged.get().filter(|_| self.0.owed.load(Relaxed) > 0)
    }

    /// When the newest packet that was acknowledged was sent.
    #[must_use]
    pub fn newest_acknowledged(&self) -> Option<Instant> {
        self.0.acknowledged.get()
    }

    /// When the present path began: at the last start afresh, or, on a server, when the client moved. An
    /// acknowledgement of what was sent since then says nothing of what was sent before.
    #[must_use]
    pub(crate) fn began(&self) -> Option<Instant> {
        self.0.began.get()
    }

    /// Waits for answers from here on only: the connection has moved.
    pub fn expect_from(&self, now: Instant) {
        self.0.unacknowledged.set(now);
    }

    /// Waits until quinn has forgotten a path: it keeps a controller for each that it knows, and drops it
    /// when it returns to the path before.
    pub async fn path_left(&self) {
        self.0.path_left.notified().await;
    }

    /// Measures the round trip anew, of what is sent from here on: the path is another, or the handshake is
    /// over.
    pub fn measure_from(&self, now: Instant) {
        self.0.round_trip.begin(now);
        self.of_another_path(now);
    }

    /// The moment from which an acknowledgement is late; `None` while none is awaited, or nothing is known of the path.
    #[must_use]
    pub(crate) fn late_at(&self) -> Option<Instant> {
        let since = self.unacknowledged_since()?;
        Some(since + self.of_path().lateness.limit()?)
    }

    /// The time from a packet to the last one that overtakes it on the present path, but for the most delayed in thirty.
    #[must_use]
    pub(crate) fn reordering(&self) -> Duration {
        Duration::from_micros(self.0.reordering.load(Relaxed))
    }

    /// Whether the cut that ended slow start is on trial: how much the path carries is not known meanwhile.
    #[must_use]
    pub(crate) fn is_start_on_trial(&self) -> bool {
        self.0.start_on_trial.load(Relaxed)
    }

    fn of_path(&self) -> MutexGuard<'_, OfPath> {
        self.0.lateness.lock()
    }

    pub(super) fn of_another_path(&self, now: Instant) {
        *self.of_path() = OfPath { since: Some(now), lateness: Lateness::default() };
    }

    /// An acknowledgement came of so many packets, the newest of which was sent at `sent`.
    pub(super) fn acknowledged_to(&self, now: Instant, sent: Instant, packets: u32) {
        let mut path = self.of_path();
        if Some(sent) >= path.since {
            path.lateness.acknowledged(now.saturating_duration_since(sent), packets == 1);
        }
    }

    /// The shortest round trip since then.
    #[must_use]
    pub fn shortest_round_trip(&self) -> Option<Duration> {
        self.0.round_trip.shortest()
    }

    /// The present round trip of the path, where `smoothed` is quinn's estimate; `None` before the first
    /// sample.
    #[must_use]
    pub fn round_trip(&self, smoothed: Duration) -> Option<Duration> {
        let shortest = self.shortest_round_trip()?;
        Some(if self.0.round_trip.is_settled() { smoothed } else { shortest })
    }

    /// The shortest round trip since the last call.
    #[must_use]
    pub(crate) fn take_recent_round_trip(&self) -> Option<Duration> {
        self.0.round_trip.take_recent()
    }

    /// Packets and bytes that were acknowledged, each on the path that was in use when it was sent.
    #[must_use]
    pub(crate) fn delivered(&self) -> (u64, u64) {
        (self.0.delivered_packets.load(Relaxed), self.0.delivered_bytes.load(Relaxed))
    }

    /// Whether the other side asks for the packets that it misses: what else quinn takes for lost has only been overtaken.
    pub(crate) fn trust_requests(&self, asks: bool) {
        self.0.asks.store(asks, Relaxed);
    }

    /// It asked for packets of so many bytes.
    pub(crate) fn asked_for(&self, bytes: u64) {
        self.0.asked.fetch_add(bytes, Relaxed);
    }

    pub(super) fn sent(&self, now: Instant, bytes: u64) {
        if bytes <= LARGEST_BARE_ACK {
            return;
        }
        self.0.owed.fetch_add(bytes, Relaxed);
        if self.0.unacknowledged.is_none() {
            self.expect_from(now);
        }
    }

    pub(super) fn acknowledged(&self, now: Instant, sent: Instant) {
        self.expect_from(now);
        self.0.acknowledged.advance(sent);
        self.0.round_trip.sample(now, sent);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.0.epoch.load(Relaxed)
    }

    pub(super) fn set_in_flight(&self, bytes: u64) {
        self.0.in_flight.store(bytes, Relaxed);
        self.0.owed.fetch_min(bytes, Relaxed);
        if bytes == 0 {
            self.0.unacknowledged.clear();
        }
    }
}
