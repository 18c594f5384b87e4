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
//! table has no route through that link. Our rules have a protocol number of their own, `PROTOCOL`; others with
//! the same priorities are not touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use nix::errno::Errno;
use rtnetlink::{Error, IpVersion, RouteMessageBuilder};

use super::{Layout, TABLE, record::Record};
use crate::link::{
    MARK,
    netlink::{Netlink, os_error},
};

/// The order in which the kernel asks; before it come the table of local addresses (0) and whatever an
/// admin wants to come before.
const EXCLUDED: u32 = 5310;
const LAN: u32 = 5320;
const TUNNEL: u32 = 5330;
/// Who has set a rule, `FRA_PROTOCOL` of linux/fib_rules.h: "r" for roamd. The kernel leaves numbers above
/// `RTPROT_STATIC` (4) to programs, and /usr/share/iproute2/rt_protos has none of this value.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'r');

/// The rules that are ours.
#[derive(Debug)]
pub(crate) struct Rules {
    netlink: Netlink,
    wanted: Vec<Rule>,
    /// Says whether the kernel has rules of ours.
    record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Exclude(IpNet),
    Lan(Family),
    Tunnel(Family),
    Block(Family),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn of(net: &IpNet) -> Self {
        if net.addr().is_ipv4() { Self::V4 } else { Self::V6 }
    }
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

    /// Makes the kernel's rules ours again; returns how many were missing.
    pub(crate) async fn restore(&self) -> Result<usize, Error> {
        if self.wanted.is_empty() {
            return Ok(0);
        }
        let found = self.found().await?;
        for (rule, message) in &found {
            if rule.is_none_or(|rule| !self.wanted.contains(&rule)) {
                self.delete(message.clone()).await?;
            }
        }
        let is_missing = |rule: &&Rule| !found.iter().any(|(found, _)| *found == Some(**rule));
        let mut added = 0;
        for rule in self.wanted.iter().filter(is_missing) {
            let mut request = self.netlink.handle().rule().add();
            *request.message_mut() = rule.message();
            match request.execute().await {
                Ok(()) => added += 1,
                // The same rule, set by another program.
                Err(error) if os_error(&error) == Some(Errno::EEXIST as i32) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(added)
    }

    /// Deletes all our rules, if there are any.
    pub(crate) async fn remove(&mut self) -> Result<(), Error> {
        self.wanted.clear();
        if !self.record.changes().rules {
            return Ok(());
        }
        // If another tunnel takes all traffic by now, the rules are its own.
        if let Some(_right) = self.record.borrow_everything() {
            for (_, message) in self.found().await? {
                self.delete(message).await?;
            }
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

    async fn delete(&self, message: RuleMessage) -> Result<(), Error> {
        unless(Errno::ENOENT, self.netlink.handle().rule().del(message).execute().await)
    }

    /// What the kernel has of ours.
    async fn found(&self) -> Result<Vec<(Option<Rule>, RuleMessage)>, Error> {
        let mut found = Vec::new();
        for (version, family) in [(IpVersion::V4, Family::V4), (IpVersion::V6, Family::V6)] {
            let mut messages = self.netlink.handle().rule().get(version).execute();
            while let Some(message) = messages.try_next().await? {
                if is_ours(&message) {
                    found.push((Rule::read(&message, family), message));
                }
            }
        }
        Ok(found)
    }
}

fn rules(layout: &Layout) -> Vec<Rule> {
    if !layout.is_full() {
        return Vec::new();
    }
    let mut rules: Vec<_> = layout.exclude.nets.iter().copied().map(Rule::Exclude).collect();
    for family in Family::ALL {
        let has = |nets: &[IpNet]| nets.iter().any(|net| Family::of(net) == family);
        let has_default = |nets: &[IpNet]| {
            nets.iter().any(|net| net.prefix_len() == 0 && Family::of(net) == family)
        };
        let blocks = has_default(&layout.blocked);
        if layout.exclude.lan && (blocks || has(&layout.routes)) {
            rules.push(Rule::Lan(family));
        }
        if blocks {
            rules.push(Rule::Block(family));
        } else if has(&layout.routes) {
            rules.push(Rule::Tunnel(family));
        }
    }
    rules
}

impl Rule {
    fn family(self) -> Family {
        match self {
            Self::Exclude(net) => Family::of(&net),
            Self::Lan(family) | Self::Tunnel(family) | Self::Block(family) => family,
        }
    }

    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family() {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        let priority = match self {
            Self::Exclude(net) => {
                message.header.dst_len = net.prefix_len();
                message.header.table = RouteHeader::RT_TABLE_MAIN;
                message.attributes.push(RuleAttribute::Destination(net.network()));
                EXCLUDED
            }
            Self::Lan(_) => {
                message.header.table = RouteHeader::RT_TABLE_MAIN;
                message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
                LAN
            }
            Self::Tunnel(_) => {
                message.attributes.push(RuleAttribute::Table(TABLE));
                TUNNEL
            }
            Self::Block(_) => {
                message.header.action = RuleAction::Unreachable;
                TUNNEL
            }
        };
        if priority == TUNNEL {
            message.header.flags = RuleFlags::Invert;
            message.attributes.push(RuleAttribute::FwMark(MARK));
        }
        message.attributes.push(RuleAttribute::Priority(priority));
        message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
        message
    }

    fn read(message: &RuleMessage, family: Family) -> Option<Self> {
        match (priority(message)?, message.header.action) {
            (EXCLUDED, RuleAction::ToTable) => {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    RuleAttribute::Destination(address) => Some(*address),
                    _ => None,
                });
                let unspecified = match family {
                    Family::V4 => IpAddr::from([0; 4]),
                    Family::V6 => IpAddr::from([0; 16]),
                };
                let address = address.unwrap_or(unspecified);
                IpNet::new(address, message.header.dst_len).ok().map(Self::Exclude)
            }
            (LAN, RuleAction::ToTable) => Some(Self::Lan(family)),
            (TUNNEL, RuleAction::ToTable) => Some(Self::Tunnel(family)),
            (TUNNEL, RuleAction::Unreachable) => Some(Self::Block(family)),
            _ => None,
        }
    }
}

/// Whether it is a rule of ours. Earlier versions set theirs without a protocol number of their own, but nobody
/// else has the mark.
fn is_ours(message: &RuleMessage) -> bool {
    let has = |attribute| message.attributes.contains(&attribute);
    matches!(priority(message), Some(EXCLUDED | LAN | TUNNEL))
        && (has(RuleAttribute::Protocol(PROTOCOL)) || has(RuleAttribute::FwMark(MARK)))
}

/// The table that a rule leads to.
pub(super) fn table_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })
}

pub(super) fn priority(message: &RuleMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

/// Success also where the kernel says that nothing was left to do.
pub(super) fn unless(done: Errno, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if os_error(&error) == Some(done as i32) => Ok(()),
        other => other,
    }
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
    fn a_family_that_the_tunnel_lacks_is_blocked() {
        let excluded = "192.0.2.0/24".parse().unwrap();
        assert_eq!(
            rules(&layout(&["0.0.0.0/0"], &["::/0"], &["192.0.2.0/24"])),
            [
                Rule::Exclude(excluded),
                Rule::Lan(Family::V4),
                Rule::Tunnel(Family::V4),
                Rule::Lan(Family::V6),
                Rule::Block(Family::V6),
            ]
        );
    }

    #[test]
    fn a_foreign_rule_with_our_priority_is_not_ours() {
        let mut rule = Rule::Lan(Family::V4).message();
        assert!(is_ours(&rule));
        rule.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static));
        assert!(!is_ours(&rule));
        // Of an earlier version.
        let mut rule = Rule::Tunnel(Family::V4).message();
        rule.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert!(is_ours(&rule));
    }

    #[test]
    fn rules_read_as_they_are_written() {
        let layout = layout(&["0.0.0.0/0", "::/0"], &[], &["192.0.2.0/24", "2001:db8::/32"]);
        for rule in rules(&layout).into_iter().chain([Rule::Block(Family::V6)]) {
            assert_eq!(Rule::read(&rule.message(), rule.family()), Some(rule));
        }
    }
}
