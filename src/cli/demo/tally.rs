//! What the session felt like, in numbers. Pure: times are handed in.

use std::time::{Duration, Instant};

/// Lines typed and echoed, in order, as TCP keeps it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    typed: Vec<Instant>,
    echoes: Vec<Duration>,
    last_echo: Option<Instant>,
    longest_stall: Duration,
}

impl Tally {
    /// Notes that a line was typed and returns its number, from 0.
    pub(super) fn line_typed(&mut self, now: Instant) -> usize {
        self.typed.push(now);
        self.typed.len() - 1
    }

    /// Notes that the oldest line without an echo got it.
    pub(super) fn line_echoed(&mut self, now: Instant) {
        let Some(&typed) = self.typed.get(self.echoes.len()) else { return };
        self.longest_stall = self.stall(now);
        self.echoes.push(now.saturating_duration_since(typed));
        self.last_echo = Some(now);
    }

    pub(super) fn typed(&self) -> usize {
        self.typed.len()
    }

    pub(super) fn echoed(&self) -> usize {
        self.echoes.len()
    }

    /// How many lines have had no echo yet.
    pub(super) fn waiting(&self) -> usize {
        self.typed.len() - self.echoes.len()
    }

    /// The longest time so far in which the user waited for something and nothing came, the
    /// present wait included.
    pub(super) fn stall(&self, now: Instant) -> Duration {
        let Some(&typed) = self.typed.get(self.echoes.len()) else { return self.longest_stall };
        let since = self.last_echo.map_or(typed, |echo| echo.max(typed));
        self.longest_stall.max(now.saturating_duration_since(since))
    }

    /// The median time from a line to its echo, from line number `from` on.
    pub(super) fn median_echo_since(&self, from: usize) -> Option<Duration> {
        median(self.echoes.get(from..)?.to_vec())
    }

    /// The same of lines that were typed at certain times.
    pub(super) fn median_echo_when(&self, counts: impl Fn(Instant) -> bool) -> Option<Duration> {
        median(self.echoes().filter(|(typed, _)| counts(*typed)).map(|(_, took)| took).collect())
    }

    /// The longest stall between `from` and `to`, by when it ended.
    pub(super) fn stall_between(&self, from: Instant, to: Instant) -> Duration {
        let ended = |(number, (&typed, &took)): (usize, (&Instant, &Duration))| {
            let echoed = typed + took;
            let before = number.checked_sub(1).map(|it| self.typed[it] + self.echoes[it]);
            let since = before.map_or(typed, |before| before.max(typed)).max(from);
            ((from..to).contains(&echoed)).then(|| echoed.saturating_duration_since(since))
        };
        self.typed.iter().zip(&self.echoes).enumerate().filter_map(ended).max().unwrap_or_default()
    }

    /// When each line was typed that came back, and how long it took.
    pub(super) fn echoes(&self) -> impl Iterator<Item = (Instant, Duration)> {
        self.typed.iter().copied().zip(self.echoes.iter().copied())
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
            tally.line_echoed(start + (number * 100 + 10 + number) * MS);
        }
        assert_eq!(tally.stall(start + 1000 * MS), 12 * MS);
        assert_eq!(tally.median_echo_since(0), Some(11 * MS));
        assert_eq!(tally.median_echo_since(2), Some(12 * MS));
        assert_eq!(tally.median_echo_since(3), None);
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
        assert_eq!(tally.stall(start + 450 * MS), 450 * MS);
        for _ in 0..5 {
            tally.line_echoed(start + 500 * MS);
        }
        assert_eq!(tally.waiting(), 0);
        assert_eq!(tally.stall(start + 9000 * MS), 500 * MS);
    }

    #[test]
    fn a_stall_counts_in_the_interval_in_which_it_ends() {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..5 {
            tally.line_typed(start + number * 100 * MS);
        }
        tally.line_echoed(start + 20 * MS);
        for _ in 1..5 {
            tally.line_echoed(start + 500 * MS);
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
        for number in 1..=10 {
            tally.line_echoed(start + number * 50 * MS);
        }
        assert_eq!(tally.stall(start + 500 * MS), 50 * MS);
    }
}
