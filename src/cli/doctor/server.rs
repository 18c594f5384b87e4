//! What a server needs.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use serde_json::Value;

use super::{
    directory,
    finding::Finding,
    firewall::{self, Fate},
    fleet, machine, routes,
    running::Running,
};
use crate::{
    config::ServerConfig,
    host::{
        nft::{self, NftError},
        sysctl,
    },
    link::candidate::Transport,
};

pub(super) async fn examine(
    config: &ServerConfig,
    running: &Running,
    tell: &mut dyn FnMut(Finding),
) {
    let ruleset = nft::ruleset().await;
    let udp = config.listen.iter().map(|listen| (Transport::Udp, *listen));
    let tcp = config.listen_tcp.map(|listen| (Transport::Tcp, listen));
    for (transport, listen) in udp.chain(tcp) {
        machine::port(listen.port(), tell);
        tell(listening(transport, listen, running));
        tell(let_in(transport, listen.port(), ruleset.as_ref()));
    }
    if config.tun.addresses.iter().any(|net| net.addr().is_ipv6()) {
        machine::ipv6("the tunnel's IPv6 addresses are left out", tell);
    }
    routes::collisions("tun.addresses", &config.tun.addresses, &config.tun.name, tell).await;
    if let Some(directory) = &config.directory {
        directory::examine(directory, tell).await;
        fleet::examine(&config.fleet, tell).await;
    }
    if config.peers.is_empty() && config.directory.is_some() {
        tell(Finding::good("peers", "none in the file, they are in the directory"));
    } else if config.peers.is_empty() {
        let advice = "roamd peer add PEER --endpoint HOST lets one in";
        tell(Finding::poor("peers", "nobody may connect", advice));
    } else {
        tell(Finding::good("peers", format!("{} may connect", config.peers.len())));
    }
    if config.tun.nat {
        machine::firewall(&config.tun.name, "tun.nat", tell).await;
        if running.is_server() {
            forwarding(tell);
        }
        for chain in ruleset.iter().flat_map(firewall::forward_drops) {
            let name = &config.tun.name;
            tell(Finding::poor(
                "forwarding",
                format!("the chain {chain} drops what none of its rules lets through"),
                format!("nft insert rule {chain} iifname {name} accept, and the same for oifname"),
            ));
        }
    } else if config.tun.peer_routes || !config.tun.routes.is_empty() {
        forwarding(tell);
    }
}

/// Whether the port can be had.
fn listening(transport: Transport, listen: SocketAddr, running: &Running) -> Finding {
    let subject = "port";
    let (name, key, option, bound) = if transport.is_stream() {
        ("TCP", "listen-tcp", "-tlpn", TcpListener::bind(listen).map(drop))
    } else {
        ("UDP", "listen", "-ulpn", UdpSocket::bind(listen).map(drop))
    };
    match bound {
        Ok(()) if running.is_absent() => {
            Finding::good(subject, format!("{listen} is free ({name})"))
        }
        Ok(()) => Finding::bad(
            subject,
            format!("the daemon runs, and does not listen on {listen} ({name})"),
            format!("{key} changes with a restart only"),
        ),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if running.has_port(transport, listen.port()) {
                return Finding::good(subject, format!("{listen} is this server's ({name})"));
            }
            let port = listen.port();
            Finding::bad(
                subject,
                format!("{listen} is in use ({name}) by another program"),
                format!("ss {option} 'sport = {port}' tells by which; stop it, or change {key}"),
            )
        }
        Err(error) => Finding::bad(
            subject,
            format!("cannot listen on {listen} ({name}): {error}"),
            format!("{key} = \"[::]:{}\" works on every host", listen.port()),
        ),
    }
}

/// Whether this host's own firewall lets clients in.
fn let_in(transport: Transport, port: u16, ruleset: Result<&Value, &NftError>) -> Finding {
    let subject = "firewall";
    let name = if transport.is_stream() { "TCP" } else { "UDP" };
    let advice = |chain: &str| format!("nft insert rule {chain} {transport} dport {port} accept");
    match ruleset.map(|ruleset| firewall::fate(ruleset, transport, port)) {
        Ok(Fate::Accepted) => Finding::good(
            subject,
            format!(
                "this host's nftables let {name} port {port} in; others on the way are not seen"
            ),
        ),
        Ok(Fate::Dropped(chain)) => Finding::bad(
            subject,
            format!("the chain {chain} drops what comes to {name} port {port}"),
            advice(&chain),
        ),
        Ok(Fate::Unclear(chain)) => Finding::poor(
            subject,
            format!("the chain {chain} may drop what comes to {name} port {port}"),
            advice(&chain),
        ),
        Err(reason) => Finding::poor(
            subject,
            format!("this host's firewall rules are not seen: {reason}"),
            format!("make sure that {name} port {port} is let in"),
        ),
    }
}

/// Routes are offered, so packets of clients must be forwarded.
fn forwarding(tell: &mut dyn FnMut(Finding)) {
    let on = sysctl::read("ipv4/ip_forward").is_ok_and(|value| value == "1");
    tell(if on {
        Finding::good("forwarding", "is on")
    } else {
        let advice =
            "tun.nat = true, or sysctl -w net.ipv4.ip_forward=1 and routes back to the peers";
        Finding::poor("forwarding", "is off, so that peers cannot get beyond this host", advice)
    });
}
