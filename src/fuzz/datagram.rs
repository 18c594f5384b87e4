//! A datagram from the other side, and all that is done to the packet in it before it is delivered.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use bytes::Bytes;
use ipnet::{Ipv4Net, Ipv6Net};

use super::reference;
use crate::{
    tunnel::{
        counters::Counters,
        device::PacketSink,
        ecn, egress,
        flow::{self, Classifier},
        inside::{Inside, UNROUTABLE},
    },
    wire::{
        datagram::Datagram,
        packet::{Addresses, Packet},
    },
};

/// The client's inner addresses.
const OWN: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 66, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 2)),
];

/// A client that sends everything into its tunnel.
static INSIDE: LazyLock<Inside> = LazyLock::new(|| {
    let everything = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    Inside::new(OWN.into(), everything, [])
});

/// It takes everything.
struct Device;

impl PacketSink for Device {
    fn send(&self, _: &[Packet]) -> u64 {
        0
    }

    fn completes_checksums(&self) -> bool {
        true
    }
}

/// Reads `data` as one datagram.
///
/// A datagram is what `docs/protocol.md` says its first byte makes it. A packet keeps its bytes; its checksum is
/// completed as RFC 1071 asks; a congestion mark changes nothing else. Only a packet for the client, from a network
/// behind the tunnel, is delivered.
pub fn datagram(data: &[u8]) {
    let decoded = Datagram::decode(Bytes::copy_from_slice(data));
    match (data, decoded) {
        ([0, ..], Ok(Datagram::Padding)) => {}
        ([1, position, _, _, _, ..], Ok(Datagram::Fragment(_))) => {
            assert!(position >> 4 <= position & 0x0f, "the index is below the number of pieces");
        }
        ([1, rest @ ..], Err(_)) => {
            assert!(rest.len() < 4 || rest[0] >> 4 > rest[0] & 0x0f, "a piece is refused");
        }
        ([2 | 0x40..=0x4f | 0x60..=0x6f, ..], Ok(Datagram::Packet(packet))) => {
            assert_eq!(packet.datagram(), data);
            check(&packet);
        }
        ([3, _, _, _, high, low, packet @ ..], Ok(Datagram::Numbered(numbered))) => {
            assert_eq!(numbered.back, u16::from_be_bytes([*high, *low]));
            assert_eq!(numbered.packet.datagram(), packet);
            check(&numbered.packet);
        }
        ([3, rest @ ..], Err(_)) => {
            assert!(!matches!(rest.get(5), Some(2 | 0x40..=0x4f | 0x60..=0x6f)));
        }
        ([4, ranges @ ..], Ok(Datagram::Missing(missing))) => {
            assert_eq!(missing.ranges().count() * 5, ranges.len());
        }
        ([4, ranges @ ..], Err(_)) => assert!(ranges.is_empty() || ranges.len() % 5 > 0),
        ([5, _, _, _], Ok(Datagram::Next(_))) => {}
        ([5, number @ ..], Err(_)) => assert_ne!(number.len(), 3),
        ([], Err(_)) => {}
        ([tag, ..], Err(_)) => assert!(!matches!(tag, 0 | 2 | 0x40..=0x4f | 0x60..=0x6f), "{tag}"),
        (_, decoded) => panic!("read as {decoded:?}"),
    }
}

fn check(packet: &Packet) {
    let ip = packet.ip();
    let transport = reference::transport(ip);
    assert_eq!(packet.is_unchecked(), packet.datagram().len() > ip.len());
    assert_eq!(&packet.detached(), packet);

    let expected =
        reference::addresses(ip).filter(|_| !packet.is_unchecked() || transport.is_some());
    let found = packet.addresses().map(|found| (found.source, found.destination));
    assert_eq!(found, expected);

    match packet.checked() {
        None => assert!(packet.is_unchecked() && transport.is_none()),
        Some(whole) if !packet.is_unchecked() => assert_eq!(&whole, packet),
        Some(whole) => {
            let transport = transport.expect("a checksum that is completed has a place");
            let field = transport.checksum();
            let mut expected = ip.to_vec();
            expected[field..field + 2]
                .copy_from_slice(&reference::checksum(&ip[transport.start..]));
            assert_eq!(whole.ip(), expected);
        }
    }

    if let Some(marked) = ecn::mark(packet) {
        check_mark(ip, marked.ip());
        let flows = Classifier::default();
        assert_eq!(flows.flow(ip), flows.flow(marked.ip()), "a mark does not change the flow");
        assert!(!flow::is_same(ip, ip) || flow::is_same(ip, marked.ip()));
    }

    let mut batch = vec![packet.clone()];
    let counters = Counters::default();
    egress::deliver(&mut batch, &Device, &counters, INSIDE.judge());
    if let Some(Addresses { source, destination }) = batch.first().and_then(Packet::addresses) {
        assert!(OWN.contains(&destination) && !OWN.contains(&source));
        assert!(!UNROUTABLE.iter().any(|net| net.contains(&source)), "{source}");
    } else {
        assert!(batch.is_empty(), "a packet without addresses is delivered");
    }
}

/// The mark is in place, an IPv4 header's checksum is as right or wrong as before, and nothing else differs.
fn check_mark(before: &[u8], after: &[u8]) {
    let mut expected = before.to_vec();
    if before[0] >> 4 == 4 {
        expected[1] |= 0b11;
        expected[10..12].copy_from_slice(&after[10..12]);
        assert_eq!(reference::sum(&before[..20]), reference::sum(&after[..20]));
    } else {
        expected[1] |= 0b11 << 4;
    }
    assert_eq!(after, expected);
}
