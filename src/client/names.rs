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
