//! What the server tells a client in its welcome.

use ipnet::IpNet;

use super::{Server, peers::Peer};
use crate::{
    config::{Dns, ServerTun},
    quic::session::SOFTWARE,
    wire::message::{Net, Welcome},
};

/// What every client is told.
pub(super) struct Offer {
    networks: Vec<IpNet>,
    routes: Vec<IpNet>,
    dns: Dns,
    mtu: u16,
}

impl Offer {
    pub(super) fn new(tun: &ServerTun) -> Self {
        let ServerTun { addresses, routes, dns, mtu, .. } = tun.clone();
        Self { networks: addresses, routes, dns, mtu }
    }
}

impl Server {
    pub(super) fn welcome(&self, peer: &Peer, version: u16) -> Welcome {
        let offer = self.offer.load();
        let addresses = peer.addresses.iter().map(|address| {
            let network = offer.networks.iter().find(|network| network.contains(address));
            let host = IpNet::from(*address);
            let prefix = network.map_or(host.prefix_len(), IpNet::prefix_len);
            Net(IpNet::new(*address, prefix).unwrap_or(host))
        });
        Welcome {
            version,
            software: SOFTWARE.into(),
            name: peer.name.as_str().into(),
            addresses: addresses.collect(),
            routes: offer.routes.iter().copied().map(Net).collect(),
            mtu: offer.mtu,
            unchecked: self.tun.completes_checksums(),
            dns: offer.dns.servers.iter().map(ToString::to_string).collect(),
            search_domains: offer.dns.domains.clone(),
            server_addresses: offer.networks.iter().map(|net| net.addr().to_string()).collect(),
        }
    }
}
