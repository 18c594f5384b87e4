//! Routing rules that let the server's packets through strict reverse path filters.
//!
//! Such a filter (`rp_filter` = 1 of ip-sysctl, the default of RHEL) drops an IPv4 packet when the way back to its
//! sender leads over another link: all that the server sends over a standby, and into a tunnel that takes everything
//! all that the server sends at all. The kernel looks that way up as for an answer, from the packet's destination
//! address and without a mark. So there is a rule for each link with such a filter and each address of the server,
//! and a table for each link:
//!
//! ```text
//!  5300  from LOCAL to SERVER fwmark 0/0xffffffff  lookup TABLE
//!        TABLE: SERVER via ROUTER dev LINK
//! ```
//!
//! The packets of roamd itself have a mark and are not led by it. Of other programs it leads what they send to the
//! server from the link's own address, and over that link. The table's number tells the tunnel that a rule belongs to, so
//! that two tunnels do not disturb each other.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope},
};
use nix::errno::Errno;
use rtnetlink::{Error, RouteMessageBuilder};
use tokio::{sync::Mutex, time};
use tracing::{debug, warn};
use wildmatch::WildMatch;

use super::{
    Layout, facts,
    record::Record,
    rule_set::{self, PROTOCOL, Rule},
    sysctl,
};
use crate::link::{
    candidate::{Candidate, candidates},
    monitor::Hints,
    netlink::{Netlink, os_error, unless},
};

/// Before the rules of a tunnel that takes everything, for which the server's address is one like all others.
const PRIORITY: u32 = 5300;
/// From one look at links and routes to the next, at least.
const SETTLE: Duration = Duration::from_millis(20);

/// The rules and routes of one tunnel.
#[derive(Debug)]
pub(crate) struct ReversePaths {
    netlink: Netlink,
    /// Gives the routes of one table only.
    strict: Netlink,
    /// The index of the tunnel's interface.
    tunnel: u32,
    record: Record,
    wanted: Mutex<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    servers: Vec<Ipv4Addr>,
    ignore: Vec<WildMatch>,
}

/// A way back to the server which a filter is to find.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    link: u32,
    local: Ipv4Addr,
    server: Ipv4Addr,
    /// The next router, if there is one.
    router: Option<RouteAttribute>,
}

impl ReversePaths {
    /// None yet, or those that an earlier run has left.
    pub(crate) fn new(tunnel: u32, record: Record) -> io::Result<Self> {
        let (netlink, strict) = (Netlink::open()?, Netlink::open_strict()?);
        Ok(Self { netlink, strict, tunnel, record, wanted: Mutex::default() })
    }

    /// Lets through what comes from the layout's servers.
    pub(crate) async fn set(&self, layout: &Layout) {
        let mut wanted = self.wanted.lock().await;
        let v4 = layout.servers.iter().chain(&layout.detours).filter_map(v4);
        wanted.servers = v4.collect();
        wanted.servers.sort_unstable();
        wanted.servers.dedup();
        wanted.ignore = layout.ignored.iter().map(|link| WildMatch::new(link)).collect();
        self.mend(&wanted).await;
    }

    /// Follows the host's links and routes, and puts back what others delete, for as long as it is polled.
    pub(crate) async fn keep(&self, mut hints: Hints) -> Infallible {
        loop {
            hints.changed().await;
            self.mend(&*self.wanted.lock().await).await;
            // A path's first packet may be under way already.
            time::sleep(SETTLE).await;
        }
    }

    /// Deletes all rules and routes of this tunnel, if there are any.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        let mut wanted = self.wanted.lock().await;
        *wanted = Wanted::default();
        self.remove_earlier(None).await
    }

    async fn mend(&self, wanted: &Wanted) {
        let mended = async {
            self.remove_earlier(Some(self.tunnel)).await?;
            let ways = self.find(wanted).await?;
            if ways.is_empty() {
                return self.remove_earlier(None).await;
            }
            self.record.update(|changes| changes.reverse_paths = Some(self.tunnel));
            self.make(self.tunnel, &ways).await
        };
        if let Err(error) = mended.await {
            warn!(%error, "a strict reverse path filter may drop what the server sends");
        }
    }

    /// Deletes what the record tells of, unless it is for the interface `but`.
    async fn remove_earlier(&self, but: Option<u32>) -> Result<(), Error> {
        if let Some(tunnel) = self.record.changes().reverse_paths.filter(|it| Some(*it) != but) {
            self.make(tunnel, &[]).await?;
            self.record.update(|changes| changes.reverse_paths = None);
        }
        Ok(())
    }

    /// What the filters of this host have to find.
    async fn find(&self, wanted: &Wanted) -> Result<Vec<Way>, Error> {
        let mut ways = Vec::new();
        if !sysctl::links().unwrap_or_default().iter().any(|link| is_strict(link)) {
            return Ok(ways);
        }
        // The port does not matter to a route.
        let servers: Vec<_> = wanted.servers.iter().map(|server| (*server, 0).into()).collect();
        for path in candidates(&self.netlink, &servers, self.tunnel).await? {
            let is_ignored = wanted.ignore.iter().any(|ignored| ignored.matches(&path.link));
            if let (IpAddr::V4(local), IpAddr::V4(server)) = (path.source, path.server.ip())
                && !is_ignored
                && is_strict(&path.link)
                && let Some(route) =
                    facts::route(&self.netlink, server.into(), Some(path.index)).await?
            {
                let (link, router) = (path.index, router(&route));
                ways.push(Way { link, local, server, router });
            }
        }
        Ok(ways)
    }

    /// Makes these ways the ones of the tunnel.
    async fn make(&self, tunnel: u32, ways: &[Way]) -> Result<(), Error> {
        let belongs = |rule: &Rule| belongs(rule, tunnel);
        let found = rule_set::found(&self.netlink, belongs).await?;
        let mut tables: Vec<_> = found.iter().filter_map(Rule::table).collect();
        tables.extend(ways.iter().map(|way| way.table(tunnel)));
        tables.sort_unstable();
        tables.dedup();
        for table in tables {
            let ways: Vec<_> = ways.iter().filter(|way| way.table(tunnel) == table).collect();
            self.make_routes(table, &ways).await?;
        }
        let wanted: Vec<_> = ways.iter().map(|way| way.rule(tunnel)).collect();
        let added = rule_set::make(&self.netlink, &wanted, belongs).await?;
        if added > 0 {
            debug!(?ways, "let through");
        }
        Ok(())
    }

    async fn make_routes(&self, table: u32, ways: &[&Way]) -> Result<(), Error> {
        let routes = self.routes(table).await?;
        for way in ways {
            if !routes.iter().any(|route| way.is_routed_by(route)) {
                let request = self.netlink.handle().route().add(way.route(table)).replace();
                if let Err(error) = request.execute().await {
                    // The link may be gone by now. What follows from that is heard of.
                    debug!(%error, link = way.link, "no way back");
                }
            }
        }
        for route in routes {
            if !ways.iter().any(|way| destination(&route) == Some(way.server)) {
                unless(Errno::ESRCH, self.netlink.handle().route().del(route).execute().await)?;
            }
        }
        Ok(())
    }

    /// The routes in one table.
    async fn routes(&self, table: u32) -> Result<Vec<RouteMessage>, Error> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        question.attributes.push(RouteAttribute::Table(table));
        let mut routes = Vec::new();
        let mut messages = self.strict.handle().route().get(question).execute();
        loop {
            match messages.try_next().await {
                Ok(Some(route)) if route.attributes.contains(&RouteAttribute::Table(table)) => {
                    routes.push(route);
                }
                // An old kernel tells of all tables.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(routes),
                // There is no such table yet.
                Err(error) if os_error(&error) == Some(Errno::ENOENT as i32) => return Ok(routes),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Way {
    fn table(&self, tunnel: u32) -> u32 {
        table(tunnel, self.link)
    }

    fn rule(&self, tunnel: u32) -> Rule {
        let rule = Rule::lookup(AddressFamily::Inet, PRIORITY, self.table(tunnel));
        rule.from(IpAddr::V4(self.local).into()).to(IpAddr::V4(self.server).into()).unmarked()
    }

    fn route(&self, table: u32) -> RouteMessage {
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.server, 32)
            .output_interface(self.link)
            .table_id(table)
            .protocol(PROTOCOL)
            .build();
        match &self.router {
            // It is where the kernel said, also where no other route leads to it.
            Some(router) => {
                message.attributes.push(router.clone());
                message.header.flags |= RouteFlags::Onlink;
            }
            None => message.header.scope = RouteScope::Link,
        }
        message
    }

    fn is_routed_by(&self, route: &RouteMessage) -> bool {
        destination(route) == Some(self.server)
            && route.attributes.contains(&RouteAttribute::Oif(self.link))
            && router(route) == self.router
    }
}

/// The table of a tunnel and a link, by the indices of both: those with the highest bit are nobody else's.
fn table(tunnel: u32, link: u32) -> u32 {
    1 << 31 | (tunnel & 0x7fff) << 16 | link & 0xffff
}

/// Whether a rule of ours is one of this tunnel.
fn belongs(rule: &Rule, tunnel: u32) -> bool {
    let is_of_tunnel = |number: u32| number >> 16 == table(tunnel, 0) >> 16;
    rule.priority() == Some(PRIORITY) && rule.table().is_some_and(is_of_tunnel)
}

fn destination(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn router(route: &RouteMessage) -> Option<RouteAttribute> {
    let is_router =
        |it: &&RouteAttribute| matches!(it, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    route.attributes.iter().find(is_router).cloned()
}

fn v4(server: &SocketAddr) -> Option<Ipv4Addr> {
    match server.ip().to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Whether a link has a strict filter: the larger of its own value and that of `all` counts.
fn is_strict(link: &str) -> bool {
    let value = |link| sysctl::read(&format!("ipv4/conf/{link}/rp_filter")).unwrap_or_default();
    link != "all" && value(link).max(value("all")) == "1"
}

/// Whether what the server sends passes the filter of this path's link. The kernel is asked as the filter asks it.
pub(crate) async fn passes(netlink: &Netlink, path: &Candidate) -> Result<bool, Error> {
    let (IpAddr::V4(local), Some(server)) = (path.source, v4(&path.server)) else {
        return Ok(true);
    };
    if !is_strict(&path.link) {
        return Ok(true);
    }
    let question = RouteMessageBuilder::<Ipv4Addr>::new()
        .source_prefix(local, 32)
        .destination_prefix(server, 32)
        .build();
    let way = netlink.handle().route().get(question).execute().try_next().await?;
    Ok(way.is_some_and(|way| way.attributes.contains(&RouteAttribute::Oif(path.index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn way(link: u32) -> Way {
        let router = Some(RouteAttribute::Gateway(RouteAddress::Inet(ROUTER)));
        Way { link, local: [10, 0, 0, 2].into(), server: [192, 0, 2, 1].into(), router }
    }

    #[test]
    fn ways_read_as_they_are_written() {
        let on_link = Way { router: None, ..way(3) };
        for way in [way(3), on_link] {
            assert!(belongs(&way.rule(7), 7));
            assert!(way.is_routed_by(&way.route(way.table(7))));
        }
    }

    #[test]
    fn a_way_differs_by_each_of_its_parts() {
        let others = [
            way(4),
            Way { local: [10, 0, 0, 3].into(), ..way(3) },
            Way { server: [192, 0, 2, 2].into(), ..way(3) },
            Way { router: None, ..way(3) },
        ];
        for other in others {
            let same_rule = way(3).rule(7) == other.rule(7);
            let same_route = way(3).is_routed_by(&other.route(other.table(7)));
            assert!(!(same_rule && same_route), "{other:?}");
        }
        assert!(!belongs(&way(3).rule(8), 7), "another tunnel's");
    }

    #[test]
    fn tunnels_and_links_have_tables_of_their_own() {
        let numbers = [(1, 2), (2, 1), (1, 3), (3, 1)].map(|(tunnel, link)| table(tunnel, link));
        for (place, number) in numbers.iter().enumerate() {
            assert!(!numbers[..place].contains(number));
            assert!(*number > i32::MAX as u32);
        }
    }

    #[test]
    fn only_ipv4_has_such_filters() {
        assert_eq!(v4(&"[::ffff:192.0.2.1]:4433".parse().unwrap()), Some([192, 0, 2, 1].into()));
        assert_eq!(v4(&"[2001:db8::1]:4433".parse().unwrap()), None);
    }
}
