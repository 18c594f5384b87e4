//! Detects that the other side is silent: a pure policy, without clock, sockets or tasks.
//!
//! Two times describe a silence:
//! - **unheard since**: a packet was sent then, and none was received since. From the socket.
//! - **unacknowledged since**: a packet waits for its acknowledgement since then, and none was acknowledged. From
//!   the congestion controller. Only this shows a path that works in one direction, towards this side.
//!
//! ```text
//!              overdue, and something is owed: Suspect
//!  Trusted ───────────────────────────────────────────────▶ Suspected ──┐
//!   ▲ │ ▲                                                      │    ▲   │ every 250 ms: Nudge
//!   │ └─┘ overdue, and nothing may be owed: Idle, Ping         │    └───┘
//!   └──────────────────── proof: Trust, LostAll ───────────────┘
//! ```
//! The caller acts on the verdict. The client's path manager may also suspect a path, or trust it again, for other
//! reasons.

use std::time::{Duration, Instant};

/// Shorter silences are common on wireless links. Every usable link answers within the maximum, while an
/// acknowledgement after an outage can make the measured round trip arbitrarily long.
const SHORTEST_SILENCE: Duration = Duration::from_millis(250);
const LONGEST_SILENCE: Duration = Duration::from_secs(2);
/// What a full queue on the path may add to a round trip. It delays acknowledgements but not received packets.
const QUEUED: Duration = Duration::from_millis(500);
/// After a silence of this length, the packets that were in flight when it began count as lost.
const LOST_ALL: Duration = Duration::from_millis(500);
/// The interval of packets that ask a suspected side for an acknowledgement.
pub(crate) const NUDGE: Duration = Duration::from_millis(250);
/// The interval of verdicts while the other side is suspected.
pub(crate) const WATCH: Duration = Duration::from_millis(10);

/// How long the other side may be silent: twice the probe timeout of QUIC (RFC 9002 §6.2.1), within 250 ms and 2 s.
/// quinn does not expose the variance of the round trip, so the probe timeout is taken as 1.5 round trips and the
/// 25 ms that an acknowledgement may be delayed, which is more than the true one on all but the worst links.
#[must_use]
pub(crate) fn silence_limit(rtt: Duration) -> Duration {
    let pto = rtt * 3 / 2 + Duration::from_millis(25);
    (2 * pto).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}

/// Whether the other side owes an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Owed {
    #[default]
    Nothing,
    /// Something was sent that may be a bare acknowledgement, which is not answered.
    Perhaps,
    Answer,
}

/// Observations of the socket and the congestion controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    pub(crate) unheard_since: Option<Instant>,
    pub(crate) unacknowledged_since: Option<Instant>,
    pub(crate) owed: Owed,
    /// The path worked at this moment. A client, which chooses the path, counts the sending of the newest packet
    /// that was acknowledged, since the path must work both ways; a server counts what it hears.
    pub(crate) proven_at: Option<Instant>,
}

impl Signs {
    /// The time from which an answer is overdue.
    #[must_use]
    pub(crate) fn overdue_at(&self, limit: Duration) -> Option<Instant> {
        let unheard = self.unheard_since.map(|since| since + limit);
        let unacknowledged = self.unacknowledged_since.map(|since| since + limit.max(QUEUED));
        unheard.into_iter().chain(unacknowledged).min()
    }
}

/// The conclusion from the signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The silence means nothing: no answer is owed.
    Idle,
    /// The silence may mean nothing: send a packet that must be acknowledged.
    Ping,
    /// The path may be dead.
    Suspect,
    /// Ask again. QUIC doubles its probe timeout each time, and sends nothing else once lost packets fill its
    /// window.
    Nudge,
    /// The path works, and possibly nothing was lost.
    Trust,
    /// The path works, but the packets that were in flight when the silence began are lost.
    LostAll,
}

/// Whether the other side is trusted to be there; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Liveness(Option<Suspicion>);

#[derive(Debug)]
struct Suspicion {
    since: Instant,
    nudged: Instant,
}

impl Liveness {
    #[must_use]
    pub(crate) fn is_suspected(&self) -> bool {
        self.0.is_some()
    }

    /// Suspects the other side. The caller asks it at once; the first [`Verdict::Nudge`] comes later. Returns whether
    /// the suspicion is new.
    pub(crate) fn suspect(&mut self, now: Instant) -> bool {
        let is_new = self.0.is_none();
        self.0.get_or_insert(Suspicion { since: now, nudged: now });
        is_new
    }

    /// Ends the suspicion for another reason than a proof.
    pub(crate) fn trust(&mut self) {
        self.0 = None;
    }

    /// What to do now, if anything; `limit` is how long a silence may last.
    pub(crate) fn verdict(
        &mut self,
        signs: &Signs,
        limit: Duration,
        now: Instant,
    ) -> Option<Verdict> {
        let Some(suspicion) = &mut self.0 else {
            signs.overdue_at(limit).filter(|at| *at <= now)?;
            return Some(match signs.owed {
                Owed::Nothing => Verdict::Idle,
                Owed::Perhaps => Verdict::Ping,
                Owed::Answer => Verdict::Suspect,
            });
        };
        if signs.proven_at.is_some_and(|at| at >= suspicion.since) {
            let is_lost = now.duration_since(suspicion.since) >= LOST_ALL;
            self.0 = None;
            return Some(if is_lost { Verdict::LostAll } else { Verdict::Trust });
        }
        if now.duration_since(suspicion.nudged) < NUDGE {
            return None;
        }
        suspicion.nudged = now;
        Some(Verdict::Nudge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_millis(250);

    /// A connection that sent something at `start` which must be answered.
    struct Fixture {
        liveness: Liveness,
        signs: Signs,
        start: Instant,
    }

    fn sent() -> Fixture {
        let start = Instant::now();
        let signs = Signs {
            unheard_since: Some(start),
            unacknowledged_since: Some(start),
            owed: Owed::Answer,
            proven_at: None,
        };
        Fixture { liveness: Liveness::default(), signs, start }
    }

    impl Fixture {
        fn at(&self, milliseconds: u32) -> Instant {
            self.start + milliseconds * MS
        }

        fn verdict(&mut self, milliseconds: u32) -> Option<Verdict> {
            let now = self.at(milliseconds);
            self.liveness.verdict(&self.signs, LIMIT, now)
        }

        /// Suspected from 250 ms on.
        fn suspect(mut self) -> Self {
            assert_eq!(self.verdict(250), Some(Verdict::Suspect));
            assert!(self.liveness.suspect(self.at(250)));
            self
        }
    }

    #[test]
    fn a_side_that_owes_an_answer_and_is_unheard_for_the_limit_is_suspected() {
        let mut fixture = sent();
        assert_eq!(fixture.verdict(249), None);
        assert_eq!(fixture.verdict(250), Some(Verdict::Suspect));
    }

    #[test]
    fn a_side_that_is_heard_but_acknowledges_nothing_is_suspected_after_half_a_second() {
        let mut fixture = sent();
        fixture.signs.unheard_since = None;
        assert_eq!(fixture.verdict(499), None, "a queue may hold acknowledgements up");
        assert_eq!(fixture.verdict(500), Some(Verdict::Suspect));
        let limit = Duration::from_secs(1);
        assert_eq!(fixture.signs.overdue_at(limit), Some(fixture.start + limit));
    }

    #[test]
    fn a_side_that_was_sent_nothing_is_never_overdue() {
        let mut fixture = sent();
        fixture.signs = Signs::default();
        assert_eq!(fixture.signs.overdue_at(LIMIT), None);
        assert_eq!(fixture.verdict(60_000), None);
    }

    #[test]
    fn a_side_that_owes_nothing_is_not_suspected() {
        let mut fixture = sent();
        fixture.signs.unacknowledged_since = None;
        for (owed, expected) in [(Owed::Nothing, Verdict::Idle), (Owed::Perhaps, Verdict::Ping)] {
            fixture.signs.owed = owed;
            assert_eq!(fixture.verdict(249), None);
            assert_eq!(fixture.verdict(250), Some(expected));
            assert!(!fixture.liveness.is_suspected());
        }
    }

    #[test]
    fn a_suspected_side_is_nudged_four_times_a_second_for_as_long_as_it_is_silent() {
        let mut fixture = sent().suspect();
        let nudges = (251..=60_250).filter(|at| fixture.verdict(*at).is_some()).count();
        assert_eq!(nudges, 240);
    }

    #[test]
    fn a_proof_before_the_suspicion_does_not_end_it() {
        let mut fixture = sent().suspect();
        fixture.signs.proven_at = Some(fixture.at(249));
        assert_eq!(fixture.verdict(260), None);
        fixture.signs.proven_at = Some(fixture.at(250));
        assert_eq!(fixture.verdict(270), Some(Verdict::Trust));
        assert!(!fixture.liveness.is_suspected());
    }

    #[test]
    fn a_side_that_is_heard_again_without_a_proof_stays_suspected() {
        let mut fixture = sent().suspect();
        fixture.signs.unheard_since = None;
        assert_eq!(fixture.verdict(300), None, "the path must work both ways");
        assert!(fixture.liveness.is_suspected());
    }

    #[test]
    fn after_half_a_second_everything_in_flight_is_lost() {
        for (proven, expected) in [(749, Verdict::Trust), (750, Verdict::LostAll)] {
            let mut fixture = sent().suspect();
            fixture.signs.proven_at = Some(fixture.at(400));
            assert_eq!(fixture.verdict(proven), Some(expected));
        }
    }

    #[test]
    fn a_second_suspicion_does_not_postpone_the_first_ones_nudge() {
        let mut fixture = sent().suspect();
        let now = fixture.at(400);
        assert!(!fixture.liveness.suspect(now), "it is not new");
        assert_eq!(fixture.verdict(500), Some(Verdict::Nudge));
    }

    #[test]
    fn a_path_that_was_left_is_not_suspected() {
        let mut fixture = sent().suspect();
        fixture.liveness.trust();
        fixture.signs = Signs::default();
        assert_eq!(fixture.verdict(10_000), None);
    }

    #[test]
    fn the_limit_follows_the_round_trip_between_a_quarter_of_a_second_and_two() {
        for (rtt, limit) in [(0, 250), (60, 250), (100, 350), (600, 1850), (60_000, 2000)] {
            assert_eq!(silence_limit(rtt * MS), limit * MS, "{rtt} ms");
        }
    }
}
