//! What NetworkManager is to set, in its words (nm-vpn-dbus-interface.h of its sources).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use zbus::Variant;

use crate::host::Layout;

pub(super) type Entries = HashMap<&'static str, Variant<'static>>;

/// What was handed over last.
#[derive(Debug)]
pub(super) struct Handover {
    interface: String,
    gateway: Option<IpAddr>,
    last: Option<Wanted>,
    /// Which families NetworkManager was told of: it forgets one when it is told of nothing in it.
    families: [bool; 2],
}

/// What of a layout concerns NetworkManager.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    resolvers: Vec<IpAddr>,
    domains: Vec<String>,
}

/// The signals' contents.
#[derive(Debug)]
pub(super) struct News {
    pub(super) general: Entries,
    pub(super) v4: Option<Entries>,
    pub(super) v6: Option<Entries>,
}

impl Handover {
    pub(super) fn new(interface: &str) -> Self {
        Self { interface: interface.into(), gateway: None, last: None, families: [false; 2] }
    }

    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// What there is to tell, if that is anything.
    pub(super) fn news(&mut self, layout: &Layout) -> Option<News> {
        let wanted = Wanted::of(layout);
        // It means the route to the far end, which is none of NetworkManager's: the first one serves for ever.
        let far_end = layout.servers.first().map(|server| server.ip().to_canonical());
        let gateway = *self.gateway.get_or_insert(far_end?);
        if self.last.as_ref() == Some(&wanted) {
            return None;
        }
        for (told, is_v4) in self.families.iter_mut().zip([true, false]) {
            *told |= wanted.addresses.iter().any(|net| net.addr().is_ipv4() == is_v4);
        }
        let [v4, v6] = self.families;
        let general = HashMap::from([
            ("tundev", self.interface.clone().into()),
            ("gateway", address(gateway)),
            ("has-ip4", v4.into()),
            ("has-ip6", v6.into()),
            // The tunnel outlives the link that it began on.
            ("can-persist", true.into()),
        ]);
        let news = News {
            general,
            v4: v4.then(|| wanted.family(true)),
            v6: v6.then(|| wanted.family(false)),
        };
        self.last = Some(wanted);
        Some(news)
    }
}

impl Wanted {
    fn of(layout: &Layout) -> Self {
        let mut domains = Vec::new();
        if !layout.dns.servers.is_empty() {
            domains.extend(layout.dns.domains.iter().map(|it| it.trim_end_matches('.').to_owned()));
            // All names, in words of systemd-resolved that NetworkManager knows.
            domains.extend(layout.resolves_all().then(|| "~.".to_owned()));
        }
        Self {
            addresses: layout.addresses.clone(),
            routes: layout.main_routes(),
            resolvers: layout.dns.servers.clone(),
            domains,
        }
    }

    /// Empty without an address: anything else without one ends the connection (`_dbus_signal_ip_config_cb` of
    /// nm-vpn-connection.c).
    fn family(&self, is_v4: bool) -> Entries {
        let is_of = |it: &IpAddr| it.is_ipv4() == is_v4;
        let Some(own) = self.addresses.iter().find(|net| is_of(&net.addr())) else {
            return Entries::new();
        };
        let mut entries = HashMap::from([
            ("address", address(own.addr())),
            ("prefix", u32::from(own.prefix_len()).into()),
            // A tunnel that takes everything has rules and a table of its own, as NetworkManager's WireGuard has.
            ("never-default", true.into()),
        ]);
        let routes = self.routes.iter().filter(|net| is_of(&net.addr()));
        entries.insert("routes", if is_v4 { routes_v4(routes) } else { routes_v6(routes) });
        let resolvers: Vec<_> = self.resolvers.iter().copied().filter(is_of).collect();
        if !resolvers.is_empty() {
            entries.insert("dns", if is_v4 { words(&resolvers) } else { bytes(&resolvers) });
            entries.insert("domains", self.domains.clone().into());
        }
        entries
    }
}

/// Network, prefix, next router and a metric that NetworkManager does not look at.
fn routes_v4<'a>(routes: impl Iterator<Item = &'a IpNet>) -> Variant<'static> {
    let route = |net: &IpNet| vec![word(net.network()), u32::from(net.prefix_len()), 0, 0];
    routes.map(route).collect::<Vec<_>>().into()
}

fn routes_v6<'a>(routes: impl Iterator<Item = &'a IpNet>) -> Variant<'static> {
    let none = Ipv6Addr::UNSPECIFIED.octets().to_vec();
    let route =
        |net: &IpNet| (octets(net.network()), u32::from(net.prefix_len()), none.clone(), 0_u32);
    routes.map(route).collect::<Vec<_>>().into()
}

fn address(address: IpAddr) -> Variant<'static> {
    match address {
        IpAddr::V4(_) => word(address).into(),
        IpAddr::V6(_) => octets(address).into(),
    }
}

fn words(addresses: &[IpAddr]) -> Variant<'static> {
    addresses.iter().copied().map(word).collect::<Vec<_>>().into()
}

fn bytes(addresses: &[IpAddr]) -> Variant<'static> {
    addresses.iter().copied().map(octets).collect::<Vec<_>>().into()
}

/// An IPv4 address as a number, whose bytes in memory are the address.
fn word(address: IpAddr) -> u32 {
    let v4 = match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    u32::from_ne_bytes(v4.octets())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dns;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn layout(addresses: &[&str], routes: &[&str]) -> Layout {
        Layout {
            mtu: 1400,
            addresses: nets(addresses),
            networks: nets(&["10.66.0.0/24", "fd66::/64"]),
            routes: nets(routes),
            servers: vec![([192, 0, 2, 1], 4433).into()],
            dns: Dns {
                servers: vec![[10, 66, 0, 1].into()],
                domains: vec!["corp.example.".into()],
            },
            ..Layout::default()
        }
    }

    #[test]
    fn addresses_routes_and_resolvers_are_handed_over_by_family() {
        let news = Handover::new("roam0")
            .news(&layout(&["10.66.0.2/32", "fd66::2/128"], &["198.51.100.0/24"]))
            .unwrap();
        assert_eq!(news.general["tundev"], "roam0".into());
        assert_eq!(news.general["gateway"], u32::from_ne_bytes([192, 0, 2, 1]).into());
        let (v4, v6) = (news.v4.unwrap(), news.v6.unwrap());
        assert_eq!(v4["address"], u32::from_ne_bytes([10, 66, 0, 2]).into());
        assert_eq!(v4["prefix"], 32_u32.into());
        let routes =
            [[10, 66, 0, 0], [198, 51, 100, 0]].map(|net| vec![u32::from_ne_bytes(net), 24, 0, 0]);
        assert_eq!(v4["routes"], routes.to_vec().into());
        assert_eq!(v4["domains"], vec!["corp.example".to_owned()].into());
        assert_eq!(v6["routes"].value_signature().to_string(), "a(ayuayu)");
        assert!(!v6.contains_key("domains"), "it has no resolver");
    }

    #[test]
    fn a_full_tunnel_keeps_its_default_route_to_itself_and_takes_all_names() {
        let news = Handover::new("roam0").news(&layout(&["10.66.0.2/32"], &["0.0.0.0/0"])).unwrap();
        let v4 = news.v4.unwrap();
        assert_eq!(v4["never-default"], true.into());
        let networks = [vec![u32::from_ne_bytes([10, 66, 0, 0]), 24, 0, 0]];
        assert_eq!(v4["routes"], networks.to_vec().into());
        assert_eq!(v4["domains"], vec!["corp.example".to_owned(), "~.".to_owned()].into());
        assert!(news.v6.is_none());
    }

    #[test]
    fn only_news_are_told_and_a_family_that_is_gone_is_told_of_as_empty() {
        let mut handover = Handover::new("roam0");
        let both = layout(&["10.66.0.2/32", "fd66::2/128"], &[]);
        assert!(handover.news(&both).is_some());
        let mut moved = both.clone();
        moved.servers = vec![([192, 0, 2, 9], 4433).into()];
        moved.mtu = 1300;
        assert!(handover.news(&moved).is_none(), "server and MTU are nothing to NetworkManager");
        let news = handover.news(&layout(&["10.66.0.2/32"], &[])).unwrap();
        assert_eq!(news.general["has-ip6"], true.into());
        assert_eq!(news.v6.unwrap(), Entries::new());
        assert!(news.v4.unwrap().contains_key("address"));
        // And back.
        let news = handover.news(&both).unwrap();
        assert_eq!(news.v6.unwrap()["prefix"], 128_u32.into());
    }
}
