//! What a client needs: names, links, and the server's answer over each of them.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
use quinn::{Connection, ConnectionError};
use tokio::time;

use super::{
    finding::Finding,
    links::{self, Link},
    machine, routes,
};
use crate::{
    clock,
    config::{ClientConfig, HostPort},
    daemon::status::milliseconds,
    host::reverse_path,
    link::{candidate::Candidate, monitor::Hints, netlink::Netlink},
    path::{
        handshake::{Connected, Handshake, HandshakeError},
        network::{Network, kernel::KernelNetwork},
        servers::ServerAddresses,
    },
    quic::{self, close, tls},
    wire::foreign::Foreign,
};

/// Outer headers and QUIC's own bytes around an inner packet, at most.
const AROUND: u16 = 80;
/// How many packets the server is asked to echo, and how long after one the next is sent.
const ECHOES: u32 = 10;
const ECHO_INTERVAL: Duration = Duration::from_millis(100);
/// How long the last echo may take.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// How many of these may be lost on a network that is in order: any radio loses some.
const ECHOES_LOST: u32 = 2;

pub(super) async fn examine(config: &ClientConfig, tell: &mut dyn FnMut(Finding)) {
    let servers = names(&config.server.addresses, tell).await;
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
        let mut candidates = network.candidates(&servers, &config.paths).await?;
        candidates.sort_by_key(|(_, facts)| *facts);
        anyhow::Ok((netlink, all, network, candidates))
    };
    let (netlink, mut links, network, candidates) = match found.await {
        Ok(found) => found,
        Err(error) => {
            return tell(Finding::bad("links", format!("{error:#}"), "netlink must be allowed"));
        }
    };
    let candidates: Vec<_> = candidates.into_iter().map(|(candidate, _)| candidate).collect();
    if candidates.is_empty() && !servers.is_empty() {
        let advice = "ip route get SERVER oif LINK shows whether a link has a route; links in \
                      paths.ignore are not looked at";
        tell(Finding::bad("links", "no link has a route to the server", advice));
    }
    let links_in_use: HashSet<_> = candidates.iter().map(|candidate| &candidate.link).collect();
    links.retain(|link| links_in_use.contains(&link.name));
    mtu(&links, config.tun.mtu, tell);
    for candidate in candidates {
        match reverse_path::passes(&netlink, &candidate).await {
            Ok(false) => tell(filtered(&candidate)),
            Ok(true) | Err(_) => tell(ask(config, &network, candidate).await),
        }
    }
}

async fn names(servers: &[HostPort], tell: &mut dyn FnMut(Finding)) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for server in servers {
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
        let advice = "resolvectl query NAME, or a network without a captive portal";
        tell(Finding::bad("server", "none of its addresses is known", advice));
    }
    all
}

/// Nothing is asked where the answer would be dropped.
fn filtered(Candidate { link, server, .. }: &Candidate) -> Finding {
    Finding::poor(
        format!("{server} over {link}"),
        format!(
            "not asked: the reverse path filter of {link} is strict (rp_filter) and would drop the answer; \
             while roamd runs, its rules let such answers through"
        ),
        "ask again while roamd runs",
    )
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

/// Asks the server over one link, as a probe does.
async fn ask(config: &ClientConfig, network: &dyn Network, candidate: Candidate) -> Finding {
    let Candidate { link, server, .. } = candidate.clone();
    let subject = format!("{server} over {link}");
    let (key, expected) = (&config.private_key, config.server.public_key);
    let handshake = match Handshake::new(key, expected, tls::PROBE, quic::probe_transport()) {
        Ok(handshake) => handshake,
        Err(error) => return Finding::bad(subject, error.to_string(), "check the keys"),
    };
    match handshake.run(network, candidate, config.paths.probe_timeout, None).await {
        Ok(Connected { connection, underlay: _underlay, .. }) => match echo(&connection).await {
            Ok(echoes) => judge(subject, echoes),
            Err(ConnectionError::ApplicationClosed(close))
                if close.error_code == close::UNKNOWN_KEY =>
            {
                let key = key.public_key();
                let advice = format!("on the server: [[peer]] with public-key = \"{key}\"");
                Finding::bad(subject, "the server does not know this client's key", advice)
            }
            Err(error) => Finding::bad(
                subject,
                format!("answers, and then: {}", Foreign::of(error)),
                "what does the server's log say?",
            ),
        },
        Err(error @ HandshakeError::TimedOut { .. }) => Finding::bad(
            subject,
            error.to_string(),
            "is the server running, and does every firewall on the way let UDP to this port through? \
             networks that let only web pages through often let port 443 pass",
        ),
        Err(error @ HandshakeError::WrongServerKey { .. }) => {
            let advice = "server.public-key is what roamd pubkey prints on the server";
            Finding::bad(subject, error.to_string(), advice)
        }
        Err(error @ HandshakeError::GivenUp { .. }) => {
            Finding::bad(subject, error.to_string(), "what does the server's log say?")
        }
        Err(error) => Finding::bad(subject, error.to_string(), "is the address the server's?"),
    }
}

/// Asks for some echoes and gives the round trips of those that came, the shortest first.
async fn echo(connection: &Connection) -> Result<Vec<Duration>, ConnectionError> {
    let epoch = clock::now();
    let mut round_trips = Vec::new();
    let mut next = time::interval(ECHO_INTERVAL);
    let mut asked = 0;
    let mut end = None;
    while round_trips.len() < ECHOES as usize && end.is_none_or(|end| clock::now() < end) {
        tokio::select! {
            reply = connection.read_datagram() => {
                if let Ok(sent) = reply?.as_ref().try_into() {
                    let sent = Duration::from_micros(u64::from_be_bytes(sent));
                    round_trips.push(clock::now().duration_since(epoch).saturating_sub(sent));
                }
            }
            _ = next.tick() => {
                if asked < ECHOES {
                    let now = clock::now().duration_since(epoch).as_micros() as u64;
                    // What cannot be sent is not answered either.
                    let _ = connection.send_datagram(Bytes::copy_from_slice(&now.to_be_bytes()));
                    asked += 1;
                } else {
                    end = end.or(Some(clock::now() + ECHO_TIMEOUT));
                }
            }
        }
    }
    round_trips.sort_unstable();
    Ok(round_trips)
}

/// What these round trips, the shortest first, tell of a link.
fn judge(subject: String, round_trips: Vec<Duration>) -> Finding {
    let lost = ECHOES.saturating_sub(round_trips.len() as u32);
    let advice = "the network may drop UDP once it lasts; another port (443) may help";
    match round_trips.get(round_trips.len() / 2) {
        None => Finding::bad(subject, "lets a handshake pass and nothing after it", advice),
        Some(&median) => {
            let found = format!("answers, {:.1} ms", milliseconds(median));
            if lost <= ECHOES_LOST {
                return Finding::good(subject, found);
            }
            Finding::poor(subject, format!("{found}, but loses {lost} of {ECHOES} packets"), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Verdict;

    #[test]
    fn loss_of_three_in_ten_packets_is_reported() {
        let after = |answered: u64| {
            let finding = judge("eth0".into(), (1..=answered).map(Duration::from_millis).collect());
            (finding.verdict, finding.found)
        };
        assert_eq!(after(10), (Verdict::Good, "answers, 6.0 ms".into()));
        assert_eq!(after(8).0, Verdict::Good);
        let poor = "answers, 4.0 ms, but loses 3 of 10 packets";
        assert_eq!(after(7), (Verdict::Poor, poor.into()));
        assert_eq!(after(0).0, Verdict::Bad);
    }
}
