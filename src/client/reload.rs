//! The configuration in force, and how another one takes its place while the client runs.
//!
//! ```text
//!                             refused: nothing changes
//!                               ▲
//!  file ─▶ reload ─▶ renew ─▶ apply ─▶ watch ─┬─▶ Roamer       follows it: settings, candidates, names
//!                             (host)          └─▶ all others   read it at each use
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use super::Client;
use crate::{
    config::{ClientConfig, Config},
    daemon::{Daemon, events::Event},
    host::{Setup, Wish},
};

/// The configuration in force, for one that reads or follows it.
pub(super) type InForce = watch::Receiver<Arc<ClientConfig>>;

impl Client {
    /// Takes over a changed configuration; what takes a restart stays as it was and is named. If the host cannot
    /// be made as it says, nothing changes.
    async fn renew(
        &self,
        new: ClientConfig,
        host: &mut impl Setup,
    ) -> anyhow::Result<Vec<&'static str>> {
        let before = self.config.borrow().clone();
        let stays = before.takes_restart(&new);
        let config = Arc::new(before.reloaded(new));
        self.apply(host, |desired| desired.configure(config.clone())).await?;
        self.config.send_replace(config);
        Ok(stays)
    }

    /// Reads the configuration again; what to say about it.
    pub(super) async fn reload(
        &self,
        daemon: &Daemon,
        mut host: Wish,
    ) -> Result<Vec<String>, String> {
        let config = match daemon.read_again().map_err(|errors| errors.to_string())? {
            Config::Client(config) => config,
            Config::Server(_) => {
                return Err("role: a client becomes a server with a restart".into());
            }
        };
        let stays = match self.renew(config, &mut host).await {
            Ok(stays) => stays,
            Err(error) => return Err(daemon.refused(&error)),
        };
        daemon.log(&self.config.borrow().log);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }
}
