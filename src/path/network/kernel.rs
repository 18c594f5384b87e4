//! The kernel's networks.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;

use super::{Network, NetworkError};
use crate::{
    config::{Paths, ServerPeer},
    link::{
        MARK,
        candidate::{self, Candidate, Transport, Unusable, candidates, neighbours},
        monitor::Hints,
        neighbour::{self, Hardware},
        netlink::Netlink,
        portal,
    },
    path::{
        cut::{Cut, Cuts},
        meter::{Meters, Purpose},
        preference::Preferences,
        rank::LinkFacts,
        servers::Detours,
        tcp::{TcpSocket, Way, Ways},
        udp::UdpSocket,
    },
};

/// The kernel's links, routes and sockets, and who else leads to one server.
#[derive(Debug)]
pub struct KernelNetwork {
    kernel: Arc<Kernel>,
    ways: ArcSwapOption<Ways>,
}

/// What is the same for all servers.
#[derive(Debug)]
struct Kernel {
    netlink: Netlink,
    own: u32,
    metered: ArcSwap<HashSet<String>>,
    /// Links over which nothing is sent, since they have used up their budget.
    stopped: ArcSwap<BTreeSet<String>>,
    meters: Meters,
    dscp: u8,
    hints: Hints,
    cuts: Cuts,
}

impl KernelNetwork {
    /// All links but `own`, the tunnel itself. Packets are sent in the class `dscp`. `hints` tell of changes.
    #[must_use]
    pub fn new(netlink: Netlink, own: u32, dscp: u8, hints: Hints) -> Self {
        let (metered, stopped, meters, cuts) = Default::default();
        let kernel = Kernel { netlink, own, metered, stopped, meters, dscp, hints, cuts };
        Self { kernel: kernel.into(), ways: ArcSwapOption::default() }
    }

    /// Replaces the set of links that are metered in addition to those that the user lists.
    pub fn meter(&self, metered: HashSet<String>) {
        self.kernel.metered.store(Arc::new(metered));
    }

    /// Replaces the set of links over which nothing may be sent.
    pub(crate) fn stop(&self, links: BTreeSet<String>) {
        self.kernel.stopped.store(Arc::new(links));
    }

    /// What the links carry.
    pub(crate) fn meters(&self) -> &Meters {
        &self.kernel.meters
    }
}

impl From<rtnetlink::Error> for NetworkError {
    fn from(error: rtnetlink::Error) -> Self {
        Self(error.into())
    }
}

impl Network for KernelNetwork {
    fn candidates<'a>(
        &'a self,
        servers: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        Box::pin(async move {
            let Kernel { netlink, own, metered, stopped, .. } = &*self.kernel;
            let (preferences, metered) = (Preferences::new(paths), metered.load_full());
            let mut found = Vec::new();
            for candidate in candidates(netlink, servers, *own).await? {
                if stopped.load().contains(&candidate.link) {
                    continue;
                }
                let is_metered = metered.contains(&candidate.link);
                if let Some(facts) = preferences.facts(&candidate, is_metered) {
                    found.push((candidate, facts));
                }
            }
            Ok(found)
        })
    }

    fn neighbours<'a>(
        &'a self,
        home: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        Box::pin(async move {
            let Kernel { netlink, own, .. } = &*self.kernel;
            let preferences = Preferences::new(paths);
            let mut found = Vec::new();
            for candidate in neighbours(netlink, home, *own).await? {
                if let Some(facts) = preferences.at_home(&candidate) {
                    found.push((candidate, facts));
                }
            }
            Ok(found)
        })
    }

    fn hardware<'a>(&'a self, candidate: &'a Candidate) -> BoxFuture<'a, Option<Hardware>> {
        Box::pin(neighbour::own(&self.kernel.netlink, candidate.index))
    }

    fn router(
        &self,
        link: u32,
        address: IpAddr,
    ) -> BoxFuture<'_, Result<Option<Hardware>, NetworkError>> {
        Box::pin(async move { Ok(neighbour::on(&self.kernel.netlink, link, address).await?) })
    }

    fn unusable<'a>(
        &'a self,
        servers: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(String, Unusable)>, NetworkError>> {
        Box::pin(async move {
            let preferences = Preferences::new(paths);
            let is_ignored = |link: &str| preferences.ignores(link);
            let Kernel { netlink, own, stopped, .. } = &*self.kernel;
            let mut unusable = candidate::unusable(netlink, servers, *own, is_ignored).await?;
            let stopped = stopped.load_full();
            if !stopped.is_empty() {
                let found = candidates(netlink, servers, *own).await?;
                let found: BTreeSet<_> = found.into_iter().map(|it| it.link).collect();
                let stopped = found.into_iter().filter(|link| stopped.contains(link));
                unusable.extend(stopped.map(|link| (link, Unusable::OverBudget)));
            }
            Ok(unusable)
        })
    }

    fn portal<'a>(&'a self, candidate: &'a Candidate) -> BoxFuture<'a, bool> {
        // Who stands before a proxy is not asked: its own pages are none of ours.
        let is_server = !candidate.transport.is_detour();
        Box::pin(async move { is_server && portal::is_suspected(candidate, MARK).await })
    }

    fn bind(&self, candidate: &Candidate, purpose: Purpose) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let Candidate { link, source, server, transport, .. } = candidate;
        let (local, link) = (SocketAddr::new(*source, 0), Some(link.as_str()));
        let dscp = self.kernel.dscp;
        let socket: Arc<dyn AsyncUdpSocket> = match transport {
            Transport::Udp => UdpSocket::bind(local, link, dscp, Some(MARK))?,
            Transport::Tcp | Transport::Proxy | Transport::Relay => {
                let way = match (transport, &*self.ways.load()) {
                    (Transport::Tcp, _) => Some(Way::Direct),
                    (_, ways) => ways.as_ref().and_then(|it| it.over(*transport, *server)),
                };
                let way = way.ok_or(io::ErrorKind::Unsupported)?;
                TcpSocket::open(local, *server, way, link, dscp, Some(MARK))?
            }
        };
        Ok(self.kernel.meters.count(socket, candidate, purpose))
    }

    fn towards(&self) -> Option<Arc<dyn Network>> {
        Some(Arc::new(Self { kernel: self.kernel.clone(), ways: ArcSwapOption::default() }))
    }

    fn lead_to(&self, server: &ServerPeer, detours: Arc<Detours>) {
        let before = self.ways.load_full();
        self.ways.store(Some(Arc::new(Ways::new(server, detours, before.as_deref()))));
    }

    fn cut(&self, link: &str) -> Cut {
        self.kernel.cuts.of(link)
    }

    fn hints(&self) -> Hints {
        self.kernel.hints.again()
    }
}
