//! Splitting and merging, against a plain reference and against each other.

use proptest::prelude::*;

use super::{
    merge::Merger,
    split::{Malformed, Splitter},
    vnet::{self, Checksum, Header, Kind, Offload, Segments},
};
use crate::{
    fuzz::reference,
    wire::{
        checksum::{add, pseudo_header},
        packet::Packet,
        transport::{Protocol, Transport},
    },
};

/// A flow's packets, as the kernel hands them over.
#[derive(Clone, Debug)]
struct Super {
    v6: bool,
    protocol: Protocol,
    port: u16,
    options: usize,
    flags: u8,
    sequence: u32,
    id: u16,
    size: u16,
    payload: Vec<u8>,
}

const TCP_FLAGS: [u8; 6] = [0x10, 0x18, 0x11, 0x50, 0x90, 0x99];

fn supers() -> impl Strategy<Value = Super> {
    (
        any::<(bool, bool, u32, u16)>(),
        0u16..4,
        0usize..11,
        0usize..TCP_FLAGS.len(),
        64u16..1500,
        proptest::collection::vec(any::<u8>(), 1..9000),
    )
        .prop_map(|((v6, tcp, sequence, id), port, options, flags, size, payload)| Super {
            v6,
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port,
            options: if tcp { options * 4 } else { 0 },
            flags: TCP_FLAGS[flags],
            sequence,
            id,
            size,
            payload,
        })
}

impl Super {
    fn start(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        let transport = if self.protocol == Protocol::Tcp { 20 + self.options } else { 8 };
        self.start() + transport
    }

    /// One whole packet made field by field, with all checksums.
    fn packet(&self, index: usize, payload: &[u8], is_last: bool) -> Vec<u8> {
        let (start, end) = (self.start(), self.headers());
        let length = end - start + payload.len();
        let mut ip = vec![0; end];
        if self.v6 {
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            ip[6..8].copy_from_slice(&[self.protocol.number(), 64]);
            ip[23] = 1;
            ip[39] = 2;
        } else {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((start + length) as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&self.id.wrapping_add(index as u16).to_be_bytes());
            ip[8..10].copy_from_slice(&[64, self.protocol.number()]);
            ip[12..20].copy_from_slice(&[10, 66, 0, 1, 10, 66, 0, 2]);
            let sum = !reference::sum(&ip[..20]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let header = &mut ip[start..];
        header[..2].copy_from_slice(&self.port.to_be_bytes());
        match self.protocol {
            Protocol::Tcp => {
                let sequence = self.sequence.wrapping_add((index * usize::from(self.size)) as u32);
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                header[12] = (((20 + self.options) / 4) << 4) as u8;
                header[13] = self.flags;
                if index > 0 {
                    header[13] &= !0x80;
                }
                if !is_last {
                    header[13] &= !0x09;
                }
                header[14..16].copy_from_slice(&[1, 2]);
                header[20..].fill(1);
            }
            Protocol::Udp => header[4..6].copy_from_slice(&(length as u16).to_be_bytes()),
        }
        ip.extend_from_slice(payload);
        let partial = pseudo_header(&ip, self.protocol.number(), length);
        let checksum = match !add(reference::sum(&ip[start..]), partial) {
            0 => 0xffff,
            checksum => checksum,
        };
        let field = start + self.protocol.checksum();
        ip[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        ip
    }

    /// What the network should see.
    fn segments(&self) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(self.size.into());
        let payloads = self.payload.chunks(self.size.into()).enumerate();
        payloads.map(|(at, payload)| self.packet(at, payload, at + 1 == count)).collect()
    }

    /// What the kernel hands over.
    fn given(&self) -> (Header, Vec<u8>) {
        let (start, end) = (self.start(), self.headers());
        let mut ip = self.packet(0, &self.payload, true);
        let partial = pseudo_header(&ip, self.protocol.number(), ip.len() - start);
        let field = start + self.protocol.checksum();
        ip[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        let kind = match (self.protocol, self.v6) {
            (Protocol::Tcp, false) => Kind::Tcp4,
            (Protocol::Tcp, true) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
        let checksum = Checksum { start: start as u16, field: self.protocol.checksum() as u16 };
        let segments = Segments { kind, size: self.size, headers: end as u16 };
        (Header { checksum: Some(checksum), segments: Some(segments) }, ip)
    }

    fn split(&self) -> Vec<Packet> {
        let (header, ip) = self.given();
        let mut batch = Vec::new();
        Splitter::default().split(header, &ip, &mut batch).unwrap();
        batch
    }
}

/// What the kernel is given for a batch: header and packet of each write.
fn writes(batch: &[Packet], offload: Offload) -> Vec<(Header, Vec<u8>)> {
    let mut writes = Vec::new();
    Merger::default().merge(batch, offload, |joined| {
        let (header, rest) = joined.headers.split_first_chunk::<{ vnet::SIZE }>().unwrap();
        let header = Header::decode(*header).unwrap();
        let mut ip = rest.to_vec();
        joined.for_each(|piece| ip.extend_from_slice(piece));
        writes.push((header, ip));
    });
    writes
}

/// The whole packets that the kernel makes of its writes.
fn cut_again(writes: &[(Header, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut batch = Vec::new();
    for (header, ip) in writes {
        Splitter::default().split(*header, ip, &mut batch).unwrap();
    }
    batch.iter().map(|packet| packet.checked().unwrap().ip().to_vec()).collect()
}

proptest! {
    #[test]
    fn a_super_packet_is_split_as_the_reference_splits_it(given in supers()) {
        let cut: Vec<_> =
            given.split().iter().map(|packet| packet.checked().unwrap().ip().to_vec()).collect();
        prop_assert_eq!(cut, given.segments());
    }

    #[test]
    fn split_segments_merge_to_the_packet_they_came_from(mut given in supers()) {
        // At least two, and not more than the kernel takes.
        given.payload.resize((usize::from(given.size) + 1).max(given.payload.len()), 7);
        given.payload.truncate(usize::from(given.size) * 64);
        let (header, ip) = given.given();
        let writes = writes(&given.split(), Offload::Udp);
        prop_assert_eq!(&writes, &[(header, ip)]);
    }

    #[test]
    fn merging_many_flows_changes_none_of_them(
        given in proptest::collection::vec(supers(), 1..6),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 64),
        offload in 0usize..3,
    ) {
        let mut flows: Vec<_> = given.iter().map(|given| given.split().into_iter()).collect();
        let mut batch = Vec::new();
        for index in order {
            let flow = index.index(flows.len());
            batch.extend(flows[flow].next());
        }
        let (offload, _) = Offload::LEVELS[offload];
        let mut delivered = cut_again(&writes(&batch, offload));
        // Flows may overtake each other, packets of a flow may not.
        let mut sent: Vec<_> =
            batch.iter().map(|packet| packet.checked().unwrap().ip().to_vec()).collect();
        let flow = |ip: &Vec<u8>| {
            let start = Transport::of(ip).unwrap().start;
            (ip[0], ip.get(start..start + 2).map(<[u8]>::to_vec), if ip[0] == 0x45 { ip[9] } else { ip[6] })
        };
        delivered.sort_by_key(flow);
        sent.sort_by_key(flow);
        prop_assert_eq!(delivered, sent);
    }

    #[test]
    fn random_packets_never_panic(
        packets in proptest::collection::vec(
            (any::<[u8; vnet::SIZE]>(), 0usize..3, proptest::collection::vec(any::<u8>(), 0..120)), 1..20),
    ) {
        let mut batch = Vec::new();
        let mut splitter = Splitter::default();
        for (header, first, mut ip) in packets {
            if let Some(byte) = ip.first_mut() {
                *byte = [0x45, 0x60, *byte][first];
            }
            if let Ok(header) = Header::decode(header) {
                let _ = splitter.split(header, &ip, &mut batch);
            }
            batch.push(Packet::from_datagram([&[2], ip.as_slice()].concat().into()));
        }
        batch.retain(|packet| packet.addresses().is_some());
        writes(&batch, Offload::Udp);
    }
}

#[test]
fn merged_segments_do_not_overtake_an_acknowledgement() {
    let data = Super {
        v6: false,
        protocol: Protocol::Tcp,
        port: 22,
        options: 12,
        flags: 0x10,
        sequence: 1,
        id: 1,
        size: 100,
        payload: vec![1; 200],
    };
    let later = Super { sequence: 201, id: 4, ..data.clone() };
    let mut acknowledgement = data.packet(2, &[], true);
    acknowledgement.insert(0, 2);
    let mut batch = data.split();
    batch.push(acknowledgement.into());
    batch.extend(later.split());
    let lengths: Vec<_> =
        writes(&batch, Offload::Udp).iter().map(|(_, ip)| ip.len() - 52).collect();
    assert_eq!(lengths, [200, 0, 200]);
    assert_eq!(writes(&batch, Offload::Checksums).len(), 5);
}

#[test]
fn flows_beyond_the_merge_limit_keep_their_order() {
    let flows = (1..=600).map(|port| Super {
        v6: false,
        protocol: Protocol::Udp,
        port,
        options: 0,
        flags: 0,
        sequence: 0,
        id: 1,
        size: 100,
        payload: (0..5).flat_map(|number| [number; 100]).collect(),
    });
    let flows: Vec<_> = flows.map(|flow| flow.split()).collect();
    let batch: Vec<_> =
        (0..5).flat_map(|at| flows.iter().map(move |flow| flow[at].clone())).collect();
    let writes = writes(&batch, Offload::Udp);
    assert!(writes.len() < batch.len(), "some are joined");
    let mut delivered = cut_again(&writes);
    assert_eq!(delivered.len(), batch.len());
    delivered.sort_by_key(|ip| [ip[20], ip[21]]);
    assert!(delivered.chunks(5).all(|flow| flow.is_sorted_by_key(|ip| ip[28])));
}

#[test]
fn a_packet_without_an_ip_version_is_malformed() {
    let whole = Header::default();
    let checksum = |start, field| Header { checksum: Some(Checksum { start, field }), ..whole };
    let mut batch = Vec::new();
    let mut split = |header, ip: &[u8]| Splitter::default().split(header, ip, &mut batch);
    for first in [0x00, 0x01, 0x02, 0x03, 0x50, 0xff] {
        assert_eq!(split(whole, &[first; 40]), Err(Malformed), "{first:#x}");
        assert_eq!(split(checksum(2, 2), &[first; 40]), Err(Malformed), "{first:#x}");
    }
    assert_eq!(split(whole, &[]), Err(Malformed));
    assert_eq!(split(checksum(0, 0), &[0x45; 40]), Err(Malformed), "it would be overwritten");
    assert_eq!(split(checksum(0, 1), &[0x45; 40]), Ok(()));
}
