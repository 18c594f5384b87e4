//! Bytes of the control stream on their way to messages.

use bytes::{Buf as _, BytesMut};

use super::message::{LENGTH_SIZE, Message, MessageError};

/// Keeps the bytes of a message until the last one is there. Whoever reads [`Self::missing`] bytes at most keeps it
/// shorter than the longest message.
#[derive(Debug, Default)]
pub(crate) struct Inbox(BytesMut);

impl Inbox {
    /// How many bytes are known to be missing; not 0 after [`Self::next`] found no message.
    pub(crate) fn missing(&self) -> usize {
        self.frame().saturating_sub(self.0.len())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes out the next message that we know; `None` if it is not complete. After an error it gives the same
    /// error again: nobody knows what follows.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, MessageError> {
        while self.missing() == 0 {
            let frame = self.frame();
            let message = Message::decode(&self.0[LENGTH_SIZE..frame])?;
            self.0.advance(frame);
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }

    /// The size of the first message with its length, as far as it is known.
    fn frame(&self) -> usize {
        match self.0[..] {
            [high, low, ..] => LENGTH_SIZE + usize::from(u16::from_be_bytes([high, low])),
            [] | [_] => LENGTH_SIZE,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::message::Hello;

    /// `[99, [{}]]`, a message of a newer version.
    const NEWER: &[u8] = b"\x00\x05\x82\x18\x63\x81\xa0";

    /// One of many messages.
    fn message(number: u64) -> Message {
        Message::Hello(Hello {
            versions: vec![1],
            software: "x".into(),
            unchecked: false,
            instance: number,
            repair: false,
            copies: false,
            moves: false,
            number: 1,
        })
    }

    proptest! {
        #[test]
        fn messages_arrive_whole_wherever_the_stream_is_cut(
            sent in prop::collection::vec(any::<Option<u64>>(), 0..8),
            cuts in prop::collection::vec(1usize..12, 1..100),
        ) {
            let mut stream = Vec::new();
            for number in &sent {
                match number {
                    Some(it) => stream.extend_from_slice(&message(*it).encode().unwrap()),
                    None => stream.extend_from_slice(NEWER),
                }
            }
            let (mut inbox, mut received, mut rest) = (Inbox::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                while let Some(message) = inbox.next().unwrap() {
                    received.push(message);
                }
                let missing = inbox.missing();
                prop_assert!(missing > 0);
                let (piece, after) = rest.split_at((*cut).min(missing).min(rest.len()));
                if piece.is_empty() {
                    break;
                }
                inbox.push(piece);
                rest = after;
            }
            let expected: Vec<_> = sent.into_iter().flatten().map(message).collect();
            prop_assert_eq!(received, expected);
        }
    }

    #[test]
    fn no_message_follows_a_bad_one() {
        let mut inbox = Inbox::default();
        inbox.push(&[0, 1, 0xff]);
        inbox.push(&message(1).encode().unwrap());
        assert!(inbox.next().is_err());
        assert!(inbox.next().is_err());
    }
}
