//! An inner IP packet, as it crosses the network and as the datapath handles it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};

use super::{checksum, transport::Transport};

/// First byte of a datagram with a TCP or UDP packet whose checksum the receiving end must
/// complete: the field holds the sum over the pseudo-header alone, as Linux keeps it for hardware
/// (`CHECKSUM_PARTIAL`). QUIC's own protection against damage is stronger.
pub(crate) const UNCHECKED: u8 = 0x02;

/// A packet of at most so many bytes gets memory apart from larger ones: else it would hold their buffer, of 64 to 72 KB, until it
/// is sent.
pub(crate) const DETACH_UP_TO: usize = 512;

/// One inner IP packet. Its bytes are those of the datagram that carries it: the bare packet, or
/// [`UNCHECKED`] and the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet(Bytes);

impl Packet {
    /// Reads the datagram of a packet; `None` if its first byte is that of another kind.
    pub(super) fn decode(datagram: Bytes) -> Option<Self> {
        let first = *datagram.first()?;
        (first == UNCHECKED || matches!(first >> 4, 4 | 6)).then_some(Self(datagram))
    }

    /// A packet as received. `datagram` must begin with [`UNCHECKED`] or with an IP version's nibble.
    pub(crate) fn from_datagram(datagram: Bytes) -> Self {
        Self(datagram)
    }

    /// What carries the packet. Cheap to clone.
    #[must_use]
    pub fn datagram(&self) -> &Bytes {
        &self.0
    }

    /// A copy that does not keep the shared receive buffer in memory.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// The bytes from the IP header on.
    #[must_use]
    pub fn ip(&self) -> &[u8] {
        &self.0[usize::from(self.is_unchecked())..]
    }

    /// Bytes from the IP header on.
    #[must_use]
    pub fn size(&self) -> usize {
        self.ip().len()
    }

    /// Whether the checksum must still be completed.
    #[must_use]
    pub fn is_unchecked(&self) -> bool {
        self.0.first() == Some(&UNCHECKED)
    }

    /// Source and destination; `None` if this is not a whole IP packet, or if its partial checksum
    /// cannot be completed.
    #[must_use]
    pub fn addresses(&self) -> Option<Addresses> {
        let addresses = addresses(self.ip())?;
        (!self.is_unchecked() || Transport::of(self.ip()).is_some()).then_some(addresses)
    }

    /// The packet with a complete checksum, for a peer that cannot complete it: a copy if the
    /// checksum was partial. `None` if the checksum cannot be completed.
    #[must_use]
    pub fn checked(&self) -> Option<Self> {
        if !self.is_unchecked() {
            return Some(self.clone());
        }
        let transport = Transport::of(self.ip())?;
        let mut bytes = BytesMut::from(self.ip());
        checksum::complete(&mut bytes[transport.start..], transport.protocol.checksum());
        Some(Self(bytes.freeze()))
    }
}

impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// Source and destination of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
}

/// Reads the addresses of a whole IPv4 (RFC 791) or IPv6 (RFC 8200) packet; `None` if it is cut
/// short, has bytes to spare or is no IP packet at all.
fn addresses(packet: &[u8]) -> Option<Addresses> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let header_length = usize::from(header[0] & 0x0f) * 4;
            (length == packet.len() && (20..=length).contains(&header_length))
                .then_some(Addresses { source: v4(header, 12), destination: v4(header, 16) })
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
            (length == packet.len())
                .then_some(Addresses { source: v6(header, 8), destination: v6(header, 24) })
        }
        _ => None,
    }
}

fn v4(header: &[u8; 20], at: usize) -> IpAddr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
}

fn v6(header: &[u8; 40], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets).into()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with the given addresses and as many bytes of payload.
    pub(crate) fn packet(source: IpAddr, destination: IpAddr, payload: usize) -> Vec<u8> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0; 20 + payload];
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&(20 + payload as u16).to_be_bytes());
                packet[12..16].copy_from_slice(&source.octets());
                packet[16..20].copy_from_slice(&destination.octets());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0; 40 + payload];
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
                packet[8..24].copy_from_slice(&source.octets());
                packet[24..40].copy_from_slice(&destination.octets());
                packet
            }
            _ => panic!("{source} and {destination} are of two families"),
        }
    }

    proptest! {
        #[test]
        fn addresses_are_read_from_both_families(
            (source, destination) in prop_oneof![
                any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b))),
                any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b))),
            ],
            payload in 0usize..1400,
        ) {
            let bytes = packet(source, destination, payload);
            prop_assert_eq!(addresses(&bytes), Some(Addresses { source, destination }));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = addresses(&bytes);
        }
    }

    #[test]
    fn a_length_that_contradicts_the_header_is_malformed() {
        let good = packet(IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]), 8);
        assert!(addresses(&good).is_some());
        assert_eq!(addresses(&good[..27]), None);
        assert_eq!(addresses(&[good.as_slice(), &[0]].concat()), None);
        for first in [0x44, 0x4f, 0x55] {
            let mut bad = good.clone();
            bad[0] = first;
            assert_eq!(addresses(&bad), None, "{first:#x}");
        }
    }
}
