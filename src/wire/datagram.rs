//! The first byte of a QUIC DATAGRAM frame (RFC 9221) tells what it carries.
//!
//! An inner IP packet needs no header of ours: its own version nibble, 4 or 6, is the tag. All
//! other first bytes belong to roamd.

use bytes::Bytes;

use super::{
    fragment::Fragment,
    numbered::{Missing, Numbered, Resume, Short, decode_next},
    packet::Packet,
};

/// First byte of a datagram that carries nothing. The receiver ignores it; its only use is that
/// QUIC acknowledges it.
pub(crate) const PADDING: u8 = 0x00;
/// First byte of a datagram that carries one piece of a split packet.
pub(crate) const FRAGMENT: u8 = 0x01;
/// First byte of a datagram that carries a packet with a number.
pub(crate) const NUMBERED: u8 = 0x03;
/// First byte of a datagram that asks for packets again.
pub(crate) const MISSING: u8 = 0x04;
/// First byte of a datagram that says which number comes next.
pub(crate) const NEXT: u8 = 0x05;
/// First byte of a datagram that says what arrived before a path died or was silent.
pub(crate) const RESUME: u8 = 0x07;

/// First byte of a datagram that says, over a probe connection, how many bytes a minute of copies may come there.
pub(crate) const OFFER: u8 = 0x08;

/// Whether a datagram on a probe connection is a copy of one of the session: nothing else begins like that there.
#[must_use]
pub(crate) fn is_copy(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(NUMBERED..=RESUME))
}

/// The datagram that offers so many bytes a minute.
#[must_use]
pub(crate) fn encode_offer(per_minute: u32) -> Bytes {
    let [a, b, c, d] = per_minute.to_be_bytes();
    Bytes::copy_from_slice(&[OFFER, a, b, c, d])
}

/// Reads it.
#[must_use]
pub(crate) fn decode_offer(datagram: &[u8]) -> Option<u32> {
    let [OFFER, bytes @ ..] =
        *datagram.first_chunk::<5>().filter(|it| it.len() == datagram.len())?
    else {
        return None;
    };
    Some(u32::from_be_bytes(bytes))
}

/// The content of one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// A whole inner packet.
    Packet(Packet),
    /// A piece of an inner IP packet that was too large for one datagram.
    Fragment(Fragment),
    /// A whole inner packet with a number.
    Numbered(Numbered),
    /// The numbers of packets that the other side asks for again.
    Missing(Missing),
    /// The number of the packet that comes next.
    Next(Short),
    /// What the other side has, after a path died or was silent.
    Resume(Resume),
    /// No content.
    Padding,
}

/// A datagram of an unknown kind; it is counted and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram of an unknown kind or cut short")]
pub struct Unknown;

impl Datagram {
    /// Reads a datagram without copying its payload.
    pub fn decode(bytes: Bytes) -> Result<Self, Unknown> {
        match *bytes.first().ok_or(Unknown)? {
            PADDING => Ok(Self::Padding),
            FRAGMENT => Fragment::decode(bytes).map(Self::Fragment).ok_or(Unknown),
            NUMBERED => Numbered::decode(bytes).map(Self::Numbered).ok_or(Unknown),
            MISSING => Missing::decode(bytes).map(Self::Missing).ok_or(Unknown),
            NEXT => decode_next(&bytes).map(Self::Next).ok_or(Unknown),
            RESUME => Resume::decode(bytes).map(Self::Resume).ok_or(Unknown),
            _ => Packet::decode(bytes).map(Self::Packet).ok_or(Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::UNCHECKED;

    #[test]
    fn the_version_nibble_of_an_ip_packet_is_its_tag() {
        for tag in [0x45, 0x4f, 0x60, 0x6f, UNCHECKED] {
            let bytes = Bytes::copy_from_slice(&[tag, 1, 2]);
            let packet = Packet::from_datagram(bytes.clone());
            assert_eq!(Datagram::decode(bytes), Ok(Datagram::Packet(packet)));
        }
    }

    #[test]
    fn an_offer_reads_as_it_was_written() {
        assert_eq!(decode_offer(&encode_offer(65_536)), Some(65_536));
        for other in
            [&[][..], &[OFFER], &[OFFER, 0, 0, 0], &[OFFER, 0, 0, 0, 0, 0], &[7, 0, 0, 0, 0]]
        {
            assert_eq!(decode_offer(other), None);
        }
        assert!(is_copy(&[NUMBERED]) && is_copy(&[RESUME]));
        assert!(!is_copy(&[]) && !is_copy(&[OFFER]) && !is_copy(&0_u64.to_be_bytes()));
    }

    #[test]
    fn anything_else_is_unknown() {
        let cut_short = [&[][..], &[FRAGMENT], &[FRAGMENT, 0, 0, 0], &[NEXT, 0, 0]];
        let numbered = [&[NUMBERED, 0, 0, 0, 0, 0][..], &[NUMBERED, 0, 0, 0, 0, 0, NUMBERED]];
        let missing = [&[MISSING][..], &[MISSING, 0, 0, 0, 1, 1, 0], &[NEXT, 0, 0, 0, 0]];
        let resume = [&[RESUME, 0, 0, 0][..], &[RESUME, 0, 0, 0, 0, 0, 0, 1]];
        let strange = [&[0x50][..], &[0xff, 1], &[6, 0x45]];
        let all = cut_short.into_iter().chain(numbered).chain(missing).chain(resume).chain(strange);
        for bytes in all {
            assert_eq!(Datagram::decode(Bytes::copy_from_slice(bytes)), Err(Unknown), "{bytes:?}");
        }
    }
}
