//! A queue that does not shorten when we send less.
//!
//! Somebody else fills it, or the way has become longer. Beside a flow that fills queues, whoever keeps them short
//! gets nothing (Copa, NSDI 2018, §4; Nimbus, SIGCOMM 2022). So delay does not limit us meanwhile. From time
//! to time the window is halved for a moment, and what that does to the delay tells whose queue it is:
//!
//! ```text
//!  the wait                    the queue is
//!  all but vanishes            ours: delay limits us again
//!  does not change, twice      not there: the way is longer, and that is the new base
//!  gets somewhat shorter       shared with somebody who fills it: we go on
//! ```
//! A sender far below its best rate has too few packets in the queue to change the delay, and a queue that somebody else
//! fills has another length at the next test. So a test that changes nothing counts only at a good part of the best rate,
//! and if the wait is that of the test before; else the window is raised, until a test shows something.

use std::time::{Duration, Instant};

/// Until the first test.
const FIRST: Duration = Duration::from_secs(1);
/// Between two later ones: each costs half of the rate for some round trips.
const BETWEEN: Duration = Duration::from_secs(5);
/// The same in round trips.
const BETWEEN_ROUNDS: u32 = 25;
const FEW_ROUNDS: u32 = 6;
/// Rounds of a test.
const ROUNDS: u8 = 3;
/// A wait that shrinks to this share was ours.
const OURS: f64 = 0.2;
/// So is one that becomes shorter by this share of what our packets alone can make.
const MOST: f64 = 0.75;
/// Rounds without a queue after which nobody competes.
const CALM: u8 = 12;
/// Tests in a row in which the queue vanishes, after which it was ours: BBR empties its own now and then.
const CONFIRMED: u8 = 2;
/// A sender with less than this share of its best rate may have too few packets in the queue.
pub(super) const VISIBLE: f64 = 0.4;
/// After so many raises in a row, none of which showed anything, the way is longer.
const RAISES: u8 = 3;

/// A share of the link that is not too much beside up to five others, and not too little beside one.
const MODEST: f64 = 0.4;
/// How much more a test may give.
const MOST_AT_ONCE: f64 = 2.0;

#[derive(Clone, Debug)]
pub(super) struct Competition {
    next_test: Instant,
    test: Option<Test>,
    calm: u8,
    /// The wait, if the last test did not change it.
    unmoved: Option<Duration>,
    raises: u8,
    emptied: u8,
}

#[derive(Clone, Copy, Debug)]
struct Test {
    rounds: u8,
    limit: u64,
    wait_before: Duration,
    least_wait: Duration,
    rate_before: f64,
    rtt_before: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finding {
    /// Somebody fills the queue. A test may limit our window, or show that it should be another.
    Foreign { limit: Option<u64>, window: Option<u64> },
    /// There is no queue, but a longer way.
    Longer,
    /// It is our queue, of a link with so many bytes per second. More than the target is left of the wait with half of our packets:
    /// of our queue, or of a longer way.
    Ours { rate: f64, is_left: bool },
}

impl Competition {
    pub(super) fn new(now: Instant, rtt: Duration) -> Self {
        Self {
            next_test: now + FIRST.max(FEW_ROUNDS * rtt),
            test: None,
            calm: 0,
            unmoved: None,
            raises: 0,
            emptied: 0,
        }
    }

    /// Judges a round whose shortest wait was `wait`; `in_flight` and `rtt` are of its fastest packet. `enough` is the rate in
    /// bytes per second at which a sender shows in a queue.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        wait: Duration,
        target: Duration,
        in_flight: u64,
        rtt: Duration,
        enough: f64,
    ) -> Finding {
        let rate = in_flight as f64 / rtt.as_secs_f64().max(1e-6);
        self.calm = if wait <= target { self.calm + 1 } else { 0 };
        let Some(test) = &mut self.test else {
            if self.calm >= CALM {
                return Finding::Ours { rate, is_left: false };
            }
            if now < self.next_test {
                return Finding::Foreign { limit: None, window: None };
            }
            let limit = in_flight / 2;
            self.test = Some(Test {
                rounds: 0,
                limit,
                wait_before: wait,
                least_wait: Duration::MAX,
                rate_before: rate,
                rtt_before: rtt,
            });
            return Finding::Foreign { limit: Some(limit), window: None };
        };
        test.rounds += 1;
        test.least_wait = test.least_wait.min(wait);
        let Test { rounds, limit, wait_before, least_wait, rate_before, rtt_before } = *test;
        // Half of our packets make such a part of half of a round trip: that is our share of the link.
        let gone = wait_before.saturating_sub(least_wait).as_secs_f64();
        let share = 2.0 * gone / rtt_before.as_secs_f64().max(1e-6);
        if least_wait < wait_before.mul_f64(OURS) || share > MOST {
            self.emptied += 1;
            if self.emptied == CONFIRMED {
                return Finding::Ours { rate: rate_before, is_left: least_wait > target };
            }
            self.test = None;
            self.next_test = now + FIRST.max(FEW_ROUNDS * rtt);
            return Finding::Foreign { limit: None, window: None };
        }
        if rounds < ROUNDS {
            return Finding::Foreign { limit: Some(limit), window: None };
        }
        self.test = None;
        self.emptied = 0;
        let moved = wait_before.abs_diff(least_wait) > (target / 4).max(rtt_before / 20);
        let before = self.unmoved.take();
        if moved {
            self.raises = 0;
        } else if rate_before >= enough && before.is_none() {
            self.unmoved = Some(least_wait);
        } else {
            let is_steady =
                before.is_some_and(|it| it.abs_diff(least_wait) <= (target / 4).max(rtt / 64));
            if is_steady || self.raises == RAISES {
                return Finding::Longer;
            }
            self.raises += 1;
        }
        let more = (MODEST / share.max(0.01)).min(MOST_AT_ONCE);
        let window =
            (self.unmoved.is_none() && more > 1.0).then_some((2.0 * limit as f64 * more) as u64);
        let is_settled = moved && window.is_none();
        let pause = if is_settled {
            BETWEEN.max(BETWEEN_ROUNDS * rtt)
        } else {
            FIRST.max(FEW_ROUNDS * rtt)
        };
        self.next_test = now + pause;
        Finding::Foreign { limit: None, window }
    }
}
