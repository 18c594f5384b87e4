//! The server: one socket of one or several ports, one TUN device, and a session for each peer.
//!
//! ```text
//!  TUN ─▶ Peers::route ─▶ the peer's queue ─▶ pump::uplink ─▶ its connection
//!  TUN ◀─ Peers::deliver ◀─ pump::downlink ◀─ its connection
//!             └─▶ another peer's queue
//! ```

mod accept;
mod bounded_connections;
mod drain;
pub(crate) mod fallback;
pub(crate) mod gate;
pub(crate) mod handshake;
mod holding;
mod offer;
pub(crate) mod peers;
mod reload;
mod rivals;
mod session;
pub(crate) mod silence;
pub(crate) mod socket;
pub(crate) mod streams;
pub(crate) mod tcp;
#[cfg(test)]
mod tests;
mod vicinity;
mod view;

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use quinn::{AsyncUdpSocket, Endpoint, TokioRuntime};
use tokio::sync::watch;
use tracing::info;

use self::{
    accept::{Acceptor, accept, quinn_config},
    drain::Drain,
    handshake::HandshakeLimiter,
    reload::Configured,
    socket::ServerSocket,
    streams::Streams,
    tcp::{Port, Visitors},
};
#[cfg(feature = "etcd")]
use crate::fleet::{etcd::Store, keeper::Keeper};
use crate::{
    clock,
    config::ServerConfig,
    daemon::{
        Daemon,
        control::{self, Reply, Request},
        events::Events,
        signals::Stops,
        systemd::{self, Heart},
    },
    fleet::{directory::Directory, tickets},
    host::{
        device::TunDevice,
        interface::{self, Interface, LeftOut},
        nat::Nat,
        peer_routes::{Held, PeerRoutes},
    },
    link::{monitor::Monitor, neighbour::Neighbours, netlink::Netlink},
    mutex::Mutex,
    path::udp::UdpSocket,
    quic::{self, close, tls::ServerTls},
    task::apart,
    tunnel::{
        counters::Counters,
        device::{PacketSink, PacketSource},
        ingress,
    },
};

/// How long clients have to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The server, apart from this machine's device and signals.
pub(crate) struct Server {
    acceptor: Acceptor,
    /// The configuration in force, see [`reload`].
    configured: watch::Sender<Configured>,
    /// Held while another one takes its place.
    renewing: Mutex<()>,
    events: Events,
    tun: Box<dyn PacketSink>,
    interface: String,
    /// What the kernel refuses to the interface.
    left_out: watch::Receiver<Vec<LeftOut>>,
    /// The addresses that this host has routes to, if it is to have such.
    held: Option<Held>,
    /// Where several servers share their peers: which of them has whose session, and the etcd that tells. The store lasts
    /// as long as the server, since it remembers which members do not answer.
    #[cfg(feature = "etcd")]
    keeper: Option<(Keeper, Store)>,
    socket: Arc<ServerSocket>,
    /// Who is on the links of this host; before it is set nobody is.
    neighbours: OnceLock<Box<dyn Neighbours>>,
    handshakes: HandshakeLimiter,
    drain: Drain,
    /// Connections that were refused since they offered another protocol.
    other_protocols: AtomicU64,
    visitors: Visitors,
    /// What concerns no single peer.
    counters: Counters,
    since: SystemTime,
}

/// Runs the server until the process is told to stop.
pub(crate) async fn run(config: ServerConfig, daemon: Daemon) -> anyhow::Result<()> {
    let mut stops = Stops::listen()?;
    let monitor = Monitor::open().context("cannot hear of network changes")?;
    let tun = &config.tun;
    let TunDevice { tun: device, .. } = daemon.tun(&tun.name, tun.mtu, tun.offload)?;
    let mut interface = Interface::up(Netlink::open_strict()?, &tun.name, tun.mtu).await?;
    // Routes of an earlier run are removed before anything else can fail: routers send packets along them.
    let mut routes = PeerRoutes::new(Netlink::open_strict()?, interface.index()).await;
    interface.set(tun.mtu, &tun.addresses, &[]).await?;
    let (index, left_out) = (interface.index(), interface.left_out());
    let mut udp: Vec<Arc<dyn AsyncUdpSocket>> = Vec::new();
    for listen in &config.listen {
        let socket = UdpSocket::bind(*listen, None, config.quic.dscp, None);
        udp.push(socket.with_context(|| format!("cannot listen on {listen}"))?);
    }
    let port = config.listen_tcp.map(|listen| {
        Port::bind(listen, config.quic.dscp)
            .with_context(|| format!("cannot listen on {listen} (TCP)"))
    });
    let port = port.transpose()?;
    let directory = Directory::open(
        config.directory.as_ref(),
        &daemon.instance,
        config.private_key.public_key(),
        &tun.addresses,
    );
    let directory = directory.await;
    let known = directory.as_ref().map(Directory::known);
    let (nat, tun) = (Nat::new(daemon.record.clone()), tun.clone());
    let fleet = config.directory.clone();
    let key = config.private_key.public_key();
    #[cfg(feature = "metrics")]
    let metrics = config.metrics.clone();
    let (server, endpoint) = Server::new(config, udp, Box::new(device.writer()), left_out)?;
    server.knows(Box::new(Netlink::open()?));
    let _tickets = tickets::open(fleet.as_ref(), &server.acceptor.tls);
    if let Some(known) = &known {
        server.heed(known.borrow().clone());
    }
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
        listen = server.addresses(),
        interface = server.interface,
        peers = server.configured.borrow().peers.iter().count(),
        %key,
        "listening"
    );
    systemd::ready(&server.listening());
    // It outlives the connections, whose goodbyes go through it.
    let _port = port.map(|port| tcp::spawn(&server, port));
    let heart = Heart::default();
    let ended = tokio::select! {
        ended = apart(server.carry(device.reader(), &endpoint)) => ended,
        failed = apart(daemon.hangups(|| std::future::ready(server.reload(&daemon)))) => {
            failed.map(|never| match never {})
        }
        never = apart(server.follow(known)) => match never {},
        never = apart(systemd::watchdog(&heart)) => match never {},
        never = apart(beat(&heart, &endpoint)) => match never {},
        never = apart(interface.keep(monitor.hints())) => match never {},
        never = apart(server.keep_claims()) => match never {},
        never = apart(routes.run(server.held.as_ref(), monitor.hints())) => match never {},
        deleted = apart(interface::deleted(index, monitor.hints())) => {
            deleted?;
            Err(anyhow::anyhow!("TUN device {} is gone: somebody deleted it", server.interface))
        }
        // The goodbye comes before the connections' tasks are dropped: a connection that nobody holds is closed
        // without a word.
        () = apart(server.drained(&mut stops)).map(|()| endpoint.close(close::GOODBYE, b"the server stops")) => {
            let goodbye = tokio::time::timeout(GOODBYE, endpoint.wait_idle());
            // What is sent to the peers from here on may go to another server at once.
            let (_, (), ()) = tokio::join!(goodbye, routes.remove(), server.give_up_claims());
            Ok(())
        }
    };
    routes.remove().await;
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

impl Server {
    pub(crate) fn new(
        config: ServerConfig,
        udp: Vec<Arc<dyn AsyncUdpSocket>>,
        device: Box<dyn PacketSink>,
        left_out: watch::Receiver<Vec<LeftOut>>,
    ) -> anyhow::Result<(Arc<Self>, Endpoint)> {
        let held = config.tun.peer_routes.then(Held::default);
        #[cfg(feature = "etcd")]
        let keeper = config.directory.as_ref().map(|it| {
            let keeper = Keeper::new(config.private_key.public_key(), &it.name);
            (keeper, Store::new(&it.etcd))
        });
        let ServerConfig { private_key, tun, quic, .. } = &config;
        let (private_key, interface) = (private_key.clone(), tun.name.clone());
        let (mtu, quic) = (tun.mtu, quic.clone());
        let streams = config.listen_tcp.map(|_| Streams::new());
        let socket = ServerSocket::with_streams(udp, streams)?;
        let (configured, in_force) = watch::channel(Configured::new(config));
        let is_peer = move |key| in_force.borrow().peers.with_key(key).is_some();
        let tls = ServerTls::new(&private_key, is_peer)?;
        let base = quinn_config(&private_key, &tls)?;
        let acceptor = Acceptor { base, tls, quic, mtu };
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::server_endpoint(&private_key),
            Some(acceptor.base.clone()),
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        let server = Self {
            acceptor,
            configured,
            renewing: Mutex::default(),
            events: Events::default(),
            tun: device,
            interface,
            left_out,
            held,
            #[cfg(feature = "etcd")]
            keeper,
            socket,
            neighbours: OnceLock::new(),
            handshakes: HandshakeLimiter::default(),
            drain: Drain::default(),
            other_protocols: AtomicU64::default(),
            visitors: Visitors::default(),
            counters: Counters::default(),
            since: clock::wall(),
        };
        Ok((Arc::new(server), endpoint))
    }

    /// Learns who is on the links of this host.
    pub(crate) fn knows(&self, neighbours: Box<dyn Neighbours>) {
        let _ = self.neighbours.set(neighbours);
    }

    /// Carries packets between `source` and the peers, for ever; returns when one of its ends is gone.
    pub(crate) async fn carry(
        self: &Arc<Self>,
        source: impl PacketSource,
        endpoint: &Endpoint,
    ) -> anyhow::Result<()> {
        let read = ingress::run(source, &self.counters, |batch| {
            self.configured.borrow().peers.route(batch, &self.counters);
        });
        tokio::select! {
            () = apart(accept(self, endpoint)) => anyhow::bail!("the QUIC endpoint stopped"),
            error = apart(read) => {
                Err(error).with_context(|| format!("TUN device {} is gone", self.interface))
            }
        }
    }

    /// Where it listens.
    fn addresses(&self) -> String {
        let (first, further) = self.socket.addresses();
        further.fold(first.to_string(), |listed, next| format!("{listed}, {next}"))
    }

    /// What it tells systemd while it serves.
    fn listening(&self) -> String {
        format!("listening on {}", self.addresses())
    }

    /// Answers a request on the control socket.
    fn answer(&self, request: &Request, daemon: &Daemon) -> Reply {
        match request {
            Request::Status => Reply::Ok(Box::new(self.status())),
            Request::Reload => self.reload(daemon).map_or_else(Reply::Error, Reply::Done),
            Request::Drain { seconds } => self.begin_drain(*seconds),
            Request::DrainCancel => self.cancel_drain(),
            Request::Usage => Reply::Error("a server does not pay for links; a client does".into()),
            Request::Events
            | Request::Switch { .. }
            | Request::SwitchServer { .. }
            | Request::Auto
            | Request::AutoLink
            | Request::Probe { .. }
            | Request::Pause { .. }
            | Request::Resume
            | Request::Cut { .. } => {
                Reply::Error("a server follows its clients, it has no paths to choose".into())
            }
        }
    }
}
