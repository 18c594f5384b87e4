//! Routing rules (rtnetlink(7), ip-rule(8)): what a rule of ours says, and how the kernel's rules become those that are wanted.
//!
//! Ours have a protocol number of their own, [`PROTOCOL`]; others with the same priorities are not touched.

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use nix::errno::Errno;
use rtnetlink::{Error, IpVersion};

use super::sysctl;
use crate::link::netlink::{Netlink, os_error, unless};

/// Who has set a rule, `FRA_PROTOCOL` of linux/fib_rules.h: "r" for roamd. The kernel leaves numbers above
/// `RTPROT_STATIC` (4) to programs, and /usr/share/iproute2/rt_protos has none of this value.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'r');

/// Makes those of our rules for which `belongs` holds the `wanted` ones, and returns how many it added.
///
/// What is missing is added before the rest is deleted, so that no packet meets neither the old rules nor the new ones. A rule
/// to everything is an exception where one of its priority to a network is to be deleted: the kernel takes both for the same.
pub(super) async fn make(
    netlink: &Netlink,
    wanted: &[Rule],
    belongs: impl Fn(&Rule) -> bool,
) -> Result<usize, Error> {
    let found = found(netlink, belongs).await?;
    let (mut added, mut exist) = (0, Vec::new());
    for rule in wanted.iter().filter(|rule| !found.iter().any(|it| rule.is_same(it))) {
        match add(netlink, rule).await? {
            true => added += 1,
            false => exist.push(rule),
        }
    }
    for rule in found {
        if !wanted.iter().any(|it| it.is_same(&rule)) {
            unless(Errno::ENOENT, netlink.handle().rule().del(rule.0).execute().await)?;
        }
    }
    for rule in exist {
        added += usize::from(add(netlink, rule).await?);
    }
    Ok(added)
}

/// Adds those of these rules that are missing, and deletes none.
pub(super) async fn add_missing(netlink: &Netlink, wanted: &[Rule]) -> Result<(), Error> {
    let found = found(netlink, |_| true).await?;
    for rule in wanted.iter().filter(|rule| !found.iter().any(|it| rule.is_same(it))) {
        add(netlink, rule).await?;
    }
    Ok(())
}

/// Adds a rule, if the kernel has none that it takes for the same: of another program, or to a network. IPv6 needs no rules where
/// the host has none; where only rules for it are missing, that is an error.
async fn add(netlink: &Netlink, rule: &Rule) -> Result<bool, Error> {
    let mut request = netlink.handle().rule().add();
    request.message_mut().clone_from(&rule.0);
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if is(&error, Errno::EEXIST) => Ok(false),
        Err(error) if is(&error, Errno::EAFNOSUPPORT) && rule.is_ipv6() && !sysctl::has_ipv6() => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Those of our rules for which `belongs` holds.
pub(super) async fn found(
    netlink: &Netlink,
    belongs: impl Fn(&Rule) -> bool,
) -> Result<Vec<Rule>, Error> {
    let mut found = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules = netlink.dump(|it| it.rule().get(version).execute()).await?;
        found.extend(rules.into_iter().map(Rule).filter(|rule| rule.is_ours() && belongs(rule)));
    }
    Ok(found)
}

fn is(error: &Error, errno: Errno) -> bool {
    os_error(error) == Some(errno as i32)
}

/// A routing rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule(RuleMessage);

impl Rule {
    /// All packets of a family ask `table`.
    pub(super) fn lookup(family: AddressFamily, priority: u32, table: u32) -> Self {
        Self::new(family, priority, RuleAction::ToTable).with(RuleAttribute::Table(table))
    }

    /// All packets of a family go nowhere.
    pub(super) fn unreachable(family: AddressFamily, priority: u32) -> Self {
        Self::new(family, priority, RuleAction::Unreachable)
    }

    fn new(family: AddressFamily, priority: u32, action: RuleAction) -> Self {
        let mut message = RuleMessage::default();
        (message.header.family, message.header.action) = (family, action);
        let rule = Self(message).with(RuleAttribute::Priority(priority));
        rule.with(RuleAttribute::Protocol(PROTOCOL))
    }

    fn with(mut self, attribute: RuleAttribute) -> Self {
        self.0.attributes.push(attribute);
        self
    }

    /// Only those from this network.
    pub(super) fn from(mut self, net: IpNet) -> Self {
        self.0.header.src_len = net.prefix_len();
        // The kernel does not name a network of all addresses.
        if net.prefix_len() == 0 { self } else { self.with(RuleAttribute::Source(net.network())) }
    }

    /// Only those to this network.
    pub(super) fn to(mut self, net: IpNet) -> Self {
        self.0.header.dst_len = net.prefix_len();
        let to = RuleAttribute::Destination(net.network());
        if net.prefix_len() == 0 { self } else { self.with(to) }
    }

    /// Only those for which the table has more than a default route.
    pub(super) fn but_by_default(self) -> Self {
        self.with(RuleAttribute::SuppressPrefixLen(0))
    }

    /// All but those with this mark.
    pub(super) fn but_marked(mut self, mark: u32) -> Self {
        self.0.header.flags = RuleFlags::Invert;
        self.with(RuleAttribute::FwMark(mark))
    }

    /// Only those without any mark.
    pub(super) fn unmarked(self) -> Self {
        // To the kernel no mark is 0.
        self.with(RuleAttribute::FwMask(u32::MAX))
    }

    pub(super) fn priority(&self) -> Option<u32> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        })
    }

    /// The table that it leads to.
    pub(super) fn table(&self) -> Option<u32> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        })
    }

    fn is_ipv6(&self) -> bool {
        self.0.header.family == AddressFamily::Inet6
    }

    fn is_ours(&self) -> bool {
        self.0.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
    }

    /// Whether the kernel's rule `found` is this one. The kernel says more of a rule than it was told.
    fn is_same(&self, found: &Self) -> bool {
        let key = |Self(it): &Self| {
            let header = &it.header;
            let inverts = header.flags.contains(RuleFlags::Invert);
            (header.family, header.src_len, header.dst_len, header.tos, header.action, inverts)
        };
        let (own, told) = (&self.0.attributes, &found.0.attributes);
        key(self) == key(found)
            && own.iter().all(|it| told.contains(it))
            && told.iter().all(|it| own.contains(it) || self.is_usual(it))
    }

    /// Whether the kernel tells this of such a rule unasked, so that it narrows nothing.
    fn is_usual(&self, told: &RuleAttribute) -> bool {
        let has_mark = || self.0.attributes.iter().any(|it| matches!(it, RuleAttribute::FwMark(_)));
        match told {
            RuleAttribute::Table(_) | RuleAttribute::Other(_) => true,
            RuleAttribute::SuppressPrefixLen(least) | RuleAttribute::SuppressIfGroup(least) => {
                *least == u32::MAX
            }
            RuleAttribute::FwMask(mask) => *mask == u32::MAX && has_mark(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule as the kernel tells of it.
    fn told(rule: &Rule) -> Rule {
        let mut told = rule.clone();
        let suppresses = |it: &RuleAttribute| matches!(it, RuleAttribute::SuppressPrefixLen(_));
        if !told.0.attributes.iter().any(suppresses) {
            told = told.with(RuleAttribute::SuppressPrefixLen(u32::MAX));
        }
        if told.0.attributes.iter().any(|it| matches!(it, RuleAttribute::FwMark(_))) {
            told = told.with(RuleAttribute::FwMask(u32::MAX));
        }
        if told.table().is_none() {
            told = told.with(RuleAttribute::Table(0));
        }
        told.0.header.flags |= RuleFlags::IifDetached;
        told.0.header.table = 252;
        told
    }

    #[test]
    fn a_rule_is_no_other_one() {
        let net = |net: &str| net.parse::<IpNet>().unwrap();
        let all = Rule::lookup(AddressFamily::Inet, 7, 254);
        let rules = [
            all.clone(),
            Rule::lookup(AddressFamily::Inet6, 7, 254),
            Rule::lookup(AddressFamily::Inet, 8, 254),
            Rule::lookup(AddressFamily::Inet, 7, 100),
            all.clone().from(net("192.0.2.0/24")),
            all.clone().to(net("192.0.2.0/24")),
            all.clone().to(net("192.0.2.0/25")),
            all.clone().but_marked(5),
            Rule::unreachable(AddressFamily::Inet, 7),
            Rule::unreachable(AddressFamily::Inet, 7).but_marked(5),
        ];
        for (at, rule) in rules.iter().enumerate() {
            let same = (0..rules.len()).filter(|it| rule.is_same(&told(&rules[*it])));
            assert_eq!(same.collect::<Vec<_>>(), [at]);
        }
        assert_eq!(all.clone().to(net("0.0.0.0/0")), all, "the kernel does not tell them apart");
        for narrowed in [all.clone().but_by_default(), all.clone().unmarked()] {
            assert!(narrowed.is_same(&told(&narrowed)) && !narrowed.is_same(&told(&all)));
            assert!(!all.is_same(&told(&narrowed)));
        }
    }

    #[test]
    fn a_foreign_rule_is_not_ours() {
        let rule = Rule::lookup(AddressFamily::Inet, 7, 254);
        assert!(rule.is_ours());
        let mut foreign = rule;
        foreign.0.attributes.retain(|it| !matches!(it, RuleAttribute::Protocol(_)));
        assert!(!foreign.clone().with(RuleAttribute::Protocol(RouteProtocol::Static)).is_ours());
        assert!(!foreign.is_ours());
    }
}
