//! quinn's BBR under our limits.

use std::{fmt, sync::Arc, time::Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory as _};
use quinn_proto::RttEstimator;

use super::control::{Congestion, Growth, Pace};

pub(crate) struct Bbr {
    controller: Box<dyn Controller>,
    /// quinn's controllers cannot do without quinn's own estimate.
    estimate: Option<RttEstimator>,
    mtu: u16,
}

impl Clone for Bbr {
    fn clone(&self) -> Self {
        let Self { controller, estimate, mtu } = self;
        Self { controller: controller.clone_box(), estimate: *estimate, mtu: *mtu }
    }
}

impl fmt::Debug for Bbr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bbr").field("window", &self.window()).finish_non_exhaustive()
    }
}

impl Growth for Bbr {
    fn begin(now: Instant, window: u64, mtu: u16) -> Self {
        let mut config = BbrConfig::default();
        config.initial_window(window);
        Self { controller: Arc::new(config).build(now, mtu), estimate: None, mtu }
    }

    fn window(&self) -> u64 {
        self.controller.window()
    }

    /// It judges by itself.
    fn is_starting(&self) -> bool {
        false
    }

    fn estimate(&mut self, estimate: &RttEstimator) {
        self.estimate = Some(*estimate);
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.controller.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, pace: Pace) {
        if let Some(estimate) = &self.estimate {
            self.controller.on_ack(now, sent, bytes, pace == Pace::Hold, estimate);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest: Option<u64>,
    ) {
        self.controller.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion(&mut self, now: Instant, congestion: Congestion) {
        let Congestion { sent, persistent, lost_bytes, .. } = congestion;
        self.controller.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.controller.on_mtu_update(mtu);
    }

    fn recover(&mut self, _now: Instant, _window: u64) {}

    fn compete(&mut self, now: Instant, window: u64) {
        *self = Self { estimate: self.estimate, ..Self::begin(now, window, self.mtu) };
    }

    fn resettle(&mut self, _window: u64) {}

    fn reopen(&mut self, now: Instant, window: Option<u64>) {
        if let Some(window) = window {
            self.compete(now, window);
        }
    }
}
