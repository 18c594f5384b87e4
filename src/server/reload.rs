//! The configuration in force with the directory's peers, and how others take their place while the server runs.
//!
//! ```text
//!  file ─────▶ reload ─▶ renew ─┐
//!                               ├▶ join ─▶ watch ─▶ datapath, handshakes, welcomes, status   read it at each use
//!  directory ─────────▶ heed ───┘    └─▶ peers that are gone or have changed: cut off
//! ```

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::pending,
    sync::Arc,
};

use anyhow::bail;
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    Server,
    peers::{Peer, Peers},
    view,
};
use crate::{
    config::{self, Config, ServerConfig},
    daemon::{Daemon, events::Event},
    fleet::{Known, PassedOver, Taken},
    quic::close,
};

/// The configuration in force, and all peers: those that stay the same keep their sessions.
pub(super) struct Configured {
    pub(super) config: ServerConfig,
    /// What the directory has.
    pub(super) shared: Arc<Known>,
    pub(super) peers: Peers,
    /// What this server does not use of it.
    pub(super) passed_over: Vec<PassedOver>,
}

impl Configured {
    pub(super) fn new(config: ServerConfig) -> Self {
        let peers = Peers::new(&config.peers).by_routes(config.tun.peer_routes);
        Self { config, shared: Arc::default(), peers, passed_over: Vec::new() }
    }

    fn renewed(&self, new: ServerConfig, shared: Arc<Known>) -> Self {
        let config = self.config.reloaded(new);
        let (peers, passed_over) = join(&config, &shared);
        Self { config, shared, peers: self.peers.renewed(&peers), passed_over }
    }
}

/// All peers, those of the file first, and the records of the directory that are not used: the file wins.
fn join(config: &ServerConfig, shared: &Known) -> (Vec<config::Peer>, Vec<PassedOver>) {
    let networks = &config.tun.addresses;
    let own_key = config.private_key.public_key();
    let in_file: HashMap<_, _> = config.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    let mut taken = Taken::default();
    let mut peers = Vec::with_capacity(config.peers.len() + shared.peers.len());
    let mut passed_over = shared.passed_over.clone();
    for peer in &config.peers {
        // The configuration is checked.
        let _ = taken.claim(peer);
        peers.push(peer.clone());
    }
    for peer in &shared.peers {
        if in_file.get(&peer.public_key).is_some_and(|same| *same == peer) {
            continue;
        }
        let problem = match misplaced(peer, networks) {
            _ if peer.public_key == own_key => Some("has this server's own key".to_owned()),
            None => {
                let taken = taken.claim(peer).err();
                taken.map(|reason| format!("{reason}, in this server's file, which wins"))
            }
            misplaced => misplaced,
        };
        match problem {
            Some(reason) => passed_over.push(PassedOver::new(&peer.name, reason)),
            None => peers.push(peer.clone()),
        }
    }
    (peers, passed_over)
}

/// Why a peer cannot have one of its addresses in these networks of the server.
fn misplaced(peer: &config::Peer, networks: &[IpNet]) -> Option<String> {
    peer.addresses.iter().find_map(|address| {
        if networks.iter().any(|network| network.addr() == *address) {
            return Some(format!("{address} is this server's own"));
        }
        Some(format!("{address} {}", config::misplaced(*address, networks)?))
    })
}

impl Server {
    /// Takes over a changed configuration; what takes a restart stays as it was and is named. Peers that are
    /// not in it any more, or have other addresses, are cut off; all others notice nothing.
    ///
    /// # Errors
    ///
    /// If its peers fit its own networks only, which take a restart. Nothing changes then.
    pub(super) fn renew(&self, new: ServerConfig) -> anyhow::Result<Vec<&'static str>> {
        let _alone = self.renewing.lock();
        let (stays, now) = {
            let before = self.configured.borrow();
            for peer in &new.peers {
                if let Some(reason) = misplaced(peer, &before.config.tun.addresses) {
                    let name = &peer.name;
                    bail!("peer {name}: {reason}; tun.addresses changes with a restart only");
                }
            }
            (before.config.takes_restart(&new), before.renewed(new, before.shared.clone()))
        };
        self.put_in_force(now);
        Ok(stays)
    }

    /// Takes over what the directory has now.
    pub(super) fn heed(&self, shared: Arc<Known>) {
        let _alone = self.renewing.lock();
        let before = self.configured.borrow().shared.clone();
        if before.standing != shared.standing {
            self.events.tell(view::directory_event(&shared));
        }
        if (&before.peers, &before.passed_over) == (&shared.peers, &shared.passed_over) {
            self.configured.send_modify(|configured| configured.shared = shared);
            return;
        }
        let now = {
            let before = self.configured.borrow();
            before.renewed(before.config.clone(), shared)
        };
        self.put_in_force(now);
    }

    /// Takes over what the directory has, each time that it changes.
    pub(super) async fn follow(
        &self,
        directory: Option<watch::Receiver<Arc<Known>>>,
    ) -> Infallible {
        let Some(mut directory) = directory else { return pending().await };
        while directory.changed().await.is_ok() {
            let shared = directory.borrow_and_update().clone();
            self.heed(shared);
        }
        pending().await
    }

    fn put_in_force(&self, now: Configured) {
        let before = self.configured.send_replace(now);
        self.warn_of_new(&before.passed_over);
        #[cfg(feature = "etcd")]
        self.place(&before.peers);
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
    }

    /// Names each record that is not used, once.
    fn warn_of_new(&self, before: &[PassedOver]) {
        let known: HashSet<_> = before.iter().collect();
        for new in self.configured.borrow().passed_over.iter().filter(|it| !known.contains(it)) {
            let PassedOver { record, reason } = new;
            warn!(%record, %reason, "a record of the directory is not used");
        }
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
        let log = config.log.clone();
        let stays = self.renew(config).map_err(|error| daemon.refused(&error))?;
        daemon.log(&log);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }
}
