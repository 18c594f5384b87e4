//! Prefixes that both the tunnel and another link of this host lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};
use rtnetlink::RouteMessageBuilder;

use super::{finding::Finding, links};
use crate::link::netlink::Netlink;

/// A route of the main table: where to, and over which link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    net: IpNet,
    link: String,
}

/// Tells of networks of the tunnel, listed under `key`, that other links than `own` lead to as well.
pub(super) async fn collisions(
    key: &str,
    nets: &[IpNet],
    own: &str,
    tell: &mut dyn FnMut(Finding),
) {
    let routes = match routes().await {
        Ok(routes) => routes,
        Err(error) => {
            let found = format!("cannot be read: {error:#}");
            return tell(Finding::poor("routes", found, "netlink must be allowed"));
        }
    };
    for (net, link) in colliding(nets, &routes, own) {
        tell(Finding::poor(
            "routes",
            format!("{net} of {key} is the network of {link}, too"),
            "one of the two hides the other: choose another prefix for the tunnel, or a longer one",
        ));
    }
}

/// Those of `nets` that overlap with what a link other than `own` leads to, other than by default.
fn colliding<'a>(
    nets: &'a [IpNet],
    routes: &'a [Route],
    own: &'a str,
) -> impl Iterator<Item = (IpNet, &'a str)> {
    nets.iter().map(IpNet::trunc).filter(|net| net.prefix_len() > 0).filter_map(move |net| {
        let other = routes.iter().find(|route| {
            // A route for everything, or for half of it, is there to be overridden.
            route.link != own && route.net.prefix_len() > 1 && net.contains(&route.net)
        })?;
        Some((net, other.link.as_str()))
    })
}

async fn routes() -> anyhow::Result<Vec<Route>> {
    let netlink = Netlink::open()?;
    let links = links::all(&netlink).await?;
    let mut found = Vec::new();
    for question in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let mut routes = netlink.handle().route().get(question).execute();
        while let Some(route) = routes.try_next().await? {
            let Some((net, index)) = destination(&route) else { continue };
            let link = links.iter().find(|link| link.index == index);
            found.extend(link.map(|link| Route { net, link: link.name.clone() }));
        }
    }
    Ok(found)
}

/// Where a route of the main table leads, and the index of its link.
fn destination(route: &RouteMessage) -> Option<(IpNet, u32)> {
    let mut address = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut through, mut table) = (None, u32::from(route.header.table));
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(found)) => address = (*found).into(),
            RouteAttribute::Oif(found) => through = Some(*found),
            RouteAttribute::Table(found) => table = *found,
            _ => {}
        }
    }
    let net = IpNet::new(address, route.header.destination_prefix_length).ok()?;
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some((net, through?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_also_on_a_link_is_found_unless_it_is_a_default_route() {
        let route = |net: &str, link: &str| Route { net: net.parse().unwrap(), link: link.into() };
        let routes = [
            route("0.0.0.0/0", "wlan0"),
            route("192.168.1.0/24", "wlan0"),
            route("10.66.0.0/24", "roam0"),
            route("fe80::/64", "wlan0"),
        ];
        let found = |nets: &[&str]| {
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            let found = colliding(&nets, &routes, "roam0").map(|(net, _)| net.to_string());
            found.collect::<Vec<_>>()
        };
        assert_eq!(
            found(&["192.168.1.0/24", "10.0.0.0/8", "default"].map(|it| if it == "default" {
                "0.0.0.0/0"
            } else {
                it
            })),
            ["192.168.1.0/24"]
        );
        assert_eq!(found(&["192.168.0.0/16"]), ["192.168.0.0/16"]);
        assert_eq!(found(&["192.168.1.128/25", "10.66.0.1/24", "fd66::1/64"]), [""; 0]);
    }
}
