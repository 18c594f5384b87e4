//! How much the round trips of neighbouring packets differ.

use std::time::{Duration, Instant};

/// The mean difference of two neighbours is that of so many of late.
const DIFFERENCES: f64 = 64.0;
/// In seconds: round trips of a clean link differ by less, or by two packets.
const CLEAN: f64 = 0.001;
/// No more is allowed for, in seconds.
const MOST_JITTER: f64 = 0.04;

/// How much the round trips of neighbouring packets differ. A queue grows and shrinks slowly, while jitter is another for
/// each packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Jitter {
    last: Option<(Instant, Duration)>,
    /// The mean difference in seconds.
    mean: f64,
}

impl Jitter {
    pub(super) fn on_round_trip(&mut self, sent: Instant, rtt: Duration) {
        if let Some((before, last)) = self.last {
            if before == sent {
                // The packets of one burst wait for each other.
                return;
            }
            self.mean += (rtt.abs_diff(last).as_secs_f64() - self.mean) / DIFFERENCES;
        }
        self.last = Some((sent, rtt));
    }

    /// What a queue may be longer for it, on a link that needs `packet` seconds for one packet.
    pub(super) fn allowance(&self, packet: f64) -> Duration {
        let more = self.mean - CLEAN.max(2.0 * packet);
        Duration::from_secs_f64(more.clamp(0.0, MOST_JITTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn neighbours_that_differ_are_jitter_and_a_queue_that_grows_is_none() {
        let start = Instant::now();
        let allowance = |rtt: &dyn Fn(u32) -> u32| {
            let mut jitter = Jitter::default();
            for packet in 0..400 {
                let rtt = Duration::from_micros(rtt(packet).into());
                jitter.on_round_trip(start + packet * MS, rtt);
            }
            jitter.allowance(0.0005)
        };
        assert_eq!(allowance(&|packet| 40_000 + 100 * packet), Duration::ZERO);
        // A radio sends ten packets together.
        assert_eq!(allowance(&|packet| 50_000 - 500 * (packet % 10)), Duration::ZERO);
        let some = allowance(&|packet| 40_000 + packet * 7919 % 20_000);
        assert!((5 * MS..15 * MS).contains(&some), "{some:?}");
        let much = allowance(&|packet| 40_000 + packet % 2 * 200_000);
        assert_eq!(much, Duration::from_secs_f64(MOST_JITTER));
    }
}
