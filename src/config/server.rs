//! What a server's values mean.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::{
    DirectoryFile, Peer, ServerConfig, ServerPeer, ServerTun,
    check::{self, Unique, elements, is_name},
    directory, fleet,
    problem::Problems,
    raw::{List, RawDirectory, RawPeer, RawServer},
};
use crate::identity::{PrivateKey, PublicKey};

/// UDP sockets, each with kernel buffers of 8 MB in each direction.
const MOST_PORTS: usize = 8;
/// Whoever stops a server for longer drains it first.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// Fills in every default in `raw`.
pub(super) fn build(
    raw: &mut RawServer,
    file: &Path,
    problems: &mut Problems,
) -> Option<ServerConfig> {
    let private_key =
        check::private_key(&raw.private_key, &mut raw.private_key_file, file, problems);
    let listen = listen(&raw.listen, problems);
    let mut taken = Taken::new();
    if let Some(key) = &private_key {
        taken.keys.claim(key.public_key(), "this server itself", problems);
    }
    let tun = tun(raw, &mut taken, problems);
    let peers = peers(raw.peer.get_or_insert_default(), &mut taken, problems);
    let quic = check::quic(raw.quic.get_or_insert_default(), problems);
    let log = check::log(raw.log.get_or_insert_default());
    let metrics = check::metrics(raw.metrics.get_or_insert_default(), problems);
    let directory = raw.directory.as_mut().map(|raw| directory::build(raw, file, problems));
    let fleet = servers(&raw.directory, private_key.as_ref().map(PrivateKey::public_key), problems);
    let drain = problems.accept_duration("drain", raw.drain, |it| it <= LONGEST_DRAIN);
    Some(ServerConfig {
        private_key: private_key?,
        listen,
        listen_tcp: raw.listen_tcp,
        drain: drain?,
        tun: tun?,
        peers,
        directory: directory.flatten(),
        fleet,
        quic: quic?,
        log: log?,
        metrics,
    })
}

/// What a file without a private key says of the directory.
pub(super) fn directory_file(
    raw: &mut RawServer,
    file: &Path,
    problems: &mut Problems,
) -> DirectoryFile {
    let mut taken = Taken::new();
    let tun = tun(raw, &mut taken, problems);
    let directory = raw.directory.as_mut().and_then(|raw| directory::build(raw, file, problems));
    let networks = tun.map(|tun| tun.addresses).unwrap_or_default();
    let fleet = servers(&raw.directory, None, problems);
    DirectoryFile { directory, fleet, networks, server: None }
}

/// What clients are told of the servers of a fleet. `own` is this one's key.
fn servers(
    raw: &Option<RawDirectory>,
    own: Option<PublicKey>,
    problems: &mut Problems,
) -> Vec<ServerPeer> {
    let Some(raw) = raw else { return Vec::new() };
    fleet::build(&raw.server, own, problems)
}

/// The UDP ports; none if they have been reported.
fn listen(raw: &List<SocketAddr>, problems: &mut Problems) -> Vec<SocketAddr> {
    const LISTEN: &str = "listen";
    problems.require_some(LISTEN, raw);
    let listen = elements(LISTEN, raw);
    let mut taken = Unique::new();
    // Of port 0 the kernel makes another one each time.
    for (key, address) in listen.iter().filter(|(_, address)| address.port() != 0) {
        taken.claim(*address, key, problems);
    }
    if listen.len() > MOST_PORTS {
        let count = listen.len();
        let reason = format!("has {count} elements; it may have {MOST_PORTS}, each a socket");
        problems.add(LISTEN, None, reason);
    }
    listen.into_iter().map(|(_, address)| address).collect()
}

/// What peers cannot have any more, and the networks that their addresses come from.
struct Taken {
    names: Unique<String>,
    keys: Unique<PublicKey>,
    addresses: Unique<IpAddr>,
    networks: Vec<IpNet>,
}

impl Taken {
    fn new() -> Self {
        Self {
            names: Unique::new(),
            keys: Unique::new(),
            addresses: Unique::new(),
            networks: Vec::new(),
        }
    }
}

fn tun(raw: &mut RawServer, taken: &mut Taken, problems: &mut Problems) -> Option<ServerTun> {
    const ADDRESSES: &str = "tun.addresses";
    let is_one_of_several = raw.directory.is_some();
    let raw = raw.tun.get_or_insert_default();
    let peer_routes = *raw.peer_routes.get_or_insert(is_one_of_several);
    let name = check::tun_name(&raw.name, problems);
    let mtu = check::tun_mtu(raw.mtu, problems);
    let routes = check::tun_routes(&raw.routes, problems);
    if routes.iter().any(|route| route.prefix_len() == 0) {
        let reason = "offers everything, which only a client's own file can ask for";
        problems.add("tun.routes", None, reason);
    }
    problems.require_some(ADDRESSES, &raw.addresses);
    let mut addresses = Vec::new();
    for (key, address) in elements(ADDRESSES, &raw.addresses) {
        let Some(address) = problems.accept(&key, Some(address), is_host_address) else { continue };
        taken.networks.push(address.trunc());
        check_host(&key, address.addr(), &[address], problems);
        taken.addresses.claim(address.addr(), &key, problems);
        addresses.push(address);
    }
    let dns = check::dns(&raw.dns, &raw.search_domains, problems);
    Some(ServerTun {
        name: name?,
        mtu: mtu?,
        offload: raw.offload?,
        addresses,
        routes,
        dns,
        nat: raw.nat?,
        peer_routes,
    })
}

fn is_host_address(address: &IpNet) -> bool {
    let ip = address.addr();
    address.prefix_len() > 0 && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

fn peers(raw: &[Option<RawPeer>], taken: &mut Taken, problems: &mut Problems) -> Vec<Peer> {
    let mut peers = Vec::new();
    for (key, raw) in elements("peer", &Some(raw.to_vec())) {
        peers.extend(peer(&key, &raw, taken, problems));
    }
    peers
}

fn peer(key: &str, raw: &RawPeer, taken: &mut Taken, problems: &mut Problems) -> Option<Peer> {
    let name_key = format!("{key}.name");
    let name = problems.require(&name_key, raw.name.clone());
    let name = problems.accept(&name_key, name, |name| is_name(name));
    if let Some(name) = &name {
        taken.names.claim(name.clone(), &name_key, problems);
    }
    let public_key_key = format!("{key}.public-key");
    let public_key = problems.require(&public_key_key, raw.public_key);
    if let Some(public_key) = public_key {
        taken.keys.claim(public_key, &public_key_key, problems);
    }
    let addresses = peer_addresses(&format!("{key}.addresses"), &raw.addresses, taken, problems);
    Some(Peer { name: name?, public_key: public_key?, addresses })
}

fn peer_addresses(
    key: &str,
    raw: &List<IpAddr>,
    taken: &mut Taken,
    problems: &mut Problems,
) -> Vec<IpAddr> {
    problems.require_some(key, raw);
    let addresses = elements(key, raw);
    for (key, address) in &addresses {
        check_host(key, *address, &taken.networks, problems);
        taken.addresses.claim(*address, key, problems);
    }
    addresses.into_iter().map(|(_, address)| address).collect()
}

/// Reports an address that no host in any of these networks can have.
fn check_host(key: &str, address: IpAddr, networks: &[IpNet], problems: &mut Problems) {
    // Without a network, it is the network that has been reported.
    let reason = misplaced(address, networks).filter(|_| !networks.is_empty());
    if let Some(reason) = reason {
        problems.add(key, Some(address.to_string()), reason);
    }
}

/// Why no host in any of these networks can have the address.
pub(crate) fn misplaced(address: IpAddr, networks: &[IpNet]) -> Option<String> {
    let Some(network) = networks.iter().find(|network| network.contains(&address)) else {
        return Some(format!(
            "is outside of every network in tun.addresses ({})",
            listed(networks)
        ));
    };
    let what = reserved(address, network)?;
    Some(format!("is the {what} of {}, which no host can have", network.trunc()))
}

fn listed(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// RFC 3021 and RFC 6164 let the two hosts of a link have both of its addresses.
fn reserved(address: IpAddr, network: &IpNet) -> Option<&'static str> {
    match network {
        _ if network.max_prefix_len() - network.prefix_len() < 2 => None,
        IpNet::V4(v4) if address == IpAddr::V4(v4.network()) => Some("network address"),
        IpNet::V4(v4) if address == IpAddr::V4(v4.broadcast()) => Some("broadcast address"),
        // RFC 4291 §2.6.1
        IpNet::V6(v6) if address == IpAddr::V6(v6.network()) => Some("subnet-router address"),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}
