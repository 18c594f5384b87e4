//! What is known of the quality of one path: what its packets and bursts showed, and when the next burst may be made.

use std::time::{Duration, Instant};

use crate::path::quality::{
    Burst, Fault, Finding, Sample, Symptoms, fast_again, is_over, standby_fault,
};

/// The result of a burst comes by then, or not at all.
const AWAITED: Duration = Duration::from_millis(6000);
/// From one inspection of a path to the next, doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
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
    /// The fault is remembered, and nothing has shown it since.
    is_recalled: bool,
    /// The shortest round trip that was measured.
    pub(super) floor: Option<Duration>,
    /// What its packets show at present, if it is the active path.
    pub(super) symptoms: Symptoms,
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
    pub(super) last: Option<Instant>,
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

/// What is kept of a path with a fault that is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kept {
    fault: Fault,
    left: Left,
    pause: Duration,
    next: Option<Instant>,
}

impl Quality {
    /// Takes in a round trip.
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.floor = Some(self.floor.map_or(rtt, |floor| floor.min(rtt)));
    }

    /// The path becomes the active one.
    pub(super) fn begin(&mut self) {
        let Self { fault, is_recalled, floor, .. } = *self;
        *self = Self { fault, is_recalled, floor, ..Self::default() };
    }

    /// The same with a path that is not known: its packets will tell what it is like.
    pub(super) fn begin_anew(&mut self) {
        self.find(None);
        self.begin();
    }

    /// This is what shows now.
    fn find(&mut self, fault: Option<Fault>) {
        (self.fault, self.is_recalled) = (fault, false);
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

    /// What is to be kept of a path that is gone, if something of its own is.
    pub(super) fn kept(&self, now: Instant) -> Option<Kept> {
        let fault = self.remembered().filter(|_| !self.is_recalled)?;
        let Self { pause, next, .. } = *self;
        Some(Kept { fault, left: self.left.unwrap_or(Left::At(now)), pause, next })
    }

    /// This was kept of the path.
    pub(super) fn recall(&mut self, Kept { fault, left, pause, next }: Kept) {
        (self.fault, self.is_recalled) = (Some(fault), true);
        (self.left, self.pause, self.next) = (Some(left), pause, next);
    }

    /// That is of another network; a burst that is under way is not. Returns whether it still counted.
    pub(super) fn disown(&mut self) -> bool {
        let is_recalled = self.is_recalled;
        if is_recalled {
            self.find(None);
            (self.clean_since, self.left) = (None, None);
            (self.pause, self.next) = (Duration::ZERO, None);
        }
        is_recalled
    }

    /// The fault with which this standby, beside the active path on one link or not, is judged at present: what must be over
    /// before it is used again, and what it costs. None if its bursts alone tell.
    pub(super) fn charge(&self, is_beside: bool) -> Option<Fault> {
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
        if self.fault.is_none() {
            self.find(standby_fault(rtt, self.floor, active));
        }
    }

    /// Whether these symptoms of the active path, or their end, matter.
    pub(super) fn minds(&self, symptoms: &Symptoms) -> bool {
        let matters = |it: &Symptoms| it.is_lossy() || it.starved.is_some();
        self.fault.is_some()
            || matters(&self.symptoms)
            || matters(symptoms)
            || symptoms.fault(self.floor).is_some()
    }

    /// Takes in what the packets of the active path show.
    pub(super) fn feel(&mut self, symptoms: Symptoms, now: Instant) {
        self.symptoms = symptoms;
        self.suspected = self.suspected.max(symptoms.loss);
        self.hurry();
        let unmeasured = symptoms.rtt.is_none().then(|| self.unmeasured.unwrap_or(now));
        self.unmeasured = unmeasured;
        let fault = match (symptoms.fault(self.floor), self.fault) {
            // Only a burst shows the end of losses.
            (_, Some(Fault::Lossy(_))) => {
                self.is_recalled &= !symptoms.is_surely_lossy();
                return;
            }
            (Some(fault), _) => Some(fault),
            (None, Some(Fault::Slow { floor, .. })) => match symptoms.rtt {
                Some(rtt) => (rtt >= fast_again(floor)).then_some(Fault::Slow { rtt, floor }),
                None if unmeasured.is_none_or(|since| now < since + STALE) => return,
                None => None,
            },
            (None, Some(Fault::Narrow(_)) | None) => None,
        };
        self.find(fault);
    }

    /// Whether this standby is known to be better than an active path with this fault.
    pub(super) fn cures(&self, fault: Fault) -> bool {
        self.sample.is_some_and(|(_, sample)| fault.is_cured_by(&sample))
    }

    /// Whether this standby, which may have a fault as well, is known to be much better than an active path with this fault and
    /// round trip, on one link with it or not.
    pub(super) fn is_lesser_evil(
        &self,
        fault: Fault,
        rtt: Option<Duration>,
        is_beside: bool,
    ) -> bool {
        let charge = self.charge(is_beside);
        self.sample
            .zip(rtt)
            .is_some_and(|((_, sample), rtt)| fault.is_worse_than(rtt, &sample, charge))
    }

    /// By when the result of a burst comes that is under way.
    pub(super) fn awaited(&self) -> Option<Instant> {
        self.awaited
    }

    /// A burst that is under way has no result any more.
    pub(super) fn abandon(&mut self) {
        self.awaited = None;
    }

    /// When this burst may be made, which its link allows from then on; `None` for at once.
    pub(super) fn due(&self, burst: Burst, allowed_at: Option<Instant>) -> Option<Instant> {
        self.next.filter(|_| !self.goes_on(burst)).max(allowed_at)
    }

    /// Forgets what is too old. Pauses are so many `times` as long as usual.
    pub(super) fn expire(&mut self, now: Instant, times: u32) {
        self.sample.take_if(|(at, _)| *at + FRESH <= now);
        if matches!(self.left, Some(Left::At(left)) if left + OLD <= now) {
            self.left = Some(Left::LongAgo);
        }
        if self.awaited.take_if(|at| *at <= now).is_some() {
            self.rest(now, times);
        }
    }

    /// When something is too old: then another path may have its turn, or this one be judged more mildly.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        let sample = self.sample.map(|(at, _)| at + FRESH);
        let left = match self.left {
            Some(Left::At(left)) => Some(left + OLD),
            Some(Left::LongAgo) | None => None,
        };
        [sample, left].into_iter().flatten().min()
    }

    /// Whether nothing is known of bursts over the path. One that was cut short shows nothing.
    pub(super) fn is_unknown(&self) -> bool {
        self.awaited.is_none() && self.sample.is_none_or(|(_, sample)| sample.sent == 0)
    }

    /// Whether little is carried over this active path while something seems to be wrong with it.
    fn is_short(&self) -> bool {
        let is_suspected = self.fault.is_some() || self.symptoms.is_lossy();
        matches!(self.fault, Some(Fault::Narrow(_)))
            || is_suspected && self.symptoms.starved.is_some()
    }

    /// Which burst over this standby, beside the active path on one link or not, tells what is to be known of it: small
    /// echoes what it loses and how long it takes, large ones what it carries, which matters where one of the two carries
    /// little. Without a fault that is all; with one it must be clean as well.
    pub(super) fn burst(&self, active: &Self, is_beside: bool) -> Option<Burst> {
        if is_beside {
            // What queues on a link delays large echoes over all its paths, and small ones do not tell what it carries.
            let tells = self.fault.is_some() || !matches!(active.fault, Some(Fault::Narrow(_)));
            return tells.then_some(Burst::Small);
        }
        let needs_rate =
            active.is_short() || matches!(self.charge(is_beside), Some(Fault::Narrow(_)));
        Some(match self.fault {
            _ if !needs_rate => Burst::Small,
            Some(_) => Burst::Both,
            None => Burst::Large,
        })
    }

    /// Whether this burst goes on with what the last one has just begun: a small one does not tell what the path carries.
    pub(super) fn goes_on(&self, burst: Burst) -> bool {
        burst == Burst::Large && self.burst == Some(Burst::Small) && self.sample.is_some()
    }

    /// Whether this burst, which its link allows from then on, is made now; it is awaited from here on.
    pub(super) fn start(
        &mut self,
        burst: Burst,
        allowed_at: Option<Instant>,
        now: Instant,
    ) -> bool {
        let is_due = self.due(burst, allowed_at).is_none_or(|due| due <= now);
        if self.awaited.is_some() || !is_due {
            return false;
        }
        self.burst = Some(burst);
        // While it waited for its budget, its turn had come.
        let turn = self.next.map(|next| allowed_at.map_or(next, |at| at.max(next)));
        if turn.is_none_or(|turn| turn + FORGOTTEN < now) {
            (self.pause, self.judged) = (SHORTEST_PAUSE, 0.0);
        }
        if self.rounds == 0 {
            (self.sample, self.suspected) = (None, self.symptoms.loss);
        }
        self.awaited = Some(now + AWAITED);
        true
    }

    /// Adds a sample to those of this inspection.
    pub(super) fn add(&mut self, sample: Option<Sample>, now: Instant) {
        self.awaited = None;
        let Some(sample) = sample else { return };
        if let Some(rtt) = sample.rtt {
            self.measured(rtt);
        }
        let (at, sum) = self.sample.get_or_insert((now, Sample::default()));
        *at = now;
        sum.add(sample);
    }

    /// What the bursts over the active path say of it.
    pub(super) fn judge_active(&mut self, times: u32, now: Instant) {
        let suspected = Symptoms { loss: self.suspected, ..self.symptoms };
        let sum = self.sample.map(|(_, sum)| sum);
        match suspected.finding(sum.as_ref()) {
            Finding::Unsure if self.rounds + 1 < ROUNDS => {
                self.rounds += 1;
                self.next = Some(now);
                return;
            }
            Finding::Bad(fault) => self.find(Some(fault)),
            Finding::Unsure | Finding::Clean => {
                if matches!(self.fault, Some(Fault::Lossy(_))) {
                    self.find(None);
                }
            }
        }
        self.rest(now, times);
    }

    /// What the bursts say of a standby, beside the active path on one link or not, which has the other round trip. It must be
    /// clean for its dwell time.
    pub(super) fn judge_standby(
        &mut self,
        (is_beside, active): (bool, Option<Duration>),
        dwell: Duration,
        times: u32,
        now: Instant,
    ) {
        let charge = self.charge(is_beside);
        let is_clean = |sum: Sample| is_over(charge, &sum, self.floor, active);
        if self.fault.is_none() || !self.sample.is_some_and(|(_, sum)| is_clean(sum)) {
            self.clean_since = None;
            self.is_recalled &= self.sample.is_none_or(|(_, sum)| sum.sent == 0);
            return self.rest(now, times);
        }
        let since = *self.clean_since.get_or_insert(now);
        if since + dwell <= now {
            self.find(None);
            (self.clean_since, self.left) = (None, None);
        }
        (self.rounds, self.last) = (0, Some(now));
        self.pause = SHORTEST_PAUSE;
        self.next = Some(now + times * (dwell / 2).max(SHORTEST_PAUSE / 2));
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
