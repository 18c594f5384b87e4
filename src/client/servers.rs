//! What the client has of each server of its configuration, the preferred one first.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::attempts::Attempts;
use crate::{
    config::{ClientConfig, Paths, ServerPeer},
    identity::PublicKey,
    link::candidate::Candidate,
    path::{
        handshake::Handshake,
        network::{self, Network, NetworkError},
        probe::Probes,
        rank::LinkFacts,
        servers::{Admission, Admit, Detours, Owner, ResolveError, ServerAddresses},
    },
    quic::{
        self,
        congestion::CongestionHandle,
        tls::{self, TlsError},
    },
    task,
};

/// What the client has of one server. All but the configuration stays as it is from session to session and through
/// reloads.
#[derive(Clone)]
pub(super) struct RemoteServer {
    /// What the configuration says of it.
    pub(super) peer: ServerPeer,
    /// The links, and who else leads to this server.
    pub(super) network: Arc<dyn Network>,
    pub(super) names: Arc<ServerAddresses>,
    pub(super) detours: Arc<Detours>,
    /// Handshakes for a session.
    pub(super) tunnel: Handshake,
    pub(super) probes: Probes,
    /// Observes the connections to it.
    pub(super) congestion: CongestionHandle,
    /// What became of the attempts to reach it, for people.
    pub(super) attempts: Arc<Attempts>,
}

impl RemoteServer {
    fn new(
        config: &ClientConfig,
        peer: ServerPeer,
        network: &Arc<dyn Network>,
        tickets: &tls::Servers,
        process: u64,
    ) -> Result<Self, TlsError> {
        let ClientConfig { private_key, tun, quic, .. } = config;
        let (congestion, key) = (CongestionHandle::default(), peer.public_key);
        let transport = quic::transport(quic, tun.mtu, congestion.clone());
        let tunnel = Handshake::with(tickets, key, tls::TUNNEL, transport)?;
        let handshake = Handshake::new(private_key, key, tls::PROBE, quic::probe_transport())?;
        Ok(Self {
            network: network.towards().unwrap_or_else(|| network.clone()),
            names: ServerAddresses::new(&peer.addresses).into(),
            detours: Detours::new().into(),
            tunnel,
            probes: Probes { handshake, process },
            congestion,
            attempts: Arc::default(),
            peer,
        })
    }

    pub(super) fn key(&self) -> PublicKey {
        self.peer.public_key
    }

    pub(super) fn name(&self) -> &str {
        &self.peer.name
    }

    /// What could carry a path to it, at these addresses of its names and by all detours.
    pub(super) async fn find(
        &self,
        addresses: &[SocketAddr],
        paths: &Paths,
    ) -> Result<Vec<(Candidate, LinkFacts)>, NetworkError> {
        let detours = self.detours.known(&self.peer);
        network::find(&*self.network, &self.peer, addresses, &detours, paths).await
    }

    /// Resolves its names, and those of who leads to it.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, ResolveError> {
        let servers = self.names.resolve(&self.peer.addresses);
        tokio::join!(servers, self.detours.resolve(&self.peer)).0
    }

    /// The same in the background.
    pub(super) fn resolve_apart(&self) {
        let server = self.clone();
        task::detached("names", async move {
            if let Err(error) = server.resolve().await {
                debug!(%error, server = server.name(), "the server's addresses stay as they were");
            }
        });
    }

    fn admit_through(&self, requests: &mpsc::Sender<Admit>) {
        let through = |owner| Admission { owner, requests: requests.clone() };
        self.names.admit_through(through(Owner::Server(self.key())));
        self.detours.admit_through(through(Owner::Detours(self.key())));
    }
}

/// Servers, the preferred one first.
pub(super) type InOrder = Arc<[Arc<RemoteServer>]>;

/// All servers of the configuration that is in force.
pub(super) struct Servers {
    all: watch::Sender<InOrder>,
    network: Arc<dyn Network>,
    /// What one server of a fleet gave is good at the others.
    tickets: tls::Servers,
    process: u64,
    admissions: OnceLock<mpsc::Sender<Admit>>,
}

impl Servers {
    /// The servers of this configuration, over `network`. `process` is this process, as its hello names it.
    pub(super) fn new(
        config: &ClientConfig,
        network: Arc<dyn Network>,
        process: u64,
    ) -> Result<Self, TlsError> {
        let (all, admissions) = (watch::Sender::new(Vec::new().into()), OnceLock::new());
        let tickets = tls::Servers::new(&config.private_key)?;
        let servers = Self { all, network, tickets, process, admissions };
        servers.renew(config)?;
        Ok(servers)
    }

    /// Takes over what the configuration says of servers. Those that it had before are the same.
    pub(super) fn renew(&self, config: &ClientConfig) -> Result<(), TlsError> {
        let mut all = Vec::new();
        for peer in config.servers.iter().cloned() {
            let known = self.of(peer.public_key);
            let is_other = known.as_ref().is_some_and(|known| known.peer != peer);
            let server = match known {
                Some(known) => RemoteServer { peer, ..(*known).clone() },
                None => {
                    RemoteServer::new(config, peer, &self.network, &self.tickets, self.process)?
                }
            };
            server.network.lead_to(&server.peer, server.detours.clone());
            if let Some(requests) = self.admissions.get() {
                server.admit_through(requests);
            }
            if is_other {
                // What it had before was of other names.
                server.resolve_apart();
            }
            all.push(Arc::new(server));
        }
        self.all.send_replace(all.into());
        Ok(())
    }

    /// Requests the admission of new addresses of all servers before they are used.
    pub(super) fn admit_through(&self, requests: mpsc::Sender<Admit>) {
        for server in &*self.all() {
            server.admit_through(&requests);
        }
        let _ = self.admissions.set(requests);
    }

    pub(super) fn all(&self) -> InOrder {
        self.all.borrow().clone()
    }

    /// Notifies of changes.
    pub(super) fn changes(&self) -> watch::Receiver<InOrder> {
        self.all.subscribe()
    }

    /// The server with this key, if the configuration has it.
    pub(super) fn of(&self, key: PublicKey) -> Option<Arc<RemoteServer>> {
        self.all.borrow().iter().find(|server| server.key() == key).cloned()
    }

    /// All addresses of all servers, as they are known.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.all.borrow().iter().flat_map(|server| server.names.known()).collect()
    }
}
