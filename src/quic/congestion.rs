//! A congestion controller that can start afresh when the path changes.
//!
//! quinn's client keeps window and bytes in flight across a change of path, and what was in flight
//! on a dead path still fills the window: after 1.5 s of black hole the first datagram left more
//! than a second after the switch. This controller wraps one of quinn's. At a [`CongestionHandle::restart_cold`]
//! a new one takes its place, and what is in flight from before counts no more: neither against the
//! window, nor as congestion when it is declared lost.

mod bbr;
mod compete;
mod confirm;
mod control;
mod cubic;
mod delay;
mod flight;
mod handle;
mod loss;
mod resume;
mod round_trip;
mod stand;
mod steady;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use self::control::{Growth, PathControl};
pub use self::handle::CongestionHandle;
pub(crate) use self::{bbr::Bbr, cubic::Cubic, resume::Remembered, steady::Steady};
use super::reordering::Reordering;
use crate::clock;

/// quinn tells of packets with nothing but an acknowledgement as of any other, and nobody answers those. What
/// is larger than this has more in it: a bare one has some 35 bytes, with a few ranges more. Smaller ones
/// that are answered are pings.
const LARGEST_BARE_ACK: u64 = 48;

/// Bytes that a connection, or a path of which nothing is known, may have in flight at first: 32 packets.
/// With ten (RFC 9002 §7.2) a server, whose packets are all padded until it has validated a path, could
/// say little in the first round trip. quinn paces them.
const INITIAL_WINDOW: u64 = 32 * 1452;

/// quinn declares a packet lost when one so many numbers later is acknowledged, or after so many round trips. On the
/// way packets overtake one another: each that was declared lost and is not would be taken for congestion. To wait costs
/// little, as the repair layer asks for what is missing by itself, and later than 128 packets quinn's receiver takes
/// none (the window of its protection against repeated packets).
pub(super) const PACKET_THRESHOLD: u32 = 128;
pub(super) const TIME_THRESHOLD: f32 = 2.0;

/// Makes controllers that listen to a [`CongestionHandle`].
pub(crate) struct Factory<G> {
    handle: CongestionHandle,
    growth: PhantomData<fn() -> G>,
}

impl<G: Growth> Factory<G> {
    pub(crate) fn new(handle: CongestionHandle) -> Self {
        Self { handle, growth: PhantomData }
    }
}

impl<G: Growth> ControllerFactory for Factory<G> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        self.handle.set_in_flight(0);
        self.handle.0.began.advance(now);
        self.handle.of_another_path(now);
        self.handle.0.reordering.store(0, Relaxed);
        self.handle.0.start_on_trial.store(false, Relaxed);
        Box::new(Renewable::<G> {
            epoch: self.handle.epoch(),
            handle: self.handle.clone(),
            path: PathControl::new(now, INITIAL_WINDOW, current_mtu),
            mtu: current_mtu,
            in_flight: 0,
            old_in_flight: 0,
            // A server's connection that migrates gets a new controller, which must not answer for what
            // is lost on the old path.
            fresh_since: now,
            acked: None,
            together: None,
            reordering: Reordering::default(),
            asked: self.handle.0.asked.load(Relaxed),
        })
    }
}

#[derive(Clone)]
struct Renewable<G> {
    handle: CongestionHandle,
    path: PathControl<G>,
    epoch: u64,
    mtu: u16,
    in_flight: u64,
    /// The part of `in_flight` that was sent before the fresh start.
    old_in_flight: u64,
    fresh_since: Instant,
    /// When the newest packet that the present acknowledgement tells of was sent, and the number of its packets.
    acked: Option<(Instant, u32)>,
    together: Option<Together>,
    reordering: Reordering,
    /// Bytes that the other side had asked for at the last look.
    asked: u64,
}

/// Acknowledged packets that quinn sent at one moment. They tell the same, so that all of them are judged once.
#[derive(Clone, Copy)]
struct Together {
    /// When the first of them was acknowledged.
    now: Instant,
    sent: Instant,
    packets: u64,
    bytes: u64,
    app_limited: bool,
}

impl<G> Drop for Renewable<G> {
    fn drop(&mut self) {
        self.handle.0.path_left.notify_one();
    }
}

impl<G: Growth> Renewable<G> {
    /// Starts afresh if that was asked for since the last call.
    fn renew(&mut self, now: Instant) {
        let epoch = self.handle.epoch();
        if self.epoch != epoch {
            self.epoch = epoch;
            self.path = PathControl::new(now, INITIAL_WINDOW, self.mtu);
            self.reordering = Reordering::default();
            self.handle.0.in_round_trip.store(0, Relaxed);
            if let Some(path) = self.handle.remembered() {
                self.path.resume(path);
            }
            self.old_in_flight = self.in_flight;
            self.fresh_since = now;
        }
    }

    /// Hears what the other side has asked for.
    fn hear(&mut self, now: Instant) {
        if self.handle.0.asks.load(Relaxed) {
            let asked = self.handle.0.asked.load(Relaxed);
            let before = std::mem::replace(&mut self.asked, asked);
            self.path.on_asked(now, asked.saturating_sub(before));
        }
    }

    /// A packet is acknowledged. It is judged with the others that were sent at the same moment.
    fn arrived(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        let (newest, packets) = self.acked.unwrap_or((sent, 0));
        self.acked = Some((newest.max(sent), packets + 1));
        match &mut self.together {
            Some(together) if together.sent == sent => {
                together.packets += 1;
                together.bytes += bytes;
            }
            _ => {
                self.judge();
                self.together = Some(Together { now, sent, packets: 1, bytes, app_limited });
            }
        }
    }

    /// Judges what was acknowledged, and not judged yet.
    fn judge(&mut self) {
        let Some(Together { now, sent, packets, bytes, app_limited }) = self.together.take() else {
            return;
        };
        self.handle.acknowledged(now, sent);
        if !self.landed(sent, bytes) {
            self.handle.0.delivered_packets.fetch_add(packets, Relaxed);
            self.handle.0.delivered_bytes.fetch_add(bytes, Relaxed);
            self.reordering.acknowledged(now, sent);
            self.path.on_ack(now, sent, bytes, app_limited);
        }
    }

    /// Takes `bytes` sent at `sent` out of flight; whether they are from before the fresh start.
    fn landed(&mut self, sent: Instant, bytes: u64) -> bool {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.handle.set_in_flight(self.in_flight);
        let old = sent < self.fresh_since;
        if old {
            self.old_in_flight = self.old_in_flight.saturating_sub(bytes);
        }
        old
    }
}

impl<G: Growth> Controller for Renewable<G> {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.renew(now);
        if bytes > LARGEST_BARE_ACK {
            self.in_flight += bytes;
            self.handle.set_in_flight(self.in_flight);
        } else {
            // quinn does not take it for in flight.
            self.handle.0.in_flight.fetch_add(bytes, Relaxed);
        }
        self.handle.sent(now, bytes);
        let new = self.in_flight.saturating_sub(self.old_in_flight);
        self.path.on_sent(now, bytes, new, last_packet_number);
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
        self.path.estimate(rtt);
        self.arrived(now, sent, bytes, app_limited);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.renew(now);
        self.judge();
        if let Some((sent, packets)) = self.acked.take() {
            self.handle.acknowledged_to(now, sent, packets);
        }
        self.reordering.end();
        self.handle.0.reordering.store(self.reordering.span().as_micros() as u64, Relaxed);
        // quinn's own count: it also knows of packets that were dropped with their keys.
        self.in_flight = in_flight;
        self.handle.set_in_flight(in_flight);
        self.handle.0.owed.store(in_flight, Relaxed);
        self.old_in_flight = self.old_in_flight.min(in_flight);
        self.hear(now);
        let new = in_flight - self.old_in_flight;
        self.path.on_end_acks(now, new, app_limited, largest_packet_num_acked);
        self.handle.set_delivered(&self.path);
        self.handle.0.start_on_trial.store(self.path.is_start_on_trial(), Relaxed);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.renew(now);
        self.hear(now);
        // quinn tells of all that is lost at once, with the time of the newest. What was sent before is lost, too.
        let old = if sent >= self.fresh_since && lost_bytes > 0 {
            std::mem::take(&mut self.old_in_flight)
        } else {
            0
        };
        let is_of_old = self.landed(sent, lost_bytes);
        let new = lost_bytes.saturating_sub(old);
        if !is_of_old && (new > 0 || lost_bytes == 0) {
            self.path.on_loss(now, sent, is_persistent_congestion && old == 0, new);
        }
        self.handle.0.start_on_trial.store(self.path.is_start_on_trial(), Relaxed);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.path.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.epoch == self.handle.epoch() {
            self.path.window() + self.old_in_flight
        } else {
            INITIAL_WINDOW + self.in_flight
        }
    }

    /// quinn clones the controller of a path that begins like this one: the client's NAT chose another port.
    fn clone_box(&self) -> Box<dyn Controller> {
        let now = clock::now();
        self.handle.0.began.advance(now);
        self.handle.of_another_path(now);
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
