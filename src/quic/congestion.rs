//! A congestion controller that can start afresh when the path changes.
//!
//! quinn's client keeps window and bytes in flight across a change of path, and what was in flight
//! on a dead path still fills the window: after 1.5 s of black hole the first datagram left more
//! than a second after the switch. This controller wraps one of quinn's. At a [`CongestionHandle::restart_cold`]
//! a new one takes its place, and what is in flight from before counts no more: neither against the
//! window, nor as congestion when it is declared lost.

mod delay;
mod round_trip;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use tokio::sync::Notify;

use self::{
    delay::{Acked, DelayLimit},
    round_trip::RoundTrip,
};
use super::liveness::Owed;
use crate::clock::AtomicInstant;

/// quinn tells of packets with nothing but an acknowledgement as of any other, and nobody answers those. What
/// is larger than this has more in it: a bare one has some 35 bytes, with a few ranges more. Smaller ones
/// that are answered are pings.
const LARGEST_BARE_ACK: u64 = 48;

/// The controllers of one connection, from outside.
#[derive(Clone, Debug, Default)]
pub struct CongestionHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    epoch: AtomicU64,
    /// The window of the next start, in bytes; zero for the usual one.
    window: AtomicU64,
    in_flight: AtomicU64,
    /// The part of `in_flight` that is sure to be acknowledged.
    owed: AtomicU64,
    /// Since when something is in flight and nothing was acknowledged.
    unacknowledged: AtomicInstant,
    /// When the newest packet that was acknowledged was sent.
    acknowledged: AtomicInstant,
    path_left: Notify,
    round_trip: RoundTrip,
}

impl CongestionHandle {
    /// Forgets what was learnt of the old path.
    pub fn restart_cold(&self) {
        self.start_with(0);
    }

    /// The same, for a path on which the window was `window` bytes not long ago: half of it is a careful
    /// beginning.
    pub fn restart_warm(&self, window: u64) {
        self.start_with(window / 2);
    }

    fn start_with(&self, window: u64) {
        self.0.window.store(window, Relaxed);
        self.0.epoch.fetch_add(1, Relaxed);
    }

    fn window(&self) -> u64 {
        self.0.window.load(Relaxed)
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

    fn sent(&self, now: Instant, bytes: u64) {
        if bytes <= LARGEST_BARE_ACK {
            return;
        }
        self.0.owed.fetch_add(bytes, Relaxed);
        if self.0.unacknowledged.is_none() {
            self.expect_from(now);
        }
    }

    fn acknowledged(&self, now: Instant, sent: Instant) {
        self.expect_from(now);
        self.0.acknowledged.advance(sent);
        self.0.round_trip.sample(now, sent);
    }

    fn epoch(&self) -> u64 {
        self.0.epoch.load(Relaxed)
    }

    fn set_in_flight(&self, bytes: u64) {
        self.0.in_flight.store(bytes, Relaxed);
        self.0.owed.fetch_min(bytes, Relaxed);
        if bytes == 0 {
            self.0.unacknowledged.clear();
        }
    }
}

/// A factory of quinn's whose controllers can begin with another window.
pub(crate) trait Restartable: ControllerFactory + Clone + Send + Sync + 'static {
    /// The same with an initial window in bytes.
    #[must_use]
    fn beginning_with(&self, window: u64) -> Self;
}

impl Restartable for CubicConfig {
    fn beginning_with(&self, window: u64) -> Self {
        let mut config = self.clone();
        config.initial_window(window);
        config
    }
}

impl Restartable for BbrConfig {
    fn beginning_with(&self, window: u64) -> Self {
        let mut config = self.clone();
        config.initial_window(window);
        config
    }
}

/// Bytes that a connection, or a path of which nothing is known, may have in flight at first: 32 packets.
/// With ten (RFC 9002 §7.2) a server, whose packets are all padded until it has validated a path, could
/// say little in the first round trip. quinn paces them.
const INITIAL_WINDOW: u64 = 32 * 1452;

/// Makes controllers that listen to a [`CongestionHandle`].
pub(crate) struct Factory<F> {
    inner: Arc<F>,
    handle: CongestionHandle,
}

impl<F: Restartable> Factory<F> {
    /// Wraps a factory of quinn's.
    pub(crate) fn new(inner: &F, handle: CongestionHandle) -> Self {
        Self { inner: Arc::new(inner.beginning_with(INITIAL_WINDOW)), handle }
    }
}

impl<F: Restartable> ControllerFactory for Factory<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.inner.clone().build(now, current_mtu);
        self.handle.set_in_flight(0);
        Box::new(Renewable {
            epoch: self.handle.epoch(),
            factory: self,
            inner,
            delay: DelayLimit::default(),
            mtu: current_mtu,
            in_flight: 0,
            old_in_flight: 0,
            // A server's connection that migrates gets a new controller, which must not answer for what
            // is lost on the old path.
            fresh_since: now,
        })
    }
}

struct Renewable<F> {
    factory: Arc<Factory<F>>,
    inner: Box<dyn Controller>,
    delay: DelayLimit,
    epoch: u64,
    mtu: u16,
    in_flight: u64,
    /// The part of `in_flight` that was sent before the fresh start.
    old_in_flight: u64,
    fresh_since: Instant,
}

impl<F> Drop for Renewable<F> {
    fn drop(&mut self) {
        self.factory.handle.0.path_left.notify_one();
    }
}

impl<F: Restartable> Renewable<F> {
    /// Starts afresh if that was asked for since the last call.
    fn renew(&mut self, now: Instant) {
        let epoch = self.factory.handle.epoch();
        if self.epoch != epoch {
            self.epoch = epoch;
            self.inner = match self.factory.handle.window() {
                0 => self.factory.inner.clone().build(now, self.mtu),
                window => {
                    let known = self.factory.inner.beginning_with(window.max(INITIAL_WINDOW));
                    Arc::new(known).build(now, self.mtu)
                }
            };
            self.delay = DelayLimit::default();
            self.old_in_flight = self.in_flight;
            self.fresh_since = now;
        }
    }

    /// Takes `bytes` sent at `sent` out of flight; whether they are from before the fresh start.
    fn landed(&mut self, sent: Instant, bytes: u64) -> bool {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.factory.handle.set_in_flight(self.in_flight);
        let old = sent < self.fresh_since;
        if old {
            self.old_in_flight = self.old_in_flight.saturating_sub(bytes);
        }
        old
    }
}

impl<F: Restartable> Controller for Renewable<F> {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.renew(now);
        self.in_flight += bytes;
        self.factory.handle.set_in_flight(self.in_flight);
        self.factory.handle.sent(now, bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.renew(now);
        self.factory.handle.acknowledged(now, sent);
        let in_flight = self.in_flight;
        if self.landed(sent, bytes) {
            return;
        }
        let acked = Acked { sent, in_flight, app_limited };
        self.delay.on_ack(now, acked, self.inner.window(), self.mtu);
        // What the limit keeps back is no reason to grow.
        let limited = app_limited || self.delay.holds_back(self.inner.window());
        self.inner.on_ack(now, sent, bytes, limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.renew(now);
        // quinn's own count: it also knows of packets that were dropped with their keys.
        self.in_flight = in_flight;
        self.factory.handle.set_in_flight(in_flight);
        self.factory.handle.0.owed.store(in_flight, Relaxed);
        self.old_in_flight = self.old_in_flight.min(in_flight);
        let new = in_flight - self.old_in_flight;
        self.inner.on_end_acks(now, new, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.renew(now);
        if !self.landed(sent, lost_bytes) {
            self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.epoch == self.factory.handle.epoch() {
            self.delay.apply(self.inner.window()) + self.old_in_flight
        } else {
            self.factory.handle.window().max(self.inner.initial_window()) + self.in_flight
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            factory: self.factory.clone(),
            inner: self.inner.clone_box(),
            delay: self.delay.clone(),
            epoch: self.epoch,
            mtu: self.mtu,
            in_flight: self.in_flight,
            old_in_flight: self.old_in_flight,
            fresh_since: self.fresh_since,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1200;

    #[test]
    fn packets_in_flight_before_a_restart_do_not_fill_the_window() {
        let handle = CongestionHandle::default();
        let start = Instant::now();
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let mut controller = factory.build(start, MTU);
        let initial = controller.window();
        controller.on_sent(start, initial, 9);
        handle.restart_cold();
        assert_eq!(controller.window(), 2 * initial, "at once, before the next packet");

        let later = start + Duration::from_secs(1);
        controller.on_sent(later, 1000, 10);
        assert_eq!(controller.window(), 2 * initial);
        controller.on_congestion_event(later, start, true, initial / 2);
        assert_eq!(controller.window(), initial + initial / 2, "old losses are no congestion");
        controller.on_congestion_event(later, start, true, initial / 2);
        assert_eq!(controller.window(), initial);
        controller.on_congestion_event(later, later, true, 1000);
        assert!(controller.window() < initial, "new ones are");
    }

    #[test]
    fn a_known_path_begins_with_half_of_what_it_had() {
        let (handle, start) = (CongestionHandle::default(), Instant::now());
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let mut controller = factory.build(start, MTU);
        assert_eq!(controller.window(), INITIAL_WINDOW);
        handle.restart_warm(1_000_000);
        assert_eq!(controller.window(), 500_000, "at once, before the next packet");
        controller.on_sent(start, 1000, 0);
        assert_eq!(controller.window(), 500_000);
        handle.restart_cold();
        controller.on_sent(start, 1000, 1);
        assert_eq!(controller.window(), INITIAL_WINDOW + 1000);
    }

    #[test]
    fn the_handle_reports_whether_an_acknowledgement_is_due() {
        let (handle, start) = (CongestionHandle::default(), Instant::now());
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let mut controller = factory.build(start, MTU);
        assert_eq!(handle.owed(), Owed::Nothing);
        controller.on_sent(start, 1200, 0);
        assert_eq!(handle.owed(), Owed::Answer);
        controller.on_end_acks(start, 0, false, Some(0));
        assert_eq!(handle.owed(), Owed::Nothing);
    }

    #[test]
    fn a_bare_acknowledgement_awaits_no_acknowledgement() {
        let (handle, start) = (CongestionHandle::default(), Instant::now());
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let mut controller = factory.build(start, MTU);
        controller.on_sent(start, 35, 0);
        assert_eq!(handle.owed(), Owed::Perhaps);
        assert_eq!(handle.unacknowledged_since(), None);
        controller.on_sent(start, 100, 1);
        assert_eq!(handle.owed(), Owed::Answer);
        assert_eq!(handle.unacknowledged_since(), Some(start));
        controller.on_end_acks(start, 0, false, Some(1));
        assert_eq!(handle.owed(), Owed::Nothing);
    }

    #[test]
    fn the_handle_reports_since_when_nothing_was_acknowledged() {
        let (handle, start) = (CongestionHandle::default(), Instant::now());
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let mut controller = factory.build(start, MTU);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((handle.unacknowledged_since(), handle.newest_acknowledged()), (None, None));
        controller.on_sent(at(1), 1200, 0);
        controller.on_sent(at(2), 1200, 1);
        assert_eq!(handle.unacknowledged_since(), Some(at(1)));
        handle.acknowledged(at(3), at(1));
        assert_eq!(
            (handle.unacknowledged_since(), handle.newest_acknowledged()),
            (Some(at(3)), Some(at(1)))
        );
        handle.expect_from(at(5));
        assert_eq!(handle.unacknowledged_since(), Some(at(5)));
        controller.on_end_acks(at(6), 0, false, Some(1));
        assert_eq!(handle.unacknowledged_since(), None);
    }

    #[tokio::test]
    async fn the_handle_reports_that_a_path_was_left() {
        use futures_util::FutureExt as _;

        let (handle, start) = (CongestionHandle::default(), Instant::now());
        let factory = Arc::new(Factory::new(&CubicConfig::default(), handle.clone()));
        let before = factory.build(start, MTU);
        // A change of port copies the controller, see `PathData::from_previous` of quinn-proto.
        let after = before.clone_box();
        assert_eq!(handle.path_left().now_or_never(), None);
        drop(after);
        assert_eq!(handle.path_left().now_or_never(), Some(()));
    }

    #[test]
    fn without_a_restart_cold_it_is_the_inner_controller() {
        let start = Instant::now();
        let wrapped = Arc::new(Factory::new(&CubicConfig::default(), CongestionHandle::default()));
        let (mut wrapped, mut plain) = (
            wrapped.build(start, MTU),
            Arc::new(CubicConfig::default().beginning_with(INITIAL_WINDOW)).build(start, MTU),
        );
        for step in 0..100 {
            let now = start + Duration::from_millis(step);
            for controller in [&mut wrapped, &mut plain] {
                controller.on_sent(now, 1200, step);
                if step % 10 == 9 {
                    controller.on_congestion_event(now, now, false, 1200);
                }
            }
            assert_eq!(wrapped.window(), plain.window());
        }
    }
}
