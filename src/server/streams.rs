//! TCP connections that carry datagrams, as the server's socket sees them.
//!
//! ```text
//!  TCP connection ─ capsules ─┬─▶ arrivals of known peers ─┬─▶ ServerSocket::poll_recv ─▶ quinn
//!                             └─▶ arrivals of strangers ───┘
//!  TCP connection ◀─ Outbox ◀─ send, by virtual address ◀─ ServerSocket::try_send ◀─ quinn
//! ```
//! To quinn each connection is a client at an address of its own, which no packet of a network can have. So a QUIC
//! connection moves from UDP to TCP and back as from any address to another, with path validation and all. Nothing is
//! ever sent to the network on a connection's behalf: datagrams lead to quinn, and nowhere else.
//!
//! Which TCP connections are of known peers is found out in two ways: a handshake that ends over one says so, and a
//! look at all peers' QUIC connections says where they have moved. A look is due when something is sent to a stranger,
//! and once a second; its cost depends on the number of peers and not on that of strangers.

mod standing;

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use lru::LruCache;
use quinn::udp::{RecvMeta, Transmit};
use tokio::sync::{Notify, mpsc, watch};

pub(super) use self::standing::Standing;
use self::standing::Tenure;
use super::tcp::Meter;
use crate::{
    clock,
    identity::PublicKey,
    mutex::Mutex,
    path::tcp::{self, Arrival, Outbox, Taker},
};

/// 100::/64, the discard-only prefix (RFC 6666): a router drops packets from and to it.
const PREFIX: [u16; 4] = [0x100, 0, 0, 0];
/// Bytes that wait for one connection. Datagrams beyond it are dropped, as in a full queue of a router: quinn has one
/// socket for all clients, and must not wait for one of them. A burst fits in, and what is lost tells the congestion
/// controller that TCP is slower.
const UNWRITTEN: usize = 128 * 1024;
/// The same for a stranger: QUIC's handshake.
const UNWRITTEN_TO_STRANGER: usize = 16 * 1024;
/// Datagrams of all known peers' connections that wait to be read. With more of them TCP waits.
const UNREAD: usize = 1024;
/// The same of all strangers.
const UNREAD_OF_STRANGERS: usize = 128;
/// TCP connections of one peer: a QUIC connection over each, as many as a peer may have, and some that they have left.
/// With one more the oldest is closed.
const MOST_OF_A_PEER: usize = 32;
/// Connections that have ended whose real address is still shown.
const ENDED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// All connections.
#[derive(Debug)]
pub(crate) struct Streams {
    open: Mutex<HashMap<SocketAddr, Open>>,
    /// The real addresses of known peers whose connections have ended.
    ended: Mutex<LruCache<SocketAddr, SocketAddr>>,
    next: AtomicU64,
    known: Channel,
    strangers: Channel,
    look_is_due: Notify,
    dropped: AtomicU64,
}

/// Datagrams on their way to quinn.
#[derive(Debug)]
struct Channel {
    arrived: mpsc::Sender<Arrival>,
    arrivals: Mutex<mpsc::Receiver<Arrival>>,
}

#[derive(Debug)]
struct Open {
    client: SocketAddr,
    outbox: Arc<Outbox>,
    meter: Arc<Meter>,
    tenure: Tenure,
    standing: watch::Sender<Standing>,
}

/// A connection among [`Streams`], until this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    streams: Arc<Streams>,
    /// The client's address as quinn sees it.
    pub(crate) address: SocketAddr,
    /// What waits for the client.
    pub(crate) outbox: Arc<Outbox>,
    /// What is thought of the client.
    pub(crate) standing: watch::Receiver<Standing>,
    meter: Arc<Meter>,
}

/// Whether a TCP connection has this address to quinn. Nobody else can have it.
#[must_use]
pub(crate) fn is_virtual(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[..4] == PREFIX)
}

impl Channel {
    fn new(most: usize) -> Self {
        let (arrived, arrivals) = mpsc::channel(most);
        Self { arrived, arrivals: Mutex::new(arrivals) }
    }

    fn receive(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        if bufs.is_empty() || meta.is_empty() {
            return 0;
        }
        let mut arrivals = self.arrivals.lock();
        match tcp::receive(&mut arrivals, cx, bufs, meta) {
            Poll::Ready(count) => count,
            Poll::Pending => 0,
        }
    }
}

impl Open {
    /// Does what the tenure says.
    fn settle(&self) {
        let standing = self.tenure.standing;
        let was_changed = self.standing.send_if_modified(|it| {
            let before = std::mem::replace(it, standing);
            before != standing
        });
        if was_changed {
            let is_peer = matches!(standing, Standing::Seen | Standing::Known);
            self.meter.lift(is_peer);
            self.outbox.allow(if is_peer { UNWRITTEN } else { UNWRITTEN_TO_STRANGER });
        }
    }
}

impl Streams {
    #[must_use]
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            ended: Mutex::new(LruCache::new(ENDED)),
            next: AtomicU64::new(1),
            known: Channel::new(UNREAD),
            strangers: Channel::new(UNREAD_OF_STRANGERS),
            look_is_due: Notify::new(),
            dropped: AtomicU64::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SocketAddr, Open>> {
        self.open.lock()
    }

    fn ended(&self) -> MutexGuard<'_, LruCache<SocketAddr, SocketAddr>> {
        self.ended.lock()
    }

    /// Adds a connection of the client at this real address, a stranger.
    pub(crate) fn attach(self: &Arc<Self>, client: SocketAddr, meter: Arc<Meter>) -> Attached {
        let number = self.next.fetch_add(1, Relaxed);
        let [a, b, c, d] = PREFIX.map(u128::from);
        let prefix = a << 112 | b << 96 | c << 80 | d << 64;
        let ip = Ipv6Addr::from_bits(prefix | u128::from(number));
        // Port 0 is no address.
        let address = SocketAddr::new(ip.into(), client.port().max(1));
        let outbox = Arc::new(Outbox::new(UNWRITTEN_TO_STRANGER));
        let tenure = Tenure::new(clock::now());
        let (sender, standing) = watch::channel(tenure.standing);
        let open =
            Open { client, outbox: outbox.clone(), meter: meter.clone(), tenure, standing: sender };
        self.open().insert(address, open);
        Attached { streams: self.clone(), address, outbox, standing, meter }
    }

    /// The real address of the client behind a virtual one; any other address as it is. `None` if the connection has
    /// ended.
    #[must_use]
    pub(crate) fn client(&self, address: SocketAddr) -> Option<SocketAddr> {
        if !is_virtual(address.ip()) {
            return Some(address);
        }
        self.open().get(&address).map(|open| open.client)
    }

    /// The same for people: the last real address of a known peer whose connection has ended, and never a virtual one.
    #[must_use]
    pub(crate) fn shown(&self, address: SocketAddr) -> SocketAddr {
        let unknown = || SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        self.client(address).or_else(|| self.ended().get(&address).copied()).unwrap_or_else(unknown)
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

    /// A QUIC handshake of a known peer ended at this address.
    pub(crate) fn proven(&self, address: SocketAddr, peer: PublicKey) {
        let mut open = self.open();
        if let Some(it) = open.get_mut(&address) {
            it.tenure.proven(peer, clock::now());
            it.settle();
            keep_the_newest(&mut open, peer);
        }
    }

    /// QUIC connections of known peers are at these addresses, and nowhere else.
    pub(crate) fn looked(&self, at: &HashMap<SocketAddr, PublicKey>, now: Instant) {
        let mut open = self.open();
        let mut newly_known = Vec::new();
        for (address, it) in open.iter_mut() {
            let before = it.tenure.standing;
            it.tenure.look(at.get(address).copied(), now);
            if before != Standing::Known && it.tenure.standing == Standing::Known {
                newly_known.extend(it.tenure.peer);
            }
            it.settle();
        }
        for peer in newly_known {
            keep_the_newest(&mut open, peer);
        }
    }

    /// Waits until something is sent to a stranger: a known peer may have moved there.
    pub(crate) async fn look_is_due(&self) {
        self.look_is_due.notified().await;
    }

    /// Sends to the connection with this virtual address.
    pub(super) fn send(&self, transmit: &Transmit) {
        let outbox = self.open().get(&transmit.destination).map(|open| {
            if open.tenure.standing == Standing::Stranger {
                self.look_is_due.notify_one();
            }
            open.outbox.clone()
        });
        if outbox.is_none_or(|outbox| outbox.push(transmit).is_err()) {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            self.dropped.fetch_add(transmit.contents.len().div_ceil(segment) as u64, Relaxed);
        }
    }

    /// Receives from all connections. Where there is more than one place, strangers have one for certain, and no more
    /// than what known peers leave.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let certain = usize::from(bufs.len().min(meta.len()) > 1);
        let mut count = self.strangers.receive(cx, &mut bufs[..certain], &mut meta[..certain]);
        for channel in [&self.known, &self.strangers] {
            count += channel.receive(cx, &mut bufs[count..], &mut meta[count..]);
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(count) }
    }
}

/// Closes the oldest connections of a peer that has too many.
fn keep_the_newest(open: &mut HashMap<SocketAddr, Open>, peer: PublicKey) {
    let known = |it: &Open| it.tenure.peer == Some(peer) && it.tenure.standing == Standing::Known;
    let mut its: Vec<_> =
        open.iter().filter(|(_, it)| known(it)).map(|(address, _)| *address).collect();
    its.sort_unstable_by_key(SocketAddr::ip);
    for address in its.iter().rev().skip(MOST_OF_A_PEER) {
        if let Some(it) = open.get_mut(address) {
            it.tenure.dismiss("newer ones of the same key");
            it.settle();
        }
    }
}

impl Taker for Attached {
    async fn take(&self, arrival: Arrival) -> io::Result<()> {
        let streams = &self.streams;
        let channel = if self.meter.is_lifted() { &streams.known } else { &streams.strangers };
        channel.arrived.take(arrival).await
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let removed = self.streams.open().remove(&self.address);
        if let Some(open) = removed.filter(|open| open.tenure.peer.is_some()) {
            self.streams.ended().put(self.address, open.client);
        }
        self.outbox.close();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;

    fn attach(streams: &Arc<Streams>) -> Attached {
        streams.attach(([192, 0, 2, 9], 4000).into(), Arc::default())
    }

    fn laptop() -> PublicKey {
        [1; 32].into()
    }

    async fn arrive(attached: &Attached, length: u8) {
        let payload = Bytes::from(vec![length; length.into()]);
        attached.take(Arrival { from: attached.address, payload }).await.unwrap();
    }

    /// What is received into so many places.
    fn received<const PLACES: usize>(streams: &Streams) -> Vec<(SocketAddr, usize)> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut buffers = [[0; 1500]; PLACES];
        let mut bufs = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let mut meta = [RecvMeta::default(); PLACES];
        match streams.poll_recv(&mut cx, &mut bufs, &mut meta) {
            Poll::Ready(count) => meta[..count].iter().map(|meta| (meta.addr, meta.len)).collect(),
            Poll::Pending => Vec::new(),
        }
    }

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
        let (one, other) = (attach(&streams), attach(&streams));
        assert_ne!(one.address.ip(), other.address.ip());
        for attached in [&one, &other] {
            assert!(is_virtual(attached.address.ip()));
            assert_eq!(streams.client(attached.address), Some(client));
        }
        assert_eq!((streams.client(client), streams.count()), (Some(client), 2));
        let (gone, unknown) = (one.address, "[::]:0".parse().unwrap());
        drop(one);
        assert_eq!((streams.client(gone), streams.count()), (None, 1));
        assert_eq!(streams.shown(gone), unknown, "a stranger is forgotten");
        streams.proven(other.address, laptop());
        let gone = other.address;
        drop(other);
        assert_eq!((streams.client(gone), streams.shown(gone)), (None, client));
        for ip in ["100:0:0:1::1", "2001:db8::1", "::1", "::ffff:192.0.2.1", "192.0.2.1"] {
            assert!(!is_virtual(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn what_a_slow_connection_does_not_take_is_dropped_and_counted() {
        let streams = Streams::new();
        let attached = attach(&streams);
        let address = attached.address;
        for most in [UNWRITTEN_TO_STRANGER, UNWRITTEN - UNWRITTEN_TO_STRANGER] {
            let before = streams.dropped();
            for _ in 0..most / 2408 {
                streams.send(&transmit(address));
            }
            assert_eq!(streams.dropped(), before);
            for _ in 0..2 {
                streams.send(&transmit(address));
            }
            assert!(streams.dropped() > before);
            streams.proven(address, laptop());
        }
        let before = streams.dropped();
        drop(attached);
        streams.send(&transmit(address));
        assert_eq!(streams.dropped(), before + 2, "the connection has ended");
    }

    #[tokio::test]
    async fn what_arrives_is_received_from_the_virtual_address() {
        let streams = Streams::new();
        let attached = attach(&streams);
        let from = attached.address;
        assert!(received::<2>(&streams).is_empty());
        for length in [10, 20, 30] {
            arrive(&attached, length).await;
        }
        assert_eq!(received::<2>(&streams), [(from, 10), (from, 20)]);
        assert_eq!(received::<1>(&streams), [(from, 30)]);
    }

    #[tokio::test]
    async fn strangers_have_one_place_beside_known_peers_and_what_these_leave() {
        let streams = Streams::new();
        let (known, stranger) = (attach(&streams), attach(&streams));
        streams.proven(known.address, laptop());
        for _ in 0..6 {
            arrive(&stranger, 1).await;
            arrive(&known, 2).await;
        }
        let of_strangers = || {
            let received = received::<4>(&streams);
            (received.iter().filter(|it| it.0 == stranger.address).count(), received.len())
        };
        assert_eq!([of_strangers(), of_strangers()], [(1, 4), (1, 4)]);
        assert_eq!(of_strangers(), (4, 4), "nothing of known peers waits");
    }

    #[tokio::test]
    async fn strangers_that_fill_their_channel_do_not_hold_known_peers_back() {
        let streams = Streams::new();
        let (known, stranger) = (attach(&streams), attach(&streams));
        streams.proven(known.address, laptop());
        for _ in 0..UNREAD_OF_STRANGERS {
            arrive(&stranger, 1).await;
        }
        let one_more = Arrival { from: stranger.address, payload: Bytes::from_static(&[1]) };
        // The budget of tokio's task is spent.
        tokio::task::yield_now().await;
        assert!(stranger.take(one_more).now_or_never().is_none());
        let arrival = Arrival { from: known.address, payload: Bytes::from_static(&[1]) };
        assert!(known.take(arrival).now_or_never().is_some());
    }

    #[test]
    fn something_sent_to_a_stranger_is_a_reason_to_look_where_peers_are() {
        let streams = Streams::new();
        let attached = attach(&streams);
        assert!(streams.look_is_due().now_or_never().is_none());
        streams.send(&transmit(attached.address));
        assert!(streams.look_is_due().now_or_never().is_some());
        let (at, now) = ([(attached.address, laptop())].into(), clock::now());
        streams.looked(&at, now);
        assert_eq!(*attached.standing.borrow(), Standing::Seen);
        assert!(attached.meter.is_lifted());
        streams.send(&transmit(attached.address));
        assert!(streams.look_is_due().now_or_never().is_none());
        streams.looked(&at, now + standing::MOVED);
        assert_eq!(*attached.standing.borrow(), Standing::Known);
    }

    #[test]
    fn a_known_key_holds_few_connections_however_it_moves() {
        let streams = Streams::new();
        let (mut all, mut now) = (Vec::new(), clock::now());
        for number in 0..2 * MOST_OF_A_PEER {
            let attached = attach(&streams);
            if number % 2 == 0 {
                streams.proven(attached.address, laptop());
            } else {
                let at = [(attached.address, laptop())].into();
                streams.looked(&at, now);
                // Short enough for those that it left.
                now += standing::MOVED;
                streams.looked(&at, now);
                now -= standing::MOVED;
            }
            all.push(attached);
        }
        let stays = |it: &&Attached| *it.standing.borrow() == Standing::Known;
        assert_eq!(all.iter().filter(stays).count(), MOST_OF_A_PEER);
        assert!(all[MOST_OF_A_PEER..].iter().all(|it| stays(&it)), "the newest ones");
    }
}
