//! Keeps the servers' addresses up to date while there is a connection.

use std::{convert::Infallible, pin::pin, time::Duration};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{Client, servers::RemoteServer};
use crate::{
    link::monitor::Hints,
    path::servers::{Detours, can_change},
};

/// From one look at the server's names to the next, while there is a connection.
const NAMES_PACE: Duration = Duration::from_secs(600);
/// From a change of networks to a look at the names: DHCP and the resolver come after the link. So long it also is from
/// one look to the next while the server is silent.
const NAMES_SETTLE: Duration = Duration::from_secs(5);

impl Client {
    /// Resolves the server's names now and then, when the server is silent, and when a network changes: what they
    /// stand for may have moved, or be something else in another network.
    pub(super) async fn keep_names(&self) -> Infallible {
        let mut change = pin!(settled_change(self.roaming.network.hints()));
        let mut rest = Duration::ZERO;
        loop {
            let silence = async {
                sleep(rest).await;
                self.roaming.silence.notified().await;
            };
            tokio::select! {
                hints = &mut change => change.set(settled_change(hints)),
                () = silence => {}
            }
            rest = NAMES_SETTLE;
            // Until there is a connection, dialing does.
            if !self.shown.is_connected() {
                continue;
            }
            let servers = self.servers.all();
            join_all(servers.iter().map(|server| look(server))).await;
        }
    }
}

/// Looks at what can change of a server's addresses.
async fn look(server: &RemoteServer) {
    let RemoteServer { names, detours, peer, .. } = server;
    if Detours::can_change(peer) {
        detours.resolve(peer).await;
    }
    if can_change(&peer.addresses)
        && let Err(error) = names.resolve(&peer.addresses).await
    {
        debug!(%error, server = peer.name, "the server's addresses stay as they were");
    }
}

/// Waits for the next occasion to look that is no silence.
async fn settled_change(mut hints: Hints) -> Hints {
    let _ = timeout(NAMES_PACE, hints.hint()).await;
    sleep(NAMES_SETTLE).await;
    hints
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        client::tests::{
            FakeNetwork, client, config,
            session::{LTE, Tunnel, WIFI},
        },
        clock,
        config::{ClientConfig, HostPort},
        tests::simulation::world::Hole,
    };

    /// Lets a client look at its server's names; the seconds until the first look, if there is one within `limit`.
    async fn looks_after(
        client: &Arc<Client>,
        limit: Duration,
        event: impl FnOnce(),
    ) -> Option<u64> {
        let (requests, mut admissions) = mpsc::channel(1);
        client.servers.admit_through(requests);
        let begun = clock::now();
        let looked = async {
            tokio::task::yield_now().await;
            event();
            let request = timeout(limit, admissions.recv()).await.ok()??;
            let _ = request.done.send(());
            Some((clock::now() - begun).as_secs())
        };
        tokio::select! {
            never = client.keep_names() => match never {},
            looked = looked => looked,
        }
    }

    /// The same configuration, whose server has a name, too.
    fn named(before: &ClientConfig) -> ClientConfig {
        let mut named = before.reloaded(config());
        named.servers.clone_from(&before.servers);
        named.servers[0].addresses.push(HostPort { host: "localhost".into(), port: 4433 });
        named
    }

    /// A session with a server that has a name.
    async fn session() -> Tunnel {
        let tunnel = Tunnel::connected().await;
        let config = named(&tunnel.client.config.borrow());
        tunnel.client.servers.renew(&config).unwrap();
        tunnel.client.config.send_replace(config.into());
        sleep(Duration::from_secs(1)).await;
        tunnel
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_at_five_seconds_after_a_network_changed() {
        let tunnel = session().await;
        let event = || tunnel.world.change(LTE, |lte| lte.up = false);
        assert_eq!(looks_after(&tunnel.client, NAMES_PACE, event).await, Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_at_every_ten_minutes() {
        let tunnel = session().await;
        assert_eq!(looks_after(&tunnel.client, 2 * NAMES_PACE, || ()).await, Some(605));
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_at_when_the_server_is_silent_and_every_five_seconds_from_then_on() {
        let tunnel = session().await;
        let (requests, mut admissions) = mpsc::channel(1);
        tunnel.client.servers.admit_through(requests);
        let looks = async {
            let (mut begun, mut looks) = (clock::now(), Vec::new());
            for link in [WIFI, LTE] {
                tunnel.world.change(link, |it| it.hole = Hole::Everything);
            }
            for _ in 0..3 {
                tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
                let _ = admissions.recv().await.unwrap().done.send(());
                looks.push((clock::now() - begun).as_millis());
                begun = clock::now();
            }
            looks
        };
        let looks = tokio::select! {
            never = tunnel.client.keep_names() => match never {},
            looks = looks => looks,
        };
        assert!(looks[0] < 500 && looks[1] >= 5000 && looks[2] >= 5000, "{looks:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_names_or_without_a_session_looks_at_none() {
        let tunnel = Tunnel::connected().await;
        let event = || tunnel.world.change(LTE, |lte| lte.up = false);
        assert_eq!(looks_after(&tunnel.client, 2 * NAMES_PACE, event).await, None);
        let network = FakeNetwork::of(&["eth0"]);
        let client = Arc::new(client(named(&config()), network.clone()));
        let event = || network.have(&["eth0", "eth1"]);
        assert_eq!(looks_after(&client, 2 * NAMES_PACE, event).await, None);
    }
}
