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

use ipnet::IpNet;
use quinn::Connection;

use super::{
    ended::Ended,
    offer::{Offer, OfferError},
    plan::{inside, inside_aside, layout, sealing},
};
use crate::{
    config::{ClientConfig, HomeMode, ServerPeer},
    host::{HostError, Layout, facts::Facts, interface::LeftOut},
    identity::PublicKey,
    path::{
        preference::Preferences,
        servers::{Owner, written_down},
    },
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
    /// The server that has the session, if there is one: then the offer must fit the host as it is.
    pub(super) session: Option<PublicKey>,
    /// The networks of home, as they were found last.
    home: Vec<IpNet>,
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
    /// What it comes from.
    pub(super) fn cause(self) -> anyhow::Error {
        match self {
            Self::Offer(error) => error.into(),
            Self::Host(error) => error.into(),
        }
    }

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
            session: None,
            home: Vec::new(),
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
        if !plan.layout.home.is_empty() {
            self.home.clone_from(&plan.layout.home);
        }
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
                    (Err(_), Some(taken)) if self.session.is_none() => Some(taken.clone()),
                    (checked, _) => Some(checked?),
                }
            }
            None => None,
        };
        let mut layout = taken.as_ref().map_or_else(|| sealing(tun), |offer| layout(tun, offer));
        // The link of home has its network before it is known to be home.
        layout.home = self.home();
        let mut inside = inside(&layout, &self.facts);
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

    /// Whether what comes from the inner address goes into the tunnel although a link may lead there.
    pub(super) fn takes_own(&self) -> bool {
        !self.home().is_empty()
    }

    /// The link over which traffic may go directly. A kill switch lets nothing out beside the tunnel, at home either.
    fn may_stand_aside(&self) -> Option<&str> {
        let may = self.session.is_some() && !self.config.tun.kill_switch;
        self.aside.as_deref().filter(|_| may)
    }

    /// The networks of home, if the tunnel may stand aside there: those of this host that could have a path at home to the server
    /// that has the session, or else those found last. None that another network overlaps, or that the user keeps outside.
    fn home(&self) -> Vec<IpNet> {
        if self.config.home != HomeMode::Off || self.paused {
            return Vec::new();
        }
        let server = self.config.servers.iter().find(|it| Some(it.public_key) == self.session);
        let addresses: Vec<_> = server.iter().flat_map(|it| &it.home).map(SocketAddr::ip).collect();
        let is_home = |net: &IpNet| addresses.iter().any(|it| net.contains(it));
        let preferences = Preferences::new(&self.config.paths);
        let is_on_path =
            |link: &String| self.facts.ethernet.contains(link) && !preferences.ignores(link);
        let (there, others): (Vec<_>, Vec<_>) =
            self.facts.networks.iter().partition(|(link, net)| is_home(net) && is_on_path(link));
        let mut home: Vec<_> = there.into_iter().map(|(_, net)| *net).collect();
        if home.is_empty() {
            home = self.home.iter().copied().filter(is_home).collect();
        }
        let outside = others.into_iter().map(|(_, net)| net).chain(&self.config.tun.exclude.nets);
        let outside: Vec<_> = outside.collect();
        home.retain(|net| !outside.iter().any(|it| it.contains(net) || net.contains(*it)));
        home.sort_unstable();
        home.dedup();
        home
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
        client::{
            plan::tests::{nets, welcome},
            tests::config,
        },
        identity::PrivateKey,
        tunnel::egress::Verdict,
        wire::packet::{Addresses, tests::packet},
    };

    /// A client in a session that is to stand aside over wlan0.
    fn at_home() -> Desired {
        let mut config = config();
        config.tun.routes = Some(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        Desired {
            welcome: Some(welcome(&["10.66.0.2/24"], &[])),
            session: Some(config.servers[0].public_key),
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

    const NAS: &str = "192.168.1.20";

    /// A client in a session, with a home in which it does not stand aside yet, and links with these networks.
    fn with_home(networks: &[(&str, &str)], change: impl FnOnce(&mut ClientConfig)) -> Desired {
        let mut config = ClientConfig { home: HomeMode::Off, ..config() };
        config.tun.routes = Some(nets(&["0.0.0.0/0"]));
        config.tun.exclude.lan = true;
        config.servers[0].home = vec!["192.168.1.10:4433".parse().unwrap()];
        let session = Some(config.servers[0].public_key);
        change(&mut config);
        let mut desired = Desired { aside: None, session, ..at_home() };
        desired.configure(config.into());
        in_networks(&mut desired, networks);
        desired
    }

    fn in_networks(desired: &mut Desired, networks: &[(&str, &str)]) {
        let network = |(link, net): &(&str, &str)| ((*link).to_owned(), net.parse().unwrap());
        desired.facts.networks = networks.iter().map(network).collect();
        desired.facts.ethernet = vec!["wlan0".into(), "docker0".into()];
    }

    /// Whether packets from the inner address to `host` go into the tunnel although a link may lead there, and whether those from
    /// there are let in.
    fn both_ways(desired: &Desired, host: &str) -> (bool, bool) {
        let Plan { layout, inside, .. } = desired.plan().unwrap();
        let [source, destination] = [host, "10.66.0.2"].map(|it| it.parse().unwrap());
        let packet = packet(source, destination, 8).into();
        let verdict = inside.judge()(Addresses { source, destination }, &packet);
        (layout.home.iter().any(|net| net.contains(&source)), verdict == Verdict::Deliver)
    }

    #[test]
    fn flows_of_the_inner_address_to_home_go_on_before_the_tunnel_stands_aside() {
        let networks = [("wlan0", "192.168.1.0/24"), ("wlan0", "192.168.9.0/24")];
        let mut desired = with_home(&networks, |_| ());
        assert_eq!(both_ways(&desired, NAS), (true, true));
        assert_eq!(both_ways(&desired, "192.168.9.20"), (false, false), "another network");
        desired.paused = true;
        assert_eq!(both_ways(&desired, NAS), (false, false));
        let direct = with_home(&networks, |config| config.home = HomeMode::Direct);
        assert_eq!(both_ways(&direct, NAS), (false, false), "it never stands aside");
    }

    #[test]
    fn without_a_session_nothing_of_the_inner_address_is_taken() {
        let mut desired = with_home(&[("wlan0", "192.168.1.0/24")], |_| ());
        let plan = desired.plan().unwrap();
        desired.take(&plan);
        desired.facts.addresses.push(("wlan0".into(), [10, 66, 0, 2].into()));
        assert!(desired.plan().is_err(), "a session cannot be kept");
        desired.session = None;
        assert_eq!(desired.plan().unwrap().layout.home, []);
    }

    #[test]
    fn in_a_split_tunnel_a_flow_to_home_goes_on_elsewhere() {
        let split = |config: &mut ClientConfig| config.tun.routes = Some(nets(&["10.1.0.0/16"]));
        let mut desired = with_home(&[("wlan0", "192.168.1.0/24")], split);
        let plan = desired.plan().unwrap();
        desired.take(&plan);
        in_networks(&mut desired, &[("wlan0", "172.20.0.0/16")]);
        assert_eq!(both_ways(&desired, NAS), (true, true));
        assert_eq!(both_ways(&desired, "203.0.113.1"), (false, false));
        // A café with a part of these addresses.
        in_networks(&mut desired, &[("wlan0", "192.168.1.128/25")]);
        assert_eq!(both_ways(&desired, NAS), (false, false));
    }

    #[test]
    fn what_the_user_keeps_outside_stays_there() {
        for excluded in ["192.168.0.0/16", "192.168.1.0/24", "192.168.1.20/32"] {
            let exclude = |it: &mut ClientConfig| it.tun.exclude.nets = nets(&[excluded]);
            let desired = with_home(&[("wlan0", "192.168.1.0/24")], exclude);
            assert_eq!(both_ways(&desired, NAS), (false, false), "{excluded}");
        }
    }

    #[test]
    fn only_networks_of_links_with_a_path_at_home_are_home_and_only_for_its_server() {
        let tun = with_home(&[("tun9", "192.168.0.0/20")], |_| ());
        assert_eq!(both_ways(&tun, NAS), (false, false), "another VPN");
        let docker0 = [("docker0", "192.168.0.0/20")];
        let ignored = with_home(&docker0, |it| it.paths.ignore = vec!["docker0".into()]);
        assert_eq!(both_ways(&ignored, NAS), (false, false));
        let mut other = with_home(&[("wlan0", "192.168.1.0/24")], |_| ());
        other.session = Some(PrivateKey::generate().unwrap().public_key());
        assert_eq!(both_ways(&other, NAS), (false, false), "another server");
    }

    #[test]
    fn a_resolver_for_some_domains_stays_at_home() {
        let mut desired = at_home();
        desired.welcome.as_mut().unwrap().search_domains = vec!["corp.example".into()];
        assert_eq!(desired.plan().unwrap().layout.dns.domains, ["corp.example"]);
    }

    #[test]
    fn no_tunnel_stands_aside_without_a_session_or_with_a_kill_switch() {
        let without_session = Desired { session: None, ..at_home() };
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
        let config = config();
        let mut desired = Desired {
            welcome: Some(welcome(&["10.66.0.2/24"], &[])),
            session: Some(config.servers[0].public_key),
            ..Desired::new(config.into())
        };
        let plan = desired.plan().unwrap();
        desired.take(&plan);
        // DHCP gives this host the address that it has inside.
        desired.facts.addresses.push(("eth0".into(), [10, 66, 0, 2].into()));
        assert!(desired.plan().is_err(), "a session cannot be kept");
        desired.session = None;
        desired.portal = true;
        let layout = desired.plan().unwrap().layout;
        assert!(layout.is_open && layout.addresses == plan.layout.addresses);
    }
}
