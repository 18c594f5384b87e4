//! Addresses of a namespace's links.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::{
    error::{Error, Result},
    namespace::Namespace,
};

impl Namespace {
    /// Gives `link` an address of either family, such as `10.77.1.2/24`. Adding one that is there
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// When there is no such link, or `address` is not one with a prefix length.
    pub fn add_address(&self, link: &str, address: &str) -> Result<()> {
        let net = parse_net(address)?;
        let index = self.ifindex(link)?;
        self.netlink(format!("add {address} to {link}"), async move |netlink| {
            let mut request = netlink.address().add(index, net.addr(), net.prefix_len());
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
            request.replace().execute().await
        })
    }

    /// Takes an address from `link`; the kernel deletes the routes that need it.
    ///
    /// # Errors
    ///
    /// When the link does not have it.
    pub fn delete_address(&self, link: &str, address: &str) -> Result<()> {
        let net = parse_net(address)?;
        let index = self.ifindex(link)?;
        self.netlink(format!("delete {address} from {link}"), async move |netlink| {
            netlink.address().del(message(index, net)).execute().await
        })
    }
}

/// Reads `10.77.1.2/24` or `fd77:1::2/64`.
pub(super) fn parse_net(text: &str) -> Result<IpNet> {
    text.parse().map_err(|_| Error::Malformed {
        text: text.to_owned(),
        expected: "an address with a prefix length, such as 10.77.1.2/24 or fd77:1::2/64",
    })
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    match net {
        IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}
