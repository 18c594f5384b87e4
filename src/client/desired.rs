//! What this host should be like: computed in one place from all that it depends on, and changed in one place,
//! `Client::apply`, whether there is a session or not.
//!
//! ```text
//!  configuration ─┐
//!  welcome ───────┤
//!  host's facts ──┼─▶ Desired ─▶ Plan ─┬─▶ Layout ─▶ Host
//!  server names ──┤                    └─▶ Inside ─▶ downlink
//!  portals, home ─┤
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
    plan::{inside, inside_aside, layout, sealing},
};
use crate::{
    config::{ClientConfig, HomeMode, ServerPeer},
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
    /// The link over which the tunnel stands aside, at home.
    pub(super) aside: Option<String>,
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
            aside: None,
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
        let home: Vec<_> = self.home().collect();
        // The link of home has its network before it is known to be home.
        layout.takes_own = !home.is_empty();
        let mut inside = inside(&layout, &self.facts, &home);
        if let Some(link) = self.may_stand_aside() {
            layout = layout.aside(link);
            inside = inside_aside(&layout, &self.facts);
        }
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

    /// The link over which traffic may go directly. A kill switch lets nothing out beside the tunnel, at home either.
    fn may_stand_aside(&self) -> Option<&str> {
        let may = self.in_session && !self.config.tun.kill_switch;
        self.aside.as_deref().filter(|_| may)
    }

    /// Where servers are at home, if the tunnel may stand aside there.
    fn home(&self) -> impl Iterator<Item = IpAddr> {
        let servers = self.config.servers.iter().filter(|_| self.config.home == HomeMode::Off);
        servers.flat_map(|server| server.home.iter().map(SocketAddr::ip))
    }

    fn found(&self, owner: Owner) -> impl Iterator<Item = SocketAddr> {
        self.found.get(&owner).into_iter().flatten().copied()
    }
}

/// The addresses of a server that need no resolver.
fn addresses(server: &ServerPeer) -> impl Iterator<Item = SocketAddr> {
    let written = server.addresses.iter().filter_map(|server| {
        server.host.parse::<IpAddr>().ok().map(|host| SocketAddr::new(host, server.port))
    });
    written.chain(server.home.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{plan::tests::welcome, tests::config},
        tunnel::egress::Verdict,
        wire::packet::{Addresses, tests::packet},
    };

    /// A client in a session that is to stand aside over wlan0.
    fn at_home() -> Desired {
        let mut config = config();
        config.tun.routes = Some(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        Desired {
            welcome: Some(welcome(&["10.66.0.2/24"], &[])),
            in_session: true,
            aside: Some("wlan0".into()),
            ..Desired::new(config.into())
        }
    }

    #[test]
    fn at_home_flows_of_the_inner_address_go_on() {
        let Plan { layout, inside, .. } = at_home().plan().unwrap();
        assert_eq!(layout.aside.as_deref(), Some("wlan0"));
        assert!(layout.dns.servers.is_empty(), "the network's own resolver answers");
        let [nas, inner] = ["192.168.1.20", "10.66.0.2"].map(|it| it.parse().unwrap());
        let addresses = Addresses { source: nas, destination: inner };
        let packet = packet(nas, inner, 8).into();
        assert_eq!(inside.judge()(addresses, &packet), Verdict::Deliver);
    }

    #[test]
    fn flows_of_the_inner_address_to_home_go_on_before_the_tunnel_stands_aside() {
        let mut desired = Desired { aside: None, ..at_home() };
        let network = |net: &str| ("wlan0".to_owned(), net.parse().unwrap());
        desired.facts.networks = vec![network("192.168.1.0/24"), network("192.168.9.0/24")];
        let with = |home| {
            let mut config = ClientConfig { home, ..config() };
            config.tun.routes = Some(vec!["0.0.0.0/0".parse().unwrap()]);
            config.tun.exclude.lan = true;
            config.servers[0].home = vec!["192.168.1.10:4433".parse().unwrap()];
            Arc::new(config)
        };
        let judge = |desired: &Desired, from: &str| {
            let Plan { layout, inside, .. } = desired.plan().unwrap();
            let [source, destination] = [from, "10.66.0.2"].map(|it| it.parse().unwrap());
            let packet = packet(source, destination, 8).into();
            let verdict = inside.judge()(Addresses { source, destination }, &packet);
            (layout.takes_own, verdict == Verdict::Deliver)
        };
        desired.configure(with(HomeMode::Direct));
        assert_eq!(judge(&desired, "192.168.1.20"), (false, false), "it never stands aside");
        desired.configure(with(HomeMode::Off));
        assert_eq!(judge(&desired, "192.168.1.20"), (true, true));
        assert_eq!(judge(&desired, "192.168.9.20"), (true, false), "another network");
        desired.paused = true;
        assert!(!judge(&desired, "192.168.1.20").0);
    }

    #[test]
    fn a_resolver_for_some_domains_stays_at_home() {
        let mut desired = at_home();
        desired.welcome.as_mut().unwrap().search_domains = vec!["corp.example".into()];
        assert_eq!(desired.plan().unwrap().layout.dns.domains, ["corp.example"]);
    }

    #[test]
    fn no_tunnel_stands_aside_without_a_session_or_with_a_kill_switch() {
        let without_session = Desired { in_session: false, ..at_home() };
        assert_eq!(without_session.plan().unwrap().layout.aside, None);
        let mut config = config();
        config.tun.kill_switch = true;
        let sealed = Desired { config: config.into(), ..at_home() };
        assert_eq!(sealed.plan().unwrap().layout.aside, None);
    }

    #[test]
    fn a_paused_tunnel_does_not_stand_aside() {
        let layout = Desired { paused: true, ..at_home() }.plan().unwrap().layout;
        assert_eq!((layout.aside, layout.is_open, layout.routes), (None, true, Vec::new()));
        assert!(!layout.networks.is_empty(), "its own networks stay");
    }

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
