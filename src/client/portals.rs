//! Captive portals, for as long as there is no connection.

use std::{convert::Infallible, time::Duration};

use tracing::{info, warn};

use super::Client;
use crate::host::Setup;

/// From one look for captive portals to the next, while there is no connection. Before the first one a good
/// network has answered.
const PORTAL_PACE: Duration = Duration::from_secs(3);

impl Client {
    /// Tells of captive portals that keep us from connecting, and lets a browser reach them, if it may.
    pub(super) async fn look_for_portals(&self, host: &mut impl Setup) -> Infallible {
        loop {
            tokio::time::sleep(PORTAL_PACE).await;
            let servers = self.roaming.names.known();
            let config = self.config.borrow().clone();
            let found = self.roaming.network.candidates(&servers, &config.paths).await;
            let mut suspected = false;
            for (candidate, _) in found.unwrap_or_default() {
                if self.roaming.network.portal(&candidate).await {
                    self.shown.portal(&candidate.link);
                    suspected = true;
                }
            }
            let may_pass = self.config.borrow().tun.exclude.portal;
            self.give_way(suspected && may_pass, host).await;
        }
    }

    /// Lets everything leave outside of the tunnel, or not any more.
    pub(super) async fn give_way(&self, gives_way: bool, host: &mut impl Setup) {
        let desired = self.desired.lock().await;
        if desired.is_applied && desired.portal == gives_way {
            return;
        }
        drop(desired);
        info!(gives_way, "captive portal: everything outside of the tunnel");
        if let Err(error) = self.apply(host, |desired| desired.portal = gives_way).await {
            warn!(%error, "the host stays as it was");
        }
    }
}
