//! Checks the packets that a client delivers: the destination must be one of its inner addresses, and the
//! source an address that the client itself would reach through the tunnel. A server can therefore neither
//! pretend to be a host of the client's other networks nor reach a host behind the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;

use super::{counters::DropReason, egress::Verdict};
use crate::wire::packet::{Addresses, Packet};

/// Networks that no host beyond a router has an address in: this network and loopback (RFC 1122 §3.2.1.3),
/// link-local (RFC 3927, RFC 4291 §2.5.6), multicast and reserved (RFC 1112), IPv4-mapped (RFC 4291 §2.5.5.2).
pub(crate) const UNROUTABLE: [IpNet; 9] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    // The unspecified address and loopback.
    v6([0, 0, 0, 0, 0, 0, 0, 0], 127),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix)
}

/// The inner addresses of a client, and the networks that it sends to through its tunnel.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    own: Vec<IpAddr>,
    /// Whether a network lies inside the tunnel; the longest prefix decides, as it does for routes.
    networks: JointPrefixMap<IpNet, bool>,
}

impl Inside {
    /// A client with these inner addresses, for which `routes` lead into the tunnel. A prefix of `outside`
    /// lies outside, unless the routes have the same or a longer prefix.
    #[must_use]
    pub(crate) fn new(
        own: Vec<IpAddr>,
        routes: impl IntoIterator<Item = IpNet>,
        outside: impl IntoIterator<Item = IpNet>,
    ) -> Self {
        let mut networks = JointPrefixMap::default();
        for net in UNROUTABLE.into_iter().chain(outside) {
            networks.insert(net.trunc(), false);
        }
        for net in routes {
            networks.insert(net.trunc(), true);
        }
        for address in &own {
            networks.insert(IpNet::from(*address), false);
        }
        Self { own, networks }
    }

    /// Judges the packets of one batch.
    pub(crate) fn judge(&self) -> impl FnMut(Addresses, &Packet) -> Verdict {
        // Packets come in runs of one flow.
        let mut last: Option<(Addresses, Verdict)> = None;
        move |addresses, _| match last {
            Some((known, verdict)) if known == addresses => verdict,
            _ => {
                let verdict = self.refuses(addresses).map_or(Verdict::Deliver, Verdict::Refuse);
                last = Some((addresses, verdict));
                verdict
            }
        }
    }

    fn refuses(&self, Addresses { source, destination }: Addresses) -> Option<DropReason> {
        let found = self.networks.get_lpm(&IpNet::from(source));
        if !found.is_some_and(|(_, is_inside)| *is_inside) {
            return Some(DropReason::ForeignSource);
        }
        (!self.own.contains(&destination)).then_some(DropReason::UnknownDestination)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        tunnel::{counters::Counters, egress},
        wire::packet::tests::packet,
    };

    fn inside(routes: &[&str], outside: &[&str]) -> Inside {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        let own = ["10.66.0.2", "fd66::2"].map(|address| address.parse().unwrap());
        Inside::new(own.into(), nets(routes), nets(outside))
    }

    fn admit(inside: &Inside, batch: &mut Vec<Packet>, counters: &Counters) {
        let (device, _delivered) = mpsc::channel(16);
        egress::deliver(batch, &device, counters, inside.judge());
    }

    /// Whether a packet is delivered.
    fn fate(inside: &Inside, source: &str, destination: &str) -> Option<DropReason> {
        let counters = Counters::default();
        let bytes = packet(source.parse().unwrap(), destination.parse().unwrap(), 8);
        let mut batch = vec![bytes.into()];
        admit(inside, &mut batch, &counters);
        let dropped = counters.snapshot().dropped;
        assert_eq!(batch.len() + dropped.len(), 1);
        dropped.into_keys().next()
    }

    #[test]
    fn a_split_tunnel_delivers_what_is_routed_into_it() {
        let inside = inside(&["10.66.0.0/24", "fd66::/64", "10.66.0.1/32"], &["10.66.0.0/16"]);
        for source in ["10.66.0.1", "10.66.0.77"] {
            assert_eq!(fate(&inside, source, "10.66.0.2"), None, "{source}");
        }
        assert_eq!(fate(&inside, "fd66::1", "fd66::2"), None);
        for source in ["10.66.1.1", "192.0.2.1", "10.66.0.2", "127.0.0.1"] {
            assert_eq!(
                fate(&inside, source, "10.66.0.2"),
                Some(DropReason::ForeignSource),
                "{source}"
            );
        }
        for destination in ["10.66.0.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            let fate = fate(&inside, "10.66.0.1", destination);
            assert_eq!(fate, Some(DropReason::UnknownDestination), "{destination}");
        }
    }

    #[test]
    fn a_full_tunnel_delivers_no_packet_from_a_local_network() {
        let inside = inside(&["0.0.0.0/0", "::/0", "10.66.0.1/32"], &["192.168.1.0/24"]);
        assert_eq!(fate(&inside, "8.8.8.8", "10.66.0.2"), None);
        assert_eq!(fate(&inside, "2001:db8::1", "fd66::2"), None);
        for source in ["192.168.1.1", "127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.0"] {
            assert_eq!(
                fate(&inside, source, "10.66.0.2"),
                Some(DropReason::ForeignSource),
                "{source}"
            );
        }
        for source in ["fe80::66", "::1", "ff02::1", "fd66::2", "::ffff:8.8.8.8"] {
            assert_eq!(
                fate(&inside, source, "fd66::2"),
                Some(DropReason::ForeignSource),
                "{source}"
            );
        }
    }

    #[test]
    fn no_address_is_inside_before_the_first_session() {
        let inside = Inside::default();
        assert_eq!(fate(&inside, "10.66.0.1", "10.66.0.2"), Some(DropReason::ForeignSource));
    }

    #[test]
    fn each_packet_of_a_batch_is_judged_by_itself() {
        let (inside, counters) = (inside(&["10.66.0.0/24"], &[]), Counters::default());
        let of = |source: &str| -> Packet {
            packet(source.parse().unwrap(), "10.66.0.2".parse().unwrap(), 8).into()
        };
        let good = of("10.66.0.1");
        let mut batch =
            vec![good.clone(), of("8.8.8.8"), of("8.8.8.8"), vec![0x45, 0].into(), good.clone()];
        admit(&inside, &mut batch, &counters);
        assert_eq!(batch, [good.clone(), good]);
        let dropped = counters.snapshot().dropped;
        assert_eq!(dropped, [(DropReason::Malformed, 1), (DropReason::ForeignSource, 2)].into());
    }

    proptest! {
        #[test]
        fn nothing_is_delivered_to_another_address(
            source in any::<Ipv4Addr>(),
            destination in any::<Ipv4Addr>(),
        ) {
            let inside = inside(&["0.0.0.0/0"], &[]);
            let (source, destination) = (source.to_string(), destination.to_string());
            let fate = fate(&inside, &source, &destination);
            prop_assert!(fate.is_some() || destination == "10.66.0.2");
        }
    }
}
