//! The machine's networks, as the client sees them: the kernel's, or simulated ones.

pub(crate) mod kernel;

use std::{
    error::Error,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;

use super::{cut::Cut, meter::Purpose, rank::LinkFacts, servers::Detours};
use crate::{
    config::{Paths, ServerPeer},
    link::{
        candidate::{Candidate, Transport, Unusable},
        monitor::Hints,
        neighbour::Hardware,
    },
};

/// Links and routes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read links and routes: {0}")]
pub struct NetworkError(pub Box<dyn Error + Send + Sync>);

/// Links, routes and sockets.
pub trait Network: fmt::Debug + Send + Sync {
    /// What could carry a path to one of `servers`, and what decides between them, as `paths` says.
    fn candidates<'a>(
        &'a self,
        servers: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>>;

    /// What could carry a path to one of the server's addresses `home` in its own network: links of that network alone.
    fn neighbours<'a>(
        &'a self,
        _home: &'a [SocketAddr],
        _paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// The hardware address of the candidate's link, if it has one.
    fn hardware<'a>(&'a self, _candidate: &'a Candidate) -> BoxFuture<'a, Option<Hardware>> {
        Box::pin(std::future::ready(None))
    }

    /// The hardware address of the router at this address of the link with this index, if it has one and has answered.
    fn router(
        &self,
        _link: u32,
        _address: IpAddr,
    ) -> BoxFuture<'_, Result<Option<Hardware>, NetworkError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The links that carry no path to any of `servers`, with the reason.
    fn unusable<'a>(
        &'a self,
        _servers: &'a [SocketAddr],
        _paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(String, Unusable)>, NetworkError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Whether a captive portal answers in the server's place.
    fn portal<'a>(&'a self, _candidate: &'a Candidate) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// The same links for another server: who leads to one of them is not asked for another.
    fn towards(&self) -> Option<Arc<dyn Network>> {
        None
    }

    /// Takes over who else leads to the server.
    fn lead_to(&self, _server: &ServerPeer, _detours: Arc<Detours>) {}

    /// A socket on the candidate's link and address alone.
    fn bind(&self, candidate: &Candidate, purpose: Purpose) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// The flag with which the link of this name is cut, for the sockets on it.
    fn cut(&self, _link: &str) -> Cut {
        Cut::default()
    }

    /// Hints of changes after which [`Self::candidates`] is to be read again.
    fn hints(&self) -> Hints;
}

/// Who leads to the server over one transport, and where.
pub(crate) type Detour = (Transport, SocketAddr);

/// What could carry a path: to `addresses` of the server over UDP and over TCP, by `detours`, and at home.
pub(crate) async fn find(
    network: &dyn Network,
    server: &ServerPeer,
    addresses: &[SocketAddr],
    detours: &[Detour],
    paths: &Paths,
) -> Result<Vec<(Candidate, LinkFacts)>, NetworkError> {
    let mut found = with_tcp(network.candidates(addresses, paths).await?, server.tcp_port);
    if !server.home.is_empty() {
        let home = network.neighbours(&server.home, paths).await?;
        found.retain(|(it, _)| !home.iter().any(|(other, _)| other == it));
        found.extend(home);
    }
    for (transport, at) in detours {
        let there = network.candidates(std::slice::from_ref(at), paths).await?;
        found.extend(there.into_iter().map(|(candidate, facts)| {
            let transport = *transport;
            (Candidate { transport, ..candidate }, LinkFacts { transport, ..facts })
        }));
    }
    Ok(found)
}

/// The candidates of `found`, and behind each one over UDP the same over TCP, if the server has a TCP port.
pub(crate) fn with_tcp(
    found: Vec<(Candidate, LinkFacts)>,
    port: Option<u16>,
) -> Vec<(Candidate, LinkFacts)> {
    let Some(port) = port else { return found };
    let mut all = found.clone();
    for (candidate, facts) in found {
        let candidate = candidate.over_tcp(port);
        // An address with two UDP ports has one TCP port.
        if !all.iter().any(|(other, _)| *other == candidate) {
            all.push((candidate, LinkFacts { transport: Transport::Tcp, ..facts }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_over_tcp_once_and_after_udp() {
        let candidate = |server: &str| Candidate {
            link: "wlan0".into(),
            index: 3,
            source: [10, 0, 0, 2].into(),
            router: None,
            metric: 600,
            server: server.parse().unwrap(),
            transport: Transport::Udp,
        };
        let facts = LinkFacts { metric: 600, metered: true, ..LinkFacts::default() };
        let found: Vec<_> = ["192.0.2.1:4433", "192.0.2.1:443", "192.0.2.9:4433"]
            .map(|server| (candidate(server), facts))
            .into();
        assert_eq!(with_tcp(found.clone(), None), found);
        let all = with_tcp(found.clone(), Some(443));
        assert_eq!(all[..3], found);
        let servers = ["192.0.2.1:443", "192.0.2.9:443"].map(|server| server.parse().unwrap());
        assert_eq!(all[3..].iter().map(|(it, _)| it.server).collect::<Vec<_>>(), servers);
        assert!(all[3..].iter().all(|(it, _)| it.transport == Transport::Tcp));
        assert!(all[3..].iter().all(|(_, tcp)| *tcp > LinkFacts { metered: true, ..facts }));
    }
}
