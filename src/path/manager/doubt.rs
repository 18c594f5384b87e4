//! A path in use that is silent: it is asked, then all others are, and the first that leads to the session takes over.

use std::time::{Duration, Instant};

use super::{
    Action, Active, Manager,
    preference::is_allowed,
    state::{Check, Path, State},
};
use crate::path::{PathKey, Reason};

/// The minimum timeout of a probe of a silent active path; its timeout is twice its round trip if that is longer.
pub(super) const SHORTEST_GRACE: Duration = Duration::from_millis(100);
/// While the active path is silent and another server answers, which does not have our session, the server that has it
/// may take so long to answer, too: enough for two nudges, as a network that comes back is heard of by all at once.
pub(super) const LAST_CHANCE: Duration = Duration::from_millis(600);

/// State of an active path that is silent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doubt {
    /// It was probed and may answer until this deadline.
    Asked(Instant),
    /// It did not answer; the first path to answer takes over, unless its server does not have our session. With the
    /// time of the first answer of such a server.
    Open(Option<Instant>),
}

impl Active {
    /// Whether any other path that leads to the session would do.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.doubt, Some(Doubt::Open(_)))
    }
}

impl Manager {
    pub(super) fn doubt(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        let rtt = self.paths.get(&key).and_then(Path::known_rtt).unwrap_or_default();
        if let Some(active) = &mut self.active
            && active.key == key
            && active.doubt.is_none()
        {
            active.doubt = Some(Doubt::Asked(now + (2 * rtt).max(SHORTEST_GRACE)));
            actions.push(Action::Ask(key));
        }
    }

    pub(super) fn trust(&mut self, key: PathKey) {
        if let Some(active) = &mut self.active
            && active.key == key
        {
            active.doubt = None;
        }
    }

    pub(super) fn send_failed(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
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

    pub(super) fn recognise(
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
        if has_session
            && has_answered
            && is_allowed(self.dialing.choice.as_ref(), path)
            && self.active.is_some_and(|active| active.key != key && active.is_given_up())
        {
            self.switch(key, Reason::Silent, now, actions);
        }
    }

    /// The next deadline of a doubt.
    pub(super) fn doubt_deadline(&self) -> Option<Instant> {
        match self.active?.doubt? {
            Doubt::Asked(until) => Some(until),
            Doubt::Open(answered) => answered.map(|at| at + self.last_chance()),
        }
    }

    /// Handles it.
    pub(super) fn end_doubt(&mut self, now: Instant, actions: &mut Vec<Action>) {
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
    }

    fn last_chance(&self) -> Duration {
        let known = self.paths.values().filter(|path| !path.is_stranger);
        let slowest = known.filter_map(Path::known_rtt).max().unwrap_or_default();
        LAST_CHANCE.max(LAST_CHANCE / 2 + 2 * slowest)
    }

    /// The best path whose server does not have our session, and that has answered since then.
    fn stranger(&self, since: Instant) -> Option<PathKey> {
        self.best_of(|path| path.is_stranger && path.answered >= Some(since))
    }
}
