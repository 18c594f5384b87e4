//! Keeps the server's addresses up to date while there is a connection.

use std::{convert::Infallible, time::Duration};

use tracing::debug;

use super::Client;
use crate::path::servers::can_change;

/// From one look at the server's names to the next, while there is a connection.
const NAMES_PACE: Duration = Duration::from_secs(600);
/// From a change of networks to a look at the names: DHCP and the resolver come after the link.
const NAMES_SETTLE: Duration = Duration::from_secs(5);

impl Client {
    /// Resolves the server's names now and then, and when a network changes: what they stand for may have
    /// moved, or be something else in another network.
    pub(super) async fn keep_names(&self) -> Infallible {
        let mut hints = self.roaming.network.hints();
        loop {
            // Until there is a connection, dialing does.
            let _ = tokio::time::timeout(NAMES_PACE, hints.hint()).await;
            tokio::time::sleep(NAMES_SETTLE).await;
            let config = self.config.borrow().clone();
            let servers = &config.server.addresses;
            if self.shown.is_connected()
                && can_change(servers)
                && let Err(error) = self.roaming.names.resolve(servers).await
            {
                debug!(%error, "the server's addresses stay as they were");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        sync::mpsc,
        time::{sleep, timeout},
    };

    use super::*;
    use crate::{
        client::tests::{
            FakeNetwork, client, config,
            session::{LTE, Tunnel},
        },
        clock,
        config::{ClientConfig, HostPort},
    };

    /// Lets a client look at its server's names; the seconds until the first look, if there is one within `limit`.
    async fn looks_after(
        client: &Arc<Client>,
        limit: Duration,
        event: impl FnOnce(),
    ) -> Option<u64> {
        let (admission, mut admissions) = mpsc::channel(1);
        client.roaming.names.admit_through(admission);
        let begun = clock::now();
        let looked = async {
            tokio::task::yield_now().await;
            event();
            let (_, done) = timeout(limit, admissions.recv()).await.ok()??;
            let _ = done.send(());
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
        named.server.addresses.push(HostPort { host: "localhost".into(), port: 4433 });
        named
    }

    /// A session with a server that has a name.
    async fn session() -> Tunnel {
        let tunnel = Tunnel::connected().await;
        let config = named(&tunnel.client.config.borrow());
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
