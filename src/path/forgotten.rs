//! Detects that the server has forgotten a connection: it answers probes, but not the connection.
//!
//! A restarted server, or another machine in its place, does not know a connection. It sends a stateless reset
//! (RFC 9000 §10.3), which may be lost; without one, QUIC would wait for the idle timeout. Silence alone proves
//! nothing: the path may be dead. Therefore the connection and a probe ask at the same time over the same path:
//!
//! ```text
//!                   probe answered, connection not
//!  both ask ─┬──────────────────────────────────────▶ this counts; both ask again ─▶ … ─▶ forgotten
//!     ▲      ├─ connection answered ─▶ the count is zero again
//!     └──────┴─ neither ─▶ the path may be dead
//! ```
//! The count stays when the connection moves to another path: both paths may lead to such a server.

use std::time::{Duration, Instant};

use super::PathKey;

/// Consecutive questions that only the probe answered, after which the server has forgotten the connection. Fewer
/// prove nothing: after an outage a server may answer a probe a moment before it answers the connection, and
/// packets may be lost.
const IN_VAIN: u32 = 3;
/// The time after which an unanswered question is repeated. A new question replaces the one before.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same where the probe was refused: nobody waits for its answer.
const REFUSED: Duration = Duration::from_secs(1);

/// What to send now over a silent path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Let the connection send one small packet that the server must acknowledge.
    Nudge,
    /// Let the connection and a probe ask, each in a way that the server answers at once.
    AskBoth,
    /// Nothing: the server has forgotten the connection.
    GiveUp,
}

/// Evidence that the server has forgotten the connection.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    /// When the newest acknowledged packet was sent.
    acknowledged: Option<Instant>,
    question: Option<Question>,
    in_vain: u32,
}

/// The last question that the connection and a probe asked together.
#[derive(Debug)]
struct Question {
    path: PathKey,
    asked: Instant,
    /// The probe was answered.
    is_answered: bool,
    /// The time after which it is repeated.
    patience: Duration,
}

impl Forgotten {
    /// What to send while the connection is silent on `path`; its newest acknowledged packet was sent at
    /// `acknowledged`. Between two calls, the server must have had the time to answer.
    #[must_use]
    pub(crate) fn ask(
        &mut self,
        path: PathKey,
        acknowledged: Option<Instant>,
        now: Instant,
    ) -> Advice {
        if self.acknowledged != acknowledged {
            *self = Self { acknowledged, ..Self::default() };
            return Advice::Nudge;
        }
        match self.question.take() {
            Some(Question { is_answered: true, .. }) => self.in_vain += 1,
            Some(question) if question.path == path && now < question.asked + question.patience => {
                self.question = Some(question);
                return Advice::Nudge;
            }
            Some(_) | None => {}
        }
        if self.is_certain() {
            return Advice::GiveUp;
        }
        self.question = Some(Question { path, asked: now, is_answered: false, patience: PATIENCE });
        Advice::AskBoth
    }

    /// Whether the server has forgotten the connection.
    #[must_use]
    pub(crate) fn is_certain(&self) -> bool {
        self.in_vain == IN_VAIN
    }

    /// The server answered a probe over `path`.
    pub(crate) fn answered(&mut self, path: PathKey) {
        if let Some(question) = self.question.as_mut().filter(|question| question.path == path) {
            question.is_answered = true;
        }
    }

    /// A probe over `path` was refused: a server that was stopped may be back in a moment.
    pub(crate) fn refused(&mut self, path: PathKey) {
        if let Some(question) = self.question.as_mut().filter(|question| question.path == path) {
            question.patience = REFUSED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::candidate::Transport;

    const PACE: Duration = Duration::from_millis(250);

    fn key(link: u32) -> PathKey {
        let server = ([192, 0, 2, 1], 4433).into();
        PathKey { link, local: [10, 0, 0, 2].into(), server, transport: Transport::Udp }
    }

    /// A connection whose last answer is noted, and that is silent.
    fn silent(now: Instant) -> Forgotten {
        let mut forgotten = Forgotten::default();
        assert_eq!(forgotten.ask(key(1), Some(now), now), Advice::Nudge);
        forgotten
    }

    #[test]
    fn a_question_that_was_refused_is_repeated_soon() {
        let heard = Instant::now();
        let mut forgotten = silent(heard);
        assert_eq!(forgotten.ask(key(1), Some(heard), heard), Advice::AskBoth);
        forgotten.refused(key(2));
        assert_eq!(forgotten.ask(key(1), Some(heard), heard + REFUSED), Advice::Nudge);
        forgotten.refused(key(1));
        assert_eq!(forgotten.ask(key(1), Some(heard), heard + REFUSED), Advice::AskBoth);
        assert!(!forgotten.is_certain());
    }

    #[test]
    fn a_server_that_answers_probes_only_has_forgotten_the_connection() {
        let heard = Instant::now();
        let (mut forgotten, mut now) = (silent(heard), heard);
        for _ in 0..IN_VAIN {
            now += PACE;
            assert_eq!(forgotten.ask(key(1), Some(heard), now), Advice::AskBoth);
            forgotten.answered(key(1));
        }
        assert!(!forgotten.is_certain());
        assert_eq!(forgotten.ask(key(1), Some(heard), now + PACE), Advice::GiveUp);
        assert!(forgotten.is_certain());
        assert!(now + PACE - heard >= Duration::from_secs(1));
    }

    #[test]
    fn a_dead_path_is_no_forgotten_connection_however_long_it_lasts() {
        let heard = Instant::now();
        let mut forgotten = silent(heard);
        let mut questions = 0;
        for tick in 1..=240 {
            match forgotten.ask(key(1), Some(heard), heard + tick * PACE) {
                Advice::Nudge => {}
                Advice::AskBoth => questions += 1,
                Advice::GiveUp => panic!("given up after {tick} ticks"),
            }
            forgotten.answered(key(2));
        }
        assert_eq!(questions, 20, "one question in {PATIENCE:?}");
    }

    #[test]
    fn one_answer_on_the_connection_clears_all_suspicion() {
        let heard = Instant::now();
        let (mut forgotten, mut now, mut answered) = (silent(heard), heard, heard);
        for round in 0..100 {
            now += PACE;
            if round % IN_VAIN == IN_VAIN - 1 {
                answered = now;
            }
            assert_ne!(forgotten.ask(key(1), Some(answered), now), Advice::GiveUp);
            forgotten.answered(key(1));
        }
    }

    #[test]
    fn a_connection_that_switches_paths_without_an_answer_is_given_up() {
        let heard = Instant::now();
        let (mut forgotten, mut now) = (silent(heard), heard);
        for round in 0..IN_VAIN {
            now += PACE;
            let path = key(1 + round % 2);
            assert_eq!(forgotten.ask(path, Some(heard), now), Advice::AskBoth);
            forgotten.answered(path);
        }
        assert_eq!(forgotten.ask(key(1), Some(heard), now + PACE), Advice::GiveUp);
    }

    #[test]
    fn a_question_on_an_abandoned_path_expects_no_answer() {
        let heard = Instant::now();
        let mut forgotten = silent(heard);
        assert_eq!(forgotten.ask(key(1), Some(heard), heard + PACE), Advice::AskBoth);
        assert_eq!(forgotten.ask(key(2), Some(heard), heard + 2 * PACE), Advice::AskBoth);
        forgotten.answered(key(1));
        assert_eq!(forgotten.ask(key(2), Some(heard), heard + 3 * PACE), Advice::Nudge);
    }
}
