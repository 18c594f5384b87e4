//! A changed configuration, while the server runs.

use std::sync::{Arc, PoisonError};

use tracing::info;

use super::{Server, offer::Offer, peers::Peers};
use crate::{
    config::{Config, ServerConfig, ServerTun},
    daemon::{Daemon, events::Event},
    quic::close,
};

impl Server {
    /// Takes over a changed configuration; what takes a restart stays as it was and is named. Peers that are
    /// not in it any more, or have other addresses, are cut off; all others notice nothing.
    pub(super) fn renew(&self, new: ServerConfig) -> Vec<&'static str> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = config.takes_restart(&new);
        let before = self.peers.load();
        let peers = Peers::renewed(&before, &new.peers);
        let gone: Vec<_> = before
            .iter()
            .filter(|peer| peers.with_key(peer.key).is_none_or(|now| !Arc::ptr_eq(peer, now)))
            .map(|peer| (peer.clone(), peers.with_key(peer.key).is_some()))
            .collect();
        self.peers.store(Arc::new(peers));
        for (peer, is_changed) in gone {
            info!(peer = peer.name, is_changed, "cut off: the configuration changed");
            let (code, reason) = if is_changed {
                (close::TAKEN_OVER, &b"the configuration changed"[..])
            } else {
                (close::UNKNOWN_KEY, &b"unknown key"[..])
            };
            peer.cut_off(code, reason);
        }
        self.acceptor.tls.forget_strangers();
        let ServerTun { routes, dns, .. } = new.tun;
        config.tun = ServerTun { routes, dns, ..config.tun.clone() };
        (config.peers, config.log) = (new.peers, new.log);
        self.offer.store(Arc::new(Offer::new(&config.tun)));
        stays
    }

    /// Reads the configuration again; what to say about it.
    pub(super) fn reload(&self, daemon: &Daemon) -> Result<Vec<String>, String> {
        let config = match daemon.read_again().map_err(|errors| errors.to_string())? {
            Config::Server(config) => config,
            Config::Client(_) => {
                return Err("role: a server becomes a client with a restart".into());
            }
        };
        daemon.log(&config.log);
        let stays = self.renew(config);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }
}
