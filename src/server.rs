//! The server: one socket, one TUN device, and a session for each peer.
//!
//! ```text
//!  TUN ─▶ Peers::route ─▶ the peer's queue ─▶ pump::uplink ─▶ its connection
//!  TUN ◀─ Peers::deliver ◀─ pump::downlink ◀─ its connection
//!             └─▶ another peer's queue
//! ```

mod bounded_connections;
pub(crate) mod fallback;
mod gate;
pub(crate) mod handshake;
pub(crate) mod peers;
mod rivals;
pub(crate) mod silence;
pub(crate) mod socket;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use ipnet::IpNet;
use quinn::{AsyncUdpSocket, Connection, ConnectionError, Endpoint, TokioRuntime, ZeroRttAccepted};
use tokio::{sync::watch, task::JoinSet};
use tracing::{Instrument as _, debug, info, info_span, warn};

use self::{
    handshake::{HandshakeLimiter, HandshakePermit, PROOF_TIMEOUT},
    peers::{Attached, Peer, PeerSession, Peers},
    socket::ServerSocket,
};
use crate::{
    clock,
    config::{self, Config, Dns, ServerConfig, ServerTun},
    daemon::{
        Daemon,
        control::{self, Reply, Request},
        events::{Event, Events},
        signals,
        status::{self, PeerStatus, ServerStatus, Status},
        systemd::{self, Handed, Heart},
    },
    host::{
        interface::{self, Interface, LeftOut},
        nat::Nat,
    },
    identity::PrivateKey,
    link::{monitor::Monitor, netlink::Netlink},
    path::udp::UdpSocket,
    quic::{
        self, HANDSHAKE_TIMEOUT, PROBE_IDLE, close,
        congestion::CongestionHandle,
        session::{self, MessageStream, SOFTWARE},
        tls::{self, ServerTls, TlsError},
    },
    tunnel::{
        counters::{Counters, DropReason},
        device::{PacketSink, PacketSource},
        ingress, pump,
    },
    wire::{
        foreign::Foreign,
        message::{Hello, Message, Net, Repeat, Welcome},
        packet::Packet,
    },
};

/// First packets that wait to be looked at, and bytes that wait behind them.
const WAITING: usize = 256;
const WAITING_BYTES: u64 = 256 * 1024;
/// How long clients have to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The server, apart from this machine's device and signals.
pub(crate) struct Server {
    acceptor: Acceptor,
    peers: Arc<ArcSwap<Peers>>,
    offer: ArcSwap<Offer>,
    config: Mutex<ServerConfig>,
    events: Events,
    tun: Box<dyn PacketSink>,
    interface: String,
    /// What the kernel refuses to the interface.
    left_out: watch::Receiver<Vec<LeftOut>>,
    listen: std::net::SocketAddr,
    socket: Arc<ServerSocket>,
    handshakes: HandshakeLimiter,
    /// What concerns no single peer.
    counters: Counters,
    since: SystemTime,
}

/// What every client is told.
struct Offer {
    networks: Vec<IpNet>,
    routes: Vec<IpNet>,
    dns: Dns,
    mtu: u16,
}

impl Offer {
    fn new(tun: &ServerTun) -> Self {
        let ServerTun { addresses, routes, dns, mtu, .. } = tun.clone();
        Self { networks: addresses, routes, dns, mtu }
    }
}

/// How connections are set up.
struct Acceptor {
    /// What holds before a connection is accepted.
    base: quinn::ServerConfig,
    tls: ServerTls,
    quic: config::Quic,
    mtu: u16,
}

impl Acceptor {
    /// The set-up of one connection, whose congestion controllers listen to `congestion`.
    fn config(&self, congestion: CongestionHandle) -> Result<Arc<quinn::ServerConfig>, TlsError> {
        let mut config = self.base.clone();
        config.crypto = Arc::new(self.tls.for_connection()?);
        let mut transport = quic::transport(&self.quic, self.mtu, congestion);
        // A tunnel is kept alive by [`silence::keep_alive`], a probe connection by its questions.
        transport.keep_alive_interval(None);
        config.transport_config(Arc::new(transport));
        Ok(Arc::new(config))
    }
}

/// Runs the server until the process is told to stop.
pub(crate) async fn run(config: ServerConfig, daemon: Daemon) -> anyhow::Result<()> {
    let stop = signals::stop()?;
    let monitor = Monitor::open().context("cannot hear of network changes")?;
    let (tun, listen) = (&config.tun, config.listen);
    let Handed { tun: device, .. } = daemon.tun(&tun.name, tun.mtu, tun.offload)?;
    let mut interface = Interface::up(Netlink::open_strict()?, &tun.name, tun.mtu).await?;
    interface.set(tun.mtu, &tun.addresses, &[]).await?;
    let (index, left_out) = (interface.index(), interface.left_out());
    let udp = UdpSocket::bind(listen, None, config.quic.dscp, None)
        .with_context(|| format!("cannot listen on {listen}"))?;
    let (nat, tun) = (Nat::new(daemon.record.clone()), tun.clone());
    let key = config.private_key.public_key();
    #[cfg(feature = "metrics")]
    let metrics = config.metrics.clone();
    let (server, endpoint) = Server::new(config, udp, Box::new(device.writer()), left_out)?;
    let daemon = Arc::new(daemon);
    let _control = control::serve(&daemon.instance, server.events.clone(), {
        let (server, daemon) = (server.clone(), daemon.clone());
        move |request| {
            let (server, daemon) = (server.clone(), daemon.clone());
            async move { server.answer(&request, &daemon) }
        }
    })?;
    #[cfg(feature = "metrics")]
    let _metrics = crate::daemon::metrics::serve(metrics.as_ref(), {
        let server = server.clone();
        move || server.status()
    })?;

    // Last, when nothing else can fail.
    if tun.nat {
        nat.set(&tun.name, &tun.addresses).await?;
    } else {
        nat.remove().await;
    }
    info!(
        listen = %server.listen,
        interface = server.interface,
        peers = server.peers.load().iter().count(),
        %key,
        "listening"
    );
    systemd::ready(&format!("listening on {}", server.listen));
    let heart = Heart::default();
    let ended = tokio::select! {
        ended = server.carry(device.reader(), &endpoint) => ended,
        failed = daemon.hangups(|| std::future::ready(server.reload(&daemon))) => {
            failed.map(|never| match never {})
        }
        never = systemd::watchdog(&heart) => match never {},
        never = beat(&heart, &endpoint) => match never {},
        never = interface.keep(monitor.hints()) => match never {},
        deleted = interface::deleted(index, monitor.hints()) => {
            deleted?;
            Err(anyhow::anyhow!("TUN device {} is gone: somebody deleted it", server.interface))
        }
        // The goodbye comes before the connections' tasks are dropped: a connection that nobody holds is closed
        // without a word.
        signal = stop.inspect(|_| endpoint.close(close::GOODBYE, b"the server stops")) => {
            info!(signal, "stopping");
            systemd::stopping();
            let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
            Ok(())
        }
    };
    nat.remove().await;
    ended
}

/// Beats as long as quinn's endpoint, which the datapath runs through, can be had.
async fn beat(heart: &Heart, endpoint: &Endpoint) -> Infallible {
    loop {
        heart.asked().await;
        let _ = endpoint.open_connections();
        heart.beat();
    }
}

fn quinn_config(key: &PrivateKey, tls: &ServerTls) -> Result<quinn::ServerConfig, TlsError> {
    let mut config =
        quinn::ServerConfig::new(Arc::new(tls.for_connection()?), quic::token_key(key));
    // All of these wait for a moment only, until the gate has decided.
    config
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING_BYTES);
    Ok(config)
}

async fn accept(server: &Arc<Server>, endpoint: &Endpoint) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if let Some((incoming, permit)) = server.handshakes.enter(incoming) {
                    let span = info_span!("peer", remote = %incoming.remote_address());
                    connections.spawn(serve(server.clone(), incoming, permit).instrument(span));
                }
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    warn!(%error, "a connection's task panicked");
                }
            }
        }
    }
}

/// One connection, from its first datagram to its end.
async fn serve(server: Arc<Server>, incoming: quinn::Incoming, mut permit: HandshakePermit) {
    let congestion = CongestionHandle::default();
    let proof = tokio::time::timeout(PROOF_TIMEOUT, server.prove(incoming, congestion.clone()));
    let proven = tokio::select! {
        proven = proof => proven,
        () = permit.must_give_way() => return debug!("handshake gave way to a newer one"),
    };
    let (connection, peer) = match proven {
        Ok(Ok(Some(proven))) => proven,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return debug!(%error, "handshake failed"),
        Err(_elapsed) => return debug!("handshake timed out"),
    };
    if !permit.proven() {
        return;
    }
    if tls::purpose(&connection).as_deref() == Some(tls::PROBE) {
        let _place = peer.probes.admit(&connection);
        if server.still_has(&peer, &connection) {
            tokio::select! {
                () = echo(&connection, PROBE_IDLE) => {}
                never = fallback::watch(&connection, &congestion) => match never {},
            }
        }
        return;
    }
    if let Some((messages, hello)) = server.greet(&connection, &peer).await {
        server.carry_session(&connection, &peer, messages, hello, &congestion).await;
    }
}

/// Does what a client asks for over the control stream.
async fn listen(messages: &mut MessageStream, peer: &Peer) -> Infallible {
    loop {
        match messages.received().await {
            Message::Repeat(Repeat { milliseconds }) => repeat(peer, milliseconds),
            Message::Hello(_) | Message::Welcome(_) => messages.refuse(),
        }
    }
}

/// Sends again what a peer may not have received in the last so many milliseconds.
fn repeat(peer: &Peer, milliseconds: u32) {
    if let Some(since) = clock::now().checked_sub(Duration::from_millis(milliseconds.into())) {
        let packets = peer.queue.repeat(since);
        debug!(milliseconds, packets, "repeating");
    }
}

/// Answers a probe with its own words until it ends, or asks nothing for longer than `limit`.
async fn echo(connection: &Connection, limit: Duration) {
    loop {
        let question = tokio::time::timeout(limit, connection.read_datagram());
        tokio::select! {
            question = question => match question {
                // What cannot be answered is asked again.
                Ok(Ok(datagram)) => drop(connection.send_datagram(datagram)),
                Ok(Err(_lost)) => return,
                Err(_elapsed) => return connection.close(close::NOT_NEEDED, b"no question"),
            },
            _ = connection.accept_bi() => {
                return connection.close(close::PROTOCOL, b"a probe has no streams");
            }
        }
    }
}

impl Server {
    pub(crate) fn new(
        config: ServerConfig,
        udp: Arc<dyn AsyncUdpSocket>,
        device: Box<dyn PacketSink>,
        left_out: watch::Receiver<Vec<LeftOut>>,
    ) -> anyhow::Result<(Arc<Self>, Endpoint)> {
        let ServerConfig { private_key, tun, quic, .. } = &config;
        let socket = ServerSocket::new(udp)?;
        let peers = Arc::new(ArcSwap::from_pointee(Peers::new(&config.peers)));
        let tls = ServerTls::new(private_key, {
            let peers = peers.clone();
            move |key| peers.load().with_key(key).is_some()
        })?;
        let base = quinn_config(private_key, &tls)?;
        let acceptor = Acceptor { base, tls, quic: quic.clone(), mtu: tun.mtu };
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::server_endpoint(private_key),
            Some(acceptor.base.clone()),
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        let server = Self {
            acceptor,
            peers,
            offer: ArcSwap::from_pointee(Offer::new(tun)),
            events: Events::default(),
            tun: device,
            interface: tun.name.clone(),
            left_out,
            listen: endpoint.local_addr()?,
            socket,
            handshakes: HandshakeLimiter::default(),
            counters: Counters::default(),
            since: clock::wall(),
            config: Mutex::new(config),
        };
        Ok((Arc::new(server), endpoint))
    }

    /// Carries packets between `source` and the peers, for ever; returns when one of its ends is gone.
    pub(crate) async fn carry(
        self: &Arc<Self>,
        source: impl PacketSource,
        endpoint: &Endpoint,
    ) -> anyhow::Result<()> {
        let read = ingress::run(source, &self.counters, |batch| {
            self.peers.load().route(batch, &self.counters);
        });
        tokio::select! {
            () = accept(self, endpoint) => anyhow::bail!("the QUIC endpoint stopped"),
            error = read => {
                Err(error).with_context(|| format!("TUN device {} is gone", self.interface))
            }
        }
    }

    /// Waits for the end of a handshake; gives the peer that has the key which the client proved.
    async fn prove(
        &self,
        incoming: quinn::Incoming,
        congestion: CongestionHandle,
    ) -> anyhow::Result<Option<(Connection, Arc<Peer>)>> {
        let connecting = incoming.accept_with(self.acceptor.config(congestion)?)?;
        let connection = match connecting.into_0rtt() {
            Ok((connection, confirmed)) => self.confirm(connection, confirmed).await?,
            Err(connecting) => connecting.await?,
        };
        Ok(self.identify(&connection).map(|peer| (connection, peer)))
    }

    /// Waits for a peer's hello and answers it. Packets that come before it are taken at once, so that
    /// they do not wait in quinn, which counts neither the memory around small ones nor their number.
    async fn greet(
        &self,
        connection: &Connection,
        peer: &Arc<Peer>,
    ) -> Option<(MessageStream, Hello)> {
        let _place = peer.silent.admit(connection);
        if !self.still_has(peer, connection) {
            return None;
        }
        let greeted = tokio::select! {
            greeted = session::accept(connection, |version, hello| {
                let admitted = peer.admits(hello.instance, connection);
                admitted.then(|| self.welcome(peer, version))
            }) => greeted,
            lost = pump::downlink(connection, &peer.counters, |batch| self.admit(peer, batch)) => {
                Err(lost.into())
            }
            () = tokio::time::sleep(HANDSHAKE_TIMEOUT) => {
                connection.close(close::PROTOCOL, b"no hello");
                return None;
            }
        };
        greeted.inspect_err(|error| debug!(%error, "no session")).ok()
    }

    /// A peer's session, until its connection ends.
    async fn carry_session(
        &self,
        connection: &Connection,
        peer: &Arc<Peer>,
        mut messages: MessageStream,
        hello: Hello,
        congestion: &CongestionHandle,
    ) {
        peer.attach(PeerSession {
            connection: connection.clone(),
            since: clock::wall(),
            software: hello.software.clone(),
            instance: hello.instance,
        });
        let attached = Attached { peer, connection };
        self.still_has(peer, connection);
        let remote = connection.remote_address();
        self.events.tell(Event::PeerConnected { peer: peer.name.clone(), remote });
        info!(peer = peer.name, software = %hello.software, "connected");
        let reason = tokio::select! {
            reason = pump::uplink(connection, &peer.queue, &peer.counters, hello.unchecked) => reason,
            reason = pump::downlink(connection, &peer.counters, |batch| self.admit(peer, batch)) => {
                reason
            }
            never = listen(&mut messages, peer) => match never {},
            never = silence::watch(connection, &peer.queue, congestion) => match never {},
            never = fallback::watch(connection, congestion) => match never {},
            never = silence::keep_alive(connection, self.acceptor.quic.keep_alive) => match never {},
        };
        drop(attached);
        let reason = Foreign::of(reason);
        info!(peer = peer.name, %reason, "disconnected");
        self.events.tell(Event::PeerDisconnected { peer: peer.name.clone(), reason });
    }

    /// Closes `connection` if the configuration has changed since `peer` was found in it.
    fn still_has(&self, peer: &Arc<Peer>, connection: &Connection) -> bool {
        let is_there =
            self.peers.load().with_key(peer.key).is_some_and(|now| Arc::ptr_eq(now, peer));
        if !is_there {
            connection.close(close::TAKEN_OVER, b"the configuration changed");
        }
        is_there
    }

    /// Waits for the end of the handshake. Packets of a client that resumes a session are delivered
    /// before that: an attacker can delay them, but not send them twice, since a ticket is used once.
    /// What comes together with the end of the handshake is left for whoever serves the connection.
    async fn confirm(
        &self,
        connection: Connection,
        confirmed: ZeroRttAccepted,
    ) -> Result<Connection, ConnectionError> {
        let deliver = |batch: &mut Vec<Packet>| match tls::peer_key(&connection) {
            Some(key) if tls::purpose(&connection).as_deref() == Some(tls::TUNNEL) => {
                match self.peers.load().with_key(key) {
                    Some(peer) => self.admit(peer, batch),
                    None => self.counters.dropped(DropReason::ForeignSource, batch.len() as u64),
                }
            }
            _ => self.counters.dropped(DropReason::ForeignSource, batch.len() as u64),
        };
        tokio::select! {
            biased;
            _ = confirmed => {}
            lost = pump::downlink(&connection, &self.counters, deliver) => return Err(lost),
        }
        connection.close_reason().map_or(Ok(connection), Err)
    }

    /// Takes packets from a peer: to other peers, or to the device.
    fn admit(&self, peer: &Peer, batch: &mut Vec<Packet>) {
        self.peers.load().deliver(peer, batch, &*self.tun);
    }

    /// The peer behind a connection. Every handshake comes through here, resumed ones too; one with
    /// a key that is not in the configuration ends here, with a reason for both sides.
    fn identify(&self, connection: &Connection) -> Option<Arc<Peer>> {
        let key = tls::peer_key(connection)?;
        if let Some(peer) = self.peers.load().with_key(key) {
            return Some(peer.clone());
        }
        connection.close(close::UNKNOWN_KEY, b"unknown key");
        if let Some(suppressed) = self.handshakes.may_log() {
            warn!(
                %key,
                suppressed,
                "refused: no [[peer]] has this public-key; add one to let it in"
            );
        }
        None
    }

    /// Takes over a changed configuration; what takes a restart stays as it was and is named. Peers that are
    /// not in it any more, or have other addresses, are cut off; all others notice nothing.
    fn renew(&self, new: ServerConfig) -> Vec<&'static str> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = config.takes_restart(&new);
        let before = self.peers.load();
        let peers = Peers::renewed(&before, &new.peers);
        let gone: Vec<_> = before
            .iter()
            .filter(|peer| peers.with_key(peer.key).is_none_or(|now| !Arc::ptr_eq(peer, now)))
            .map(|peer| (peer.clone(), peers.with_key(peer.key).is_some()))
            .collect();
        self.peers.store(Arc::new(peers));
        for (peer, is_changed) in gone {
            info!(peer = peer.name, is_changed, "cut off: the configuration changed");
            let (code, reason) = if is_changed {
                (close::TAKEN_OVER, &b"the configuration changed"[..])
            } else {
                (close::UNKNOWN_KEY, &b"unknown key"[..])
            };
            peer.cut_off(code, reason);
        }
        self.acceptor.tls.forget_strangers();
        let ServerTun { routes, dns, .. } = new.tun;
        config.tun = ServerTun { routes, dns, ..config.tun.clone() };
        (config.peers, config.log) = (new.peers, new.log);
        self.offer.store(Arc::new(Offer::new(&config.tun)));
        stays
    }

    /// Reads the configuration again; what to say about it.
    fn reload(&self, daemon: &Daemon) -> Result<Vec<String>, String> {
        let config = match daemon.read_again().map_err(|errors| errors.to_string())? {
            Config::Server(config) => config,
            Config::Client(_) => {
                return Err("role: a server becomes a client with a restart".into());
            }
        };
        daemon.log(&config.log);
        let stays = self.renew(config);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }

    /// Answers a request on the control socket.
    fn answer(&self, request: &Request, daemon: &Daemon) -> Reply {
        match request {
            Request::Status => Reply::Ok(Box::new(self.status())),
            Request::Reload => self.reload(daemon).map_or_else(Reply::Error, Reply::Done),
            Request::Events | Request::Switch { .. } | Request::Auto | Request::Probe { .. } => {
                Reply::Error("a server follows its clients, it has no paths to choose".into())
            }
        }
    }

    fn welcome(&self, peer: &Peer, version: u16) -> Welcome {
        let offer = self.offer.load();
        let addresses = peer.addresses.iter().map(|address| {
            let network = offer.networks.iter().find(|network| network.contains(address));
            let host = IpNet::from(*address);
            let prefix = network.map_or(host.prefix_len(), IpNet::prefix_len);
            Net(IpNet::new(*address, prefix).unwrap_or(host))
        });
        Welcome {
            version,
            software: SOFTWARE.into(),
            name: peer.name.as_str().into(),
            addresses: addresses.collect(),
            routes: offer.routes.iter().copied().map(Net).collect(),
            mtu: offer.mtu,
            unchecked: self.tun.completes_checksums(),
            dns: offer.dns.servers.iter().map(ToString::to_string).collect(),
            search_domains: offer.dns.domains.clone(),
            server_addresses: offer.networks.iter().map(|net| net.addr().to_string()).collect(),
        }
    }

    fn status(&self) -> Status {
        let peers = self.peers.load();
        let peers = peers.iter().map(|peer| PeerStatus {
            name: peer.name.clone(),
            public_key: peer.key.to_string(),
            addresses: peer.addresses.clone(),
            session: peer.session().map(|session| status::SessionStatus {
                remote: session.connection.remote_address(),
                since: status::seconds_ago(session.since),
                software: session.software,
                quic: status::QuicStatus::of(&session.connection),
            }),
            rival: peer.rival(),
            queued_bytes: peer.queue.bytes(),
            queue_delay: status::milliseconds(peer.queue.delay()),
            traffic: peer.counters.snapshot(),
        });
        Status::server(ServerStatus {
            listen: self.listen,
            interface: self.interface.clone(),
            left_out: self.left_out.borrow().clone(),
            uptime: status::seconds_ago(self.since),
            peers: peers.collect(),
            traffic: self.counters.snapshot(),
            send_errors: self.socket.send_errors(),
            receive_errors: self.socket.receive_errors(),
            refused_keys: self.handshakes.refused(),
        })
    }
}
