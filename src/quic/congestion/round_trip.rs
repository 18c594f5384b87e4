//! The round trip of the path in use, from what was sent over it alone.
//!
//! quinn's estimate begins with the handshake, which includes the time for signatures and up to 25 ms
//! until a lone packet is acknowledged (RFC 9000 §13.2.1), and a client's goes on with that of the path
//! before. It moves by an eighth with each acknowledgement: an idle connection shows several times the
//! true value for minutes. So the shortest sample of the path stands in until quinn's has forgotten.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::clock::AtomicInstant;

/// Acknowledgements after which an estimate has forgotten all but a seventieth of what it began with
/// (RFC 9002 §5.3: seven eighths of it stay with each).
const FORGOTTEN: u64 = 32;

#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    /// What was sent before was for another path, or part of a handshake.
    since: AtomicInstant,
    /// The shortest sample in microseconds; zero is none.
    shortest: AtomicU64,
    /// The same since it was last taken.
    recent: AtomicU64,
    acknowledged: AtomicInstant,
    acknowledgements: AtomicU64,
}

impl RoundTrip {
    /// Begins anew: what is sent from `now` on counts.
    pub(super) fn begin(&self, now: Instant) {
        self.since.set(now);
        self.shortest.store(0, Relaxed);
        self.recent.store(0, Relaxed);
        self.acknowledgements.store(0, Relaxed);
    }

    /// A packet that was sent at `sent` is acknowledged.
    pub(super) fn sample(&self, now: Instant, sent: Instant) {
        if self.since.get().is_some_and(|since| sent < since) {
            return;
        }
        let sample = (now.saturating_duration_since(sent).as_micros() as u64).max(1);
        for minimum in [&self.shortest, &self.recent] {
            let shortest = minimum.load(Relaxed);
            if shortest == 0 || sample < shortest {
                minimum.store(sample, Relaxed);
            }
        }
        // One acknowledgement is often for many packets.
        if self.acknowledged.replace(now) != Some(now) {
            self.acknowledgements.fetch_add(1, Relaxed);
        }
    }

    /// The shortest sample.
    pub(super) fn shortest(&self) -> Option<Duration> {
        duration(self.shortest.load(Relaxed))
    }

    /// The shortest sample since the last call.
    pub(super) fn take_recent(&self) -> Option<Duration> {
        duration(self.recent.swap(0, Relaxed))
    }

    /// Whether an estimate from the same acknowledgements is one of this path.
    pub(super) fn is_settled(&self) -> bool {
        self.acknowledgements.load(Relaxed) >= FORGOTTEN
    }
}

fn duration(microseconds: u64) -> Option<Duration> {
    Some(microseconds).filter(|it| *it > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_sample_of_the_path_counts() {
        let (path, start) = (RoundTrip::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        path.sample(at(9), at(1));
        assert_eq!(path.shortest(), Some(Duration::from_millis(8)));
        path.begin(at(10));
        assert_eq!(path.shortest(), None);
        path.sample(at(11), at(10) - Duration::from_nanos(1));
        assert_eq!(path.shortest(), None, "it was sent over the path before");
        path.sample(at(35), at(10));
        path.sample(at(36), at(35));
        path.sample(at(90), at(40));
        assert_eq!(path.shortest(), Some(Duration::from_millis(1)));
    }

    #[test]
    fn the_recent_round_trip_is_the_shortest_since_it_was_last_asked_for() {
        let (path, start) = (RoundTrip::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        path.sample(at(10), at(0));
        path.sample(at(30), at(10));
        assert_eq!(path.take_recent(), Some(Duration::from_millis(10)));
        assert_eq!(path.take_recent(), None);
        path.sample(at(80), at(40));
        assert_eq!(path.take_recent(), Some(Duration::from_millis(40)));
        assert_eq!(path.shortest(), Some(Duration::from_millis(10)));
    }

    #[test]
    fn an_estimate_is_trusted_after_many_acknowledgements_not_packets() {
        let (path, start) = (RoundTrip::default(), Instant::now());
        let at = |microseconds| start + Duration::from_micros(microseconds);
        for packet in 0..100 {
            path.sample(at(1_000), at(packet));
        }
        assert!(!path.is_settled());
        for ack in 0..FORGOTTEN {
            path.sample(at(2_000 + ack), at(1_500));
        }
        assert!(path.is_settled());
    }
}
