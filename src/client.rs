//! The client: one TUN device that stays, and the connection of the day.

pub mod dial;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use ipnet::IpNet;
use quinn::{ApplicationClose, Connection, ConnectionError, Endpoint};
use tracing::{debug, info, warn};

use self::dial::{DialError, Dialed, Dialer, Underlay};
use crate::{
    config::ClientConfig,
    control::{self, Instance},
    identity::PublicKey,
    link::candidate::Candidate,
    netlink::Netlink,
    path::socket::PathId,
    quic::{self, close},
    session::{self, SessionError},
    shutdown,
    status::{self, ClientState, ClientStatus, PathStatus, QuicStatus, SessionStatus, Status},
    tunnel::{
        counters::{Counters, Drop},
        device::{BATCH, PacketSink as _, PacketSource, Tun, TunWriter},
        interface::Interface,
        packet, pump,
        queue::Queue,
    },
    wire::control::{Net, Welcome},
};

/// Bytes that wait for the connection at most; at 100 Mbit/s some 80 ms.
const QUEUE: usize = 1024 * 1024;
/// From the first failed attempt to the next, doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// A server that restarts is found again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A session that lasted so long was a success: the next attempt after it is made at once.
const STABLE: Duration = Duration::from_secs(10);
/// How long the server may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// How long the server has to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// An end that trying again would not change.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The server does not know our key.
    #[error(
        "the server refused this client's key. Add this to the server's configuration:\n\n\
         [[peer]]\nname = \"a name of your choice\"\npublic-key = \"{0}\"\n\
         addresses = [\"an unused address of the tunnel's network\"]\n"
    )]
    UnknownKey(PublicKey),
    /// The server speaks another version of the protocol.
    #[error("{0}; upgrade the older side")]
    Version(String),
    /// The server is not the one that we want.
    #[error("{0}")]
    WrongServer(DialError),
}

/// Why a session, or the attempt at one, ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the server did not greet")]
    NoGreeting,
    #[error("connection lost: {0}")]
    Lost(ConnectionError),
}

struct Client {
    key: PublicKey,
    dialer: Dialer,
    tun: TunWriter,
    queue: Queue,
    counters: Counters,
    own_routes: Option<Vec<IpNet>>,
    own_mtu: u16,
    interface_name: String,
    since: SystemTime,
    sessions: AtomicU64,
    shown: Mutex<Shown>,
}

/// What `status` shows beyond counters.
struct Shown {
    state: ClientState,
    last_error: Option<String>,
    mtu: u16,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    line: Option<Line>,
}

/// The connection of the day.
struct Line {
    connection: Connection,
    endpoint: Endpoint,
    socket: Arc<crate::path::socket::PathSocket>,
    path: PathId,
    candidate: Candidate,
    software: String,
    since: SystemTime,
}

/// Runs the client until the process is told to stop or the server refuses it.
pub async fn run(config: ClientConfig, instance: Instance) -> anyhow::Result<()> {
    let ClientConfig { private_key, server, tun, quic, .. } = config;
    let stop = shutdown::signal()?;
    let device = Tun::create(&tun.name, tun.mtu)
        .with_context(|| format!("can't create TUN device {}", tun.name))?;
    let mut interface = Interface::up(Netlink::open()?, &tun.name, tun.mtu).await?;
    let client = Arc::new(Client {
        key: private_key.public_key(),
        dialer: Dialer::new(
            &private_key,
            server,
            quic::transport(&quic, tun.mtu),
            Netlink::open()?,
            interface.index(),
        )?,
        tun: device.writer(),
        queue: Queue::new(QUEUE),
        counters: Counters::default(),
        own_routes: tun.routes,
        own_mtu: tun.mtu,
        interface_name: tun.name,
        since: SystemTime::now(),
        sessions: AtomicU64::default(),
        shown: Mutex::new(Shown {
            state: ClientState::Connecting,
            last_error: None,
            mtu: tun.mtu,
            addresses: Vec::new(),
            routes: Vec::new(),
            line: None,
        }),
    });
    let _control = control::serve(&instance, {
        let client = client.clone();
        move || client.status()
    })?;
    info!(interface = client.interface_name, key = %client.key, "starting");
    tokio::select! {
        ended = client.stay_connected(&mut interface) => ended,
        error = read_tun(&client, device.reader()) => {
            Err(error).with_context(|| format!("TUN device {} is gone", client.interface_name))
        }
        signal = stop => {
            info!(signal, "stopping");
            client.goodbye().await;
            Ok(())
        }
    }
}

/// Moves packets from the TUN device to the queue; returns when the device is gone.
async fn read_tun(client: &Client, mut source: impl PacketSource) -> std::io::Error {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if let Err(error) = source.recv(&mut batch).await {
            return error;
        }
        let dropped = client.queue.push(&mut batch);
        client.counters.dropped(Drop::QueueFull, dropped);
    }
}

impl Client {
    /// Connects, for ever. Returns only what trying again would not change.
    async fn stay_connected(&self, interface: &mut Interface) -> anyhow::Result<()> {
        let mut pauses = pauses();
        loop {
            let begun = SystemTime::now();
            self.show(|shown| shown.state = ClientState::Connecting);
            let ended = self.connect(interface).await?;
            self.show(|shown| {
                shown.state = ClientState::Waiting;
                shown.last_error = Some(ended.to_string());
                shown.line = None;
            });
            let ended = self.unless_fatal(ended)?;
            if begun.elapsed().is_ok_and(|lasted| lasted >= STABLE) {
                pauses = self::pauses();
            }
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            warn!(reason = %ended, pause = %milliseconds(pause), "not connected");
            control::report(&format!("not connected: {ended}"));
            tokio::time::sleep(pause).await;
        }
    }

    /// One session, from the first attempt to its end. An error is one of this machine's.
    async fn connect(&self, interface: &mut Interface) -> anyhow::Result<Ended> {
        let Dialed { connection, mut underlay, path, candidate } = match self.dialer.dial().await {
            Ok(dialed) => dialed,
            Err(error) => return Ok(error.into()),
        };
        let greeted = tokio::time::timeout(GREETING, session::open(&connection)).await;
        let (_control, welcome) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return Ok(error.into()),
            Err(_elapsed) => return Ok(Ended::NoGreeting),
        };
        self.set_up(interface, &welcome).await?;
        info!(
            link = candidate.link,
            local = %candidate.source,
            server = %candidate.server,
            rtt = %milliseconds(connection.rtt()),
            name = welcome.name,
            addresses = ?interface.addresses(),
            "connected"
        );
        control::ready(&format!("connected to {} over {}", candidate.server, candidate.link));
        self.sessions.fetch_add(1, Relaxed);
        self.show(|shown| {
            shown.state = ClientState::Connected;
            shown.line = Some(Line {
                connection: connection.clone(),
                endpoint: underlay.endpoint().clone(),
                socket: underlay.socket().clone(),
                path,
                candidate,
                software: welcome.software,
                since: SystemTime::now(),
            });
        });
        let lost = tokio::select! {
            lost = pump::uplink(&connection, &self.queue, &self.counters) => lost,
            lost = pump::downlink(&connection, &self.counters, |batch| self.deliver(batch)) => lost,
            () = report_errors(&mut underlay) => connection.closed().await,
        };
        Ok(Ended::Lost(lost))
    }

    /// Gives the interface what the server says belongs to it.
    async fn set_up(&self, interface: &mut Interface, welcome: &Welcome) -> anyhow::Result<()> {
        let addresses: Vec<_> = welcome.addresses.iter().map(|Net(net)| *net).collect();
        let mtu = self.own_mtu.min(welcome.mtu);
        interface.set_mtu(mtu).await?;
        interface.set_addresses(&addresses).await?;
        interface.set_routes(&self.routes(welcome)).await?;
        self.show(|shown| {
            shown.mtu = mtu;
            shown.addresses = interface.addresses().to_vec();
            shown.routes = interface.routes().to_vec();
        });
        Ok(())
    }

    /// Our own routes, or the server's where we name none. A server may not take all traffic on its
    /// own account, and routes need an inner address of their family.
    fn routes(&self, welcome: &Welcome) -> Vec<IpNet> {
        let offered: Vec<_> = welcome.routes.iter().map(|Net(net)| *net).collect();
        let wanted = match &self.own_routes {
            Some(own) => own.clone(),
            None => offered.into_iter().filter(|net| net.prefix_len() > 0).collect(),
        };
        let (routes, homeless): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|route| {
            welcome.addresses.iter().any(|Net(net)| net.addr().is_ipv4() == route.addr().is_ipv4())
        });
        for route in homeless {
            warn!(%route, "left out: the server gave this client no address of that family");
        }
        routes
    }

    fn deliver(&self, batch: &mut Vec<Bytes>) {
        let before = batch.len();
        batch.retain(|bytes| packet::addresses(bytes).is_some());
        self.counters.dropped(Drop::Malformed, (before - batch.len()) as u64);
        let bytes = batch.iter().map(|packet| packet.len() as u64).sum();
        self.counters.received.add(batch.len() as u64, bytes);
        self.counters.dropped(Drop::Device, self.tun.send(batch));
    }

    /// Tells ends for which trying again is worth while from those for which it is not.
    ///
    /// Only what the server said after it proved its key can be believed: its refusals. A wrong key
    /// or protocol can come from anybody on the way, so it ends only a client that never met its
    /// server, which is most likely misconfigured.
    fn unless_fatal(&self, ended: Ended) -> Result<Ended, Fatal> {
        let never_met = self.sessions.load(Relaxed) == 0;
        match ended {
            Ended::Dial(
                error @ (DialError::WrongServerKey { .. } | DialError::NotRoamd { .. }),
            ) if never_met => Err(Fatal::WrongServer(error)),
            Ended::Session(error @ SessionError::Version { .. }) => {
                Err(Fatal::Version(error.to_string()))
            }
            Ended::Session(SessionError::Connection(ConnectionError::ApplicationClosed(
                ref closed,
            )))
            | Ended::Lost(ConnectionError::ApplicationClosed(ref closed)) => {
                self.unless_refused(closed).map(|()| ended)
            }
            other => Ok(other),
        }
    }

    fn unless_refused(&self, closed: &ApplicationClose) -> Result<(), Fatal> {
        match closed.error_code {
            close::UNKNOWN_KEY => Err(Fatal::UnknownKey(self.key)),
            close::VERSION => {
                Err(Fatal::Version(String::from_utf8_lossy(&closed.reason).into_owned()))
            }
            _ => Ok(()),
        }
    }

    async fn goodbye(&self) {
        let line = self.shown.lock().unwrap_or_else(PoisonError::into_inner).line.take();
        if let Some(line) = line {
            line.connection.close(close::GOODBYE, b"the client stops");
            let _ = tokio::time::timeout(GOODBYE, line.endpoint.wait_idle()).await;
        }
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn status(&self) -> Status {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        Status::client(ClientStatus {
            state: shown.state,
            interface: self.interface_name.clone(),
            addresses: shown.addresses.clone(),
            routes: shown.routes.clone(),
            mtu: shown.mtu,
            uptime: status::seconds_ago(self.since),
            sessions: self.sessions.load(Relaxed),
            last_error: shown.last_error.clone(),
            session: shown.line.as_ref().map(Line::session),
            paths: shown.line.iter().filter_map(Line::path).collect(),
            queued_bytes: self.queue.bytes(),
            traffic: self.counters.snapshot(),
        })
    }
}

impl Line {
    fn session(&self) -> SessionStatus {
        SessionStatus {
            remote: self.candidate.server,
            since: status::seconds_ago(self.since),
            software: self.software.clone(),
            quic: QuicStatus::of(&self.connection),
        }
    }

    fn path(&self) -> Option<PathStatus> {
        let stats = self.socket.stats(self.path)?;
        Some(PathStatus {
            link: self.candidate.link.clone(),
            local: self.candidate.source,
            server: self.candidate.server,
            active: self.socket.active() == Some(self.path),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            errors: stats.errors,
            last_heard: stats.last_heard.map(status::rounded),
        })
    }
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

/// Logs what goes wrong on the paths until there is none left.
async fn report_errors(underlay: &mut Underlay) {
    while let Some(error) = underlay.errors.recv().await {
        debug!(path = %error.path, error = %error.error, "path error");
    }
}
