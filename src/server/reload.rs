//! The configuration in force, and how another one takes its place while the server runs.
//!
//! ```text
//!  file ─▶ reload ─▶ renew ─▶ watch ─▶ datapath, handshakes, welcomes, status   read it at each use
//!                      └─▶ peers that are gone or have changed: cut off
//! ```

use std::sync::Arc;

use tracing::info;

use super::{
    Server,
    peers::{Peer, Peers},
};
use crate::{
    config::{Config, ServerConfig},
    daemon::{Daemon, events::Event},
    quic::close,
};

/// The configuration in force, and its peers: those that stay the same keep their sessions.
pub(super) struct Configured {
    pub(super) config: ServerConfig,
    pub(super) peers: Peers,
}

impl Configured {
    pub(super) fn new(config: ServerConfig) -> Self {
        Self { peers: Peers::new(&config.peers), config }
    }

    fn reloaded(&self, new: ServerConfig) -> Self {
        Self { peers: self.peers.renewed(&new.peers), config: self.config.reloaded(new) }
    }
}

impl Server {
    /// Takes over a changed configuration; what takes a restart stays as it was and is named. Peers that are
    /// not in it any more, or have other addresses, are cut off; all others notice nothing.
    pub(super) fn renew(&self, new: ServerConfig) -> Vec<&'static str> {
        let stays = self.configured.borrow().config.takes_restart(&new);
        let now = self.configured.borrow().reloaded(new);
        let before = self.configured.send_replace(now);
        for peer in before.peers.iter().filter(|peer| !self.has(peer)) {
            let is_changed = self.configured.borrow().peers.with_key(peer.key).is_some();
            info!(peer = peer.name, is_changed, "cut off: the configuration changed");
            let (code, reason) = if is_changed {
                (close::TAKEN_OVER, &b"the configuration changed"[..])
            } else {
                (close::UNKNOWN_KEY, &b"unknown key"[..])
            };
            peer.cut_off(code, reason);
        }
        self.acceptor.tls.forget_strangers();
        stays
    }

    /// Whether the configuration in force still has `peer`, unchanged.
    pub(super) fn has(&self, peer: &Arc<Peer>) -> bool {
        let configured = self.configured.borrow();
        configured.peers.with_key(peer.key).is_some_and(|now| Arc::ptr_eq(now, peer))
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
