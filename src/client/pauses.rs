//! How long to wait from the end of one attempt, or session, to the next attempt.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use quinn::ConnectionError;

use super::{
    dial::DialError,
    ended::{Ended, Refusal},
    rival::Rival,
};

/// From the first failed attempt to the next, doubled up to the longest.
const SHORTEST: Duration = Duration::from_millis(250);
/// A server that restarts is found again within this time.
const LONGEST: Duration = Duration::from_secs(10);
/// The pause where there is no route at all: the kernel tells when there is one, link, address and
/// route in close succession.
const NO_ROUTE: Duration = Duration::from_millis(20);
/// A server that refuses is asked again within a minute, and within five when it has refused for long. Random
/// jitter adds up to as much again, so that the clients of one server do not ask it all at once.
const REFUSED: Duration = Duration::from_secs(30);
const LONGEST_REFUSED: Duration = Duration::from_secs(150);
/// In 15 minutes from the shortest pause to the longest.
const REFUSED_FACTOR: f32 = 1.2;
/// Another network may lead to another server; a link that flaps must not make us ask it all the time.
const REFUSED_FLOOR: Duration = Duration::from_secs(5);

/// A pause before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    /// How long it lasts even if a network changes.
    pub(super) shortest: Duration,
    /// How long it lasts if none does.
    pub(super) longest: Duration,
}

/// The pauses between attempts, which grow.
#[derive(Debug)]
pub(super) struct Pauses {
    ordinary: ExponentialBackoff,
    refused: ExponentialBackoff,
    /// Whether a session was reset.
    was_reset: bool,
    /// How often the server told of another machine with our key.
    rivals: u32,
}

impl Default for Pauses {
    fn default() -> Self {
        let begin = |from, to, factor| {
            ExponentialBuilder::new()
                .with_min_delay(from)
                .with_max_delay(to)
                .with_factor(factor)
                .with_jitter()
                .without_max_times()
                .build()
        };
        Self {
            ordinary: begin(SHORTEST, LONGEST, 2.0),
            refused: begin(REFUSED, LONGEST_REFUSED, REFUSED_FACTOR),
            was_reset: false,
            rivals: 0,
        }
    }
}

impl Pauses {
    /// The pause after an attempt or a session that ended this way; `None` if the next attempt is due.
    pub(super) fn after(&mut self, ended: &Ended, refusal: Option<&Refusal>) -> Option<Pause> {
        if refusal.is_some_and(Refusal::is_proven) {
            let longest = self.refused.next().unwrap_or(LONGEST_REFUSED);
            return Some(Pause { shortest: REFUSED_FLOOR, longest });
        }
        if let Some(rival) = Rival::of(ended) {
            let pause = rival.pause(self.rivals);
            self.rivals += 1;
            return Some(Pause { shortest: pause, longest: pause });
        }
        let was_reset = self.was_reset;
        self.was_reset |= matches!(ended, Ended::Lost(ConnectionError::Reset));
        match ended {
            // The attempts had their own pace, or none was made since.
            Ended::Dial(DialError::Handshake(error)) if error.is_of_one_handshake() => None,
            Ended::NoGreeting
            // The person says when.
            | Ended::Paused
            // It answered just now.
            | Ended::Forgotten(_)
            | Ended::Lost(ConnectionError::TimedOut) => None,
            // So did a server that resets what it does not know. When it resets one session after the other, they
            // may lead to several servers in turns.
            Ended::Lost(ConnectionError::Reset) if !was_reset => None,
            Ended::Dial(DialError::NoRoute(_) | DialError::Pinned { .. }) => {
                Some(Pause { shortest: NO_ROUTE, longest: LONGEST })
            }
            _ => {
                let longest = self.ordinary.next().unwrap_or(LONGEST);
                Some(Pause { shortest: SHORTEST, longest })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn::ApplicationClose;

    use super::*;
    use crate::client::tests::candidate;
    use crate::path::handshake::HandshakeError;
    use crate::{identity::PublicKey, quic::close};

    fn refused() -> Ended {
        let (error_code, reason) = (close::UNKNOWN_KEY, bytes::Bytes::new());
        Ended::Lost(ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }))
    }

    fn after(ended: &Ended, count: usize) -> Vec<Pause> {
        let mut pauses = Pauses::default();
        let refusal = ended.refusal(PublicKey::from([9; 32]));
        (0..count).map(|_| pauses.after(ended, refusal.as_ref()).unwrap()).collect()
    }

    #[test]
    fn pauses_grow_to_a_bound_and_never_end() {
        let pauses = after(&Ended::Session(ConnectionError::Reset.into()), 50);
        assert!(pauses[0].longest >= SHORTEST && pauses[0].longest <= 2 * SHORTEST);
        assert!(pauses.iter().all(|pause| pause.longest <= 2 * LONGEST), "{pauses:?}");
    }

    #[test]
    fn a_server_that_refuses_is_asked_every_minute_and_later_every_five() {
        let pauses = after(&refused(), 50);
        let minute = Duration::from_secs(60);
        assert!(pauses[0].longest >= minute / 2 && pauses[0].longest <= minute, "{pauses:?}");
        let late = &pauses[20..];
        assert!(late.iter().all(|it| it.longest >= 2 * minute && it.longest <= 5 * minute));
        assert!(pauses.iter().all(|pause| pause.shortest == REFUSED_FLOOR));
    }

    #[test]
    fn an_unproven_refusal_does_not_lengthen_the_pause() {
        let server = ([192, 0, 2, 1], 4433).into();
        let ended = Ended::Dial(HandshakeError::NotRoamd { server, reason: "x".into() }.into());
        assert!(after(&ended, 50).iter().all(|pause| pause.longest <= 2 * LONGEST));
    }

    #[test]
    fn a_session_that_an_earlier_run_left_behind_keeps_its_successor_out_for_less_than_a_minute() {
        let displaced = || {
            let (error_code, reason) = (close::DISPLACED, bytes::Bytes::from_static(b"192.0.2.7"));
            ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason })
        };
        let mut pauses = Pauses::default();
        let mut pause = |ended| pauses.after(&ended, None).unwrap().longest;
        let taken = pause(Ended::Lost(displaced()));
        let refused = pause(Ended::Session(displaced().into()));
        let minute = Duration::from_secs(60);
        assert!(refused >= minute / 2 && taken + refused < minute, "{taken:?}, {refused:?}");
        assert!(pause(Ended::Session(displaced().into())) >= 3 * minute);
    }

    #[test]
    fn a_server_that_answers_but_does_not_know_the_connection_is_asked_at_once() {
        assert_eq!(Pauses::default().after(&Ended::Forgotten(candidate("eth0", 1)), None), None);
    }

    #[test]
    fn a_server_that_resets_one_session_after_the_other_is_asked_at_once_the_first_time_only() {
        let (mut pauses, reset) = (Pauses::default(), Ended::Lost(ConnectionError::Reset));
        assert_eq!(pauses.after(&reset, None), None);
        let pauses: Vec<_> = (0..20).map(|_| pauses.after(&reset, None).unwrap()).collect();
        assert!(pauses.iter().all(|pause| pause.shortest == SHORTEST));
        assert!(pauses[10].longest >= LONGEST, "{pauses:?}");
    }

    #[test]
    fn a_timeout_adds_no_pause() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.after(&Ended::Lost(ConnectionError::TimedOut), None), None);
    }
}
