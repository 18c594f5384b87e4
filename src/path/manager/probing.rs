//! Which paths are asked, and when: probes, what follows when they fail, and which transport is asked before which.

use std::time::{Duration, Instant};

use super::{
    Action, Manager,
    doubt::Doubt,
    inspection::pauses,
    state::{Check, Path, State, Turn},
};
use crate::{link::candidate::Transport, path::PathKey};

/// The longest pause between the probes of a path that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The longest pause while no path is known to work: the user is waiting.
pub(super) const DESPERATE_RETRY: Duration = Duration::from_secs(1);
/// The pause while no path works after a probe that was not refused but timed out: such a probe has already taken
/// its whole timeout.
pub(super) const SILENT_RETRY: Duration = Duration::from_millis(100);
/// So many times a path at home is asked soon after it failed. Then it is asked rarely: another network has the same addresses,
/// and a change of networks asks again. With the longest timeout of a probe that is less than failures are kept in mind for.
const HOME_TRIES: u32 = 3;
const HOME_RETRY: Duration = Duration::from_secs(540);
/// How much earlier UDP is asked than TCP over the same link: more than most round trips, less than anybody notices.
pub(crate) const HEAD_START: Duration = Duration::from_millis(300);

impl Manager {
    /// When a standby is probed next. The active path is not: its traffic is watched instead.
    pub(super) fn next_check(&self, key: PathKey, now: Instant) -> Option<Check> {
        let path = self.paths.get(&key).filter(|_| !self.is_active(key))?;
        let metered = path.facts.metered;
        let every = if metered { self.settings.metered_check } else { self.settings.standby_check };
        Some(Check::At(now + every?))
    }

    pub(super) fn fail(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        if self.is_active(key) {
            // The tunnel's own traffic tells more about the path than a probe.
            return;
        }
        let works = self.works();
        let longest = if works { LONGEST_RETRY } else { DESPERATE_RETRY };
        if let Some(path) = self.paths.get_mut(&key) {
            if matches!(path.state, State::Failed { .. }) {
                // A probe ends at the same moment as the wait for it: that is one failure.
                return;
            }
            path.retry_later(now, longest);
            if works && path.is_at_home() && path.failures.count(now) >= HOME_TRIES {
                path.state = State::Failed { retry_at: now + HOME_RETRY };
            }
            // While nothing works, the fault may be the server's.
            if works {
                path.failures.add(now);
            }
            path.quality.abandon();
            actions.push(Action::Forget(key));
        }
    }

    /// A probe was not answered in time.
    pub(super) fn time_out(&mut self, key: PathKey, now: Instant, actions: &mut Vec<Action>) {
        self.fail(key, now, actions);
        if !self.works()
            && !self.is_active(key)
            && let Some(path) = self.paths.get_mut(&key)
        {
            path.state = State::Failed { retry_at: now + SILENT_RETRY };
        }
    }

    pub(super) fn suspect_portal(&mut self, key: PathKey) {
        if !self.is_active(key)
            && let Some(path) = self.paths.get_mut(&key)
            && !matches!(path.state, State::Standby { .. })
        {
            path.portal = true;
        }
    }

    pub(super) fn check(&mut self, link: Option<&str>, now: Instant, actions: &mut Vec<Action>) {
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

    /// Handles the deadlines of paths.
    pub(super) fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
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

    /// Suspects the active path and probes all others, including those that failed.
    pub(super) fn ask_everyone(&mut self, now: Instant, actions: &mut Vec<Action>) {
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

    pub(super) fn ask_waiting(&mut self, now: Instant, actions: &mut Vec<Action>) {
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
    pub(super) fn rests(&self, key: PathKey) -> bool {
        let path = self.paths.get(&key).filter(|_| !self.is_active(key));
        path.is_some_and(|path| self.turn(path) == Turn::Never)
    }

    /// When a path may be probed. A path over TCP is while UDP over the same link does not answer: a moment after it was
    /// asked, a standby too; one through a proxy while TCP does not, either. What another server answers does not count.
    pub(super) fn turn(&self, path: &Path) -> Turn {
        let is_beside = |(_, other): &(&PathKey, &Path)| {
            other.link == path.link && other.facts.transport < path.facts.transport
        };
        let is_given_up = self.active.is_some_and(|active| active.is_given_up());
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
}
