//! What the session felt like, in numbers. Pure: times are handed in.

use std::time::{Duration, Instant};

/// Nobody feels a pause below this.
pub(crate) const UNNOTICED: Duration = Duration::from_millis(300);

/// Lines typed, and their echoes. Over a datagram protocol some may never come, or late.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lines: Vec<Line>,
    echoed: usize,
    /// The first line after all that were echoed.
    next: usize,
    last_echo: Option<Instant>,
    /// Of each echo that was waited for: since when, and until when.
    waits: Vec<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    typed: Instant,
    took: Option<Duration>,
}

impl Tally {
    /// Notes that a line was typed and returns its number, from 0.
    pub(crate) fn line_typed(&mut self, now: Instant) -> usize {
        self.lines.push(Line { typed: now, took: None });
        self.lines.len() - 1
    }

    /// Notes the echo of the line with this number. A second one changes nothing.
    pub(crate) fn line_echoed(&mut self, number: usize, now: Instant) {
        let missed = self.missed_since();
        let Some(line @ Line { took: None, .. }) = self.lines.get_mut(number) else { return };
        line.took = Some(now.saturating_duration_since(line.typed));
        self.echoed += 1;
        if number >= self.next {
            self.waits.extend(missed.map(|since| (since, now)));
            self.next = number + 1;
        }
        self.last_echo = Some(now);
    }

    pub(crate) fn typed(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn echoed(&self) -> usize {
        self.echoed
    }

    /// How many lines have had no echo yet.
    #[cfg(any(test, feature = "demo"))]
    pub(crate) fn waiting(&self) -> usize {
        self.lines.len() - self.echoed
    }

    /// Since when the user waits and nothing came.
    fn missed_since(&self) -> Option<Instant> {
        let typed = self.lines.get(self.next)?.typed;
        Some(self.last_echo.map_or(typed, |echo| echo.max(typed)))
    }

    /// The longest time since `from` in which the user waited and nothing came, the present wait included.
    pub(crate) fn stall(&self, from: Instant, now: Instant) -> Duration {
        let present =
            self.missed_since().map(|since| now.saturating_duration_since(since.max(from)));
        let ended = self.waits.iter().filter(|(_, until)| *until >= from);
        let ended = ended.map(|(since, until)| until.saturating_duration_since((*since).max(from)));
        ended.chain(present).max().unwrap_or_default()
    }

    /// The longest stall between `from` and `to`, by when it ended.
    #[cfg(any(test, feature = "demo"))]
    pub(crate) fn stall_between(&self, from: Instant, to: Instant) -> Duration {
        let ended = self.waits.iter().filter(|(_, until)| (from..to).contains(until));
        let length = |(since, until): &(Instant, Instant)| *until - (*since).max(from);
        ended.map(length).max().unwrap_or_default()
    }

    /// Whether a line from this number on was echoed.
    pub(crate) fn has_echo_since(&self, number: usize) -> bool {
        self.next > number
    }

    /// The median time from a line to its echo, of those that were typed at certain times.
    pub(crate) fn median_echo_when(&self, counts: impl Fn(Instant) -> bool) -> Option<Duration> {
        median(self.echoes().filter(|(typed, _)| counts(*typed)).map(|(_, took)| took).collect())
    }

    /// How many lines were typed between `from` and `to`, and how many of them came back.
    pub(crate) fn lines_between(&self, from: Instant, to: Instant) -> (usize, usize) {
        let lines = self.lines.iter().filter(|line| (from..to).contains(&line.typed));
        lines.fold((0, 0), |(typed, echoed), line| {
            (typed + 1, echoed + usize::from(line.took.is_some()))
        })
    }

    /// When each line was typed that came back, and how long it took.
    pub(crate) fn echoes(&self) -> impl Iterator<Item = (Instant, Duration)> {
        self.lines.iter().filter_map(|line| Some((line.typed, line.took?)))
    }
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    let middle = times.len() / 2;
    (!times.is_empty()).then(|| *times.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_stall_the_longest_echo_is_reported() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..3 {
            tally.line_typed(start + number * 100 * MS);
            tally.line_echoed(number as usize, start + (number * 100 + 10 + number) * MS);
        }
        assert_eq!(tally.stall(start, start + 1000 * MS), 12 * MS);
        assert_eq!(tally.median_echo_when(|_| true), Some(11 * MS));
        assert_eq!(tally.median_echo_when(|typed| typed == start), Some(10 * MS));
        assert_eq!(tally.median_echo_when(|typed| typed < start), None);
    }

    #[test]
    fn a_stall_lasts_from_the_first_line_that_waits_to_the_first_echo() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..5 {
            tally.line_typed(start + number * 100 * MS);
        }
        assert_eq!(tally.stall(start, start + 450 * MS), 450 * MS);
        assert_eq!(tally.stall(start + 400 * MS, start + 450 * MS), 50 * MS);
        for number in 0..5 {
            tally.line_echoed(number, start + 500 * MS);
        }
        assert_eq!(tally.waiting(), 0);
        assert_eq!(tally.stall(start, start + 9000 * MS), 500 * MS);
        assert_eq!(tally.stall(start + 600 * MS, start + 9000 * MS), Duration::ZERO);
    }

    #[test]
    fn a_stall_counts_in_the_interval_in_which_it_ends() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..5 {
            tally.line_typed(start + number * 100 * MS);
        }
        tally.line_echoed(0, start + 20 * MS);
        for number in 1..5 {
            tally.line_echoed(number, start + 500 * MS);
        }
        assert_eq!(tally.stall_between(start, start + 100 * MS), 20 * MS);
        assert_eq!(tally.stall_between(start + 100 * MS, start + 900 * MS), 400 * MS);
        assert_eq!(tally.stall_between(start + 300 * MS, start + 900 * MS), 200 * MS);
        assert_eq!(tally.stall_between(start + 600 * MS, start + 900 * MS), Duration::ZERO);
    }

    #[test]
    fn echoes_that_trickle_are_no_stall() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for _ in 0..10 {
            tally.line_typed(start);
        }
        for number in 0..10 {
            tally.line_echoed(number as usize, start + (number + 1) * 50 * MS);
        }
        assert_eq!(tally.stall(start, start + 500 * MS), 50 * MS);
    }

    #[test]
    fn lines_that_are_lost_are_waited_for_until_the_next_echo_and_no_longer() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..6 {
            tally.line_typed(start + number * 100 * MS);
        }
        tally.line_echoed(0, start + 20 * MS);
        // Lines 1 to 3 are lost.
        tally.line_echoed(4, start + 420 * MS);
        tally.line_echoed(5, start + 520 * MS);
        tally.line_echoed(5, start + 530 * MS);
        assert_eq!(tally.stall_between(start, start + 9000 * MS), 320 * MS);
        assert_eq!(tally.stall_between(start + 450 * MS, start + 9000 * MS), 20 * MS);
        assert_eq!((tally.echoed(), tally.waiting()), (3, 3));
        assert_eq!(tally.lines_between(start + 100 * MS, start + 500 * MS), (4, 1));
        // One was only late.
        tally.line_echoed(2, start + 900 * MS);
        assert_eq!(tally.stall(start, start + 9000 * MS), 320 * MS);
        assert_eq!(tally.waiting(), 2);
    }
}
