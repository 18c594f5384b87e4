//! The flows of other people.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    super::{
        control::{Congestion, Growth as _, LEFT, Pace},
        cubic::Cubic,
    },
    network::{MS, MTU, Sender},
};

/// A flow that CUBIC governs alone.
pub(crate) struct Plain(Cubic);

impl Plain {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Cubic::begin(now, 10 * u64::from(MTU), MTU))
    }
}

impl Sender for Plain {
    fn window(&self) -> u64 {
        self.0.window()
    }
    fn on_sent(&mut self, _: Instant, _: u64, _: u64) {}
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: u64) {
        let pace = if app_limited { Pace::Hold } else { Pace::Free };
        self.0.on_ack(now, sent, bytes, pace);
    }
    fn on_end_acks(&mut self, _: Instant, _: u64) {}
    fn on_loss(&mut self, now: Instant, sent: Instant, persistent: bool, _: u64) {
        let window = self.window();
        let congestion = Congestion { sent, persistent, lost_bytes: 0, window, left: LEFT };
        self.0.on_congestion(now, congestion);
    }
}

/// BBR, first version (draft-cardwell-iccrg-bbr-congestion-control-00): what matters to others.
pub(crate) struct Bbr {
    bandwidths: VecDeque<(u64, f64)>,
    shortest: Duration,
    measured: Instant,
    rounds: u64,
    round_ends: Instant,
    phase: Phase,
    phase_began: Instant,
    best: f64,
    stalled: u8,
    in_flight: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Drain,
    Cycle(u8),
    ProbeRtt,
}

impl Bbr {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            bandwidths: VecDeque::new(),
            shortest: Duration::MAX,
            measured: now,
            rounds: 0,
            round_ends: now,
            phase: Phase::Startup,
            phase_began: now,
            best: 0.0,
            stalled: 0,
            in_flight: 0,
        }
    }

    fn bandwidth(&self) -> f64 {
        self.bandwidths.iter().map(|it| it.1).fold(0.0, f64::max)
    }

    fn product(&self) -> f64 {
        if self.shortest == Duration::MAX {
            return f64::from(MTU) * 10.0;
        }
        self.bandwidth() * self.shortest.as_secs_f64()
    }
}

impl Sender for Bbr {
    fn window(&self) -> u64 {
        let least = 4.0 * f64::from(MTU);
        let gain = match self.phase {
            Phase::Startup | Phase::Drain => 2.885,
            Phase::Cycle(_) => 2.0,
            Phase::ProbeRtt => return least as u64 + 1,
        };
        (gain * self.product()).max(least) as u64 + 1
    }
    fn rate(&self) -> Option<f64> {
        let gain = match self.phase {
            Phase::Startup => 2.885,
            Phase::Drain => 1.0 / 2.885,
            Phase::Cycle(0) => 1.25,
            Phase::Cycle(1) => 0.75,
            Phase::Cycle(_) | Phase::ProbeRtt => 1.0,
        };
        let bandwidth = self.bandwidth();
        Some(gain * if bandwidth > 0.0 { bandwidth } else { 145_000.0 })
    }
    fn on_sent(&mut self, _: Instant, _: u64, in_flight: u64) {
        self.in_flight = in_flight;
    }
    fn on_ack(&mut self, now: Instant, sent: Instant, _: u64, _: bool, delivered: u64) {
        let rtt = now - sent;
        let bandwidth = delivered as f64 / rtt.as_secs_f64();
        if now >= self.round_ends {
            self.rounds += 1;
            self.round_ends = now + rtt;
            if self.phase == Phase::Startup {
                let best = self.bandwidth();
                self.stalled = if best > 1.25 * self.best { 0 } else { self.stalled + 1 };
                self.best = self.best.max(best);
                if self.stalled >= 3 {
                    (self.phase, self.phase_began) = (Phase::Drain, now);
                }
            }
        }
        while self.bandwidths.back().is_some_and(|it| it.1 <= bandwidth) {
            self.bandwidths.pop_back();
        }
        self.bandwidths.push_back((self.rounds, bandwidth));
        while self.bandwidths.front().is_some_and(|it| it.0 + 10 < self.rounds) {
            self.bandwidths.pop_front();
        }
        let expired = now - self.measured > Duration::from_secs(10);
        if rtt <= self.shortest || expired {
            if expired && rtt > self.shortest && self.phase != Phase::ProbeRtt {
                (self.phase, self.phase_began) = (Phase::ProbeRtt, now);
            }
            (self.shortest, self.measured) = (rtt, now);
        }
    }
    fn on_end_acks(&mut self, now: Instant, in_flight: u64) {
        self.in_flight = in_flight;
        let lasted = now - self.phase_began;
        let next = match self.phase {
            Phase::Startup => return,
            Phase::Drain if in_flight as f64 <= self.product() => Phase::Cycle(2),
            Phase::ProbeRtt if lasted > 200 * MS + self.shortest => Phase::Cycle(2),
            Phase::Cycle(1) if in_flight as f64 <= self.product() => Phase::Cycle(2),
            Phase::Cycle(at) if lasted >= self.shortest => Phase::Cycle((at + 1) % 8),
            Phase::Drain | Phase::ProbeRtt | Phase::Cycle(_) => return,
        };
        (self.phase, self.phase_began) = (next, now);
    }
    fn on_loss(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
}
