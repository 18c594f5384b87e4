//! Sends datagrams with a traffic class (DSCP, RFC 2474).
//!
//! DSCP and ECN share one byte, and quinn's own sends set only the ECN bits.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    os::fd::AsRawFd,
};

use nix::{
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg},
};
use quinn::udp::Transmit;

/// Sends a transmit with the class `dscp`.
pub(super) fn send(socket: &impl AsRawFd, transmit: &Transmit, dscp: u8) -> io::Result<()> {
    let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
    let byte = dscp << 2 | ecn.map_or(0, |mark| mark as u8);
    let traffic_class = i32::from(byte);
    let segment_size = segment_size.filter(|size| *size < contents.len()).map(|size| size as u16);
    // A dual-stack socket sends IPv4 to a mapped address.
    let class = if destination.ip().to_canonical().is_ipv4() {
        ControlMessage::Ipv4Tos(&byte)
    } else {
        ControlMessage::Ipv6TClass(&traffic_class)
    };
    let source = src_ip.map(Source::new);
    let mut messages = vec![class];
    messages.extend(segment_size.as_ref().map(ControlMessage::UdpGsoSegments));
    messages.extend(source.as_ref().map(Source::message));
    let to = SockaddrStorage::from(destination);
    let bytes = [IoSlice::new(contents)];
    sendmsg(socket.as_raw_fd(), &bytes, &messages, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

/// The source address of a datagram (ip(7), ipv6(7)).
enum Source {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl Source {
    fn new(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                ipi_addr: in_addr { s_addr: 0 },
            }),
            IpAddr::V6(ip) => Self::V6(in6_pktinfo {
                ipi6_addr: in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            }),
        }
    }

    fn message(&self) -> ControlMessage<'_> {
        match self {
            Self::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Self::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}
