//! Careful Resume (RFC 9959): a path that is remembered need not begin with the least window.
//!
//! ```text
//!  Reconnaissance ── first packet arrives, round trip as remembered ──▶ Unvalidated ── as much arrives ──▶ done
//!        │ another round trip, or congestion: as on an unknown path         │ congestion
//!        ▼                                                                  ▼
//!      done                                              safe retreat: half of what has arrived
//! ```
//! The jump is to half of the remembered window. quinn paces it.

use std::time::{Duration, Instant};

/// What is remembered of a path: the window in bytes, and the shortest round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) window: u64,
    pub(crate) rtt: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct CarefulResume {
    path: Remembered,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Reconnaissance,
    /// After the jump; so much that was sent since then has arrived.
    Unvalidated {
        since: Instant,
        arrived: u64,
    },
}

/// What follows from an acknowledged packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// Go on with a window of so many bytes.
    Jump(u64),
    Done,
}

impl CarefulResume {
    pub(super) fn new(path: Remembered) -> Self {
        Self { path, phase: Phase::Reconnaissance }
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) -> Step {
        let jump = self.path.window / 2;
        match &mut self.phase {
            Phase::Reconnaissance => {
                let rtt = now.saturating_duration_since(sent);
                // "current_rtt < (saved_rtt / 2)" or "current_rtt > (saved_rtt x 10)": another path.
                if rtt < self.path.rtt / 2 || rtt > self.path.rtt * 10 {
                    return Step::Done;
                }
                self.phase = Phase::Unvalidated { since: now, arrived: 0 };
                Step::Jump(jump)
            }
            Phase::Unvalidated { since, arrived } if sent >= *since => {
                *arrived += bytes;
                if *arrived >= jump { Step::Done } else { Step::Wait }
            }
            Phase::Unvalidated { .. } => Step::Wait,
        }
    }

    /// The window after congestion that a packet sent at `sent` showed, where the jump is to blame.
    pub(super) fn retreat(self, sent: Instant) -> Option<u64> {
        match self.phase {
            Phase::Unvalidated { since, arrived } if sent >= since => Some(arrived / 2),
            Phase::Reconnaissance | Phase::Unvalidated { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PATH: Remembered = Remembered { window: 400_000, rtt: Duration::from_millis(40) };

    #[test]
    fn a_path_that_is_as_remembered_goes_on_with_half_of_its_window() {
        let (mut resume, start) = (CarefulResume::new(PATH), Instant::now());
        assert_eq!(resume.on_ack(start + 45 * MS, start, 1200), Step::Jump(200_000));
        assert_eq!(
            resume.on_ack(start + 46 * MS, start, 300_000),
            Step::Wait,
            "sent before the jump"
        );
        let sent = start + 50 * MS;
        assert_eq!(resume.on_ack(sent + 45 * MS, sent, 199_999), Step::Wait);
        assert_eq!(resume.on_ack(sent + 45 * MS, sent, 1), Step::Done);
    }

    #[test]
    fn another_round_trip_is_another_path() {
        let start = Instant::now();
        for rtt in [19 * MS, 401 * MS] {
            assert_eq!(CarefulResume::new(PATH).on_ack(start + rtt, start, 1200), Step::Done);
        }
    }

    #[test]
    fn congestion_after_the_jump_leaves_half_of_what_arrived() {
        let (mut resume, start) = (CarefulResume::new(PATH), Instant::now());
        let sent = start + 50 * MS;
        assert_eq!(resume.retreat(sent), None);
        resume.on_ack(start + 45 * MS, start, 1200);
        assert_eq!(resume.retreat(start + 44 * MS), None, "sent before the jump");
        assert_eq!(resume.retreat(sent), Some(0));
        resume.on_ack(sent + 45 * MS, sent, 100_000);
        assert_eq!(resume.retreat(sent), Some(50_000));
    }
}
