//! Messages on the control stream.

use crate::wire::{
    foreign::{Foreign, LIMIT, is_printable},
    inbox::Inbox,
    message::{LENGTH_SIZE, Message},
};

/// Reads `data` as the body of a message, and twice in a row as a stream that begins with that message.
///
/// What is read can be written, and reads as the same. From a stream come the same messages wherever it is cut, until
/// the first that is none. Text for people, [`Foreign`], is printable and short, whatever it is made of.
pub fn message(data: &[u8]) {
    let text = Foreign::from(data);
    assert!(text.as_str().chars().count() <= LIMIT, "{text:?}");
    assert!(text.as_str().chars().all(is_printable), "{text:?}");
    assert_eq!(Foreign::from(text.as_str()), text);

    if let Ok(Some(message)) = Message::decode(data) {
        check_written(message, data.len());
    }
    let length = (data.len() as u16).to_be_bytes();
    let stream = [&length, data, data].concat();
    let size = data.first().map_or(1, |first| 1 + usize::from(first % 16));
    check_stream(&stream, size);
}

fn check_written(message: Message, size: usize) {
    // Escaped text may be longer than what was read, and a message has 16 bits for its length.
    let Ok(written) = message.encode() else { return assert!(size > 0xffff / 8) };
    let (length, body) = written.split_at(LENGTH_SIZE);
    assert_eq!(length, (body.len() as u16).to_be_bytes());
    match Message::decode(body) {
        Ok(again) => assert_eq!(again, Some(message)),
        Err(error) => panic!("{message:?} cannot be read: {error}"),
    }
}

/// Messages arrive in pieces of `size` bytes at most as they do at once.
fn check_stream(stream: &[u8], size: usize) {
    let (mut inbox, mut rest) = (Inbox::default(), stream);
    let mut messages = whole(stream).into_iter();
    loop {
        match inbox.next() {
            Ok(Some(message)) => assert_eq!(messages.next(), Some(Some(message))),
            Ok(None) => {
                let (piece, after) = rest.split_at(rest.len().min(size).min(inbox.missing()));
                assert!(inbox.missing() > 0);
                if piece.is_empty() {
                    return assert_eq!(messages.next(), None);
                }
                inbox.push(piece);
                rest = after;
            }
            Err(_) => return assert_eq!(messages.next(), Some(None)),
        }
    }
}

/// The messages of a stream that we know, and `None` for the first that is none.
fn whole(mut stream: &[u8]) -> Vec<Option<Message>> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let Some((body, rest)) = rest.split_at_checked(u16::from_be_bytes(*length).into()) else {
            break;
        };
        stream = rest;
        match Message::decode(body) {
            Ok(Some(message)) => messages.push(Some(message)),
            Ok(None) => {}
            Err(_) => {
                messages.push(None);
                break;
            }
        }
    }
    messages
}
