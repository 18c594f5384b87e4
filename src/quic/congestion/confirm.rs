//! Losses that quinn has declared, until the other side confirms them.
//!
//! Where packets overtake one another, quinn declares packets lost that arrive a moment later, and does not tell when
//! they do. The other side of a session with numbered packets knows better: it asks for what is missing after a wait
//! that it has learnt of the network. So there a declared loss counts only once as many bytes were asked for.
//!
//! ```text
//!  quinn declares a loss ──▶ declared ──┐
//!                                       ├─ as many bytes of both ──▶ a loss
//!  the other side asks ────▶ asked ─────┘
//! ```
//! Either may come first. What stays alone for too long was no loss: a packet that arrived late, or one that was asked
//! for too early. But while more than three quarters of what was sent is declared lost, losses count without the other side's
//! word: networks that reorder do not make that many, and it may be silent, or its requests may not arrive.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A declared loss waits for twice as long as quinn took to declare it, and for this: a request may be lost as well.
const MARGIN: Duration = Duration::from_millis(100);
/// A request counts for once to twice as long, or two round trips: quinn declares a loss about one later.
const ASKED: Duration = Duration::from_secs(1);
/// Declared losses that wait at once.
const MOST: usize = 512;
/// Fewer bytes than this, declared lost of late, do not show how many are lost.
const ENOUGH: u64 = 100_000;

/// A loss that quinn declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// When the last of its packets was sent, and what was under way then.
    pub(super) sent: Instant,
    pub(super) in_flight: Option<u64>,
    pub(super) bytes: u64,
}

/// What either side said of losses, without the other's word.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirmation {
    /// Until when each waits, about in this order.
    declared: VecDeque<(Instant, Declared)>,
    /// What was heard of late, and before.
    recent: [Heard; 2],
    aged: Option<Instant>,
}

/// Bytes that were heard of in some time.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// Asked for, and not confirmed yet.
    asked: u64,
    acknowledged: u64,
    declared: u64,
}

impl Confirmation {
    /// quinn declares a loss. Gives it back if it counts without the other side's word.
    #[must_use]
    pub(super) fn declare(&mut self, now: Instant, loss: Declared) -> Option<Declared> {
        self.recent[0].declared += loss.bytes;
        let sum = |of: fn(&Heard) -> u64| self.recent.iter().map(of).sum::<u64>();
        let declared = sum(|heard| heard.declared);
        if declared >= ENOUGH && declared > 3 * sum(|heard| heard.acknowledged) {
            return Some(loss);
        }
        if self.declared.len() == MOST {
            self.declared.pop_front();
        }
        let until = now + 2 * now.saturating_duration_since(loss.sent) + MARGIN;
        self.declared.push_back((until, loss));
        None
    }

    /// The other side acknowledged so many bytes.
    pub(super) fn acknowledge(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        self.age(now, rtt);
        self.recent[0].acknowledged += bytes;
    }

    /// The other side asked for so many bytes more.
    pub(super) fn ask(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        self.age(now, rtt);
        self.recent[0].asked += bytes;
    }

    fn age(&mut self, now: Instant, rtt: Duration) {
        let counts = ASKED.max(2 * rtt);
        let aged = *self.aged.get_or_insert(now);
        if now.saturating_duration_since(aged) >= counts {
            self.aged = Some(now);
            let is_long_ago = now.saturating_duration_since(aged) >= 2 * counts;
            let before = if is_long_ago { Heard::default() } else { self.recent[0] };
            self.recent = [Heard::default(), before];
        }
    }

    /// The next loss, or part of one, of which both sides spoke.
    pub(super) fn next(&mut self, now: Instant) -> Option<Declared> {
        while self.declared.front().is_some_and(|(until, _)| *until <= now) {
            self.declared.pop_front();
        }
        let asked: u64 = self.recent.iter().map(|heard| heard.asked).sum();
        let (_, declared) = self.declared.front_mut().filter(|_| asked > 0)?;
        let bytes = declared.bytes.min(asked);
        let loss = Declared { bytes, ..*declared };
        declared.bytes -= bytes;
        if declared.bytes == 0 {
            self.declared.pop_front();
        }
        let before = bytes.min(self.recent[1].asked);
        self.recent[1].asked -= before;
        self.recent[0].asked -= bytes - before;
        Some(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Bytes of the losses of which both have spoken, where each event comes in so many milliseconds: quinn's of a packet
    /// that was sent 80 ms before, or the other side's.
    fn confirmed(events: &[(u32, Option<u64>, u64)]) -> Vec<u64> {
        let (start, mut confirmation) = (Instant::now(), Confirmation::default());
        let mut losses = Vec::new();
        for (at, declared, asked) in events {
            let now = start + (at + 1000) * MS;
            if let Some(bytes) = *declared {
                let sent = now - 80 * MS;
                let loss = Declared { sent, in_flight: None, bytes };
                assert_eq!(confirmation.declare(now, loss), None);
            }
            confirmation.ask(now, *asked, 40 * MS);
            losses.extend(std::iter::from_fn(|| confirmation.next(now)).map(|loss| loss.bytes));
        }
        losses
    }

    #[test]
    fn a_loss_counts_when_both_sides_have_told_of_it_in_any_order() {
        assert_eq!(confirmed(&[(0, None, 1400), (40, Some(1400), 0)]), [1400]);
        assert_eq!(confirmed(&[(0, Some(1400), 0), (40, None, 1400)]), [1400]);
        assert_eq!(
            confirmed(&[(0, Some(4200), 0), (40, None, 1400), (50, None, 9000)]),
            [1400, 2800]
        );
        assert_eq!(confirmed(&[(0, Some(1400), 1500), (40, Some(1400), 0)]), [1400, 100]);
    }

    #[test]
    fn what_nobody_asks_for_was_no_loss() {
        assert_eq!(confirmed(&[(0, Some(1400), 0), (259, None, 1), (260, None, 1400)]), [1]);
    }

    #[test]
    fn what_was_asked_for_too_early_is_forgotten() {
        assert_eq!(confirmed(&[(0, None, 1400), (900, Some(700), 0)]), [700]);
        assert_eq!(confirmed(&[(0, None, 1400), (2100, Some(1400), 0)]), [0u64; 0]);
    }

    #[test]
    fn more_than_three_quarters_are_lost_whatever_the_other_side_says() {
        let share = |percent: u64| {
            let (start, mut confirmation) = (Instant::now(), Confirmation::default());
            let mut counted = 0;
            for packet in 0..10_000 {
                let now = start + packet * MS / 2;
                if u64::from(packet) * 7 % 100 < percent {
                    let loss = Declared { sent: now - 80 * MS, in_flight: None, bytes: 1400 };
                    counted += u64::from(confirmation.declare(now, loss).is_some());
                } else {
                    confirmation.acknowledge(now, 1400, 40 * MS);
                }
            }
            counted
        };
        assert_eq!(share(70), 0);
        assert!(share(80) > 7000, "{}", share(80));
    }

    #[test]
    fn what_waits_is_bounded() {
        let (now, mut confirmation) = (Instant::now(), Confirmation::default());
        for _ in 0..10 * MOST {
            let loss = Declared { sent: now, in_flight: None, bytes: 1 };
            assert_eq!(confirmation.declare(now, loss), None);
        }
        assert_eq!(confirmation.declared.len(), MOST);
    }
}
