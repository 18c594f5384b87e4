//! The TUN device as the kernel's network sees it: addresses, MTU and routes, through rtnetlink.
//!
//! An interface holds what is *wanted* of it, and [`Interface::mend`] gives the kernel whatever of that is
//! missing: at first, after somebody deleted it, and after what stood in its way is gone. What the kernel
//! refuses is left out and told of ([`Interface::left_out`]); a tunnel without one route is better than none.

mod left_out;
mod route;

use std::{collections::HashSet, convert::Infallible, hash::Hash, io, net::IpAddr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    address::AddressAttribute,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags},
};
use nix::{errno::Errno, net::if_::if_indextoname};
use rtnetlink::LinkUnspec;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::sysctl;
use crate::link::{
    monitor::Hints,
    netlink::{Netlink, os_error},
};
pub(crate) use left_out::{LeftOut, log};
pub(crate) use route::Destination;
pub(super) use route::through;

/// Why the interface cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("interface {interface}: cannot {action}: {source}")]
pub(crate) struct InterfaceError {
    interface: String,
    action: String,
    source: rtnetlink::Error,
}

impl InterfaceError {
    /// The operating system's error, if it is one.
    #[must_use]
    pub(crate) fn os_error(&self) -> Option<i32> {
        os_error(&self.source)
    }
}

/// An interface of ours. Addresses and routes vanish with the device, so nothing is undone on drop.
#[derive(Debug)]
pub(crate) struct Interface {
    netlink: Netlink,
    name: String,
    index: u32,
    wanted: Wanted,
    /// What we, or an earlier run of this daemon, gave it: what is not wanted any more is taken away, and what
    /// an admin added stays.
    given: Given,
    left_out: watch::Sender<Vec<LeftOut>>,
}

#[derive(Debug)]
struct Wanted {
    mtu: u16,
    addresses: Vec<IpNet>,
    routes: Vec<Destination>,
}

#[derive(Debug, Default)]
struct Given {
    addresses: Vec<IpNet>,
    routes: Vec<Destination>,
}

/// What a look at the interface came to.
#[derive(Default)]
struct Look {
    mended: usize,
    left_out: Vec<LeftOut>,
}

impl Interface {
    /// Finds the interface and brings it up.
    pub(crate) async fn up(netlink: Netlink, name: &str, mtu: u16) -> Result<Self, InterfaceError> {
        let mut interface = Self {
            netlink,
            name: name.into(),
            index: 0,
            wanted: Wanted { mtu, addresses: Vec::new(), routes: Vec::new() },
            given: Given::default(),
            left_out: watch::channel(Vec::new()).0,
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
        // The far end is no router of this host: no routes and addresses from advertisements (RFC 4861).
        for parameter in ["accept_ra", "autoconf"] {
            if let Err(error) = sysctl::write(&format!("ipv6/conf/{name}/{parameter}"), "0") {
                debug!(%error, "router advertisements are left to the check of packets");
            }
        }
        let up = LinkUnspec::new_with_index(interface.index).mtu(mtu.into()).up().build();
        let result = links.set(up).execute().await;
        interface.because(format_args!("bring it up with MTU {mtu}"), result)?;
        // A device that was handed over has what the last daemon gave it.
        let addresses = interface.found_addresses().await;
        interface.given.addresses = interface.because("look for its addresses", addresses)?;
        let routes = interface.found_routes().await;
        interface.given.routes = interface.because("look for its routes", routes)?;
        // It keeps this state until another is wanted.
        let Given { addresses, routes } = &interface.given;
        interface.wanted = Wanted { mtu, addresses: addresses.clone(), routes: routes.clone() };
        Ok(interface)
    }

    /// Its name.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its index (if_nametoindex(3)).
    #[must_use]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// What is wanted and cannot be had, as it changes.
    #[must_use]
    pub(crate) fn left_out(&self) -> watch::Receiver<Vec<LeftOut>> {
        self.left_out.subscribe()
    }

    /// Whether the kernel does not take this route.
    #[must_use]
    pub(crate) fn lacks(&self, route: IpNet) -> bool {
        let what = what_route(route);
        self.left_out.borrow().iter().any(|item| item.what == what)
    }

    /// Whether it has one of these addresses, with whatever prefix.
    pub(super) async fn has_any(&self, addresses: &[IpNet]) -> bool {
        let found = self.found_addresses().await.unwrap_or_default();
        found.iter().any(|it| addresses.iter().any(|wanted| wanted.addr() == it.addr()))
    }

    /// Leaves these addresses to somebody else: what we gave of them is not taken away.
    pub(super) fn leave(&mut self, addresses: &[IpNet]) {
        self.given.addresses.retain(|given| !addresses.contains(given));
    }

    /// Wants this MTU (bytes), these addresses and these routes; what stays is not touched.
    pub(crate) async fn set(
        &mut self,
        mtu: u16,
        addresses: &[IpNet],
        routes: &[Destination],
    ) -> Result<(), InterfaceError> {
        self.wanted = Wanted { mtu, addresses: addresses.into(), routes: routes.into() };
        self.mend().await.map(drop)
    }

    /// Gives the kernel what is wanted and missing; returns how much that was. An error only where the kernel
    /// does not say what there is.
    pub(crate) async fn mend(&mut self) -> Result<usize, InterfaceError> {
        let mut look = Look::default();
        let mended = self.mend_link(&mut look).await;
        self.because("look at it", mended)?;
        let mended = self.mend_addresses(&mut look).await;
        self.because("look for its addresses", mended)?;
        let mended = self.mend_routes(&mut look).await;
        self.because("look for its routes", mended)?;
        self.left_out.send_if_modified(|known| {
            log(known, &look.left_out);
            let is_new = *known != look.left_out;
            *known = look.left_out;
            is_new
        });
        Ok(look.mended)
    }

    /// Mends it whenever the kernel's networks change, for as long as it is polled.
    pub(crate) async fn keep(&mut self, mut hints: Hints) -> Infallible {
        loop {
            hints.changed().await;
            match self.mend().await {
                Ok(0) => {}
                Ok(mended) => info!(mended, "gave the interface back what it missed"),
                Err(error) => warn!(%error, "cannot look after the interface"),
            }
        }
    }

    async fn mend_link(&self, look: &mut Look) -> Result<(), rtnetlink::Error> {
        let links = self.netlink.handle().link();
        let found = links.get().match_index(self.index).execute().try_next().await?;
        let Some(link) = found else { return Err(rtnetlink::Error::RequestFailed) };
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        if !link.header.flags.contains(LinkFlags::Up) {
            let up = LinkUnspec::new_with_index(self.index).up().build();
            look.note(links.set(up).execute().await, || self.name.clone(), reason);
        }
        if mtu != Some(self.wanted.mtu.into()) {
            let mtu = self.wanted.mtu;
            let change = LinkUnspec::new_with_index(self.index).mtu(mtu.into()).build();
            look.note(links.set(change).execute().await, || format!("MTU {mtu}"), reason);
        }
        Ok(())
    }

    async fn mend_addresses(&mut self, look: &mut Look) -> Result<(), rtnetlink::Error> {
        let addresses = self.netlink.handle().address();
        for net in difference(&self.given.addresses, &self.wanted.addresses) {
            let message =
                addresses.add(self.index, net.addr(), net.prefix_len()).message_mut().clone();
            if let Err(error) = addresses.del(message).execute().await {
                debug!(%error, %net, "cannot remove an address");
            }
        }
        for net in difference(&self.wanted.addresses, &self.found_addresses().await?) {
            let added = addresses.add(self.index, net.addr(), net.prefix_len()).execute().await;
            // An admin gave it this address with another prefix length.
            if added.as_ref().is_err_and(|error| is(error, Errno::EEXIST)) {
                continue;
            }
            look.note(added, || format!("address {net}"), |error| self.why(error, net));
        }
        self.given.addresses.clone_from(&self.wanted.addresses);
        Ok(())
    }

    async fn mend_routes(&mut self, look: &mut Look) -> Result<(), rtnetlink::Error> {
        let routes = self.netlink.handle().route();
        for route in difference(&self.given.routes, &self.wanted.routes) {
            if let Err(error) = routes.del(route.message(self.index)).execute().await {
                debug!(%error, net = %route.net, "cannot remove a route");
            }
        }
        // A server wants none, and its interface may have thousands of routes to peers.
        let found = match self.wanted.routes.is_empty() {
            true => Vec::new(),
            false => self.found_routes().await?,
        };
        for route in difference(&self.wanted.routes, &found) {
            let net = route.net;
            let added = routes.add(route.message(self.index)).execute().await;
            let owner = match &added {
                Err(error) if is(error, Errno::EEXIST) => self.owner(net.addr()).await,
                _ => None,
            };
            look.note(
                added,
                || what_route(net),
                |error| match owner {
                    Some(link) => format!("{link} has it"),
                    None => self.why(error, net),
                },
            );
        }
        self.given.routes.clone_from(&self.wanted.routes);
        Ok(())
    }

    /// Why the kernel refuses something of this network's family, in words.
    fn why(&self, error: &rtnetlink::Error, net: IpNet) -> String {
        let name = &self.name;
        match sysctl::read(&format!("ipv6/conf/{name}/disable_ipv6")) {
            Ok(off) if net.addr().is_ipv6() && off != "0" => {
                format!("IPv6 is off (net.ipv6.conf.{name}.disable_ipv6 = {off})")
            }
            Err(_) if net.addr().is_ipv6() => "this host has no IPv6".into(),
            Ok(_) | Err(_) => reason(error),
        }
    }

    /// The link through which the host reaches this address.
    async fn owner(&self, address: IpAddr) -> Option<String> {
        let mut answer = self.netlink.handle().route().get(route::one_to(address)).execute();
        let index = route::oif(&answer.try_next().await.ok()??)?;
        Some(if_indextoname(index).ok()?.to_string_lossy().into_owned())
    }

    /// The routes through the interface, without those that the kernel adds by itself.
    async fn found_routes(&self) -> Result<Vec<Destination>, rtnetlink::Error> {
        route::through(&self.netlink, self.index, None).await
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

impl Look {
    /// Counts what was mended, or notes what is left out and why.
    fn note(
        &mut self,
        result: Result<(), rtnetlink::Error>,
        what: impl FnOnce() -> String,
        why: impl FnOnce(&rtnetlink::Error) -> String,
    ) {
        match result {
            Ok(()) => self.mended += 1,
            Err(error) => self.left_out.push(LeftOut::new(what(), why(&error))),
        }
    }
}

/// Waits until the interface with this index is deleted: the kernel does not wake those who read
/// from its device.
pub(crate) async fn deleted(index: u32, mut hints: Hints) -> io::Result<()> {
    let netlink = Netlink::open()?;
    loop {
        hints.changed().await;
        match netlink.handle().link().get().match_index(index).execute().try_next().await {
            Err(error) if is(&error, Errno::ENODEV) => return Ok(()),
            Ok(_) => {}
            Err(error) => debug!(%error, "cannot look for the interface"),
        }
    }
}

fn what_route(net: IpNet) -> String {
    format!("route {net}")
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    os_error(error) == Some(errno as i32)
}

/// The kernel's word, without netlink's around it.
fn reason(error: &rtnetlink::Error) -> String {
    match os_error(error) {
        Some(errno) => format!("the kernel says: {}", Errno::from_raw(errno).desc()),
        None => error.to_string(),
    }
}

/// What is in `left` and not in `right`: thousands of routes are looked at after each change of networks.
fn difference<T: Copy + Eq + Hash>(left: &[T], right: &[T]) -> Vec<T> {
    let right: HashSet<_> = right.iter().collect();
    left.iter().filter(|it| !right.contains(it)).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, hash::Hasher};

    use super::*;

    thread_local! { static COMPARED: Cell<usize> = const { Cell::new(0) }; }

    /// Counts how often it is compared.
    #[derive(Clone, Copy, Debug, Eq)]
    struct Counted(usize);

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Counted {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn a_difference_of_long_lists_takes_few_comparisons() {
        let all: Vec<_> = (0..2000).map(Counted).collect();
        let left: Vec<_> = difference(&all, &all[1..1999]).iter().map(|it| it.0).collect();
        assert_eq!(left, [0, 1999]);
        assert!(COMPARED.get() < 10 * all.len(), "{}", COMPARED.get());
    }
}
