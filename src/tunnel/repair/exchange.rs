//! Asks what the other side has, after a path died or was silent, and repeats that until the other side answers.

use std::time::{Duration, Instant};

/// The pause before the first repetition; the next ones are twice as long each, up to the second value.
const REPEATED: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// After this time nothing is left to be sent again.
const GIVEN_UP: Duration = Duration::from_secs(3);

/// The end of a silence shows in several ways, not at the same moment: in so much time it begins one exchange.
const SAME: Duration = Duration::from_millis(50);

/// An answer costs a look at all that is kept, so there is one in so much time at most.
const ANSWERS: Duration = Duration::from_millis(50);

/// The exchanges of a session: at most one of our own is open.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    id: u8,
    open: Option<Open>,
    /// When one began last.
    begun: Option<Instant>,
    /// When a question of the other side was answered last.
    answered: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    /// When the question was asked first.
    since: Instant,
    due: Instant,
    pause: Duration,
}

/// What is to be asked now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u8,
    pub(crate) is_first: bool,
}

impl Exchanges {
    /// Begins an exchange after a silence, unless one began just now.
    pub(crate) fn begin(&mut self, now: Instant) {
        if self.begun.is_none_or(|at| now.saturating_duration_since(at) >= SAME) {
            self.begin_anew(now);
        }
    }

    /// Begins an exchange over another path, in place of one that is open.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.begun = Some(now);
        self.id = self.id.wrapping_add(1) % 128;
        self.open = Some(Open { since: now, due: now, pause: Duration::ZERO });
    }

    /// The question, if it is time to ask it.
    pub(crate) fn question(&mut self, now: Instant) -> Option<Question> {
        self.open.take_if(|open| open.since + GIVEN_UP <= now);
        let open = self.open.as_mut().filter(|open| open.due <= now)?;
        let is_first = open.pause.is_zero();
        open.pause = (2 * open.pause).clamp(REPEATED, LONGEST_PAUSE);
        open.due = now + open.pause;
        Some(Question { id: self.id, is_first })
    }

    /// The answer came; when the question was asked first, if it is the open one.
    pub(crate) fn answered(&mut self, id: u8) -> Option<Instant> {
        self.open.take_if(|_| id == self.id).map(|open| open.since)
    }

    /// Whether a question of the other side may be answered now. One that is not is asked again.
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        let is_due = self.answered.is_none_or(|at| now.saturating_duration_since(at) >= ANSWERS);
        if is_due {
            self.answered = Some(now);
        }
        is_due
    }

    /// When [`Self::question`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_question_is_repeated_until_it_is_answered() {
        let (mut exchanges, start) = (Exchanges::default(), Instant::now());
        assert_eq!(exchanges.question(start), None);
        exchanges.begin(start);
        let mut asked = Vec::new();
        for at in 0..1000 {
            if let Some(question) = exchanges.question(start + at * MS) {
                assert_eq!(question, Question { id: 1, is_first: at == 0 });
                asked.push(at);
            }
        }
        assert_eq!(asked, [0, 100, 300, 700]);
        assert_eq!(exchanges.answered(2), None, "it is of no exchange");
        assert_eq!(exchanges.answered(1), Some(start));
        assert_eq!(exchanges.answered(1), None, "it came twice");
        assert_eq!(
            (exchanges.question(start + 1100 * MS), exchanges.next_deadline()),
            (None, None)
        );
    }

    #[test]
    fn a_silence_that_shows_twice_begins_one_exchange() {
        let (mut exchanges, start) = (Exchanges::default(), Instant::now());
        let asked = |exchanges: &mut Exchanges, at| {
            exchanges.begin(start + at * MS);
            exchanges.question(start + at * MS).map(|question| question.id)
        };
        assert_eq!(asked(&mut exchanges, 0), Some(1));
        assert_eq!(asked(&mut exchanges, 10), None);
        assert_eq!(exchanges.answered(1), Some(start), "the first answer counts");
        assert_eq!((asked(&mut exchanges, 20), asked(&mut exchanges, 60)), (None, Some(2)));
        exchanges.begin_anew(start + 61 * MS);
        assert_eq!(asked(&mut exchanges, 62), Some(3), "a switch");
    }

    #[test]
    fn questions_are_answered_in_measure() {
        let (mut exchanges, start) = (Exchanges::default(), Instant::now());
        let answered = (0..1000).filter(|at| exchanges.may_answer(start + *at * MS)).count();
        assert_eq!(answered, 20);
    }

    #[test]
    fn nobody_is_asked_for_ever_and_a_newer_question_takes_the_place_of_an_older_one() {
        let (mut exchanges, start) = (Exchanges::default(), Instant::now());
        exchanges.begin(start);
        exchanges.begin_anew(start);
        assert_eq!(exchanges.answered(1), None, "the older one");
        let asked = (0..10_000).filter(|at| exchanges.question(start + *at * MS).is_some()).count();
        assert_eq!(asked, 9);
        assert_eq!(exchanges.next_deadline(), None);
    }
}
