//! The server's socket, as quinn sees it.
//!
//! quinn keeps, for a connection's whole life, the local address at which its first datagram
//! arrived, and sends from it. A client that moves to the other address family, or to another
//! address of this server, would then be answered from an address it never spoke to, or not at all:
//! the kernel refuses a source of the wrong family with EINVAL, and quinn gives up segmentation
//! offload for everybody. Answers therefore leave from an address at which the client was heard
//! lately.
//!
//! Anybody can forge a datagram in a client's name to another address of this server. The address of the
//! connection's first datagram is therefore preferred while the client is heard there, and after it the
//! address that is known for the longest time.
//!
//! A dual-stack socket shows IPv4 clients as IPv4-mapped IPv6 addresses. Here they are IPv4, so that
//! quinn knows a mere change of port (a NAT that rebinds) from a move, and keeps RTT and window.
//!
//! Clients over TCP have virtual addresses here, see [`streams`](super::streams). A UDP datagram that claims to come
//! from one is a forgery.
//!
//! As on the client, no I/O error reaches quinn.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use lru::LruCache;
use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::streams::{Streams, is_virtual};
use crate::clock;

/// Clients whose local addresses are kept. Beyond that, the least recently used client is answered
/// from the address of its first datagram, or from one that the kernel picks.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Local addresses that are kept for each client.
const ADDRESSES: usize = 4;
/// How long an address counts after the client was heard there: longer than the default keep-alive
/// interval.
const LATELY: Duration = Duration::from_secs(15);
/// Consecutive receive errors before other tasks get a turn.
const RECEIVE_ERRORS: usize = 16;

/// See the module's documentation.
pub struct ServerSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    is_ipv6: bool,
    /// The local addresses at which each client was heard; `None` if this socket has one address
    /// only.
    heard_at: Option<Mutex<LruCache<SocketAddr, Heard>>>,
    /// Clients over TCP, if there can be any.
    streams: Option<Arc<Streams>>,
    /// Whether the next receive begins with them.
    streams_first: AtomicBool,
    send_errors: AtomicU64,
    receive_errors: AtomicU64,
}

/// The local addresses at which a client was heard, with the last time, in the order in which they became
/// known.
#[derive(Debug, Default)]
struct Heard([Option<(IpAddr, Instant)>; ADDRESSES]);

impl Heard {
    fn note(&mut self, local: IpAddr, now: Instant) {
        let known = self.0.iter_mut().flatten().find(|(known, _)| *known == local);
        if let Some((_, at)) = known {
            *at = now;
            return;
        }
        // The address that was not heard for the longest time is removed.
        let oldest = (0..ADDRESSES).min_by_key(|&place| self.0[place].map(|(_, at)| at));
        self.0[oldest.unwrap_or_default()..].rotate_left(1);
        self.0[ADDRESSES - 1] = Some((local, now));
    }

    /// The source address for answers on a connection that began at `first`.
    fn answer_from(&self, first: Option<IpAddr>, now: Instant) -> Option<IpAddr> {
        let is_late = |at: Instant| now.saturating_duration_since(at) < LATELY;
        let mut lately = self.0.iter().flatten().filter(|(_, at)| is_late(*at));
        let senior = lately.clone().next();
        lately
            .find(|(local, _)| Some(*local) == first)
            .or(senior)
            .or_else(|| self.0.iter().flatten().max_by_key(|(_, at)| *at))
            .map(|(local, _)| *local)
    }
}

impl ServerSocket {
    /// Wraps a bound socket.
    pub fn new(inner: Arc<dyn AsyncUdpSocket>) -> io::Result<Arc<Self>> {
        Self::with_streams(inner, None)
    }

    /// Wraps a bound socket. Clients of `streams` are clients of this socket, too.
    pub(crate) fn with_streams(
        inner: Arc<dyn AsyncUdpSocket>,
        streams: Option<Arc<Streams>>,
    ) -> io::Result<Arc<Self>> {
        let local = inner.local_addr()?;
        let any = local.ip().is_unspecified();
        Ok(Arc::new(Self {
            inner,
            is_ipv6: local.is_ipv6(),
            heard_at: any.then(|| Mutex::new(LruCache::new(REMEMBERED))),
            streams,
            streams_first: AtomicBool::default(),
            send_errors: AtomicU64::default(),
            receive_errors: AtomicU64::default(),
        }))
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

    /// Receives from clients over UDP.
    fn poll_udp(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..RECEIVE_ERRORS {
            match self.inner.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    self.remember(&mut meta[..count]);
                    return Poll::Ready(Ok(count));
                }
                Poll::Ready(Err(_)) => self.receive_errors.fetch_add(1, Relaxed),
                Poll::Pending => return Poll::Pending,
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn remember(&self, meta: &mut [RecvMeta]) {
        let mut heard_at = self
            .heard_at
            .as_ref()
            .map(|heard_at| heard_at.lock().unwrap_or_else(PoisonError::into_inner));
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
            if let (Some(heard_at), Some(local)) = (&mut heard_at, meta.dst_ip) {
                heard_at.get_or_insert_mut(meta.addr, Heard::default).note(local, now);
            }
        }
    }

    /// The source address for answers to `destination`.
    fn source(&self, destination: SocketAddr, first: Option<IpAddr>) -> Option<IpAddr> {
        let heard_at = self.heard_at.as_ref()?;
        let mut heard_at = heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        heard_at
            .get(&destination)
            .and_then(|heard| heard.answer_from(first, clock::now()))
            .or(first)
            .filter(|source| source.is_ipv4() == destination.is_ipv4())
    }

    /// An address in the form that the socket's family takes.
    fn native(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) if self.is_ipv6 => v4.to_ipv6_mapped().into(),
            IpAddr::V4(_) | IpAddr::V6(_) => ip,
        }
    }
}

impl AsyncUdpSocket for ServerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(QuietPoller(self.inner.clone().create_io_poller()))
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
        if let Some(streams) = &self.streams
            && is_virtual(destination.ip())
        {
            streams.send(transmit);
            return Ok(());
        }
        let source = self.source(destination, src_ip);
        let transmit = Transmit {
            destination: SocketAddr::new(self.native(destination.ip()), destination.port()),
            ecn,
            contents,
            segment_size,
            src_ip: source.map(|source| self.native(source)),
        };
        match self.inner.try_send(&transmit) {
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
        // In turns, so that a busy one does not starve the other.
        let streams_first = self.streams.is_some() && self.streams_first.fetch_not(Relaxed);
        if streams_first && let Poll::Ready(received) = self.poll_streams(cx, bufs, meta) {
            return Poll::Ready(received);
        }
        let received = self.poll_udp(cx, bufs, meta);
        if received.is_pending() && !streams_first {
            return self.poll_streams(cx, bufs, meta);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for ServerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSocket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// After an error the next send fails too and is counted.
#[derive(Debug)]
struct QuietPoller(Pin<Box<dyn UdpPoller>>);

impl UdpPoller for QuietPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_writable(cx).map(|_| Ok(()))
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

    /// The address from which a client is answered that was heard at these addresses, so many seconds
    /// before; its connection began at the first one.
    fn answered_from(heard: &[(&str, u64)]) -> IpAddr {
        let start = Instant::now();
        let mut clients = Heard::default();
        for (local, before) in heard {
            let now = start + Duration::from_secs(100 - before);
            clients.note(local.parse().unwrap(), now);
        }
        let now = start + Duration::from_secs(100);
        clients.answer_from(Some(FIRST.parse().unwrap()), now).unwrap()
    }

    #[test]
    fn a_client_that_moved_to_another_address_is_answered_from_there() {
        let moved = [(FIRST, 40), (SECOND, 9), (SECOND, 8)];
        assert_eq!(answered_from(&moved), SECOND.parse::<IpAddr>().unwrap());
        assert_eq!(
            answered_from(&[(SECOND, 30)]),
            SECOND.parse::<IpAddr>().unwrap(),
            "the only one"
        );
    }

    #[test]
    fn forged_datagrams_do_not_redirect_answers_while_the_client_is_heard() {
        let idle = [(FIRST, 10), (FORGED, 9), (FORGED, 0)];
        assert_eq!(answered_from(&idle), FIRST.parse::<IpAddr>().unwrap());
        let moved = [(FIRST, 40), (SECOND, 20), (FORGED, 19), (SECOND, 10), (FORGED, 0)];
        assert_eq!(answered_from(&moved), SECOND.parse::<IpAddr>().unwrap());
        let came_back = [(FIRST, 60), (FORGED, 30), (FORGED, 10), (FIRST, 9), (FORGED, 0)];
        assert_eq!(answered_from(&came_back), FIRST.parse::<IpAddr>().unwrap());
    }

    #[test]
    fn forgers_use_no_memory_and_evict_no_address_in_use() {
        let start = Instant::now();
        let mut heard = Heard::default();
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            heard.note(FIRST.parse().unwrap(), now);
            for forged in 10..13_u16 {
                let forged =
                    std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, second as u16, forged);
                heard.note(forged.into(), now);
            }
            assert_eq!(heard.answer_from(None, now), Some(FIRST.parse().unwrap()));
        }
    }

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
        let socket = ServerSocket::with_streams(fake.clone(), Some(Streams::new())).unwrap();
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
        let socket = ServerSocket::with_streams(fake.clone(), Some(streams.clone())).unwrap();
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

    #[test]
    fn a_full_socket_holds_quinn_back() {
        let fake = FakeSocket::new("0.0.0.0:4433");
        let socket = ServerSocket::new(fake.clone()).unwrap();
        *fake.send_error.lock().unwrap() = Some(Errno::EAGAIN);
        let error = send(&socket, "192.0.2.9:1000", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
