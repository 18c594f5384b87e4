//! Finds the links that could carry a path to the server.
//!
//! A link counts when it is up with carrier and the kernel has a route to the server through it.
//! The route is asked for, not guessed: a socket bound to a link without one sends ARP requests for
//! the server into a network that does not know it, and every send succeeds.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, State},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteVia},
};
use rtnetlink::RouteMessageBuilder;

use super::netlink::Netlink;
use crate::wire::foreign::{LIMIT, is_printable, printable};

/// What carries the QUIC packets of a path. Declared best first.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// UDP, as QUIC is made for.
    #[default]
    Udp,
    /// A TCP connection with TLS and HTTP, for networks that let no UDP out.
    Tcp,
    /// The same through an HTTP proxy, for networks that let nothing else out.
    Proxy,
    /// A CONNECT-UDP relay of somebody else, which sends UDP to the server.
    Relay,
}

impl Transport {
    /// All of them, the best first.
    pub(crate) const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Proxy, Self::Relay];

    /// Whether packets cross the network inside a TCP connection.
    #[must_use]
    pub(crate) fn is_stream(self) -> bool {
        self != Self::Udp
    }

    /// Whether the TCP connection leads to somebody else than the server.
    #[must_use]
    pub(crate) fn is_detour(self) -> bool {
        self > Self::Tcp
    }

    /// `what`, with the transport if it is not UDP, for people.
    #[must_use]
    pub(crate) fn mark(self, what: impl fmt::Display) -> String {
        match self {
            Self::Udp => what.to_string(),
            Self::Tcp => format!("{what} (tcp)"),
            Self::Proxy => format!("{what} (via proxy)"),
            Self::Relay => format!("{what} (via relay)"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Proxy => "proxy",
            Self::Relay => "relay",
        })
    }
}

/// A link that could carry a path to one address of the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// The link's name, such as `wlan0`.
    pub link: String,
    /// The link's index.
    pub index: u32,
    /// The address that the kernel would send from.
    pub source: IpAddr,
    /// The router that the kernel would send to, if one is on the way: it tells networks on one link apart.
    pub router: Option<IpAddr>,
    /// The metric of the route; the kernel prefers the smallest.
    pub metric: u32,
    /// The server's address, or that of who leads there.
    pub server: SocketAddr,
    /// How packets get there.
    pub transport: Transport,
}

impl Candidate {
    /// The same link and server, over TCP to its port `port`.
    #[must_use]
    pub(crate) fn over_tcp(&self, port: u16) -> Self {
        let server = SocketAddr::new(self.server.ip(), port);
        Self { server, transport: Transport::Tcp, ..self.clone() }
    }
}

/// Why a link carries no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It was taken down, or never brought up.
    Down,
    /// It is up without a carrier.
    NoCarrier,
    /// It has no address from which the server could be reached.
    NoAddress,
    /// The kernel has no route to the server through it.
    NoRoute,
    /// Its name has characters that are not printable.
    Name,
    /// The configuration excludes it (`paths.ignore`).
    Ignored,
    /// It has used up its budget (`paths.prefer.budget`).
    OverBudget,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "it is down",
            Self::NoCarrier => "it has no carrier",
            Self::NoAddress => "it has no address to reach the server from",
            Self::NoRoute => "it has no route to the server",
            Self::Name => "its name is not printable",
            Self::Ignored => "paths.ignore names it",
            Self::OverBudget => "its budget is used up",
        })
    }
}

/// Finds the links with a route to one of `servers`, by server; never the link `own`, which is the tunnel itself.
pub(crate) async fn candidates(
    netlink: &Netlink,
    servers: &[SocketAddr],
    own: u32,
) -> Result<Vec<Candidate>, rtnetlink::Error> {
    let (links, mut found) = (links(netlink).await?, Vec::new());
    for server in servers {
        for link in &links {
            // Loopback carries a path only to an address of this very machine.
            if link.header.index != own && (!is_loopback(link) || server.ip().is_loopback()) {
                found.extend(way(netlink, link, *server).await?.map(|way| way.candidate));
            }
        }
    }
    Ok(found)
}

/// The same for those of `servers` that are in the network of an Ethernet or wifi link: no router is on the way.
pub(crate) async fn neighbours(
    netlink: &Netlink,
    servers: &[SocketAddr],
    own: u32,
) -> Result<Vec<Candidate>, rtnetlink::Error> {
    let (links, mut found) = (links(netlink).await?, Vec::new());
    let is_other = |link: &&LinkMessage| link.header.index != own && has_neighbours(link);
    for server in servers {
        for link in links.iter().filter(is_other) {
            let way = way(netlink, link, *server).await?.ok();
            found.extend(way.filter(|way| way.is_direct).map(|way| way.candidate));
        }
    }
    Ok(found)
}

/// The names of all Ethernet and wifi links, where a server can be a neighbour.
pub(crate) async fn ethernet(netlink: &Netlink) -> Result<Vec<String>, rtnetlink::Error> {
    Ok(links(netlink).await?.iter().filter(|link| has_neighbours(link)).map(name).collect())
}

fn has_neighbours(link: &LinkMessage) -> bool {
    link.header.link_layer_type == LinkLayerType::Ether
}

/// Why each link but `own` and loopback carries no path to any of `servers`. Links that could carry one are
/// left out, unless the configuration excludes them.
pub(crate) async fn unusable(
    netlink: &Netlink,
    servers: &[SocketAddr],
    own: u32,
    is_ignored: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Unusable)>, rtnetlink::Error> {
    let mut found = Vec::new();
    'links: for link in links(netlink).await? {
        if link.header.index == own || is_loopback(&link) {
            continue;
        }
        let shown = || printable(&name(&link), LIMIT);
        if is_ignored(&name(&link)) {
            found.push((shown(), Unusable::Ignored));
            continue;
        }
        // Without a known address of the server there is no route to it.
        let mut why = Unusable::NoRoute;
        for server in servers {
            match way(netlink, &link, *server).await? {
                Ok(_) => continue 'links,
                Err(reason) => why = reason,
            }
        }
        found.push((shown(), why));
    }
    Ok(found)
}

async fn links(netlink: &Netlink) -> Result<Vec<LinkMessage>, rtnetlink::Error> {
    netlink.dump(|handle| handle.link().get().execute()).await
}

/// The candidate of a link for a server.
struct Way {
    candidate: Candidate,
    /// Whether the server is in a network of the link. A default route without a router, as a modem's, says nothing of who
    /// is there.
    is_direct: bool,
}

/// How to get to `server` over `link`, or why that is not possible.
async fn way(
    netlink: &Netlink,
    link: &LinkMessage,
    server: SocketAddr,
) -> Result<Result<Way, Unusable>, rtnetlink::Error> {
    let index = link.header.index;
    // The kernel takes all but white space, / and : in a name, and a name goes to logs and terminals.
    if !name(link).chars().all(is_printable) {
        return Ok(Err(Unusable::Name));
    }
    if !link.header.flags.contains(LinkFlags::Up) {
        return Ok(Err(Unusable::Down));
    }
    if !has_carrier(link) {
        return Ok(Err(Unusable::NoCarrier));
    }
    let Some(matched) = route(netlink, server.ip(), index, RouteFlags::FibMatch).await? else {
        return Ok(Err(Unusable::NoRoute));
    };
    let Some(chosen) = route(netlink, server.ip(), index, RouteFlags::empty()).await? else {
        return Ok(Err(Unusable::NoRoute));
    };
    let source = source(&chosen).filter(|source| is_usable(*source, is_loopback(link)));
    let (link, metric, router) = (name(link), metric(&matched), router(&chosen));
    let is_direct = matched.header.destination_prefix_length > 0 && router.is_none();
    let transport = Transport::Udp;
    let found = source.map(|source| Way {
        candidate: Candidate { link, index, source, router, metric, server, transport },
        is_direct,
    });
    Ok(found.ok_or(Unusable::NoAddress))
}

fn is_loopback(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Loopback)
}

/// Operational state (RFC 2863), not IFF_RUNNING: that one clears at every wifi roam. Links whose
/// driver does not report it are UNKNOWN, and wireless links are DORMANT for a moment; both can
/// carry packets.
fn has_carrier(link: &LinkMessage) -> bool {
    let down = link.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            LinkAttribute::OperState(State::Down | State::LowerLayerDown | State::NotPresent)
        )
    });
    !down
}

fn is_usable(source: IpAddr, loopback: bool) -> bool {
    let link_local = match source {
        IpAddr::V4(source) => source.is_link_local(),
        IpAddr::V6(source) => source.is_unicast_link_local(),
    };
    !source.is_unspecified() && !link_local && source.is_loopback() == loopback
}

/// Asks the kernel for its route to `destination` through link `index` (RTM_GETROUTE of
/// rtnetlink(7)); `None` if there is none. With `FibMatch` the answer is the table's own entry,
/// without it the kernel would invent an on-link route.
async fn route(
    netlink: &Netlink,
    destination: IpAddr,
    index: u32,
    flags: RouteFlags,
) -> Result<Option<RouteMessage>, rtnetlink::Error> {
    let mut question = match destination {
        IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .output_interface(index)
            .build(),
    };
    question.header.flags = flags;
    match netlink.handle().route().get(question).execute().try_next().await {
        Ok(answer) => Ok(answer),
        // Unreachable, prohibited or no such device: each means that there is no route through this link.
        Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn name(link: &LinkMessage) -> String {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

fn router(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(router))
        | RouteAttribute::Via(RouteVia::Inet(router)) => Some(IpAddr::V4(*router)),
        RouteAttribute::Gateway(RouteAddress::Inet6(router))
        | RouteAttribute::Via(RouteVia::Inet6(router)) => Some(IpAddr::V6(*router)),
        _ => None,
    })
}

fn metric(route: &RouteMessage) -> u32 {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or_default()
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(source)) => Some(IpAddr::V4(*source)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => Some(IpAddr::V6(*source)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn many_look_for_links_at_once() {
        let netlink = Netlink::open().unwrap();
        let servers = ["127.0.0.1:4433".parse().unwrap()];
        let found = join_all((0..20).map(|_| candidates(&netlink, &servers, 0))).await;
        assert!(found.iter().all(|it| it.as_ref().is_ok_and(|it| !it.is_empty())), "{found:?}");
    }
}
