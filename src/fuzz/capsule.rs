//! A stream of capsules from the other side.

use bytes::BytesMut;

use crate::wire::capsule::{Decoder, Malformed, encode};

/// The longest payload that is read.
const LONGEST: u16 = 200;

/// Reads all but the first byte of `data` as a stream of capsules, which arrives in pieces of as many bytes as the
/// first byte says.
///
/// The payloads are those that a reader of the whole stream finds. What is kept is less than the longest capsule
/// that is read. A payload that was read, written and read again is the same.
pub fn capsule(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let (expected, ends_well) = reference(stream);
    let mut decoder = Decoder::new(LONGEST);
    let mut found = Vec::new();
    let mut result = Ok(());
    'stream: for piece in stream.chunks(usize::from(*piece).max(1)) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(payload)) => found.push(payload.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break 'stream;
                }
            }
        }
        assert!(decoder.buffer().len() < usize::from(LONGEST) + 24, "kept too much");
    }
    assert_eq!(result, if ends_well { Ok(()) } else { Err(Malformed) });
    assert_eq!(found, expected);
    let mut again = BytesMut::new();
    found.iter().for_each(|payload| encode(payload, &mut again));
    let mut decoder = Decoder::new(LONGEST);
    decoder.buffer().extend_from_slice(&again);
    let read: Vec<_> = std::iter::from_fn(|| decoder.next().expect("we wrote it")).collect();
    assert_eq!(read, found);
}

/// The payloads of a whole stream, and whether it breaks no rule.
fn reference(stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut payloads = Vec::new();
    let mut at = 0;
    loop {
        let Some((kind, start)) = integer(stream, at) else { return (payloads, true) };
        let Some((length, start)) = integer(stream, start) else { return (payloads, true) };
        if kind == 0 {
            if length == 0 || length > 65_535 {
                return (payloads, false);
            }
            let end = start + length as usize;
            let Some((context, payload)) = integer(stream, start) else {
                return (payloads, stream.len() < end);
            };
            if payload > end || context == 0 && end - payload > 65_527 {
                return (payloads, false);
            }
            if let Some(payload) = stream.get(payload..end)
                && context == 0
                && (1..=usize::from(LONGEST)).contains(&payload.len())
            {
                payloads.push(payload.to_vec());
            }
        }
        if length > (stream.len() - start) as u64 {
            return (payloads, true);
        }
        at = start + length as usize;
    }
}

/// The integer at this place, and the place after it.
fn integer(stream: &[u8], at: usize) -> Option<(u64, usize)> {
    let first = *stream.get(at)?;
    let end = at + [1, 2, 4, 8][usize::from(first >> 6)];
    let bytes = stream.get(at..end)?;
    let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value & (u64::MAX >> (64 - 8 * bytes.len()) >> 2), end))
}
