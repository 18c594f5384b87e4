//! Routes as rtnetlink(7) has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
};
use rtnetlink::RouteMessageBuilder;

use crate::link::netlink::Netlink;

/// IPv6 routes without a metric get 1024, more than the 256 of a link's own network: of two routes to the same
/// network ours would not count. An IPv4 route without a metric has 0, the best.
const METRIC_V6: u32 = 1;

/// What is routed through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    /// The network.
    pub net: IpNet,
    /// The table of the route; `None` is the main one.
    pub table: Option<u32>,
}

impl Destination {
    /// The route to it through the interface with this index.
    pub(in crate::host) fn message(self, index: u32) -> RouteMessage {
        let (network, prefix) = (self.net.network(), self.net.prefix_len());
        let table = self.table.unwrap_or(RouteHeader::RT_TABLE_MAIN.into());
        match network {
            IpAddr::V4(network) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network, prefix)
                .output_interface(index)
                .table_id(table)
                .build(),
            IpAddr::V6(network) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network, prefix)
                .output_interface(index)
                .table_id(table)
                .priority(METRIC_V6)
                .build(),
        }
    }

    /// What the route leads to, if it is one through the interface with this index and not the kernel's.
    fn read(route: &RouteMessage, index: u32) -> Option<Self> {
        let mut address = match route.header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let mut table = route.header.table.into();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
                RouteAttribute::Destination(RouteAddress::Inet6(found)) => {
                    address = (*found).into();
                }
                RouteAttribute::Table(found) => table = *found,
                _ => {}
            }
        }
        let is_ours = oif(route) == Some(index) && route.header.protocol != RouteProtocol::Kernel;
        let net = IpNet::new(address, route.header.destination_prefix_length).ok()?;
        let table = Some(table).filter(|table| *table != u32::from(RouteHeader::RT_TABLE_MAIN));
        is_ours.then_some(Self { net, table })
    }
}

/// The routes through the interface with this index, without those that the kernel adds by itself; with `protocol`
/// only those that it has set. On a socket with strict checks the kernel itself leaves out all others, however many
/// there are.
pub(in crate::host) async fn through(
    netlink: &Netlink,
    index: u32,
    protocol: Option<RouteProtocol>,
) -> Result<Vec<Destination>, rtnetlink::Error> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.protocol = protocol.unwrap_or_default();
        question.attributes.push(RouteAttribute::Oif(index));
        let mut routes = netlink.handle().route().get(question).execute();
        while let Some(route) = routes.try_next().await? {
            // A kernel without strict checks shows all others as well.
            if protocol.is_none_or(|protocol| route.header.protocol == protocol) {
                found.extend(Destination::read(&route, index));
            }
        }
    }
    Ok(found)
}

/// The question for the route to `address`, as strict checks want it.
pub(super) fn one_to(address: IpAddr) -> RouteMessage {
    let mut question = match address {
        IpAddr::V4(address) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
        }
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let RouteHeader { address_family, destination_prefix_length, .. } = question.header;
    question.header =
        RouteHeader { address_family, destination_prefix_length, ..RouteHeader::default() };
    question
}

/// The index of the interface that a route leads through.
pub(super) fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
