//! Addresses of a namespace's links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::LinkFlags,
};
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
        })?;
        match net.addr() {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(address) => self.await_local_route(link, address),
        }
    }

    /// Waits until a new IPv6 address can be reached. In the background the kernel joins its
    /// solicited-node group, then adds its local route; a neighbour that asks before gets no
    /// answer and asks again only after a second. A link that is not running has to wait for that.
    fn await_local_route(&self, link: &str, address: Ipv6Addr) -> Result<()> {
        if !self.link_flags(link)?.contains(LinkFlags::Running) {
            return Ok(());
        }
        self.wait_until(format!("see the local route of {address} on {link}"), || {
            let routes = self.inside("read its IPv6 routes", |_| {
                std::fs::read_to_string("/proc/thread-self/net/ipv6_route")
            })?;
            Ok(routes.lines().any(|line| is_local_route(line, address)))
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

/// Whether a line of `/proc/net/ipv6_route` is the route that delivers packets to `address` here.
fn is_local_route(line: &str, address: Ipv6Addr) -> bool {
    /// linux/ipv6_route.h: `RTF_LOCAL`.
    const LOCAL: u32 = 1 << 31;
    let mut columns = line.split_whitespace();
    let destination = columns.next().and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let length = columns.next();
    let flags = columns.nth(6).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    destination == Some(address.to_bits())
        && length == Some("80")
        && flags.is_some_and(|flags| flags & LOCAL != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "fd000000000000000000000000000002 80 00000000000000000000000000000000 00 \
                         00000000000000000000000000000000 00000000 00000001 00000000 80200001 lo";

    #[test]
    fn the_local_route_of_an_address_is_recognised() {
        assert!(is_local_route(LOCAL, "fd00::2".parse().unwrap()));
        assert!(!is_local_route(LOCAL, "fd00::1".parse().unwrap()));
        assert!(!is_local_route(&LOCAL.replace("8020", "0020"), "fd00::2".parse().unwrap()));
    }
}
