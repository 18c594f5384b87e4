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

use std::time::{Duration, Instant};

use super::{
    Action, Manager,
    state::{Check, Path, State},
};
use crate::path::{
    PathKey,
    quality::{Burst, Fault, Finding, Sample, Symptoms, fast_again, is_over, standby_fault},
    rank::{Facts, Verdict, compare},
};

/// The result of a burst comes by then, or not at all.
const AWAITED: Duration = Duration::from_millis(6000);
/// From one inspection of a path to the next, doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How much longer the pauses over a standby are where traffic costs money.
const METERED: u32 = 4;
/// After a pause of this length without a burst, pauses begin anew.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Bursts of one inspection.
const ROUNDS: u8 = 5;
/// A path is not taken for slow any more after so long without a round trip.
const STALE: Duration = Duration::from_secs(5);
/// How long the sample of a standby justifies a switch to it.
const FRESH: Duration = Duration::from_secs(5);

/// For so long what a path was left for must be over before it is used again. Then a clean burst suffices: what the path
/// carried may be all that it ever does, and be enough at other times, or its network may be another by now.
const OLD: Duration = Duration::from_secs(600);

/// What is known of the quality of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Quality {
    pub(super) fault: Option<Fault>,
    /// The shortest round trip that was measured.
    floor: Option<Duration>,
    /// What its packets show at present, if it is the active path.
    symptoms: Symptoms,
    /// The worst loss that they showed since the present inspection began.
    suspected: f64,
    /// Since when they show no round trip.
    unmeasured: Option<Instant>,
    /// The bursts of the last inspection, and when the last of them ended.
    sample: Option<(Instant, Sample)>,
    rounds: u8,
    /// The last burst.
    burst: Option<Burst>,
    /// It is under way, and its result may come until then.
    awaited: Option<Instant>,
    /// When the next burst may be made.
    next: Option<Instant>,
    /// The pause after it.
    pause: Duration,
    /// The end of the last inspection, and the worst loss that was shown since pauses began.
    last: Option<Instant>,
    judged: f64,
    /// Since when bursts over a path with a fault find nothing.
    pub(super) clean_since: Option<Instant>,
    left: Option<Left>,
}

/// When a path with a fault was left.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    At(Instant),
    /// Longer than [`OLD`].
    LongAgo,
}

impl Quality {
    /// Takes in a round trip.
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.floor = Some(self.floor.map_or(rtt, |floor| floor.min(rtt)));
    }

    /// The path becomes the active one.
    pub(super) fn begin(&mut self) {
        *self = Self { fault: self.fault, floor: self.floor, ..Self::default() };
    }

    /// The path was left. If it works badly it must be measured before it is used again; one that seemed dead may
    /// have lost packets only.
    pub(super) fn left(&mut self, is_soft: bool, now: Instant) {
        if !is_soft {
            self.fault = self.fault.or(self.symptoms.suspicion());
        }
        self.fault = self.remembered();
        self.begin();
        self.left = Some(Left::At(now));
        self.next = Some(now + SHORTEST_PAUSE / 2);
        self.pause = SHORTEST_PAUSE;
    }

    /// The fault that is remembered of the path if it is left now.
    pub(super) fn remembered(&self) -> Option<Fault> {
        self.fault.map(|fault| fault.under(&self.symptoms))
    }

    /// What is kept of a path with a fault that is gone.
    pub(super) fn kept(&self, now: Instant) -> Option<Self> {
        let fault = Some(self.remembered()?);
        let Self { pause, next, .. } = *self;
        Some(Self {
            fault,
            pause,
            next,
            left: self.left.or(Some(Left::At(now))),
            ..Self::default()
        })
    }

    /// What must be over before this standby, beside the active path on one link or not, is used again; none if a clean
    /// burst suffices.
    fn charge(&self, is_beside: bool) -> Option<Fault> {
        match self.fault {
            _ if self.left == Some(Left::LongAgo) => None,
            // The active path tells how narrow their link is.
            Some(Fault::Narrow(_)) if is_beside => None,
            fault => fault,
        }
    }

    /// A standby answered, with this round trip, beside an active path with the other one.
    pub(super) fn answered(&mut self, rtt: Duration, active: Option<Duration>) {
        self.measured(rtt);
        self.fault = self.fault.or(standby_fault(rtt, self.floor, active));
    }

    /// Whether this standby is known to be better than an active path with this fault.
    pub(super) fn cures(&self, fault: Fault) -> bool {
        self.sample.is_some_and(|(_, sample)| fault.is_cured_by(&sample))
    }

    /// Whether this standby, which may have a fault as well, is known to be much better than an active path with this fault and
    /// round trip.
    pub(super) fn is_lesser_evil(&self, fault: Fault, rtt: Option<Duration>) -> bool {
        self.sample
            .zip(rtt)
            .is_some_and(|((_, sample), rtt)| fault.is_worse_than(rtt, &sample, self.fault))
    }

    /// By when the result of a burst comes that is under way.
    pub(super) fn awaited(&self) -> Option<Instant> {
        self.awaited
    }

    /// When a burst may be made, or its result is due at last; `paid_at` is when its link has earned what others took.
    fn deadline(&self, paid_at: Option<Instant>) -> Option<Instant> {
        self.awaited.or(self.next.max(paid_at))
    }

    /// Forgets what is too old. Pauses are so many `times` as long as usual.
    pub(super) fn expire(&mut self, now: Instant, times: u32) {
        self.sample.take_if(|(at, _)| *at + FRESH < now);
        if matches!(self.left, Some(Left::At(left)) if left + OLD <= now) {
            self.left = Some(Left::LongAgo);
        }
        if self.awaited.take_if(|at| *at <= now).is_some() {
            self.rest(now, times);
        }
    }

    /// Whether nothing is known of bursts over the path.
    fn is_unknown(&self) -> bool {
        self.awaited.is_none() && self.sample.is_none()
    }

    /// Whether this burst goes on with what the last one has just begun: a small one does not tell what the path carries.
    fn goes_on(&self, burst: Burst) -> bool {
        burst == Burst::Large && self.burst == Some(Burst::Small) && self.sample.is_some()
    }

    /// Whether a burst may be made now; it is awaited from here on.
    fn start(&mut self, burst: Burst, paid_at: Option<Instant>, now: Instant) -> bool {
        let is_due = self.next.max(paid_at).is_none_or(|at| at <= now) || self.goes_on(burst);
        if self.awaited.is_some() || !is_due {
            return false;
        }
        self.burst = Some(burst);
        if self.next.is_none_or(|next| next + FORGOTTEN < now) {
            (self.pause, self.judged) = (SHORTEST_PAUSE, 0.0);
        }
        if self.rounds == 0 {
            (self.sample, self.suspected) = (None, self.symptoms.loss);
        }
        self.awaited = Some(now + AWAITED);
        true
    }

    /// Adds a sample to those of this inspection.
    fn add(&mut self, sample: Option<Sample>, now: Instant) {
        self.awaited = None;
        let Some(sample) = sample else { return };
        if let Some(rtt) = sample.rtt {
            self.measured(rtt);
        }
        let (at, sum) = self.sample.get_or_insert((now, Sample::default()));
        *at = now;
        sum.add(sample);
    }

    /// The inspection is over; the next one may begin after a pause, so many `times` as long as usual.
    fn rest(&mut self, now: Instant, times: u32) {
        self.rounds = 0;
        self.next = Some(now + times * self.pause.max(SHORTEST_PAUSE));
        self.pause = (2 * self.pause).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.last = Some(now);
        self.judged = self.judged.max(self.suspected);
    }

    /// Makes the pause short if the losses are much worse than those that a burst did not confirm.
    fn hurry(&mut self) {
        if self.symptoms.loss > 2.0 * self.judged + 0.05
            && let (Some(last), Some(next)) = (self.last, &mut self.next)
        {
            *next = (*next).min(last + SHORTEST_PAUSE);
        }
    }
}

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
        active.is_some_and(|Path { quality, .. }| {
            let matters = |it: &Symptoms| it.is_lossy() || it.starved.is_some();
            quality.fault.is_some()
                || matters(&quality.symptoms)
                || matters(symptoms)
                || symptoms.fault(quality.floor).is_some()
        })
    }

    pub(super) fn feel(&mut self, key: PathKey, symptoms: Symptoms, now: Instant) {
        if !self.is_active(key) {
            return;
        }
        let Some(Path { quality, .. }) = self.paths.get_mut(&key) else { return };
        quality.symptoms = symptoms;
        quality.suspected = quality.suspected.max(symptoms.loss);
        quality.hurry();
        let unmeasured = symptoms.rtt.is_none().then(|| quality.unmeasured.unwrap_or(now));
        quality.unmeasured = unmeasured;
        quality.fault = match (symptoms.fault(quality.floor), quality.fault) {
            // Only a burst shows the end of losses.
            (_, lossy @ Some(Fault::Lossy(_))) => lossy,
            (Some(fault), _) => Some(fault),
            (None, Some(Fault::Slow { rtt, floor })) => {
                let is_slow = match (symptoms.rtt, unmeasured) {
                    (Some(rtt), _) => rtt >= fast_again(floor),
                    (None, since) => since.is_none_or(|since| now < since + STALE),
                };
                is_slow.then_some(Fault::Slow { rtt: symptoms.rtt.unwrap_or(rtt), floor })
            }
            (None, Some(Fault::Narrow(_)) | None) => None,
        };
    }

    pub(super) fn take_sample(&mut self, key: PathKey, sample: Option<Sample>, now: Instant) {
        let is_active = self.is_active(key);
        let active = self.active().and_then(|key| self.paths.get(&key));
        let active_rtt = active.and_then(|active| active.rtt);
        let active_link = active.map(|active| active.link.clone());
        let next_check = self.next_check(key, now);
        let Some(path) = self.paths.get_mut(&key) else { return };
        let times = pauses(path, is_active);
        let quality = &mut path.quality;
        quality.add(sample, now);
        let sum = quality.sample.map(|(_, sum)| sum);
        if is_active {
            let suspected = Symptoms { loss: quality.suspected, ..quality.symptoms };
            match suspected.finding(sum.as_ref()) {
                Finding::Unsure if quality.rounds + 1 < ROUNDS => {
                    quality.rounds += 1;
                    quality.next = Some(now);
                    return;
                }
                Finding::Bad(fault) => quality.fault = Some(fault),
                Finding::Unsure | Finding::Clean => {
                    quality.fault.take_if(|fault| matches!(fault, Fault::Lossy(_)));
                }
            }
            return quality.rest(now, times);
        }
        if let Some(rtt) = sample.and_then(|sample| sample.rtt) {
            path.rtt = Some(rtt);
            if let (State::Standby { check: Some(check @ Check::At(_)), .. }, Some(next)) =
                (&mut path.state, next_check)
            {
                *check = next;
            }
        }
        if quality.fault.is_none() {
            return quality.rest(now, times);
        }
        let charge = quality.charge(active_link.is_some_and(|link| link == path.link));
        if !sum.is_some_and(|sum| is_over(charge, &sum, quality.floor, active_rtt)) {
            quality.clean_since = None;
            return quality.rest(now, times);
        }
        let dwell = path.failures.dwell(now);
        let since = *quality.clean_since.get_or_insert(now);
        if since + dwell <= now {
            (quality.fault, quality.clean_since) = (None, None);
            quality.left = None;
        }
        quality.rounds = 0;
        quality.pause = SHORTEST_PAUSE;
        quality.next = Some(now + times * (dwell / 2).max(SHORTEST_PAUSE / 2));
    }

    /// Makes the bursts that are due.
    pub(super) fn inspect(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let last = |(key, path): (&PathKey, &Path)| (path.quality.last, *key);
        let mut paths: Vec<_> = self.paths.iter().map(last).collect();
        // Those over one link take turns.
        paths.sort_unstable();
        for (_, key) in paths {
            // What began for the paths before this one counts.
            let (wanted, paid_at, is_active) =
                (self.wanted(key), self.paid_at(key), self.is_active(key));
            if let Some(burst) = wanted
                && let Some(path) = self.paths.get_mut(&key)
                && path.quality.start(burst, paid_at, now)
            {
                if costs(path, is_active) {
                    let per_minute = self.settings.metered_bursts;
                    self.debts.spend(&path.link, burst.bytes(), per_minute, now);
                }
                actions.push(Action::Sample(key, burst));
            }
        }
    }

    /// When a burst over this path is due, or its result at last; `None` if none is wanted.
    pub(super) fn burst_due(&self, key: PathKey, path: &Path) -> Option<Instant> {
        self.wanted(key)?;
        path.quality.deadline(self.paid_at(key))
    }

    /// When what other bursts took of the budget of this path's link is earned again.
    fn paid_at(&self, key: PathKey) -> Option<Instant> {
        let path = self.paths.get(&key).filter(|path| costs(path, self.is_active(key)))?;
        self.debts.paid_at(&path.link)
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
        // Bursts over one link delay each other.
        let is_busy = |(other, it): (&PathKey, &Path)| {
            *other != key && it.link == path.link && it.quality.awaited().is_some()
        };
        if !may_serve(path) || !self.is_allowed(path) || self.paths.iter().any(is_busy) {
            return None;
        }
        let is_beside = path.link == active.link;
        // What queues on a link delays large echoes over all its paths.
        let symptoms = if is_beside { Symptoms::default() } else { active.quality.symptoms };
        let burst = match (path.quality.fault, active.quality.fault) {
            (Some(_), in_use) => {
                let burst = match in_use {
                    _ if is_beside => Burst::Small,
                    // Each may be the lesser evil.
                    Some(Fault::Narrow(_)) => Burst::Both,
                    Some(_) | None => {
                        path.quality.charge(is_beside).map_or(Burst::Small, Fault::burst_again)
                    }
                };
                self.is_of_use(path, active).then_some(burst)
            }
            (None, _) if self.is_chosen(&active.link) => None,
            (None, Some(fault)) => Some(fault.under(&symptoms).burst()),
            (None, None) if is_suspected && !path.facts.metered => {
                Some(if symptoms.starved.is_some() { Burst::Large } else { Burst::Small })
            }
            (None, None) => None,
        };
        let burst = burst.filter(|burst| {
            path.quality.fault.is_some() || path.quality.goes_on(*burst) || self.has_turn(key, path)
        });
        burst.filter(|burst| *burst == Burst::Small || !is_beside)
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
                && it.link == path.link
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
    if costs(path, is_active) { METERED } else { 1 }
}

/// Whether the session could move to this path.
fn may_serve(path: &Path) -> bool {
    matches!(path.state, State::Standby { .. }) && !path.is_stranger
}
