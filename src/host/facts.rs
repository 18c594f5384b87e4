//! What a host has without its tunnel: nothing of it is for a server to take.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    address::AddressAttribute,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use nix::net::if_::if_indextoname;
use rtnetlink::{Error, RouteMessageBuilder};

use crate::link::{candidate, netlink::Netlink};

/// Where resolvers are written down: for programs, and those behind the stub of systemd-resolved.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Resolvers that are looked at, of each file; resolv.conf(5) has three at most.
const MOST_RESOLVERS: usize = 8;
/// Addresses far away, to ask for the way there. Nothing is sent to them.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
];

/// What a host has without its tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its own addresses, each with its link.
    pub addresses: Vec<(String, IpAddr)>,
    /// The networks on its links.
    pub networks: Vec<(String, IpNet)>,
    /// Its Ethernet and wifi links, where a server can be a neighbour.
    pub ethernet: Vec<String>,
    /// The routers that its links have.
    pub gateways: Vec<(String, IpAddr)>,
    /// Who is asked about names.
    pub resolvers: Vec<IpAddr>,
}

/// Looks around, but not at the interface with the index `tunnel`.
pub(crate) async fn survey(netlink: &Netlink, tunnel: u32) -> Result<Facts, Error> {
    let mut facts = Facts { ethernet: candidate::ethernet(netlink).await?, ..Facts::default() };
    let mut links = Vec::new();
    let mut messages = netlink.handle().address().get().execute();
    while let Some(message) = messages.try_next().await? {
        let index = message.header.index;
        if index == tunnel {
            continue;
        }
        let (mut own, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                // At the end of a point-to-point link this is ours, and the other one the far end's.
                AddressAttribute::Local(found) => own = Some(*found),
                AddressAttribute::Address(found) => address = Some(*found),
                _ => {}
            }
        }
        let (Some(own), Some(address)) = (own.or(address), address.or(own)) else { continue };
        // It is gone since the kernel listed it.
        let Ok(link) = if_indextoname(index) else { continue };
        let link = link.to_string_lossy().into_owned();
        if let Ok(net) = IpNet::new(address, message.header.prefix_len) {
            facts.networks.push((link.clone(), net.trunc()));
        }
        facts.addresses.push((link.clone(), own));
        links.push((index, link, own.is_ipv4()));
    }
    links.sort_unstable();
    links.dedup();
    for (index, link, is_v4) in links {
        let [v4, v6] = ANYWHERE;
        let way = route(netlink, if is_v4 { v4 } else { v6 }, Some(index)).await?;
        facts.gateways.extend(way.and_then(|way| gateway(&way)).map(|it| (link, it)));
    }
    for resolver in resolvers() {
        // Resolvers in the tunnel are the server's.
        let way = route(netlink, resolver, None).await?;
        let is_ours = way.is_some_and(|way| {
            way.attributes.iter().any(|it| matches!(it, RouteAttribute::Oif(oif) if *oif == tunnel))
        });
        if !is_ours && !facts.resolvers.contains(&resolver) {
            facts.resolvers.push(resolver);
        }
    }
    facts.ethernet.sort_unstable();
    facts.addresses.sort_unstable();
    facts.networks.sort_unstable();
    facts.networks.dedup();
    Ok(facts)
}

/// The kernel's route to `destination`, through the link `index` if one is given.
pub(super) async fn route(
    netlink: &Netlink,
    destination: IpAddr,
    index: Option<u32>,
) -> Result<Option<RouteMessage>, Error> {
    let mut question = match destination {
        IpAddr::V4(address) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
        }
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    question.attributes.extend(index.map(RouteAttribute::Oif));
    match netlink.handle().route().get(question).execute().try_next().await {
        Ok(answer) => Ok(answer),
        // There is none.
        Err(Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn resolvers() -> Vec<IpAddr> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    RESOLVERS.into_iter().flat_map(|file| nameservers(&read(file))).collect()
}

/// The resolvers of a resolv.conf(5), but for a stub on this very host.
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|address: &IpAddr| !address.is_loopback())
        .take(MOST_RESOLVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_they_are_written() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 127.0.0.53\n\
                    nameserver 192.0.2.1\nnameserver\t2001:db8::53\nnameserver fe80::1%eth0\n";
        let expected = ["192.0.2.1", "2001:db8::53"].map(|it| it.parse::<IpAddr>().unwrap());
        assert_eq!(nameservers(text), expected);
    }
}
