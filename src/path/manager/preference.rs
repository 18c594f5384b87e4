//! Which path is the best, and whether it is better than the active one.

use std::time::{Duration, Instant};

use super::{
    Action, Choice, Manager,
    quality::Quality,
    state::{Check, Path, State},
};
use crate::path::{
    PathKey, Reason,
    quality::Fault,
    rank::{Facts, Verdict, compare},
};

/// How long a path must work after a lone failure before it is preferred again: a wifi that was left behind and is back.
pub(super) const BRIEF_DWELL: Duration = Duration::from_millis(500);
/// The longest such time for a path that was measured to be better than an active one that works badly.
const LONGEST_DWELL_OF_CURE: Duration = Duration::from_secs(4);
impl Manager {
    pub(super) fn is_allowed(&self, path: &Path) -> bool {
        is_allowed(self.dialing.choice.as_ref(), path)
    }

    pub(super) fn is_chosen(&self, link: &str) -> bool {
        self.dialing.is_chosen(link)
    }

    /// What decides between `path` and another one.
    pub(super) fn facts(&self, path: &Path) -> Facts {
        let Path { facts: link, portal, rtt, quality: Quality { fault, .. }, .. } = *path;
        Facts { chosen: self.is_chosen(&path.link), portal, fault, link, rtt }
    }

    /// Moves to a better standby from an active path that works.
    pub(super) fn prefer(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.works() {
            return;
        }
        let better = self
            .paths
            .iter()
            .filter(|(_, path)| self.ready_at(path).is_some_and(|ready| ready <= now))
            .filter_map(|(key, path)| {
                Some(((path.is_stranger, self.facts(path), *key), self.improves(*key)?))
            })
            .min_by_key(|(place, _)| *place);
        if let Some(((.., key), reason)) = better {
            self.switch(key, reason, now, actions);
        }
    }

    /// How the path `key` compares with the active one; `None` without an active path, or if it is that.
    pub(super) fn compare(&self, key: PathKey) -> Option<Verdict> {
        let active = self.paths.get(&self.active()?)?;
        let path = self.paths.get(&key).filter(|_| !self.is_active(key))?;
        Some(compare(&self.facts(active), &self.facts(path)))
    }

    /// Why the path `key` would be better than the active one, if it would and may be used.
    pub(super) fn improves(&self, key: PathKey) -> Option<Reason> {
        let path = self.paths.get(&key).filter(|path| self.is_allowed(path))?;
        let active = self.active().and_then(|key| self.paths.get(&key))?;
        let verdict = self.compare(key)?;
        if path.quality.fault.is_some() && verdict != Verdict::Better(Reason::Chosen) {
            return self.lesser_evil(path, active);
        }
        let Verdict::Better(reason) = verdict else { return None };
        let is_good = !self.shares_fault(key, path);
        match reason {
            Reason::Chosen if path.is_stranger && self.may_have_session(&path.link) => None,
            Reason::Chosen => Some(reason),
            // A session is given up for a link that somebody chose, but for no other gain.
            _ if path.is_stranger => None,
            Reason::Preferred | Reason::Faster => is_good.then_some(reason),
            Reason::Lossy | Reason::Slow | Reason::Narrow if self.is_no_way_out(path, active) => {
                None
            }
            Reason::Lossy | Reason::Slow | Reason::Narrow => {
                let fault = active.quality.fault?;
                if path.quality.cures(fault) || is_lesser_evil(path, active, fault) {
                    return Some(reason);
                }
                // What would be better than the active path without its fault is so with it.
                let without = Facts { fault: None, ..self.facts(active) };
                match compare(&without, &self.facts(path)) {
                    Verdict::Better(reason) if is_good => Some(reason),
                    Verdict::Better(_) | Verdict::Same | Verdict::Worse(_) => None,
                }
            }
            // These are not found by a comparison.
            Reason::Gone | Reason::Silent | Reason::SendFailed => None,
        }
    }

    /// Why a path that works badly is used all the same, if it is: the active one is much worse.
    fn lesser_evil(&self, path: &Path, active: &Path) -> Option<Reason> {
        let fault = active.quality.fault.filter(|_| !path.is_stranger)?;
        let leaves_choice = self.is_chosen(&active.link) && !path.is_beside(active);
        let is_barred = leaves_choice || self.is_no_way_out(path, active);
        let is_better = !is_barred && is_lesser_evil(path, active, fault);
        is_better.then(|| fault.reason())
    }

    /// Whether a path likely has the fault of the active one, whatever a burst says, and a path over another link has not.
    fn is_no_way_out(&self, path: &Path, active: &Path) -> bool {
        path.is_beside(active) && self.has_good_standby_beside(&path.link)
    }

    /// Whether another standby over the same link has a fault: that is mostly the link's.
    pub(super) fn shares_fault(&self, key: PathKey, path: &Path) -> bool {
        self.paths.iter().any(|(other, it)| {
            *other != key
                && !self.is_active(*other)
                && it.link == path.link
                && it.quality.fault.is_some()
                && matches!(it.state, State::Standby { .. })
                // Nobody measures the path to a stranger again.
                && !it.is_stranger
        })
    }

    /// Whether a standby over another link than this one has no known fault.
    pub(super) fn has_good_standby_beside(&self, link: &str) -> bool {
        let is_good = |path: &Path| {
            path.link != link
                && path.quality.fault.is_none()
                && matches!(path.state, State::Standby { .. })
                && !path.is_stranger
        };
        self.best_of(is_good).is_some()
    }

    /// Whether a path over this link may lead to the session, or is still being asked.
    pub(super) fn may_have_session(&self, link: &str) -> bool {
        self.paths.values().any(|path| {
            path.link == link && !path.is_stranger && !matches!(path.state, State::Failed { .. })
        })
    }

    /// The time from which a path may replace one that works; `None` unless it is a standby that is not being probed, and
    /// was measured since it failed.
    pub(super) fn ready_at(&self, path: &Path) -> Option<Instant> {
        let State::Standby { since, check } = path.state else { return None };
        if self.is_chosen(&path.link) {
            return Some(since);
        }
        let is_measured = path.rtt.is_some() || path.failures.count(since) == 0;
        if matches!(check, Some(Check::AnswerBy(_))) || !is_measured {
            return None;
        }
        let dwell = match path.failures.count(since) {
            1 => BRIEF_DWELL,
            _ => path.failures.dwell(since),
        };
        let fault = self.active().and_then(|active| self.fault(active));
        let is_clean = path.quality.fault.is_none();
        let is_cure = is_clean && fault.is_some_and(|fault| path.quality.cures(fault));
        Some(since + if is_cure { dwell.min(LONGEST_DWELL_OF_CURE) } else { dwell })
    }

    pub(super) fn best_standby(&self) -> Option<PathKey> {
        self.best_of(|path| matches!(path.state, State::Standby { .. }) && !path.is_stranger)
    }

    /// The best standby whose server has our session, on another link than the active path if there is one; and
    /// whether it is metered.
    pub(crate) fn backup(&self) -> Option<(PathKey, bool)> {
        let is_standby =
            |path: &Path| matches!(path.state, State::Standby { .. }) && !path.is_stranger;
        let link = self.active().and_then(|active| self.paths.get(&active)).map(|path| &path.link);
        let elsewhere = self.best_of(|path| is_standby(path) && Some(&path.link) != link);
        let key = elsewhere.or_else(|| self.best_standby())?;
        Some((key, self.paths.get(&key)?.facts.metered))
    }

    /// The user's choice, for as long as it holds.
    #[must_use]
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.dialing.choice.as_ref()
    }

    /// Whether another path works, even one that may not be used.
    pub(super) fn has_standby(&self) -> bool {
        let is_standby = |path: &Path| matches!(path.state, State::Standby { .. });
        self.paths.iter().any(|(key, path)| !self.is_active(*key) && is_standby(path))
    }

    pub(super) fn best_of(&self, fits: impl Fn(&Path) -> bool) -> Option<PathKey> {
        self.paths
            .iter()
            .filter(|(key, path)| !self.is_active(**key) && self.is_allowed(path) && fits(path))
            .min_by_key(|(key, path)| (path.is_stranger, self.facts(path), **key))
            .map(|(key, _)| *key)
    }
}

/// Whether `path` is known to be much better than the active one with this fault.
fn is_lesser_evil(path: &Path, active: &Path, fault: Fault) -> bool {
    path.quality.is_lesser_evil(fault, active.rtt, path.is_beside(active))
}

/// Whether the user's choice allows `path` to be used.
pub(super) fn is_allowed(choice: Option<&Choice>, path: &Path) -> bool {
    choice.is_none_or(|choice| !choice.pinned || choice.link == path.link)
}
