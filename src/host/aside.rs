//! Rules and routes of a tunnel that stands aside at home: what would go into it goes over the link there. What comes from its
//! own addresses goes into it there, and to the network of home also before it stands aside: the link has that at once.
//!
//! ```text
//!  5305  from INNER       lookup TUNNEL      connections that began elsewhere go on
//!  5306  to RESOLVER      lookup TUNNEL      who is asked about some domains
//!  5307  from INNER to HOMENET lookup TUNNEL   the same before the tunnel stands aside
//!  5325  to NETWORK       lookup TUNNEL      the tunnel's own networks
//!  5326  to ROUTE         lookup HOME        what the tunnel takes
//!        TUNNEL: default dev roam0
//!        HOME:   the routes of the home link: default via ROUTER dev wlan0, 192.168.1.0/24 dev wlan0
//! ```
//! Nothing is taken from the tunnel: its own routes and rules follow these. When the link or its address goes, the kernel
//! deletes the routes of the table HOME in the same moment, and the tunnel has all again, also where this process is not there to
//! say so. No other link is in that table, so that none takes what the tunnel would.
//!
//! Each tunnel has tables of its own, by the index of its interface. A rule that outlives a daemon that was killed leads nowhere
//! once the link is left, and the next start removes it.

use futures_util::TryStreamExt as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
};
use rtnetlink::Error;
use tracing::debug;

use super::{
    Layout, TABLE,
    interface::Destination,
    rule_set::{self, PROTOCOL, Rule},
};
use crate::link::netlink::{Netlink, unless};

/// Before the rules of a tunnel that takes everything: its neighbourhood, which stays outside, is home.
const FROM_INNER: u32 = 5305;
const TO_RESOLVER: u32 = 5306;
/// A priority of its own: to the kernel a rule that names no destination is the same as one of its priority that names one.
const FROM_INNER_TO_HOME: u32 = 5307;
/// After what stays outside of such a tunnel, and before the rule that leads into it.
const TO_NETWORK: u32 = 5325;
const TO_ROUTE: u32 = 5326;

/// The rules and routes of one tunnel.
#[derive(Debug)]
pub(crate) struct Aside {
    netlink: Netlink,
    /// The index of the tunnel's interface.
    tunnel: u32,
    /// The link of home, while the tunnel stands aside, and the rules; before the first look it is not known whether there
    /// are some.
    given: Option<(Option<String>, Vec<Rule>)>,
}

impl Aside {
    /// None yet, or those that an earlier run has left.
    pub(crate) fn new(netlink: Netlink, tunnel: u32) -> Self {
        Self { netlink, tunnel, given: None }
    }

    /// Stands aside as the layout says, or not any more.
    pub(crate) async fn set(&mut self, layout: &Layout) -> Result<(), Error> {
        let wanted = (layout.aside.clone(), rules(layout, self.tunnel));
        if self.given.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.given = None;
        let (link, rules) = &wanted;
        if let Some(link) = link {
            self.make_routes(link).await?;
        }
        self.make_rules(rules).await?;
        self.given = Some(wanted);
        Ok(())
    }

    /// Puts back what others deleted, and follows the routes of the link; returns how many rules were missing.
    pub(crate) async fn restore(&self) -> Result<usize, Error> {
        let Some((link, rules)) = self.given.as_ref().filter(|(_, rules)| !rules.is_empty()) else {
            return Ok(0);
        };
        if let Some(link) = link {
            self.make_routes(link).await?;
        }
        self.make_rules(rules).await
    }

    /// Returns how many it added.
    async fn make_rules(&self, wanted: &[Rule]) -> Result<usize, Error> {
        rule_set::make(&self.netlink, wanted, |rule| belongs(rule, self.tunnel)).await
    }

    /// Makes the table of home what the main one has for its link.
    async fn make_routes(&self, link: &str) -> Result<(), Error> {
        let Ok(index) = if_nametoindex(link) else { return Ok(()) };
        let (main, home) = (u32::from(RouteHeader::RT_TABLE_MAIN), home_table(self.tunnel));
        let (mut wanted, mut present) = (Vec::new(), Vec::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let mut routes = self.netlink.handle().route().get(question).execute();
            while let Some(route) = routes.try_next().await? {
                let table = table_of_route(&route);
                if table == home {
                    present.extend(copy(&route, home));
                } else if table == main && route.attributes.contains(&RouteAttribute::Oif(index)) {
                    wanted.extend(copy(&route, home));
                }
            }
        }
        // A router is found by the route to its network.
        wanted.sort_by_key(|route| u8::MAX - route.header.destination_prefix_length);
        for route in wanted.iter().filter(|route| !present.contains(route)) {
            let added = self.netlink.handle().route().add(route.clone()).replace().execute().await;
            if let Err(error) = added {
                // The link may be gone by now; then what it would lead to goes into the tunnel.
                debug!(%error, link, "no route at home");
            }
        }
        for route in present.into_iter().filter(|route| !wanted.contains(route)) {
            unless(Errno::ESRCH, self.netlink.handle().route().del(route).execute().await)?;
        }
        Ok(())
    }
}

/// The rules of a layout: those of a tunnel that stands aside, or before that those for what comes from its own addresses.
fn rules(layout: &Layout, tunnel: u32) -> Vec<Rule> {
    let Layout { addresses, networks, routes, blocked, dns, .. } = layout;
    let (own, home) = (own_table(tunnel), home_table(tunnel));
    let rule = |net: IpNet, priority, table| Rule::lookup(net.addr().into(), priority, table);
    if layout.aside.is_none() {
        let taken = from_own(layout);
        return taken
            .map(|(from, to)| rule(from, FROM_INNER_TO_HOME, own).from(from).to(to))
            .collect();
    }
    // The kernel takes a rule to everything for the same as one of its priority to a network, so that only the widest networks
    // have rules.
    let taken = IpNet::aggregate(&[&routes[..], blocked].concat());
    let from = addresses.iter().map(|net| rule(*net, FROM_INNER, own).from(*net));
    let resolvers = dns.servers.iter().map(|it| IpNet::from(*it));
    let to = |nets: Vec<IpNet>, priority, table| {
        nets.into_iter().map(move |net| rule(net, priority, table).to(net))
    };
    from.chain(to(resolvers.collect(), TO_RESOLVER, own))
        .chain(to(networks.clone(), TO_NETWORK, own))
        .chain(to(taken, TO_ROUTE, home))
        .collect()
}

/// The tunnel's own addresses, each with the networks of home to which it sends through the tunnel.
fn from_own(layout: &Layout) -> impl Iterator<Item = (IpNet, IpNet)> {
    layout.addresses.iter().flat_map(|from| {
        let same = |to: &&IpNet| to.addr().is_ipv4() == from.addr().is_ipv4();
        layout.home.iter().filter(same).map(|to| (*from, *to))
    })
}

/// The routes of the tunnel's own table.
pub(super) fn destinations(layout: &Layout, tunnel: u32) -> Vec<Destination> {
    let all = |is_v4| if is_v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
    let addresses = layout.addresses.iter().copied().filter(|_| layout.aside.is_some());
    let taken = addresses.chain(from_own(layout).map(|(from, _)| from));
    let mut found: Vec<IpNet> = taken.map(|net| all(net.addr().is_ipv4())).collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(|net| Destination { net, table: Some(own_table(tunnel)) }).collect()
}

/// What leads into the tunnel whose interface has this index.
fn own_table(tunnel: u32) -> u32 {
    TABLE.wrapping_add(tunnel)
}

/// What leads over the link of home.
fn home_table(tunnel: u32) -> u32 {
    TABLE.wrapping_sub(tunnel)
}

/// Whether a rule of ours is one of this tunnel, or of one whose interface is gone.
fn belongs(rule: &Rule, tunnel: u32) -> bool {
    // nix gives an empty name in place of an error.
    let is_gone = |index| !if_indextoname(index).is_ok_and(|name| !name.is_empty());
    let of = |index: u32| index == tunnel || is_gone(index);
    match (rule.priority(), rule.table()) {
        (Some(FROM_INNER | TO_RESOLVER | FROM_INNER_TO_HOME | TO_NETWORK), Some(table)) => {
            of(table.wrapping_sub(TABLE))
        }
        (Some(TO_ROUTE), Some(table)) => of(TABLE.wrapping_sub(table)),
        _ => false,
    }
}

fn table_of_route(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(route.header.table.into())
}

/// The same unicast route in another table.
fn copy(route: &RouteMessage, table: u32) -> Option<RouteMessage> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut copy = route.clone();
    copy.header.table = RouteHeader::RT_TABLE_UNSPEC;
    copy.header.protocol = PROTOCOL;
    copy.header.flags &= RouteFlags::Onlink;
    copy.attributes.retain(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Destination(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::PrefSource(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Priority(_)
        )
    });
    copy.attributes.push(RouteAttribute::Table(table));
    Some(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dns;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn layout() -> Layout {
        Layout {
            addresses: nets(&["10.66.0.2/32", "10.66.1.2/32", "fd66::2/128"]),
            networks: nets(&["10.66.0.0/24"]),
            routes: nets(&["10.1.0.0/16", "0.0.0.0/0"]),
            blocked: nets(&["::/0"]),
            dns: Dns { servers: vec!["10.1.0.53".parse().unwrap()], domains: vec!["a.b".into()] },
            ..Layout::default()
        }
        .aside("wlan0")
    }

    #[test]
    fn what_stays_in_the_tunnel_comes_before_what_goes_over_the_link() {
        let rules = rules(&layout(), 7);
        let found: Vec<_> = rules.iter().map(|it| it.priority().unwrap()).collect();
        assert_eq!(found, [5305, 5305, 5305, 5306, 5325, 5326, 5326]);
        let home = rules.iter().filter(|it| it.table() == Some(home_table(7))).count();
        assert_eq!(home, 2, "its routes, of which one has the other, and what is blocked");
        assert!(rules.iter().all(|rule| belongs(rule, 7)));
    }

    #[test]
    fn before_it_stands_aside_a_tunnel_takes_what_comes_from_its_own_addresses_to_home() {
        let elsewhere = Layout { aside: None, ..layout() };
        assert_eq!((rules(&elsewhere, 7), destinations(&elsewhere, 7)), (vec![], vec![]));
        let layout = Layout { home: nets(&["192.168.1.0/24"]), ..elsewhere };
        let rules_there = rules(&layout, 7);
        let found: Vec<_> = rules_there.iter().map(|it| it.priority().unwrap()).collect();
        assert_eq!(found, [5307, 5307], "one for each address of the family");
        assert!(rules_there.iter().all(|rule| belongs(rule, 7)));
        let (from, to) = (layout.addresses[0], layout.home[0]);
        let first = Rule::lookup(AddressFamily::Inet, FROM_INNER_TO_HOME, own_table(7));
        assert_eq!(rules_there[0], first.from(from).to(to));
        let found: Vec<_> = destinations(&layout, 7).iter().map(|it| it.net).collect();
        assert_eq!(found, nets(&["0.0.0.0/0"]));
        assert_eq!(rules(&layout.withdrawn(), 7), []);
        assert_eq!(destinations(&layout.withdrawn(), 7), []);
    }

    #[test]
    fn each_family_of_the_inner_addresses_has_one_route() {
        let found: Vec<_> = destinations(&layout(), 7).iter().map(|it| it.net).collect();
        assert_eq!(found, nets(&["0.0.0.0/0", "::/0"]));
        assert_eq!(destinations(&Layout::default(), 7), []);
    }

    #[test]
    fn a_tunnel_knows_its_own_rules_and_those_of_tunnels_that_are_gone() {
        let of = |tunnel| rules(&layout(), tunnel).into_iter();
        assert!(of(7).all(|rule| belongs(&rule, 7)));
        assert!(of(1 << 20).all(|rule| belongs(&rule, 7)), "no interface has this index");
        // The loopback interface, which is there, has the index 1.
        assert!(!of(1).any(|rule| belongs(&rule, 7)), "another tunnel's");
    }
}
