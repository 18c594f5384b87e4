//! The first router on the way of a path: it tells the networks apart that one link gets into.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::neighbour::Hardware;

/// What is found out of the network behind a router is remembered for so long: other people use the network, too.
pub(crate) const MEMORY: Duration = Duration::from_secs(600);
/// So much of it is remembered at most. A link may name another router again and again.
pub(crate) const MOST: usize = 64;

/// A router, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Router {
    /// `None` if no router is on the way.
    pub(crate) address: Option<IpAddr>,
    /// `None` if it has none, or if that is not known. Many networks have a router 192.168.1.1.
    pub(crate) hardware: Option<Hardware>,
}

impl Router {
    /// Whether both may be one machine.
    pub(crate) fn may_be(self, other: Self) -> bool {
        let differs = self.hardware.zip(other.hardware).is_some_and(|(it, other)| it != other);
        self.address == other.address && !differs
    }
}

/// The hardware addresses of routers, by link and address, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Routers(BTreeMap<(u32, IpAddr), Hardware>);

impl Routers {
    pub(crate) fn learn(&mut self, link: u32, address: IpAddr, hardware: Hardware) {
        self.0.insert((link, address), hardware);
    }

    /// The router at this address of a link.
    pub(crate) fn of(&self, link: u32, address: Option<IpAddr>) -> Router {
        let hardware = address.and_then(|address| self.0.get(&(link, address)));
        Router { address, hardware: hardware.copied() }
    }

    /// Forgets all but those that are in use: the same address may be that of another machine when it is seen again.
    pub(crate) fn retain(&mut self, is_in_use: impl Fn(u32, IpAddr) -> bool) {
        self.0.retain(|(link, address), _| is_in_use(*link, *address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_may_be_another_one_unless_both_are_known_to_differ() {
        let router = |address: u8, hardware: Option<u8>| Router {
            address: Some([192, 168, 1, address].into()),
            hardware: hardware.map(|last| [2, 0, 0, 0, 0, last]),
        };
        let known = router(1, Some(1));
        assert!(known.may_be(known) && known.may_be(router(1, None)));
        assert!(router(1, None).may_be(known));
        assert!(!known.may_be(router(1, Some(2))) && !known.may_be(router(2, Some(1))));
        assert!(!known.may_be(Router::default()) && Router::default().may_be(Router::default()));
    }
}
