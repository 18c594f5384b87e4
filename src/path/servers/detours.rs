//! The addresses of those who lead to the server: of a proxy and of a relay. They are resolved as the server's own names are.

use super::*;
use crate::{config::ServerPeer, path::network::Detour};

/// Maximum of addresses of each of them.
const MOST: usize = 4;

/// The addresses of all of them, as far as they are known.
#[derive(Debug)]
pub(crate) struct Detours {
    known: watch::Sender<Vec<Detour>>,
    admission: OnceLock<Admission>,
}

/// Who leads to the server, with the transport to get there.
pub(crate) fn all(server: &ServerPeer) -> impl Iterator<Item = (Transport, &HostPort)> {
    let proxy = server.proxy.iter().map(|proxy| (Transport::Proxy, &proxy.at));
    proxy.chain(server.relay.iter().map(|relay| (Transport::Relay, &relay.at)))
}

/// The addresses of those whose configuration has them.
pub(crate) fn written_down(server: &ServerPeer) -> impl Iterator<Item = Detour> {
    all(server).filter_map(|(transport, HostPort { host, port })| {
        Some((transport, SocketAddr::new(host.parse().ok()?, *port)))
    })
}

impl Detours {
    /// Resolves nothing yet.
    #[must_use]
    pub(crate) fn new(server: &ServerPeer) -> Self {
        let known = written_down(server).collect();
        Self { known: watch::Sender::new(known), admission: OnceLock::new() }
    }

    /// Requests the admission of new addresses before they are published.
    pub(crate) fn admit_through(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    #[must_use]
    pub(crate) fn known(&self) -> Vec<Detour> {
        self.known.borrow().clone()
    }

    /// Notifies of changes of the addresses.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<Detour>> {
        self.known.subscribe()
    }

    /// Whether one of them has a name, which may stand for something else one day.
    #[must_use]
    pub(crate) fn can_change(server: &ServerPeer) -> bool {
        all(server).any(|(_, at)| !is_address(at))
    }

    /// Finds the addresses behind the names. A name that cannot be resolved stands for what it stood for.
    pub(crate) async fn resolve(&self, server: &ServerPeer) {
        let before = self.known();
        let resolved =
            all(server).map(|(transport, at)| async move { (transport, resolve(at).await) });
        let mut found = Vec::new();
        for (transport, answer) in join_all(resolved).await {
            let known = before.iter().filter(|(of, _)| *of == transport).map(|(_, at)| *at);
            let known: Vec<_> = known.collect();
            let mut addresses = match answer {
                Ok(addresses) => choose(Vec::new(), vec![addresses], &known),
                Err(error) => {
                    debug!(%error, "the addresses of who leads to the server stay as they were");
                    known
                }
            };
            addresses.truncate(MOST);
            found.extend(addresses.into_iter().map(|at| (transport, at)));
        }
        if let Some(admission) =
            self.admission.get().filter(|_| Self::can_change(server) || found != before)
        {
            admit(admission, found.iter().map(|(_, at)| *at).collect()).await;
        }
        self.known.send_if_modified(|known| {
            let differ = *known != found;
            *known = found;
            differ
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Proxy, identity::PrivateKey};

    fn behind(proxy: &str) -> ServerPeer {
        ServerPeer {
            addresses: vec!["vpn.example.net".parse().unwrap()],
            tcp_port: Some(443),
            relay: None,
            proxy: Some(Box::new(Proxy {
                at: proxy.parse().unwrap(),
                tls: false,
                credentials: None,
            })),
            public_key: PrivateKey::generate().unwrap().public_key(),
        }
    }

    #[tokio::test]
    async fn an_address_is_known_at_once_and_a_name_keeps_what_it_stood_for() {
        let at = "192.0.2.8:3128".parse().unwrap();
        let detours = Detours::new(&behind("192.0.2.8:3128"));
        assert_eq!(detours.known(), [(Transport::Proxy, at)]);
        detours.resolve(&behind("no-such-host.invalid:3128")).await;
        assert_eq!(detours.known(), [(Transport::Proxy, at)]);
        let local = behind("localhost:3128");
        assert!(Detours::can_change(&local) && Detours::new(&local).known().is_empty());
        let (admission, mut admissions) = mpsc::channel(1);
        detours.admit_through(admission);
        let admitted = async {
            let (admitted, done) = admissions.recv().await.unwrap();
            assert!(!detours.known().contains(&(Transport::Proxy, admitted[0])));
            let _ = done.send(());
            admitted
        };
        let ((), admitted) = tokio::join!(detours.resolve(&local), admitted);
        let known: Vec<_> = detours.known().into_iter().map(|(_, at)| at).collect();
        assert!(known == admitted && known.iter().all(|at| at.ip().is_loopback()), "{known:?}");
    }
}
