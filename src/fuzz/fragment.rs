//! Packets in pieces: split by one side, joined by the other.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::wire::{
    datagram::Datagram,
    fragment::{Fragmenter, HEADER, Joined, Joiner, MAX_PIECES, SLOTS},
};

/// The longest packet that is split: the largest MTU that the configuration takes.
const LONGEST: usize = 9000;

/// Reads `data` as steps, each of one kind:
///
/// ```text
///  0  length (1 byte)  datagram                    a datagram from the network
///  1  max (2)  length (2)  fate (1)                a packet of this length, split for datagrams of `max` bytes
/// ```
///
/// Numbers are big endian. `fate` says in which order the pieces arrive: they are rotated by its low four bits; with
/// 0x10 the last one is lost, with 0x20 the first one comes twice, with 0x40 they come backwards.
///
/// The pieces of a packet fit, are numbered, and make up the packet. What the joiner says of each piece is what a map
/// of all pieces says.
pub fn fragment(mut data: &[u8]) {
    let (mut fragmenter, mut joiner, mut model) =
        (Fragmenter::default(), Joiner::default(), Model::default());
    while let Some((kind, rest)) = data.split_first() {
        data = rest;
        let datagrams =
            if kind % 2 == 0 { received(&mut data) } else { split(&mut data, &mut fragmenter) };
        for datagram in datagrams {
            if let Ok(Datagram::Fragment(fragment)) = Datagram::decode(datagram.clone()) {
                assert_eq!(joiner.join(fragment), model.join(&datagram));
            }
        }
    }
    assert_eq!(joiner.take_abandoned(), model.abandoned);
    assert_eq!(joiner.take_abandoned(), 0);
}

fn received(data: &mut &[u8]) -> Vec<Bytes> {
    let Some((length, rest)) = data.split_first() else { return Vec::new() };
    let (datagram, rest) = rest.split_at(rest.len().min((*length).into()));
    *data = rest;
    vec![Bytes::copy_from_slice(datagram)]
}

fn split(data: &mut &[u8], fragmenter: &mut Fragmenter) -> Vec<Bytes> {
    let Some(([max_high, max_low, high, low, fate], rest)) = data.split_first_chunk() else {
        *data = &[];
        return Vec::new();
    };
    *data = rest;
    let max = usize::from(u16::from_be_bytes([*max_high, *max_low]));
    let length = usize::from(u16::from_be_bytes([*high, *low])) % LONGEST + 1;
    let packet: Vec<u8> = (0..length).map(|at| (at ^ (at >> 8)) as u8).collect();

    let pieces = fragmenter.split(&packet, max).map(Iterator::collect::<Vec<_>>);
    let room = max.saturating_sub(HEADER);
    let fits = room > 0 && length.div_ceil(room) <= MAX_PIECES;
    assert_eq!(pieces.is_some(), fits, "{length} bytes in datagrams of {max}");
    let Some(pieces) = pieces else { return Vec::new() };
    check(&packet, &pieces, max);
    arrive(pieces, *fate)
}

/// The pieces fit, tell their place, have nearly equal sizes, and make up the packet.
fn check(packet: &[u8], pieces: &[Bytes], max: usize) {
    assert_eq!(pieces.len(), packet.len().div_ceil(max - HEADER));
    let size = packet.len().div_ceil(pieces.len());
    for (index, piece) in pieces.iter().enumerate() {
        assert!(piece.len() <= max && piece.len() <= HEADER + size);
        assert_eq!(piece[..2], [1, ((index << 4) | (pieces.len() - 1)) as u8]);
        assert_eq!(piece[2..4], pieces[0][2..4], "one packet id");
    }
    assert_eq!(
        pieces.iter().flat_map(|piece| &piece[HEADER..]).copied().collect::<Vec<_>>(),
        packet
    );
}

fn arrive(mut pieces: Vec<Bytes>, fate: u8) -> Vec<Bytes> {
    if fate & 0x10 != 0 {
        pieces.pop();
    }
    if fate & 0x20 != 0 {
        pieces.extend(pieces.first().cloned());
    }
    if fate & 0x40 != 0 {
        pieces.reverse();
    }
    let middle = usize::from(fate & 0x0f) % pieces.len().max(1);
    pieces.rotate_left(middle);
    pieces
}

/// Packets that are not whole, by the slot that their id has. Another packet in the same slot takes it.
#[derive(Default)]
struct Model {
    slots: HashMap<usize, Partial>,
    abandoned: u64,
}

struct Partial {
    id: u16,
    /// The index of its last piece.
    last: u8,
    pieces: BTreeMap<u8, Vec<u8>>,
}

impl Model {
    fn join(&mut self, datagram: &[u8]) -> Joined {
        let (index, last) = (datagram[1] >> 4, datagram[1] & 0x0f);
        let id = u16::from_be_bytes([datagram[2], datagram[3]]);
        let slot = usize::from(id) % SLOTS;
        if self.slots.get(&slot).is_some_and(|known| (known.id, known.last) != (id, last)) {
            self.slots.remove(&slot);
            self.abandoned += 1;
        }
        let new = || Partial { id, last, pieces: BTreeMap::new() };
        let pieces = &mut self.slots.entry(slot).or_insert_with(new).pieces;
        if pieces.contains_key(&index) {
            return Joined::Duplicate;
        }
        pieces.insert(index, datagram[HEADER..].to_vec());
        if pieces.len() <= last.into() {
            return Joined::Incomplete;
        }
        let packet = pieces.values().flatten().copied().collect::<Vec<_>>();
        self.slots.remove(&slot);
        Joined::Packet(packet.into())
    }
}
