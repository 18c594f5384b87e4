//! Splitting an inner packet that does not fit into one datagram, and joining it again.
//!
//! A path can carry less than the tunnel's MTU: QUIC starts at 1200 bytes (RFC 9000 §14), IPv6
//! needs 1280 inside. Such a packet crosses in pieces instead of being dropped, so the tunnel's
//! MTU can stay constant over all paths.
//!
//! ```text
//!  byte 0     1 (FRAGMENT)
//!  byte 1     index (high 4 bits) | number of pieces - 1 (low 4 bits)
//!  bytes 2-3  packet id, big endian; counts up and wraps
//!  then       the piece; pieces are joined in the order of their index
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::datagram::FRAGMENT;

/// Bytes in front of each piece.
pub(crate) const HEADER: usize = 4;
/// A packet is split into at most this many pieces: 4 bits count them.
pub(crate) const MAX_PIECES: usize = 16;
/// Packets under reassembly at a time. Pieces of one packet are sent back to back, so few packets
/// are incomplete at once; a new packet replaces the oldest.
pub(crate) const SLOTS: usize = 64;
/// The fragmenter cuts pieces from chunks of this size, so that one allocation serves many pieces.
const CHUNK: usize = 64 * 1024;

/// One piece of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    id: u16,
    index: u8,
    count: u8,
    piece: Bytes,
}

impl Fragment {
    /// Reads a piece, including its first byte; `None` if it is cut short or contradicts itself.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let [_, position, high, low] = *bytes.first_chunk::<HEADER>()?;
        let piece = bytes.split_off(HEADER);
        let (index, count) = (position >> 4, (position & 0x0f) + 1);
        (index < count && !piece.is_empty()).then_some(Self {
            id: u16::from_be_bytes([high, low]),
            index,
            count,
            piece,
        })
    }
}

/// Splits packets. One for each connection.
#[derive(Debug, Default)]
pub struct Fragmenter {
    next_id: u16,
    chunk: BytesMut,
}

impl Fragmenter {
    /// Splits `packet` into datagrams of at most `max` bytes, of nearly equal size.
    ///
    /// `None` if that would take more than [`MAX_PIECES`], or if `max` has no room for a payload.
    pub fn split(&mut self, packet: &[u8], max: usize) -> Option<impl Iterator<Item = Bytes>> {
        let room = max.checked_sub(HEADER).filter(|room| *room > 0)?;
        let count = packet.len().div_ceil(room).max(1);
        if count > MAX_PIECES {
            return None;
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let size = packet.len() + count * HEADER;
        if self.chunk.capacity() < size {
            self.chunk = BytesMut::with_capacity(CHUNK.max(size));
        }
        let chunk = &mut self.chunk;
        Some(packet.chunks(packet.len().div_ceil(count).max(1)).enumerate().map(
            move |(index, piece)| {
                chunk.put_u8(FRAGMENT);
                chunk.put_u8(((index as u8) << 4) | (count - 1) as u8);
                chunk.put_u16(id);
                chunk.put_slice(piece);
                chunk.split().freeze()
            },
        ))
    }
}

/// The result of adding a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined {
    /// The packet is whole.
    Packet(Bytes),
    /// More pieces are needed.
    Incomplete,
    /// The piece came twice.
    Duplicate,
}

/// Joins pieces. One for each connection.
#[derive(Debug, Default)]
pub struct Joiner {
    slots: Vec<Slot>,
    abandoned: u64,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    id: u16,
    /// Zero while the slot is free.
    count: u8,
    pieces: [Bytes; MAX_PIECES],
}

impl Joiner {
    /// Takes a piece in any order.
    pub fn join(&mut self, fragment: Fragment) -> Joined {
        let Fragment { id, index, count, piece } = fragment;
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, Slot::default);
        }
        let slot = &mut self.slots[usize::from(id) % SLOTS];
        if slot.count != count || slot.id != id {
            self.abandoned += u64::from(slot.count != 0);
            *slot = Slot { id, count, ..Slot::default() };
        }
        let place = &mut slot.pieces[usize::from(index)];
        if !place.is_empty() {
            return Joined::Duplicate;
        }
        *place = piece;
        let pieces = &slot.pieces[..usize::from(count)];
        if pieces.iter().any(Bytes::is_empty) {
            // It may stay for long, and must not keep all that came in the same buffer.
            let place = &mut slot.pieces[usize::from(index)];
            *place = Bytes::copy_from_slice(place);
            return Joined::Incomplete;
        }
        let mut packet = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| packet.put_slice(piece));
        *slot = Slot::default();
        Joined::Packet(packet.freeze())
    }

    /// Packets given up since the last call because a piece never came.
    pub fn take_abandoned(&mut self) -> u64 {
        std::mem::take(&mut self.abandoned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::datagram::Datagram;

    fn decode(bytes: Bytes) -> Fragment {
        match Datagram::decode(bytes) {
            Ok(Datagram::Fragment(fragment)) => fragment,
            other => panic!("not a fragment: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_packet_in_any_order(
            packet in proptest::collection::vec(any::<u8>(), 1..9000),
            max in 600usize..1500,
            order in any::<prop::sample::Index>(),
            id in any::<u16>(),
        ) {
            let mut fragmenter = Fragmenter { next_id: id, ..Fragmenter::default() };
            let mut pieces: Vec<_> = fragmenter.split(&packet, max).unwrap().collect();
            prop_assert!(pieces.iter().all(|piece| piece.len() <= max));
            let middle = order.index(pieces.len());
            pieces.rotate_left(middle);
            let last = pieces.pop().unwrap();
            let mut joiner = Joiner::default();
            for piece in pieces {
                prop_assert_eq!(joiner.join(decode(piece)), Joined::Incomplete);
            }
            prop_assert_eq!(joiner.join(decode(last)), Joined::Packet(packet.into()));
        }

        #[test]
        fn random_bytes_never_panic(datagrams in proptest::collection::vec(
            (prop_oneof![Just(FRAGMENT), any::<u8>()], proptest::collection::vec(any::<u8>(), 0..12)),
            0..200,
        )) {
            let mut joiner = Joiner::default();
            for (tag, rest) in datagrams {
                let bytes = Bytes::from([&[tag], rest.as_slice()].concat());
                if let Ok(Datagram::Fragment(fragment)) = Datagram::decode(bytes) {
                    joiner.join(fragment);
                }
            }
        }
    }

    #[test]
    fn a_lost_piece_costs_its_own_packet_only() {
        let mut fragmenter = Fragmenter::default();
        let mut joiner = Joiner::default();
        let lost: Vec<_> = fragmenter.split(&[1; 1400], 1162).unwrap().collect();
        joiner.join(decode(lost[0].clone()));
        for _ in 0..SLOTS {
            let pieces: Vec<_> = fragmenter.split(&[2; 1400], 1162).unwrap().collect();
            assert_eq!(joiner.join(decode(pieces[1].clone())), Joined::Incomplete);
            assert_eq!(
                joiner.join(decode(pieces[0].clone())),
                Joined::Packet(vec![2; 1400].into())
            );
        }
        assert_eq!(joiner.take_abandoned(), 1);
        assert_eq!(joiner.take_abandoned(), 0);
    }

    #[test]
    fn a_repeated_piece_is_recognized() {
        let mut joiner = Joiner::default();
        let pieces: Vec<_> = Fragmenter::default().split(&[3; 1400], 1162).unwrap().collect();
        assert_eq!(joiner.join(decode(pieces[0].clone())), Joined::Incomplete);
        assert_eq!(joiner.join(decode(pieces[0].clone())), Joined::Duplicate);
    }

    #[test]
    fn a_packet_that_needs_too_many_pieces_is_refused() {
        let mut fragmenter = Fragmenter::default();
        assert!(fragmenter.split(&[0; 1400], HEADER).is_none());
        assert!(fragmenter.split(&[0; 1700], HEADER + 100).is_none());
        assert_eq!(fragmenter.split(&[0; 1600], HEADER + 100).unwrap().count(), MAX_PIECES);
    }
}
