//! What the client has of each path: its candidate, its socket, its probe.
//!
//! [`PathTable`] performs what the path manager wants done with one path, and tells what the connection must
//! know of a switch. It decides nothing.

mod memory;
mod networks;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{AsyncUdpSocket, Connection};
use tracing::debug;

use self::{memory::Memories, networks::Networks};
use super::view::{Said, ShownPath};
use crate::{
    link::candidate::Candidate,
    path::{
        Condition, PathKey,
        manager::Event,
        meter::Purpose,
        network::Network,
        probe::{Probe, Prober},
        quality::Burst,
        socket::{PathId, PathSocket},
    },
    quic::congestion::Remembered,
};

/// How long the old path's socket is still read after a switch: longer than a packet is under way.
const GRACE: Duration = Duration::from_secs(3);
/// How long a socket stays open that was opened before its path is used.
const PREPARED: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(super) struct PathTable {
    entries: BTreeMap<PathKey, PathEntry>,
    memories: Memories,
    socket: Arc<PathSocket>,
    network: Arc<dyn Network>,
    prober: Prober,
    networks: Networks,
}

#[derive(Debug)]
struct PathEntry {
    candidate: Candidate,
    socket: Option<PathId>,
    /// When the socket was opened.
    opened: Option<Instant>,
    probe: Option<Probe>,
    /// When the socket of a path that was left is closed.
    closing_at: Option<Instant>,
}

/// What the connection must know of a switch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) from: Option<Candidate>,
    pub(super) to: Candidate,
    /// What is remembered of the new path, if it was left not long ago.
    pub(super) memory: Option<Remembered>,
    /// Since when the old path was sent to and nothing was heard.
    pub(super) unheard_since: Option<Instant>,
}

impl PathEntry {
    fn new(candidate: Candidate) -> Self {
        Self { candidate, socket: None, opened: None, probe: None, closing_at: None }
    }
}

impl PathTable {
    /// A table with the path over which the connection was made.
    pub(super) fn new(
        socket: Arc<PathSocket>,
        network: Arc<dyn Network>,
        prober: Prober,
        (candidate, id): (Candidate, PathId),
    ) -> Self {
        let first = PathEntry { socket: Some(id), ..PathEntry::new(candidate) };
        Self {
            entries: [(PathKey::from(&first.candidate), first)].into(),
            memories: Memories::default(),
            socket,
            networks: Networks::new(network.clone()),
            network,
            prober,
        }
    }

    pub(super) fn candidate(&self, key: PathKey) -> Option<&Candidate> {
        self.entries.get(&key).map(|entry| &entry.candidate)
    }

    /// The path of an open socket.
    pub(super) fn with_socket(&self, id: PathId) -> Option<PathKey> {
        self.entries.iter().find(|(_, entry)| entry.socket == Some(id)).map(|(key, _)| *key)
    }

    /// The path by which packets are sent.
    pub(super) fn in_use(&self) -> Option<PathKey> {
        self.socket.active().and_then(|id| self.with_socket(id))
    }

    /// What is remembered of a path in its present network, if it was left not long ago.
    pub(super) fn memory(&self, key: PathKey, now: Instant) -> Option<Remembered> {
        self.memories.of(key, self.networks.router(self.candidate(key)?), now)
    }

    /// Adds the candidates that were found, or takes in what is new of them. If the path in use leads into another network by
    /// now, the one before will be remembered with `memory`.
    pub(super) fn update<'a>(
        &mut self,
        found: impl Iterator<Item = &'a Candidate>,
        memory: Option<Remembered>,
        now: Instant,
    ) {
        let in_use = self.in_use();
        for candidate in found {
            let key = PathKey::from(candidate);
            let entry = self.entries.entry(key);
            let entry = entry.or_insert_with(|| PathEntry::new(candidate.clone()));
            let is_carried = in_use == Some(key) && entry.closing_at.is_none();
            if is_carried && entry.candidate.router != candidate.router {
                let router = self.networks.router(&entry.candidate);
                self.memories.keep(key, router, memory, now);
            }
            entry.candidate.clone_from(candidate);
        }
    }

    /// Forgets the paths that the manager does not know, except those whose sockets are open, and the routers to which no path
    /// leads.
    pub(super) fn retain(&mut self, known: &HashSet<PathKey>) {
        self.entries.retain(|key, entry| known.contains(key) || entry.socket.is_some());
        let is_in_use = |link, address| {
            let of = |(key, entry): (&PathKey, &PathEntry)| {
                (key.link, entry.candidate.router) == (link, Some(address)) && known.contains(key)
            };
            self.entries.iter().any(of)
        };
        self.networks.retain(|key| known.contains(&key), is_in_use);
    }

    /// Asks the server over a path on a connection of its own, within `limit`.
    pub(super) fn ask(&mut self, key: PathKey, limit: Duration) {
        if let Some(probe) = self.probe(key, limit) {
            probe.ask();
        }
    }

    /// Makes a burst of echoes over a path, on a link that may be metered, on the same connection.
    pub(super) fn sample(&mut self, key: PathKey, burst: Burst, is_metered: bool, limit: Duration) {
        if let Some(probe) = self.probe(key, limit) {
            probe.sample(burst, is_metered);
        }
    }

    /// The probe of a path, started if need be, whose questions are answered within `limit`.
    fn probe(&mut self, key: PathKey, limit: Duration) -> Option<&Probe> {
        let entry = self.entries.get_mut(&key)?;
        Some(entry.probe.get_or_insert_with(|| {
            let (network, candidate) = (self.network.clone(), entry.candidate.clone());
            Probe::start(network, self.prober.clone(), candidate, key, limit)
        }))
    }

    /// Asks no more over this path.
    pub(super) fn stop_asking(&mut self, key: PathKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.probe = None;
        }
    }

    /// The probe's connection over this path, if it stands.
    pub(super) fn standing(&self, key: PathKey) -> Option<Connection> {
        self.entries.get(&key)?.probe.as_ref()?.standing()
    }

    /// Starts a further handshake for each question that is not answered.
    pub(super) fn hurry(&self) {
        self.entries.values().filter_map(|entry| entry.probe.as_ref()).for_each(Probe::hurry);
    }

    /// The path's network is another one: whether a captive portal is in it is not known.
    pub(super) fn renew(&mut self, key: PathKey) {
        self.networks.renew(key);
    }

    /// Closes what was opened for this path, after a grace period; nothing more is asked over it. If it is in use, it will be
    /// remembered with `memory`.
    pub(super) fn leave(&mut self, key: PathKey, memory: Option<Remembered>, now: Instant) {
        if self.in_use() == Some(key) {
            self.remember(key, memory, now);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.probe = None;
            if entry.socket.is_some() {
                entry.closing_at.get_or_insert(now + GRACE);
            }
        }
    }

    /// Sends by the path `to` from here on. The old one, which will be remembered with `memory`, is still read
    /// for a while. Without a socket for the new one everything stays as it was, and the manager will hear
    /// of it.
    pub(super) fn switch(
        &mut self,
        to: PathKey,
        memory: Option<Remembered>,
        now: Instant,
    ) -> Option<Departure> {
        let unheard_since = self.socket.unheard_since();
        let from = self.in_use();
        let id = self.open(to, now)?;
        self.socket.switch(id);
        if let Some(from) = from {
            self.remember(from, memory, now);
        }
        let memory = self.memory(to, now);
        let new = self.entries.get_mut(&to)?;
        new.closing_at = None;
        let candidate = new.candidate.clone();
        if let Some(from) = from.filter(|from| *from != to)
            && let Some(old) = self.entries.get_mut(&from)
        {
            old.closing_at.get_or_insert(now + GRACE);
        }
        let from = from.and_then(|from| self.candidate(from).cloned());
        Some(Departure { from, to: candidate, memory, unheard_since })
    }

    /// Remembers what the path in use delivered, unless that was done when it was left.
    fn remember(&mut self, key: PathKey, memory: Option<Remembered>, now: Instant) {
        if let Some(entry) = self.entries.get(&key).filter(|entry| entry.closing_at.is_none()) {
            let router = self.networks.router(&entry.candidate);
            self.memories.keep(key, router, memory, now);
        }
    }

    /// The socket of a path, opened if need be.
    fn open(&mut self, key: PathKey, now: Instant) -> Option<PathId> {
        let entry = self.entries.get_mut(&key)?;
        if entry.socket.is_none() {
            let bound = bind(&*self.network, &self.prober, entry, key)?;
            let cut = self.network.cut(&entry.candidate.link);
            (entry.socket, entry.opened) =
                (Some(self.socket.open(bound, key.server, cut)), Some(now));
        }
        entry.socket
    }

    /// Opens the socket of a path that may be used in a moment: a TCP connection takes three round trips.
    pub(super) fn prepare(&mut self, key: PathKey, now: Instant) {
        let is_closed = self.entries.get(&key).is_some_and(|entry| entry.socket.is_none());
        if is_closed
            && self.open(key, now).is_some()
            && let Some(entry) = self.entries.get_mut(&key)
        {
            entry.closing_at = Some(now + PREPARED);
        }
    }

    /// Opens another socket for a path in place of the one that it has, if that is older than `age`: a TCP connection
    /// has ended, or stalls. Returns whether it did.
    pub(super) fn reopen(&mut self, key: PathKey, age: Duration, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        let Some(old) = entry.socket else { return false };
        if entry.opened.is_some_and(|opened| now < opened + age) {
            return false;
        }
        let Some(bound) = bind(&*self.network, &self.prober, entry, key) else { return false };
        let cut = self.network.cut(&entry.candidate.link);
        entry.socket = Some(self.socket.replace(old, bound, key.server, cut));
        entry.opened = Some(now);
        true
    }

    /// Closes the socket of a path that is not in use, and that has failed.
    pub(super) fn close(&mut self, key: PathKey) {
        if let Some(entry) = self.entries.get_mut(&key)
            && let Some(id) = entry.socket.take()
        {
            entry.closing_at = None;
            self.socket.close(id);
        }
    }

    /// Whether an old path is still read.
    pub(super) fn is_draining(&self) -> bool {
        self.entries.values().any(|entry| entry.closing_at.is_some())
    }

    /// Closes the old paths whose grace period is over.
    pub(super) fn close_old(&mut self, active: Option<PathKey>, now: Instant) {
        for (key, entry) in &mut self.entries {
            if entry.closing_at.take_if(|at| *at <= now).is_none() || active == Some(*key) {
                continue;
            }
            if let Some(id) = entry.socket.take() {
                self.socket.close(id);
            }
        }
    }

    /// When the server was last heard on this path.
    pub(super) fn heard_on(&self, key: PathKey) -> Option<Instant> {
        self.socket.stats(self.entries.get(&key)?.socket?)?.last_heard
    }

    /// Asks about the networks of paths in these conditions and with these round trips: where one failed, whether a captive
    /// portal answers; where one has answered, which machine its router is, which the kernel knows by then.
    pub(super) fn ask_networks(
        &mut self,
        paths: impl Iterator<Item = (PathKey, Condition, Option<Duration>)>,
        now: Instant,
    ) {
        for (key, condition, rtt) in paths {
            if let Some(entry) = self.entries.get(&key) {
                self.networks.ask(key, &entry.candidate, condition, rtt, now);
            }
        }
    }

    /// Routers may be other machines by now.
    pub(super) fn ask_routers_again(&mut self) {
        self.networks.ask_routers_again();
    }

    /// Waits for the next answer about a network that tells something. Cancel safe.
    pub(super) async fn answered(&mut self) -> Event {
        self.networks.answered().await
    }

    /// A path as people see it, of which the manager says this.
    pub(super) fn shown(&self, key: PathKey, said: Said) -> Option<ShownPath> {
        let entry = self.entries.get(&key)?;
        Some(ShownPath {
            candidate: entry.candidate.clone(),
            socket: entry.socket,
            measured: entry.probe.as_ref().and_then(Probe::measured),
            said,
        })
    }
}

/// A socket for a path. Without one the manager will hear of it.
fn bind(
    network: &dyn Network,
    prober: &Prober,
    PathEntry { candidate, .. }: &PathEntry,
    key: PathKey,
) -> Option<Arc<dyn AsyncUdpSocket>> {
    let bound = network.bind(candidate, Purpose::Tunnel);
    if let Err(error) = &bound {
        debug!(link = candidate.link, %error, "cannot open a socket");
        // If the channel is full the event is dropped; the next attempt reports it again.
        let _ = prober.reports.try_send(Event::SendFailed(key).into());
    }
    bound.ok()
}

#[cfg(test)]
mod tests;
