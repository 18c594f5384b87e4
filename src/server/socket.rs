//! The server's socket, as quinn sees it: one or several bound ones, as `listen` says, and the clients over TCP.
//!
//! quinn keeps, for a connection's whole life, the local address at which its first datagram
//! arrived, and sends from it. A client that moves to the other address family, or to another
//! address of this server, would then be answered from an address it never spoke to, or not at all:
//! the kernel refuses a source of the wrong family with EINVAL, and quinn gives up segmentation
//! offload for everybody. Of the port at which it arrived quinn knows nothing. Answers therefore leave by a socket and
//! from an address at which the client was heard lately, see [`heard`].
//!
//! A client has a socket of its own for each path, and so a port of its own for each port of the server. Two clients
//! behind one NAT that maps both to one port, since they speak to different ports of the server, are one client here: the
//! later one is answered at the wrong port, and finds the server by another path.
//!
//! A dual-stack socket shows IPv4 clients as IPv4-mapped IPv6 addresses. Here they are IPv4, so that
//! quinn knows a mere change of port (a NAT that rebinds) from a move, and keeps RTT and window.
//!
//! Clients over TCP have virtual addresses here, see [`streams`](super::streams). A UDP datagram that claims to come
//! from one is a forgery.
//!
//! As on the client, no I/O error reaches quinn.

mod heard;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use lru::LruCache;
use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use self::heard::{Heard, Local};
use super::streams::{Streams, is_virtual};
use crate::{clock, mutex::Mutex};

/// Clients whose local addresses are kept. Beyond that, the least recently used client is answered
/// from the address of its first datagram, or from one that the kernel picks.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Consecutive receive errors before other tasks get a turn.
const RECEIVE_ERRORS: usize = 16;

/// See the module's documentation.
pub struct ServerSocket {
    /// One at least.
    bound: Vec<Bound>,
    /// Where each client was heard; `None` if this socket has one address only.
    heard_at: Option<Mutex<LruCache<SocketAddr, Heard>>>,
    /// Clients over TCP, if there can be any.
    streams: Option<Arc<Streams>>,
    /// Counts receives; each begins with the next socket, the last one being that of clients over TCP.
    turn: AtomicUsize,
    send_errors: AtomicU64,
    receive_errors: AtomicU64,
}

/// A bound socket.
#[derive(Debug)]
struct Bound {
    socket: Arc<dyn AsyncUdpSocket>,
    local: SocketAddr,
}

impl Bound {
    fn new(socket: Arc<dyn AsyncUdpSocket>) -> io::Result<Self> {
        Ok(Self { local: socket.local_addr()?, socket })
    }

    /// Whether it can send to this address; `[::]` also sends to IPv4.
    fn reaches(&self, ip: IpAddr) -> bool {
        let is_dual = self.local.is_ipv6() && self.local.ip().is_unspecified();
        is_dual || self.local.is_ipv4() == ip.is_ipv4()
    }

    /// An address in the form that the socket's family takes.
    fn native(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) if self.local.is_ipv6() => v4.to_ipv6_mapped().into(),
            IpAddr::V4(_) | IpAddr::V6(_) => ip,
        }
    }
}

impl ServerSocket {
    /// Wraps a bound socket.
    pub fn new(socket: Arc<dyn AsyncUdpSocket>) -> io::Result<Arc<Self>> {
        Self::with_streams(vec![socket], None)
    }

    /// Wraps bound sockets, one at least. Clients of `streams` are clients of this socket, too.
    pub(crate) fn with_streams(
        sockets: Vec<Arc<dyn AsyncUdpSocket>>,
        streams: Option<Arc<Streams>>,
    ) -> io::Result<Arc<Self>> {
        let bound = sockets.into_iter().map(Bound::new).collect::<io::Result<Vec<_>>>()?;
        let Some(first) = bound.first() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let has_one_address = bound.len() == 1 && !first.local.ip().is_unspecified();
        Ok(Arc::new(Self {
            heard_at: (!has_one_address).then(|| Mutex::new(LruCache::new(REMEMBERED))),
            bound,
            streams,
            turn: AtomicUsize::default(),
            send_errors: AtomicU64::default(),
            receive_errors: AtomicU64::default(),
        }))
    }

    /// The addresses that it is bound to: the first one, and the others.
    pub(crate) fn addresses(&self) -> (SocketAddr, impl Iterator<Item = SocketAddr>) {
        (self.bound[0].local, self.bound.iter().skip(1).map(|bound| bound.local))
    }

    /// Sends that failed, other than by `EMSGSIZE` (a probe for a larger MTU).
    #[must_use]
    pub fn send_errors(&self) -> u64 {
        self.send_errors.load(Relaxed)
    }

    /// Receives that failed.
    #[must_use]
    pub fn receive_errors(&self) -> u64 {
        self.receive_errors.load(Relaxed)
    }

    /// Clients over TCP, if there can be any.
    #[must_use]
    pub(crate) fn streams(&self) -> Option<&Arc<Streams>> {
        self.streams.as_ref()
    }

    /// The client's real address, and whether it is one over TCP. `None` if its TCP connection has ended.
    #[must_use]
    pub(crate) fn client(&self, address: SocketAddr) -> Option<(SocketAddr, bool)> {
        let client = self.streams.as_ref().map_or(Some(address), |it| it.client(address))?;
        Some((client, is_virtual(address.ip())))
    }

    /// The client's real address for people; see [`Streams::shown`].
    #[must_use]
    pub(crate) fn shown(&self, address: SocketAddr) -> SocketAddr {
        self.streams.as_ref().map_or(address, |streams| streams.shown(address))
    }

    /// Receives from clients over TCP.
    fn poll_streams(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let streams = self.streams.as_ref();
        streams.map_or(Poll::Pending, |streams| streams.poll_recv(cx, bufs, meta).map(Ok))
    }

    /// Receives from clients over UDP, by the socket at `place`.
    fn poll_udp(
        &self,
        place: usize,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..RECEIVE_ERRORS {
            match self.bound[place].socket.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    self.remember(place, &mut meta[..count]);
                    return Poll::Ready(Ok(count));
                }
                Poll::Ready(Err(_)) => self.receive_errors.fetch_add(1, Relaxed),
                Poll::Pending => return Poll::Pending,
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn remember(&self, place: usize, meta: &mut [RecvMeta]) {
        let mut heard_at = self.heard_at.as_ref().map(|heard_at| heard_at.lock());
        let now = clock::now();
        for meta in meta {
            meta.addr = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            meta.dst_ip = meta.dst_ip.map(|ip| ip.to_canonical());
            if is_virtual(meta.addr.ip()) {
                // quinn skips an empty datagram.
                meta.len = 0;
                self.receive_errors.fetch_add(1, Relaxed);
                continue;
            }
            if let Some(heard_at) = &mut heard_at {
                let local = Local { place, ip: meta.dst_ip };
                heard_at.get_or_insert_mut(meta.addr, Heard::default).note(local, now);
            }
        }
    }

    /// The socket and the source address for answers to `destination`.
    fn source(&self, destination: SocketAddr, first: Option<IpAddr>) -> (&Bound, Option<IpAddr>) {
        let Some(heard_at) = &self.heard_at else { return (&self.bound[0], None) };
        let mut heard_at = heard_at.lock();
        let heard =
            heard_at.get(&destination).and_then(|heard| heard.answer_from(first, clock::now()));
        let place = heard.map_or_else(
            || self.bound.iter().position(|it| it.reaches(destination.ip())).unwrap_or_default(),
            |local| local.place,
        );
        let source = heard.and_then(|local| local.ip).or(first);
        let source = source.filter(|source| source.is_ipv4() == destination.is_ipv4());
        (&self.bound[place], source)
    }
}

impl AsyncUdpSocket for ServerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let pollers = self.bound.iter().map(|it| it.socket.clone().create_io_poller());
        Box::pin(QuietPoller(pollers.collect()))
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
        if let Some(streams) = &self.streams
            && is_virtual(destination.ip())
        {
            streams.send(transmit);
            return Ok(());
        }
        let (bound, source) = self.source(destination, src_ip);
        let transmit = Transmit {
            destination: SocketAddr::new(bound.native(destination.ip()), destination.port()),
            ecn,
            contents,
            segment_size,
            src_ip: source.map(|source| bound.native(source)),
        };
        match bound.socket.try_send(&transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if error.raw_os_error() != Some(Errno::EMSGSIZE as i32) => {
                self.send_errors.fetch_add(1, Relaxed);
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // In turns, so that a busy one does not starve the others.
        let sources = self.bound.len() + usize::from(self.streams.is_some());
        let turn = if sources > 1 { self.turn.fetch_add(1, Relaxed) } else { 0 };
        for place in (0..sources).map(|next| turn.wrapping_add(next) % sources) {
            let received = match place < self.bound.len() {
                true => self.poll_udp(place, cx, bufs, meta),
                false => self.poll_streams(cx, bufs, meta),
            };
            if received.is_ready() {
                return received;
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.bound[0].local)
    }

    fn max_transmit_segments(&self) -> usize {
        self.bound.iter().map(|it| it.socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.bound.iter().map(|it| it.socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.bound.iter().any(|it| it.socket.may_fragment())
    }
}

impl fmt::Debug for ServerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSocket").field("bound", &self.bound).finish_non_exhaustive()
    }
}

/// Waits until all sockets can send: quinn does not say to whom it wants to. After an error the next send fails too and
/// is counted.
#[derive(Debug)]
struct QuietPoller(Vec<Pin<Box<dyn UdpPoller>>>);

impl UdpPoller for QuietPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        for poller in &mut self.0 {
            let _ = ready!(poller.as_mut().poll_writable(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::path::{tcp::Taker as _, udp::fake::FakeSocket};

    fn send(socket: &ServerSocket, destination: &str, src_ip: Option<&str>) -> io::Result<()> {
        socket.try_send(&Transmit {
            destination: destination.parse().unwrap(),
            ecn: None,
            contents: &[0; 100],
            segment_size: None,
            src_ip: src_ip.map(|ip| ip.parse().unwrap()),
        })
    }

    fn receive(socket: &ServerSocket) -> Poll<io::Result<(SocketAddr, Option<IpAddr>)>> {
        let mut buffer = [0; 1500];
        let mut meta = [RecvMeta::default()];
        let cx = &mut Context::from_waker(Waker::noop());
        socket
            .poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
            .map_ok(|_| (meta[0].addr, meta[0].dst_ip))
    }

    fn arrive(fake: &FakeSocket, from: &str, at: &str) {
        fake.arrive(Ok((vec![1], from.parse().unwrap(), Some(at.parse().unwrap()))));
    }

    const FIRST: &str = "2001:db8::1";
    const SECOND: &str = "2001:db8::2";
    const FORGED: &str = "2001:db8::3";

    #[test]
    fn answers_leave_from_where_the_client_was_heard() {
        let fake = FakeSocket::new("[::]:4433");
        let socket = ServerSocket::new(fake.clone()).unwrap();
        arrive(&fake, "[2001:db8::9]:1000", SECOND);
        arrive(&fake, "[2001:db8::9]:1000", FORGED);
        assert!(receive(&socket).is_ready());
        assert!(receive(&socket).is_ready());
        send(&socket, "[2001:db8::9]:1000", Some(FIRST)).unwrap();
        send(&socket, "[2001:db8::9]:1000", Some(SECOND)).unwrap();
        let sent = fake.sent.lock().unwrap();
        assert_eq!(sent[0].1, Some(SECOND.parse().unwrap()));
        assert_eq!(sent[1].1, Some(SECOND.parse().unwrap()));
    }

    #[test]
    fn a_client_that_changed_family_is_not_answered_from_the_old_one() {
        let fake = FakeSocket::new("[::]:4433");
        let socket = ServerSocket::new(fake.clone()).unwrap();
        send(&socket, "192.0.2.9:1000", Some("2001:db8::1")).unwrap();
        send(&socket, "[2001:db8::9]:1000", Some("192.0.2.1")).unwrap();
        let sent = fake.sent.lock().unwrap();
        assert_eq!(sent[0], ("[::ffff:192.0.2.9]:1000".parse().unwrap(), None));
        assert_eq!(sent[1], ("[2001:db8::9]:1000".parse().unwrap(), None));
    }

    #[test]
    fn ipv4_clients_of_a_dual_stack_socket_are_ipv4_to_quinn() {
        let fake = FakeSocket::new("[::]:4433");
        let socket = ServerSocket::new(fake.clone()).unwrap();
        arrive(&fake, "[::ffff:192.0.2.9]:1000", "::ffff:192.0.2.1");
        let Poll::Ready(Ok((from, at))) = receive(&socket) else { panic!("nothing received") };
        assert_eq!(from, "192.0.2.9:1000".parse().unwrap());
        assert_eq!(at, Some("192.0.2.1".parse().unwrap()));
        send(&socket, "192.0.2.9:1000", None).unwrap();
        let sent = fake.sent.lock().unwrap();
        let (to, from) = sent[0];
        assert_eq!(to, "[::ffff:192.0.2.9]:1000".parse().unwrap());
        assert_eq!(from, Some("::ffff:192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn socket_errors_are_counted_and_never_returned() {
        for errno in
            [Errno::ENETDOWN, Errno::ENETUNREACH, Errno::EPERM, Errno::ENODEV, Errno::EINVAL]
        {
            let fake = FakeSocket::new("0.0.0.0:4433");
            let socket = ServerSocket::new(fake.clone()).unwrap();
            *fake.send_error.lock().unwrap() = Some(errno);
            send(&socket, "192.0.2.9:1000", None).unwrap();
            fake.arrive(Err(errno.into()));
            arrive(&fake, "192.0.2.9:1000", "192.0.2.1");
            assert!(matches!(receive(&socket), Poll::Ready(Ok(_))));
            assert_eq!((socket.send_errors(), socket.receive_errors()), (1, 1));
        }
    }

    #[test]
    fn a_datagram_that_claims_to_come_over_tcp_is_emptied() {
        let fake = FakeSocket::new("[::]:4433");
        let socket = ServerSocket::with_streams(vec![fake.clone()], Some(Streams::new())).unwrap();
        arrive(&fake, "[100::1]:1000", SECOND);
        let mut buffer = [0; 1500];
        let mut meta = [RecvMeta::default()];
        let cx = &mut Context::from_waker(Waker::noop());
        let received = socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta);
        assert!(matches!(received, Poll::Ready(Ok(1))));
        assert_eq!((meta[0].len, socket.receive_errors()), (0, 1));
    }

    #[test]
    fn clients_over_tcp_and_over_udp_are_heard_in_turns() {
        let fake = FakeSocket::new("[::]:4433");
        let streams = Streams::new();
        let socket = ServerSocket::with_streams(vec![fake.clone()], Some(streams.clone())).unwrap();
        let attached = streams.attach("192.0.2.9:4000".parse().unwrap(), Arc::default());
        for _ in 0..4 {
            arrive(&fake, "[2001:db8::9]:1000", SECOND);
            let payload = bytes::Bytes::from_static(&[1]);
            let arrival = crate::path::tcp::Arrival { from: attached.address, payload };
            attached.take(arrival).now_or_never().unwrap().unwrap();
        }
        let over_tcp: Vec<_> = std::iter::from_fn(|| match receive(&socket) {
            Poll::Ready(Ok((from, _))) => Some(from == attached.address),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        })
        .collect();
        assert_eq!(over_tcp.iter().filter(|over_tcp| **over_tcp).count(), 4);
        assert_eq!(over_tcp.len(), 8);
        assert!(over_tcp[..4].iter().any(|it| *it) && over_tcp[..4].iter().any(|it| !*it));
        send(&socket, &attached.address.to_string(), None).unwrap();
        assert!(fake.sent.lock().unwrap().is_empty(), "nothing leaves by UDP");
    }

    /// The server of two ports, IPv4 and IPv6 apart, and what was sent by each socket.
    fn two_ports() -> ([Arc<FakeSocket>; 2], Arc<ServerSocket>) {
        let fakes = ["[::]:4433", "[::]:443"].map(FakeSocket::new);
        let [first, second] = fakes.clone();
        (fakes, ServerSocket::with_streams(vec![first, second], None).unwrap())
    }

    #[test]
    fn a_client_is_answered_by_the_port_at_which_it_arrived() {
        let (fakes, socket) = two_ports();
        let clients = ["[2001:db8::9]:1000", "[2001:db8::9]:1001"];
        for (fake, client) in fakes.iter().zip(clients) {
            arrive(fake, client, FIRST);
            assert!(receive(&socket).is_ready());
        }
        for client in clients {
            send(&socket, client, Some(FIRST)).unwrap();
        }
        for (fake, client) in fakes.iter().zip(clients) {
            let answer = (client.parse().unwrap(), Some(FIRST.parse().unwrap()));
            assert_eq!(*fake.sent.lock().unwrap(), [answer]);
        }
    }

    #[test]
    fn a_datagram_forged_to_another_port_does_not_redirect_answers() {
        let ([first, second], socket) = two_ports();
        for fake in [&first, &second, &second] {
            arrive(fake, "[2001:db8::9]:1000", FIRST);
            assert!(receive(&socket).is_ready());
        }
        send(&socket, "[2001:db8::9]:1000", Some(FIRST)).unwrap();
        assert_eq!((first.sent.lock().unwrap().len(), second.sent.lock().unwrap().len()), (1, 0));
    }

    #[test]
    fn a_busy_port_does_not_starve_the_other_one() {
        let ([first, second], socket) = two_ports();
        for _ in 0..4 {
            arrive(&first, "[2001:db8::9]:1000", FIRST);
        }
        arrive(&second, "[2001:db8::9]:1001", FIRST);
        let heard: Vec<_> = std::iter::from_fn(|| match receive(&socket) {
            Poll::Ready(Ok((from, _))) => Some(from.port()),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        })
        .collect();
        assert_eq!(heard.len(), 5);
        assert!(heard[..2].contains(&1001), "{heard:?}");
    }

    #[test]
    fn an_unknown_client_is_answered_by_a_socket_of_its_family() {
        let fakes = ["[2001:db8::1]:4433", "192.0.2.1:4433"].map(FakeSocket::new);
        let [v6, v4] = fakes.clone();
        let socket = ServerSocket::with_streams(vec![v6.clone(), v4.clone()], None).unwrap();
        send(&socket, "192.0.2.9:1000", None).unwrap();
        send(&socket, "[2001:db8::9]:1000", None).unwrap();
        assert_eq!(v4.sent.lock().unwrap()[0].0, "192.0.2.9:1000".parse().unwrap());
        assert_eq!(v6.sent.lock().unwrap()[0].0, "[2001:db8::9]:1000".parse().unwrap());
    }

    #[test]
    fn a_full_socket_holds_quinn_back() {
        let fake = FakeSocket::new("0.0.0.0:4433");
        let socket = ServerSocket::new(fake.clone()).unwrap();
        *fake.send_error.lock().unwrap() = Some(Errno::EAGAIN);
        let error = send(&socket, "192.0.2.9:1000", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
