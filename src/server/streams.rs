//! TCP connections that carry datagrams, as the server's socket sees them.
//!
//! ```text
//!  TCP connection ─ capsules ─▶ arrivals ─▶ ServerSocket::poll_recv ─▶ quinn
//!  TCP connection ◀─ Outbox ◀─ send, by virtual address ◀─ ServerSocket::try_send ◀─ quinn
//! ```
//! To quinn each connection is a client at an address of its own, which no packet of a network can have. So a QUIC
//! connection moves from UDP to TCP and back as from any address to another, with path validation and all. Nothing is
//! ever sent to the network on a connection's behalf: datagrams lead to quinn, and nowhere else.

use std::{
    collections::HashMap,
    io::IoSliceMut,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use quinn::udp::{RecvMeta, Transmit};
use tokio::sync::mpsc;

use crate::path::tcp::{self, Arrival, Outbox};

/// 100::/64, the discard-only prefix (RFC 6666): a router drops packets from and to it.
const PREFIX: [u16; 4] = [0x100, 0, 0, 0];
/// Bytes that wait for one connection. Datagrams beyond it are dropped, as in a full queue of a router: quinn has one
/// socket for all clients, and must not wait for one of them. A burst fits in, and what is lost tells the congestion
/// controller that TCP is slower.
const UNWRITTEN: usize = 128 * 1024;
/// Datagrams of all connections that wait to be read. With more of them TCP waits.
const UNREAD: usize = 1024;

/// All connections.
#[derive(Debug)]
pub(crate) struct Streams {
    open: Mutex<HashMap<SocketAddr, Open>>,
    next: AtomicU64,
    arrived: mpsc::Sender<Arrival>,
    arrivals: Mutex<mpsc::Receiver<Arrival>>,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Open {
    client: SocketAddr,
    outbox: Arc<Outbox>,
}

/// A connection among [`Streams`], until this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    streams: Arc<Streams>,
    /// The client's address as quinn sees it.
    pub(crate) address: SocketAddr,
    /// What waits for the client.
    pub(crate) outbox: Arc<Outbox>,
}

/// Whether a TCP connection has this address to quinn. Nobody else can have it.
#[must_use]
pub(crate) fn is_virtual(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[..4] == PREFIX)
}

impl Streams {
    #[must_use]
    pub(crate) fn new() -> Arc<Self> {
        let (arrived, arrivals) = mpsc::channel(UNREAD);
        Arc::new(Self {
            open: Mutex::default(),
            next: AtomicU64::new(1),
            arrived,
            arrivals: Mutex::new(arrivals),
            dropped: AtomicU64::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SocketAddr, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection of the client at this real address.
    pub(crate) fn attach(self: &Arc<Self>, client: SocketAddr) -> Attached {
        let number = self.next.fetch_add(1, Relaxed);
        let [a, b, c, d] = PREFIX.map(u128::from);
        let prefix = a << 112 | b << 96 | c << 80 | d << 64;
        let ip = Ipv6Addr::from_bits(prefix | u128::from(number));
        // Port 0 is no address.
        let address = SocketAddr::new(ip.into(), client.port().max(1));
        let outbox = Arc::new(Outbox::new(UNWRITTEN));
        self.open().insert(address, Open { client, outbox: outbox.clone() });
        Attached { streams: self.clone(), address, outbox }
    }

    /// Where the datagrams of all connections go.
    #[must_use]
    pub(crate) fn arrived(&self) -> &mpsc::Sender<Arrival> {
        &self.arrived
    }

    /// The real address of the client behind a virtual one; any other address as it is.
    #[must_use]
    pub(crate) fn client(&self, address: SocketAddr) -> SocketAddr {
        if !is_virtual(address.ip()) {
            return address;
        }
        self.open().get(&address).map_or(address, |open| open.client)
    }

    /// The number of connections.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.open().len()
    }

    /// Datagrams to clients that were dropped, since the connection was slow or had ended.
    #[must_use]
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Sends to the connection with this virtual address.
    pub(super) fn send(&self, transmit: &Transmit) {
        let outbox = self.open().get(&transmit.destination).map(|open| open.outbox.clone());
        if outbox.is_none_or(|outbox| outbox.push(transmit).is_err()) {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            self.dropped.fetch_add(transmit.contents.len().div_ceil(segment) as u64, Relaxed);
        }
    }

    /// Receives from all connections.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        tcp::receive(&mut arrivals, cx, bufs, meta)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.streams.open().remove(&self.address);
        self.outbox.close();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;

    use super::*;

    fn transmit(destination: SocketAddr) -> Transmit<'static> {
        Transmit {
            destination,
            ecn: None,
            contents: &[7; 2400],
            segment_size: Some(1200),
            src_ip: None,
        }
    }

    #[test]
    fn each_connection_has_an_address_of_its_own_that_no_network_has() {
        let streams = Streams::new();
        let client = SocketAddr::from(([192, 0, 2, 9], 4000));
        let (one, other) = (streams.attach(client), streams.attach(client));
        assert_ne!(one.address.ip(), other.address.ip());
        for attached in [&one, &other] {
            assert!(is_virtual(attached.address.ip()));
            assert_eq!(streams.client(attached.address), client);
        }
        assert_eq!((streams.client(client), streams.count()), (client, 2));
        let gone = one.address;
        drop(one);
        assert_eq!((streams.client(gone), streams.count()), (gone, 1));
        for ip in ["100:0:0:1::1", "2001:db8::1", "::1", "::ffff:192.0.2.1", "192.0.2.1"] {
            assert!(!is_virtual(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn what_a_slow_connection_does_not_take_is_dropped_and_counted() {
        let streams = Streams::new();
        let attached = streams.attach(([192, 0, 2, 9], 4000).into());
        let address = attached.address;
        for _ in 0..UNWRITTEN.div_ceil(2408) {
            streams.send(&transmit(address));
        }
        assert_eq!(streams.dropped(), 0);
        streams.send(&transmit(address));
        assert_eq!(streams.dropped(), 2);
        drop(attached);
        streams.send(&transmit(address));
        assert_eq!(streams.dropped(), 4, "the connection has ended");
    }

    #[test]
    fn what_arrives_is_received_from_the_virtual_address() {
        let streams = Streams::new();
        let attached = streams.attach(([192, 0, 2, 9], 4000).into());
        let mut cx = Context::from_waker(Waker::noop());
        let (mut first, mut second) = ([0; 1500], [0; 1500]);
        let mut bufs = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let mut meta = [RecvMeta::default(); 2];
        assert!(streams.poll_recv(&mut cx, &mut bufs, &mut meta).is_pending());
        for length in [10_u8, 20, 30] {
            let payload = Bytes::from(vec![length; length.into()]);
            streams.arrived().try_send(Arrival { from: attached.address, payload }).unwrap();
        }
        assert_eq!(streams.poll_recv(&mut cx, &mut bufs, &mut meta), Poll::Ready(2));
        assert_eq!(
            meta.map(|meta| (meta.addr, meta.len)),
            [(attached.address, 10), (attached.address, 20)]
        );
        assert_eq!(bufs[1][..21], [&[20; 20][..], &[0]].concat());
        assert_eq!(streams.poll_recv(&mut cx, &mut bufs, &mut meta), Poll::Ready(1));
        assert_eq!(meta[0].len, 30);
    }
}
