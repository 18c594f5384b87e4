//! Joining packets of one flow that came together, so that the kernel takes them as one.
//!
//! The reverse of [`split`](super::split), by the rules of the kernel's own receive offload: what is
//! joined can be cut again into the very same packets (but for the identification of those that may
//! not be fragmented, which means nothing: RFC 6864 §4.1). Only packets are joined whose checksum was
//! left to us, so there is none to verify.

use super::{
    split::{CWR, FIN, PSH, write_headers},
    vnet::{self, Checksum, Header, Kind, Offload, Segments},
};
use crate::wire::{
    checksum,
    packet::Packet,
    transport::{Protocol, Transport},
};

/// The longest IP packet.
const LONGEST: usize = 65_535;
/// The kernel takes no more UDP datagrams as one (`UDP_MAX_SEGMENTS` of linux/udp.h, before 6.9).
const MOST_UDP: usize = 64;
/// TCP flags of a segment that can be joined: ACK, and ECN's echo (RFC 3168 §6.1).
const PLAIN: u8 = 0x10 | 0x40;
/// "Don't fragment", in byte 6 of an IPv4 header.
const DF: u8 = 0x40;

/// Slots for the flows of a batch. Packets of two flows in the same slot are not joined while they alternate.
const FLOWS: usize = 256;

/// Sorts a batch into groups that can be written as one. Each writer of a device has its own
/// merger.
#[derive(Debug, Default)]
pub struct Merger {
    groups: Vec<Group>,
    /// The latest group in each slot. An entry of an earlier batch points to a group of another flow and does
    /// not match.
    latest: Vec<usize>,
    /// For each packet of the batch, the next packet of its group.
    next: Vec<Option<usize>>,
    headers: Vec<u8>,
}

/// Packets of a batch that are written as one, in their order.
#[derive(Debug)]
struct Group {
    head: usize,
    tail: usize,
    count: usize,
    transport: Option<Transport>,
    /// Bytes of payload in each packet but the last.
    size: usize,
    /// All bytes, headers once.
    bytes: usize,
    /// Whether another packet may be appended.
    open: bool,
}

/// One write.
#[derive(Clone, Debug)]
pub struct Joined<'a> {
    /// The number of packets in it.
    pub count: usize,
    /// The device's header and, for more than one packet, the IP and transport headers.
    pub headers: &'a [u8],
    batch: &'a [Packet],
    next: &'a [Option<usize>],
    at: Option<usize>,
    from: usize,
}

impl<'a> Iterator for Joined<'a> {
    type Item = &'a [u8];

    /// The payloads after the headers, one slice per packet.
    fn next(&mut self) -> Option<&'a [u8]> {
        let at = self.at?;
        self.at = self.next[at];
        Some(&self.batch[at].ip()[self.from..])
    }
}

impl Merger {
    /// Hands all packets of `batch` to `write`, joined as far as `offload` allows. The order within each flow
    /// stays.
    pub fn merge(&mut self, batch: &[Packet], offload: Offload, mut write: impl FnMut(Joined<'_>)) {
        self.groups.clear();
        self.latest.resize(FLOWS, 0);
        self.next.clear();
        self.next.resize(batch.len(), None);
        for (at, packet) in batch.iter().enumerate() {
            self.add(batch, at, packet, offload);
        }
        let Self { groups, next, headers, .. } = self;
        for group in groups {
            headers.clear();
            let from = group.write_headers(batch, headers);
            let (count, at) = (group.count, Some(group.head));
            write(Joined { count, headers, batch, next, at, from });
        }
    }

    fn add(&mut self, batch: &[Packet], at: usize, packet: &Packet, offload: Offload) {
        let ip = packet.ip();
        let new = Group::new(at, packet, offload);
        if let Some(transport) = new.transport {
            let is_same = |at: &usize| {
                self.groups.get(*at).is_some_and(|group| {
                    let of = group.transport;
                    of.is_some_and(|of| is_same_flow(batch[group.head].ip(), of, ip, transport))
                })
            };
            // Joined to the latest one of the flow only: nothing may overtake that.
            let newest = self.groups.len().checked_sub(1).filter(is_same);
            let latest = newest.or_else(|| Some(self.latest[place(ip, transport)]).filter(is_same));
            if packet.is_unchecked()
                && let Some(found) = latest
                && let group = &mut self.groups[found]
                && group.takes(batch[group.head].ip(), ip, transport)
            {
                self.next[group.tail] = Some(at);
                group.append(at, ip, transport);
                return;
            }
            self.latest[place(ip, transport)] = self.groups.len();
        }
        self.groups.push(new);
    }
}

impl Group {
    fn new(at: usize, packet: &Packet, offload: Offload) -> Self {
        let ip = packet.ip();
        let transport = Transport::of(ip);
        let size = transport.map_or(0, |transport| ip.len() - transport.end);
        let joins = transport.is_some_and(|transport| match transport.protocol {
            Protocol::Tcp => {
                offload >= Offload::Tcp && tcp_flags(ip, transport) & !(PLAIN | CWR) == 0
            }
            Protocol::Udp => offload >= Offload::Udp,
        });
        let open = joins && size > 0 && packet.is_unchecked();
        Self { head: at, tail: at, count: 1, transport, size, bytes: ip.len(), open }
    }

    /// Whether a packet of the same flow is the next segment. `head` is the group's first.
    fn takes(&self, head: &[u8], ip: &[u8], transport: Transport) -> bool {
        let Transport { protocol, start, end } = transport;
        let payload = ip.len() - end;
        self.open
            && self.transport == Some(transport)
            && (1..=self.size).contains(&payload)
            && self.bytes + payload <= LONGEST
            && is_next_ip(head, ip, start, self.count)
            && match protocol {
                Protocol::Tcp => {
                    is_next_tcp(&head[start..end], &ip[start..end], self.count * self.size)
                }
                Protocol::Udp => self.count < MOST_UDP,
            }
    }

    fn append(&mut self, at: usize, ip: &[u8], transport: Transport) {
        let payload = ip.len() - transport.end;
        let ends =
            transport.protocol == Protocol::Tcp && tcp_flags(ip, transport) & (FIN | PSH) != 0;
        self.tail = at;
        self.count += 1;
        self.bytes += payload;
        self.open = payload == self.size && !ends;
    }

    /// Writes what comes before the payloads; returns where these begin in each packet.
    fn write_headers(&self, batch: &[Packet], to: &mut Vec<u8>) -> usize {
        let head = &batch[self.head];
        let checksum = self.transport.filter(|_| head.is_unchecked()).map(|transport| Checksum {
            start: transport.start as u16,
            field: transport.protocol.checksum() as u16,
        });
        let joined = self.transport.filter(|_| self.count > 1);
        let segments = joined.map(|Transport { protocol, end, .. }| Segments {
            kind: match protocol {
                Protocol::Tcp if head.ip()[0] >> 4 == 4 => Kind::Tcp4,
                Protocol::Tcp => Kind::Tcp6,
                Protocol::Udp => Kind::Udp,
            },
            size: self.size as u16,
            headers: end as u16,
        });
        to.extend_from_slice(&Header { checksum, segments }.encode());
        let Some(transport) = joined else { return 0 };
        to.extend_from_slice(&head.ip()[..transport.end]);
        let ip = &mut to[vnet::SIZE..];
        write_headers(ip, transport, self.bytes - transport.end);
        if ip[0] >> 4 == 4 {
            checksum::complete_ipv4(&mut ip[..transport.start]);
        }
        if transport.protocol == Protocol::Tcp {
            ip[transport.start + 13] |= tcp_flags(batch[self.tail].ip(), transport) & (FIN | PSH);
        }
        transport.end
    }
}

fn tcp_flags(ip: &[u8], transport: Transport) -> u8 {
    ip[transport.start + 13]
}

/// A flow's slot among [`FLOWS`]. A sender that chooses ports to collide with another flow of the
/// same receiver prevents joining, and nothing else.
fn place(ip: &[u8], transport: Transport) -> usize {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    let words = addresses.chunks_exact(4).chain([&ip[transport.start..transport.start + 4]]);
    let sum = words.fold(0_u32, |sum, word| {
        sum.rotate_left(7) ^ u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
    });
    (sum.wrapping_mul(0x9e37_79b1) >> 24) as usize
}

fn is_same_flow(left: &[u8], of_left: Transport, right: &[u8], of_right: Transport) -> bool {
    let (start, addresses) = (of_left.start, if left[0] >> 4 == 4 { 12..20 } else { 8..40 });
    of_left.protocol == of_right.protocol
        && start == of_right.start
        && left[0] == right[0]
        && left[addresses.clone()] == right[addresses]
        && left[start..start + 4] == right[start..start + 4]
}

/// Whether the IP header of the packet that is `count` after `head` could be this one.
fn is_next_ip(head: &[u8], ip: &[u8], start: usize, count: usize) -> bool {
    if head[0] >> 4 == 4 {
        let id = |ip: &[u8]| u16::from_be_bytes([ip[4], ip[5]]);
        head[1] == ip[1]
            && head[6..10] == ip[6..10]
            && head[20..start] == ip[20..start]
            && (ip[6] & DF != 0 || id(ip) == id(head).wrapping_add(count as u16))
    } else {
        head[..4] == ip[..4] && head[6..8] == ip[6..8] && head[40..start] == ip[40..start]
    }
}

/// Whether the TCP header of the segment that is `bytes` after `head` could be this one.
fn is_next_tcp(head: &[u8], tcp: &[u8], bytes: usize) -> bool {
    let sequence = |tcp: &[u8]| u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    sequence(tcp) == sequence(head).wrapping_add(bytes as u32)
        && head[8..13] == tcp[8..13]
        && tcp[13] & CWR == 0
        && (head[13] ^ tcp[13]) & !(FIN | PSH | CWR) == 0
        && head[14..16] == tcp[14..16]
        && head[18..] == tcp[18..]
}
