//! What is known to have arrived, path by path, and until when the rest is kept.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::sender::{KEPT_UNASKED, LONGEST};

/// While nothing arrives at all, a packet is kept for so long, as a connection is: TCP sends it again by itself more and
/// more rarely, and would wait for seconds after an outage.
const OUTAGE: Duration = Duration::from_secs(60);
/// The most paths before the present one whose packets are told apart: a network that comes and goes has several begin
/// before anything arrives.
const MOST_PATHS: usize = 16;

/// What is known to have arrived. Acknowledgements of what was sent over the present path say nothing of the ones before.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// When the newest packet that was acknowledged was sent.
    pub(super) newest: Option<Instant>,
    /// Paths that came before the present one, or that were silent: when the next one began, and `newest` of then. What
    /// was sent before the first is proven by it alone, and so forth.
    pub(super) earlier: VecDeque<(Instant, Option<Instant>)>,
    /// When the present path began. What the one before lost is no congestion here.
    pub(super) moved: Option<Instant>,
    /// When something new was acknowledged last.
    pub(super) at: Option<Instant>,
    /// When that was for the first time after a silence.
    pub(super) again: Option<Instant>,
}

impl Proof {
    /// When the present path began.
    pub(super) fn began(&self) -> Option<Instant> {
        Some(self.earlier.back()?.0)
    }

    /// The next path begins, or has been silent until now: packets that were sent until `began` are proven by `newest`.
    pub(super) fn begin(&mut self, began: Instant, newest: Option<Instant>) {
        if self.earlier.len() == MOST_PATHS {
            self.earlier.pop_front();
        }
        self.earlier.push_back((began, newest));
    }

    /// When the newest packet that went the same way as one sent at `at`, and arrived, was sent.
    pub(super) fn of(&self, at: Instant) -> Option<Instant> {
        let earlier = self.earlier.iter().find(|(next, _)| at <= *next);
        earlier.map_or(self.newest, |(_, newest)| *newest)
    }

    /// Whether what was sent at `at` went over the present path.
    pub(super) fn is_of_this_path(&self, at: Option<Instant>) -> bool {
        at >= self.moved
    }

    /// Whether a packet sent at `at` may be lost with its path.
    pub(super) fn leaves_open(&self, at: Instant, rtt: Duration) -> bool {
        self.of(at).is_none_or(|newest| at + rtt / 2 + KEPT_UNASKED >= newest)
    }

    /// Until when a packet sent at `at` is kept at most.
    pub(super) fn end(&self, at: Instant) -> Instant {
        let outage = at + OUTAGE;
        if self.newest < Some(at) {
            outage
        } else {
            outage.min(self.again.max(Some(at)).unwrap_or(at) + LONGEST)
        }
    }
}
