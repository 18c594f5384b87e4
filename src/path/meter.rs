//! Counts what each link carries, of every socket of a path or a probe there.
//!
//! Counted is what a provider counts: IP packets, with their headers. A path over UDP is counted exactly. Of one over
//! TCP each datagram counts as a segment of its own; bare acknowledgements, what TCP sends again and the handshakes of
//! TCP and TLS are not counted.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::{link::candidate::Candidate, mutex::Mutex};

/// Bytes of a packet's headers (RFC 791, RFC 8200, RFC 768).
const IPV4: u64 = 20;
const IPV6: u64 = 40;
const UDP: u64 = 8;
/// TCP's with its timestamps (RFC 9293, RFC 7323), and a record of TLS 1.3 (RFC 8446 §5.2) around a capsule.
const TCP_AND_TLS: u64 = 32 + 22 + 4;

/// Bytes that a link carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It carries the tunnel.
    Tunnel,
    /// It asks whether a path works, and keeps it warm.
    Probe,
}

/// What a link carried since it was last looked at.
#[derive(Debug, Default)]
struct Link {
    tunnel: [AtomicU64; 2],
    probes: [AtomicU64; 2],
}

/// All links.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<BTreeMap<String, Arc<Link>>>);

impl Meters {
    /// What each link carried since the last call: for the tunnel, and for probes.
    pub(crate) fn take(&self) -> Vec<(String, [Carried; 2])> {
        let mut links = self.0.lock();
        let taken = |link: &Link| {
            [&link.tunnel, &link.probes]
                .map(|[up, down]| Carried { up: up.swap(0, Relaxed), down: down.swap(0, Relaxed) })
        };
        let mut all = Vec::with_capacity(links.len());
        links.retain(|name, link| {
            // In this order: whoever has a socket may count meanwhile. Others come back with the next one. Unlike
            // `strong_count` this sees all that a socket counted which is gone.
            let is_used = Arc::get_mut(link).is_none();
            all.push((name.clone(), taken(link)));
            is_used
        });
        all
    }

    /// The same socket, of which all is counted for the candidate's link.
    pub(crate) fn count(
        &self,
        socket: Arc<dyn AsyncUdpSocket>,
        candidate: &Candidate,
        purpose: Purpose,
    ) -> Arc<dyn AsyncUdpSocket> {
        let mut links = self.0.lock();
        let link = links.entry(candidate.link.clone()).or_default().clone();
        let ip = match candidate.server.ip() {
            IpAddr::V4(_) => IPV4,
            IpAddr::V6(_) => IPV6,
        };
        let above = if candidate.transport.is_stream() { TCP_AND_TLS } else { UDP };
        Arc::new(Counted { socket, link, purpose, headers: ip + above })
    }
}

/// A socket of which all is counted.
struct Counted {
    socket: Arc<dyn AsyncUdpSocket>,
    link: Arc<Link>,
    purpose: Purpose,
    /// Bytes around each datagram.
    headers: u64,
}

impl Counted {
    /// Up and down.
    fn counters(&self) -> &[AtomicU64; 2] {
        match self.purpose {
            Purpose::Tunnel => &self.link.tunnel,
            Purpose::Probe => &self.link.probes,
        }
    }

    /// Bytes on the wire of datagrams with `payload` bytes together, each of at most `segment`.
    fn size(&self, payload: usize, segment: usize) -> u64 {
        payload as u64 + payload.div_ceil(segment.max(1)) as u64 * self.headers
    }
}

impl AsyncUdpSocket for Counted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.socket.try_send(transmit)?;
        let payload = transmit.contents.len();
        let size = self.size(payload, transmit.segment_size.unwrap_or(payload));
        self.counters()[0].fetch_add(size, Relaxed);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(cx, bufs, meta))?;
        let size = meta[..count].iter().map(|it| self.size(it.len, it.stride)).sum();
        self.counters()[1].fetch_add(size, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted")
            .field("socket", &self.socket)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::{link::candidate::Transport, path::udp::fake::FakeSocket};

    fn candidate(server: &str, transport: Transport) -> Candidate {
        Candidate {
            link: "wwan0".into(),
            index: 3,
            source: [10, 0, 0, 2].into(),
            router: None,
            metric: 700,
            server: server.parse().unwrap(),
            transport,
        }
    }

    /// What is counted of twelve datagrams of 1000 bytes and a shorter one up, and one of 100 down.
    fn counted(server: &str, transport: Transport, purpose: Purpose) -> [Carried; 2] {
        let (meters, fake) = (Meters::default(), FakeSocket::new("10.0.0.2:1"));
        let socket = meters.count(fake.clone(), &candidate(server, transport), purpose);
        let contents = vec![7; 12_010];
        let transmit = Transmit {
            destination: server.parse().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(1000),
            src_ip: None,
        };
        socket.try_send(&transmit).unwrap();
        *fake.send_error.lock().unwrap() = Some(nix::errno::Errno::ENETDOWN);
        socket.try_send(&transmit).unwrap_err();
        fake.arrive(Ok((vec![0; 100], server.parse().unwrap(), None)));
        let (mut buffer, mut meta) = (vec![0; 2000], [RecvMeta::default()]);
        let mut cx = Context::from_waker(Waker::noop());
        let mut bufs = [IoSliceMut::new(&mut buffer)];
        assert!(socket.poll_recv(&mut cx, &mut bufs, &mut meta).is_ready());
        let taken = meters.take();
        assert_eq!(taken[0].0, "wwan0");
        assert_eq!(meters.take(), [("wwan0".into(), [Carried::default(); 2])], "taken once");
        drop(socket);
        assert_eq!(meters.take().len(), 1);
        assert!(meters.take().is_empty(), "nobody uses it");
        taken[0].1
    }

    #[test]
    fn every_datagram_counts_with_its_headers_for_the_purpose_of_its_socket() {
        let none = Carried::default();
        let v4 = Carried { up: 12_010 + 13 * 28, down: 128 };
        let v6 = Carried { up: 12_010 + 13 * 48, down: 148 };
        let tcp = Carried { up: 12_010 + 13 * 78, down: 178 };
        let (tunnel, probe) = (Purpose::Tunnel, Purpose::Probe);
        assert_eq!(counted("192.0.2.1:4433", Transport::Udp, tunnel), [v4, none]);
        assert_eq!(counted("192.0.2.1:4433", Transport::Udp, probe), [none, v4]);
        assert_eq!(counted("[2001:db8::1]:4433", Transport::Udp, tunnel), [v6, none]);
        assert_eq!(counted("192.0.2.1:443", Transport::Tcp, probe), [none, tcp]);
    }
}
