//! CUBIC (RFC 9438): how the window grows, and what a loss that counts does to it.
//!
//! It is our own and not quinn's, because the window must be set from outside: after a cut that proved to be
//! wrong, at the beginning of a competition, and on a path that is known.

use std::time::Instant;

use super::control::{Congestion, Growth, LEFT, Pace};

/// How fast it grows, in packets per second cubed (RFC 9438 §5).
const C: f64 = 0.4;
/// The growth of an equally aggressive Reno flow, in packets per round trip (RFC 9438 §4.3).
const ALPHA: f64 = 3.0 * (1.0 - LEFT) / (1.0 + LEFT);
/// The growth of slow start in a round trip where losses are more than usual (as in RFC 9406 §4.3).
const CAREFUL: f64 = 0.25;
/// The least window in packets (RFC 9002 §7.2).
const LEAST: f64 = 2.0;

/// The window; sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cubic {
    window: f64,
    slow_start_threshold: f64,
    mtu: f64,
    /// What was sent before is not a reason for another cut.
    recovery: Option<Instant>,
    avoidance: Option<Avoidance>,
}

/// Congestion avoidance since the last cut.
#[derive(Clone, Copy, Debug)]
struct Avoidance {
    since: Instant,
    last_ack: Instant,
    /// The window at the last cut, and where the curve is flat.
    most: f64,
    /// The window of a Reno flow.
    reno: f64,
    /// Seconds from the cut to the flat part of the curve.
    flat: f64,
}

impl Cubic {
    fn avoid(&self, now: Instant, most: f64) -> Avoidance {
        let flat = (((most - self.window) / self.mtu).max(0.0) / C).cbrt();
        Avoidance { since: now, last_ack: now, most, reno: self.window, flat }
    }
}

impl Growth for Cubic {
    fn begin(_now: Instant, window: u64, mtu: u16) -> Self {
        Self {
            window: window as f64,
            slow_start_threshold: f64::INFINITY,
            mtu: f64::from(mtu),
            recovery: None,
            avoidance: None,
        }
    }

    fn window(&self) -> u64 {
        self.window as u64
    }

    fn is_starting(&self) -> bool {
        self.window < self.slow_start_threshold
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, pace: Pace) {
        if self.recovery.is_some_and(|since| sent <= since) {
            return;
        }
        let bytes = bytes as f64;
        if self.is_starting() {
            self.window += match pace {
                Pace::Hold => 0.0,
                Pace::Careful => CAREFUL * bytes,
                Pace::Free => bytes,
            };
            // The curve begins when this is over.
            self.avoidance = self.avoidance.map(|it| Avoidance { since: now, last_ack: now, ..it });
            return;
        }
        let mut avoidance = self.avoidance.unwrap_or_else(|| self.avoid(now, self.window));
        let pause = now.saturating_duration_since(avoidance.last_ack);
        avoidance.last_ack = now;
        if pace != Pace::Free {
            // The curve waits (RFC 9438 §5.8).
            avoidance.since += pause;
        } else {
            let rtt = now.saturating_duration_since(sent).as_secs_f64();
            let elapsed = now.saturating_duration_since(avoidance.since).as_secs_f64();
            let alpha = if avoidance.reno < avoidance.most { ALPHA } else { 1.0 };
            avoidance.reno += alpha * self.mtu * bytes / self.window;
            let curve = avoidance.most + C * (elapsed + rtt - avoidance.flat).powi(3) * self.mtu;
            let target = curve.clamp(self.window, 1.5 * self.window);
            self.window += (target - self.window) * bytes / self.window;
            self.window = self.window.max(avoidance.reno);
        }
        self.avoidance = Some(avoidance);
    }

    fn on_congestion(&mut self, now: Instant, congestion: Congestion) {
        let Congestion { sent, persistent, window, left, .. } = congestion;
        if self.recovery.is_some_and(|since| sent <= since) {
            return;
        }
        self.recovery = Some(now);
        let before = self.avoidance.map_or(0.0, |it| it.most);
        // Fast convergence (RFC 9438 §4.7).
        let window = self.window.min(window as f64);
        let most = if window < before { window * (1.0 + LEFT) / 2.0 } else { window };
        self.window = (window * left).max(LEAST * self.mtu);
        self.slow_start_threshold = self.window;
        self.avoidance = Some(self.avoid(now, most));
        if persistent {
            self.recovery = None;
            self.window = LEAST * self.mtu;
        }
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
        self.window = self.window.max(LEAST * self.mtu);
    }

    fn recover(&mut self, now: Instant, window: u64) {
        if window as f64 > self.window {
            self.window = window as f64;
            let most = self.avoidance.map_or(self.window, |it| it.most);
            self.avoidance = Some(self.avoid(now, most.max(self.window)));
            self.slow_start_threshold = self.window;
        }
    }

    /// Goes on as if a loss had just cut the window down to that.
    fn compete(&mut self, now: Instant, window: u64) {
        self.window = (window as f64).max(LEAST * self.mtu);
        self.slow_start_threshold = self.window;
        self.avoidance = Some(self.avoid(now, self.window / LEFT));
    }

    fn resettle(&mut self, window: u64) {
        self.slow_start_threshold = window as f64;
        self.avoidance = None;
    }

    fn reopen(&mut self, _now: Instant, window: Option<u64>) {
        if let Some(window) = window {
            self.window = (window as f64).max(LEAST * self.mtu);
        }
        self.slow_start_threshold = f64::INFINITY;
        self.avoidance = None;
    }
}
