//! Who is at the other end of a TCP connection: the server, or somebody who leads there.

use std::{io, net::SocketAddr, sync::Arc};

use hyper::{Uri, header::HeaderValue};
use rustls::{ClientConfig, RootCertStore};
use tokio::{sync::OnceCell, task::spawn_blocking};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::warn;

use super::{
    connect::{ALPN, name_of},
    patience::Patience,
    stream::Io,
};
use crate::{
    config::{self, HostPort, ServerPeer},
    link::candidate::Transport,
    path::servers::Detours,
    quic::tls,
};

/// Who is at the other end of a TCP connection.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// The server itself.
    Direct,
    /// An HTTP proxy.
    Proxy(Arc<Proxy>),
    /// A CONNECT-UDP relay of somebody else.
    Relay(Arc<Relay>),
}

/// An HTTP proxy, and what it is asked for.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(super) leader: Leader,
    /// The server's TCP port. The proxy looks up the name, for the network may know no names of the world outside.
    pub(super) server: HostPort,
    /// Without, it is asked in the clear.
    pub(super) tls: Option<PublicTls>,
    pub(super) credentials: Option<HeaderValue>,
}

/// A CONNECT-UDP relay, and what it is asked for.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(super) leader: Leader,
    /// The server's UDP port, as the relay's template says it. The relay looks up the name.
    pub(super) target: Uri,
    pub(super) tls: PublicTls,
}

/// Somebody who leads to the server.
#[derive(Debug)]
pub(super) struct Leader {
    transport: Transport,
    at: HostPort,
    detours: Arc<Detours>,
    pub(super) patience: Patience,
}

impl Leader {
    fn new(transport: Transport, at: &HostPort, detours: &Arc<Detours>) -> Self {
        let patience = Patience::with(transport);
        Self { transport, at: at.clone(), detours: detours.clone(), patience }
    }
}

impl Way {
    fn leader(&self) -> Option<&Leader> {
        match self {
            Self::Direct => None,
            Self::Proxy(proxy) => Some(&proxy.leader),
            Self::Relay(relay) => Some(&relay.leader),
        }
    }

    /// An error while whoever leads there is not to be asked.
    pub(super) fn check(&self) -> io::Result<()> {
        self.leader().map_or(Ok(()), |leader| leader.patience.check())
    }

    /// Whether a connection to this address led there.
    pub(super) fn tried(&self, to: SocketAddr, works: bool) {
        if let Some(Leader { transport, at, detours, .. }) = self.leader() {
            detours.tried(*transport, at, to, works);
        }
    }
}

/// The ways of one tunnel.
#[derive(Debug)]
pub(crate) struct Ways {
    /// What they were made for.
    server: ServerPeer,
    proxy: Option<Arc<Proxy>>,
    relay: Option<Arc<Relay>>,
    detours: Arc<Detours>,
}

impl Ways {
    /// Those of a configuration; `detours` knows where they are. One that cannot be is told and left out. Whoever led there
    /// `before` and has not changed is asked once more at once, and its pauses go on growing.
    pub(crate) fn new(server: &ServerPeer, detours: Arc<Detours>, before: Option<&Self>) -> Self {
        let before = before.filter(|before| {
            let of = |it: &ServerPeer| (it.addresses.first().cloned(), it.tcp_port);
            of(&before.server) == of(server)
        });
        let kept = before.filter(|it| it.server.proxy == server.proxy).map(|it| it.proxy.clone());
        let proxy = kept.unwrap_or_else(|| proxy(server, &detours));
        let kept = before.filter(|it| it.server.relay == server.relay).map(|it| it.relay.clone());
        let relay = kept.unwrap_or_else(|| {
            let told = |error: io::Error| warn!(%error, "no way through a relay");
            relay(server, &detours).map_err(told).ok().flatten()
        });
        let leaders = proxy.iter().map(|it| &it.leader).chain(relay.iter().map(|it| &it.leader));
        leaders.for_each(|leader| leader.patience.end());
        Self { server: server.clone(), proxy, relay, detours }
    }

    /// The way over a detour, if that is at this address: nobody gets what is meant for another.
    pub(crate) fn over(&self, transport: Transport, address: SocketAddr) -> Option<Way> {
        let way = match transport {
            Transport::Udp | Transport::Tcp => return None,
            Transport::Proxy => Way::Proxy(self.proxy.clone()?),
            Transport::Relay => Way::Relay(self.relay.clone()?),
        };
        let at = &way.leader()?.at;
        self.detours.addresses(transport, at).contains(&address).then_some(way)
    }
}

fn proxy(server: &ServerPeer, detours: &Arc<Detours>) -> Option<Arc<Proxy>> {
    let ServerPeer { addresses, tcp_port, proxy, .. } = server;
    let config::Proxy { at, tls, credentials } = &**proxy.as_ref()?;
    let server = HostPort { host: addresses.first()?.host.clone(), port: (*tcp_port)? };
    let tls = tls.then(|| PublicTls::new(&at.host, &[]));
    let (leader, credentials) = (Leader::new(Transport::Proxy, at, detours), credentials.clone());
    Some(Arc::new(Proxy { leader, server, tls, credentials }))
}

fn relay(server: &ServerPeer, detours: &Arc<Detours>) -> io::Result<Option<Arc<Relay>>> {
    let (Some(relay), Some(first)) = (&server.relay, server.addresses.first()) else {
        return Ok(None);
    };
    let target = relay.uri(first).ok_or(io::ErrorKind::InvalidInput)?;
    let tls = PublicTls::new(&relay.at.host, &ALPN);
    let leader = Leader::new(Transport::Relay, &relay.at, detours);
    Ok(Some(Arc::new(Relay { leader, target, tls })))
}

/// TLS with somebody for whom this host's certificate authorities vouch, as its administrator and distribution say: a
/// company's proxy has a certificate of the company's own.
#[derive(Debug)]
pub(super) struct PublicTls {
    name: String,
    alpn: &'static [&'static [u8]],
    /// What the authorities' files say, some hundred kilobytes: they are read when somebody is first asked.
    config: OnceCell<Arc<ClientConfig>>,
}

impl PublicTls {
    fn new(name: &str, alpn: &'static [&'static [u8]]) -> Self {
        Self { name: name.to_owned(), alpn, config: OnceCell::new() }
    }

    pub(super) async fn connect<S: Io>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let alpn = self.alpn;
        let read = async || spawn_blocking(move || public(alpn)).await.map_err(io::Error::other)?;
        let config = self.config.get_or_try_init(read).await?;
        TlsConnector::from(config.clone()).connect(name_of(&self.name)?, stream).await
    }
}

/// Reads files, and must not be called where others wait.
fn public(alpn: &[&[u8]]) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
        return Err(io::Error::other(format!("certificate authorities of this host: {reason}")));
    }
    let mut config = ClientConfig::builder_with_provider(tls::provider().into())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|it| it.to_vec()).collect();
    Ok(Arc::new(config))
}

#[cfg(test)]
impl Way {
    /// A relay of which nothing is proven, and which is asked in this version of HTTP.
    pub(crate) fn unproven(target: &str, alpn: &[u8]) -> Self {
        let mut tls = super::connect::client().unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = OnceCell::new_with(Some(tls.into()));
        let tls = PublicTls { config, ..PublicTls::new("localhost", &[]) };
        let leader = Leader::new(
            Transport::Relay,
            &"localhost:443".parse().unwrap(),
            &Arc::new(Detours::new()),
        );
        Self::Relay(Arc::new(Relay { leader, target: target.parse().unwrap(), tls }))
    }
}
