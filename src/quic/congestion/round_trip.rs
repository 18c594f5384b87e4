//! The round trip of the path in use, from what was sent over it alone.
//!
//! quinn's estimate begins with the handshake, which includes the time for signatures and up to 25 ms
//! until a lone packet is acknowledged (RFC 9000 §13.2.1), and a client's goes on with that of the path
//! before. It moves by an eighth with each acknowledgement: an idle connection shows several times the
//! true value for minutes. So the shortest sample of the path stands in until quinn's has forgotten.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Acknowledgements after which an estimate has forgotten all but a seventieth of what it began with
/// (RFC 9002 §5.3: seven eighths of it stay with each).
const FORGOTTEN: u64 = 32;

/// Times are microseconds after the handle's origin; zero is none.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    /// What was sent before was for another path, or part of a handshake.
    since: AtomicU64,
    shortest: AtomicU64,
    acknowledged: AtomicU64,
    acknowledgements: AtomicU64,
}

impl RoundTrip {
    /// Begins anew: what is sent from `now` on counts.
    pub(super) fn begin(&self, now: u64) {
        self.since.store(now, Relaxed);
        self.shortest.store(0, Relaxed);
        self.acknowledgements.store(0, Relaxed);
    }

    /// A packet that was sent at `sent` is acknowledged.
    pub(super) fn sample(&self, now: u64, sent: u64) {
        if sent < self.since.load(Relaxed) {
            return;
        }
        let sample = now.saturating_sub(sent).max(1);
        let shortest = self.shortest.load(Relaxed);
        if shortest == 0 || sample < shortest {
            self.shortest.store(sample, Relaxed);
        }
        // One acknowledgement is often for many packets.
        if self.acknowledged.swap(now, Relaxed) != now {
            self.acknowledgements.fetch_add(1, Relaxed);
        }
    }

    /// The shortest sample.
    pub(super) fn shortest(&self) -> Option<Duration> {
        Some(self.shortest.load(Relaxed)).filter(|it| *it > 0).map(Duration::from_micros)
    }

    /// Whether an estimate from the same acknowledgements is one of this path.
    pub(super) fn is_settled(&self) -> bool {
        self.acknowledgements.load(Relaxed) >= FORGOTTEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_sample_of_the_path_counts() {
        let path = RoundTrip::default();
        path.sample(9_000, 1_000);
        assert_eq!(path.shortest(), Some(Duration::from_millis(8)));
        path.begin(10_000);
        assert_eq!(path.shortest(), None);
        path.sample(11_000, 9_999);
        assert_eq!(path.shortest(), None, "it was sent over the path before");
        path.sample(35_000, 10_000);
        path.sample(36_000, 35_000);
        path.sample(90_000, 40_000);
        assert_eq!(path.shortest(), Some(Duration::from_millis(1)));
    }

    #[test]
    fn an_estimate_is_trusted_after_many_acknowledgements_not_packets() {
        let path = RoundTrip::default();
        for packet in 0..100 {
            path.sample(1_000, packet);
        }
        assert!(!path.is_settled());
        for ack in 0..FORGOTTEN {
            path.sample(2_000 + ack, 1_500);
        }
        assert!(path.is_settled());
    }
}
