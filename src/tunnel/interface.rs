//! The TUN device as the kernel's network sees it: addresses, MTU and routes, through rtnetlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
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

/// What a session sets up on this side.
pub trait Setup: Send {
    /// Sets MTU (bytes), addresses and routes; what stays is not touched.
    fn set(
        &mut self,
        mtu: u16,
        addresses: &[IpNet],
        routes: &[IpNet],
    ) -> impl Future<Output = Result<(), InterfaceError>> + Send;
}

/// An interface of ours. Addresses and routes vanish with the device, so nothing is undone on drop.
#[derive(Debug)]
pub struct Interface {
    netlink: Netlink,
    name: String,
    index: u32,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
}

impl Setup for Interface {
    async fn set(
        &mut self,
        mtu: u16,
        addresses: &[IpNet],
        routes: &[IpNet],
    ) -> Result<(), InterfaceError> {
        self.set_mtu(mtu).await?;
        self.set_addresses(addresses).await?;
        self.set_routes(routes).await
    }
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
        Ok(interface)
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

    /// Makes `wanted` the routes through the interface; those that stay are not touched.
    async fn set_routes(&mut self, wanted: &[IpNet]) -> Result<(), InterfaceError> {
        // The kernel made these with the addresses.
        let connected: Vec<_> = self.addresses.iter().map(IpNet::trunc).collect();
        let wanted = difference(wanted, &connected);
        let routes = self.netlink.handle().route();
        for net in difference(&self.routes, &wanted) {
            let result = routes.del(route_message(net, self.index)).execute().await;
            self.because(format_args!("remove route {net}"), unless(Errno::ESRCH, result))?;
            self.routes.retain(|kept| *kept != net);
        }
        for net in difference(&wanted, &self.routes) {
            let result = routes.add(route_message(net, self.index)).execute().await;
            self.because(format_args!("add route {net}"), result)?;
            self.routes.push(net);
        }
        Ok(())
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
fn difference(left: &[IpNet], right: &[IpNet]) -> Vec<IpNet> {
    left.iter().filter(|net| !right.contains(net)).copied().collect()
}

fn route_message(route: IpNet, index: u32) -> netlink_packet_route::route::RouteMessage {
    let (network, prefix) = (route.network(), route.prefix_len());
    match network {
        IpAddr::V4(network) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(network, prefix)
            .output_interface(index)
            .build(),
        IpAddr::V6(network) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(network, prefix)
            .output_interface(index)
            .build(),
    }
}
