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
mod event;
mod inspection;
mod preference;
mod record;
mod state;
mod why;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    debts::Debts,
    inspection::pauses,
    preference::is_allowed,
    state::{Check, Path, State, Turn},
};
pub(crate) use self::{
    dialing::Dialing,
    event::{Action, Choice, Event, METERED, Settings},
};
use super::{Condition, PathKey, Reason, rank::LinkFacts};
use crate::link::candidate::{Candidate, Transport};

/// The longest pause between the probes of a path that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The longest pause while no path is known to work: the user is waiting.
const DESPERATE_RETRY: Duration = Duration::from_secs(1);
/// The pause while no path works after a probe that was not refused but timed out: such a probe has already taken
/// its whole timeout.
const SILENT_RETRY: Duration = Duration::from_millis(100);
/// So many times a path at home is asked soon after it failed. Then it is asked rarely: another network has the same addresses,
/// and a change of networks asks again. With the longest timeout of a probe that is less than failures are kept in mind for.
const HOME_TRIES: u32 = 3;
const HOME_RETRY: Duration = Duration::from_secs(540);
/// How much earlier UDP is asked than TCP over the same link: more than most round trips, less than anybody notices.
pub(crate) const HEAD_START: Duration = Duration::from_millis(300);
/// The minimum timeout of a probe of a silent active path; its timeout is twice its round trip if that is longer.
const SHORTEST_GRACE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Active {
    key: PathKey,
    doubt: Option<Doubt>,
}

/// State of an active path that is silent.
#[derive(Clone, Copy, Debug)]
enum Doubt {
    /// It was probed and may answer until this deadline.
    Asked(Instant),
    /// It did not answer; the first path to answer takes over, unless its server does not have our session. With the
    /// time of the first answer of such a server.
    Open(Option<Instant>),
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
            Some(Event::Woke) => self.ask_everyone(now, &mut actions),
            Some(Event::Choose(choice)) => self.choose(choice, now, &mut actions),
            Some(Event::Check(link)) => self.check(link.as_deref(), now, &mut actions),
            None => {}
        }
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
            [own, dwell, self.burst_due(*key, path)].into_iter().flatten()
        });
        let doubt = self.active.and_then(|active| match active.doubt {
            Some(Doubt::Asked(until)) => Some(until),
            Some(Doubt::Open(answered)) => answered.map(|at| at + self.last_chance()),
            None => None,
        });
        of_paths.chain(doubt).min()
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

    fn update(
        &mut self,
        found: Vec<(Candidate, LinkFacts)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_found =
            |key: &PathKey| found.iter().any(|(candidate, _)| PathKey::from(candidate) == *key);
        let gone: Vec<_> = self.paths.keys().filter(|key| !is_found(key)).copied().collect();
        for key in gone {
            if let Some(path) = self.paths.remove(&key) {
                if self.active.take_if(|active| active.key == key).is_some() {
                    self.end_choice(&path.link);
                }
                self.dialing.record.keep(key, path, true, now);
            }
            actions.push(Action::Forget(key));
        }
        self.dialing.record.expire(now);
        for (candidate, facts) in found {
            let record = &mut self.dialing.record;
            match self.paths.entry(PathKey::from(&candidate)) {
                Entry::Vacant(path) => {
                    path.insert(record.recall(candidate, facts));
                }
                Entry::Occupied(mut path) => {
                    let is_measured = path.get().quality.awaited().is_some();
                    if record.reroute(path.get_mut(), &candidate, now) && is_measured {
                        // The burst is over the network before.
                        actions.push(Action::Forget(*path.key()));
                    }
                    path.get_mut().facts = facts;
                }
            }
        }
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
            // A handshake takes longer than a round trip.
            path.rtt = None;
            path.portal = false;
            path.quality.begin();
            // Its packets will tell.
            path.quality.fault = None;
            path.state = State::Standby { since: now, check: None };
            // The tunnel's own traffic tells more about the path than a probe.
            actions.push(Action::Forget(key));
        }
    }

    fn disconnect(&mut self, now: Instant) {
        self.connected = false;
        self.active = None;
        for (key, path) in std::mem::take(&mut self.paths) {
            self.dialing.record.keep(key, path, false, now);
        }
    }

    fn recognise(
        &mut self,
        key: PathKey,
        has_session: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(path) = self.paths.get_mut(&key) else { return };
        path.is_stranger = !has_session;
        if has_session {
            self.homes.insert(key.server);
        } else {
            self.homes.remove(&key.server);
        }
        let has_answered = match path.state {
            State::Standby { check, .. } => !matches!(check, Some(Check::AnswerBy(_))),
            State::Waiting | State::Probing { .. } | State::Failed { .. } => false,
        };
        let is_open = |active: Active| matches!(active.doubt, Some(Doubt::Open(_)));
        if has_session
            && has_answered
            && is_allowed(self.dialing.choice.as_ref(), path)
            && self.active.is_some_and(|active| active.key != key && is_open(active))
        {
            self.switch(key, Reason::Silent, now, actions);
        }
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
        path.rtt = rtt.or(path.rtt);
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

    /// When a standby is probed next. The active path is not: its traffic is watched instead.
    fn next_check(&self, key: PathKey, now: Instant) -> Option<Check> {
        let path = self.paths.get(&key).filter(|_| !self.is_active(key))?;
        let metered = path.facts.metered;
        let every = if metered { self.settings.metered_check } else { self.settings.standby_check };
        Some(Check::At(now + every?))
    }

    fn fail(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        if self.is_active(key) {
            // The tunnel's own traffic tells more about the path than a probe.
            return;
        }
        let works = self.works();
        let longest = if works { LONGEST_RETRY } else { DESPERATE_RETRY };
        if let Some(path) = self.paths.get_mut(&key) {
            path.retry_later(now, longest);
            if works && path.is_at_home() && path.failures.count(now) >= HOME_TRIES {
                path.state = State::Failed { retry_at: now + HOME_RETRY };
            }
            // While nothing works, the fault may be the server's.
            if works {
                path.failures.add(now);
            }
            actions.push(Action::Forget(key));
        }
    }

    /// A probe was not answered in time.
    fn time_out(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        self.fail(key, now, actions);
        if !self.works()
            && !self.is_active(key)
            && let Some(path) = self.paths.get_mut(&key)
        {
            path.state = State::Failed { retry_at: now + SILENT_RETRY };
        }
    }

    /// Whether the active path is trusted.
    fn works(&self) -> bool {
        self.active.is_some_and(|active| active.doubt.is_none())
    }

    fn doubt(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        let rtt = self.paths.get(&key).and_then(|path| path.rtt).unwrap_or_default();
        if let Some(active) = &mut self.active
            && active.key == key
            && active.doubt.is_none()
        {
            active.doubt = Some(Doubt::Asked(now + (2 * rtt).max(SHORTEST_GRACE)));
            actions.push(Action::Ask(key));
        }
    }

    fn trust(&mut self, key: PathKey) {
        if let Some(active) = &mut self.active
            && active.key == key
        {
            active.doubt = None;
        }
    }

    fn send_failed(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_active(key) {
            self.fail(key, now, actions);
        } else if let Some(standby) = self.best_standby() {
            self.switch(standby, Reason::SendFailed, now, actions);
        } else {
            let before = self.active.and_then(|active| active.doubt);
            self.ask_everyone(now, actions);
            // Another server that answered keeps its place.
            if let (Some(active), Some(Doubt::Open(_))) = (&mut self.active, before) {
                active.doubt = before;
            }
        }
    }

    fn choose(&mut self, choice: Option<Choice>, now: Instant, actions: &mut Vec<Action>) {
        if let Some(choice) = &choice {
            self.check(Some(&choice.link), now, actions);
        }
        self.dialing.choice = choice;
    }

    fn suspect_portal(&mut self, key: PathKey) {
        if !self.is_active(key)
            && let Some(path) = self.paths.get_mut(&key)
            && !matches!(path.state, State::Standby { .. })
        {
            path.portal = true;
        }
    }

    fn check(&mut self, link: Option<&str>, now: Instant, actions: &mut Vec<Action>) {
        let deadline = now + self.settings.probe_timeout;
        let active = self.active();
        for (key, path) in &mut self.paths {
            if link.is_some_and(|link| link != path.link) {
                continue;
            }
            if active != Some(*key) {
                path.ask(deadline);
            }
            actions.push(Action::Ask(*key));
        }
    }

    /// The choice of `link` is over, unless it is pinned.
    fn end_choice(&mut self, link: &str) {
        self.dialing.choice.take_if(|choice| !choice.pinned && choice.link == link);
    }

    /// Suspects the active path and probes all others, including those that failed.
    fn ask_everyone(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let deadline = now + self.settings.probe_timeout;
        if let Some(active) = &mut self.active {
            active.doubt = Some(Doubt::Open(None));
        }
        // The turn of a path over TCP depends on what was asked over UDP.
        for transport in Transport::ALL {
            let others = self
                .paths
                .iter()
                .filter(|(key, path)| !self.is_active(**key) && path.facts.transport == transport);
            let turns: Vec<_> = others.map(|(key, path)| (*key, self.turn(path))).collect();
            for (key, turn) in turns {
                let Some(path) = self.paths.get_mut(&key) else { continue };
                match (path.state, turn) {
                    (_, Turn::Never) => {}
                    (State::Failed { .. }, turn) if !turn.has_come(now) => {
                        path.state = State::Waiting;
                    }
                    (State::Waiting | State::Probing { .. }, turn) if !turn.has_come(now) => {}
                    _ => {
                        path.ask(deadline);
                        actions.push(Action::Ask(key));
                    }
                }
            }
        }
        actions.extend(self.active().map(Action::Ask));
    }

    /// Handles the deadlines that passed.
    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(Active { doubt: Some(Doubt::Asked(until)), .. }) = self.active
            && until <= now
        {
            self.ask_everyone(now, actions);
        }
        if let Some(Active { key, doubt: Some(Doubt::Open(Some(answered))) }) = self.active
            && answered + self.last_chance() <= now
        {
            match self.stranger(answered) {
                Some(stranger) => self.switch(stranger, Reason::Silent, now, actions),
                // It is gone.
                None => self.active = Some(Active { key, doubt: Some(Doubt::Open(None)) }),
            }
        }
        self.debts.expire(now);
        let deadline = now + self.settings.probe_timeout;
        let active = self.active();
        let mut failed = Vec::new();
        for (key, path) in &mut self.paths {
            path.quality.expire(now, pauses(path, active == Some(*key)));
            match path.state {
                State::Probing { deadline } if deadline <= now => failed.push(*key),
                State::Standby { check: Some(Check::AnswerBy(at)), .. } if at <= now => {
                    failed.push(*key);
                }
                // A question would cut a burst short.
                State::Standby { since, check: Some(Check::At(at)) }
                    if at <= now && path.quality.awaited().is_none() =>
                {
                    path.state = State::Standby { since, check: Some(Check::AnswerBy(deadline)) };
                    actions.push(Action::Ask(*key));
                }
                State::Failed { retry_at } if retry_at <= now => path.state = State::Waiting,
                State::Waiting
                | State::Probing { .. }
                | State::Standby { .. }
                | State::Failed { .. } => {}
            }
        }
        for key in failed {
            if active == Some(key) {
                // It never answered a probe but carries the tunnel: watch it like any active path.
                if let Some(path) = self.paths.get_mut(&key) {
                    path.state = State::Standby { since: now, check: None };
                }
            } else {
                self.time_out(key, now, actions);
            }
        }
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

    fn ask_waiting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for transport in Transport::ALL {
            let is_due = |(_, path): &(&PathKey, &Path)| {
                path.state == State::Waiting
                    && path.facts.transport == transport
                    && self.turn(path).has_come(now)
            };
            let due: Vec<_> = self.paths.iter().filter(is_due).map(|(key, _)| *key).collect();
            let deadline = now + self.settings.probe_timeout;
            for key in due {
                if let Some(path) = self.paths.get_mut(&key) {
                    path.ask(deadline);
                    actions.push(Action::Ask(key));
                }
            }
        }
    }

    /// Whether a path is not needed as a standby.
    fn rests(&self, key: PathKey) -> bool {
        let path = self.paths.get(&key).filter(|_| !self.is_active(key));
        path.is_some_and(|path| self.turn(path) == Turn::Never)
    }

    /// When a path may be probed. A path over TCP is while UDP over the same link does not answer: a moment after it was
    /// asked, a standby too; one through a proxy while TCP does not, either. What another server answers does not count.
    fn turn(&self, path: &Path) -> Turn {
        let is_beside = |(_, other): &(&PathKey, &Path)| {
            other.link == path.link && other.facts.transport < path.facts.transport
        };
        let is_given_up =
            self.active.is_some_and(|active| matches!(active.doubt, Some(Doubt::Open(_))));
        let mut turn = Turn::Now;
        for (key, other) in self.paths.iter().filter(is_beside) {
            match other.state {
                _ if self.is_active(*key) && !is_given_up => return Turn::Never,
                _ if self.is_active(*key) || other.is_stranger => {}
                State::Probing { deadline }
                | State::Standby { check: Some(Check::AnswerBy(deadline)), .. } => {
                    let begun = deadline.checked_sub(self.settings.probe_timeout);
                    let head_start = HEAD_START.max(2 * other.rtt.unwrap_or_default());
                    turn = turn.max(Turn::After(begun.unwrap_or(deadline) + head_start));
                }
                // One that answers takes over from a path that was given up.
                State::Standby { .. } if !is_given_up => return Turn::Never,
                State::Standby { .. } | State::Waiting | State::Failed { .. } => {}
            }
        }
        turn
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
