//! An attacker without a key, for tests: answers each first packet of a QUIC handshake with a CONNECTION_CLOSE.
//!
//!     cargo run --example forger -- [::]:4433 10 "what the client should believe"
//!
//! Initial packets are protected with keys that follow from the client's own connection id (RFC 9001 §5.2), so
//! everybody who sees that packet can answer it.

use std::{env, io, net::UdpSocket, process::ExitCode};

use rustls::{Side, crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256, quic::Version};

/// The packet number's field, in bytes.
const NUMBER: usize = 4;
/// The AEAD's tag, in bytes.
const TAG: usize = 16;
/// Where the sample for header protection begins, counted from the packet number (RFC 9001 §5.4.2).
const SAMPLE: usize = 4;

/// The answer to a client's Initial: CONNECTION_CLOSE with this transport error code and reason.
fn forge(initial: &[u8], code: u64, reason: &[u8]) -> Option<Vec<u8>> {
    let ([first, version @ ..], mut rest) = initial.split_first_chunk::<5>()?;
    // A long header of type Initial (RFC 9000 §17.2), version 1.
    if first & 0xf0 != 0xc0 || *version != [0, 0, 0, 1] {
        return None;
    }
    let mut field = || {
        let (length, tail) = rest.split_first()?;
        let (field, tail) = tail.split_at_checked(usize::from(*length))?;
        rest = tail;
        Some(field)
    };
    let (theirs, ours) = (field()?, field()?);

    let mut frame = vec![0x1c];
    varint(&mut frame, code);
    varint(&mut frame, 0);
    varint(&mut frame, reason.len() as u64);
    frame.extend_from_slice(reason);

    // A long header of type Initial, with a packet number of four bytes.
    let mut packet = vec![0xc3, 0, 0, 0, 1, u8::try_from(ours.len()).ok()?];
    packet.extend_from_slice(ours);
    packet.extend_from_slice(&[8, b'f', b'o', b'r', b'g', b'e', b'r', b'!', b'!']);
    varint(&mut packet, 0);
    varint(&mut packet, (NUMBER + frame.len() + TAG) as u64);
    let number = packet.len();
    packet.extend_from_slice(&[0; NUMBER]);

    let suite = TLS13_AES_128_GCM_SHA256.tls13()?.quic_suite()?;
    let keys = suite.keys(theirs, Side::Server, Version::V1).local;
    let tag = keys.packet.encrypt_in_place(0, &packet, &mut frame).ok()?;
    packet.extend_from_slice(&frame);
    packet.extend_from_slice(tag.as_ref());
    let (head, sample) = packet.split_at_mut(number + SAMPLE);
    let (first, head) = head.split_first_mut()?;
    let sample = &sample[..keys.header.sample_len()];
    keys.header.encrypt_in_place(sample, first, &mut head[number - 1..]).ok()?;
    Some(packet)
}

/// A variable-length integer (RFC 9000 §16).
fn varint(to: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => to.push(value as u8),
        0x40..0x4000 => to.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        _ => to.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
    }
}

/// Answers all that comes, for ever.
pub(crate) fn run(socket: &UdpSocket, code: u64, reason: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = forge(&buffer[..length], code, reason) {
            socket.send_to(&answer, client)?;
        }
    }
}

#[cfg_attr(test, expect(dead_code, reason = "tests call run"))]
fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [listen, code, reason] = &arguments[..] else { return ExitCode::from(64) };
    let Ok(code) = code.parse() else { return ExitCode::from(64) };
    match UdpSocket::bind(listen).and_then(|socket| run(&socket, code, reason.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
