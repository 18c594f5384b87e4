//! Routing rules (rtnetlink(7), ip-rule(8)) that lead everything into the tunnel but the packets that carry
//! it.
//!
//! ```text
//!  5310  to EXCLUDED            lookup main
//!  5320                         lookup main suppress_prefixlength 0    "lan": all but the default route
//!  5330  not fwmark MARK        lookup TABLE                           the tunnel
//!  5330  not fwmark MARK        unreachable                            a family that the tunnel lacks
//! ```
//!
//! Whoever asks for a route through a certain link (as we do for paths) gets past the tunnel, for its
//! table has no route through that link.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteHeader},
};
use nix::errno::Errno;
use rtnetlink::{Error, RouteMessageBuilder};

use super::{
    Layout, TABLE,
    record::Record,
    rule_set::{self, Rule},
};
use crate::link::{
    MARK,
    netlink::{Netlink, unless},
};

/// The order in which the kernel asks; before it come the table of local addresses (0) and whatever an
/// admin wants to come before.
const EXCLUDED: u32 = 5310;
const LAN: u32 = 5320;
const TUNNEL: u32 = 5330;

/// The rules that are ours.
#[derive(Debug)]
pub(crate) struct Rules {
    netlink: Netlink,
    wanted: Vec<Rule>,
    /// Says whether the kernel has rules of ours.
    record: Record,
}

impl Rules {
    /// No rules yet, or those that an earlier run has left.
    #[must_use]
    pub(crate) fn new(netlink: Netlink, record: Record) -> Self {
        Self { netlink, wanted: Vec::new(), record }
    }

    /// Makes the layout's rules ours.
    pub(crate) async fn set(&mut self, layout: &Layout) -> Result<(), Error> {
        let wanted = rules(layout);
        if wanted.is_empty() {
            return self.remove().await;
        }
        self.wanted = wanted;
        self.record.update(|changes| changes.rules = true);
        self.restore().await.map(drop)
    }

    /// Holds back what the tunnel took so far and does not any more, before its routes are gone; [`Self::set`] follows.
    pub(crate) async fn hold_back(&self, layout: &Layout) -> Result<(), Error> {
        let blocks: Vec<_> = blocked(layout).map(block).collect();
        if blocks.is_empty() || !self.record.changes().rules {
            return Ok(());
        }
        rule_set::add_missing(&self.netlink, &blocks).await
    }

    /// Makes the kernel's rules ours again; returns how many were missing.
    pub(crate) async fn restore(&self) -> Result<usize, Error> {
        if self.wanted.is_empty() {
            return Ok(0);
        }
        rule_set::make(&self.netlink, &self.wanted, belongs).await
    }

    /// Deletes all our rules, if there are any.
    pub(crate) async fn remove(&mut self) -> Result<(), Error> {
        self.wanted.clear();
        if !self.record.changes().rules {
            return Ok(());
        }
        // If another tunnel takes all traffic by now, the rules are its own.
        if let Some(_right) = self.record.borrow_everything() {
            rule_set::make(&self.netlink, &[], belongs).await?;
        }
        self.record.update(|changes| changes.rules = false);
        Ok(())
    }

    /// Deletes the routes of [`TABLE`], unless they are another tunnel's.
    pub(crate) async fn flush_table(&self) -> Result<(), Error> {
        let Some(_right) = self.record.borrow_everything() else { return Ok(()) };
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().table_id(TABLE).build(),
            RouteMessageBuilder::<Ipv6Addr>::new().table_id(TABLE).build(),
        ] {
            let mut routes = self.netlink.handle().route().get(message).execute();
            while let Some(route) = routes.try_next().await? {
                if route.attributes.contains(&RouteAttribute::Table(TABLE)) {
                    let request = self.netlink.handle().route().del(route);
                    unless(Errno::ESRCH, request.execute().await)?;
                }
            }
        }
        Ok(())
    }
}

fn belongs(rule: &Rule) -> bool {
    matches!(rule.priority(), Some(EXCLUDED | LAN | TUNNEL))
}

fn rules(layout: &Layout) -> Vec<Rule> {
    if !layout.has_rules() {
        return Vec::new();
    }
    let mut rules: Vec<_> = layout.exclude.nets.iter().map(|net| exclude(*net)).collect();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let is_routed = layout.routes.iter().any(|net| AddressFamily::from(net.addr()) == family);
        let blocks = blocked(layout).any(|it| it == family);
        if layout.exclude.lan && (blocks || is_routed) {
            rules.push(lan(family));
        }
        if blocks {
            rules.push(block(family));
        } else if is_routed {
            rules.push(tunnel(family));
        }
    }
    rules
}

/// The families that the tunnel lacks and that go nowhere.
fn blocked(layout: &Layout) -> impl Iterator<Item = AddressFamily> {
    let blocked = layout.blocked.iter().filter(|net| net.prefix_len() == 0);
    blocked.map(|net| net.addr().into())
}

fn exclude(net: IpNet) -> Rule {
    Rule::lookup(net.addr().into(), EXCLUDED, RouteHeader::RT_TABLE_MAIN.into()).to(net)
}

fn lan(family: AddressFamily) -> Rule {
    Rule::lookup(family, LAN, RouteHeader::RT_TABLE_MAIN.into()).but_by_default()
}

fn tunnel(family: AddressFamily) -> Rule {
    Rule::lookup(family, TUNNEL, TABLE).but_marked(MARK)
}

fn block(family: AddressFamily) -> Rule {
    Rule::unreachable(family, TUNNEL).but_marked(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Exclude;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn layout(routes: &[&str], blocked: &[&str], exclude: &[&str]) -> Layout {
        let exclude = Exclude { lan: true, portal: false, nets: nets(exclude) };
        Layout { routes: nets(routes), blocked: nets(blocked), exclude, ..Layout::default() }
    }

    #[test]
    fn a_split_tunnel_needs_no_rules() {
        assert_eq!(rules(&layout(&["10.0.0.0/8"], &[], &["10.1.0.0/16"])), []);
    }

    #[test]
    fn a_family_that_the_tunnel_lacks_is_blocked_where_it_was_all_that_the_tunnel_took() {
        let layout = layout(&["10.1.0.0/16"], &["::/0"], &[]);
        let [v4, v6] = [AddressFamily::Inet, AddressFamily::Inet6];
        assert_eq!(rules(&layout), [lan(v4), tunnel(v4), lan(v6), block(v6)]);
        // They ask the table in which the routes are.
        assert!(layout.destinations(7).iter().all(|it| it.table == Some(TABLE)));
    }

    #[test]
    fn a_family_that_the_tunnel_lacks_is_blocked() {
        let excluded = "192.0.2.0/24".parse().unwrap();
        assert_eq!(
            rules(&layout(&["0.0.0.0/0"], &["::/0"], &["192.0.2.0/24"])),
            [
                exclude(excluded),
                lan(AddressFamily::Inet),
                tunnel(AddressFamily::Inet),
                lan(AddressFamily::Inet6),
                block(AddressFamily::Inet6),
            ]
        );
    }
}
