//! How much is lost, how many packets together, and what chance explains of it.

use std::time::{Duration, Instant};

/// The mean length of bursts of lost packets is that of so many of late, and not believed if it is longer.
const BURSTS: f64 = 16.0;
const LONGEST_BURST: f64 = 8.0;
/// Before so many are known they may have this length.
const FEW_BURSTS: f64 = 4.0;
const UNKNOWN_BURST: f64 = 3.0;

/// Bytes that arrived and that did not.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::quic::congestion) struct Count {
    pub(in crate::quic::congestion) arrived: u64,
    pub(in crate::quic::congestion) lost: u64,
}

impl Count {
    pub(in crate::quic::congestion) fn share(self) -> f64 {
        self.lost as f64 / (self.arrived + self.lost).max(1) as f64
    }

    pub(super) fn half(self) -> Self {
        Self { arrived: self.arrived / 2, lost: self.lost / 2 }
    }

    pub(super) fn packets(self, mtu: u16) -> f64 {
        (self.arrived + self.lost) as f64 / f64::from(mtu)
    }

    /// Whether more was lost than chance explains where the share `usual` is lost in bursts of mean length `burst`.
    pub(super) fn exceeds(self, usual: f64, burst: f64, mtu: u16) -> bool {
        let usual = self.packets(mtu) * usual;
        let deviation = (usual * variance(burst)).sqrt();
        self.lost as f64 > (usual + 3.0 * deviation + 2.0 * burst) * f64::from(mtu)
    }
}

/// How much larger the variance of the number of lost packets is where they are lost in bursts than where each is lost by
/// itself: their length is distributed geometrically (Gilbert and Elliott's model).
pub(super) fn variance(burst: f64) -> f64 {
    2.0 * burst - 1.0
}

/// How many packets are lost together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bursts {
    mean: f64,
    /// How many say so.
    number: f64,
    /// The present one in packets, and when the last of its packets was sent.
    length: f64,
    newest: Option<Instant>,
}

impl Default for Bursts {
    fn default() -> Self {
        Self { mean: 1.0, number: 0.0, length: 0.0, newest: None }
    }
}

impl Bursts {
    /// So many packets are lost, the last of which was sent at `sent`; those of one burst are sent within `gap`.
    pub(super) fn on_loss(&mut self, sent: Instant, packets: f64, gap: Duration) {
        let is_same = self.newest.is_some_and(|newest| sent <= newest + gap);
        self.newest = self.newest.max(Some(sent));
        if is_same {
            self.length += packets;
            return;
        }
        if self.length > 0.0 {
            self.number = (self.number + 1.0).min(BURSTS);
            self.mean += (self.length.min(2.0 * LONGEST_BURST) - self.mean) / self.number;
        }
        self.length = packets;
    }

    /// The mean length. A first few may be of any.
    pub(super) fn mean(&self) -> f64 {
        let mean = if self.number < FEW_BURSTS { self.mean.max(UNKNOWN_BURST) } else { self.mean };
        mean.clamp(1.0, LONGEST_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_mean_length_of_bursts_is_measured_and_bounded() {
        let (mut bursts, start) = (Bursts::default(), Instant::now());
        assert_eq!(bursts.mean(), UNKNOWN_BURST);
        let lose = |bursts: &mut Bursts, from: u32, length: u32| {
            for burst in from..from + 40 {
                for packet in 0..length {
                    bursts.on_loss(start + burst * 50 * MS + packet * MS, 1.0, 2 * MS);
                }
            }
        };
        lose(&mut bursts, 0, 4);
        assert!((3.8..4.2).contains(&bursts.mean()), "{bursts:?}");
        lose(&mut bursts, 40, 20);
        assert_eq!(bursts.mean(), LONGEST_BURST);
        lose(&mut bursts, 80, 1);
        assert!(bursts.mean() < 2.5, "{bursts:?}");
    }

    #[test]
    fn what_is_lost_of_a_burst_is_told_in_any_order_and_together() {
        let (mut bursts, start) = (Bursts::default(), Instant::now());
        bursts.on_loss(start + 3 * MS, 2.0, MS);
        bursts.on_loss(start, 1.0, MS);
        bursts.on_loss(start + 100 * MS, 1.0, MS);
        assert_eq!(bursts.mean(), 3.0);
    }

    #[test]
    fn more_is_left_to_chance_where_packets_are_lost_in_bursts() {
        let count = Count { arrived: 1_350_000, lost: 56_000 };
        assert!(count.exceeds(0.02, 1.0, 1400), "40 of 1004");
        assert!(!count.exceeds(0.02, 4.0, 1400));
    }
}
