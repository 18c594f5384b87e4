//! CoDel (RFC 8289): detects a standing queue by how long its packets waited.

use std::time::{Duration, Instant};

/// The acceptable wait. RFC 8289 §4.2 suggests 5 ms for queues that flows share. Here each flow has its own
/// queue, and waiting packets are ready when the connection migrates to a path with a longer round trip.
pub(super) const TARGET: Duration = Duration::from_millis(20);
/// A wait that stays above the target for this time is a standing queue: about one round trip of a
/// slow connection (RFC 8289 §4.2).
const INTERVAL: Duration = Duration::from_millis(100);

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
    /// sender. `target` is the acceptable wait; `short` says that the queue holds hardly more than this packet.
    pub(super) fn signals(
        &mut self,
        wait: Duration,
        target: Duration,
        short: bool,
        now: Instant,
    ) -> bool {
        if wait < target || short {
            self.stands_at = None;
            self.last = self.dropping.take().or(self.last);
            return false;
        }
        let stands_at = *self.stands_at.get_or_insert(now + INTERVAL);
        if now < stands_at {
            return false;
        }
        match &mut self.dropping {
            Some(dropping) if now < dropping.next => false,
            Some(dropping) => {
                dropping.count += 1;
                dropping.next += pace(dropping.count);
                true
            }
            None => {
                // An episode soon after another one goes on where that one ended (RFC 8289 §5.5).
                let count = match self.last {
                    Some(last) if now.saturating_duration_since(last.next) < 16 * INTERVAL => {
                        last.count.saturating_sub(last.began_with).max(1)
                    }
                    _ => 1,
                };
                self.dropping =
                    Some(Dropping { next: now + pace(count), count, began_with: count });
                true
            }
        }
    }
}

/// The time from one signal to the next; it shrinks with each signal (RFC 8289 §3.2).
fn pace(count: u32) -> Duration {
    INTERVAL.div_f64(f64::from(count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_that_drains_within_the_interval_is_left_alone() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        for at in 0..90 {
            assert!(!codel.signals(50 * MS, TARGET, false, start + at * MS));
        }
        assert!(!codel.signals(MS, TARGET, false, start + 95 * MS));
        assert!(
            !codel.signals(50 * MS, TARGET, false, start + 110 * MS),
            "the interval begins anew"
        );
    }

    #[test]
    fn a_standing_queue_is_signalled_at_shrinking_intervals() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let signals: Vec<_> = (0..1000)
            .filter(|at| codel.signals(20 * MS, TARGET, false, start + *at * MS))
            .collect();
        assert_eq!(signals[0], 100);
        assert_eq!(signals[1], 200);
        let gaps: Vec<_> = signals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted_by(|a, b| a >= b), "{gaps:?}");
        assert!(signals.len() > 20, "{}", signals.len());
    }

    #[test]
    fn a_single_packet_is_never_signalled_as_a_queue() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        assert!((0..1000).all(|at| !codel.signals(20 * MS, TARGET, true, start + at * MS)));
    }
}
