//! Beside somebody who ignores losses.
//!
//! The first version of BBR fills a buffer that is much shorter than a round trip and does not mind what it loses there.
//! Who gives way to that ends with nothing, and loses as much as before: a fifth of the packets at a fortieth of
//! the link. So who starves, and still loses too much for our own flows to be the cause, takes a modest part of
//! what the link once gave and keeps it for a while, whatever is lost of it. Several of our flows that take this for each
//! other lose more than [`TOO_MUCH`] if they are more than three, and stop; fewer do not overload the link.

use std::time::{Duration, Instant};

use super::loss::Count;

/// The part of the former rate that is taken: no more than three of our flows together would overload the link.
const PART: f64 = 0.35;
/// Who has less than this part of it starves.
const STARVING: f64 = 0.3;
/// With fewer packets under way nobody can hold a part.
const LEAST: u64 = 12;
/// Our own flows give way before they lose so much.
const MUCH: f64 = 0.13;
/// So much is lost where our part is too large.
const TOO_MUCH: f64 = 0.25;
/// Nobody ignores losses where fewer are lost.
const LITTLE: f64 = 0.02;
/// Whoever starves for so long does not do so by accident.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is lost is judged over so long, the first time not at all: others need as long to find out.
const PERIOD: Duration = Duration::from_secs(5);
/// After so many of them it is tried whether others have gone.
const PERIODS: u8 = 6;
/// After a part that was too large, or needless.
const PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub(super) struct Stand {
    /// The rate of which a part is taken, in bytes per second, while others still might ignore losses.
    best: f64,
    starving_since: Option<Instant>,
    not_before: Option<Instant>,
    now: Option<Period>,
}

#[derive(Clone, Copy, Debug)]
struct Period {
    number: u8,
    began: Instant,
    count: Count,
}

/// What an acknowledgement tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) now: Instant,
    pub(super) bytes: u64,
    /// The share that is lost where a queue is full; a policer has none.
    pub(super) share: f64,
    /// Without a queue.
    pub(super) round_trip: Duration,
    pub(super) mtu: u16,
}

impl Stand {
    /// Whether losses are ignored.
    pub(super) fn stands(&self) -> bool {
        self.now.is_some()
    }

    /// There is another reason to send less, or nobody there.
    pub(super) fn give_up(&mut self, now: Instant) {
        if self.now.take().is_some() {
            (self.best, self.not_before) = (0.0, Some(now + PAUSE));
        }
    }

    /// Takes note of lost bytes.
    pub(super) fn on_loss(&mut self, bytes: u64) {
        if let Some(period) = &mut self.now {
            period.count.lost += bytes;
        }
    }

    /// Takes note of bytes that arrived, and of the present rate and the best of late in bytes per second; gives the
    /// window that is to be kept from here on.
    pub(super) fn on_ack(&mut self, heard: Heard, (rate, best): (f64, f64)) -> Option<u64> {
        let Heard { now, bytes, share, round_trip, mtu } = heard;
        if let Some(period) = &mut self.now {
            period.count.arrived += bytes;
            if now >= period.began + PERIOD {
                let Period { number, count, .. } = *period;
                *period = Period { number: number + 1, began: now, count: Count::default() };
                if number > 0 && !(LITTLE..=TOO_MUCH).contains(&count.share()) {
                    self.give_up(now);
                } else if number == PERIODS {
                    self.now = None;
                }
            }
            return None;
        }
        let best = self.best.max(best);
        if rate > STARVING * best || share < MUCH {
            self.starving_since = None;
            return None;
        }
        let since = *self.starving_since.get_or_insert(now);
        let window = (PART * best * round_trip.as_secs_f64()) as u64;
        let is_barred = self.not_before.is_some_and(|at| now < at);
        if now < since + PATIENCE || is_barred || window < LEAST * u64::from(mtu) {
            return None;
        }
        (self.best, self.starving_since) = (best, None);
        self.now = Some(Period { number: 0, began: now, count: Count::default() });
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BEST: f64 = 2_500_000.0;
    const OURS: u64 = 35_000;

    /// A flow that hears of a packet every 10 ms for `time`, of which the part `share` is lost; a window if it is given one.
    fn hear(
        stand: &mut Stand,
        now: &mut Instant,
        time: Duration,
        rate: f64,
        share: f64,
    ) -> Option<u64> {
        let end = *now + time;
        while *now < end {
            *now += 10 * MS;
            stand.on_loss((1000.0 * share / (1.0 - share)) as u64);
            let heard = Heard { now: *now, bytes: 1000, share, round_trip: 40 * MS, mtu: 1452 };
            if let Some(window) = stand.on_ack(heard, (rate, BEST)) {
                return Some(window);
            }
        }
        None
    }

    #[test]
    fn who_starves_among_many_losses_takes_a_part_and_keeps_it() {
        let (mut stand, mut now) = (Stand::default(), Instant::now());
        assert_eq!(hear(&mut stand, &mut now, PATIENCE, 0.1 * BEST, 0.2), None);
        assert_eq!(hear(&mut stand, &mut now, PATIENCE, 0.1 * BEST, 0.2), Some(OURS));
        assert_eq!(hear(&mut stand, &mut now, 3 * PERIOD, 0.35 * BEST, 0.2), None);
        assert!(stand.stands());
        hear(&mut stand, &mut now, 5 * PERIOD, 0.35 * BEST, 0.2);
        assert!(!stand.stands(), "from time to time others may have gone");
        assert_eq!(hear(&mut stand, &mut now, 2 * PATIENCE, 0.1 * BEST, 0.2), Some(OURS));
    }

    #[test]
    fn who_has_enough_or_loses_little_gives_way() {
        let (mut stand, mut now) = (Stand::default(), Instant::now());
        assert_eq!(hear(&mut stand, &mut now, PERIOD, 0.4 * BEST, 0.2), None);
        assert_eq!(hear(&mut stand, &mut now, PERIOD, 0.1 * BEST, 0.1), None);
    }

    #[test]
    fn a_part_that_is_too_large_or_needless_is_given_up() {
        for share in [0.01, 0.3] {
            let (mut stand, mut now) = (Stand::default(), Instant::now());
            hear(&mut stand, &mut now, 2 * PATIENCE, 0.1 * BEST, 0.2);
            hear(&mut stand, &mut now, PERIOD, 0.35 * BEST, share);
            assert!(stand.stands(), "others have not found out yet");
            hear(&mut stand, &mut now, 2 * PERIOD, 0.35 * BEST, share);
            assert!(!stand.stands(), "{share}");
            assert_eq!(hear(&mut stand, &mut now, PAUSE / 2, 0.1 * BEST, 0.2), None);
        }
    }
}
