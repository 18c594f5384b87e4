//! By how much packets overtake one another: a pure estimate, from the order in which they are acknowledged.
//!
//! quinn's receiver takes no packet that arrives later than 128 newer ones (its protection against repeated packets is a
//! window of so many numbers). On a path that reorders, packets are lost there that the network has carried. How many newer
//! ones come before depends on how fast they are sent, so the sender has to know. The receiver of the repair layer learns
//! much the same (`tunnel::repair::receiver`), but keeps it to itself, and forgets it with each repair.

use std::time::{Duration, Instant};

/// One packet in so many is overtaken by more than the estimate, once that has settled: fewer are left to the repair.
const RARE: f64 = 30.0;
/// What one packet changes, as a part of the estimate: an accident is no rule.
const STEP: f64 = 0.125;
/// The estimate grows from this, in seconds.
const LEAST: f64 = 0.001;
/// No more is believed, in seconds.
const MOST: f64 = 0.1;
/// Half of the estimate is forgotten when nothing was overtaken by half as much for so long.
const MEMORY: Duration = Duration::from_secs(2);

/// The estimate of one path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reordering {
    /// When the newest packet was sent that an acknowledgement told of, and the newest of the present one's.
    newest: Option<Instant>,
    of_this: Option<Instant>,
    /// The time from one packet to another that overtakes it, in seconds.
    span: f64,
    /// When the estimate was confirmed or halved.
    known: Option<Instant>,
}

impl Reordering {
    /// Packets that were sent at `sent` are acknowledged. They are one sample: what delays one of them delays all.
    pub(super) fn acknowledged(&mut self, now: Instant, sent: Instant) {
        self.of_this = self.of_this.max(Some(sent));
        let by = self.newest.map_or(Duration::ZERO, |it| it.saturating_duration_since(sent));
        let by = by.as_secs_f64();
        if by >= self.span / 2.0 {
            self.known = Some(now);
        }
        if by > self.span {
            let grown = self.span + STEP * self.span.max(LEAST);
            self.span = grown.min(by).min(MOST);
        } else {
            self.span *= 1.0 - STEP / RARE;
        }
        if self.known.is_some_and(|known| known + MEMORY <= now) {
            self.span /= 2.0;
            self.known = Some(now);
        }
    }

    /// That was all that one acknowledgement told of: its own order says nothing.
    pub(super) fn end(&mut self) {
        self.newest = self.newest.max(self.of_this.take());
    }

    /// The time from a packet to the last one that overtakes it, but for the most delayed in thirty.
    pub(super) fn span(&self) -> Duration {
        Duration::from_secs_f64(self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The estimate in milliseconds after packets that leave every 250 µs, each of which takes so many milliseconds.
    fn after(packets: u32, took: impl Fn(u32) -> f64) -> f64 {
        let (start, mut reordering) = (Instant::now(), Reordering::default());
        let sent = |packet: u32| start + packet * MS / 4;
        let arrives = |packet| sent(packet) + Duration::from_secs_f64(took(packet) / 1e3);
        let mut order: Vec<_> = (0..packets).map(|packet| (arrives(packet), packet)).collect();
        order.sort();
        // A receiver that acknowledges each second packet.
        for pair in order.chunks(2) {
            let now = pair[pair.len() - 1].0;
            for (_, packet) in pair {
                reordering.acknowledged(now, sent(*packet));
            }
            reordering.end();
        }
        reordering.span().as_secs_f64() * 1e3
    }

    /// A number from zero to one, another for each packet.
    fn chance(packet: u32) -> f64 {
        f64::from(packet.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24)
    }

    #[test]
    fn packets_in_their_order_overtake_nothing() {
        assert_eq!(after(1000, |_| 10.0), 0.0);
        // Nor do those that an acknowledgement tells of late.
        let (now, mut reordering) = (Instant::now(), Reordering::default());
        for packet in [3, 1, 2, 0] {
            reordering.acknowledged(now + 10 * MS, now + packet * MS);
        }
        reordering.end();
        assert_eq!(reordering.span(), Duration::ZERO);
    }

    #[test]
    fn jitter_is_known_within_some_hundred_packets() {
        for width in [10.0, 20.0, 40.0] {
            for packets in [600, 20_000] {
                let known = after(packets, |packet| 10.0 + width * chance(packet));
                assert!((0.6 * width..width).contains(&known), "{width}, {packets}: {known}");
            }
        }
    }

    #[test]
    fn what_is_rare_is_left_to_the_repair() {
        let one = after(1000, |packet| if packet == 500 { 300.0 } else { 10.0 });
        assert!(one < 0.3, "{one}");
        let few = after(20_000, |packet| if chance(packet) < 0.015 { 20.0 } else { 10.0 });
        assert!(few < 2.0, "{few}");
    }

    #[test]
    fn it_is_forgotten() {
        let jitter = |packet| if packet < 1000 { 10.0 + 20.0 * chance(packet) } else { 30.0 };
        let known = after(6000, jitter);
        assert!(known < 0.2, "after 5,000 packets in their order: {known}");
        // And with time, where little is sent.
        let start = Instant::now();
        let mut reordering = Reordering { span: 0.04, known: Some(start), ..Default::default() };
        for second in 0..20 {
            let now = start + second * 1000 * MS;
            reordering.acknowledged(now, now - 40 * MS);
            reordering.end();
        }
        assert!(reordering.span() < MS, "{reordering:?}");
    }

    #[test]
    fn no_more_than_a_tenth_of_a_second_is_believed() {
        let known = after(4000, |packet| 10.0 + 400.0 * chance(packet));
        assert!((70.0..=100.0).contains(&known), "{known}");
    }
}
