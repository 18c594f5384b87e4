//! The congestion mark in an inner packet's header (ECN, RFC 3168).

use bytes::BytesMut;

use crate::wire::{checksum, packet::Packet};

/// The ECN field: not capable, capable (two values), congestion experienced (RFC 3168 §5).
const NOT_CAPABLE: u8 = 0b00;
const CONGESTION: u8 = 0b11;

/// The packet with the mark "congestion experienced"; `None` if its sender does not understand it.
#[must_use]
pub(crate) fn mark(packet: &Packet) -> Option<Packet> {
    let ip = packet.ip();
    let is_v4 = match ip.first()? >> 4 {
        4 if ip.len() >= 20 => true,
        6 if ip.len() >= 40 => false,
        _ => return None,
    };
    let before = if is_v4 { ip[1] & 0b11 } else { ip[1] >> 4 & 0b11 };
    match before {
        NOT_CAPABLE => return None,
        CONGESTION => return Some(packet.clone()),
        _ => {}
    }
    // A mark is rare: one packet of many in a queue that stands.
    let mut marked = BytesMut::from(&packet.datagram()[..]);
    let start = marked.len() - ip.len();
    let ip = &mut marked[start..];
    if is_v4 {
        let old = u16::from_be_bytes([ip[0], ip[1]]);
        ip[1] |= CONGESTION;
        let new = u16::from_be_bytes([ip[0], ip[1]]);
        let checksum = checksum::updated(u16::from_be_bytes([ip[10], ip[11]]), old, new);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        // IPv6 has no header checksum.
        ip[1] |= CONGESTION << 4;
    }
    Some(Packet::from_datagram(marked.freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{fuzz::reference, tunnel::flow::tests::of_flow};

    proptest! {
        #[test]
        fn the_header_checksum_stays_right(mut header in any::<[u8; 20]>(), ecn in 1u8..3) {
            header[0] = 0x45;
            header[1] = header[1] & !0b11 | ecn;
            header[10..12].fill(0);
            let checksum = !reference::sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            let marked = mark(&header.to_vec().into()).unwrap();
            let marked = marked.ip();
            prop_assert_eq!(marked[1] & 0b11, CONGESTION);
            prop_assert_eq!(reference::sum(marked), 0xffff);
            prop_assert_eq!(&marked[2..10], &header[2..10]);
            prop_assert_eq!(&marked[12..], &header[12..]);
        }
    }

    #[test]
    fn only_a_capable_sender_is_marked() {
        for v6 in [false, true] {
            let shift = if v6 { 4 } else { 0 };
            for (before, after) in
                [(0b00, None), (0b01, Some(0b11)), (0b10, Some(0b11)), (0b11, Some(0b11))]
            {
                let mut packet = of_flow(v6, 6, 22, 60);
                packet[1] = before << shift;
                let marked = mark(&packet.into());
                assert_eq!(marked.map(|packet| packet.ip()[1] >> shift & 0b11), after);
            }
        }
    }
}
