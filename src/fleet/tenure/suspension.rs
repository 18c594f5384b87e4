//! Whether a session is without routes, since neither etcd nor its client was heard. Pure: it is handed the time.
//!
//! A client whose network fails again and again would have its routes withdrawn and told again each time, and all
//! routers of the site would compute as often. So after each suspension that follows soon on the one before, the routes
//! stay away until etcd or the client has been heard for longer without a pause.

use std::time::{Duration, Instant};

use super::TICK;

/// How long a client that is asked may say nothing before its routes go. It may be at another server.
pub(super) const UNHEARD: Duration = Duration::from_secs(3);
/// A client that is heard after less than that is heard without a pause. One that has nothing to say is asked every other
/// second, and one of its answers may be lost.
const PAUSE: Duration = UNHEARD.saturating_add(TICK);
/// How long etcd or the client must be heard without a pause before routes that went twice are back, doubled with each
/// further time. With the longest wait they go and come back twice a minute at most.
const SHORTEST_WAIT: Duration = Duration::from_secs(10);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long routes stay before earlier suspensions are forgotten: the longest waits ten times over.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The suspensions of one session.
#[derive(Debug, Default)]
pub(super) struct Suspension {
    /// Whether its routes are gone.
    is_on: bool,
    /// How long they wait for a client, or an etcd, that is heard without a pause.
    wait: Duration,
    /// When they were back last.
    ended: Option<Instant>,
    /// Since when the client is heard without a pause, and when it was heard last; both while they are gone.
    heard: Option<(Instant, Instant)>,
}

impl Suspension {
    /// Whether the routes are gone.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The routes go; whether there were any.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        if std::mem::replace(&mut self.is_on, true) {
            return false;
        }
        let is_again =
            self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < FORGOTTEN);
        self.wait = match is_again {
            true => (2 * self.wait).clamp(SHORTEST_WAIT, LONGEST_WAIT),
            false => Duration::ZERO,
        };
        self.heard = None;
        true
    }

    /// The client was heard, and etcd is since `etcd` without a pause, if it is; whether the routes come back.
    pub(super) fn hear(&mut self, etcd: Option<Instant>, now: Instant) -> bool {
        if !self.is_on {
            return false;
        }
        let is_steady = |last: Instant| now.saturating_duration_since(last) < PAUSE;
        let since = self.heard.filter(|(_, last)| is_steady(*last)).map_or(now, |(since, _)| since);
        self.heard = Some((since, now));
        let steady = etcd.map_or(since, |etcd| etcd.min(since));
        if now.saturating_duration_since(steady) < self.wait {
            return false;
        }
        (self.is_on, self.ended) = (false, Some(now));
        true
    }

    /// It is over without routes: another server has the client.
    pub(super) fn forgo(&mut self) {
        self.is_on = false;
    }
}
