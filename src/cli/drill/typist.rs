//! Somebody at a terminal: a keystroke every 100 ms, whose echo is the server's answer to a ping. It goes through the
//! TUN device, like all that people send.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    cli::{exit::Exit, interrupt::Interrupt, tally::Tally},
    clock,
    wire::checksum,
};

/// Between two keystrokes.
pub(super) const TYPING: Duration = Duration::from_millis(100);
/// A keystroke of ssh has about so many bytes of payload.
const PAYLOAD: usize = 36;
const HEADER: usize = 8;

/// The types of echo request and reply (RFC 792, RFC 4443 §4).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

pub(super) struct Typist {
    socket: UdpSocket,
    server: IpAddr,
    /// Sets our echoes apart from those of others.
    mark: [u8; 8],
    next: Instant,
    interrupt: Interrupt,
    pub(super) tally: Tally,
}

impl Typist {
    /// Types to `server` through the device `interface` alone.
    pub(super) fn new(
        interface: &str,
        server: IpAddr,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let socket = open(server).context(
            "cannot ping: run this as root, or put your group into the sysctl net.ipv4.ping_group_range",
        )?;
        socket.bind_device(Some(interface.as_bytes())).context("cannot use the tunnel's device")?;
        socket
            .connect(&SocketAddr::new(server, 0).into())
            .with_context(|| format!("cannot reach {server} through {interface}"))?;
        let started = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut mark = [0; 8];
        mark[..4].copy_from_slice(&std::process::id().to_be_bytes());
        mark[4..].copy_from_slice(&started.subsec_nanos().to_be_bytes());
        let (interrupt, tally) = (interrupt.clone(), Tally::default());
        Ok(Self { socket: socket.into(), server, mark, next: clock::now(), interrupt, tally })
    }

    /// Types until then, or until it is `done`, or somebody interrupts.
    pub(super) fn type_until(
        &mut self,
        until: Instant,
        mut done: impl FnMut(&Tally) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        while !self.interrupt.is_set() && !done(&self.tally)? {
            let now = clock::now();
            if now >= until {
                break;
            }
            if now >= self.next {
                self.keystroke(now);
                // One that comes late does not hurry the others.
                self.next = (self.next + TYPING).max(now);
            }
            self.hear(self.next.min(until).saturating_duration_since(clock::now()))?;
        }
        Ok(())
    }

    fn keystroke(&mut self, now: Instant) {
        let number = self.tally.line_typed(now) as u32;
        let packet = request(self.server, self.mark, number);
        // What cannot be sent is lost, as on any network.
        let _ = self.socket.send(&packet);
    }

    /// Waits for an echo for so long at most.
    fn hear(&mut self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 512];
        // An error, as one that a router reports, is no echo; it waits a moment, so that a socket that only fails does not spin.
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(number) = reply(self.server, self.mark, &buffer[..length]) {
                    self.tally.line_echoed(number as usize, clock::now());
                }
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        Ok(())
    }
}

/// A socket for echo requests: one that needs no right, if the group may have it, or else a raw one.
fn open(server: IpAddr) -> anyhow::Result<Socket> {
    let (domain, protocol) = match server {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))
        .map_err(|error| Exit::Permission.because(error))
}

/// An echo request. The kernel fills in the checksum where it knows one, which ICMPv4 on a raw socket lacks.
fn request(server: IpAddr, mark: [u8; 8], number: u32) -> [u8; HEADER + PAYLOAD] {
    let mut packet = [0; HEADER + PAYLOAD];
    packet[0] = if server.is_ipv4() { ECHO_V4.0 } else { ECHO_V6.0 };
    packet[4..6].copy_from_slice(&mark[2..4]);
    packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
    packet[HEADER..HEADER + 8].copy_from_slice(&mark);
    packet[HEADER + 8..HEADER + 12].copy_from_slice(&number.to_be_bytes());
    if server.is_ipv4() {
        let sum = !checksum::sum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of our keystroke whose echo this is. A raw IPv4 socket gives the IP header as well.
fn reply(server: IpAddr, mark: [u8; 8], packet: &[u8]) -> Option<u32> {
    let packet = match packet.first()? {
        version if server.is_ipv4() && version >> 4 == 4 => {
            packet.get(usize::from(version & 0xf) * 4..)?
        }
        _ => packet,
    };
    let kind = if server.is_ipv4() { ECHO_V4.1 } else { ECHO_V6.1 };
    let payload = packet.get(HEADER..HEADER + 12)?;
    let is_ours = packet[0] == kind && payload[..8] == mark;
    is_ours.then(|| u32::from_be_bytes([payload[8], payload[9], payload[10], payload[11]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: [u8; 8] = *b"roamdrun";

    fn answer(server: IpAddr, kind: u8, number: u32) -> Vec<u8> {
        let mut packet = request(server, MARK, number).to_vec();
        packet[0] = kind;
        packet
    }

    #[test]
    fn an_echo_of_ours_has_its_number() {
        let (v4, v6) = ("10.66.0.1".parse().unwrap(), "fd66::1".parse().unwrap());
        assert_eq!(reply(v4, MARK, &answer(v4, 0, 70_000)), Some(70_000));
        assert_eq!(reply(v6, MARK, &answer(v6, 129, 3)), Some(3));
        let raw = [vec![0x45; 20], answer(v4, 0, 7)].concat();
        assert_eq!(reply(v4, MARK, &raw), Some(7));
    }

    #[test]
    fn anything_else_has_none() {
        let v4 = "10.66.0.1".parse().unwrap();
        let echo = answer(v4, 0, 1);
        assert_eq!(reply(v4, *b"somebody", &echo), None);
        assert_eq!(reply(v4, MARK, &answer(v4, 8, 1)), None, "our own request on a raw socket");
        for length in 0..HEADER + 12 {
            assert_eq!(reply(v4, MARK, &echo[..length]), None, "{length}");
        }
        assert_eq!(reply(v4, MARK, &[0x4f; 30]), None);
    }

    #[test]
    fn the_checksum_of_a_request_fits() {
        let packet = request("10.66.0.1".parse().unwrap(), MARK, 9);
        assert_eq!(!checksum::sum(&packet), 0);
    }
}
