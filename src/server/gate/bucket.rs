//! Token buckets: how much of something may happen, at which rate, and how much of it at once.

use std::time::Instant;

/// A rate and a burst.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Pace {
    pub(in crate::server) per_second: f64,
    pub(in crate::server) burst: f64,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: f64,
    at: Instant,
    pace: Pace,
}

impl Pace {
    pub(super) fn times(self, factor: f64) -> Self {
        Self { per_second: factor * self.per_second, burst: factor * self.burst }
    }
}

impl Bucket {
    pub(super) fn full(pace: Pace, now: Instant) -> Self {
        Self { level: pace.burst, at: now, pace }
    }

    pub(super) fn level(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = self.pace.burst.min(self.level + passed * self.pace.per_second);
        self.at = self.at.max(now);
        self.level
    }

    /// How many bursts are missing from a full bucket.
    pub(super) fn spent(&mut self, now: Instant) -> f64 {
        1.0 - self.level(now) / self.pace.burst
    }

    /// Whether one token can be taken that leaves the fraction `left` of a full bucket.
    pub(super) fn has(&mut self, left: f64, now: Instant) -> bool {
        self.level(now) >= 1.0 + left * self.pace.burst
    }

    /// Takes one token if that leaves the fraction `left` of a full bucket.
    pub(super) fn take(&mut self, left: f64, now: Instant) -> bool {
        let is_there = self.has(left, now);
        if is_there {
            self.level -= 1.0;
        }
        is_there
    }

    /// Puts tokens in.
    pub(super) fn give(&mut self, tokens: f64) {
        self.level = self.pace.burst.min(self.level + tokens);
    }

    /// Takes one token, on credit if needed, of so many bursts at most.
    pub(super) fn spend(&mut self, credit: f64, now: Instant) {
        self.level = (self.level(now) - 1.0).max(-credit * self.pace.burst);
    }
}
