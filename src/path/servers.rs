//! The server's addresses: those in the configuration, and those to which its names resolve.
//!
//! The operator of a network can forge DNS answers with any number of addresses. Configured addresses therefore
//! come first, and names add only a few.

pub(crate) mod detours;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::debug;

pub(crate) use self::detours::{Detours, Known, written_down};
use super::{PathKey, rank::LinkFacts};
use crate::{
    config::HostPort,
    identity::PublicKey,
    link::candidate::{Candidate, Transport},
};

/// Timeout of one resolution. By default libc tries twice for 5 s (resolv.conf(5)).
const TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum of addresses that all names together add. Each is probed over each link, on a socket of its own.
const MOST: usize = 8;

/// Maximum of paths that are known at a time. All but one are standbys, which cost a handshake of 2.5 kB, and then two
/// small packets every `paths.standby-check`. A server takes 16 probe connections of a client.
const MOST_PATHS: usize = 12;
/// Paths over TCP beside them, and as many by each detour.
const MOST_OVER_TCP: usize = 4;

/// Of whom addresses are: the server with this key, or those who lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Server(PublicKey),
    Detours(PublicKey),
}

/// A request to let packets to these addresses through the kill switch, in place of those before of the same owner. It is
/// answered when that is done.
#[derive(Debug)]
pub(crate) struct Admit {
    pub(crate) owner: Owner,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) done: oneshot::Sender<()>,
}

/// Takes requests of one owner.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) owner: Owner,
    pub(crate) requests: mpsc::Sender<Admit>,
}

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("cannot resolve {name}: {reason}")]
pub struct ResolveError {
    name: String,
    reason: String,
}

/// The addresses of one server, as far as they are known.
#[derive(Debug)]
pub struct ServerAddresses {
    known: watch::Sender<Vec<SocketAddr>>,
    admission: OnceLock<Admission>,
}

impl ServerAddresses {
    /// Resolves nothing yet: only the configured addresses are known.
    #[must_use]
    pub fn new(servers: &[HostPort]) -> Self {
        let written = servers
            .iter()
            .filter_map(|HostPort { host, port }| Some(SocketAddr::new(host.parse().ok()?, *port)));
        let known = choose(written.collect(), Vec::new(), &[]);
        Self { known: watch::Sender::new(known), admission: OnceLock::new() }
    }

    /// Requests the admission of new addresses before they are published.
    pub(crate) fn admit_through(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    async fn admit(&self, addresses: Vec<SocketAddr>) {
        if let Some(admission) = self.admission.get() {
            admit(admission, addresses).await;
        }
    }

    /// What was found last. The resolver is the first to fail when a network does.
    #[must_use]
    pub fn known(&self) -> Vec<SocketAddr> {
        self.known.borrow().clone()
    }

    /// Notifies of changes of the addresses.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.known.subscribe()
    }

    /// The addresses behind all names of the server; an error only if there is none at all.
    pub async fn resolve(&self, servers: &[HostPort]) -> Result<Vec<SocketAddr>, ResolveError> {
        let answers = join_all(servers.iter().map(resolve)).await;
        let (mut written, mut found, mut failure) = (Vec::new(), Vec::new(), None);
        for (server, answer) in servers.iter().zip(answers) {
            match answer {
                Ok(addresses) if is_address(server) => written.extend(addresses),
                Ok(addresses) => found.push(addresses),
                Err(error) => failure = Some(error),
            }
        }
        let is_nothing = written.is_empty() && found.iter().all(Vec::is_empty);
        if failure.is_some() {
            // A name that cannot be resolved stands for what it stood for.
            found.push(self.known());
        }
        let addresses = choose(written, found, &self.known());
        match failure {
            Some(error) if is_nothing || addresses.is_empty() => Err(error),
            _ => {
                // What a name stands for is admitted each time: the host may have refused the last time.
                if can_change(servers) || self.known() != addresses {
                    self.admit(addresses.clone()).await;
                }
                self.known.send_if_modified(|known| {
                    let differ = *known != addresses;
                    known.clone_from(&addresses);
                    differ
                });
                Ok(addresses)
            }
        }
    }
}

async fn admit(admission: &Admission, addresses: Vec<SocketAddr>) {
    let (done, admitted) = oneshot::channel();
    let request = Admit { owner: admission.owner, addresses, done };
    if admission.requests.send(request).await.is_ok() {
        let _ = admitted.await;
    }
}

/// Whether there is a name among them, which may stand for something else one day.
#[must_use]
pub(crate) fn can_change(servers: &[HostPort]) -> bool {
    servers.iter().any(|server| !is_address(server))
}

fn is_address(server: &HostPort) -> bool {
    server.host.parse::<IpAddr>().is_ok()
}

/// Chooses the addresses to use: all that are `written` in the configuration, and the first few of those that were
/// `found`, of each name in turn. Addresses that are already `known` go first, so that an answer in another order
/// changes nothing.
fn choose(
    written: Vec<SocketAddr>,
    found: Vec<Vec<SocketAddr>>,
    known: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    let mut addresses = written;
    addresses.retain(|address| seen.insert(*address));
    let mut names: Vec<_> = found
        .into_iter()
        .map(|mut found| {
            found.retain(|address| is_host(address.ip()));
            let (mut stay, new): (Vec<_>, _) = found.into_iter().partition(|it| known.contains(it));
            stay.sort_by_key(|address| known.iter().position(|it| it == address));
            stay.into_iter().chain(alternate(new))
        })
        .collect();
    let most = addresses.len() + MOST;
    while addresses.len() < most {
        let turn: Vec<_> =
            names.iter_mut().filter_map(|name| name.find(|it| !seen.contains(it))).collect();
        if turn.is_empty() {
            break;
        }
        let new = turn.into_iter().filter(|address| seen.insert(*address));
        addresses.extend(new.take(most - addresses.len()));
    }
    addresses
}

/// Chooses the paths to use: the `active` one, and then one of each link in turn, the best link first, to the first
/// addresses of the server. Paths over TCP take no place of those over UDP, and each link has one of each family.
pub(crate) fn choose_paths(
    mut found: Vec<(Candidate, LinkFacts)>,
    active: Option<PathKey>,
) -> Vec<(Candidate, LinkFacts)> {
    let mut chosen = Vec::new();
    for transport in Transport::ALL {
        let of_it = |(_, facts): &(_, LinkFacts)| facts.transport == transport;
        let mut of_it: Vec<_> = found.extract_if(.., |it| of_it(it)).collect();
        let most = if transport.is_stream() { MOST_OVER_TCP } else { MOST_PATHS };
        if transport == Transport::Tcp {
            of_it.sort_by_key(|(candidate, _)| Some(PathKey::from(candidate)) != active);
            let mut seen = HashSet::new();
            of_it.retain(|(it, _)| seen.insert((it.index, it.server.is_ipv6())));
        }
        chosen.extend(choose_most(of_it, active, most));
    }
    chosen
}

fn choose_most(
    mut found: Vec<(Candidate, LinkFacts)>,
    active: Option<PathKey>,
    most: usize,
) -> Vec<(Candidate, LinkFacts)> {
    if found.len() <= most {
        return found;
    }
    let is_active = |candidate: &Candidate| Some(PathKey::from(candidate)) == active;
    found.sort_by_key(|(candidate, facts)| (!is_active(candidate), *facts));
    let mut turns = HashMap::<_, usize>::new();
    let mut numbered: Vec<_> = found
        .into_iter()
        .map(|path| {
            let turn = turns.entry(path.0.index).or_default();
            *turn += 1;
            (*turn, path)
        })
        .collect();
    numbered.sort_by_key(|(turn, _)| *turn);
    numbered.into_iter().take(most).map(|(_, path)| path).collect()
}

/// Alternates between the families, beginning with that of the resolver's first address (RFC 8305 §4).
fn alternate(addresses: Vec<SocketAddr>) -> impl Iterator<Item = SocketAddr> {
    let is_first = addresses.first().is_none_or(SocketAddr::is_ipv4);
    let (mut first, mut other): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == is_first);
    std::iter::from_fn(move || {
        let next = first.pop_front();
        if !other.is_empty() {
            std::mem::swap(&mut first, &mut other);
        }
        next
    })
}

/// Whether a server can have this address.
fn is_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_broadcast
}

async fn resolve(server: &HostPort) -> Result<Vec<SocketAddr>, ResolveError> {
    let failed = |reason| ResolveError { name: server.host.clone(), reason };
    let lookup = tokio::net::lookup_host((server.host.as_str(), server.port));
    match time::timeout(TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_elapsed) => Err(failed("the resolver did not answer".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::network::with_tcp;

    fn servers(servers: &[(&str, u16)]) -> Vec<HostPort> {
        let server = |(host, port): &(&str, u16)| HostPort { host: (*host).into(), port: *port };
        servers.iter().map(server).collect()
    }

    #[tokio::test]
    async fn one_name_that_fails_does_not_hide_the_others() {
        let servers = servers(&[("no-such-host.invalid", 1), ("192.0.2.1", 2), ("192.0.2.1", 2)]);
        let names = ServerAddresses::new(&servers);
        assert_eq!(names.known(), ["192.0.2.1:2".parse().unwrap()]);
        let found = names.resolve(&servers).await.unwrap();
        assert_eq!(found, ["192.0.2.1:2".parse().unwrap()]);
        assert_eq!(names.known(), found);
    }

    #[tokio::test]
    async fn what_a_name_stood_for_is_kept_while_it_cannot_be_resolved() {
        let servers = servers(&[("no-such-host.invalid", 1), ("192.0.2.1", 2)]);
        let names = ServerAddresses::new(&servers);
        names.known.send_replace([v4(1), v6(20)].concat());
        let found = names.resolve(&servers).await.unwrap();
        assert_eq!(found.len(), 1 + MOST);
        assert_eq!(found[0], "192.0.2.1:2".parse().unwrap());
        assert!(found.contains(&v6(1)[0]), "{found:?}");
        assert_eq!(names.known(), found);
    }

    #[tokio::test]
    async fn what_could_not_be_admitted_is_tried_again() {
        let servers = servers(&[("192.0.2.1", 2), ("localhost", 3)]);
        let names = ServerAddresses::new(&servers);
        let (requests, mut admissions) = mpsc::channel(1);
        let owner = Owner::Server(PublicKey::from([1; 32]));
        names.admit_through(Admission { owner, requests });
        for attempt in 1..=3 {
            let asked = async {
                let request = time::timeout(TIMEOUT, admissions.recv()).await.unwrap().unwrap();
                (request.owner, request.addresses)
            };
            let (found, asked) = tokio::join!(names.resolve(&servers), asked);
            assert_eq!((owner, found.unwrap()), asked, "attempt {attempt}");
        }
    }

    fn v4(count: usize) -> Vec<SocketAddr> {
        (0..count).map(|n| ([192, 0, (n / 256) as u8, (n % 256) as u8], 4433).into()).collect()
    }

    fn v6(count: usize) -> Vec<SocketAddr> {
        let address = |n| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, n as u16], 4433).into();
        (0..count).map(address).collect()
    }

    #[test]
    fn a_dns_answer_with_901_addresses_adds_eight() {
        assert_eq!(choose(Vec::new(), vec![v4(901)], &[]), v4(MOST));
    }

    #[test]
    fn configured_addresses_stay_and_come_first() {
        let written = v6(2);
        let addresses = choose(written.clone(), vec![v4(901)], &[]);
        assert_eq!(addresses, [written, v4(MOST)].concat());
    }

    #[test]
    fn addresses_alternate_between_families_and_names() {
        let both = [v6(20), v4(20)].concat();
        let addresses = choose(Vec::new(), vec![both], &[]);
        assert_eq!(addresses[..4], [v6(1)[0], v4(1)[0], v6(2)[1], v4(2)[1]]);
        let few = vec![v6(1)[0]];
        let addresses = choose(Vec::new(), vec![v4(901), few.clone()], &[]);
        assert_eq!(addresses[..3], [v4(1)[0], few[0], v4(2)[1]]);
    }

    #[test]
    fn a_dns_answer_in_another_order_changes_nothing() {
        let known = choose(Vec::new(), vec![v4(901)], &[]);
        let mut turned = v4(901);
        turned.rotate_left(450);
        assert_eq!(choose(Vec::new(), vec![turned], &known), known);
    }

    #[test]
    fn an_address_missing_from_the_next_answer_is_replaced() {
        let addresses = choose(Vec::new(), vec![v4(901).split_off(1)], &v4(MOST));
        assert_eq!(addresses.len(), MOST);
        assert!(!addresses.contains(&v4(1)[0]), "{addresses:?}");
    }

    fn over(link: u32, servers: &[SocketAddr]) -> Vec<(Candidate, LinkFacts)> {
        let path = |server: &SocketAddr| {
            let (source, metric) = ([10, 0, 0, 1].into(), link);
            let link = Candidate {
                link: format!("eth{link}"),
                index: link,
                source,
                router: None,
                metric,
                server: *server,
                transport: Transport::Udp,
            };
            (link, LinkFacts { metric, ..LinkFacts::default() })
        };
        servers.iter().map(path).collect()
    }

    #[test]
    fn of_many_paths_each_link_has_its_share_and_the_active_one_stays() {
        let found = [over(2, &v4(9)), over(1, &v4(9)), over(3, &v4(1))].concat();
        let (active, _) = found[8].clone();
        let paths = choose_paths(found, Some(PathKey::from(&active)));
        assert_eq!(paths.len(), MOST_PATHS);
        assert_eq!(paths[0].0, active);
        let servers = |link: u32| {
            let of_link = paths.iter().filter(|(path, _)| path.index == link);
            of_link.map(|(path, _)| path.server).collect::<Vec<_>>()
        };
        assert_eq!((servers(1), servers(3)), (v4(6), v4(1)));
        assert_eq!(servers(2), [vec![active.server], v4(4)].concat());
    }

    #[test]
    fn paths_over_tcp_take_no_place_of_those_over_udp() {
        let both = [v6(4), v4(4)].concat();
        let found = [over(2, &both), over(1, &both), over(3, &both)].concat();
        let udp = choose_paths(found.clone(), None);
        let (last, facts) = (found[7].0.over_tcp(443), found[7].1);
        let last = (last, LinkFacts { transport: Transport::Tcp, ..facts });
        for active in [None, Some(PathKey::from(&last.0))] {
            let paths = choose_paths(with_tcp(found.clone(), Some(443)), active);
            assert_eq!(paths[..MOST_PATHS], udp);
            let tcp = &paths[MOST_PATHS..];
            let links: HashSet<_> = tcp.iter().map(|(path, _)| path.index).collect();
            assert_eq!((tcp.len(), links.len()), (MOST_OVER_TCP, 3), "{tcp:?}");
            let is_there = |path| paths.iter().any(|(it, _)| Some(PathKey::from(it)) == path);
            assert!(active.is_none() || is_there(active));
        }
        let few = choose_paths(with_tcp(over(1, &both[3..6]), Some(443)), None);
        let tcp = few.iter().filter(|(_, facts)| facts.transport == Transport::Tcp);
        let servers: Vec<_> = tcp.map(|(path, _)| path.server.ip()).collect();
        assert_eq!(servers, [both[3].ip(), both[4].ip()], "one of each family");
    }

    #[test]
    fn few_paths_are_all_used_in_the_order_in_which_they_were_found() {
        let found = [over(2, &v4(6)), over(1, &v4(6))].concat();
        assert_eq!(choose_paths(found.clone(), None), found);
    }

    #[test]
    fn multicast_and_unspecified_addresses_are_refused() {
        let bad = ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1", "[::]:1"];
        let bad = bad.map(|address| address.parse().unwrap());
        assert_eq!(choose(Vec::new(), vec![bad.into()], &[]), []);
    }

    #[tokio::test]
    async fn a_name_alone_that_fails_is_named() {
        let servers = servers(&[("no-such-host.invalid", 1)]);
        let error = ServerAddresses::new(&servers).resolve(&servers).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot resolve no-such-host.invalid: "), "{error}");
    }
}
