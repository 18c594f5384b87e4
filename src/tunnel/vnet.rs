//! The header in front of each packet that crosses the TUN device with `IFF_VNET_HDR`: the work
//! that is left to the receiver of the packet (`struct virtio_net_hdr` of linux/virtio_net.h;
//! virtio 1.2 §5.1.6).

use nix::libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};

/// Bytes of the header.
pub(crate) const SIZE: usize = 10;

/// The checksum is to be completed.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A flag: the first segment carries TCP's CWR (RFC 3168 §6.1.2).
const GSO_ECN: u8 = 0x80;

/// The work that the kernel may leave to this process, and this process to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Nothing: packets are whole and their checksums in place.
    None,
    /// Checksums.
    Checksums,
    /// Also TCP segmentation.
    Tcp,
    /// Also UDP segmentation (Linux 6.2).
    Udp,
}

impl Offload {
    /// The levels above [`Self::None`], best first, with the flags of `TUNSETOFFLOAD`
    /// (linux/if_tun.h).
    pub const LEVELS: [(Self, u32); 3] = {
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let udp = tcp | TUN_F_USO4 | TUN_F_USO6;
        [(Self::Udp, udp), (Self::Tcp, tcp), (Self::Checksums, TUN_F_CSUM)]
    };
}

/// The work that is left for a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum that must still be computed.
    pub checksum: Option<Checksum>,
    /// How to segment the packet.
    pub segments: Option<Segments>,
}

/// A checksum that is to be computed, with the sum of the pseudo-header in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The first byte that is summed up.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub field: u16,
}

/// A super-packet: one packet that stands for several segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Its protocol.
    pub kind: Kind,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// Bytes of headers in front of the payload. The kernel takes it as a hint.
    pub headers: u16,
}

/// The protocol of a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, over either.
    Udp,
}

/// A header with offloads that were not requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl Header {
    /// Reads a header. Its numbers have the machine's byte order (`TUNSETVNETLE` is not used).
    pub fn decode(bytes: [u8; SIZE]) -> Result<Self, Unknown> {
        let [flags, gso, rest @ ..] = bytes;
        let number = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let kind = match gso & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Kind::Tcp4),
            GSO_TCPV6 => Some(Kind::Tcp6),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => return Err(Unknown),
        };
        Ok(Self {
            checksum: (flags & NEEDS_CSUM != 0)
                .then(|| Checksum { start: number(4), field: number(6) }),
            segments: kind.map(|kind| Segments { kind, size: number(2), headers: number(0) }),
        })
    }

    /// Writes the header. The kernel sees by itself whether TCP's CWR is set.
    #[must_use]
    pub fn encode(self) -> [u8; SIZE] {
        let (flags, Checksum { start, field }) = match self.checksum {
            Some(checksum) => (NEEDS_CSUM, checksum),
            None => (0, Checksum { start: 0, field: 0 }),
        };
        let (gso, size, headers) = match self.segments {
            Some(Segments { kind, size, headers }) => (kind.number(), size, headers),
            None => (GSO_NONE, 0, 0),
        };
        let mut bytes = [0; SIZE];
        bytes[..2].copy_from_slice(&[flags, gso]);
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip([headers, size, start, field]) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Tcp4 => GSO_TCPV4,
            Self::Tcp6 => GSO_TCPV6,
            Self::Udp => GSO_UDP_L4,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_reads_as_it_was_written(
            checksum in proptest::option::of((any::<u16>(), any::<u16>())),
            segments in proptest::option::of((0usize..3, any::<u16>(), any::<u16>())),
        ) {
            let header = Header {
                checksum: checksum.map(|(start, field)| Checksum { start, field }),
                segments: segments.map(|(kind, size, headers)| Segments {
                    kind: [Kind::Tcp4, Kind::Tcp6, Kind::Udp][kind],
                    size,
                    headers,
                }),
            };
            prop_assert_eq!(Header::decode(header.encode()), Ok(header));
        }

        #[test]
        fn random_bytes_never_panic(bytes in any::<[u8; SIZE]>()) {
            let _ = Header::decode(bytes);
        }
    }
}
