//! The addresses of those who lead to the server: of a proxy and of a relay. They are resolved as the server's own names
//! are, and known by these names: what one stands for is never taken for another after a reload.

use super::*;
use crate::{config::ServerPeer, path::network::Detour};

/// Maximum of addresses that one answer adds.
const MOST: usize = 4;
/// Maximum of addresses of each of them. The resolver may be a captive portal's, so that earlier ones stay behind those
/// of the last answer, first of all the one that worked last: it may be in use.
const KEPT: usize = 6;
/// Maximum of them that are known, with those of earlier configurations.
const REMEMBERED: usize = 4;

/// The addresses of all of them, as far as they are known.
#[derive(Debug)]
pub struct Detours {
    known: watch::Sender<Vec<Known>>,
    admission: OnceLock<Admission>,
}

/// What is known of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    transport: Transport,
    at: HostPort,
    /// The likeliest first.
    addresses: Vec<SocketAddr>,
    /// The one that worked last.
    worked: Option<SocketAddr>,
}

/// Who leads to the server, with the transport to get there.
pub(crate) fn all(server: &ServerPeer) -> impl Iterator<Item = (Transport, &HostPort)> {
    let proxy = server.proxy.iter().map(|proxy| (Transport::Proxy, &proxy.at));
    proxy.chain(server.relay.iter().map(|relay| (Transport::Relay, &relay.at)))
}

/// The addresses of those whose configuration has them.
pub(crate) fn written_down(server: &ServerPeer) -> impl Iterator<Item = Detour> {
    all(server).filter_map(|(transport, at)| Some((transport, written(at)?)))
}

fn written(HostPort { host, port }: &HostPort) -> Option<SocketAddr> {
    Some(SocketAddr::new(host.parse().ok()?, *port))
}

impl Detours {
    /// Resolves nothing yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { known: watch::Sender::default(), admission: OnceLock::new() }
    }

    /// Requests the admission of new addresses before they are published.
    pub(crate) fn admit_through(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    /// The addresses of those that this configuration names.
    #[must_use]
    pub(crate) fn known(&self, server: &ServerPeer) -> Vec<Detour> {
        let of = |(transport, at): (Transport, &HostPort)| {
            self.addresses(transport, at).into_iter().map(move |address| (transport, address))
        };
        all(server).flat_map(of).collect()
    }

    /// What the name of one stands for.
    #[must_use]
    pub(crate) fn addresses(&self, transport: Transport, at: &HostPort) -> Vec<SocketAddr> {
        if let Some(address) = written(at) {
            return vec![address];
        }
        let known = self.known.borrow();
        let this = known.iter().find(|it| it.transport == transport && it.at == *at);
        this.map(|it| it.addresses.clone()).unwrap_or_default()
    }

    /// Whether a connection to an address of one of them came about. One that failed comes after those that are not tried:
    /// only a few are tried at a time. That is news to nobody but whoever asks next.
    pub(crate) fn tried(&self, transport: Transport, at: &HostPort, to: SocketAddr, works: bool) {
        self.known.send_if_modified(|known| {
            let this = known.iter_mut().find(|it| it.transport == transport && it.at == *at);
            if let Some(this) = this {
                this.tried(to, works);
            }
            false
        });
    }

    /// Notifies of changes of the addresses.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<Known>> {
        self.known.subscribe()
    }

    /// Whether one of them has a name, which may stand for something else one day.
    #[must_use]
    pub(crate) fn can_change(server: &ServerPeer) -> bool {
        all(server).any(|(_, at)| !is_address(at))
    }

    /// Finds the addresses behind the names. A name that cannot be resolved stands for what it stood for.
    pub(crate) async fn resolve(&self, server: &ServerPeer) {
        let names = all(server).filter(|(_, at)| !is_address(at));
        let answers = join_all(names.map(|(transport, at)| async move {
            let answer = resolve(at).await.unwrap_or_else(|error| {
                debug!(%error, "the addresses of who leads to the server stay as they were");
                Vec::new()
            });
            (transport, at, answer)
        }));
        let answers = answers.await;
        if let Some(admission) = self.admission.get() {
            // What stands for others, too: a slow answer for an earlier configuration takes nothing back.
            let before = self.known.borrow().clone();
            let after = updated(before.clone(), &answers);
            let known = after.iter().chain(&before).flat_map(|it| it.addresses.iter().copied());
            let mut admitted = Vec::new();
            for address in written_down(server).map(|(_, address)| address).chain(known) {
                if !admitted.contains(&address) {
                    admitted.push(address);
                }
            }
            admit(admission, admitted).await;
        }
        self.known.send_if_modified(|known| {
            let after = updated(known.clone(), &answers);
            let has_changed = after != *known;
            *known = after;
            has_changed
        });
    }
}

/// What is known after these answers. Beside it another configuration's may be resolved.
fn updated(
    mut known: Vec<Known>,
    answers: &[(Transport, &HostPort, Vec<SocketAddr>)],
) -> Vec<Known> {
    let mut after = Vec::new();
    for (transport, at, answer) in answers {
        let place = known.iter().position(|it| it.transport == *transport && it.at == **at);
        let mut this = place.map_or_else(
            || Known {
                transport: *transport,
                at: HostPort::clone(at),
                addresses: Vec::new(),
                worked: None,
            },
            |place| known.remove(place),
        );
        this.resolved(answer.clone());
        after.push(this);
    }
    after.extend(known);
    after.truncate(REMEMBERED);
    after
}

impl Known {
    fn resolved(&mut self, answer: Vec<SocketAddr>) {
        let mut addresses = choose(Vec::new(), vec![answer], &self.addresses);
        addresses.truncate(MOST);
        self.addresses.retain(|it| !addresses.contains(it));
        self.addresses.sort_by_key(|it| Some(*it) != self.worked);
        addresses.append(&mut self.addresses);
        addresses.truncate(KEPT);
        self.addresses = addresses;
    }

    fn tried(&mut self, to: SocketAddr, works: bool) {
        let Some(place) = self.addresses.iter().position(|it| *it == to) else { return };
        if works {
            self.worked = Some(to);
        } else {
            self.worked.take_if(|it| *it == to);
            let failed = self.addresses.remove(place);
            self.addresses.push(failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Proxy, identity::PrivateKey};

    fn behind(proxy: &str) -> ServerPeer {
        ServerPeer {
            name: "vpn".into(),
            addresses: vec!["vpn.example.net".parse().unwrap()],
            tcp_port: Some(443),
            relay: None,
            home: Vec::new(),
            proxy: Some(Box::new(Proxy {
                at: proxy.parse().unwrap(),
                tls: false,
                credentials: None,
            })),
            public_key: PrivateKey::generate().unwrap().public_key(),
        }
    }

    #[tokio::test]
    async fn an_address_is_known_at_once_and_never_taken_for_that_of_another_name() {
        let (local, elsewhere) = (behind("localhost:3128"), behind("no-such-host.invalid:3128"));
        let detours = Detours::new();
        let written = behind("192.0.2.8:3128");
        let expected = (Transport::Proxy, "192.0.2.8:3128".parse().unwrap());
        assert_eq!(detours.known(&written), [expected]);
        assert!(!Detours::can_change(&written) && Detours::can_change(&local));
        let (requests, mut admissions) = mpsc::channel(1);
        let owner = Owner::Detours(local.public_key);
        detours.admit_through(Admission { owner, requests });
        let admitted = async {
            let Admit { addresses, done, .. } = admissions.recv().await.unwrap();
            assert_eq!(detours.known(&local), [], "not before they may be reached");
            let _ = done.send(());
            admissions.close();
            addresses
        };
        let ((), admitted) = tokio::join!(detours.resolve(&local), admitted);
        let known = detours.known(&local);
        assert!(known.iter().map(|(_, at)| *at).eq(admitted), "{known:?}");
        assert!(!known.is_empty() && known.iter().all(|(_, at)| at.ip().is_loopback()));
        // Somebody else's proxy after a reload; and the first one again.
        assert_eq!(detours.known(&elsewhere), []);
        detours.resolve(&elsewhere).await;
        assert_eq!((detours.known(&elsewhere), detours.known(&local)), (vec![], known));
    }

    #[tokio::test]
    async fn an_address_that_a_name_stood_for_stays_behind_the_new_ones() {
        let (local, detours) = (behind("localhost:3128"), Detours::new());
        let before = "192.0.2.8:3128".parse().unwrap();
        let at = local.proxy.as_ref().unwrap().at.clone();
        let addresses = vec![before];
        let known = Known { transport: Transport::Proxy, at, addresses, worked: None };
        detours.known.send_replace(vec![known]);
        detours.resolve(&local).await;
        let known = detours.known(&local);
        assert!(known.len() > 1, "{known:?}");
        assert_eq!(known.last(), Some(&(Transport::Proxy, before)));
    }

    #[test]
    fn addresses_that_failed_come_last_and_the_one_that_worked_stays() {
        let numbered =
            |from: u8| [0, 1, 2, 3].map(|at| SocketAddr::from(([192, 0, 2, from + at], 3128)));
        let (local, detours, old) = (behind("proxy:3128"), Detours::new(), numbered(1));
        let at = local.proxy.as_ref().unwrap().at.clone();
        let answer = |addresses: &[SocketAddr]| {
            detours.known.send_modify(|known| {
                let answers = [(Transport::Proxy, &at, addresses.to_vec())];
                *known = updated(std::mem::take(known), &answers);
            });
        };
        let tried = |to, works| detours.tried(Transport::Proxy, &at, to, works);
        let known = || detours.addresses(Transport::Proxy, &at);
        answer(&old);
        let [a, b, c, d] = old;
        tried(a, false);
        tried(c, false);
        tried(d, true);
        assert_eq!(known(), [b, d, a, c]);
        answer(&old);
        assert_eq!(known(), [b, d, a, c], "the next answer changes nothing of that");
        answer(&numbered(11));
        assert_eq!(known()[..4], numbered(11));
        assert_eq!(known()[4..], [d, b]);
    }
}
