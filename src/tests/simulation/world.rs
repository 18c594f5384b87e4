//! A network in memory: links between one client and one server, in virtual time.
//!
//! ```text
//!  client  wifi0 10.0.1.2 ──[up, hole, loss, delay, rate, MTU]── NAT 198.51.100.1 ──┐
//!                                                                                   ├── server 203.0.113.1
//!          lte0  2001:db8:2::2 ─[the same]── NAT 2001:db8:ff::2 ────────────────────┘          2001:db8:1::1
//! ```
//! A link speaks IPv4 or IPv6, not both. Its NAT forgets a mapping after half a minute without a
//! packet from inside, and lets nothing in without one. Its reverse path filter is strict: what has another source
//! than the link's address is dropped without a word.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::{oneshot, watch};

use crate::{
    clock,
    config::Paths,
    link::{
        candidate::{Candidate, Transport},
        monitor::Hints,
        neighbour::Hardware,
    },
    path::{
        cut::{Cut, Cuts},
        meter::Purpose,
        network::{Network, NetworkError},
        preference::Preferences,
        rank::LinkFacts,
        udp::fake::AlwaysWritable,
    },
};

/// A NAT on a mobile network is no more patient.
const NAT_MEMORY: Duration = Duration::from_secs(30);

/// What the queue of a link with a low rate holds.
const QUEUE: Duration = Duration::from_millis(300);

/// The server's connection ids are as long as quinn makes them.
pub(crate) type Id = [u8; 8];

/// What a network loses without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hole {
    None,
    Everything,
    /// From the client to the server: at the edge of wifi's reach the laptop hears the access point, but not
    /// the other way round.
    Uplink,
    Downlink,
}

impl Hole {
    fn swallows(self, from: Side) -> bool {
        match (self, from) {
            (Self::None, _) => false,
            (Self::Everything, _) => true,
            (Self::Uplink, side) => matches!(side, Side::Client { .. }),
            (Self::Downlink, side) => matches!(side, Side::Server | Side::Other(_)),
        }
    }
}

/// A moment in the life of a connection, as the network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A part of a handshake from the server reaches the client.
    Handshake,
    /// The server's first word after the handshake reaches the client: a greeting, or the answer to a probe.
    Greeting,
    /// The client goes on with a connection over a socket that is new.
    Switch,
}

/// Something that happens to a link at a moment, and who is told which link it was.
struct Ambush {
    at: Moment,
    change: Box<dyn FnOnce(&mut Link) + Send>,
    done: oneshot::Sender<usize>,
}

/// A delay that grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    pub(crate) since: Instant,
    /// How long it takes, and what it adds in the end.
    pub(crate) lasts: Duration,
    pub(crate) adds: Duration,
}

impl Growth {
    /// What is added now.
    fn by(self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.adds.mul_f64((passed / self.lasts.as_secs_f64()).min(1.0))
    }
}

/// One access network.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) name: &'static str,
    pub(crate) local: IpAddr,
    pub(crate) public: IpAddr,
    /// The first router on the way to the server.
    pub(crate) router: Option<IpAddr>,
    /// That router's hardware address.
    pub(crate) hardware: Hardware,
    /// The server's home address, if the link's network has it: then none of its others is reached there.
    pub(crate) home: Option<SocketAddr>,
    pub(crate) metric: u32,
    pub(crate) up: bool,
    /// What it swallows.
    pub(crate) hole: Hole,
    pub(crate) loss: f64,
    pub(crate) delay: Duration,
    /// The maximum of additional delay; packets overtake one another.
    pub(crate) jitter: Duration,
    /// How the delay grows.
    pub(crate) growth: Option<Growth>,
    /// How long a packet waits at most in the queue that others fill.
    pub(crate) others: Duration,
    /// Bits per second that it carries in each direction, if that is little. Its queue is [`QUEUE`] long.
    pub(crate) rate: Option<u32>,
    /// Bytes that it lets pass at once, if it was idle for long enough.
    pub(crate) bucket: u32,
    /// Until when the packets in its queue keep it busy, up and down.
    busy: [Option<Instant>; 2],
    pub(crate) mtu: usize,
    /// Bytes that were sent over it, with headers of IP and UDP, also those that it lost.
    pub(crate) sent: usize,
    /// Port inside to port outside, and when it was last used.
    nat: HashMap<u16, (u16, Instant)>,
}

/// Everything between client and server, and their sockets.
pub(crate) struct World {
    inner: Mutex<Inner>,
    changes: watch::Sender<()>,
    cuts: Cuts,
    myself: Weak<Self>,
}

struct Inner {
    links: Vec<Link>,
    servers: [SocketAddr; 2],
    server: Weak<SimSocket>,
    /// Further servers.
    others: HashMap<SocketAddr, Weak<SimSocket>>,
    /// Servers that nothing reaches and that reach nobody.
    cut: HashSet<SocketAddr>,
    /// The client's sockets by link and port.
    clients: HashMap<(usize, u16), Weak<SimSocket>>,
    next_port: u16,
    ambush: Option<Ambush>,
    /// What a firewall of the server's network lets the server answer, if there is one: the ports outside whose
    /// handshakes it has seen.
    begun: Option<HashSet<u16>>,
    /// Ports of the client that sent something.
    spoke: HashSet<u16>,
    /// Ports of the client that the server sent something to after a handshake.
    greeted: HashSet<u16>,
    /// The connection ids that the client used on each link after a handshake, and when it did last.
    ids: HashMap<(usize, Id), Instant>,
    /// Whether sockets say that what they send may be fragmented on the way, so that nobody looks for the MTU of a path.
    may_fragment: bool,
    random: fastrand::Rng,
}

/// A UDP socket of one of the two.
pub(crate) struct SimSocket {
    world: Weak<World>,
    side: Side,
    inbox: Mutex<Inbox>,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Client {
        link: usize,
        local: SocketAddr,
    },
    Server,
    /// A further server at this address.
    Other(SocketAddr),
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<Datagram>,
    waker: Option<Waker>,
}

struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Link {
    pub(crate) fn new(name: &'static str, local: &str, public: &str, metric: u32) -> Self {
        Self {
            name,
            local: local.parse().unwrap(),
            public: public.parse().unwrap(),
            router: None,
            hardware: [2, 0, 0, 0, 1, 0],
            home: None,
            metric,
            up: true,
            hole: Hole::None,
            loss: 0.0,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            growth: None,
            others: Duration::ZERO,
            rate: None,
            bucket: 0,
            busy: [None; 2],
            mtu: 1472,
            sent: 0,
            nat: HashMap::new(),
        }
    }

    fn candidate(&self, index: usize, server: SocketAddr) -> Candidate {
        Candidate {
            link: self.name.into(),
            index: index as u32,
            source: self.local,
            router: self.router,
            metric: self.metric,
            server,
            transport: Transport::Udp,
        }
    }

    /// Whether a path over it should work.
    pub(crate) fn is_good(&self) -> bool {
        self.up && self.hole == Hole::None
    }

    /// The longest delay that a packet can have now, but for the queue of a low rate.
    pub(crate) fn longest_delay(&self, now: Instant) -> Duration {
        let grown = self.growth.map_or(Duration::ZERO, |growth| growth.by(now));
        self.delay + grown + self.others + self.jitter
    }

    /// How long a packet is under way that leaves now; none if the queue is full.
    fn takes(&mut self, from: Side, bytes: usize, random: &mut fastrand::Rng) -> Option<Duration> {
        let now = clock::now();
        let busy = &mut self.busy[usize::from(matches!(from, Side::Server))];
        let mut wait = self.others.mul_f64(0.7 + 0.3 * random.f64());
        let mut credit = Duration::ZERO;
        if let Some(rate) = self.rate {
            credit = Duration::from_secs_f64(f64::from(self.bucket) * 8.0 / f64::from(rate));
            wait =
                wait.max(busy.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now)));
            if wait > QUEUE + self.others + credit {
                return None;
            }
            wait += Duration::from_secs_f64(bytes as f64 * 8.0 / f64::from(rate));
        }
        // Nothing in a queue overtakes what is before it.
        wait = wait.max(busy.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now)));
        *busy = Some(now + wait);
        let shortest = self.longest_delay(now) - self.others - self.jitter;
        Some(shortest + wait.saturating_sub(credit) + self.jitter.mul_f64(random.f64()))
    }

    /// Has another address.
    pub(crate) fn renumber(&mut self) {
        self.local = match self.local {
            IpAddr::V4(before) => {
                let [a, b, c, d] = before.octets();
                IpAddr::from([a, b, c, if d == 250 { 2 } else { d + 1 }])
            }
            IpAddr::V6(before) => IpAddr::from((u128::from(before) + 1).to_be_bytes()),
        };
    }

    /// Forgets all mappings, as a NAT does that restarts.
    pub(crate) fn rebind(&mut self) {
        self.nat.clear();
    }
}

impl World {
    pub(crate) fn new(links: Vec<Link>, servers: [SocketAddr; 2], seed: u64) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            inner: Mutex::new(Inner {
                links,
                servers,
                server: Weak::new(),
                others: HashMap::new(),
                cut: HashSet::new(),
                clients: HashMap::new(),
                next_port: 1024,
                ambush: None,
                begun: None,
                spoke: HashSet::new(),
                greeted: HashSet::new(),
                ids: HashMap::new(),
                may_fragment: true,
                random: fastrand::Rng::with_seed(seed),
            }),
            changes: watch::Sender::default(),
            cuts: Cuts::default(),
            myself: myself.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Changes a link and lets the client know that something changed.
    pub(crate) fn change(&self, link: usize, change: impl FnOnce(&mut Link)) {
        self.change_locked(&mut self.lock(), link, change);
    }

    fn change_locked(&self, inner: &mut Inner, link: usize, change: impl FnOnce(&mut Link)) {
        let seen = |link: &Link| (link.up, link.local, link.router, link.metric);
        let before = seen(&inner.links[link]);
        change(&mut inner.links[link]);
        if seen(&inner.links[link]) != before {
            self.changes.send_replace(());
        }
    }

    /// Changes the link on which the next such moment is, before anybody can send again. It is called off
    /// when the receiver is dropped, or another one is laid.
    pub(crate) fn ambush(
        &self,
        at: Moment,
        change: impl FnOnce(&mut Link) + Send + 'static,
    ) -> oneshot::Receiver<usize> {
        let (done, passed) = oneshot::channel();
        self.lock().ambush = Some(Ambush { at, change: Box::new(change), done });
        passed
    }

    fn pass(&self, inner: &mut Inner, at: Moment, link: usize) {
        let ambush = inner.ambush.take_if(|ambush| ambush.at == at);
        // Nobody waits for one that is called off.
        if let Some(ambush) = ambush.filter(|ambush| !ambush.done.is_closed()) {
            self.change_locked(inner, link, ambush.change);
            let _ = ambush.done.send(link);
        }
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        self.lock().links.clone()
    }

    /// A firewall of the server's network is started again: it knows no flow, and what the server says of connections
    /// that it does not know gets lost.
    pub(crate) fn lose_resets(&self) {
        self.lock().begun = Some(HashSet::new());
    }

    /// Nothing is fragmented on the way.
    pub(crate) fn forbid_fragments(&self) {
        self.lock().may_fragment = false;
    }

    /// The server's socket, in place of the one before.
    pub(crate) fn listen(&self) -> Arc<SimSocket> {
        let socket = SimSocket::new(&self.myself, Side::Server);
        self.lock().server = Arc::downgrade(&socket);
        socket
    }

    /// The socket of a further server, in place of the one before at that address.
    pub(crate) fn listen_at(&self, address: SocketAddr) -> Arc<SimSocket> {
        let socket = SimSocket::new(&self.myself, Side::Other(address));
        self.lock().others.insert(address, Arc::downgrade(&socket));
        socket
    }

    /// Cuts a server off without a word, or ends that.
    pub(crate) fn cut(&self, server: SocketAddr, is_cut: bool) {
        let cut = &mut self.lock().cut;
        if is_cut {
            cut.insert(server)
        } else {
            cut.remove(&server)
        };
    }

    /// Sockets of the client that are open, by link and port.
    pub(crate) fn open_sockets(&self) -> Vec<(usize, u16)> {
        let inner = self.lock();
        let open = inner.clients.iter().filter(|(_, socket)| socket.strong_count() > 0);
        let mut open: Vec<_> = open.map(|(place, _)| *place).collect();
        open.sort_unstable();
        open
    }

    /// The connection ids that the client has used on a link since then.
    pub(crate) fn connection_ids(&self, link: usize, since: Instant) -> HashSet<Id> {
        let inner = self.lock();
        let used = inner.ids.iter().filter(|((on, _), used)| *on == link && **used >= since);
        used.map(|((_, id), _)| *id).collect()
    }

    fn send(&self, side: Side, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let now = clock::now();
        let inner = &mut *self.lock();
        let (link, from) = match side {
            Side::Client { link, local } => {
                let public = inner.links[link].public;
                if !inner.links[link].up {
                    return Err(Errno::ENETDOWN.into());
                }
                // Its reverse path filter is strict.
                if local.ip() != inner.links[link].local {
                    return Ok(());
                }
                let fresh = inner.next_port;
                let mapping = inner.links[link].nat.entry(local.port()).or_insert((fresh, now));
                if now.duration_since(mapping.1) > NAT_MEMORY {
                    mapping.0 = fresh;
                }
                inner.next_port = inner.next_port.checked_add(1).unwrap_or(1024);
                mapping.1 = now;
                let outside = mapping.0;
                if let Some(begun) = inner.begun.as_mut().filter(|_| is_handshake(bytes)) {
                    begun.insert(outside);
                }
                if let Some(id) = connection_id(bytes) {
                    inner.ids.insert((link, id), now);
                }
                if inner.spoke.insert(local.port()) && !is_handshake(bytes) {
                    self.pass(inner, Moment::Switch, link);
                }
                (link, SocketAddr::new(public, outside))
            }
            Side::Server | Side::Other(_) => {
                let Some(link) = inner.links.iter().position(|link| link.public == to.ip()) else {
                    return Ok(());
                };
                if inner.begun.as_ref().is_some_and(|begun| !begun.contains(&to.port())) {
                    return Ok(());
                }
                let of_family = |server: &&SocketAddr| server.is_ipv4() == to.is_ipv4();
                let from = match (side, inner.links[link].home) {
                    (_, Some(home)) => home,
                    (Side::Other(at), None) => at,
                    (Side::Client { .. } | Side::Server, None) => {
                        *inner.servers.iter().find(of_family).unwrap()
                    }
                };
                (link, from)
            }
        };
        let server = if matches!(side, Side::Client { .. }) { to } else { from };
        inner.links[link].sent += bytes.len() + 28;
        if inner.cut.contains(&server) {
            return Ok(());
        }
        let Link { up, hole, loss, mtu, .. } = inner.links[link];
        if !up || hole.swallows(side) || bytes.len() > mtu || inner.random.f64() < loss {
            return Ok(());
        }
        let Some(delay) = inner.links[link].takes(side, bytes.len() + 28, &mut inner.random) else {
            return Ok(());
        };
        let world = self.myself.clone();
        let datagram = Datagram { from, to, bytes: bytes.to_vec() };
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(world) = world.upgrade() {
                world.arrive(side, link, datagram);
            }
        });
        Ok(())
    }

    fn arrive(&self, from: Side, link: usize, mut datagram: Datagram) {
        let inner = &mut *self.lock();
        let socket = match from {
            Side::Client { .. } => {
                let other = inner.others.get(&datagram.to);
                other.unwrap_or(&inner.server).upgrade()
            }
            Side::Server | Side::Other(_) => {
                let now = clock::now();
                let port = datagram.to.port();
                let inside = inner.links[link].nat.iter().find(|(_, (outside, used))| {
                    *outside == port && now.duration_since(*used) <= NAT_MEMORY
                });
                let Some((&inside, _)) = inside else { return };
                datagram.to = SocketAddr::new(inner.links[link].local, inside);
                if !inner.links[link].up {
                    return;
                }
                if is_handshake(&datagram.bytes) {
                    self.pass(inner, Moment::Handshake, link);
                } else if inner.greeted.insert(inside) {
                    self.pass(inner, Moment::Greeting, link);
                }
                let local = inner.links[link].local;
                let socket = inner.clients.get(&(link, inside)).and_then(Weak::upgrade);
                socket.filter(|socket| socket.is_bound_to(local))
            }
        };
        if let Some(socket) = socket {
            let mut inbox = socket.inbox.lock().unwrap();
            inbox.datagrams.push_back(datagram);
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Whether a datagram begins with a long header (RFC 9000 §17.2).
fn is_handshake(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| byte & 0x80 != 0)
}

/// The server's connection id in a datagram that begins with a short header (RFC 9000 §17.3.1).
fn connection_id(datagram: &[u8]) -> Option<Id> {
    let id = datagram.get(1..=size_of::<Id>())?;
    id.try_into().ok().filter(|_| !is_handshake(datagram))
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl Network for World {
    fn candidates<'a>(
        &'a self,
        servers: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        let (inner, preferences) = (self.lock(), Preferences::new(paths));
        let mut found = Vec::new();
        for server in servers {
            for (index, link) in inner.links.iter().enumerate() {
                let is_reached = link.home.is_none() && link.local.is_ipv4() == server.is_ipv4();
                if link.up && is_reached {
                    let candidate = link.candidate(index, *server);
                    if let Some(facts) = preferences.facts(&candidate, false) {
                        found.push((candidate, facts));
                    }
                }
            }
        }
        Box::pin(std::future::ready(Ok(found)))
    }

    fn neighbours<'a>(
        &'a self,
        home: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        let (inner, preferences) = (self.lock(), Preferences::new(paths));
        let mut found = Vec::new();
        for (index, link) in inner.links.iter().enumerate().filter(|(_, link)| link.up) {
            if let Some(server) = link.home.filter(|server| home.contains(server)) {
                let candidate = link.candidate(index, server);
                found.extend(preferences.at_home(&candidate).map(|facts| (candidate, facts)));
            }
        }
        Box::pin(std::future::ready(Ok(found)))
    }

    fn hardware<'a>(&'a self, candidate: &'a Candidate) -> BoxFuture<'a, Option<Hardware>> {
        let last = candidate.index as u8;
        Box::pin(std::future::ready(Some([2, 0, 0, 0, 0, last])))
    }

    fn router(
        &self,
        link: u32,
        address: IpAddr,
    ) -> BoxFuture<'_, Result<Option<Hardware>, NetworkError>> {
        let link = &self.lock().links[link as usize];
        let found = (link.router == Some(address)).then_some(link.hardware);
        Box::pin(std::future::ready(Ok(found)))
    }

    fn bind(&self, candidate: &Candidate, _: Purpose) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut inner = self.lock();
        let link = candidate.index as usize;
        if !inner.links[link].up {
            return Err(Errno::ENODEV.into());
        }
        inner.next_port = inner.next_port.checked_add(1).unwrap_or(1024);
        let port = inner.next_port;
        let local = SocketAddr::new(candidate.source, port);
        let socket = SimSocket::new(&self.myself, Side::Client { link, local });
        inner.clients.retain(|_, socket| socket.strong_count() > 0);
        inner.clients.insert((link, port), Arc::downgrade(&socket));
        Ok(socket)
    }

    fn cut(&self, link: &str) -> Cut {
        self.cuts.of(link)
    }

    fn hints(&self) -> Hints {
        Hints::of(&self.changes)
    }
}

impl SimSocket {
    fn new(world: &Weak<World>, side: Side) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), side, inbox: Mutex::default() })
    }

    fn is_bound_to(&self, address: IpAddr) -> bool {
        matches!(self.side, Side::Client { local, .. } if local.ip() == address)
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket").field("side", &self.side).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for SimSocket {
    fn may_fragment(&self) -> bool {
        self.world.upgrade().is_none_or(|world| world.lock().may_fragment)
    }

    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(world) = self.world.upgrade() else { return Ok(()) };
        let to =
            SocketAddr::new(transmit.destination.ip().to_canonical(), transmit.destination.port());
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(size).try_for_each(|bytes| world.send(self.side, to, bytes))
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let Some(Datagram { from, to, bytes }) = inbox.datagrams.pop_front() else {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        bufs[0][..bytes.len()].copy_from_slice(&bytes);
        let len = bytes.len();
        meta[0] = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: Some(to.ip()) };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(match self.side {
            Side::Client { local, .. } => local,
            Side::Server | Side::Other(_) => "[::]:4433".parse().unwrap(),
        })
    }
}
