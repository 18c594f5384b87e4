//! Who is at the other end of a TCP connection: the server, or somebody who leads there.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hyper::{Uri, header::HeaderValue};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

use super::connect::ALPN;
use crate::{
    config::{self, HostPort, ServerPeer},
    link::candidate::Transport,
    path::servers::Detours,
    quic::tls,
};

/// How long a proxy is not asked after it refused user and password for the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

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
    /// The server's TCP port. The proxy looks up the name, for the network may know no names of the world outside.
    pub(super) server: HostPort,
    /// The proxy's own name, and who vouches for it; without, it is asked in the clear.
    pub(super) tls: Option<(String, Arc<ClientConfig>)>,
    pub(super) credentials: Option<HeaderValue>,
    pub(super) patience: Mutex<Patience>,
}

/// A CONNECT-UDP relay, and what it is asked for.
#[derive(Debug)]
pub(crate) struct Relay {
    /// The server's UDP port, as the relay's template says it. The relay looks up the name.
    pub(super) target: Uri,
    /// Its own name, and who vouches for it.
    pub(super) name: String,
    pub(super) tls: Arc<ClientConfig>,
}

/// The ways of one tunnel.
#[derive(Debug)]
pub(crate) struct Ways {
    proxy: Option<(HostPort, Arc<Proxy>)>,
    relay: Option<(HostPort, Arc<Relay>)>,
    detours: Arc<Detours>,
}

impl Ways {
    /// Those of a configuration; `detours` knows where they are. One that cannot be is told and left out.
    pub(crate) fn new(server: &ServerPeer, detours: Arc<Detours>) -> Self {
        let told = |error: io::Error| warn!(%error, "no way through others");
        let proxy = proxy(server).map_err(told).ok().flatten();
        let relay = relay(server).map_err(told).ok().flatten();
        Self { proxy, relay, detours }
    }

    /// The way over a detour, if that is at this address: nobody gets what is meant for another.
    pub(crate) fn over(&self, transport: Transport, address: SocketAddr) -> Option<Way> {
        let is_there = |at| self.detours.addresses(transport, at).contains(&address);
        match transport {
            Transport::Udp | Transport::Tcp => None,
            Transport::Proxy => {
                let found = self.proxy.as_ref().filter(|(at, _)| is_there(at));
                found.map(|(_, proxy)| Way::Proxy(proxy.clone()))
            }
            Transport::Relay => {
                let found = self.relay.as_ref().filter(|(at, _)| is_there(at));
                found.map(|(_, relay)| Way::Relay(relay.clone()))
            }
        }
    }
}

fn proxy(server: &ServerPeer) -> io::Result<Option<(HostPort, Arc<Proxy>)>> {
    let ServerPeer { addresses, tcp_port, proxy, .. } = server;
    let (Some(proxy), Some(first), Some(port)) = (proxy, addresses.first(), tcp_port) else {
        return Ok(None);
    };
    let config::Proxy { at, tls, credentials } = &**proxy;
    let tls = tls.then(public).transpose()?.map(|tls| (at.host.clone(), tls));
    let server = HostPort { host: first.host.clone(), port: *port };
    let (credentials, patience) = (credentials.clone(), Mutex::default());
    Ok(Some((at.clone(), Arc::new(Proxy { server, tls, credentials, patience }))))
}

fn relay(server: &ServerPeer) -> io::Result<Option<(HostPort, Arc<Relay>)>> {
    let (Some(relay), Some(first)) = (&server.relay, server.addresses.first()) else {
        return Ok(None);
    };
    let mut tls = ClientConfig::clone(&*public()?);
    tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
    let target = relay.uri(first).ok_or(io::ErrorKind::InvalidInput)?;
    let name = relay.at.host.clone();
    Ok(Some((relay.at.clone(), Arc::new(Relay { target, name, tls: tls.into() }))))
}

/// How long a proxy is not asked that refused user and password: a directory locks an account after a few times.
#[derive(Debug, Default)]
pub(super) struct Patience {
    refusals: u32,
    until: Option<Instant>,
}

impl Patience {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    pub(super) fn refused(&mut self, now: Instant) {
        if self.is_over(now) {
            let pause = FIRST_PAUSE * (1 << self.refusals.min(6));
            self.until = Some(now + pause.min(LONGEST_PAUSE));
            self.refusals += 1;
        }
    }
}

/// TLS with those for whom this host's certificate authorities vouch, as its administrator and distribution say: a
/// company's proxy has a certificate of the company's own.
fn public() -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
        return Err(io::Error::other(format!("certificate authorities of this host: {reason}")));
    }
    let config = ClientConfig::builder_with_provider(tls::provider().into())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
impl Way {
    /// A relay of which nothing is proven, and which is asked in this version of HTTP.
    pub(crate) fn unproven(target: &str, alpn: &[u8]) -> Self {
        let mut tls = super::connect::client().unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let (target, name) = (target.parse().unwrap(), "localhost".into());
        Self::Relay(Arc::new(Relay { target, name, tls: tls.into() }))
    }
}
