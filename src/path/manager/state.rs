//! What the manager keeps of one path: its state and its failures.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::quality::Quality;
use crate::{
    link::{candidate::Candidate, router::Router},
    path::rank::{LinkFacts, Place},
};

/// From one failed probe of a path to the next, doubled up to the longest. The first is short: a
/// route often comes a moment before the network behind it.
pub(super) const SHORTEST_RETRY: Duration = Duration::from_millis(500);
/// How long a path must work after a failure before it is preferred again, doubled with each failure up to
/// `LONGEST_DWELL`.
pub(super) const SHORTEST_DWELL: Duration = Duration::from_secs(2);
pub(super) const LONGEST_DWELL: Duration = Duration::from_secs(120);
/// What fails twice within this time has one fault: the kernel refuses to send a moment before it says that a link is gone.
pub(super) const SAME_FAULT: Duration = Duration::from_millis(300);
/// The time without a failure after which the earlier failures of a path no longer count.
pub(super) const FORGIVENESS: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Probing { deadline: Instant },
    Standby { since: Instant, check: Option<Check> },
    Failed { retry_at: Instant },
}

/// The periodic probe of a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    At(Instant),
    AnswerBy(Instant),
}

/// When a path may be probed. Declared with the soonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    Now,
    After(Instant),
    /// Another one that is better works.
    Never,
}

impl Turn {
    pub(super) fn has_come(self, now: Instant) -> bool {
        self <= Self::After(now)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The link's name.
    pub(super) link: String,
    /// The first router on the way, if there is one.
    pub(super) router: Option<IpAddr>,
    pub(super) facts: LinkFacts,
    /// A captive portal seems to answer; cleared when the path works.
    pub(super) portal: bool,
    /// Its server does not have our session.
    pub(super) is_stranger: bool,
    pub(super) rtt: Option<Duration>,
    /// When it last answered a probe.
    pub(super) answered: Option<Instant>,
    pub(super) state: State,
    pub(super) failures: Failures,
    pub(super) quality: Quality,
    pub(super) recalled: Option<Recalled>,
}

/// Whence the verdict comes that was recalled of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recalled {
    /// The router of its network, which looked like that of the path.
    pub(super) router: Router,
    /// The failures that it brought along, if the path itself had none.
    pub(super) failures: Option<Failures>,
}

/// The number of failures of a path that count, and the time of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Failures {
    count: u32,
    last: Option<Instant>,
}

impl Path {
    pub(super) fn new(candidate: Candidate, facts: LinkFacts, failures: Failures) -> Self {
        Self {
            link: candidate.link,
            router: candidate.router,
            facts,
            portal: false,
            is_stranger: false,
            rtt: None,
            answered: None,
            state: State::Waiting,
            failures,
            quality: Quality::default(),
            recalled: None,
        }
    }

    /// What was recalled is of another network than its own, which keeps what it showed itself. Returns whether a verdict was
    /// dropped.
    pub(super) fn disown(&mut self) -> bool {
        let Some(Recalled { failures, .. }) = self.recalled.take() else { return false };
        if failures == Some(self.failures) {
            self.failures = Failures::default();
        }
        self.quality.disown()
    }

    /// What is known of it is of another network.
    pub(super) fn forget(&mut self) {
        self.recalled = None;
        (self.quality, self.failures) = (Quality::default(), Failures::default());
    }

    /// The connection goes over it from here on: its packets will tell what it is like.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.rtt, self.portal) = (None, false);
        self.quality.begin_anew();
        self.state = State::Standby { since: now, check: None };
    }

    /// Whether it has answered and worked for so long that what was remembered of it is over.
    pub(super) fn is_good(&self, now: Instant) -> bool {
        let has_fault = self.quality.fault.or(self.quality.symptoms.suspicion()).is_some();
        let dwell = self.failures.dwell(now).max(SHORTEST_DWELL);
        let works = matches!(self.state, State::Standby { since, .. } if since + dwell <= now);
        works && self.rtt.is_some() && !has_fault
    }

    pub(super) fn is_at_home(&self) -> bool {
        self.facts.place == Place::Home
    }

    /// Its round trip, or the shortest one that it ever had.
    pub(super) fn known_rtt(&self) -> Option<Duration> {
        self.rtt.or(self.quality.floor)
    }

    /// Whether both go over one link.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.link == other.link
    }

    pub(super) fn retry_later(&mut self, now: Instant, longest: Duration) {
        let retry = doubled(SHORTEST_RETRY, self.failures.count(now)).min(longest);
        self.state = State::Failed { retry_at: now + retry };
    }

    /// Starts to wait for an answer until `deadline`. A standby stays a standby meanwhile.
    pub(super) fn ask(&mut self, deadline: Instant) {
        self.state = match self.state {
            State::Standby { since, .. } => {
                State::Standby { since, check: Some(Check::AnswerBy(deadline)) }
            }
            State::Waiting | State::Failed { .. } | State::Probing { .. } => {
                State::Probing { deadline }
            }
        };
    }
}

impl Failures {
    pub(super) fn count(&self, now: Instant) -> u32 {
        let recent = |last: Instant| now.saturating_duration_since(last) <= FORGIVENESS;
        if self.last.is_some_and(recent) { self.count } else { 0 }
    }

    pub(super) fn add(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now < last + SAME_FAULT) {
            return;
        }
        *self = Self { count: self.count(now) + 1, last: Some(now) };
    }

    /// Whether the last failure is more recent than [`Self::dwell`].
    pub(super) fn are_recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + self.dwell(now))
    }

    /// How long the path must work before it is preferred again.
    pub(super) fn dwell(&self, now: Instant) -> Duration {
        match self.count(now) {
            0 => Duration::ZERO,
            count => doubled(SHORTEST_DWELL, count - 1).min(LONGEST_DWELL),
        }
    }
}

pub(super) fn doubled(duration: Duration, times: u32) -> Duration {
    duration.saturating_mul(1 << times.min(16))
}
