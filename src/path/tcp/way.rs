//! Who is at the other end of a TCP connection: the server, or somebody who leads there.

use std::{io, sync::Arc};

use hyper::header::HeaderValue;
use rustls::{ClientConfig, RootCertStore};

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

/// The ways of one tunnel.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    proxy: Option<Arc<Proxy>>,
}

impl Ways {
    /// Those of a configuration; an error if nothing is known of who vouches for a proxy with TLS.
    pub(crate) fn new(server: &ServerPeer) -> io::Result<Self> {
        let ServerPeer { addresses, tcp_port, proxy, .. } = server;
        let proxy = match (proxy, addresses.first(), tcp_port) {
            (Some(config::Proxy { at, tls, credentials }), Some(first), Some(port)) => {
                let tls = tls.then(public).transpose()?.map(|tls| (at.host.clone(), tls));
                let server = HostPort { host: first.host.clone(), port: *port };
                Some(Arc::new(Proxy { server, tls, credentials: credentials.clone() }))
            }
            _ => None,
        };
        Ok(Self { proxy })
    }

    /// The way over `transport`, if there is one.
    pub(crate) fn over(&self, transport: Transport) -> Option<Way> {
        match transport {
            Transport::Udp => None,
            Transport::Tcp => Some(Way::Direct),
            Transport::Proxy => self.proxy.clone().map(Way::Proxy),
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
