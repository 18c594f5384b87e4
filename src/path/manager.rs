//! Decides which path carries the tunnel: a pure policy, without clock, sockets or tasks.
//!
//! ```text
//!                           answered in time
//!  Waiting ──ask──▶ Probing ────────────────▶ Standby ──switch──▶ Active
//!     ▲                │ deadline, refusal      │   ▲               │  │
//!     │                ▼                        │   └─ better path ─┘  │
//!     └─ back-off ── Failed ◀── check failed ───┘      took over       │
//!                      ▲                                               │
//!                      └──────── silent, or the kernel refuses ────────┘
//! ```
//! In any state, a path whose candidate is gone is removed and its sockets are closed.
//!
//! **A failure has an effect at once, an improvement only with hysteresis.** When the active path is gone, the
//! best standby takes over, or, without a standby, the best candidate, unprobed. When the active path is silent,
//! it is probed; if it does not answer, all other paths are probed, and the first to answer takes over. A better
//! path takes over once it has answered a probe and, if it failed lately, has worked for a time that doubles with
//! each failure.
//!
//! **An active path that works badly is left for a standby that was measured and is better**, even if that works badly, too,
//! or that would be preferred in any case and has no known fault.
//! See [`quality`](super::quality) and [`inspection`].
//!
//! The user can choose a link, which is preferred until it fails, or pin a link, which is used alone. The choice,
//! the failures of links and what was found of bad ones outlive the connection: the manager lives as long as the client, and
//! while there is no connection it gives the order in which to dial.

mod debts;
mod dialing;
mod doubt;
mod event;
mod found;
mod inspection;
mod preference;
mod probing;
mod quality;
mod record;
mod state;
mod why;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    debts::Debts,
    doubt::Doubt,
    preference::is_allowed,
    state::{Check, Path, State, Turn},
};
pub(crate) use self::{
    dialing::Dialing,
    event::{Action, Choice, Event, METERED_CHECK, Settings},
    probing::HEAD_START,
};
use super::{Condition, PathKey, Reason};
use crate::link::router::Routers;

#[derive(Clone, Copy, Debug)]
struct Active {
    key: PathKey,
    doubt: Option<Doubt>,
}

/// The policy; see the module's documentation.
#[derive(Debug)]
pub(crate) struct Manager {
    settings: Settings,
    paths: BTreeMap<PathKey, Path>,
    dialing: Dialing,
    connected: bool,
    /// The server's addresses that are known to have the session.
    homes: BTreeSet<SocketAddr>,
    active: Option<Active>,
    /// Those through which paths lead.
    routers: Routers,
    debts: Debts,
}

impl Manager {
    /// A manager that knows no path.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            paths: BTreeMap::new(),
            dialing: Dialing::default(),
            connected: false,
            homes: BTreeSet::new(),
            active: None,
            routers: Routers::default(),
            debts: Debts::default(),
        }
    }

    /// Replaces the settings. Probes under way keep their deadline.
    pub(crate) fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Handles an event, or with `None` a deadline that passed. Returns the actions in the order in which to
    /// perform them.
    #[must_use]
    pub(crate) fn handle(&mut self, event: impl Into<Option<Event>>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event.into() {
            Some(Event::Candidates(found)) => self.update(found, now, &mut actions),
            Some(Event::Connected(key)) => self.connect(key, now, &mut actions),
            Some(Event::Disconnected) => self.disconnect(now),
            Some(Event::HasSession(key, has_session)) => {
                self.recognise(key, has_session, now, &mut actions);
            }
            Some(Event::Answered(key, rtt)) => self.answer(key, rtt, now, &mut actions),
            Some(Event::Measured(key, rtt)) => self.measure(key, rtt),
            Some(Event::Symptoms(key, symptoms)) => self.feel(key, symptoms, now),
            Some(Event::Sampled(key, sample)) => self.take_sample(key, sample, now),
            Some(Event::Refused(key)) => self.fail(key, now, &mut actions),
            Some(Event::TimedOut(key)) => self.time_out(key, now, &mut actions),
            Some(Event::Silent(key)) => self.doubt(key, now, &mut actions),
            Some(Event::Heard(key)) => self.trust(key),
            Some(Event::SendFailed(key)) => self.send_failed(key, now, &mut actions),
            Some(Event::Portal(key)) => self.suspect_portal(key),
            Some(Event::Router { link, address, hardware }) => {
                self.identify(link, address, hardware, now);
            }
            Some(Event::Woke) => self.ask_everyone(now, &mut actions),
            Some(Event::Choose(choice)) => self.choose(choice, now, &mut actions),
            Some(Event::Check(link)) => self.check(link.as_deref(), now, &mut actions),
            None => {}
        }
        self.end_doubt(now, &mut actions);
        self.expire(now, &mut actions);
        self.fill_vacancy(now, &mut actions);
        self.prefer(now, &mut actions);
        self.inspect(now, &mut actions);
        self.ask_waiting(now, &mut actions);
        actions
    }

    /// The next deadline, at which [`Self::handle`] is to be called even without an event.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let works = self.works();
        let of_paths = self.paths.iter().flat_map(move |(key, path)| {
            let own = match path.state {
                State::Waiting => match self.turn(path) {
                    Turn::After(at) => Some(at),
                    Turn::Now | Turn::Never => None,
                },
                State::Probing { deadline } => Some(deadline),
                State::Standby { check: Some(Check::At(at)), .. } => {
                    Some(path.quality.awaited().map_or(at, |until| at.max(until)))
                }
                State::Standby { check: Some(Check::AnswerBy(at)), .. } => Some(at),
                State::Standby { check: None, .. } => None,
                State::Failed { retry_at } => Some(retry_at),
            };
            let better = works && self.improves(*key).is_some();
            let dwell = self.ready_at(path).filter(|_| better);
            let burst = self.burst_due(*key, path);
            [own, dwell, burst, path.quality.expires_at()].into_iter().flatten()
        });
        of_paths.chain(self.doubt_deadline()).min()
    }

    /// What decides in which order links are dialed, as it is now.
    #[must_use]
    pub(crate) fn dialing(&self) -> &Dialing {
        &self.dialing
    }

    /// The path that carries the tunnel.
    #[must_use]
    pub(crate) fn active(&self) -> Option<PathKey> {
        self.active.map(|active| active.key)
    }

    /// Whether this path is going to be probed or measured even without a further event.
    #[must_use]
    pub(crate) fn is_asked_again(&self, key: PathKey) -> bool {
        let is_asked = |path: &Path| {
            let rests = self.rests(key) || matches!(path.state, State::Standby { check: None, .. });
            path.quality.awaited().is_some() || !rests
        };
        self.wanted(key).is_some() || self.paths.get(&key).is_some_and(is_asked)
    }

    /// Whether the active path is silent, or suspected to be dead for another reason.
    #[must_use]
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.active.is_some_and(|active| active.doubt.is_some())
    }

    /// Whether the server is in the network of this path's link.
    #[must_use]
    pub(crate) fn is_at_home(&self, key: PathKey) -> bool {
        self.paths.get(&key).is_some_and(Path::is_at_home)
    }

    /// Whether a captive portal seems to answer on this path.
    #[must_use]
    pub(crate) fn is_behind_portal(&self, key: PathKey) -> bool {
        self.paths.get(&key).is_some_and(|path| path.portal)
    }

    /// Whether traffic over a path costs money.
    pub(crate) fn is_metered(&self, key: PathKey) -> bool {
        self.paths.get(&key).is_some_and(|path| path.facts.metered)
    }

    /// The shortest round trip of the active path.
    #[must_use]
    pub(crate) fn floor(&self) -> Option<Duration> {
        self.active().and_then(|active| self.paths.get(&active)?.quality.floor)
    }

    /// Every path with its state and, if measured, its round-trip time.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (PathKey, Condition, Option<Duration>)> {
        self.paths.iter().map(|(key, path)| (*key, self.condition(*key, path), path.rtt))
    }

    fn condition(&self, key: PathKey, path: &Path) -> Condition {
        match self.active {
            Some(Active { key: active, doubt: None }) if active == key => Condition::Active,
            Some(Active { key: active, .. }) if active == key => Condition::Suspect,
            _ => match path.state {
                State::Waiting => Condition::Waiting,
                State::Probing { .. } => Condition::Probing,
                State::Standby { .. } => Condition::Standby,
                State::Failed { .. } => Condition::Failed,
            },
        }
    }

    fn is_active(&self, key: PathKey) -> bool {
        self.active() == Some(key)
    }

    fn connect(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        self.connected = true;
        self.homes = BTreeSet::from([key.server]);
        // A chosen link that is gone has failed.
        self.dialing.choice.take_if(|choice| {
            !choice.pinned && !self.paths.values().any(|path| path.link == choice.link)
        });
        self.active = self.paths.contains_key(&key).then_some(Active { key, doubt: None });
        if let Some(path) = self.paths.get_mut(&key) {
            // The handshake took longer than a round trip.
            path.begin(now);
            // The tunnel's own traffic tells more about the path than a probe.
            actions.push(Action::Forget(key));
        }
    }

    fn disconnect(&mut self, now: Instant) {
        for (key, path) in std::mem::take(&mut self.paths) {
            let ended = self.ended(key, &path);
            self.dialing.record.keep(&ended, false, now);
        }
        self.connected = false;
        self.active = None;
        self.routers = Routers::default();
    }

    fn measure(&mut self, key: PathKey, rtt: Duration) {
        if self.is_active(key)
            && let Some(path) = self.paths.get_mut(&key)
        {
            path.rtt = Some(rtt);
            path.quality.measured(rtt);
        }
    }

    fn answer(
        &mut self,
        key: PathKey,
        rtt: Option<Duration>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (check, rests) = (self.next_check(key, now), self.rests(key));
        let active = self.active().filter(|active| *active != key);
        let active_rtt = active.and_then(|active| self.paths.get(&active)?.rtt);
        let Some(path) = self.paths.get_mut(&key) else { return };
        // A handshake measures nothing, and what was measured before the path failed may be true no more.
        path.rtt = rtt.or(path.rtt.filter(|_| matches!(path.state, State::Standby { .. })));
        path.answered = Some(now);
        if let Some(rtt) = rtt {
            path.quality.answered(rtt, active_rtt);
        }
        path.portal = false;
        let since = match path.state {
            State::Standby { since, .. } => since,
            State::Waiting | State::Probing { .. } | State::Failed { .. } => now,
        };
        path.state = if rests { State::Waiting } else { State::Standby { since, check } };
        let (allowed, is_stranger) =
            (is_allowed(self.dialing.choice.as_ref(), path), path.is_stranger);
        // At an address that is not known to have the session a mere handshake may be that of another machine, which soon says so.
        let is_elsewhere = active.is_some_and(|active| active.server != key.server);
        let is_sure = rtt.is_some() || !is_elsewhere || self.homes.contains(&key.server);
        match &mut self.active {
            // The answer proves that the path works, not that the connection does.
            Some(active) if active.key == key => {}
            Some(Active { doubt: Some(Doubt::Open(answered)), .. }) if allowed && is_stranger => {
                answered.get_or_insert(now);
            }
            Some(Active { doubt: Some(Doubt::Open(_)), .. }) if allowed && is_sure => {
                self.switch(key, Reason::Silent, now, actions);
            }
            Some(_) | None => {}
        }
    }

    /// Whether the active path is trusted.
    fn works(&self) -> bool {
        self.active.is_some_and(|active| active.doubt.is_none())
    }

    fn choose(&mut self, choice: Option<Choice>, now: Instant, actions: &mut Vec<Action>) {
        if let Some(choice) = &choice {
            self.check(Some(&choice.link), now, actions);
        }
        self.dialing.choice = choice;
    }

    /// The choice of `link` is over, unless it is pinned.
    fn end_choice(&mut self, link: &str) {
        self.dialing.choice.take_if(|choice| !choice.pinned && choice.link == link);
    }

    /// Gives a connection without an active path the best path, even one that has not answered a probe.
    fn fill_vacancy(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.connected
            && self.active.is_none()
            && let Some(key) = self
                .best_standby()
                // Another network may have the addresses of home.
                .or_else(|| self.best_of(|path| !path.is_at_home()))
                .or_else(|| self.best_of(|_| true))
        {
            self.switch(key, Reason::Gone, now, actions);
        }
    }

    fn switch(&mut self, key: PathKey, reason: Reason, now: Instant, actions: &mut Vec<Action>) {
        if self.paths.get(&key).is_some_and(|path| path.is_stranger) {
            (self.connected, self.active) = (false, None);
            return actions.push(Action::BeginAnew(key));
        }
        let old = self.active.replace(Active { key, doubt: None });
        let fault = old.and_then(|old| self.paths.get(&old.key)?.quality.remembered());
        let reason = match fault {
            Some(fault) if reason.is_of_quality() => fault.reason(),
            Some(_) | None => reason,
        };
        if let Some(path) = self.paths.get_mut(&key) {
            path.portal = false;
            path.quality.begin();
            if let State::Standby { since, .. } = path.state {
                path.state = State::Standby { since, check: None };
            }
        }
        actions.push(Action::Switch(key, reason));
        let Some(old) = old else { return };
        if reason.is_soft() {
            let (check, rests) = (self.next_check(old.key, now), self.rests(old.key));
            if let Some(path) = self.paths.get_mut(&old.key) {
                let standby = State::Standby { since: now, check };
                path.state = if rests { State::Waiting } else { standby };
                if reason.is_of_quality() {
                    path.failures.add(now);
                }
                path.quality.left(true, now);
            }
        } else {
            if let Some(path) = self.paths.get_mut(&old.key) {
                path.quality.left(false, now);
            }
            if let Some(link) = self.paths.get(&old.key).map(|path| path.link.clone()) {
                self.end_choice(&link);
            }
            self.fail(old.key, now, actions);
        }
    }
}

#[cfg(test)]
mod tests;
