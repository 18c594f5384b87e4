//! What the kernel leaves to us and takes from us: packets behind a virtio-net header, cut and joined.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::reference::{self, TCP, Transport, UDP};
use crate::{
    tunnel::{
        merge::{Joined, Merger},
        split::Splitter,
        vnet::{self, Checksum, Header, Kind, Offload, Segments},
    },
    wire::{datagram::Datagram, packet::Packet},
};

/// The longest IP packet.
const LONGEST: usize = 65_535;
/// The kernel takes no more UDP datagrams as one.
const MOST_UDP: usize = 64;
/// "Don't fragment", in byte 6 of an IPv4 header.
const DF: u8 = 0x40;

/// Reads the first byte of `data` as what the device takes (0 checksums, 1 TCP, 2 UDP segmentation) and the rest as
/// steps, each of one kind:
///
/// ```text
///  0  length (2)  virtio-net header (10)  packet   read from the device, for the batch
///  1  length (2)  datagram                         received from the network, for the batch
///  2                                               the batch is written to the device
///  3                                               the second half of the batch is interleaved with the first
/// ```
///
/// Lengths are big endian, the header has the machine's order.
///
/// A packet of the device is cut into what a network card would send. A batch is written so that the device,
/// which cuts each write like a network card, gives every packet of the batch, in its order within a flow.
pub fn offload(data: &[u8]) {
    let Some((level, mut data)) = data.split_first() else { return };
    let (offload, _) = Offload::LEVELS[2 - usize::from(level % 3)];
    let (mut splitter, mut merger) = (Splitter::default(), Merger::default());
    let mut batch = Vec::new();
    while let Some((kind, rest)) = data.split_first() {
        data = rest;
        match kind % 4 {
            0 => read(take(&mut data), &mut splitter, &mut batch),
            1 => receive(take(&mut data), &mut batch),
            2 => write(&std::mem::take(&mut batch), offload, &mut merger),
            _ => interleave(&mut batch),
        }
    }
    write(&batch, offload, &mut merger);
}

fn take<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some(([high, low], rest)) = data.split_first_chunk() else { return std::mem::take(data) };
    let (taken, rest) = rest.split_at(rest.len().min(u16::from_be_bytes([*high, *low]).into()));
    *data = rest;
    taken
}

fn read(data: &[u8], splitter: &mut Splitter, batch: &mut Vec<Packet>) {
    let Some((header, ip)) = data.split_first_chunk::<{ vnet::SIZE }>() else { return };
    let Ok(header) = Header::decode(*header) else { return };
    assert_eq!(Header::decode(header.encode()), Ok(header));
    let before = batch.len();
    let split = splitter.split(header, ip, batch);
    let expected = cut(header, ip);
    assert_eq!(split.is_ok(), expected.is_some(), "{header:?}");
    let found: Vec<_> = batch[before..].iter().map(delivered).collect();
    assert_eq!(found, expected.unwrap_or_default());
}

fn receive(datagram: &[u8], batch: &mut Vec<Packet>) {
    if let Ok(Datagram::Packet(packet)) = Datagram::decode(Bytes::copy_from_slice(datagram)) {
        batch.push(packet);
    }
}

fn interleave(batch: &mut Vec<Packet>) {
    let later = batch.split_off(batch.len().div_ceil(2));
    let mut later = later.into_iter();
    *batch = std::mem::take(batch)
        .into_iter()
        .flat_map(|packet| [Some(packet), later.next()])
        .flatten()
        .collect();
}

/// The packet as it is on a network.
fn delivered(packet: &Packet) -> Vec<u8> {
    packet
        .checked()
        .expect("packets without a place for their checksum are sorted out")
        .ip()
        .to_vec()
}

fn write(batch: &[Packet], offload: Offload, merger: &mut Merger) {
    // As the check of addresses leaves them.
    let batch: Vec<_> = batch.iter().filter(|it| it.addresses().is_some()).cloned().collect();
    let mut flows = Flows::new();
    for packet in &batch {
        let ip = delivered(packet);
        flows.entry(flow(&ip)).or_default().push(ip);
    }
    // From the last one on.
    flows.values_mut().for_each(|flow| flow.reverse());
    merger.merge(&batch, offload, |joined| check(joined, offload, &mut flows));
    assert!(flows.values().all(Vec::is_empty), "a packet is not written");
}

/// The packets that are still to be written, by what must stay in order.
type Flows = BTreeMap<Option<Vec<u8>>, Vec<Vec<u8>>>;

/// Protocol, addresses and ports; one for all that have none.
fn flow(ip: &[u8]) -> Option<Vec<u8>> {
    let Transport { protocol, start, .. } = reference::transport(ip)?;
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    Some([&[protocol], addresses, &ip[start..start + 4]].concat())
}

/// One write stands for the next packets of its flow.
fn check(joined: Joined<'_>, offload: Offload, flows: &mut Flows) {
    let count = joined.count;
    let (header, rest) = joined.headers.split_first_chunk().expect("a header comes first");
    let header = Header::decode(*header).expect("a header that we wrote");
    let mut ip = rest.to_vec();
    joined.for_each(|piece| ip.extend_from_slice(piece));
    assert!(ip.len() <= LONGEST);
    assert_eq!(header.segments.is_some(), count > 1);
    if let Some(segments) = header.segments {
        check_segments(header.checksum, segments, &ip, count, offload);
    }
    let packets = cut(header, &ip).expect("what is joined can be cut");
    assert_eq!(packets.len(), count);
    for (index, packet) in packets.into_iter().enumerate() {
        let sent =
            flows.get_mut(&flow(&packet)).and_then(Vec::pop).expect("a packet that was sent");
        let expected = if count > 1 { as_joined(sent, &ip, index) } else { sent };
        assert_eq!(packet, expected, "packet {index} of {count}");
    }
}

fn check_segments(
    checksum: Option<Checksum>,
    Segments { kind, size, headers }: Segments,
    ip: &[u8],
    count: usize,
    offload: Offload,
) {
    let found = reference::transport(ip).expect("what is joined has a transport header");
    let (start, field) = (found.start as u16, (found.checksum() - found.start) as u16);
    assert_eq!(checksum, Some(Checksum { start, field }));
    assert_eq!(usize::from(headers), found.end);
    assert_eq!((ip.len() - found.end).div_ceil(size.into()), count);
    let (expected, least) = match (found.protocol, ip[0] >> 4) {
        (TCP, 4) => (Kind::Tcp4, Offload::Tcp),
        (TCP, _) => (Kind::Tcp6, Offload::Tcp),
        _ => (Kind::Udp, Offload::Udp),
    };
    assert_eq!(kind, expected);
    assert!(offload >= least && (found.protocol != UDP || count <= MOST_UDP));
}

/// A joined packet as it comes out again: lengths and checksums are written anew, and so is the identification
/// where it means nothing (RFC 6864 §4.1).
fn as_joined(mut ip: Vec<u8>, head: &[u8], index: usize) -> Vec<u8> {
    if ip[0] >> 4 == 4 && ip[6] & DF != 0 {
        let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add(index as u16);
        ip[4..6].copy_from_slice(&id.to_be_bytes());
    }
    let transport = reference::transport(&ip).expect("a packet that was joined");
    reference::complete(&mut ip, transport);
    ip
}

/// The packets that a network card makes of `ip`; `None` if the header contradicts the packet, or if it is no IP
/// packet: its first byte would be taken for the tag of another datagram.
fn cut(header: Header, ip: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut whole = ip.to_vec();
    match header {
        Header { segments: Some(segments), .. } => return segment(segments.size.into(), ip),
        Header { checksum: Some(Checksum { start, field }), .. } => {
            let start = usize::from(start);
            let at = start + usize::from(field);
            if at == 0 {
                return None;
            }
            let checksum = reference::checksum(ip.get(start..)?);
            whole.get_mut(at..at + 2)?.copy_from_slice(&checksum);
        }
        Header { .. } => {}
    }
    matches!(ip.first()? >> 4, 4 | 6).then(|| vec![whole])
}

fn segment(size: usize, ip: &[u8]) -> Option<Vec<Vec<u8>>> {
    let transport = reference::transport(ip)?;
    let Transport { protocol, start, end } = transport;
    let (headers, payload) = ip.split_at(end);
    if size == 0 || payload.is_empty() {
        return None;
    }
    let last = payload.len().div_ceil(size) - 1;
    let cut = payload.chunks(size).enumerate().map(|(index, payload)| {
        let mut ip = [headers, payload].concat();
        if ip[0] >> 4 == 4 {
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if protocol == TCP {
            let tcp = &mut ip[start..];
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let sequence = sequence.wrapping_add((index * size) as u32);
            tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
            // CWR stays in the first segment, FIN and PSH in the last one.
            tcp[13] &= if index > 0 { !0x80 } else { !0 };
            tcp[13] &= if index < last { !0x09 } else { !0 };
        }
        reference::complete(&mut ip, transport);
        ip
    });
    Some(cut.collect())
}
