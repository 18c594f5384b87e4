//! Careful Resume (RFC 9959): a path that is remembered need not begin with the least window.
//!
//! ```text
//!  Reconnaissance ── round trip as remembered, all of the first one arrived ──▶ Unvalidated, at the jump
//!        │ another round trip, or congestion: as on an unknown path                │ its first packet arrived,
//!        ▼                                                                         ▼ or the window is full
//!      done ◀── all of it arrived ─────────────────────────────────────── Validating, at what is under way
//!        ▲                                                                         │ congestion, here or before
//!        └── then slow start ends at half of what arrived ── Retreat, at half ◀────┘
//! ```
//! What is remembered is what was delivered, so the jump is to half of that and not of a window that nobody used.
//! "What arrived" begins with what was under way at the jump, so that a retreat leaves about what an ordinary cut
//! would have left without one. quinn paces the jump.

use std::time::{Duration, Instant};

use super::INITIAL_WINDOW;

/// More is not remembered: half of it is 20 ms of 1 Gbit/s.
const MOST: u64 = 5 << 20;
/// Less would not justify a jump (RFC 9959 §3.1).
const LEAST: u64 = 4 * INITIAL_WINDOW;
/// A rate is measured over so long at least, as packets may arrive together.
const ROUND: Duration = Duration::from_millis(200);
/// The best rate of the last one to two of these counts.
const PERIOD: Duration = Duration::from_secs(30);

/// What is remembered of a path: bytes that were delivered in a round trip, and the shortest round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) window: u64,
    pub(crate) rtt: Duration,
}

/// The fastest delivery of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivery {
    round: Option<(Instant, u64)>,
    turned: Option<Instant>,
    /// Bytes per second in this period and the last.
    best: [f64; 2],
}

impl Delivery {
    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let turned = *self.turned.get_or_insert(now);
        if now >= turned + PERIOD {
            (self.best, self.turned) = ([0.0, self.best[0]], Some(now));
        }
        let rtt = now.saturating_duration_since(sent);
        let (began, arrived) = self.round.get_or_insert((now, 0));
        let lasted = now.saturating_duration_since(*began);
        if lasted >= rtt.max(ROUND) {
            self.best[0] = self.best[0].max(*arrived as f64 / lasted.as_secs_f64());
            self.round = Some((now, bytes));
        } else {
            *arrived += bytes;
        }
    }

    /// Bytes that were delivered in `rtt`, the shortest round trip; zero for too little to say anything.
    pub(super) fn in_round_trip(&self, rtt: Duration) -> u64 {
        let bytes = (self.best[0].max(self.best[1]) * rtt.as_secs_f64()) as u64;
        if bytes < LEAST { 0 } else { bytes.min(MOST) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct CarefulResume {
    path: Remembered,
    phase: Phase,
    /// When the newest packet was sent, and what was under way with it.
    newest: Option<(Instant, u64)>,
}

/// `pipe` is what was under way at the jump, and what has arrived since.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Until the packet of `until` arrives, the last of the first round trip.
    Reconnaissance {
        until: Option<Instant>,
    },
    Unvalidated {
        since: Instant,
        pipe: u64,
    },
    /// Until what was sent before `until` has arrived; the same below.
    Validating {
        until: Instant,
        pipe: u64,
    },
    Retreat {
        until: Instant,
        pipe: u64,
    },
}

/// What follows from an acknowledged packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// Go on with a window of so many bytes.
    Window(u64),
    /// The retreat is over: slow start ends at a window of so many bytes.
    Resettle(u64),
    Done,
}

impl CarefulResume {
    pub(super) fn new(path: Remembered) -> Self {
        Self { path, phase: Phase::Reconnaissance { until: None }, newest: None }
    }

    /// Whether the window stays as it is.
    pub(super) fn holds_window(&self) -> bool {
        matches!(self.phase, Phase::Unvalidated { .. } | Phase::Retreat { .. })
    }

    /// A packet leaves; with it `in_flight` bytes are under way of a `window`.
    pub(super) fn on_sent(&mut self, now: Instant, in_flight: u64, window: u64, mtu: u16) {
        self.newest = Some((now, in_flight));
        if let Phase::Unvalidated { pipe, .. } = self.phase
            && in_flight + u64::from(mtu) > window
        {
            self.phase = Phase::Validating { until: now, pipe };
        }
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, window: u64) -> Step {
        let (last_sent, in_flight) = self.newest.unwrap_or((now, 0));
        match &mut self.phase {
            Phase::Reconnaissance { until } => {
                let rtt = now.saturating_duration_since(sent);
                // "current_rtt < (saved_rtt / 2)" or "current_rtt > (saved_rtt x 10)": another path.
                if rtt < self.path.rtt / 2 || rtt > self.path.rtt * 10 {
                    return Step::Done;
                }
                if sent < *until.get_or_insert(last_sent) {
                    return Step::Wait;
                }
                let jump = self.path.window.min(MOST) / 2;
                if jump <= window {
                    return Step::Done;
                }
                self.phase = Phase::Unvalidated { since: now, pipe: in_flight.min(window) };
                Step::Window(jump)
            }
            Phase::Unvalidated { since, pipe } => {
                *pipe += bytes;
                if sent < *since {
                    return Step::Wait;
                }
                let pipe = *pipe;
                if in_flight <= pipe.max(INITIAL_WINDOW) {
                    // What was sent did not fill the window, which proves nothing.
                    self.phase = Phase::Validating { until: sent, pipe };
                    return Step::Window(pipe.max(INITIAL_WINDOW));
                }
                self.phase = Phase::Validating { until: last_sent, pipe };
                Step::Window(in_flight)
            }
            Phase::Validating { until, pipe } => {
                *pipe += bytes;
                if sent >= *until { Step::Done } else { Step::Wait }
            }
            Phase::Retreat { until, pipe } => {
                *pipe += bytes;
                if sent >= *until { Step::Resettle(*pipe / 2) } else { Step::Wait }
            }
        }
    }

    /// Takes note of congestion; the window that is left where the jump is to blame.
    pub(super) fn retreat(&mut self, now: Instant) -> Option<u64> {
        let (Phase::Unvalidated { pipe, .. } | Phase::Validating { pipe, .. }) = self.phase else {
            return None;
        };
        let until = self.newest.map_or(now, |(sent, _)| sent);
        self.phase = Phase::Retreat { until, pipe };
        Some(pipe / 2)
    }

    /// Whether congestion ends it.
    pub(super) fn ends_at_congestion(&self) -> bool {
        matches!(self.phase, Phase::Reconnaissance { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MTU: u16 = 1452;
    const PATH: Remembered = Remembered { window: 400_000, rtt: Duration::from_millis(40) };

    /// A path after its jump, at which 30 KB were under way; its packets leave from the time returned.
    fn after_jump(start: Instant) -> (CarefulResume, Instant) {
        let mut resume = CarefulResume::new(PATH);
        resume.on_sent(start, 1452, INITIAL_WINDOW, MTU);
        resume.on_sent(start + 30 * MS, 40_000, INITIAL_WINDOW, MTU);
        assert_eq!(resume.on_ack(start + 45 * MS, start, 1452, INITIAL_WINDOW), Step::Wait);
        resume.on_sent(start + 60 * MS, 30_000, INITIAL_WINDOW, MTU);
        let jumped = start + 75 * MS;
        let step = resume.on_ack(jumped, start + 30 * MS, 1452, INITIAL_WINDOW);
        assert_eq!(step, Step::Window(200_000), "all of the first round trip has arrived");
        (resume, jumped)
    }

    #[test]
    fn half_of_what_was_delivered_is_tried_and_kept_as_far_as_it_was_used() {
        let (mut resume, jumped) = after_jump(Instant::now());
        assert!(resume.holds_window());
        let sent = jumped + 10 * MS;
        resume.on_sent(sent, 150_000, 200_000, MTU);
        assert_eq!(resume.on_ack(sent + 40 * MS, sent, 1452, 200_000), Step::Window(150_000));
        assert!(!resume.holds_window());
        assert_eq!(resume.on_ack(sent + 40 * MS, sent, 1452, 150_000), Step::Done);
    }

    #[test]
    fn a_jump_that_nobody_used_is_taken_back() {
        let (mut resume, jumped) = after_jump(Instant::now());
        resume.on_sent(jumped, 10_000, 200_000, MTU);
        let step = resume.on_ack(jumped + 40 * MS, jumped, 10_000, 200_000);
        assert_eq!(step, Step::Window(INITIAL_WINDOW));
    }

    #[test]
    fn another_round_trip_is_another_path() {
        let start = Instant::now();
        for rtt in [19 * MS, 401 * MS] {
            let step = CarefulResume::new(PATH).on_ack(start + rtt, start, 1200, INITIAL_WINDOW);
            assert_eq!(step, Step::Done);
        }
    }

    #[test]
    fn a_window_that_has_grown_beyond_the_jump_is_left_alone() {
        let (mut resume, start) = (CarefulResume::new(PATH), Instant::now());
        resume.on_sent(start, 1452, 200_000, MTU);
        assert_eq!(resume.on_ack(start + 40 * MS, start, 1452, 200_000), Step::Done);
    }

    #[test]
    fn a_retreat_leaves_half_of_what_arrived_and_of_what_was_under_way_before() {
        let (mut resume, jumped) = after_jump(Instant::now());
        resume.on_sent(jumped + 10 * MS, 150_000, 200_000, MTU);
        resume.on_ack(jumped + 20 * MS, jumped - 15 * MS, 30_000, 200_000);
        assert_eq!(resume.retreat(jumped + 30 * MS), Some(30_000), "30 KB before and 30 KB since");
        assert!(resume.holds_window());
        assert_eq!(resume.retreat(jumped + 31 * MS), None, "once is enough");
        let sent = jumped + 10 * MS;
        let step = resume.on_ack(sent + 40 * MS, sent, 60_000, 30_000);
        assert_eq!(step, Step::Resettle(60_000), "half of the 120 KB that arrived in all");
    }

    #[test]
    fn what_was_delivered_of_late_is_remembered_and_not_more_than_is_safe() {
        let (mut delivery, start) = (Delivery::default(), Instant::now());
        let deliver = |delivery: &mut Delivery, from: u32, to: u32, bytes| {
            for at in from..to {
                delivery.on_ack(start + at * 10 * MS, start + at * 10 * MS - 40 * MS, bytes);
            }
        };
        // 10 MB/s for ten seconds.
        deliver(&mut delivery, 10, 1000, 100_000);
        let window = delivery.in_round_trip(40 * MS);
        assert!((380_000..420_000).contains(&window), "{window}");
        assert_eq!(delivery.in_round_trip(10 * MS), 0, "too little for a jump");
        assert_eq!(delivery.in_round_trip(Duration::from_secs(2)), MOST);
        // A tenth of that for the next minutes.
        deliver(&mut delivery, 1000, 10_000, 10_000);
        assert_eq!(delivery.in_round_trip(40 * MS), 0, "what was delivered long ago is forgotten");
    }
}
