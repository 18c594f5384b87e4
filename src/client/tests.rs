//! A client without a machine: links, host and server in memory, in virtual time.

pub(super) mod session;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use quinn::AsyncUdpSocket;
use tokio::sync::{mpsc, watch};

use super::{Client, plan::tests::tun};
use crate::{
    clock,
    config::{
        ClientConfig, Congestion, Filter, HomeMode, HostPort, Log, LogFormat, Paths, Quic,
        ServerPeer,
    },
    host::{HostError, Layout, Reports, Setup, facts::Facts, interface::LeftOut},
    identity::PrivateKey,
    link::{
        candidate::{Candidate, Transport, Unusable},
        monitor::Hints,
        neighbour::Hardware,
    },
    path::{
        meter::Purpose,
        network::{Network, NetworkError},
        preference::Preferences,
        rank::LinkFacts,
        udp::fake::FakeSocket,
    },
    tunnel::device::PacketSink,
};

pub(super) const SERVER: ([u8; 4], u16) = ([192, 0, 2, 1], 4433);

/// The configuration of a client whose server has one address, and offers what it likes.
pub(super) fn config() -> ClientConfig {
    let (private_key, server) = (PrivateKey::generate().unwrap(), SocketAddr::from(SERVER));
    let address = HostPort { host: server.ip().to_string(), port: server.port() };
    let public_key = PrivateKey::generate().unwrap().public_key();
    ClientConfig {
        private_key,
        servers: vec![ServerPeer {
            name: "berlin".into(),
            addresses: vec![address],
            public_key,
            tcp_port: None,
            proxy: None,
            relay: None,
            home: Vec::new(),
        }],
        home: HomeMode::Direct,
        tun: tun(None),
        paths: Paths {
            probe_timeout: Duration::from_secs(5),
            standby_check: Some(Duration::from_secs(15)),
            metered_copies: 64 << 10,
            metered_reserve: false,
            prefer: Vec::new(),
            ignore: Vec::new(),
        },
        quic: Quic {
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            congestion: Congestion::Cubic,
            dscp: 0,
        },
        log: Log { level: Filter::default(), format: LogFormat::Text },
        metrics: None,
    }
}

pub(super) fn candidate(link: &str, index: u32) -> Candidate {
    Candidate {
        link: link.into(),
        index,
        source: [10, 0, 0, 2].into(),
        router: None,
        metric: 100,
        server: SERVER.into(),
        transport: Transport::Udp,
    }
}

/// Links whose sockets lead nowhere.
#[derive(Debug, Default)]
pub(super) struct FakeNetwork {
    pub(super) candidates: Mutex<Vec<Candidate>>,
    /// Links that carry nothing.
    pub(super) unused: Mutex<Vec<(String, Unusable)>>,
    pub(super) hints: watch::Sender<()>,
    pub(super) sockets: Mutex<Vec<(String, Weak<FakeSocket>)>>,
    /// When a socket was wanted on which link.
    pub(super) bound: Mutex<Vec<(String, Instant)>>,
    /// Links on which no socket can be opened.
    pub(super) broken: Mutex<Vec<String>>,
    /// Links behind a captive portal.
    pub(super) portals: Mutex<Vec<String>>,
    /// How long the answer takes whether they are.
    pub(super) portals_take: Mutex<Duration>,
    /// Links of which somebody asked whether they are.
    pub(super) asked: Mutex<Vec<String>>,
    /// What the next questions are answered which machine a router is; after them, that it is none.
    pub(super) machines: Mutex<VecDeque<Result<Option<Hardware>, NetworkError>>>,
    /// The routers of which somebody asked.
    pub(super) asked_routers: Mutex<Vec<(u32, IpAddr)>>,
}

impl FakeNetwork {
    /// A network of these links, by their indices from 1 on.
    pub(super) fn of(links: &[&str]) -> Arc<Self> {
        let network = Self::default();
        network.have(links);
        Arc::new(network)
    }

    /// Has these links from now on, and hints at it.
    pub(super) fn have(&self, links: &[&str]) {
        let found = (1..).zip(links).map(|(index, link)| candidate(link, index));
        *self.candidates.lock().unwrap() = found.collect();
        self.hints.send_replace(());
    }

    /// The links on which sockets were wanted, and how many milliseconds after `begun`.
    pub(super) fn bound_since(&self, begun: Instant) -> Vec<(String, u128)> {
        let bound = self.bound.lock().unwrap();
        bound.iter().map(|(link, at)| (link.clone(), (*at - begun).as_millis())).collect()
    }
}

impl Network for FakeNetwork {
    fn candidates<'a>(
        &'a self,
        _: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        let (found, preferences) = (self.candidates.lock().unwrap(), Preferences::new(paths));
        let ranked = |candidate: &Candidate| {
            preferences.facts(candidate, false).map(|facts| (candidate.clone(), facts))
        };
        Box::pin(std::future::ready(Ok(found.iter().filter_map(ranked).collect())))
    }

    fn unusable<'a>(
        &'a self,
        _: &'a [SocketAddr],
        _: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(String, Unusable)>, NetworkError>> {
        Box::pin(std::future::ready(Ok(self.unused.lock().unwrap().clone())))
    }

    fn portal<'a>(&'a self, candidate: &'a Candidate) -> BoxFuture<'a, bool> {
        self.asked.lock().unwrap().push(candidate.link.clone());
        let is_portal = self.portals.lock().unwrap().contains(&candidate.link);
        let takes = *self.portals_take.lock().unwrap();
        Box::pin(tokio::time::sleep(takes).map(move |()| is_portal))
    }

    fn router(
        &self,
        link: u32,
        address: IpAddr,
    ) -> BoxFuture<'_, Result<Option<Hardware>, NetworkError>> {
        self.asked_routers.lock().unwrap().push((link, address));
        let answer = self.machines.lock().unwrap().pop_front().unwrap_or(Ok(None));
        Box::pin(std::future::ready(answer))
    }

    fn bind(&self, candidate: &Candidate, _: Purpose) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let shown = match candidate.transport {
            Transport::Udp => candidate.link.clone(),
            transport => format!("{} {transport}", candidate.link),
        };
        self.bound.lock().unwrap().push((shown, clock::now()));
        if self.broken.lock().unwrap().contains(&candidate.link) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let socket = FakeSocket::new("10.0.0.2:1000");
        let bound = (candidate.link.clone(), Arc::downgrade(&socket));
        self.sockets.lock().unwrap().push(bound);
        Ok(socket)
    }

    fn hints(&self) -> Hints {
        Hints::of(&self.hints)
    }
}

/// A host that remembers what was wanted of it.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeHost(Arc<Mutex<Wishes>>);

#[derive(Debug, Default)]
struct Wishes {
    layouts: Vec<Layout>,
    /// Whether each of the next wishes is refused; those after them are not.
    refusals: VecDeque<bool>,
}

impl FakeHost {
    /// Does or refuses so each of the next wishes.
    pub(super) fn refuse(&self, refusals: &[bool]) {
        self.0.lock().unwrap().refusals.extend(refusals);
    }

    /// What was wanted since the last call.
    pub(super) fn wishes(&self) -> Vec<Layout> {
        std::mem::take(&mut self.0.lock().unwrap().layouts)
    }
}

impl Setup for FakeHost {
    async fn set(&mut self, layout: Layout) -> Result<(), HostError> {
        let mut wishes = self.0.lock().unwrap();
        wishes.layouts.push(layout);
        let refused = wishes.refusals.pop_front().unwrap_or_default();
        if refused { Err(HostError::Gone) } else { Ok(()) }
    }
}

/// What a host reports, and the reports.
pub(super) fn reports() -> (watch::Sender<Facts>, watch::Sender<Vec<LeftOut>>, Reports) {
    let (facts, left_out) = (watch::Sender::default(), watch::Sender::default());
    let reports = Reports { facts: facts.subscribe(), left_out: left_out.subscribe() };
    (facts, left_out, reports)
}

/// A client that nothing drives yet.
pub(super) fn client(config: ClientConfig, network: Arc<dyn Network>) -> Client {
    client_on(config, network, Reports::default())
}

/// The same on a host that reports something.
pub(super) fn client_on(
    config: ClientConfig,
    network: Arc<dyn Network>,
    reports: Reports,
) -> Client {
    let device: Box<dyn PacketSink> = Box::new(mpsc::channel(1).0);
    Client::new(Arc::new(config), network, device, reports).unwrap()
}
