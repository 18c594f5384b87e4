//! Packets with a number, and what the other side says of the numbers: see `tunnel::repair`.
//!
//! ```text
//!  NUMBERED  0x03  number (24)  back (16)  packet       the packet as it would be without a number
//!  MISSING   0x04  n × { number (24)  count (8)  try (8) }
//!  NEXT      0x05  number (24)
//!  RESUME    0x07  exchange (8)  next (24)  n × { number (24)  count (8) }
//! ```
//! Big endian. A number counts up and wraps; the receiver takes the nearest to what it expects.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    datagram::{MISSING, NEXT, NUMBERED, RESUME},
    packet::Packet,
};

/// Bytes in front of a numbered packet.
pub(crate) const HEADER: usize = 6;
/// Bytes of one range of missing packets.
const RANGE: usize = 5;
/// Bytes of one range of packets that somebody does not have.
const SPAN: usize = 4;
/// Ranges in one datagram: it fits the smallest that QUIC carries (RFC 9000 §14).
pub(crate) const MAX_RANGES: usize = 220;
/// Numbers on the wire have 24 bits.
const WRAP: u64 = 1 << 24;

/// A number of which the wire has the low 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short(u32);

impl Short {
    pub(crate) fn of(number: u64) -> Self {
        Self((number % WRAP) as u32)
    }

    fn decode(bytes: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]))
    }

    fn encode(self) -> [u8; 3] {
        let [_, bytes @ ..] = self.0.to_be_bytes();
        bytes
    }

    /// The whole number: the one nearest to `about`. `None` if it is below zero.
    #[must_use]
    pub(crate) fn near(self, about: u64) -> Option<u64> {
        let ahead = u64::from(self.0).wrapping_sub(about) % WRAP;
        if ahead < WRAP / 2 { Some(about + ahead) } else { about.checked_sub(WRAP - ahead) }
    }
}

/// A packet with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub(crate) number: Short,
    /// How many numbers before this packet the one is that must be delivered before it; 0: none.
    pub(crate) back: u16,
    pub(crate) packet: Packet,
}

impl Numbered {
    /// Writes the datagram that carries the packet of the datagram `plain`.
    pub(crate) fn write(number: u64, back: u16, plain: &[u8], to: &mut BytesMut) {
        to.put_u8(NUMBERED);
        to.put_slice(&Short::of(number).encode());
        to.put_u16(back);
        to.put_slice(plain);
    }

    /// Reads a datagram with its first byte; `None` if no packet follows the header.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let [_, number @ .., high, low] = *bytes.first_chunk::<HEADER>()?;
        let packet = Packet::decode(bytes.split_off(HEADER))?;
        Some(Self { number: Short::decode(number), back: u16::from_be_bytes([high, low]), packet })
    }
}

/// Packets that follow one another and are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: Short,
    pub(crate) count: u8,
    /// How often they have been asked for, this time included.
    pub(crate) attempt: u8,
}

/// The packets that a receiver asks for again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(Bytes);

impl Missing {
    /// The datagram that asks for at most [`MAX_RANGES`].
    pub(crate) fn encode(ranges: &[Range]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(1 + RANGE * ranges.len());
        bytes.put_u8(MISSING);
        for range in ranges.iter().take(MAX_RANGES) {
            bytes.put_slice(&range.first.encode());
            bytes.put_slice(&[range.count, range.attempt]);
        }
        bytes.freeze()
    }

    /// Reads a datagram with its first byte; `None` if it is cut short.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let ranges = bytes.split_off(1);
        (!ranges.is_empty() && ranges.len().is_multiple_of(RANGE)).then_some(Self(ranges))
    }

    /// What is asked for.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range> {
        self.0.as_chunks::<RANGE>().0.iter().map(|[number @ .., count, attempt]| Range {
            first: Short::decode(*number),
            count: *count,
            attempt: *attempt,
        })
    }
}

/// The datagram that says which number comes next.
pub(crate) fn encode_next(number: u64) -> Bytes {
    let [high, middle, low] = Short::of(number).encode();
    Bytes::copy_from_slice(&[NEXT, high, middle, low])
}

/// Reads it with its first byte.
pub(super) fn decode_next(bytes: &[u8]) -> Option<Short> {
    let [_, number @ ..] = <[u8; 4]>::try_from(bytes).ok()?;
    Some(Short::decode(number))
}

/// What one side has, after a path died or was silent: all before `next` but for some ranges. Who asks for the other
/// side's state sends its own, and repeats that until the answer comes with the same exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    pub(crate) exchange: Exchange,
    /// The number that comes next.
    pub(crate) next: Short,
    spans: Bytes,
}

/// The number of an exchange of states, and whether this is its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// Has 7 bits.
    pub(crate) id: u8,
    pub(crate) is_answer: bool,
}

impl Resume {
    /// The datagram; of the ranges, each of a first number and the one after the last, as many as fit.
    pub(crate) fn encode(
        exchange: Exchange,
        next: u64,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&[RESUME, (exchange.id % 128) | (u8::from(exchange.is_answer) << 7)]);
        bytes.put_slice(&Short::of(next).encode());
        let spans = ranges.into_iter().flat_map(|(first, end)| {
            (first..end).step_by(255).map(move |at| (at, (end - at).min(255) as u8))
        });
        for (first, count) in spans.take(MAX_RANGES) {
            bytes.put_slice(&Short::of(first).encode());
            bytes.put_u8(count);
        }
        bytes.freeze()
    }

    /// Reads a datagram with its first byte; `None` if it is cut short.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let [_, exchange, next @ ..] = *bytes.first_chunk::<5>()?;
        let spans = bytes.split_off(5);
        let exchange = Exchange { id: exchange % 128, is_answer: exchange >= 128 };
        let next = Short::decode(next);
        spans.len().is_multiple_of(SPAN).then_some(Self { exchange, next, spans })
    }

    /// What is not there, although later packets are: first numbers and counts.
    pub(crate) fn missing(&self) -> impl Iterator<Item = (Short, u8)> {
        let spans = self.spans.as_chunks::<SPAN>().0;
        let spans = spans.iter().take(MAX_RANGES);
        spans.map(|[number @ .., count]| (Short::decode(*number), *count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::datagram::Datagram;

    proptest! {
        #[test]
        fn a_number_is_found_again_near_what_is_expected(
            number in any::<u32>().prop_map(u64::from),
            off in -(WRAP.cast_signed() / 2) + 1..WRAP.cast_signed() / 2,
        ) {
            if let Some(about) = number.checked_add_signed(off) {
                prop_assert_eq!(Short::of(number).near(about), Some(number));
            }
        }

        #[test]
        fn what_is_numbered_reads_as_it_was_written(
            number in 0..WRAP,
            back in any::<u16>(),
            tag in prop_oneof![Just(2u8), 0x40u8..0x50, 0x60u8..0x70],
            mut plain in proptest::collection::vec(any::<u8>(), 1..100),
        ) {
            plain[0] = tag;
            let mut bytes = BytesMut::new();
            Numbered::write(number, back, &plain, &mut bytes);
            prop_assert_eq!(bytes.len(), HEADER + plain.len());
            let packet = Packet::from_datagram(plain.into());
            let numbered = Numbered { number: Short::of(number), back, packet };
            prop_assert_eq!(Datagram::decode(bytes.freeze()), Ok(Datagram::Numbered(numbered)));
        }

        #[test]
        fn what_is_asked_for_reads_as_it_was_written(
            ranges in proptest::collection::vec((0..WRAP, any::<u8>(), any::<u8>()), 1..MAX_RANGES),
            next in 0..WRAP,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(number, count, attempt)| {
                Range { first: Short::of(number), count, attempt }
            }).collect();
            let Ok(Datagram::Missing(missing)) = Datagram::decode(Missing::encode(&ranges)) else {
                panic!("not what was written")
            };
            prop_assert_eq!(missing.ranges().collect::<Vec<_>>(), ranges);
            let read = Datagram::decode(encode_next(next));
            prop_assert_eq!(read, Ok(Datagram::Next(Short::of(next))));
        }
    }

    #[test]
    fn a_state_reads_as_it_was_written() {
        let exchange = Exchange { id: 3, is_answer: true };
        let bytes = Resume::encode(exchange, WRAP + 7, [(5, 6), (WRAP - 300, WRAP)]);
        let Ok(Datagram::Resume(resume)) = Datagram::decode(bytes) else {
            panic!("not what was written")
        };
        assert_eq!((resume.exchange, resume.next), (exchange, Short::of(7)));
        let missing = [(5, 1), (WRAP - 300, 255), (WRAP - 45, 45)];
        let missing = missing.map(|(first, count)| (Short::of(first), count));
        assert_eq!(resume.missing().collect::<Vec<_>>(), missing);
        let all = Resume::encode(exchange, 0, (0..9999).map(|at| (2 * at, 2 * at + 1)));
        assert!(all.len() <= 1200 - 48, "it fits the smallest datagram");
    }

    #[test]
    fn there_is_nothing_before_the_first_number() {
        assert_eq!(Short::of(WRAP - 1).near(0), None);
        assert_eq!(Short::of(WRAP - 1).near(WRAP), Some(WRAP - 1));
        assert_eq!(Short::of(0).near(WRAP - 1), Some(WRAP));
    }

    #[test]
    fn the_longest_request_fits_the_smallest_datagram() {
        let range = Range { first: Short::of(1), count: 1, attempt: 1 };
        assert!(Missing::encode(&[range; MAX_RANGES + 1]).len() <= 1200 - 48);
    }
}
