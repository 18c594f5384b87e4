//! The peers of a server: their keys, their inner addresses and their sessions.

mod routing;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;
use quinn::{Connection, VarInt};
use tracing::warn;

use super::{
    bounded_connections::BoundedConnections, rivals::Rivals, socket::ServerSocket,
    streams::is_virtual,
};
use crate::{
    clock::{self, AtomicInstant},
    config,
    daemon::status::Withdrawal,
    identity::PublicKey,
    mutex::Mutex,
    quic::close,
    tunnel::{
        counters::{Counters, DropReason},
        pool::{Pool, Share},
        pump,
        queue::Queue,
    },
    wire::{foreign::Foreign, packet::Packet},
};

/// Maximum memory in bytes for packets that wait for one peer.
const QUEUE: usize = 1024 * 1024;
/// Maximum memory in bytes for packets that wait for all peers together. One peer may use all of
/// its share while few peers use theirs.
const QUEUES: usize = 16 * QUEUE;
/// The sender number of the server's own side in the peers' queues.
const HERE: usize = 0;
/// Maximum of probe connections of one peer: one per path, those of a client that restarted, and some in
/// reserve.
const PROBES: usize = 16;
/// Maximum of connections of one peer that have not sent a hello: a client races a few, and sends
/// its hello at once.
const SILENT: usize = 8;

/// A peer that comes and goes counts as back no more often than this: each time it lets others in.
const RETURNS: Duration = Duration::from_secs(30);

/// Maximum memory in bytes for what is kept for the repairs of all sessions together, in both directions: as much as
/// sixteen sessions take at most, and some thousand ordinary ones.
const REPAIRS: usize = 256 << 20;

/// Memory that all peers share.
#[derive(Clone, Debug)]
struct Memory {
    queues: Arc<Pool>,
    repairs: Arc<Pool>,
}

/// All peers, by key and by inner address.
#[derive(Debug)]
pub struct Peers {
    by_key: HashMap<PublicKey, Arc<Peer>>,
    by_address: JointPrefixMap<IpNet, Arc<Peer>>,
    in_order: Vec<Arc<Peer>>,
    /// Whether the host's routes say where a peer is that has no session here: perhaps at another server.
    by_routes: bool,
    memory: Memory,
}

/// One peer. Addresses, queue and counters outlive its connections.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the configuration.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Its inner addresses.
    pub addresses: Vec<IpAddr>,
    /// Its sender number in the queues of other peers.
    sender: usize,
    /// Packets that wait to be sent to it.
    pub queue: Queue,
    /// The memory for its repairs.
    repairs: Arc<Pool>,
    /// Counters of its datapath, as seen from the server.
    pub counters: Counters,
    /// Its probe connections.
    pub(super) probes: BoundedConnections,
    /// Its connections that have not sent a hello.
    pub(super) silent: BoundedConnections,
    /// A [`Whereabouts`], for the datapath.
    whereabouts: AtomicU8,
    place: Mutex<Place>,
    /// When it last came back, see [`Self::returns`].
    returned: AtomicInstant,
    /// The process that wants no bulk; zero if none does.
    bulk_held_for: AtomicU64,
}

/// Where a peer's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Whereabouts {
    /// It has no session, as far as is known: they wait for it.
    Away,
    /// Its session is here.
    Here,
    /// Its session is here, without routes to it: it is at another server by now, or nobody can tell.
    WithoutRoutes,
    /// Its session is at another server.
    Elsewhere,
}

/// A peer's session, and the other machines that claim it.
#[derive(Debug, Default)]
struct Place {
    session: Option<PeerSession>,
    /// When the last session ended, and where the peer was.
    last: Option<(Instant, SocketAddr)>,
    rivals: Rivals,
    elsewhere: Option<Elsewhere>,
    /// How often sessions went on without routes.
    withdrawn: BTreeMap<Withdrawal, u64>,
}

/// A peer's session at another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// What the server is called.
    pub(super) server: Foreign,
    /// The peer's process; none if the other server's claim cannot be read.
    pub(super) process: Option<u64>,
    /// The peer's address when the session began.
    pub(super) client: Option<IpAddr>,
}

impl Place {
    fn whereabouts(&self) -> Whereabouts {
        match (&self.session, &self.elsewhere) {
            (Some(session), _) if session.withdrawn.is_some() => Whereabouts::WithoutRoutes,
            (Some(_), _) => Whereabouts::Here,
            (None, Some(_)) => Whereabouts::Elsewhere,
            (None, None) => Whereabouts::Away,
        }
    }
}

/// A connected peer's connection.
#[derive(Clone, Debug)]
pub struct PeerSession {
    /// The connection.
    pub connection: Connection,
    /// When the session began.
    pub since: SystemTime,
    /// The peer's software and version.
    pub software: Foreign,
    /// The instance id of its process.
    pub instance: u64,
    /// What its pumps share.
    pub(super) datapath: Arc<pump::Session>,
    /// Why it gave its routes up, if it did.
    pub(super) withdrawn: Option<Withdrawal>,
    /// When it last got or gave up its routes.
    pub(super) routed: Instant,
}

impl PeerSession {
    fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// An address that may be unknown.
fn shown(address: Option<IpAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

fn address(connection: &Connection, socket: &ServerSocket) -> IpAddr {
    socket.shown(connection.remote_address()).ip().to_canonical()
}

impl Peers {
    /// The peers of a checked configuration, in which names, keys and addresses are unique.
    #[must_use]
    pub fn new(configured: &[config::Peer]) -> Self {
        let memory = Memory { queues: Pool::new(QUEUES), repairs: Pool::new(REPAIRS) };
        let peers = (HERE + 1..).zip(configured);
        Self::of(
            peers.map(|(sender, peer)| Peer::new(peer, sender, &memory).into()).collect(),
            memory,
        )
    }

    /// The same, where the host's routes say where a peer is that has no session here.
    #[must_use]
    pub(super) fn by_routes(self, by_routes: bool) -> Self {
        Self { by_routes, ..self }
    }

    /// The peers of a changed configuration. An unchanged peer keeps its queue, counters and session.
    #[must_use]
    pub fn renewed(&self, configured: &[config::Peer]) -> Self {
        let kept = |peer: &config::Peer| {
            let before = self.by_key.get(&peer.public_key)?;
            let same = before.name == peer.name && before.addresses == peer.addresses;
            same.then(|| before.clone())
        };
        let free = 1 + self.iter().map(|peer| peer.sender).max().unwrap_or(HERE);
        let renewed = (free..).zip(configured).map(|(sender, peer)| {
            kept(peer).unwrap_or_else(|| Peer::new(peer, sender, &self.memory).into())
        });
        Self::of(renewed.collect(), self.memory.clone()).by_routes(self.by_routes)
    }

    fn of(in_order: Vec<Arc<Peer>>, memory: Memory) -> Self {
        let by_key = in_order.iter().map(|peer| (peer.key, peer.clone())).collect();
        let mut by_address = JointPrefixMap::default();
        for peer in &in_order {
            for address in &peer.addresses {
                by_address.insert(IpNet::from(*address), peer.clone());
            }
        }
        Self { by_key, by_address, in_order, by_routes: false, memory }
    }

    /// The peer with this key.
    #[must_use]
    pub fn with_key(&self, key: PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(&key)
    }

    /// The peer that has the inner address `destination`.
    #[must_use]
    pub fn with_address(&self, destination: IpAddr) -> Option<&Arc<Peer>> {
        self.by_address.get_lpm(&IpNet::from(destination)).map(|(_, peer)| peer)
    }

    /// All peers in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.in_order.iter()
    }

    /// The peers' QUIC connections over TCP, by the virtual address that each of them has to quinn.
    pub(super) fn over_tcp(&self) -> HashMap<SocketAddr, PublicKey> {
        let mut found = HashMap::new();
        for peer in self.iter() {
            let session = peer
                .place()
                .session
                .as_ref()
                .filter(|it| it.is_alive())
                .map(|session| session.connection.remote_address());
            let others = [&peer.probes, &peer.silent].map(BoundedConnections::remotes);
            let all = others.into_iter().flatten().chain(session);
            found.extend(all.filter(|it| is_virtual(it.ip())).map(|it| (it, peer.key)));
        }
        found
    }
}

impl Peer {
    fn new(configured: &config::Peer, sender: usize, memory: &Memory) -> Self {
        Self {
            name: configured.name.clone(),
            key: configured.public_key,
            addresses: configured.addresses.clone(),
            sender,
            queue: Queue::sharing(memory.queues.clone(), QUEUE),
            repairs: memory.repairs.clone(),
            counters: Counters::default(),
            probes: BoundedConnections::new(PROBES),
            silent: BoundedConnections::new(SILENT),
            whereabouts: AtomicU8::new(Whereabouts::Away as u8),
            place: Mutex::default(),
            returned: AtomicInstant::default(),
            bulk_held_for: AtomicU64::default(),
        }
    }

    /// Whether the peer, which has proved its key, comes back after it had no session; once in [`RETURNS`] at most.
    pub(super) fn returns(&self, now: Instant) -> bool {
        let is_lately =
            self.returned.get().is_some_and(|last| now.saturating_duration_since(last) < RETURNS);
        let returns =
            !is_lately && !self.place().session.as_ref().is_some_and(PeerSession::is_alive);
        if returns {
            self.returned.set(now);
        }
        returns
    }

    /// A part of the memory for repairs.
    pub(super) fn repair_memory(&self) -> Share {
        Share::of(self.repairs.clone())
    }

    /// Whether the process `instance` may have the session. If not, a newer machine with the same key has it,
    /// and `connection` is closed.
    pub(super) fn admits(
        &self,
        instance: u64,
        connection: &Connection,
        socket: &ServerSocket,
    ) -> bool {
        let mut place = self.place();
        let current = place.session.as_ref().filter(|it| it.is_alive());
        let (current, newer) = match (current, &place.elsewhere) {
            (Some(session), _) => {
                (Some(session.instance), Some(address(&session.connection, socket)))
            }
            (None, Some(elsewhere)) => (elsewhere.process, elsewhere.client),
            (None, None) => return true,
        };
        if place.rivals.admit(instance, current) {
            return true;
        }
        let (newer, older) = (shown(newer), address(connection, socket));
        place.rivals.see(older, clock::now());
        drop(place);
        warn!(peer = self.name, newer, %older, "two machines use this key, the newer one keeps the session");
        connection.close(close::DISPLACED, newer.as_bytes());
        false
    }

    /// Makes `session` the peer's session at once and closes the connection of the one before,
    /// whose task must not detach the new one.
    pub fn attach(&self, session: PeerSession, socket: &ServerSocket) {
        let mut place = self.place();
        self.queue.hold(false);
        let (newer, instance) = (address(&session.connection, socket), session.instance);
        let old = place.session.replace(session);
        self.publish(&place);
        let Some(old) = old else {
            let elsewhere = place.elsewhere.as_ref().and_then(|it| it.process);
            place.rivals.take_over(instance, elsewhere);
            return;
        };
        if !place.rivals.take_over(instance, Some(old.instance)) {
            return old.connection.close(close::TAKEN_OVER, b"another connection has this key");
        }
        // A process that has ended does not hear the reason.
        old.connection.close(close::DISPLACED, newer.to_string().as_bytes());
    }

    /// The address where another machine with the peer's key was seen lately.
    #[must_use]
    pub fn rival(&self) -> Option<IpAddr> {
        self.place().rivals.address(clock::now())
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock()
    }

    /// Ends the session of `connection`, whose peer was at `remote`, unless another connection has taken it over.
    pub fn detach(&self, connection: &Connection, remote: SocketAddr) {
        let place = &mut *self.place();
        let is_ended =
            |session: &mut PeerSession| session.connection.stable_id() == connection.stable_id();
        if place.session.take_if(is_ended).is_some() {
            place.last = Some((clock::now(), remote));
            self.queue.hold(true);
            self.publish(place);
        }
    }

    /// The session goes on without routes to the peer, for this reason, or has them again; whether it is still there.
    #[cfg(feature = "etcd")]
    pub(super) fn set_withdrawn(&self, session: usize, reason: Option<Withdrawal>) -> bool {
        let place = &mut *self.place();
        let is_its = |it: &&mut PeerSession| it.connection.stable_id() == session;
        let Some(current) = place.session.as_mut().filter(is_its) else { return false };
        if current.withdrawn.is_some() != reason.is_some() {
            current.routed = clock::now();
        }
        current.withdrawn = reason;
        self.publish(place);
        true
    }

    #[cfg(feature = "etcd")]
    pub(super) fn count_withdrawal(&self, why: Withdrawal) {
        *self.place().withdrawn.entry(why).or_default() += 1;
    }

    /// The peer has its session at another server, or has none there any more.
    #[cfg(any(test, feature = "etcd"))]
    pub(super) fn set_elsewhere(&self, elsewhere: Option<Elsewhere>) {
        let place = &mut *self.place();
        let session = place.session.as_ref().map(|session| session.instance);
        let before = session.or_else(|| place.elsewhere.as_ref()?.process);
        if let Some(Elsewhere { process: Some(process), .. }) = elsewhere {
            place.rivals.take_over(process, before);
        }
        place.elsewhere = elsewhere;
        self.publish(place);
    }

    /// The name of the other server that has its session.
    pub(super) fn elsewhere(&self) -> Option<Foreign> {
        self.place().elsewhere.as_ref().map(|it| it.server.clone())
    }

    /// Tells the datapath. What waits for a peer that has its session at another server does not reach it.
    fn publish(&self, place: &Place) {
        let whereabouts = place.whereabouts();
        self.whereabouts.store(whereabouts as u8, Relaxed);
        if whereabouts == Whereabouts::Elsewhere {
            self.counters.dropped(DropReason::Elsewhere, self.queue.clear() as u64);
        }
    }

    fn whereabouts(&self) -> Whereabouts {
        use Whereabouts::{Away, Elsewhere, Here, WithoutRoutes};
        let now = self.whereabouts.load(Relaxed);
        [Here, WithoutRoutes, Elsewhere].into_iter().find(|it| *it as u8 == now).unwrap_or(Away)
    }

    /// Whether the kernel is asked for the way to it. `by_routes`: also if it has no session.
    fn is_reached_by_routes(&self, by_routes: bool) -> bool {
        match self.whereabouts() {
            Whereabouts::Here => false,
            Whereabouts::WithoutRoutes | Whereabouts::Elsewhere => true,
            Whereabouts::Away => by_routes,
        }
    }

    /// Closes all connections of the peer.
    pub fn cut_off(&self, code: VarInt, reason: &[u8]) {
        self.probes.close(code, reason);
        self.silent.close(code, reason);
        if let Some(session) = self.session() {
            session.connection.close(code, reason);
        }
    }

    /// The session, if the peer is connected.
    #[must_use]
    pub fn session(&self) -> Option<PeerSession> {
        self.place().session.clone()
    }

    /// When the last session ended, and where the peer was; none while there is one.
    pub(super) fn last_session(&self) -> Option<(Instant, SocketAddr)> {
        let place = self.place();
        place.last.filter(|_| place.session.is_none())
    }

    /// How often sessions went on without routes.
    pub(super) fn withdrawn(&self) -> BTreeMap<Withdrawal, u64> {
        self.place().withdrawn.clone()
    }

    /// What the pumps of the session share, if the process with this number has it.
    pub(super) fn datapath_of(&self, process: u64) -> Option<Arc<pump::Session>> {
        let place = self.place();
        let session = place.session.as_ref()?;
        let is_its = session.is_alive() && session.instance == process;
        is_its.then(|| session.datapath.clone())
    }

    /// A session of this process begins: what the same one wanted of bulk in the session before holds on.
    pub(super) fn begin_bulk(&self, process: u64) {
        if process != self.bulk_held_for.load(Relaxed) {
            self.hold_bulk(process, false);
        }
    }

    /// Holds bulk back that waits for it, as this process of it wants, or not any more.
    pub(super) fn hold_bulk(&self, process: u64, held: bool) {
        self.bulk_held_for.store(if held { process } else { 0 }, Relaxed);
        self.queue.hold_bulk(held);
    }

    fn enqueue(&self, sender: usize, batch: &mut Vec<Packet>) {
        self.counters.dropped_by_queue(self.queue.push_from(sender, batch));
    }
}
