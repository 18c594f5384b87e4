//! What this host should be like: computed in one place from all that it depends on, and changed in one place,
//! `Client::apply`, whether there is a session or not.
//!
//! ```text
//!  configuration ─┐
//!  welcome ───────┤
//!  host's facts ──┼─▶ Desired ─▶ Plan ─┬─▶ Layout ─▶ Host
//!  server names ──┤                    └─▶ Inside ─▶ downlink
//!  portals ───────┘
//! ```

use std::net::{IpAddr, SocketAddr};

use quinn::Connection;

use super::{
    fate::Ended,
    layout::{inside, layout, sealing},
    offer::{Offer, OfferError},
};
use crate::{
    config::{ClientConfig, ClientTun, HostPort},
    host::{Layout, facts::Facts},
    quic::close,
    tunnel::{inside::Inside, interface::LeftOut},
    wire::control::Welcome,
};

#[derive(Clone, Debug)]
pub(super) struct Desired {
    tun: ClientTun,
    /// The server's addresses as they are written down.
    servers: Vec<HostPort>,
    /// Its addresses as they were found, and the one in use.
    pub(super) found: Vec<SocketAddr>,
    /// What the server said last.
    pub(super) welcome: Option<Welcome>,
    /// What the host has without the tunnel.
    pub(super) facts: Facts,
    /// Whether a captive portal has to be reached.
    pub(super) portal: bool,
    /// Whether the host is like that, as far as we know.
    pub(super) is_applied: bool,
}

/// What follows from all of it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    /// What may come out of the tunnel.
    pub(super) inside: Inside,
    /// What the server offers and is not taken.
    pub(super) declined: Vec<LeftOut>,
}

/// Why the host is not made as desired; it stays as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The server's offer allows no session.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The host refuses the kill switch or the routing rules.
    #[error("{0:#}")]
    Host(anyhow::Error),
}

impl ApplyError {
    /// Ends the session that needs it.
    pub(super) fn end(self, connection: &Connection) -> Ended {
        match self {
            Self::Offer(error) => {
                connection.close(close::PROTOCOL, error.to_string().as_bytes());
                error.into()
            }
            Self::Host(error) => {
                connection.close(close::GOODBYE, b"the client cannot set up its host");
                Ended::Host(format!("{error:#}"))
            }
        }
    }
}

impl Desired {
    pub(super) fn new(config: &ClientConfig) -> Self {
        Self {
            tun: config.tun.clone(),
            servers: config.server.addresses.clone(),
            found: Vec::new(),
            welcome: None,
            facts: Facts::default(),
            portal: false,
            is_applied: false,
        }
    }

    /// Takes over what a reload may change.
    pub(super) fn configure(&mut self, tun: ClientTun, servers: Vec<HostPort>) {
        (self.tun, self.servers) = (tun, servers);
        self.portal &= self.tun.exclude.portal;
    }

    /// What follows; an error if the server's offer allows no session.
    pub(super) fn plan(&self) -> Result<Plan, OfferError> {
        let servers: Vec<_> = self.written_down().chain(self.found.iter().copied()).collect();
        let (mut layout, declined) = match &self.welcome {
            Some(welcome) => {
                let outer: Vec<_> = servers.iter().map(SocketAddr::ip).collect();
                let offer = Offer::check(welcome, &self.tun, &self.facts, &outer)?;
                (layout(&self.tun, &offer), offer.left_out)
            }
            None => (sealing(&self.tun), Vec::new()),
        };
        let inside = inside(&layout, &self.facts);
        layout.everything = self.tun.routes.iter().flatten().any(|route| route.prefix_len() == 0);
        layout.servers = servers;
        let layout = if self.portal { layout.opened() } else { layout };
        Ok(Plan { layout, inside, declined })
    }

    /// The addresses that need no resolver.
    fn written_down(&self) -> impl Iterator<Item = SocketAddr> {
        self.servers.iter().filter_map(|server| {
            server.host.parse::<IpAddr>().ok().map(|host| SocketAddr::new(host, server.port))
        })
    }
}
