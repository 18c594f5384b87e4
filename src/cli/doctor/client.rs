//! What a client needs: names and links. Whether the server answers over them is asked in [`ways`].

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use super::{
    finding::Finding,
    links::{self, Link},
    machine, routes, ways,
};
use crate::{
    config::{self, ClientConfig, ServerPeer, process_environment},
    link::{candidate::Candidate, monitor::Hints, netlink::Netlink},
    path::{
        network::{self, Network, kernel::KernelNetwork},
        servers::{
            ServerAddresses,
            detours::{self, Detours},
        },
    },
};

/// Tells whether this host is in a network that has a home address of the server.
async fn home(
    network: &dyn Network,
    server: &ServerPeer,
    config: &ClientConfig,
    tell: &mut dyn FnMut(Finding),
) -> anyhow::Result<()> {
    if server.home.is_empty() {
        return Ok(());
    }
    let found = network.neighbours(&server.home, &config.paths).await?;
    for (Candidate { server, link, .. }, _) in &found {
        let found =
            format!("{server} is in the network of {link}; it is home if the server's key answers");
        tell(Finding::good("home", found));
    }
    if found.is_empty() {
        tell(Finding::good("home", "no link has the network of a home address: away"));
    }
    Ok(())
}

/// Outer headers and QUIC's own bytes around an inner packet, at most.
const AROUND: u16 = 80;
pub(super) async fn examine(config: &ClientConfig, tell: &mut dyn FnMut(Finding)) {
    let mut servers = Vec::new();
    for server in &config.servers {
        servers.push((server, names(server, tell).await));
    }
    machine::ipv6("what the server says of IPv6 is left out", tell);
    if let Some(wanted) = &config.tun.routes {
        routes::collisions("tun.routes", wanted, &config.tun.name, tell).await;
    }
    if config.tun.kill_switch {
        machine::firewall(&config.tun.name, "tun.kill-switch", tell).await;
    }
    #[cfg(feature = "dbus")]
    if config.tun.dns.is_some() {
        tell(match crate::host::resolver::is_there().await {
            Ok(()) => Finding::good("resolver", "systemd-resolved answers"),
            Err(reason) => Finding::bad("resolver", reason, "tun.dns needs systemd-resolved"),
        });
    }
    let found = async {
        let netlink = Netlink::open()?;
        let all = links::all(&netlink).await?;
        let own = all.iter().find(|link| link.name == config.tun.name).map_or(0, |it| it.index);
        let network = KernelNetwork::new(Netlink::open()?, own, config.quic.dscp, Hints::none());
        let network: Arc<dyn Network> = Arc::new(network);
        let (mut found, mut leads_on) = (Vec::new(), false);
        for (server, addresses) in &servers {
            let detours = detours(server, tell).await;
            let known = detours.known(server);
            let network = network.towards().unwrap_or_else(|| network.clone());
            leads_on |= !known.is_empty();
            network.lead_to(server, detours);
            home(&*network, server, config, tell).await?;
            // Whoever is not at home has nothing to mend.
            let away = ServerPeer { home: Vec::new(), ..(*server).clone() };
            let there = network::find(&*network, &away, addresses, &known, &config.paths);
            let mut candidates = there.await?;
            candidates.sort_by_key(|(_, facts)| *facts);
            let candidates: Vec<_> = candidates.into_iter().map(|(it, _)| it).collect();
            found.push((*server, network, candidates));
        }
        anyhow::Ok((netlink, all, found, leads_on))
    };
    let (netlink, mut links, found, leads_on) = match found.await {
        Ok(found) => found,
        Err(error) => {
            return tell(Finding::bad("links", format!("{error:#}"), "netlink must be allowed"));
        }
    };
    let candidates: Vec<_> = found.iter().flat_map(|(.., candidates)| candidates).collect();
    let is_somewhere = leads_on || servers.iter().any(|(_, addresses)| !addresses.is_empty());
    if candidates.is_empty() && is_somewhere {
        let advice = "ip route get SERVER oif LINK shows whether a link has a route; links in \
                      paths.ignore are not looked at";
        let whom = if leads_on { "the server, a proxy or a relay" } else { "the server" };
        tell(Finding::bad("links", format!("no link has a route to {whom}"), advice));
    }
    let links_in_use: HashSet<_> = candidates.iter().map(|candidate| &candidate.link).collect();
    links.retain(|link| links_in_use.contains(&link.name));
    mtu(&links, config.tun.mtu, tell);
    for (server, network, candidates) in found {
        let asker = ways::Asker { config, server, network: &*network };
        ways::examine(asker, &netlink, candidates, tell).await;
    }
}

/// Who leads to the server, and their addresses.
async fn detours(server: &ServerPeer, tell: &mut dyn FnMut(Finding)) -> Arc<Detours> {
    let resolved = Detours::new();
    resolved.resolve(server).await;
    for (transport, at) in detours::all(server) {
        let found = resolved.addresses(transport, at);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        tell(if found.is_empty() {
            let advice = "a proxy's address works without a resolver";
            Finding::poor(
                transport.to_string(),
                format!("{at} has no address that is known"),
                advice,
            )
        } else {
            Finding::good(transport.to_string(), format!("{at} is {}", found.join(", ")))
        });
    }
    if let Some(said) = config::unusable_proxy(server, process_environment()) {
        let advice = "server.proxy counts before the environment";
        tell(Finding::poor("proxy", said, advice));
    }
    if server.proxy.as_ref().is_some_and(|it| !it.tls && it.credentials.is_some()) {
        let found = "every network in which somebody answers at its address gets user and password in the clear";
        let advice = "an https:// proxy has to prove its name first; paths.ignore keeps links out";
        tell(Finding::poor("proxy", found, advice));
    }
    resolved.into()
}

async fn names(server: &ServerPeer, tell: &mut dyn FnMut(Finding)) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for server in &server.addresses {
        match ServerAddresses::new(&[]).resolve(std::slice::from_ref(server)).await {
            Ok(addresses) => {
                let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                tell(Finding::good("server", format!("{server} is {}", shown.join(", "))));
                all.extend(addresses);
            }
            Err(error) => tell(Finding::poor(
                "server",
                error.to_string(),
                "add the server's address to server.address: it works without a resolver",
            )),
        }
    }
    if all.is_empty() {
        let (found, advice) = (
            "none of its addresses is known",
            "resolvectl query NAME, or a network without a captive portal",
        );
        tell(if detours::all(server).next().is_some() {
            let found = format!("{found}; whoever leads to it may know them");
            Finding::poor("server", found, advice)
        } else {
            Finding::bad("server", found, advice)
        });
    }
    all
}

fn mtu(links: &[Link], inner: u16, tell: &mut dyn FnMut(Finding)) {
    for Link { name, mtu, .. } in links {
        tell(if *mtu < 1280 {
            let advice = format!("ip link set {name} mtu 1280, or more");
            Finding::bad("MTU", format!("{name} carries {mtu} bytes, QUIC needs 1280"), advice)
        } else if *mtu < u32::from(inner + AROUND) {
            let advice = format!("tun.mtu = {} avoids that", (mtu - u32::from(AROUND)).max(1280));
            let found = format!("{name} carries {mtu} bytes, so that packets of {inner} are split");
            Finding::poor("MTU", found, advice)
        } else {
            Finding::good("MTU", format!("{name} carries {mtu} bytes"))
        });
    }
}
