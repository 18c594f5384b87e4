//! When recorded events happened, although the clock may have jumped meanwhile.
//!
//! ```text
//!  the clock    10:00 ── 10:10 ──▶ March ── March ──▶ 10:25 ── 10:30      ahead for a while: a battery was weak
//!  the time     10:00 ── 10:10 ──▶ 10:15 ── 10:25 ──▶ 10:25 ── 10:30
//! ```
//! A clock that is wrong for a while steps ahead and back, or back and ahead. So each step back is taken off the last step ahead
//! that was as long, or else off the next one of about its length; what is left of both is the time that passed. The last event's clock is right.

use std::time::{Duration, SystemTime};

/// 2026-01-01: no roamd is older, so that a clock that is behind this day steps ahead without time that passes.
const FIRST_DAY: Duration = Duration::from_secs(20_454 * 24 * 3600);

/// The time of a record. Moments are as if no step ahead was one of the clock's, until [`Self::straighten`].
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// The last event, as its clock said and as a moment.
    last: Option<(SystemTime, SystemTime)>,
    /// The moments after steps ahead, each longer than the next one, and what is left of them.
    steps: Vec<(SystemTime, Duration)>,
    /// What was taken off them.
    cuts: Vec<(SystemTime, Duration)>,
    /// Steps back that no step ahead belongs to so far.
    behind: Duration,
}

impl Timeline {
    /// The moment of the next event, of which the clock says `clock`. It is never before the last one.
    pub(super) fn pass(&mut self, clock: SystemTime) -> SystemTime {
        let moment = match self.last {
            None => clock,
            Some((before, moment)) => match clock.duration_since(before) {
                Ok(step) => {
                    let step = self.step(before, step);
                    let then = moment.checked_add(step).unwrap_or(moment);
                    self.keep(then, step);
                    then
                }
                Err(back) => {
                    self.take_off(back.duration());
                    moment
                }
            },
        };
        self.last = Some((clock, moment));
        moment
    }

    /// What is left of a step ahead.
    fn step(&mut self, before: SystemTime, step: Duration) -> Duration {
        let first = SystemTime::UNIX_EPOCH + FIRST_DAY;
        // A longer one is a night after a record that began with a clock ahead.
        let is_alike = before < first || step < self.behind.saturating_mul(2);
        if !self.behind.is_zero() && step >= self.behind && is_alike {
            return step - std::mem::take(&mut self.behind);
        }
        let is_absurd = before < first && step >= first.duration_since(before).unwrap_or_default();
        if is_absurd { Duration::ZERO } else { step }
    }

    fn keep(&mut self, then: SystemTime, step: Duration) {
        // A step back finds a later and longer one first.
        while self.steps.pop_if(|(_, shorter)| *shorter <= step).is_some() {}
        self.steps.push((then, step));
    }

    fn take_off(&mut self, back: Duration) {
        while self.steps.pop_if(|(_, shorter)| *shorter < back).is_some() {}
        match self.steps.last_mut() {
            Some((then, left)) => {
                *left -= back;
                self.cuts.push((*then, back));
            }
            None => self.behind = self.behind.saturating_add(back),
        }
    }

    /// Says of moments when they were.
    pub(super) fn straighten(&self) -> impl Fn(SystemTime) -> SystemTime + use<> {
        let mut cuts = self.cuts.clone();
        cuts.sort_unstable();
        let mut sum = Duration::ZERO;
        for (_, cut) in &mut cuts {
            sum = sum.saturating_add(*cut);
            *cut = sum;
        }
        let cut = move |moment: SystemTime| {
            let before = cuts.partition_point(|(then, _)| *then <= moment);
            let cut = before.checked_sub(1).map(|last| cuts[last].1).unwrap_or_default();
            moment.checked_sub(cut).unwrap_or(moment)
        };
        let (clock, last) = self.last.unwrap_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH));
        let last = cut(last);
        move |moment| {
            let age = last.duration_since(cut(moment)).unwrap_or_default();
            clock.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60;
    const DAY: u64 = 24 * 3600;
    /// 2026-11-23.
    const TODAY: u64 = 20_780 * DAY;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// When events happened whose clock said this.
    fn straight(clock: &[u64]) -> Vec<i64> {
        let mut timeline = Timeline::default();
        let moments: Vec<_> = clock.iter().map(|it| timeline.pass(at(*it))).collect();
        assert!(moments.is_sorted());
        let straighten = timeline.straighten();
        let seconds = |it: SystemTime| match it.duration_since(at(0)) {
            Ok(after) => after.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        };
        moments.into_iter().map(|it| seconds(straighten(it))).collect()
    }

    /// The same in minutes of one day.
    fn minutes(clock: &[u64]) -> Vec<u64> {
        let found = straight(&clock.iter().map(|it| it * MINUTE).collect::<Vec<_>>());
        found.into_iter().map(|it| it as u64 / MINUTE).collect()
    }

    #[test]
    fn a_clock_that_is_right_is_believed() {
        let clock = [0, 0, 10, 500, 501, 200 * 24 * 60].map(|it| TODAY / MINUTE + it);
        assert_eq!(minutes(&clock), clock);
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_while_takes_no_time() {
        let (t, ahead) = (TODAY / MINUTE, 100 * 24 * 60);
        let clock = [0, 10, ahead + 15, ahead + 20, 25, 30].map(|it| t + it);
        // The way back is somewhere in the five minutes before it.
        assert_eq!(minutes(&clock), [0, 10, 20, 25, 25, 30].map(|it| t + it));
    }

    #[test]
    fn a_clock_that_was_ahead_from_the_beginning_is_not_believed() {
        let (t, ahead) = (TODAY / MINUTE, 100 * 24 * 60);
        let clock = [ahead, ahead + 10, 15, 30].map(|it| t + it);
        assert_eq!(minutes(&clock), [5, 15, 15, 30].map(|it| t + it));
    }

    #[test]
    fn a_record_that_begins_with_a_clock_ahead_keeps_its_first_night() {
        let t = TODAY / MINUTE;
        // Local time until a time server answers, at work until 22:00, and the next morning.
        let clock = [720, 721, 602, 1320, 1920].map(|it| t + it);
        assert_eq!(minutes(&clock), [601, 602, 602, 1320, 1920].map(|it| t + it));
    }

    #[test]
    fn a_clock_that_was_behind_for_a_while_takes_no_time() {
        let t = TODAY / MINUTE;
        let clock = [600, 480, 490, 620].map(|it| t + it);
        assert_eq!(minutes(&clock), [600, 600, 610, 620].map(|it| t + it));
    }

    #[test]
    fn a_machine_that_begins_in_1970_each_time_loses_no_night() {
        let t = TODAY / MINUTE;
        let clock = [0, 1, t, t + 60, 0, 1, t + 600, t + 660, 0, t + 670];
        let expected = [t - 1, t, t, t + 60, t + 60, t + 61, t + 600, t + 660, t + 660, t + 670];
        assert_eq!(minutes(&clock), expected);
    }

    #[test]
    fn what_one_step_ahead_was_is_taken_off_it_and_a_night_stays() {
        // The battery's clock keeps local time: two hours ahead until a time server answers.
        let t = TODAY / MINUTE;
        let clock = [0, 600, 601, 600 + 720 + 120, 600 + 721].map(|it| t + it);
        assert_eq!(minutes(&clock), [0, 600, 601, 600 + 721, 600 + 721].map(|it| t + it));
    }

    proptest! {
        /// Whatever it says: in order, the last event when its clock says, and no longer than all steps ahead.
        #[test]
        fn any_record_has_a_time(
            clock in prop::collection::vec(prop_oneof![0..TODAY * 3, TODAY..TODAY + 1000], 1..200),
        ) {
            let found = straight(&clock);
            prop_assert!(found.is_sorted());
            prop_assert_eq!(found.last().copied(), clock.last().map(|it| *it as i64));
            let ahead: u64 = clock.windows(2).map(|it| it[1].saturating_sub(it[0])).sum();
            prop_assert!(found[found.len() - 1] - found[0] <= ahead as i64);
        }
    }
}
