//! Tells when an acknowledgement is late: a pure estimate, without clock or connection.
//!
//! [`liveness`](super::liveness) takes a path for dead, which costs a switch, and is patient. To be late costs only a few
//! copies over another path, so this is quick: a round trip, four times its usual deviation, and the delay that QUIC
//! allows for an acknowledgement. That is the probe timeout of RFC 9002 §6.2.1; quinn does not show its own.

use std::time::Duration;

/// How long a receiver may delay the acknowledgement of a lone packet (RFC 9000 §13.2.1, `max_ack_delay`).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// The least that is allowed for deviation: timers and schedulers are late by as much.
const GRANULARITY: Duration = Duration::from_millis(5);

/// Mean and deviation of the time that acknowledgements take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lateness(Option<(Duration, Duration)>);

impl Lateness {
    /// An acknowledgement came `took` after the newest packet of which it tells was sent; it may tell of that one alone.
    pub(crate) fn acknowledged(&mut self, took: Duration, is_lone: bool) {
        let Some((mean, deviation)) = &mut self.0 else {
            self.0 = Some((took, took / 2));
            return;
        };
        // The delay that is allowed says nothing of the path.
        let delayed = is_lone && took > *mean;
        let took = if delayed { took.saturating_sub(ACK_DELAY).max(*mean) } else { took };
        // As a round trip is smoothed (RFC 9002 §5.3).
        *deviation = (*deviation * 3 + mean.abs_diff(took)) / 4;
        *mean = (*mean * 7 + took) / 8;
    }

    /// How long an acknowledgement takes at most, as a rule; `None` before the first one.
    #[must_use]
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.0.map(|(mean, deviation)| mean + (4 * deviation).max(GRANULARITY) + ACK_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(samples: impl IntoIterator<Item = u32>, is_lone: bool) -> Duration {
        let mut lateness = Lateness::default();
        for sample in samples {
            lateness.acknowledged(sample * MS, is_lone);
        }
        lateness.limit().unwrap()
    }

    #[test]
    fn nothing_is_late_before_anything_was_on_time() {
        assert_eq!(Lateness::default().limit(), None);
    }

    #[test]
    fn a_steady_path_is_late_after_a_round_trip_and_the_delay_of_an_acknowledgement() {
        assert_eq!(after([10; 100], false), 40 * MS);
        assert_eq!(after([50; 100], false), 80 * MS);
    }

    #[test]
    fn jitter_is_not_late() {
        let jitter = (0..1000_u32).map(|at| 30 + at * 7919 % 20);
        assert!(after(jitter, false) >= 60 * MS, "40 ± 10 ms, of a queue of its own");
    }

    #[test]
    fn the_acknowledgement_of_a_lone_packet_may_be_delayed() {
        let keys = (0..100).map(|at| if at % 2 == 0 { 10 } else { 35 });
        let limit = after(keys, true);
        assert!(limit <= 42 * MS, "{limit:?}");
    }
}
