//! The TUN device as the kernel's network sees it: addresses, MTU and routes, through rtnetlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tracing::debug;

use crate::{
    link::monitor::Monitor,
    netlink::{Netlink, os_error},
};

/// Why the interface can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("interface {interface}: can't {action}: {source}")]
pub struct InterfaceError {
    interface: String,
    action: String,
    source: rtnetlink::Error,
}

impl InterfaceError {
    /// The operating system's error, if it is one.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        os_error(&self.source)
    }
}

/// What is routed through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The network.
    pub net: IpNet,
    /// The table of the route; `None` is the main one.
    pub table: Option<u32>,
}

/// An interface of ours. Addresses and routes vanish with the device, so nothing is undone on drop.
#[derive(Debug)]
pub struct Interface {
    netlink: Netlink,
    name: String,
    index: u32,
    addresses: Vec<IpNet>,
    routes: Vec<Destination>,
}

impl Interface {
    /// Finds the interface and brings it up.
    pub async fn up(netlink: Netlink, name: &str, mtu: u16) -> Result<Self, InterfaceError> {
        let mut interface = Self {
            netlink,
            name: name.into(),
            index: 0,
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        let links = interface.netlink.handle().link();
        let found = links.get().match_name(name.to_owned()).execute().try_next().await;
        let link = found.and_then(|link| link.ok_or(rtnetlink::Error::RequestFailed));
        interface.index = interface.because("find it", link)?.header.index;
        // No link-local address of the kernel's choice: the far end would drop its packets as
        // foreign.
        let quiet = LinkUnspec::new_with_index(interface.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
            ])]))
            .build();
        if let Err(error) = links.set(quiet).execute().await {
            debug!(%error, name, "link-local address generation stays on");
        }
        let up = LinkUnspec::new_with_index(interface.index).mtu(mtu.into()).up().build();
        let result = links.set(up).execute().await;
        interface.because(format_args!("bring it up with MTU {mtu}"), result)?;
        // A device that was handed over has what the last daemon gave it.
        let addresses = interface.found_addresses().await;
        interface.addresses = interface.because("look for its addresses", addresses)?;
        let routes = interface.found_routes().await;
        interface.routes = interface.because("look for its routes", routes)?;
        Ok(interface)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index (if_nametoindex(3)).
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Changes the MTU, in bytes.
    async fn set_mtu(&self, mtu: u16) -> Result<(), InterfaceError> {
        let message = LinkUnspec::new_with_index(self.index).mtu(mtu.into()).build();
        let result = self.netlink.handle().link().set(message).execute().await;
        self.because(format_args!("set its MTU to {mtu}"), result)
    }

    /// Makes `wanted` the addresses of the interface; those that stay are not touched.
    pub async fn set_addresses(&mut self, wanted: &[IpNet]) -> Result<(), InterfaceError> {
        let addresses = self.netlink.handle().address();
        for net in difference(&self.addresses, wanted) {
            let message =
                addresses.add(self.index, net.addr(), net.prefix_len()).message_mut().clone();
            let result = addresses.del(message).execute().await;
            let result = unless(Errno::EADDRNOTAVAIL, result);
            self.because(format_args!("remove address {net}"), result)?;
            self.addresses.retain(|kept| *kept != net);
        }
        for net in difference(wanted, &self.addresses) {
            let result = addresses.add(self.index, net.addr(), net.prefix_len()).execute().await;
            let result = unless(Errno::EEXIST, result);
            self.because(format_args!("add address {net}"), result)?;
            self.addresses.push(net);
        }
        Ok(())
    }

    /// Sets MTU (bytes), addresses and routes; what stays is not touched.
    pub async fn set(
        &mut self,
        mtu: u16,
        addresses: &[IpNet],
        routes: &[Destination],
    ) -> Result<(), InterfaceError> {
        self.set_mtu(mtu).await?;
        self.set_addresses(addresses).await?;
        self.set_routes(routes).await
    }

    /// Makes `wanted` the routes through the interface; those that stay are not touched.
    async fn set_routes(&mut self, wanted: &[Destination]) -> Result<(), InterfaceError> {
        // The kernel made these with the addresses.
        let connected: Vec<_> = self
            .addresses
            .iter()
            .map(|net| Destination { net: net.trunc(), table: None })
            .collect();
        let wanted = difference(wanted, &connected);
        for route in difference(&self.routes, &wanted) {
            let request = self.netlink.handle().route().del(route_message(route, self.index));
            let result = unless(Errno::ESRCH, request.execute().await);
            self.because(format_args!("remove route {}", route.net), result)?;
            self.routes.retain(|kept| *kept != route);
        }
        for route in difference(&wanted, &self.routes) {
            self.add_route(route).await?;
            self.routes.push(route);
        }
        Ok(())
    }

    async fn add_route(&self, route: Destination) -> Result<(), InterfaceError> {
        let request = self.netlink.handle().route().add(route_message(route, self.index));
        self.because(format_args!("add route {}", route.net), request.execute().await)
    }

    /// Adds the routes that somebody deleted; returns how many that were.
    pub async fn restore_routes(&self) -> Result<usize, InterfaceError> {
        let found = self.because("look for its routes", self.found_routes().await)?;
        let missing = difference(&self.routes, &found);
        for route in &missing {
            self.add_route(*route).await?;
        }
        Ok(missing.len())
    }

    /// The routes through the interface that somebody set, not the kernel by itself.
    async fn found_routes(&self) -> Result<Vec<Destination>, rtnetlink::Error> {
        let mut found = Vec::new();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = self.netlink.handle().route().get(message).execute();
            while let Some(route) = routes.try_next().await? {
                found.extend(destination(&route, self.index));
            }
        }
        Ok(found)
    }

    async fn found_addresses(&self) -> Result<Vec<IpNet>, rtnetlink::Error> {
        let addresses = self.netlink.handle().address().get();
        let mut messages = addresses.set_link_index_filter(self.index).execute();
        let mut found = Vec::new();
        while let Some(message) = messages.try_next().await? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let net = address.map(|it| IpNet::new(it, message.header.prefix_len));
            found.extend(net.and_then(Result::ok));
        }
        Ok(found)
    }

    fn because<T>(
        &self,
        action: impl std::fmt::Display,
        result: Result<T, rtnetlink::Error>,
    ) -> Result<T, InterfaceError> {
        result.map_err(|source| InterfaceError {
            interface: self.name.clone(),
            action: action.to_string(),
            source,
        })
    }
}

/// Waits until the interface with this index is deleted: the kernel does not wake those who read
/// from its device.
pub async fn deleted(index: u32) -> std::io::Result<()> {
    let (mut monitor, netlink) = (Monitor::open()?, Netlink::open()?);
    loop {
        monitor.changed().await;
        match netlink.handle().link().get().match_index(index).execute().try_next().await {
            Err(error) if os_error(&error) == Some(Errno::ENODEV as i32) => return Ok(()),
            Ok(_) => {}
            Err(error) => debug!(%error, "can't look for the interface"),
        }
    }
}

/// Success also where the kernel says that nothing was left to do.
fn unless(done: Errno, result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if os_error(&error) == Some(done as i32) => Ok(()),
        other => other,
    }
}

/// What is in `left` and not in `right`.
fn difference<T: Copy + PartialEq>(left: &[T], right: &[T]) -> Vec<T> {
    left.iter().filter(|it| !right.contains(it)).copied().collect()
}

fn route_message(route: Destination, index: u32) -> RouteMessage {
    let (network, prefix) = (route.net.network(), route.net.prefix_len());
    let table = route.table.unwrap_or(RouteHeader::RT_TABLE_MAIN.into());
    match network {
        IpAddr::V4(network) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(network, prefix)
            .output_interface(index)
            .table_id(table)
            .build(),
        IpAddr::V6(network) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(network, prefix)
            .output_interface(index)
            .table_id(table)
            .build(),
    }
}

/// What the route leads to, if it is one through the interface with this index and not the kernel's.
fn destination(route: &RouteMessage, index: u32) -> Option<Destination> {
    let mut address = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut through, mut table) = (None, route.header.table.into());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(found)) => address = (*found).into(),
            RouteAttribute::Oif(found) => through = Some(*found),
            RouteAttribute::Table(found) => table = *found,
            _ => {}
        }
    }
    let is_ours = through == Some(index) && route.header.protocol != RouteProtocol::Kernel;
    let net = IpNet::new(address, route.header.destination_prefix_length).ok()?;
    let table = Some(table).filter(|table| *table != u32::from(RouteHeader::RT_TABLE_MAIN));
    is_ours.then_some(Destination { net, table })
}
