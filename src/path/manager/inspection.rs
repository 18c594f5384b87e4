//! Bursts of echoes: when they are made, over which paths, and what follows.
//!
//! ```text
//!  active path: symptoms of loss ─▶ burst ─▶ clean: pause, doubled each time
//!                                         ─▶ unsure: another burst, a few times
//!                                         ─▶ bad ──▶ burst over its standbys ─▶ a clean one takes over
//!  the path that was left: a burst at times ─▶ clean for its dwell time ─▶ as good as before
//! ```
//! A path that was left while it carried little of what was asked is clean only if it carries more again: it loses
//! nothing and is fast while nobody asks anything of it. Where all are bad, one that is much better than the active path takes
//! over.

use std::time::Instant;

use super::{
    Action, Manager,
    state::{Check, Path, State},
};
use crate::path::{
    PathKey,
    quality::{Burst, Fault, Sample, Symptoms},
    rank::{Facts, Verdict, compare},
};

/// How much longer the pauses over a standby are where traffic costs money.
const METERED_PAUSE: u32 = 4;

impl Manager {
    /// What is wrong with a path.
    #[must_use]
    pub(crate) fn fault(&self, key: PathKey) -> Option<Fault> {
        self.paths.get(&key)?.quality.fault
    }

    /// Whether these symptoms of the active path, or their end, matter.
    #[must_use]
    pub(crate) fn minds(&self, symptoms: &Symptoms) -> bool {
        let active = self.active().and_then(|key| self.paths.get(&key));
        active.is_some_and(|path| path.quality.minds(symptoms))
    }

    pub(super) fn feel(&mut self, key: PathKey, symptoms: Symptoms, now: Instant) {
        if !self.is_active(key) {
            return;
        }
        if let Some(path) = self.paths.get_mut(&key) {
            path.quality.feel(symptoms, now);
        }
    }

    pub(super) fn take_sample(&mut self, key: PathKey, sample: Option<Sample>, now: Instant) {
        let is_active = self.is_active(key);
        let active = self.active().and_then(|key| self.paths.get(&key));
        let active_rtt = active.and_then(|active| active.rtt);
        let is_beside =
            active.zip(self.paths.get(&key)).is_some_and(|(it, path)| path.is_beside(it));
        let next_check = self.next_check(key, now);
        // What nobody awaits was cut short, is late, or crossed another network.
        let path = self.paths.get_mut(&key).filter(|path| path.quality.awaited().is_some());
        let Some(path) = path else { return };
        let times = pauses(path, is_active);
        path.quality.add(sample, now);
        if is_active {
            return path.quality.judge_active(times, now);
        }
        if let Some(rtt) = sample.and_then(|sample| sample.rtt) {
            path.rtt = Some(rtt);
            if let (State::Standby { check: Some(check @ Check::At(_)), .. }, Some(next)) =
                (&mut path.state, next_check)
            {
                *check = next;
            }
        }
        let dwell = path.failures.dwell(now);
        path.quality.judge_standby((is_beside, active_rtt), dwell, times, now);
    }

    /// Makes the bursts that are due.
    pub(super) fn inspect(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let last = |(key, path): (&PathKey, &Path)| (path.quality.last, *key);
        let mut paths: Vec<_> = self.paths.iter().map(last).collect();
        // Those over one link take turns.
        paths.sort_unstable();
        for (_, key) in paths {
            // What began for the paths before this one counts.
            let Some(burst) = self.wanted(key) else { continue };
            let (allowed_at, is_active) = (self.allowed_at(key, burst), self.is_active(key));
            if let Some(path) = self.paths.get_mut(&key)
                && path.quality.start(burst, allowed_at, now)
            {
                if costs(path, is_active) {
                    let per_minute = self.settings.metered_bursts;
                    self.debts.spend(&path.link, burst.bytes(), per_minute, now);
                }
                actions.push(Action::Sample(key, burst));
            }
        }
    }

    /// When the result of a burst over this path is due at last, or the next burst if one is wanted.
    pub(super) fn burst_due(&self, key: PathKey, path: &Path) -> Option<Instant> {
        // What is under way ends, wanted or not.
        path.quality.awaited().or_else(|| {
            let burst = self.wanted(key)?;
            path.quality.due(burst, self.allowed_at(key, burst))
        })
    }

    /// When this burst is within the budget of its link; `None` for now.
    fn allowed_at(&self, key: PathKey, burst: Burst) -> Option<Instant> {
        let path = self.paths.get(&key).filter(|path| costs(path, self.is_active(key)))?;
        self.debts.allowed_at(&path.link, burst.bytes(), self.settings.metered_bursts)
    }

    /// The burst that would tell something about this path.
    pub(super) fn wanted(&self, key: PathKey) -> Option<Burst> {
        if !self.works() {
            return None;
        }
        let path = self.paths.get(&key)?;
        let active = self.paths.get(&self.active()?)?;
        let is_suspected = active.quality.symptoms.is_lossy();
        if self.is_active(key) {
            let is_lossy = matches!(path.quality.fault, Some(Fault::Lossy(_)));
            let has_standby = self.has_standby();
            return ((is_suspected || is_lossy) && has_standby).then_some(Burst::Small);
        }
        let burst = path.quality.burst(&active.quality, path.is_beside(active))?;
        // Bursts over one link delay each other.
        let is_busy = |(other, it): (&PathKey, &Path)| {
            *other != key && it.is_beside(path) && it.quality.awaited().is_some()
        };
        if !may_serve(path) || !self.is_allowed(path) || self.paths.iter().any(is_busy) {
            return None;
        }
        let is_of_use = match path.quality.fault {
            Some(_) => self.is_of_use(path, active),
            None if self.is_chosen(&active.link) => false,
            None => {
                (active.quality.fault.is_some() || is_suspected && !path.facts.metered)
                    && (path.quality.goes_on(burst) || self.has_turn(key, path))
            }
        };
        is_of_use.then_some(burst)
    }

    /// Whether it is of use to know that the fault of this standby is over, beside this active path.
    fn is_of_use(&self, path: &Path, active: &Path) -> bool {
        let without = Facts { fault: None, ..self.facts(path) };
        !path.facts.metered
            || active.quality.fault.is_some()
            || matches!(compare(&self.facts(active), &without), Verdict::Better(_))
    }

    /// Whether this is the one standby of its link that is to be measured, as those of one link are mostly alike: the
    /// best of those that were not measured for longest, once what is known of the others is too old.
    fn has_turn(&self, key: PathKey, path: &Path) -> bool {
        let place = |key: PathKey, path: &Path| (path.quality.last, self.facts(path), key);
        let is_alike = |(other, it): &(&PathKey, &Path)| {
            **other != key
                && !self.is_active(**other)
                && it.is_beside(path)
                && it.quality.fault.is_none()
                && may_serve(it)
        };
        let mut alike = self.paths.iter().filter(is_alike);
        alike.all(|(other, it)| it.quality.is_unknown() && place(key, path) < place(*other, it))
    }
}

/// Whether bursts over this path are more than what the tunnel costs there anyway.
fn costs(path: &Path, is_active: bool) -> bool {
    path.facts.metered && !is_active
}

/// How many times as long as usual the pauses between them are.
pub(super) fn pauses(path: &Path, is_active: bool) -> u32 {
    if costs(path, is_active) { METERED_PAUSE } else { 1 }
}

/// Whether the session could move to this path.
fn may_serve(path: &Path) -> bool {
    matches!(path.state, State::Standby { .. }) && !path.is_stranger
}
