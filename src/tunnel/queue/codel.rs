//! CoDel (RFC 8289): detects a standing queue by how long its packets waited.

use std::time::{Duration, Instant};

/// The acceptable wait, and that as a part of a long round trip. RFC 8289 §4.2 suggests 5 ms for queues that flows share. Here each flow has its own
/// queue, and waiting packets are ready when the connection migrates to a path with a longer round trip.
const TARGET: Duration = Duration::from_millis(20);
const TARGET_PART: u32 = 10;
/// A wait that stays above the target for this time, or for a longer round trip, is a standing queue (RFC 8289 §4.2).
const INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// While losses are repaired, a lost packet holds up its flow for one round trip more, and for two if the repair is lost as
/// well. Then all that was held is delivered at once, and so are its acknowledgements and what these let out. So senders
/// react later by so many round trips, and as much waits without standing.
const HELD_UP: u32 = 2;
/// The same at least.
const SHORTEST_HELD_UP: Duration = Duration::from_millis(60);

/// What is no standing queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    /// A wait of less.
    pub(super) target: Duration,
    /// A wait that is longer for less than this.
    pub(super) interval: Duration,
}

impl Tolerance {
    /// However long packets wait.
    pub(super) const ANY: Self = Self { target: Duration::MAX, interval: LONGEST_INTERVAL };

    /// On a path with this round trip: senders need one to react, and a burst of a window needs one to pass.
    pub(super) fn of(rtt: Duration) -> Self {
        let interval = rtt.clamp(INTERVAL, LONGEST_INTERVAL);
        Self { target: TARGET.max(interval / TARGET_PART), interval }
    }

    /// The same while losses are repaired.
    pub(super) fn of_repaired(rtt: Duration) -> Self {
        let held_up = HELD_UP * rtt;
        Self { target: SHORTEST_HELD_UP.max(held_up), ..Self::of(rtt + held_up) }
    }
}

/// The state of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codel {
    /// The time at which the wait will have been above the target for one interval.
    stands_at: Option<Instant>,
    dropping: Option<Dropping>,
    last: Option<Dropping>,
}

#[derive(Clone, Copy, Debug)]
struct Dropping {
    next: Instant,
    count: u32,
    /// The count at the start of this dropping episode.
    began_with: u32,
}

impl Codel {
    /// Whether the packet at the head, which waited for `wait`, must signal congestion to its
    /// sender. `short` says that the queue holds hardly more than this packet.
    pub(super) fn signals(
        &mut self,
        wait: Duration,
        tolerance: Tolerance,
        short: bool,
        now: Instant,
    ) -> bool {
        let Tolerance { target, interval } = tolerance;
        if wait < target || short {
            self.stands_at = None;
            self.last = self.dropping.take().or(self.last);
            return false;
        }
        let stands_at = *self.stands_at.get_or_insert(now + interval);
        if now < stands_at {
            return false;
        }
        match &mut self.dropping {
            Some(dropping) if now < dropping.next => false,
            Some(dropping) => {
                dropping.count += 1;
                dropping.next += pace(interval, dropping.count);
                true
            }
            None => {
                // An episode soon after another one goes on where that one ended (RFC 8289 §5.5).
                let count = match self.last {
                    Some(last) if now.saturating_duration_since(last.next) < 16 * interval => {
                        last.count.saturating_sub(last.began_with).max(1)
                    }
                    _ => 1,
                };
                self.dropping =
                    Some(Dropping { next: now + pace(interval, count), count, began_with: count });
                true
            }
        }
    }
}

/// The time from one signal to the next; it shrinks with each signal (RFC 8289 §3.2).
fn pace(interval: Duration, count: u32) -> Duration {
    interval.div_f64(f64::from(count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const USUAL: Tolerance = Tolerance { target: TARGET, interval: INTERVAL };

    #[test]
    fn a_burst_that_drains_within_the_interval_is_left_alone() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        for at in 0..90 {
            assert!(!codel.signals(50 * MS, USUAL, false, start + at * MS));
        }
        assert!(!codel.signals(MS, USUAL, false, start + 95 * MS));
        assert!(
            !codel.signals(50 * MS, USUAL, false, start + 110 * MS),
            "the interval begins anew"
        );
    }

    #[test]
    fn a_standing_queue_is_signalled_at_shrinking_intervals() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let signals: Vec<_> =
            (0..1000).filter(|at| codel.signals(20 * MS, USUAL, false, start + *at * MS)).collect();
        assert_eq!(signals[0], 100);
        assert_eq!(signals[1], 200);
        let gaps: Vec<_> = signals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted_by(|a, b| a >= b), "{gaps:?}");
        assert!(signals.len() > 20, "{}", signals.len());
    }

    #[test]
    fn a_burst_may_take_a_long_round_trip() {
        let far = Tolerance::of(300 * MS);
        let (mut codel, start) = (Codel::default(), Instant::now());
        let signals = (0..400).filter(|at| codel.signals(50 * MS, far, false, start + *at * MS));
        assert_eq!(signals.collect::<Vec<_>>(), [300]);
        assert!(!codel.signals(25 * MS, far, false, start + 600 * MS));
    }

    #[test]
    fn what_a_repair_has_held_up_may_take_three_round_trips() {
        let repaired = Tolerance::of_repaired(60 * MS);
        let (mut codel, start) = (Codel::default(), Instant::now());
        let signals =
            (0..200).filter(|at| codel.signals(150 * MS, repaired, false, start + *at * MS));
        assert_eq!(signals.collect::<Vec<_>>(), [180]);
        let mut codel = Codel::default();
        assert!((0..1000).all(|at| !codel.signals(119 * MS, repaired, false, start + at * MS)));
    }

    #[test]
    fn a_single_packet_is_never_signalled_as_a_queue() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        assert!((0..1000).all(|at| !codel.signals(20 * MS, USUAL, true, start + at * MS)));
    }
}
