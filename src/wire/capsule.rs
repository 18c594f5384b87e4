//! Capsules (RFC 9297 §3.2): datagrams on a stream of bytes, such as a TCP connection has.
//!
//! ```text
//!  type (varint)   length (varint)   value
//!  0, DATAGRAM     bytes that follow context (varint), UDP payload    RFC 9298 §5
//!  anything else   bytes that follow skipped
//! ```
//! Context 0 means a UDP payload; other contexts are skipped. The integers are those of QUIC (RFC 9000 §16).

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const DATAGRAM: u64 = 0;
const UDP_PAYLOAD: u64 = 0;
/// "A UDP Proxying Payload longer than 65527 [...] MUST abort the stream" (RFC 9298 §5).
const LONGEST_PAYLOAD: u64 = 65_527;
/// The longest variable-length integer, in bytes.
const LONGEST_INTEGER: usize = 8;
/// Bytes before a payload of less than 16 kB: type, length and context.
const HEADER: usize = 4;

/// A stream that is none of capsules with UDP payloads. Nothing after it can be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has a malformed capsule")]
pub(crate) struct Malformed;

/// Appends a UDP payload, of less than 16 kB, as a capsule.
pub(crate) fn encode(payload: &[u8], stream: &mut BytesMut) {
    // The context counts; two bytes hold 14 bits of the length.
    let length = payload.len() as u16 + 1;
    debug_assert!(payload.len() < 1 << 14 && length < 1 << 14);
    stream.reserve(HEADER + payload.len());
    stream.put_u8(DATAGRAM as u8);
    stream.put_u16(0x4000 | length);
    stream.put_u8(UDP_PAYLOAD as u8);
    stream.put_slice(payload);
}

/// Reads UDP payloads of up to `longest` bytes from a stream. Longer ones and unknown capsules are skipped
/// without being kept.
#[derive(Debug)]
pub(crate) struct Decoder {
    longest: usize,
    buffer: BytesMut,
    /// Bytes of a capsule that are still to come and are skipped.
    skipped: u64,
}

impl Decoder {
    /// At the beginning of a stream.
    #[must_use]
    pub(crate) fn new(longest: u16) -> Self {
        Self { longest: longest.into(), buffer: BytesMut::new(), skipped: 0 }
    }

    /// Where the next bytes of the stream are appended. Between calls of [`Self::next`] that returned nothing it
    /// holds less than one capsule.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next payload; `None` when more bytes are needed. Empty payloads are skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            let skipped = self.skipped.min(self.buffer.len() as u64);
            self.buffer.advance(skipped as usize);
            self.skipped -= skipped;
            if self.skipped > 0 {
                return Ok(None);
            }
            let Some((kind, length, header)) = self.header() else { return Ok(None) };
            if kind != DATAGRAM {
                self.skip(header, length);
                continue;
            }
            if length == 0 || length > LONGEST_PAYLOAD + LONGEST_INTEGER as u64 {
                return Err(Malformed);
            }
            // The context is looked at before the payload is there, so that a payload that is too long is not kept.
            let known = &self.buffer[header..];
            let Some((context, context_length)) = integer(known) else {
                if known.len() as u64 >= length {
                    return Err(Malformed);
                }
                return Ok(None);
            };
            let Some(payload) = length.checked_sub(context_length as u64) else {
                return Err(Malformed);
            };
            if context != UDP_PAYLOAD {
                self.skip(header, length);
                continue;
            }
            if payload > LONGEST_PAYLOAD {
                return Err(Malformed);
            }
            let payload = payload as usize;
            if payload > self.longest {
                self.skip(header, length);
                continue;
            }
            if known.len() < context_length + payload {
                return Ok(None);
            }
            self.buffer.advance(header + context_length);
            let payload = self.buffer.split_to(payload).freeze();
            if !payload.is_empty() {
                return Ok(Some(payload));
            }
        }
    }

    /// Type and length of the capsule at the front, and how many bytes they take.
    fn header(&self) -> Option<(u64, u64, usize)> {
        let (kind, first) = integer(&self.buffer)?;
        let (length, second) = integer(&self.buffer[first..])?;
        Some((kind, length, first + second))
    }

    fn skip(&mut self, header: usize, length: u64) {
        self.buffer.advance(header);
        self.skipped = length;
    }
}

/// The variable-length integer at the front (RFC 9000 §16), and how many bytes it takes.
fn integer(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = 1 << (bytes.first()? >> 6);
    let mut value = u64::from(bytes[0] & 0x3f);
    for byte in bytes.get(1..length)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u16 = 1500;

    /// All payloads of a stream that arrives in pieces of this size.
    fn decode(stream: &[u8], piece: usize) -> Result<Vec<Bytes>, Malformed> {
        let (mut decoder, mut found) = (Decoder::new(LONGEST), Vec::new());
        for piece in stream.chunks(piece) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(payload) = decoder.next()? {
                found.push(payload);
            }
        }
        Ok(found)
    }

    fn of(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// Capsules that are skipped.
    const UNKNOWN: &[u8] = &[0x17, 3, 1, 2, 3];
    const UNKNOWN_CONTEXT: &[u8] = &[0, 3, 2, 8, 9];
    const EMPTY: &[u8] = &[0, 1, 0];

    #[test]
    fn payloads_arrive_whole_however_the_stream_is_cut() {
        let payloads = [vec![1], vec![2; 60], vec![3; 63], vec![4; 1200], vec![5; 1500]];
        let mut stream = BytesMut::new();
        for payload in &payloads {
            stream.extend_from_slice(UNKNOWN);
            encode(payload, &mut stream);
            stream.extend_from_slice(EMPTY);
            stream.extend_from_slice(UNKNOWN_CONTEXT);
        }
        for piece in [1, 2, 3, 7, 100, 1000, stream.len()] {
            assert_eq!(decode(&stream, piece).unwrap(), payloads, "{piece}");
        }
    }

    #[test]
    fn integers_may_be_longer_than_they_must() {
        let stream =
            [&[0x40, 0, 0x80, 0, 0, 10, 0xc0, 0, 0, 0, 0, 0, 0, 0, 7, 8][..], &[0, 3, 0, 7, 9]]
                .concat();
        assert_eq!(decode(&stream, 1).unwrap(), [vec![7, 8], vec![7, 9]]);
    }

    #[test]
    fn what_is_too_long_is_skipped_and_not_kept() {
        let long =
            |kind: u8, length: u32| [&[kind][..], &(0x8000_0000 | length).to_be_bytes()].concat();
        for (kind, length) in [(0, 1502), (0, 65_528), (0x21, 0x3fff_ffff)] {
            let mut decoder = Decoder::new(LONGEST);
            decoder.buffer().extend_from_slice(&long(kind, length));
            let mut left = length as usize;
            while left > 0 {
                let piece = left.min(60_000);
                decoder.buffer().extend_from_slice(&[0; 60_000][..piece]);
                assert_eq!(decoder.next(), Ok(None));
                assert_eq!(decoder.buffer().len(), 0, "{kind} {length}");
                left -= piece;
                if kind != 0 {
                    left = left.min(120_000);
                }
            }
            if kind == 0 {
                encode(&[9], decoder.buffer());
                assert_eq!(decoder.next(), Ok(Some(Bytes::from_static(&[9]))));
            }
        }
    }

    #[test]
    fn a_stream_that_breaks_the_rules_is_refused() {
        let streams = [
            // No context, half a context, and a payload of 65,528 bytes.
            of(&[&[0, 0]]),
            of(&[&[0, 1, 0x40], &[0]]),
            of(&[&[0], &0x8000_fff9_u32.to_be_bytes(), &[0]]),
            of(&[&[0], &0xc000_0000_0001_0000_u64.to_be_bytes()]),
            of(&[&[0], &u64::MAX.to_be_bytes()]),
        ];
        for stream in streams {
            assert_eq!(decode(&stream, 1), Err(Malformed), "{stream:?}");
        }
    }
}
