//! The client: one TUN device that stays, and the connection of the day.
//!
//! ```text
//!  TUN ─▶ queue ─▶ pump::uplink ─▶ connection        Dialer: names, links, race ─▶ connection
//!  TUN ◀────────── pump::downlink ◀─ connection      Ended: temporary or fatal?
//! ```

pub mod dial;
pub mod fate;
pub mod links;
pub mod names;
pub(crate) mod order;
mod roam;
mod shown;

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use ipnet::IpNet;
use quinn::{Connection, ConnectionError};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use self::{
    dial::{DialError, Dialer},
    fate::Ended,
    links::Links,
    names::Names,
    order::{Order, What},
    roam::{Roamer, Roaming},
    shown::{Line, Shown},
};
use crate::{
    clock,
    config::{ClientConfig, ClientTun},
    control::{self, Instance, Reply, Request},
    identity::PublicKey,
    netlink::Netlink,
    path::{
        handshake::{Connected, Handshake, HandshakeError},
        manager::Settings,
        network::Network,
        preference::Preferences,
    },
    quic::{self, close, congestion::Handle},
    session, shutdown,
    status::Status,
    tls,
    tunnel::{
        counters::{Counters, Drop},
        device::{BATCH, PacketSink, PacketSource, Tun},
        interface::{self, Interface, Setup},
        pump,
        queue::Queue,
    },
    wire::{
        control::{Net, Welcome},
        packet::Packet,
    },
};

/// Bytes that wait for the connection, or for a path, at most.
const QUEUE: usize = 1024 * 1024;
/// From the first failed attempt to the next, doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// A server that restarts is found again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause where there is no route at all: the kernel tells when there is one, link, address and
/// route in close succession.
const NO_ROUTE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of packets that go with the first flight of a handshake: less than a fresh window holds.
const EARLY: usize = 8 * 1024;
/// After a session that lasted so long, the pauses begin anew.
const STABLE: Duration = Duration::from_secs(10);
/// How much more rarely a standby is asked where traffic costs money.
const METERED: u32 = 20;
/// How long the server may take to greet: a round trip, on the slowest link, and a lost packet or two. The
/// path may have died meanwhile, and until the session stands the connection does not move.
const GREETING: Duration = Duration::from_secs(3);
/// Orders from the control socket that wait.
const ORDERS: usize = 4;
/// How long the server has to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The client, apart from this machine's device, links and signals.
pub(crate) struct Client {
    key: PublicKey,
    dialer: Dialer,
    roaming: Roaming,
    tun: Box<dyn PacketSink>,
    queue: Queue,
    counters: Counters,
    own_routes: Option<Vec<IpNet>>,
    own_mtu: u16,
    interface: String,
    started: SystemTime,
    shown: Shown,
}

/// Runs the client until the process is told to stop or the server refuses it.
pub async fn run(config: ClientConfig, instance: Instance) -> anyhow::Result<()> {
    let stop = shutdown::signal()?;
    let tun = &config.tun;
    let device = Tun::create(&tun.name, tun.mtu, tun.offload)
        .with_context(|| format!("can't create TUN device {}", tun.name))?;
    let mut interface = Interface::up(Netlink::open()?, &tun.name, tun.mtu).await?;
    let preferences = Preferences::new(&config.paths);
    let network =
        Arc::new(Links::new(Netlink::open()?, interface.index(), preferences, config.quic.dscp));
    let client = Arc::new(Client::new(config, network, Box::new(device.writer()))?);
    let (orders, mut ordered) = mpsc::channel(ORDERS);
    let _control = control::serve(&instance, {
        let client = client.clone();
        move |request| client.clone().answer(request, orders.clone())
    })?;
    info!(interface = client.interface, key = %client.key, "starting");
    let deleted = interface::deleted(interface.index());
    tokio::select! {
        ended = client.carry(device.reader(), &mut interface, &mut ordered) => ended,
        deleted = deleted => {
            deleted?;
            anyhow::bail!("TUN device {} is gone: somebody deleted it", client.interface)
        }
        signal = stop => {
            info!(signal, "stopping");
            client.goodbye().await;
            Ok(())
        }
    }
}

impl Client {
    pub(crate) fn new(
        config: ClientConfig,
        network: Arc<dyn Network>,
        tun: Box<dyn PacketSink>,
    ) -> anyhow::Result<Self> {
        let ClientConfig {
            private_key,
            server,
            tun: ClientTun { name, mtu, routes, .. },
            paths,
            quic,
            ..
        } = config;
        let names = Arc::new(Names::new(server.addresses));
        let renewal = Handle::default();
        let handshake =
            |alpn, transport| Handshake::new(&private_key, server.public_key, alpn, transport);
        let tunnel = handshake(tls::TUNNEL, quic::transport(&quic, mtu, renewal.clone()))?;
        let roaming = Roaming {
            network: network.clone(),
            names: names.clone(),
            probes: handshake(tls::PROBE, quic::probe_transport())?,
            settings: Settings {
                probe_timeout: paths.probe_timeout,
                standby_check: paths.standby_check,
                metered_check: paths.standby_check.map(|check| METERED * check),
            },
            renewal,
        };
        Ok(Self {
            key: private_key.public_key(),
            dialer: Dialer::new(names, tunnel, network),
            roaming,
            tun,
            queue: Queue::new(QUEUE),
            counters: Counters::default(),
            own_routes: routes,
            own_mtu: mtu,
            interface: name,
            started: SystemTime::now(),
            shown: Shown::new(mtu),
        })
    }

    /// Carries packets from `source` to the server and back, for ever. Returns only what trying again
    /// would not change.
    pub(crate) async fn carry(
        &self,
        source: impl PacketSource,
        interface: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        tokio::select! {
            ended = self.stay_connected(interface, orders) => ended,
            error = self.read_tun(source) => {
                Err(error).with_context(|| format!("TUN device {} is gone", self.interface))
            }
        }
    }

    /// Moves packets from the TUN device to the queue; returns when the device is gone.
    async fn read_tun(&self, mut source: impl PacketSource) -> io::Error {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            match source.recv(&mut batch).await {
                Ok(malformed) => self.counters.dropped(Drop::Malformed, malformed),
                Err(error) => return error,
            }
            self.counters.dropped_by_queue(self.queue.push(&mut batch));
        }
    }

    /// Connects, for ever. Returns only what trying again would not change.
    async fn stay_connected(
        &self,
        interface: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        let (mut pauses, mut lost, mut told) = (pauses(), clock::now(), String::new());
        loop {
            let begun = clock::now();
            let sessions = self.shown.sessions();
            self.shown.connecting();
            let ended = self.connect(interface, orders, lost).await?;
            self.queue.hold(true);
            self.shown.waiting(ended.to_string());
            let ended = ended.unless_fatal(self.key, self.shown.sessions() == 0)?;
            if self.shown.sessions() > sessions {
                lost = clock::now();
                told.clear();
            }
            if clock::now().duration_since(begun) >= STABLE {
                pauses = self::pauses();
            }
            let reason = ended.to_string();
            if told == reason {
                debug!(reason, "not connected");
            } else {
                warn!(reason, "not connected");
                control::report(&format!("not connected: {reason}"));
                told = reason;
            }
            match ended {
                // The attempts had their own pace, or none was made since.
                Ended::Dial(DialError::Handshake(HandshakeError::TimedOut { .. }))
                | Ended::Lost(ConnectionError::TimedOut) => {}
                Ended::Dial(DialError::NoRoute(_)) => {
                    self.sleep_or_change(NO_ROUTE_PAUSE, LONGEST_PAUSE).await?;
                }
                _ => {
                    let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                    self.sleep_or_change(SHORTEST_PAUSE, pause).await?;
                }
            }
        }
    }

    /// Waits for `longest`, or less if a network changes, but for `shortest` at least.
    async fn sleep_or_change(&self, shortest: Duration, longest: Duration) -> io::Result<()> {
        let mut monitor = self.roaming.network.monitor()?;
        tokio::time::sleep(shortest).await;
        tokio::select! {
            () = tokio::time::sleep(longest.saturating_sub(shortest)) => {}
            () = monitor.hint() => debug!("a network changed: trying at once"),
        }
        Ok(())
    }

    /// Reaches the server, and lets what waits go with the first packet.
    async fn dial(&self, lost: Instant) -> Result<Connected, DialError> {
        let (taken, dropped) = self.queue.take_early(EARLY);
        self.counters.dropped_by_queue(dropped);
        let early = taken.datagrams();
        let dialed = self.dialer.dial(early.clone(), lost).await;
        if dialed.as_ref().is_ok_and(|connected| connected.early_arrived) {
            let bytes = early.iter().map(|packet| packet.len() as u64).sum();
            self.counters.sent.add(early.len() as u64, bytes);
        } else {
            self.queue.put_back(taken);
        }
        dialed
    }

    /// One session, from the first attempt to its end. An error is one of this machine's.
    async fn connect(
        &self,
        interface: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
        lost: Instant,
    ) -> anyhow::Result<Ended> {
        let connected = match self.dial(lost).await {
            Ok(dialed) => dialed,
            Err(error) => return Ok(error.into()),
        };
        let connection = connected.connection.clone();
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(GREETING, session::open(&connection, self.tun.completes_checksums())) => greeted,
            never = self.insist(&connection) => match never {},
        };
        let (control, welcome) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return Ok(error.into()),
            Err(_elapsed) => return Ok(Ended::NoGreeting),
        };
        self.set_up(interface, &welcome).await?;
        let candidate = &connected.candidate;
        info!(
            link = candidate.link,
            local = %candidate.source,
            server = %candidate.server,
            rtt = %milliseconds(connection.rtt()),
            resumed = connected.early_arrived,
            name = welcome.name,
            addresses = ?welcome.addresses.iter().map(|net| net.0).collect::<Vec<_>>(),
            "connected"
        );
        control::ready(&format!("connected to {} over {}", candidate.server, candidate.link));
        self.shown.connected(Line {
            connection: connection.clone(),
            endpoint: connected.underlay.endpoint().clone(),
            socket: connected.underlay.socket().clone(),
            software: welcome.software,
            since: SystemTime::now(),
        });
        let roamer =
            Roamer::new(&self.roaming, &self.shown, &self.queue, control, orders, connected);
        self.queue.hold(false);
        tokio::select! {
            lost = pump::uplink(&connection, &self.queue, &self.counters, welcome.unchecked) => Ok(Ended::Lost(lost)),
            lost = pump::downlink(&connection, &self.counters, |batch| self.deliver(batch)) => {
                Ok(Ended::Lost(lost))
            }
            failed = roamer.run() => failed.map(|never| match never {}),
        }
    }

    /// Makes QUIC repeat what it said at a steady pace, not ever more rarely: somebody waits.
    async fn insist(&self, connection: &Connection) -> Infallible {
        loop {
            tokio::time::sleep(quic::NUDGE).await;
            quic::nudge(connection, &self.roaming.renewal);
        }
    }

    /// Gives the interface what the server says belongs to it.
    async fn set_up(&self, interface: &mut impl Setup, welcome: &Welcome) -> anyhow::Result<()> {
        let addresses: Vec<_> = welcome.addresses.iter().map(|Net(net)| *net).collect();
        let mtu = self.own_mtu.min(welcome.mtu);
        let (routes, homeless) = routes(self.own_routes.as_deref(), welcome);
        for route in homeless {
            warn!(%route, "left out: the server gave this client no address of that family");
        }
        interface.set(mtu, &addresses, &routes).await?;
        self.shown.set_up(mtu, addresses, routes);
        Ok(())
    }

    fn deliver(&self, batch: &mut Vec<Packet>) {
        let before = batch.len();
        batch.retain(|packet| packet.addresses().is_some());
        self.counters.dropped(Drop::Malformed, (before - batch.len()) as u64);
        let bytes = batch.iter().map(|packet| packet.size() as u64).sum();
        self.counters.received.add(batch.len() as u64, bytes);
        self.counters.dropped(Drop::Device, self.tun.send(batch));
    }

    /// Answers a request on the control socket.
    async fn answer(self: Arc<Self>, request: Request, orders: mpsc::Sender<Order>) -> Reply {
        let what = match request {
            Request::Status => return Reply::Ok(Box::new(self.status())),
            Request::Switch { link, pin } => What::Switch { link, pin },
            Request::Auto => What::Auto,
            Request::Probe { link } => What::Probe { link },
        };
        if !self.shown.is_connected() {
            return Reply::Error("not connected, there are no paths to choose from".into());
        }
        let (reply, answer) = oneshot::channel();
        let sent = orders.send(Order { what, reply }).await;
        match answer.await {
            Ok(reply) if sent.is_ok() => reply,
            _ => Reply::Error("the connection was lost meanwhile".into()),
        }
    }

    async fn goodbye(&self) {
        if let Some(line) = self.shown.take_line() {
            line.connection.close(close::GOODBYE, b"the client stops");
            let _ = tokio::time::timeout(GOODBYE, line.endpoint.wait_idle()).await;
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (queued, traffic) = (self.queue.bytes(), self.counters.snapshot());
        Status::client(self.shown.status(&self.interface, self.started, queued, traffic))
    }
}

/// Our own routes, or the server's where we name none; and apart from them those for which we have
/// no inner address of their family. A server may not take all traffic on its own account.
fn routes(own: Option<&[IpNet]>, welcome: &Welcome) -> (Vec<IpNet>, Vec<IpNet>) {
    let offered = || welcome.routes.iter().map(|Net(net)| *net);
    let wanted = own
        .map_or_else(|| offered().filter(|net| net.prefix_len() > 0).collect(), <[IpNet]>::to_vec);
    wanted.into_iter().partition(|route| {
        welcome.addresses.iter().any(|Net(net)| net.addr().is_ipv4() == route.addr().is_ipv4())
    })
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(SHORTEST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A duration as people read it, without micro- and nanoseconds.
fn milliseconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(duration.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn welcome(addresses: &[&str], routes: &[&str]) -> Welcome {
        Welcome {
            version: 1,
            software: String::new(),
            name: String::new(),
            addresses: nets(addresses).into_iter().map(Net).collect(),
            routes: nets(routes).into_iter().map(Net).collect(),
            mtu: 1400,
            unchecked: true,
        }
    }

    #[test]
    fn own_routes_win_over_those_that_the_server_offers() {
        let welcome = welcome(&["10.66.0.2/24"], &["192.0.2.0/24"]);
        assert_eq!(routes(None, &welcome).0, nets(&["192.0.2.0/24"]));
        let own = nets(&["10.1.0.0/16"]);
        assert_eq!(routes(Some(&own), &welcome).0, own);
        assert_eq!(routes(Some(&[]), &welcome).0, []);
    }

    #[test]
    fn a_server_can_not_take_all_traffic_on_its_own_account() {
        let welcome = welcome(&["10.66.0.2/24", "fd66::2/64"], &["0.0.0.0/0", "::/0"]);
        assert_eq!(routes(None, &welcome), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_route_needs_an_inner_address_of_its_family() {
        let welcome = welcome(&["10.66.0.2/24"], &[]);
        let own = nets(&["10.1.0.0/16", "fd01::/64"]);
        let expected = (nets(&["10.1.0.0/16"]), nets(&["fd01::/64"]));
        assert_eq!(routes(Some(&own), &welcome), expected);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_never_end() {
        let pauses: Vec<_> = pauses().take(50).collect();
        assert!(pauses[0] >= SHORTEST_PAUSE && pauses[0] <= 2 * SHORTEST_PAUSE);
        assert!(pauses.iter().all(|pause| *pause <= 2 * LONGEST_PAUSE), "{pauses:?}");
        assert_eq!(pauses.len(), 50);
    }
}
