//! What the server tells a client in its welcome.

use ipnet::IpNet;

use super::{Server, peers::Peer};
use crate::{
    quic::session::SOFTWARE,
    wire::message::{Net, Welcome},
};

impl Server {
    pub(super) fn welcome(&self, peer: &Peer, version: u16) -> Welcome {
        let configured = self.configured.borrow();
        let tun = &configured.config.tun;
        let addresses = peer.addresses.iter().map(|address| {
            let network = tun.addresses.iter().find(|network| network.contains(address));
            let host = IpNet::from(*address);
            let prefix = network.map_or(host.prefix_len(), IpNet::prefix_len);
            Net(IpNet::new(*address, prefix).unwrap_or(host))
        });
        Welcome {
            version,
            software: SOFTWARE.into(),
            name: peer.name.as_str().into(),
            addresses: addresses.collect(),
            routes: tun.routes.iter().copied().map(Net).collect(),
            mtu: tun.mtu,
            unchecked: self.tun.completes_checksums(),
            dns: tun.dns.servers.iter().map(ToString::to_string).collect(),
            search_domains: tun.dns.domains.clone(),
            server_addresses: tun.addresses.iter().map(|net| net.addr().to_string()).collect(),
            repair: true,
            copies: true,
            holds_bulk: true,
        }
    }
}
