//! Whether a client is in the server's own network: asked over a probe connection.
//!
//! ```text
//!  0          8          16   17         23       39       55
//!  | asked at | process  | 2  | hardware | client | server |
//! ```
//! The client says which addresses it has on the link over which it asks, and which address of the server it asks. The server
//! sends the first 17 bytes back and appends whether it sees the same.

use std::net::{IpAddr, Ipv6Addr};

use bytes::{BufMut as _, Bytes, BytesMut};

const HEAD: usize = 17;
const QUESTION: usize = HEAD + 6 + 16 + 16;
/// Not a byte by which a server says whether it has a session.
const KIND: u8 = 2;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceQuestion {
    /// When it was asked, in microseconds. Only its author reads that.
    pub(crate) asked: u64,
    /// The client's process, as its hello names it.
    pub(crate) process: u64,
    /// The hardware address of the client's link.
    pub(crate) hardware: [u8; 6],
    /// The client's address there.
    pub(crate) client: IpAddr,
    /// The server's address there.
    pub(crate) server: IpAddr,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceAnswer {
    /// When the question was asked.
    pub(crate) asked: u64,
    /// Whether the server has the process's session, and nothing but a link lies between it and the client.
    pub(crate) is_neighbour: bool,
}

impl PlaceQuestion {
    pub(crate) fn encode(self) -> Bytes {
        let mut question = BytesMut::with_capacity(QUESTION);
        question.put_u64(self.asked);
        question.put_u64(self.process);
        question.put_u8(KIND);
        question.put_slice(&self.hardware);
        for address in [self.client, self.server] {
            question.put_slice(&mapped(address).octets());
        }
        question.freeze()
    }

    /// Reads a question; `None` if it is another one.
    pub(crate) fn decode(datagram: &[u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<HEAD>()?;
        let (hardware, rest) = rest.split_first_chunk()?;
        let (client, rest) = rest.split_first_chunk::<16>()?;
        let server: [u8; 16] = rest.try_into().ok()?;
        let (asked, process) = numbers(head)?;
        let [client, server] = [*client, server].map(|it| Ipv6Addr::from(it).to_canonical());
        Some(Self { asked, process, hardware: *hardware, client, server })
    }

    pub(crate) fn answer(self, is_neighbour: bool) -> Bytes {
        let mut answer = BytesMut::from(&self.encode()[..HEAD]);
        answer.put_u8(is_neighbour.into());
        answer.freeze()
    }
}

impl PlaceAnswer {
    /// Reads an answer; `None` if it is none.
    pub(crate) fn decode(datagram: &[u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<HEAD>()?;
        let (asked, _) = numbers(head)?;
        let is_neighbour = match rest {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        Some(Self { asked, is_neighbour })
    }
}

/// The time and the process at the beginning. A time begins with a zero byte, and a copy of a packet or an offer of copies
/// does not.
fn numbers(head: &[u8; HEAD]) -> Option<(u64, u64)> {
    let (asked, rest) = head.split_first_chunk()?;
    let (process, kind) = rest.split_first_chunk()?;
    let is_ours = kind == [KIND] && asked[0] == 0;
    is_ours.then(|| (u64::from_be_bytes(*asked), u64::from_be_bytes(*process)))
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{
        datagram::{NUMBERED, OFFER},
        question::{Answer, Question},
    };

    fn question(client: IpAddr) -> PlaceQuestion {
        let server = [192, 168, 1, 10].into();
        PlaceQuestion { asked: 7, process: 0x1234, hardware: [2, 0, 0, 0, 0, 1], client, server }
    }

    #[test]
    fn a_question_and_its_answer_read_as_they_were_written() {
        for client in [IpAddr::from([192, 168, 1, 50]), "fd00::50".parse().unwrap()] {
            let question = question(client);
            assert_eq!(PlaceQuestion::decode(&question.encode()), Some(question));
            for is_neighbour in [false, true] {
                let answer = PlaceAnswer::decode(&question.answer(is_neighbour));
                assert_eq!(answer, Some(PlaceAnswer { asked: 7, is_neighbour }));
            }
        }
    }

    #[test]
    fn other_questions_answers_copies_and_offers_are_neither() {
        let other = Question { asked: 7, process: 0x1234 }.encode();
        let answered = Question::answer(other.clone(), |_| true);
        for datagram in [&other[..], &answered] {
            assert_eq!(PlaceQuestion::decode(datagram), None);
            assert_eq!(PlaceAnswer::decode(datagram), None);
        }
        for tag in NUMBERED..=OFFER {
            assert_eq!(PlaceQuestion::decode(&[tag; QUESTION]), None);
        }
        let place = question([192, 168, 1, 50].into());
        assert_eq!(Answer::decode(&place.answer(true)), None);
        assert!(Question::may_be(&place.encode()) && Question::process(&place.encode()).is_none());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
            if let Some(question) = PlaceQuestion::decode(&bytes) {
                prop_assert_eq!(&question.encode()[..23], &bytes[..23]);
            }
            let _ = PlaceAnswer::decode(&bytes);
        }
    }
}
