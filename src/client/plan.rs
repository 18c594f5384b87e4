//! What a session changes on this host: the configuration's wishes and the server's offers.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::offer::Offer;
use crate::{
    config::{ClientTun, Exclude},
    host::{Layout, facts::Facts},
    tunnel::inside::Inside,
};

/// What our own configuration wants, or what is taken of the server's offer where ours says nothing.
pub(super) fn layout(tun: &ClientTun, offer: &Offer) -> Layout {
    let addresses: Vec<_> = offer.addresses.iter().copied().map(IpNet::from).collect();
    let wanted = tun.routes.clone().unwrap_or_else(|| offer.routes.clone());
    let (routes, blocked) = wanted.into_iter().partition(|route| {
        addresses.iter().any(|net| net.addr().is_ipv4() == route.addr().is_ipv4())
    });
    let mut layout = Layout {
        mtu: offer.mtu,
        addresses,
        networks: offer.networks.clone(),
        routes,
        blocked,
        exclude: tun.exclude.clone(),
        sealed: sealed(tun),
        dns: tun.dns.clone().unwrap_or_default(),
        ..Layout::default()
    };
    // Without domains a resolver is asked about everything.
    if tun.dns.is_none() && (layout.is_full() || !offer.dns.domains.is_empty()) {
        layout.dns = offer.dns.clone();
    }
    layout
}

/// What may come out of the tunnel of such a layout, on a host with these facts: what would go into it.
pub(super) fn inside(layout: &Layout, facts: &Facts) -> Inside {
    let Exclude { lan, nets, .. } = &layout.exclude;
    let neighbourhood = facts.networks.iter().map(|(_, net)| *net);
    // Where rules come before the routes of links, and without "lan", even the neighbourhood is inside.
    let is_outside = !layout.has_rules() || *lan;
    let outside = neighbourhood.filter(|_| is_outside).chain(nets.iter().copied());
    let own = facts.addresses.iter().map(|(_, address)| IpNet::from(*address));
    let routes = [&layout.networks[..], &layout.routes, &layout.home].concat();
    Inside::new(layout.addresses.iter().map(IpNet::addr).collect(), routes, outside.chain(own))
}

/// The same for a tunnel that stands aside: what comes from an inner address goes into it, wherever it goes.
pub(super) fn inside_aside(layout: &Layout, facts: &Facts) -> Inside {
    let all = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    let own = facts.addresses.iter().map(|(_, address)| IpNet::from(*address));
    Inside::new(layout.addresses.iter().map(IpNet::addr).collect(), all, own)
}

/// What there is before the first session: a kill switch, if anything.
pub(super) fn sealing(tun: &ClientTun) -> Layout {
    Layout { mtu: tun.mtu, exclude: tun.exclude.clone(), sealed: sealed(tun), ..Layout::default() }
}

/// What the kill switch holds back.
fn sealed(tun: &ClientTun) -> Vec<IpNet> {
    if tun.kill_switch { tun.routes.clone().unwrap_or_default() } else { Vec::new() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        config::Dns,
        tunnel::{counters::DropReason, egress::Verdict},
        wire::{
            foreign::Foreign,
            message::{Net, Welcome},
            packet::{Addresses, tests::packet},
        },
    };

    pub(in super::super) fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    pub(in super::super) fn welcome(addresses: &[&str], routes: &[&str]) -> Welcome {
        Welcome {
            version: 1,
            software: Foreign::default(),
            name: Foreign::default(),
            addresses: nets(addresses).into_iter().map(Net).collect(),
            routes: nets(routes).into_iter().map(Net).collect(),
            mtu: 1400,
            unchecked: true,
            dns: vec!["10.66.0.1".into()],
            search_domains: Vec::new(),
            server_addresses: Vec::new(),
            repair: true,
            copies: true,
            holds_bulk: true,
        }
    }

    pub(in super::super) fn tun(routes: Option<&[&str]>) -> ClientTun {
        ClientTun {
            name: "roam0".into(),
            mtu: 1500,
            offload: true,
            routes: routes.map(nets),
            exclude: Exclude::default(),
            kill_switch: false,
            dns: None,
        }
    }

    fn laid_out(routes: Option<&[&str]>, welcome: &Welcome) -> Layout {
        let tun = tun(routes);
        let offer = Offer::check(welcome, &tun, &Facts::default(), &[]).unwrap();
        layout(&tun, &offer)
    }

    #[test]
    fn own_routes_win_over_those_that_the_server_offers() {
        let welcome = welcome(&["10.66.0.2/24"], &["192.0.2.0/24"]);
        assert_eq!(laid_out(None, &welcome).routes, nets(&["192.0.2.0/24"]));
        assert_eq!(laid_out(Some(&["10.1.0.0/16"]), &welcome).routes, nets(&["10.1.0.0/16"]));
        let none = laid_out(Some(&[]), &welcome);
        assert_eq!((none.routes, none.networks), (Vec::new(), nets(&["10.66.0.0/24"])));
    }

    #[test]
    fn an_address_adds_no_network_without_a_route() {
        let layout = laid_out(None, &welcome(&["10.66.0.2/24", "200.0.0.2/1"], &[]));
        assert_eq!(layout.addresses, nets(&["10.66.0.2/32", "200.0.0.2/32"]));
        assert_eq!(layout.networks, nets(&["10.66.0.0/24"]));
    }

    #[test]
    fn a_server_cannot_claim_all_traffic_or_all_names_by_itself() {
        let mut welcome = welcome(&["10.66.0.2/24", "fd66::2/64"], &["0.0.0.0/0", "::/0"]);
        for domains in [&[][..], &["com"], &["."]] {
            welcome.search_domains = domains.iter().map(ToString::to_string).collect();
            let layout = laid_out(None, &welcome);
            assert_eq!((layout.routes, layout.blocked), (Vec::new(), Vec::new()));
            assert_eq!(layout.dns, Dns::default());
        }
    }

    #[test]
    fn a_full_tunnel_accepts_the_offered_resolver() {
        let welcome = welcome(&["10.66.0.2/24"], &[]);
        let layout = laid_out(Some(&["0.0.0.0/0"]), &welcome);
        assert_eq!(layout.dns.servers, ["10.66.0.1".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn a_route_needs_an_inner_address_of_its_family() {
        let welcome = welcome(&["10.66.0.2/24"], &[]);
        let layout = laid_out(Some(&["10.1.0.0/16", "::/0"]), &welcome);
        assert_eq!((layout.routes, layout.blocked), (nets(&["10.1.0.0/16"]), nets(&["::/0"])));
    }

    /// Rules lead there before the routes of links do.
    #[test]
    fn the_neighbourhood_is_inside_a_route_beside_a_family_that_goes_nowhere() {
        let welcome = welcome(&["10.66.0.2/24"], &[]);
        let networks = vec![("eth0".into(), "10.1.2.0/24".parse().unwrap())];
        let facts = Facts { networks, ..Facts::default() };
        let [source, destination] = ["10.1.2.9", "10.66.0.2"].map(|it| it.parse().unwrap());
        let refused = Verdict::Refuse(DropReason::ForeignSource);
        for (routes, expected) in
            [(&["10.1.0.0/16", "::/0"][..], Verdict::Deliver), (&["10.1.0.0/16"], refused)]
        {
            let inside = inside(&laid_out(Some(routes), &welcome), &facts);
            let packet = packet(source, destination, 0).into();
            let verdict = inside.judge()(Addresses { source, destination }, &packet);
            assert_eq!(verdict, expected, "{routes:?}");
        }
    }

    #[test]
    fn the_smaller_mtu_is_used() {
        assert_eq!(laid_out(None, &welcome(&["10.66.0.2/24"], &[])).mtu, 1400);
    }
}
