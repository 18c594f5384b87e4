//! Packets as the RFCs describe them, read and written byte by byte: what the datapath is compared with.

use std::net::IpAddr;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// The sum of 16-bit words (RFC 1071 §4.1). An odd last byte counts as the high half of a word.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0_u32;
    for pair in bytes.chunks(2) {
        total += (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The checksum of these bytes; zero, which would mean "none" (RFC 768), is written as all ones.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 2] {
    match !sum(bytes) {
        0 => [0xff, 0xff],
        checksum => checksum.to_be_bytes(),
    }
}

/// Source and destination of a packet whose length field tells its length.
pub(super) fn addresses(ip: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<16>()?));
    match ip.first()? >> 4 {
        // RFC 791 §3.1: total length and header length.
        4 => (word(ip, 2)? == ip.len() && (20..=ip.len()).contains(&ipv4_header(ip)))
            .then(|| Some((v4(12)?, v4(16)?)))?,
        // RFC 8200 §3: the length without the header.
        6 => (word(ip, 4)? + 40 == ip.len()).then(|| Some((v6(8)?, v6(24)?)))?,
        _ => None,
    }
}

/// A TCP or UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transport {
    pub(super) protocol: u8,
    /// The first byte of the header and the first byte after it.
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Transport {
    /// The checksum's place in the packet.
    pub(super) fn checksum(self) -> usize {
        self.start + if self.protocol == TCP { 16 } else { 6 }
    }
}

/// The TCP or UDP header of a packet that is no fragment.
pub(super) fn transport(ip: &[u8]) -> Option<Transport> {
    let (protocol, start) = match ip.first()? >> 4 {
        4 => {
            let is_fragment = word(ip, 6)? & 0x3fff != 0;
            let is_whole = ip.len() >= 20 && ipv4_header(ip) >= 20 && !is_fragment;
            is_whole.then(|| (ip[9], ipv4_header(ip)))?
        }
        6 => {
            let mut header = (*ip.get(6)?, 40);
            // Hop-by-hop options, routing and destination options (RFC 8200 §4.1): next header, length in units
            // of eight bytes without the first.
            while let (0 | 43 | 60, at) = header {
                header = (*ip.get(at)?, at + 8 + 8 * usize::from(*ip.get(at + 1)?));
            }
            header
        }
        _ => return None,
    };
    let length = match protocol {
        TCP => usize::from(ip.get(start + 12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let end = start + length;
    let fits = length >= 8 && (protocol == UDP || length >= 20) && end <= ip.len();
    // The kernel tells offsets in 16 bits.
    (fits && end <= 0xffff).then_some(Transport { protocol, start, end })
}

/// Everything that a transport checksum covers (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).
pub(super) fn covered(ip: &[u8], transport: Transport) -> Vec<u8> {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    let payload = &ip[transport.start..];
    let length = (payload.len() as u32).to_be_bytes();
    [addresses, &length, &[0, 0, 0, transport.protocol], payload].concat()
}

/// Writes all lengths and checksums of a packet anew.
pub(super) fn complete(ip: &mut [u8], transport: Transport) {
    let Transport { protocol, start, .. } = transport;
    let length = ip.len();
    if ip[0] >> 4 == 4 {
        ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        ip[10..12].fill(0);
        let header = (!sum(&ip[..start])).to_be_bytes();
        ip[10..12].copy_from_slice(&header);
    } else {
        ip[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
    if protocol == UDP {
        ip[start + 4..start + 6].copy_from_slice(&((length - start) as u16).to_be_bytes());
    }
    let field = transport.checksum();
    ip[field..field + 2].fill(0);
    let checksum = checksum(&covered(ip, transport));
    ip[field..field + 2].copy_from_slice(&checksum);
}

fn ipv4_header(ip: &[u8]) -> usize {
    usize::from(ip[0] & 0x0f) * 4
}

fn word(ip: &[u8], at: usize) -> Option<usize> {
    Some((usize::from(*ip.get(at)?) << 8) | usize::from(*ip.get(at + 1)?))
}
