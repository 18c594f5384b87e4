//! Who is at the other end of a TCP connection: the server, or somebody who leads there.

use std::{io, sync::Arc};

use hyper::{Uri, header::HeaderValue};
use rustls::{ClientConfig, RootCertStore};

use super::connect::ALPN;
use crate::{
    config::{self, HostPort, ServerPeer},
    link::candidate::Transport,
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
    /// The server's TCP port. The proxy looks up the name, for the network may know no names of the world outside.
    pub(super) server: HostPort,
    /// The proxy's own name, and who vouches for it; without, it is asked in the clear.
    pub(super) tls: Option<(String, Arc<ClientConfig>)>,
    pub(super) credentials: Option<HeaderValue>,
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
#[derive(Debug, Default)]
pub(crate) struct Ways {
    proxy: Option<Arc<Proxy>>,
    relay: Option<Arc<Relay>>,
}

impl Ways {
    /// Those of a configuration; an error if nothing is known of who vouches for others in TLS.
    pub(crate) fn new(server: &ServerPeer) -> io::Result<Self> {
        let ServerPeer { addresses, tcp_port, proxy, relay, .. } = server;
        let proxy = match (proxy.as_deref(), addresses.first(), tcp_port) {
            (Some(config::Proxy { at, tls, credentials }), Some(first), Some(port)) => {
                let tls = tls.then(public).transpose()?.map(|tls| (at.host.clone(), tls));
                let server = HostPort { host: first.host.clone(), port: *port };
                Some(Arc::new(Proxy { server, tls, credentials: credentials.clone() }))
            }
            _ => None,
        };
        let relay = match (relay, addresses.first()) {
            (Some(relay), Some(first)) => {
                let mut tls = ClientConfig::clone(&*public()?);
                tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
                let target = relay.uri(first).ok_or(io::ErrorKind::InvalidInput)?;
                Some(Arc::new(Relay { target, name: relay.at.host.clone(), tls: tls.into() }))
            }
            _ => None,
        };
        Ok(Self { proxy, relay })
    }

    /// The way over `transport`, if there is one.
    pub(crate) fn over(&self, transport: Transport) -> Option<Way> {
        match transport {
            Transport::Udp => None,
            Transport::Tcp => Some(Way::Direct),
            Transport::Proxy => self.proxy.clone().map(Way::Proxy),
            Transport::Relay => self.relay.clone().map(Way::Relay),
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
