//! What a client asks over a probe connection, and the server's answer.
//!
//! ```text
//!  0          8          16        17
//!  | asked at | process  | session |
//! ```
//! The server sends a question back as it came and appends whether it has a session of the process. Other datagrams that
//! begin with a zero byte are echoes, for measurements: they come back as they are.

use bytes::{BufMut as _, Bytes, BytesMut};

const QUESTION: usize = 16;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// When it was asked, in microseconds. Only its author reads that.
    pub(crate) asked: u64,
    /// The client's process, as its hello names it.
    pub(crate) process: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// When the question was asked.
    pub(crate) asked: u64,
    /// Whether the server has a session of the process.
    pub(crate) has_session: bool,
}

impl Question {
    pub(crate) fn encode(self) -> Bytes {
        [self.asked.to_be_bytes(), self.process.to_be_bytes()].concat().into()
    }

    /// Whether a datagram on a probe connection is a question or an echo. A time begins with a zero byte, and a copy of a
    /// packet or an offer of copies does not.
    #[must_use]
    pub(crate) fn may_be(datagram: &[u8]) -> bool {
        datagram.first() == Some(&0)
    }

    /// The client's process, if the datagram is a question that names it.
    #[must_use]
    pub(crate) fn process(datagram: &[u8]) -> Option<u64> {
        let is_question = Self::may_be(datagram) && datagram.len() == QUESTION;
        halves(datagram).filter(|_| is_question).map(|(_, process)| process)
    }

    /// The answer to a datagram, which is a question or is sent back as it came.
    pub(crate) fn answer(datagram: Bytes, has_session: impl FnOnce(u64) -> bool) -> Bytes {
        let Some((_, process)) = halves(&datagram).filter(|_| datagram.len() == QUESTION) else {
            return datagram;
        };
        let mut answer = BytesMut::from(datagram);
        answer.put_u8(has_session(process).into());
        answer.freeze()
    }
}

impl Answer {
    /// Reads an answer to a [`Question`]; `None` if it is none.
    pub(crate) fn decode(datagram: &[u8]) -> Option<Self> {
        // A time is far from the first byte of everything else.
        let (asked, _) = halves(datagram).filter(|_| datagram[0] == 0)?;
        let has_session = match datagram.get(QUESTION..)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        Some(Self { asked, has_session })
    }
}

fn halves(datagram: &[u8]) -> Option<(u64, u64)> {
    let (asked, rest) = datagram.split_first_chunk()?;
    let process = rest.first_chunk()?;
    Some((u64::from_be_bytes(*asked), u64::from_be_bytes(*process)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::datagram::{NUMBERED, OFFER};

    const QUESTION: Question = Question { asked: 7, process: 0x1234 };

    #[test]
    fn a_server_says_whether_it_has_a_session_of_the_process() {
        for has_session in [false, true] {
            let answer = Question::answer(QUESTION.encode(), |process| {
                assert_eq!(process, 0x1234);
                has_session
            });
            let expected = Answer { asked: 7, has_session };
            assert_eq!(Answer::decode(&answer), Some(expected));
        }
    }

    #[test]
    fn copies_and_offers_are_no_questions() {
        let question = QUESTION.encode();
        assert_eq!(
            (Question::may_be(&question), Question::process(&question)),
            (true, Some(0x1234))
        );
        assert_eq!(Question::process(&[0; 15]), None);
        for tag in NUMBERED..=OFFER {
            let datagram = [tag; 16];
            assert_eq!((Question::may_be(&datagram), Question::process(&datagram)), (false, None));
        }
    }

    #[test]
    fn what_is_no_question_comes_back_as_it_was_sent() {
        for length in [0, 8, 15, 17, 1200] {
            let datagram = Bytes::from(vec![0; length]);
            assert_eq!(Question::answer(datagram.clone(), |_| panic!("{length}")), datagram);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for length in [0, 8, 15, 16, 18, 1200] {
            assert_eq!(Answer::decode(&vec![0; length]), None, "{length}");
        }
        assert_eq!(Answer::decode(&[2; 17]), None);
    }
}
