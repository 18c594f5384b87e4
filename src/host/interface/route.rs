//! Routes as rtnetlink(7) has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
};
use rtnetlink::RouteMessageBuilder;

/// IPv6 routes without a metric get 1024, more than the 256 of a link's own network: of two routes to the same
/// network ours would not count. An IPv4 route without a metric has 0, the best.
const METRIC_V6: u32 = 1;

/// What is routed through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(in crate::host) fn read(route: &RouteMessage, index: u32) -> Option<Self> {
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

/// The question for all routes of a family through the interface with this index. On a socket with strict
/// checks the kernel itself leaves out all others, however many there are.
pub(in crate::host) fn all_through(index: u32, family: AddressFamily) -> RouteMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    question.attributes.push(RouteAttribute::Oif(index));
    question
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
pub(in crate::host) fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
