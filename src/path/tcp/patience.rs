//! How long somebody who leads to the server is not asked, after an answer that asks for patience.

use std::{
    io,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use tokio::{
    sync::{self, MutexGuard},
    time,
};

use super::connect::Refused;
use crate::{clock, link::candidate::Transport, mutex::Mutex};

/// How long nobody is asked who refused user and password, for the first time and at most: a directory locks an account
/// after a few times.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How long nobody is asked for whom there were too many requests and who did not say how long.
const TOO_MANY: Duration = Duration::from_secs(5);
/// What somebody may ask for (Retry-After, RFC 9110 §10.2.3), at least and at most. Another network may have another
/// proxy of this name.
const SHORTEST_ASKED: Duration = Duration::from_secs(1);
const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// How long the next one who asks waits for the answer to the one before. User and password are refused at once.
const VERDICT: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Patience {
    whom: String,
    pause: Mutex<Pause>,
    turn: sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Pause {
    /// How often user and password were refused.
    refusals: u32,
    /// The answer, and until when nobody is asked.
    until: Option<(StatusCode, Instant)>,
}

impl Patience {
    /// Patience with whoever is at the other end of this transport.
    pub(super) fn with(whom: Transport) -> Self {
        Self { whom: format!("the {whom}"), pause: Mutex::default(), turn: sync::Mutex::default() }
    }

    /// An error while nobody is to be asked.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.pause().until {
            Some((status, until)) if clock::now() < until => {
                let reason = "; it is asked again later".into();
                Err(io::Error::other(Refused::new(&self.whom, status, reason)))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the answer to whoever asks at the moment: a password that is wrong is sent once. Whoever asks keeps the
    /// turn until there is an answer.
    pub(super) async fn turn(&self) -> io::Result<Option<MutexGuard<'_, ()>>> {
        let turn = time::timeout(VERDICT, self.turn.lock()).await.ok();
        self.check().map(|()| turn)
    }

    /// Ends the pause. The next one is as long as if it had ended by itself.
    pub(super) fn end(&self) {
        self.pause().until = None;
    }

    /// What came of a question.
    pub(super) fn answered<T>(&self, answer: &io::Result<T>) {
        let mut pause = self.pause();
        match answer {
            Ok(_) => *pause = Pause::default(),
            Err(error) => {
                if let Some(refused) = error.get_ref().and_then(|it| it.downcast_ref()) {
                    pause.refused(refused, clock::now());
                }
            }
        }
    }

    fn pause(&self) -> std::sync::MutexGuard<'_, Pause> {
        self.pause.lock()
    }
}

impl Pause {
    fn refused(&mut self, Refused { status, retry_after, .. }: &Refused, now: Instant) {
        if self.until.is_some_and(|(_, until)| now < until) {
            // Somebody else who asked at the same time heard it first.
            return;
        }
        let asked = retry_after.map(|pause| pause.clamp(SHORTEST_ASKED, LONGEST_ASKED));
        let pause = match *status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let pause = FIRST_PAUSE * (1 << self.refusals.min(6));
                self.refusals += 1;
                Some(pause.min(LONGEST_PAUSE))
            }
            StatusCode::TOO_MANY_REQUESTS => asked.or(Some(TOO_MANY)),
            // Without a time it speaks of the server, which may be back in a moment.
            StatusCode::SERVICE_UNAVAILABLE => asked,
            _ => None,
        };
        self.until = pause.map(|pause| (*status, now + pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds of the pauses after this answer, each time when the one before is over.
    fn pauses<const N: usize>(status: u16, retry_after: Option<u64>) -> [Option<u64>; N] {
        let (mut pause, mut now) = (Pause::default(), clock::now());
        let status = StatusCode::from_u16(status).unwrap();
        let mut refused = Refused::new("it", status, String::new());
        refused.retry_after = retry_after.map(Duration::from_secs);
        std::array::from_fn(|_| {
            pause.refused(&refused, now);
            let until = pause.until.map(|(_, until)| until);
            let seconds = until.map(|until| (until - now).as_secs());
            now = until.unwrap_or(now);
            seconds
        })
    }

    #[test]
    fn a_wrong_password_is_sent_less_and_less_often() {
        let expected = [60, 120, 240, 480, 960, 1920, 3600, 3600].map(Some);
        assert_eq!(pauses(407, Some(1)), expected);
    }

    #[test]
    fn who_asks_for_a_pause_has_it_within_bounds() {
        assert_eq!(pauses(429, None), [Some(5), Some(5)]);
        for status in [429, 503] {
            for (asked, had) in [(0, 1), (7, 7), (u64::MAX, 120)] {
                assert_eq!(pauses(status, Some(asked)), [Some(had)], "{status} {asked}");
            }
        }
        assert_eq!(pauses(503, None), [None]);
        assert_eq!(pauses(403, Some(7)), [None]);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_questions_of_the_same_time_count_once() {
        let patience = Patience::with(Transport::Proxy);
        let refused =
            Refused::new("the proxy", StatusCode::PROXY_AUTHENTICATION_REQUIRED, String::new());
        let answer = Err::<(), _>(io::Error::other(refused));
        patience.answered(&answer);
        patience.answered(&answer);
        assert_eq!(patience.pause().refusals, 1);
        time::advance(FIRST_PAUSE).await;
        patience.check().unwrap();
        patience.answered(&answer);
        assert!(patience.turn().await.unwrap_err().to_string().ends_with("asked again later"));
        time::advance(FIRST_PAUSE).await;
        assert!(patience.check().is_err(), "two minutes");
        patience.end();
        patience.check().unwrap();
        patience.answered(&answer);
        time::advance(3 * FIRST_PAUSE).await;
        assert!(patience.check().is_err(), "four minutes");
        patience.answered(&Ok(()));
        patience.check().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_at_a_time_unless_the_answer_takes_long() {
        let patience = Patience::with(Transport::Proxy);
        let turn = patience.turn().await.unwrap();
        assert!(turn.is_some());
        let begun = clock::now();
        assert!(patience.turn().await.unwrap().is_none());
        assert_eq!(clock::now() - begun, VERDICT);
        drop(turn);
        assert!(patience.turn().await.unwrap().is_some());
    }
}
