//! What this host should be like: computed in one place from all that it depends on, and changed in one place,
//! `Client::apply`, whether there is a session or not.
//!
//! ```text
//!  configuration ─┐
//!  welcome ───────┤
//!  host's facts ──┼─▶ Desired ─▶ Plan ─┬─▶ Layout ─▶ Host
//!  server names ──┤                    └─▶ Inside ─▶ downlink
//!  portals ───────┤
//!  pause ─────────┘
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use quinn::Connection;

use super::{
    ended::Ended,
    offer::{Offer, OfferError},
    plan::{inside, layout, sealing},
};
use crate::{
    config::{ClientConfig, ServerPeer},
    host::{HostError, Layout, facts::Facts, interface::LeftOut},
    path::servers::{Owner, written_down},
    quic::close,
    tunnel::inside::Inside,
    wire::message::Welcome,
};

#[derive(Clone, Debug)]
pub(super) struct Desired {
    config: Arc<ClientConfig>,
    /// The addresses of servers and of those who lead there, as they were found, with the one in use.
    pub(super) found: BTreeMap<Owner, Vec<SocketAddr>>,
    /// What the server said last.
    pub(super) welcome: Option<Welcome>,
    /// What was taken of it last.
    taken: Option<Offer>,
    /// Whether there is a session, for which the offer must fit the host as it is.
    pub(super) in_session: bool,
    /// What the host has without the tunnel.
    pub(super) facts: Facts,
    /// Whether a captive portal has to be reached.
    pub(super) portal: bool,
    /// Whether a person paused the tunnel.
    pub(super) paused: bool,
    /// Whether the host is like that, as far as we know.
    pub(super) is_applied: bool,
}

/// What follows from all of it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    /// What may come out of the tunnel.
    pub(super) inside: Inside,
    /// What is taken of the server's offer.
    taken: Option<Offer>,
}

/// Why the host is not made as desired; it stays as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The server's offer allows no session.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The host refuses the kill switch or the routing rules.
    #[error("{0}")]
    Host(HostError),
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
                Ended::Host(error.to_string())
            }
        }
    }
}

impl Plan {
    /// What the server offers and is not taken.
    pub(super) fn declined(&self) -> Vec<LeftOut> {
        self.taken.as_ref().map(|offer| offer.left_out.clone()).unwrap_or_default()
    }
}

impl Desired {
    pub(super) fn new(config: Arc<ClientConfig>) -> Self {
        Self {
            config,
            found: BTreeMap::new(),
            welcome: None,
            taken: None,
            in_session: false,
            facts: Facts::default(),
            portal: false,
            paused: false,
            is_applied: false,
        }
    }

    /// Takes over what a reload may change.
    pub(super) fn configure(&mut self, config: Arc<ClientConfig>) {
        self.portal &= config.tun.exclude.portal;
        self.config = config;
    }

    /// Keeps in mind what a plan takes of the offer, which is now in effect.
    pub(super) fn take(&mut self, plan: &Plan) {
        self.taken.clone_from(&plan.taken);
        self.is_applied = true;
    }

    /// What follows; an error if the server's offer allows no session, and there is one. Without a session what
    /// was taken last stays: another network may have a use for the inner address for a while.
    pub(super) fn plan(&self) -> Result<Plan, OfferError> {
        let tun = &self.config.tun;
        let (mut servers, mut detours) = (Vec::new(), Vec::new());
        for server in &self.config.servers {
            servers.extend(addresses(server));
            servers.extend(self.found(Owner::Server(server.public_key)));
            detours.extend(written_down(server).map(|(_, at)| at));
            detours.extend(self.found(Owner::Detours(server.public_key)));
        }
        let taken = match &self.welcome {
            Some(welcome) => {
                let outer: Vec<_> = servers.iter().map(SocketAddr::ip).collect();
                let checked = Offer::check(welcome, tun, &self.facts, &outer);
                match (checked, &self.taken) {
                    (Err(_), Some(taken)) if !self.in_session => Some(taken.clone()),
                    (checked, _) => Some(checked?),
                }
            }
            None => None,
        };
        let mut layout = taken.as_ref().map_or_else(|| sealing(tun), |offer| layout(tun, offer));
        let inside = inside(&layout, &self.facts);
        layout.everything = tun.routes.iter().flatten().any(|route| route.prefix_len() == 0);
        (layout.servers, layout.detours) = (servers, detours);
        layout.tcp_ports = self.config.servers.iter().filter_map(|it| it.tcp_port).collect();
        layout.tcp_ports.sort_unstable();
        layout.tcp_ports.dedup();
        layout.ignored.clone_from(&self.config.paths.ignore);
        if self.paused {
            layout = layout.withdrawn();
        }
        let layout = if self.portal { layout.opened() } else { layout };
        Ok(Plan { layout, inside, taken })
    }

    fn found(&self, owner: Owner) -> impl Iterator<Item = SocketAddr> {
        self.found.get(&owner).into_iter().flatten().copied()
    }
}

/// The addresses of a server that need no resolver.
fn addresses(server: &ServerPeer) -> impl Iterator<Item = SocketAddr> {
    server.addresses.iter().filter_map(|server| {
        server.host.parse::<IpAddr>().ok().map(|host| SocketAddr::new(host, server.port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{plan::tests::welcome, tests::config};

    #[test]
    fn between_sessions_another_network_may_have_the_inner_address() {
        let mut desired = Desired {
            welcome: Some(welcome(&["10.66.0.2/24"], &[])),
            in_session: true,
            ..Desired::new(config().into())
        };
        let plan = desired.plan().unwrap();
        desired.take(&plan);
        // DHCP gives this host the address that it has inside.
        desired.facts.addresses.push(("eth0".into(), [10, 66, 0, 2].into()));
        assert!(desired.plan().is_err(), "a session cannot be kept");
        desired.in_session = false;
        desired.portal = true;
        let layout = desired.plan().unwrap().layout;
        assert!(layout.is_open && layout.addresses == plan.layout.addresses);
    }
}
