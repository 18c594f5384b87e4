//! Where in the queue losses happen, as the packets tell that were sent at about the same time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Losses with a known place in the queue that make a verdict, of [`REMEMBERED`].
const EVIDENCE: u32 = 8;
const REMEMBERED: u32 = 16;
/// A loss is at a full queue if its neighbour waited for so much of the longest wait of late.
const FULL: f64 = 0.75;
/// The longest wait that is no accident, as a percentile.
const LONG: usize = 90;
/// A queue that is never longer than this says nothing.
const SHORTEST_QUEUE: Duration = Duration::from_millis(1);
/// Round trips that are remembered, two of each round, and how many are enough.
const WAITS: usize = 128;
const FEW_WAITS: usize = 16;
/// So many neighbours of lost packets are remembered of each round trip, and so many in all: a loss is found two round
/// trips after the packet was sent at the latest, but for the end of what is sent.
const NEIGHBOURS: u32 = 64;
const MOST_NEIGHBOURS: usize = 256;

/// Where in the queue losses happen.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Round trips of late in microseconds.
    waits: [u32; WAITS],
    samples: usize,
    sampled: Option<Instant>,
    /// When some packets of the last round trips were sent, in order, and how long they took.
    neighbours: VecDeque<(Instant, Duration)>,
    /// A bit for each loss, the newest lowest: whether it was at a full queue.
    history: u32,
    losses: u32,
    /// Losses of the same moment are one.
    judged: Option<Instant>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            waits: [0; WAITS],
            samples: 0,
            sampled: None,
            neighbours: VecDeque::new(),
            history: 0,
            losses: 0,
            judged: None,
        }
    }
}

impl Places {
    pub(super) fn sample(&mut self, now: Instant, rtt: Duration) {
        let Some(sent) = now.checked_sub(rtt) else { return };
        let newest = self.neighbours.back().map(|(newest, _)| *newest);
        if newest.is_none_or(|newest| sent >= newest + rtt / NEIGHBOURS) {
            if self.neighbours.len() == MOST_NEIGHBOURS {
                self.neighbours.pop_front();
            }
            self.neighbours.push_back((sent, rtt));
        }
        if self.sampled.is_none_or(|at| now.saturating_duration_since(at) >= rtt / 2) {
            self.sampled = Some(now);
            self.waits[self.samples % WAITS] = rtt.as_micros().min(u128::from(u32::MAX)) as u32;
            self.samples += 1;
        }
    }

    /// How long the neighbour took of a packet that was sent at `sent`.
    pub(super) fn neighbour(&self, sent: Instant) -> Option<Duration> {
        let after = self.neighbours.partition_point(|(at, _)| *at < sent);
        let near = self.neighbours.range(after.saturating_sub(1)..).take(2);
        near.min_by_key(|(at, _)| at.max(&sent).duration_since(*at.min(&sent))).map(|(_, rtt)| *rtt)
    }

    /// Whether the neighbour of a packet that was sent at `sent` and lost met a full queue.
    pub(super) fn judge(&mut self, sent: Instant, base: Duration) -> bool {
        let mut waits = self.waits;
        let waits = &mut waits[..self.samples.min(WAITS)];
        let long = waits.len() * LONG / 100;
        let Some(took) = self.neighbour(sent).filter(|_| !waits.is_empty()) else { return false };
        let (_, longest, _) = waits.select_nth_unstable(long);
        let longest = Duration::from_micros(u64::from(*longest)).saturating_sub(base);
        let is_full =
            longest >= SHORTEST_QUEUE && took.saturating_sub(base) >= longest.mul_f64(FULL);
        let is_new = self.judged.is_none_or(|at| sent > at + took / 2);
        if self.samples >= FEW_WAITS && is_new {
            self.judged = Some(sent);
            self.history = self.history << 1 | u32::from(is_full);
            self.losses = (self.losses + 1).min(REMEMBERED);
        }
        is_full
    }

    /// Whether there is enough evidence.
    pub(super) fn are_known(&self) -> bool {
        self.losses >= EVIDENCE
    }

    /// Whether losses are taken for overflows: after enough evidence, or at once beside somebody who fills the
    /// queue until there is evidence to the contrary.
    pub(super) fn verdict(&self, competes: bool) -> bool {
        let full = (self.history & ((1 << REMEMBERED) - 1)).count_ones();
        if !self.are_known() {
            competes
        } else if competes {
            2 * full >= self.losses
        } else {
            4 * full >= 3 * self.losses
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_neighbour_of_a_lost_packet_was_sent_at_about_the_same_time() {
        let (mut places, start) = (Places::default(), Instant::now());
        for (sent, rtt) in [(0, 40), (10, 48), (20, 56), (15, 90), (30, 41)] {
            places.sample(start + (sent + rtt) * MS, rtt * MS);
        }
        for (sent, rtt) in [(0, 40), (11, 48), (19, 56), (29, 41), (99, 41)] {
            assert_eq!(places.neighbour(start + sent * MS), Some(rtt * MS), "{sent}");
        }
    }
}
