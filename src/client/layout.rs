//! What a session changes on this host: the configuration's wishes and the server's offers.

use ipnet::IpNet;

use crate::{
    config::{ClientConfig, ClientTun, Dns, HostPort},
    host::Layout,
    wire::control::{Net, Welcome},
};

/// What our own configuration wants, or the server's offer where ours says nothing. A server may not
/// take all traffic or all names on its own account.
pub(super) fn layout(tun: &ClientTun, welcome: &Welcome, servers: &[HostPort]) -> Layout {
    let addresses: Vec<_> = welcome.addresses.iter().map(|Net(net)| *net).collect();
    let offered = || welcome.routes.iter().map(|Net(net)| *net);
    let wanted = tun
        .routes
        .clone()
        .unwrap_or_else(|| offered().filter(|net| net.prefix_len() > 0).collect());
    let (routes, blocked) = wanted.into_iter().partition(|route| {
        addresses.iter().any(|net| net.addr().is_ipv4() == route.addr().is_ipv4())
    });
    let mut layout = Layout {
        mtu: tun.mtu.min(welcome.mtu),
        addresses,
        routes,
        blocked,
        exclude: tun.exclude.clone(),
        sealed: sealed(tun),
        dns: tun.dns.clone().unwrap_or_default(),
        ports: ports(servers),
    };
    if tun.dns.is_none() && (layout.is_full() || !welcome.search_domains.is_empty()) {
        let servers = welcome.dns.iter().filter_map(|address| address.parse().ok());
        let domains = welcome.search_domains.clone();
        layout.dns = Dns { servers: servers.collect(), domains };
    }
    layout
}

/// What there is before the first session: a kill switch, if anything.
pub(super) fn sealing(config: &ClientConfig) -> Layout {
    Layout {
        mtu: config.tun.mtu,
        exclude: config.tun.exclude.clone(),
        sealed: sealed(&config.tun),
        ports: ports(&config.server.addresses),
        ..Layout::default()
    }
}

/// What the kill switch holds back.
fn sealed(tun: &ClientTun) -> Vec<IpNet> {
    if tun.kill_switch { tun.routes.clone().unwrap_or_default() } else { Vec::new() }
}

/// The server's UDP ports.
fn ports(servers: &[HostPort]) -> Vec<u16> {
    let mut ports: Vec<_> = servers.iter().map(|server| server.port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Exclude, foreign::Foreign};

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn welcome(addresses: &[&str], routes: &[&str]) -> Welcome {
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
        }
    }

    fn tun(routes: Option<&[&str]>) -> ClientTun {
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
        layout(&tun(routes), welcome, &[])
    }

    #[test]
    fn own_routes_win_over_those_that_the_server_offers() {
        let welcome = welcome(&["10.66.0.2/24"], &["192.0.2.0/24"]);
        assert_eq!(laid_out(None, &welcome).routes, nets(&["192.0.2.0/24"]));
        assert_eq!(laid_out(Some(&["10.1.0.0/16"]), &welcome).routes, nets(&["10.1.0.0/16"]));
        assert_eq!(laid_out(Some(&[]), &welcome).routes, []);
    }

    #[test]
    fn a_server_can_take_neither_all_traffic_nor_all_names_on_its_own_account() {
        let welcome = welcome(&["10.66.0.2/24", "fd66::2/64"], &["0.0.0.0/0", "::/0"]);
        let layout = laid_out(None, &welcome);
        assert_eq!((layout.routes, layout.blocked), (Vec::new(), Vec::new()));
        assert_eq!(layout.dns, Dns::default());
    }

    #[test]
    fn who_gives_all_traffic_takes_the_offered_resolver() {
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

    #[test]
    fn the_smaller_mtu_counts() {
        assert_eq!(laid_out(None, &welcome(&["10.66.0.2/24"], &[])).mtu, 1400);
    }
}
