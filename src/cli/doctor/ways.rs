//! By which ways the server answers over each link, and what that means for the tunnel.
//!
//! ```text
//!  link ─┬─ UDP, each port of server.address ─┐
//!        ├─ TCP, server.tcp-port ─────────────┤
//!        ├─ a proxy, server.proxy ────────────┤
//!        └─ a relay, server.relay ────────────┴─▶ one finding each, and one for the link
//! ```

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use quinn::{Connection, ConnectionError};
use tokio::time;

use super::finding::{Finding, Verdict};
use crate::{
    clock,
    config::{ClientConfig, ServerPeer},
    daemon::status::milliseconds,
    host::reverse_path,
    link::{
        candidate::{Candidate, Transport},
        netlink::Netlink,
    },
    path::{
        handshake::{Connected, Handshake, HandshakeError},
        network::Network,
    },
    quic::{self, close, tls},
    wire::foreign::Foreign,
};

/// How many packets the server is asked to echo, and how long after one the next is sent.
const ECHOES: u32 = 10;
const ECHO_INTERVAL: Duration = Duration::from_millis(100);
/// How long the last echo may take.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// How many of these may be lost on a network that is in order: any radio loses some.
const ECHOES_LOST: u32 = 2;

/// The port that networks most likely let out.
const WEB: u16 = 443;

/// How packets get to the server: by a transport, to a port. Ordered best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way(Transport, u16);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Transport::Udp, port) => write!(f, "UDP {port}"),
            Self(Transport::Tcp, port) => write!(f, "TCP {port}"),
            Self(Transport::Proxy, _) => write!(f, "the proxy"),
            Self(Transport::Relay, _) => write!(f, "the relay"),
        }
    }
}

/// What became of a question. Declared best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The server answered and knows this client.
    Works,
    /// Somebody answered, but there is no tunnel.
    Refused,
    /// Nothing came back.
    Silent,
}

/// How a server is asked.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) config: &'a ClientConfig,
    pub(super) server: &'a ServerPeer,
    pub(super) network: &'a dyn Network,
}

/// Asks the server over each of these candidates, those of a link at the same time.
pub(super) async fn examine(
    asker: Asker<'_>,
    netlink: &Netlink,
    candidates: Vec<Candidate>,
    tell: &mut dyn FnMut(Finding),
) {
    let mut links: Vec<(String, Vec<Candidate>)> = Vec::new();
    for candidate in candidates {
        match links.iter_mut().find(|(link, _)| *link == candidate.link) {
            Some((_, of_link)) => of_link.push(candidate),
            None => links.push((candidate.link.clone(), vec![candidate])),
        }
    }
    for (link, candidates) in links {
        let mut asked = Vec::new();
        for candidate in candidates {
            match reverse_path::passes(netlink, &candidate).await {
                Ok(false) => tell(filtered(&candidate)),
                Ok(true) | Err(_) => asked.push(candidate),
            }
        }
        let answers = join_all(asked.into_iter().map(|candidate| async {
            let way = Way(candidate.transport, candidate.server.port());
            (way, ask(asker, candidate).await)
        }))
        .await;
        let mut ways = BTreeMap::new();
        for (way, (_, outcome)) in &answers {
            let best = ways.entry(*way).or_insert(*outcome);
            *best = (*best).min(*outcome);
        }
        let works = ways.values().any(|outcome| *outcome == Outcome::Works);
        for (_, (mut finding, outcome)) in answers {
            // The tunnel goes another way.
            if works && outcome == Outcome::Silent {
                finding.verdict = finding.verdict.min(Verdict::Poor);
            }
            tell(finding);
        }
        if let Some(finding) = sum(&link, &ways) {
            tell(finding);
        }
    }
}

/// What the ways over a link mean together; nothing where the lines before say all.
fn sum(link: &str, ways: &BTreeMap<Way, Outcome>) -> Option<Finding> {
    let listed: Vec<_> = ways
        .iter()
        .map(|(way, outcome)| match outcome {
            Outcome::Works => format!("{way} works"),
            Outcome::Refused => format!("{way} is refused"),
            Outcome::Silent => format!("{way} is silent"),
        })
        .collect();
    let listed = listed.join(", ");
    let any =
        |transport, outcome| ways.iter().any(|(way, it)| way.0 == transport && *it == outcome);
    let is_tried = |transport| ways.keys().any(|way| way.0 == transport);
    if any(Transport::Udp, Outcome::Works) {
        return Some(Finding::good(link, format!("{listed}; the tunnel uses UDP")));
    }
    if any(Transport::Tcp, Outcome::Works) {
        let advice = if ways.contains_key(&Way(Transport::Udp, WEB)) {
            "TCP is slower where packets are lost; the tunnel returns to UDP once it answers"
        } else {
            "TCP is slower where packets are lost; a server that also listens on UDP port 443 may be heard"
        };
        let found = format!("{listed}; no UDP gets through, and the tunnel will use TCP");
        return Some(Finding::poor(link, found, advice));
    }
    for detour in [Transport::Proxy, Transport::Relay] {
        if any(detour, Outcome::Works) {
            let advice = "a detour is slower than any other way; the tunnel leaves it once one of them answers";
            let found = format!("{listed}; the tunnel will use the {detour}");
            return Some(Finding::poor(link, found, advice));
        }
    }
    if ways.is_empty() || ways.values().any(|outcome| *outcome == Outcome::Refused) {
        return None;
    }
    let advice = if is_tried(Transport::Proxy) {
        "if the server runs, this network lets nothing out but to a login page"
    } else if is_tried(Transport::Tcp) {
        "if the server runs, this network lets nothing out but to a login page or a proxy (server.proxy)"
    } else {
        "where networks let no UDP out, listen-tcp on the server and server.tcp-port here help"
    };
    Some(Finding::bad(link, format!("{listed}; no tunnel over this link"), advice))
}

fn subject(Candidate { link, server, transport, .. }: &Candidate) -> String {
    format!("{} over {link}", transport.mark(server))
}

/// Nothing is asked where the answer would be dropped.
fn filtered(candidate: &Candidate) -> Finding {
    let link = &candidate.link;
    Finding::poor(
        subject(candidate),
        format!(
            "not asked: the reverse path filter of {link} is strict (rp_filter) and would drop the answer; \
             while roamd runs, its rules let such answers through"
        ),
        "ask again while roamd runs",
    )
}

/// Asks the server one way, as a probe does; also what became of the question.
async fn ask(
    Asker { config, server, network }: Asker<'_>,
    candidate: Candidate,
) -> (Finding, Outcome) {
    let (subject, transport) = (subject(&candidate), candidate.transport);
    let (key, expected) = (&config.private_key, server.public_key);
    let refused = |found: String, advice: &str| {
        (Finding::bad(subject.clone(), found, advice), Outcome::Refused)
    };
    let silent = |found: String, advice: &str| {
        (Finding::bad(subject.clone(), found, advice), Outcome::Silent)
    };
    let handshake = match Handshake::new(key, expected, tls::PROBE, quic::probe_transport()) {
        Ok(handshake) => handshake,
        Err(error) => return refused(error.to_string(), "check the keys"),
    };
    let log = "what does the server's log say?";
    match handshake.run(network, candidate, config.paths.probe_timeout, None).await {
        Ok(Connected { connection, underlay: _underlay, .. }) => match echo(&connection).await {
            Ok(echoes) => judge(subject, echoes),
            Err(ConnectionError::ApplicationClosed(close))
                if close.error_code == close::UNKNOWN_KEY =>
            {
                let key = key.public_key();
                let advice = format!("on the server: [[peer]] with public-key = \"{key}\"");
                refused("the server does not know this client's key".into(), &advice)
            }
            Err(error) => refused(format!("answers, and then: {}", Foreign::of(error)), log),
        },
        Err(error @ (HandshakeError::TimedOut { .. } | HandshakeError::NotConnected { .. })) => {
            let advice = match transport {
                Transport::Udp => {
                    "is the server running, and does every firewall on the way let UDP to this port through? \
                     networks that let only web pages through often let port 443 pass"
                }
                Transport::Tcp => {
                    "does the server have listen-tcp, and does every firewall on the way let TCP to this port \
                     through?"
                }
                Transport::Proxy => {
                    "does this network have this proxy, and does it let its clients connect to the server's port?"
                }
                Transport::Relay => {
                    "does this relay take clients from this network, and send to this server?"
                }
            };
            silent(error.to_string(), advice)
        }
        Err(error @ HandshakeError::WrongServerKey { .. }) => {
            let advice = "server.public-key is what roamd pubkey prints on the server";
            refused(error.to_string(), advice)
        }
        Err(error @ HandshakeError::GivenUp { .. }) => refused(error.to_string(), log),
        Err(error @ HandshakeError::NotRoamd { .. }) => {
            refused(error.to_string(), "is the address the server's?")
        }
        Err(error @ HandshakeError::Unreachable { .. }) => {
            silent(error.to_string(), "is the address the server's?")
        }
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

/// What these round trips, the shortest first, tell of a way.
fn judge(subject: String, round_trips: Vec<Duration>) -> (Finding, Outcome) {
    let lost = ECHOES.saturating_sub(round_trips.len() as u32);
    let advice = "the network may drop UDP once it lasts; another port (443) may help";
    match round_trips.get(round_trips.len() / 2) {
        None => {
            let found = "lets a handshake pass and nothing after it";
            (Finding::bad(subject, found, advice), Outcome::Silent)
        }
        Some(&median) => {
            let found = format!("answers, {:.1} ms", milliseconds(median));
            if lost <= ECHOES_LOST {
                return (Finding::good(subject, found), Outcome::Works);
            }
            let found = format!("{found}, but loses {lost} of {ECHOES} packets");
            (Finding::poor(subject, found, advice), Outcome::Works)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn loss_of_three_in_ten_packets_is_reported() {
        let after = |answered: u64| {
            let round_trips = (1..=answered).map(Duration::from_millis).collect();
            let (finding, _) = judge("eth0".into(), round_trips);
            (finding.verdict, finding.found)
        };
        assert_eq!(after(10), (Verdict::Good, "answers, 6.0 ms".into()));
        assert_eq!(after(8).0, Verdict::Good);
        let poor = "answers, 4.0 ms, but loses 3 of 10 packets";
        assert_eq!(after(7), (Verdict::Poor, poor.into()));
        assert_eq!(after(0).0, Verdict::Bad);
    }

    const UDP: Way = Way(Transport::Udp, 4433);
    const UDP_WEB: Way = Way(Transport::Udp, WEB);
    const TCP: Way = Way(Transport::Tcp, WEB);
    const PROXY: Way = Way(Transport::Proxy, 3128);

    /// What is said of a link over which the first ways work and the others are silent.
    fn said(works: &[Way], silent: &[Way]) -> (Verdict, String) {
        let works = works.iter().map(|way| (*way, Outcome::Works));
        let silent = silent.iter().map(|way| (*way, Outcome::Silent));
        let finding = sum("wlan0", &works.chain(silent).collect()).unwrap();
        assert_eq!(finding.subject, "wlan0");
        (finding.verdict, finding.found)
    }

    #[test]
    fn a_link_is_summed_up_by_its_best_way() {
        let cases = [
            (&[UDP][..], &[][..], Verdict::Good, "UDP 4433 works; the tunnel uses UDP"),
            (
                &[UDP_WEB, TCP],
                &[UDP],
                Verdict::Good,
                "UDP 443 works, UDP 4433 is silent, TCP 443 works; the tunnel uses UDP",
            ),
            (
                &[TCP],
                &[UDP],
                Verdict::Poor,
                "UDP 4433 is silent, TCP 443 works; no UDP gets through, and the tunnel will use TCP",
            ),
            (
                &[PROXY],
                &[UDP, TCP],
                Verdict::Poor,
                "UDP 4433 is silent, TCP 443 is silent, the proxy works; the tunnel will use the proxy",
            ),
            (
                &[],
                &[UDP, TCP],
                Verdict::Bad,
                "UDP 4433 is silent, TCP 443 is silent; no tunnel over this link",
            ),
        ];
        for (works, silent, verdict, found) in cases {
            assert_eq!(said(works, silent), (verdict, found.into()));
        }
    }

    #[test]
    fn a_server_that_refuses_the_client_says_nothing_of_the_network() {
        let refused = [(UDP, Outcome::Refused), (TCP, Outcome::Silent)];
        assert_eq!(sum("wlan0", &refused.into()), None);
    }

    #[test]
    fn the_advice_names_what_was_not_tried() {
        let advice = |works: &[Way], silent: &[Way]| {
            let works = works.iter().map(|way| (*way, Outcome::Works));
            let silent = silent.iter().map(|way| (*way, Outcome::Silent));
            sum("wlan0", &works.chain(silent).collect()).unwrap().advice
        };
        assert!(advice(&[], &[UDP]).contains("listen-tcp"));
        assert!(advice(&[], &[UDP, TCP]).contains("server.proxy"));
        assert!(!advice(&[], &[UDP, TCP, PROXY]).contains("proxy"));
        assert!(advice(&[TCP], &[UDP]).contains("UDP port 443"));
        assert!(!advice(&[TCP], &[UDP, UDP_WEB]).contains("UDP port 443"));
    }
}
