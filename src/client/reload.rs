//! A changed configuration, while the client runs.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::Client;
use crate::{
    config::{self, ClientConfig, ClientTun, Config},
    daemon::{Daemon, events::Event},
    host::{Setup, Wish},
    path::{manager::Settings, preference::Preferences},
};

/// How much more rarely a standby is asked where traffic costs money.
const METERED: u32 = 20;

impl Client {
    pub(super) fn config(&self) -> MutexGuard<'_, ClientConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a changed configuration; what takes a restart stays as it was and is named. If the host cannot
    /// be made as it says, nothing changes.
    async fn renew(
        &self,
        new: ClientConfig,
        host: &mut impl Setup,
    ) -> anyhow::Result<Vec<&'static str>> {
        let tun = {
            let config = self.config();
            let (name, mtu, offload) =
                (config.tun.name.clone(), config.tun.mtu, config.tun.offload);
            ClientTun { name, mtu, offload, ..new.tun.clone() }
        };
        let (wanted, servers) = (tun.clone(), new.server.addresses.clone());
        self.apply(host, |desired| desired.configure(wanted, servers)).await?;
        let stays = {
            let mut config = self.config();
            let stays = config.takes_restart(&new);
            self.roaming.names.replace(new.server.addresses.clone());
            self.roaming.settings.store(Arc::new(settings(&new.paths)));
            if let Some(links) = &self.links {
                links.prefer(Preferences::new(&new.paths));
            }
            config.server.addresses = new.server.addresses;
            config.paths = new.paths;
            config.log = new.log;
            config.tun = tun;
            stays
        };
        self.roaming.changed.notify_one();
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
        let log = config.log.clone();
        let stays = match self.renew(config, &mut host).await {
            Ok(stays) => stays,
            Err(error) => return Err(daemon.refused(&error)),
        };
        daemon.log(&log);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }
}

pub(super) fn settings(paths: &config::Paths) -> Settings {
    Settings {
        probe_timeout: paths.probe_timeout,
        standby_check: paths.standby_check,
        metered_check: paths.standby_check.map(|check| METERED * check),
    }
}
