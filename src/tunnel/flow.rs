//! Which flow an inner packet belongs to.

#[cfg(not(test))]
use std::hash::RandomState as Keys;
use std::hash::{BuildHasher as _, Hasher as _};

use crate::wire::{
    packet::Packet,
    transport::{Protocol, Transport, upper},
};

/// Protocol numbers (IANA, "Assigned Internet Protocol Numbers").
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
/// Packets of at most so many bytes are sent again first, after a switch without being asked for, and over the standby
/// while the path is late.
pub(crate) const SMALL: usize = 512;

/// A flow: all packets with the same addresses, protocol and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The same for all packets of the flow.
    pub hash: u64,
    /// Whether the sender retransmits lost packets (TCP).
    pub is_tcp: bool,
}

/// The keys of the hash. In tests they are always the same: the flows of a test share a bucket in each run or in none.
#[cfg(test)]
type Keys = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// Tells flows apart, by a hash that nobody outside can predict.
#[derive(Clone, Debug, Default)]
pub(crate) struct Classifier(Keys);

impl Classifier {
    /// The flow of a packet. All packets that are not valid IP belong to one flow.
    #[must_use]
    pub(crate) fn flow(&self, ip: &[u8]) -> Flow {
        let mut hasher = self.0.build_hasher();
        let Some((addresses, protocol)) = network(ip) else {
            return Flow { hash: hasher.finish(), is_tcp: false };
        };
        hasher.write(addresses);
        hasher.write_u8(protocol);
        // Fragments have no ports that all of them show, so they are a flow of their own.
        if let Some((TCP | UDP | DCCP | SCTP | UDP_LITE, start)) = upper(ip)
            && let Some(ports) = ip.get(start..start + 4)
        {
            hasher.write(ports);
        }
        Flow { hash: hasher.finish(), is_tcp: protocol == TCP }
    }
}

/// A cheap comparison: `true` means that both packets belong to the same flow, `false` means nothing.
#[must_use]
pub(crate) fn is_same(left: &[u8], right: &[u8]) -> bool {
    let (protocol, addresses, fragment) = match left.first() {
        Some(0x45) => (9, 12..20, 6..8),
        Some(0x60..=0x6f) => (6, 8..40, 0..0),
        _ => return false,
    };
    // The ports come next, where there are no options and no extension headers.
    let header = addresses.start..addresses.end + 4;
    left.len() >= header.end
        && right.len() >= header.end
        && if left[0] == 0x45 { right[0] == 0x45 } else { right[0] >> 4 == 6 }
        && left[protocol] == right[protocol]
        && matches!(left[protocol], TCP | UDP)
        && left[header.clone()] == right[header]
        && [left, right].iter().all(|ip| {
            ip[fragment.clone()].iter().zip([0x3f, 0xff]).all(|(byte, mask)| byte & mask == 0)
        })
}

/// Whether the packet's sender retransmits lost packets (TCP).
#[must_use]
pub(crate) fn is_tcp(ip: &[u8]) -> bool {
    network(ip).is_some_and(|(_, protocol)| protocol == TCP)
}

/// How a packet that is lost is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP with data, or that begins or ends a connection (SYN, FIN, RST of RFC 9293 §3.1): it is sent again, and what
    /// follows it in its connection waits for it.
    Stream,
    /// TCP with an acknowledgement and nothing else: the next one says more, and must not wait for this one.
    BareAck,
    /// Anything else. Its protocol knows what to do about a loss, and may prefer none to a late packet.
    Datagram,
}

/// The kind of a packet.
#[must_use]
pub(crate) fn kind(ip: &[u8]) -> Kind {
    match Transport::of(ip) {
        Some(Transport { protocol: Protocol::Tcp, start, end }) => {
            let has_more = end < ip.len() || ip[start + 13] & 0b111 != 0;
            if has_more { Kind::Stream } else { Kind::BareAck }
        }
        Some(Transport { protocol: Protocol::Udp, .. }) | None => Kind::Datagram,
    }
}

/// Whether a packet has at most [`SMALL`] bytes.
pub(crate) fn is_small(packet: &Packet) -> bool {
    packet.datagram().len() <= SMALL
}

/// Whether a packet is worth a copy while the path is late: it is small, and somebody may wait for it. A bare
/// acknowledgement is followed by others that say more.
pub(crate) fn is_copied(packet: &Packet) -> bool {
    is_small(packet) && kind(packet.ip()) != Kind::BareAck
}

/// Addresses and protocol in the IP header.
fn network(ip: &[u8]) -> Option<(&[u8], u8)> {
    match ip.first()? >> 4 {
        4 => ip.get(..20).map(|header| (&header[12..20], header[9])),
        6 => ip.get(..40).map(|header| (&header[8..40], header[6])),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::packet::tests::packet;

    /// A packet of `length` bytes from `10.66.0.1` or `fd66::1`.
    pub(crate) fn of_flow(v6: bool, protocol: u8, port: u16, length: usize) -> Vec<u8> {
        let (source, destination, header): (IpAddr, IpAddr, _) = if v6 {
            ("fd66::1".parse().unwrap(), "fd66::2".parse().unwrap(), 40)
        } else {
            ("10.66.0.1".parse().unwrap(), "10.66.0.2".parse().unwrap(), 20)
        };
        let mut bytes = packet(source, destination, length - header);
        bytes[if v6 { 6 } else { 9 }] = protocol;
        bytes[header..header + 2].copy_from_slice(&port.to_be_bytes());
        bytes
    }

    #[test]
    fn only_addresses_ports_and_protocol_identify_a_flow() {
        let classifier = Classifier::default();
        for v6 in [false, true] {
            let flow =
                |protocol, port, length| classifier.flow(&of_flow(v6, protocol, port, length));
            assert_eq!(flow(TCP, 22, 60), flow(TCP, 22, 1400));
            assert_ne!(flow(TCP, 22, 60), flow(TCP, 80, 60));
            assert_ne!(flow(TCP, 22, 60).hash, flow(UDP, 22, 60).hash);
            assert!(flow(TCP, 22, 60).is_tcp && !flow(UDP, 22, 60).is_tcp);
        }
    }

    #[test]
    fn fragments_of_one_packet_stay_together() {
        let classifier = Classifier::default();
        let mut first = of_flow(false, UDP, 1000, 60);
        first[6] = 0x20;
        let mut second = of_flow(false, UDP, 2000, 60);
        second[7] = 5;
        assert_eq!(classifier.flow(&first), classifier.flow(&second));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let flow = Classifier::default().flow(&bytes);
            prop_assert_eq!(flow.is_tcp, is_tcp(&bytes));
        }

        #[test]
        fn packets_with_equal_headers_belong_to_one_flow(
            (v6, tcp) in any::<(bool, bool)>(),
            lengths in (60usize..100, 60usize..100),
            changes in proptest::collection::vec((0usize..60, any::<u8>()), 0..3),
        ) {
            let classifier = Classifier::default();
            let protocol = if tcp { TCP } else { UDP };
            let left = of_flow(v6, protocol, 22, lengths.0);
            let mut right = of_flow(v6, protocol, 22, lengths.1);
            prop_assert!(is_same(&left, &right));
            for (at, byte) in changes {
                right[at] = byte;
            }
            if is_same(&left, &right) {
                prop_assert_eq!(classifier.flow(&left), classifier.flow(&right));
            }
        }
    }
}
