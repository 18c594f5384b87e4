//! Room between packets that overtake one another on their way.

use std::time::{Duration, Instant};

/// quinn's receiver takes no packet that arrives later than 128 newer ones.
const NEWER: f64 = 128.0;
/// Packets that are overtaken by less have no limit: the least one is 190 Mbit/s.
const SHORTEST: Duration = Duration::from_millis(4);
/// What may leave at one moment, as time at the present rate: timers ring as much later.
const DEPTH: Duration = Duration::from_millis(3);

/// A token bucket: within the time by which packets are overtaken it lets so few pass that quinn's receiver takes all.
#[derive(Debug, Default)]
pub(super) struct Spacing {
    /// Packets that may leave; below zero if more have left.
    credit: f64,
    /// When that was so, and how many had been sent.
    last: Option<(Instant, u64)>,
}

/// What quinn was given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    /// Packets that it has sent, of any kind: all have numbers.
    pub(super) sent: u64,
    /// Packets that it has not sent yet.
    pub(super) held: usize,
}

impl Spacing {
    /// How many packets quinn may be given now, where the last one that overtakes a packet was sent `span` later, but for
    /// the most delayed in thirty; `None` without a limit.
    pub(super) fn room(
        &mut self,
        now: Instant,
        span: Duration,
        given: impl FnOnce() -> Given,
    ) -> Option<usize> {
        if span < SHORTEST {
            *self = Self::default();
            return None;
        }
        let Given { sent, held } = given();
        // The most delayed are overtaken by up to an eighth more.
        let rate = NEWER / (span * 9 / 8 + DEPTH).as_secs_f64();
        let most = rate * DEPTH.as_secs_f64() + 1.0;
        self.credit = match self.last.replace((now, sent)) {
            Some((at, before)) => {
                let earned = rate * now.saturating_duration_since(at).as_secs_f64();
                let spent = sent.saturating_sub(before) as f64;
                // What quinn sends of itself is not paid off for long: a keystroke would wait for it.
                (self.credit + earned - spent).clamp(-most, most)
            }
            None => most,
        };
        Some((self.credit - held as f64).max(0.0) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sent(sent: usize) -> impl FnOnce() -> Given {
        move || Given { sent: sent as u64, held: 0 }
    }

    #[test]
    fn without_reordering_there_is_no_limit_and_nobody_asks_quinn() {
        let room = Spacing::default().room(Instant::now(), 3 * MS, || unreachable!());
        assert_eq!(room, None);
    }

    proptest! {
        /// Whenever the sender looks, whatever it has to send, and whenever quinn sends it.
        #[test]
        fn quinn_takes_what_is_overtaken(
            span in 4u32..100,
            looks in proptest::collection::vec((0u32..5000, 0usize..200, any::<bool>()), 1..300),
        ) {
            let (mut spacing, start) = (Spacing::default(), Instant::now());
            let (mut now, mut total, mut held, mut all) = (start, 0, 0, Vec::new());
            for (micros, waiting, sends) in looks {
                now += Duration::from_micros(micros.into());
                let given = Given { sent: total as u64, held };
                held += spacing.room(now, span * MS, || given).unwrap().min(waiting);
                if sends {
                    all.push((now, held));
                    total += std::mem::take(&mut held);
                }
                let within: usize = all
                    .iter()
                    .filter(|(at, _)| now.duration_since(*at) <= span * MS * 9 / 8)
                    .map(|(_, packets)| packets)
                    .sum();
                prop_assert!(within <= 131, "{within} in {span} ms");
            }
        }
    }

    #[test]
    fn who_looks_often_enough_sends_all_that_may_leave() {
        for (span, pause, least) in
            [(20, 1.0, 0.97), (20, 3.0, 0.95), (100, 1.0, 0.95), (5, 2.0, 0.95)]
        {
            let (mut spacing, start, mut total) = (Spacing::default(), Instant::now(), 0);
            let looks = (1000.0 / pause) as u32;
            for look in 0..looks {
                let now = start + (f64::from(look) * pause * 1e3) as u32 * MS / 1000;
                let packets = spacing.room(now, span * MS, sent(total)).unwrap();
                assert!(packets <= 48, "no burst");
                total += packets;
            }
            let rate = NEWER / (f64::from(span) * 1.125e-3 + 3e-3);
            assert!(total as f64 > least * rate, "{total} of {rate} in a second, {span} ms");
        }
    }

    #[test]
    fn what_quinn_sent_of_itself_counts_and_holds_up_nobody_for_long() {
        let (mut spacing, start) = (Spacing::default(), Instant::now());
        let mut room =
            |at: u32, total| spacing.room(start + at * MS, 20 * MS, sent(total)).unwrap();
        assert!(room(0, 0) > 0);
        assert_eq!(room(1, 1000), 0);
        assert!(room(5, 1000) > 0);
    }

    #[test]
    fn what_quinn_holds_has_its_room_already() {
        let (mut spacing, start) = (Spacing::default(), Instant::now());
        let all = spacing.room(start, 20 * MS, sent(0)).unwrap();
        let rest = spacing.room(start + 10 * MS, 20 * MS, || Given { sent: 0, held: all - 2 });
        assert_eq!(rest, Some(2));
    }
}
