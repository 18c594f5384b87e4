//! Finds the transport header of an inner packet.

/// Protocol numbers (IANA, "Assigned Internet Protocol Numbers").
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 extension headers that may precede it (RFC 8200 §4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// A protocol whose checksum can be left to hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// The offset of the checksum in its header, in bytes.
    #[must_use]
    pub(crate) fn checksum(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// The TCP or UDP header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    /// Whose header it is.
    pub protocol: Protocol,
    /// Its first byte.
    pub start: usize,
    /// The first byte after it.
    pub end: usize,
}

impl Transport {
    /// Finds the header in a whole IP packet. `None` for fragments, other protocols, packets that are cut
    /// short, and headers beyond a 16-bit offset.
    #[must_use]
    pub(crate) fn of(ip: &[u8]) -> Option<Self> {
        let (protocol, start) = upper(ip)?;
        let (protocol, length) = match protocol {
            TCP => (Protocol::Tcp, usize::from(ip.get(start + 12)? >> 4) * 4),
            UDP => (Protocol::Udp, 8),
            _ => return None,
        };
        let end = start + length;
        let whole = end <= ip.len().min(u16::MAX.into())
            && length >= if protocol == Protocol::Tcp { 20 } else { 8 };
        whole.then_some(Self { protocol, start, end })
    }
}

/// The protocol that a packet carries and where its header begins. A fragment other than the first
/// (in IPv6: any fragment) has no transport header.
#[must_use]
pub(crate) fn upper(ip: &[u8]) -> Option<(u8, usize)> {
    match ip.first()? >> 4 {
        4 => {
            let header = ip.first_chunk::<20>()?;
            let length = usize::from(header[0] & 0x0f) * 4;
            // More fragments, or an offset (RFC 791 §3.1).
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            (length >= 20 && !fragment).then_some((header[9], length))
        }
        6 => {
            let (mut next, mut at) = (ip.first_chunk::<40>()?[6], 40);
            while let HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS = next {
                next = *ip.get(at)?;
                at += (usize::from(*ip.get(at + 1)?) + 1) * 8;
            }
            Some((next, at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[5] = rest.len() as u8;
        packet[6] = next;
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn extension_headers_are_walked() {
        let mut rest = vec![DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([0; 9]);
        let found = Transport { protocol: Protocol::Udp, start: 64, end: 72 };
        assert_eq!(Transport::of(&ipv6(HOP_BY_HOP, &rest)), Some(found));
        assert_eq!(Transport::of(&ipv6(UDP, &[0; 7])), None, "cut short");
        assert_eq!(Transport::of(&ipv6(44, &[UDP, 0, 0, 0, 0, 0, 0, 0])), None, "a fragment");
    }

    #[test]
    fn a_tcp_header_is_read_with_its_options() {
        let mut tcp = [0; 40];
        tcp[12] = 0x80;
        let found = Transport { protocol: Protocol::Tcp, start: 40, end: 72 };
        assert_eq!(Transport::of(&ipv6(TCP, &tcp)), Some(found));
        for length in [0x40, 0xf0] {
            tcp[12] = length;
            assert_eq!(Transport::of(&ipv6(TCP, &tcp)), None);
        }
    }

    #[test]
    fn a_header_beyond_64_kb_is_not_read() {
        let chain = |count: usize| {
            let mut rest =
                [DESTINATION_OPTIONS, 255].into_iter().chain([0; 2046]).collect::<Vec<u8>>();
            rest = rest.repeat(count);
            rest[(count - 1) * 2048] = UDP;
            rest.extend([0; 8]);
            Transport::of(&ipv6(DESTINATION_OPTIONS, &rest)).map(|found| found.start)
        };
        assert_eq!(chain(31), Some(40 + 31 * 2048));
        assert_eq!(chain(32), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..200), v6 in any::<bool>()) {
            bytes[0] = bytes[0] & 0x0f | if v6 { 0x60 } else { 0x40 };
            if let Some(Transport { start, end, .. }) = Transport::of(&bytes) {
                prop_assert!(start < end && end <= bytes.len());
            }
        }
    }
}
