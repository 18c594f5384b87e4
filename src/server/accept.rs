//! From a connection's first datagram to the peer behind it.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use quinn::{Connection, ConnectionError, Endpoint, ZeroRttAccepted};
use tokio::task::JoinSet;
use tracing::{Instrument as _, debug, info_span, warn};

use super::{
    Server, fallback,
    handshake::{HandshakePermit, PROOF_TIMEOUT},
    peers::Peer,
    session::answer_questions,
    vicinity::Vicinity,
};
use crate::{
    clock, config,
    identity::PrivateKey,
    quic::{
        self, PROBE_IDLE, close,
        congestion::CongestionHandle,
        tls::{self, ServerTls, TlsError},
    },
    tunnel::{counters::DropReason, pump},
    wire::packet::Packet,
};

/// First packets that wait to be looked at, and bytes that wait behind them.
const WAITING: usize = 256;
const WAITING_BYTES: u64 = 256 * 1024;

/// How connections are set up.
pub(super) struct Acceptor {
    /// What holds before a connection is accepted.
    pub(super) base: quinn::ServerConfig,
    pub(super) tls: ServerTls,
    pub(super) quic: config::Quic,
    pub(super) mtu: u16,
}

impl Acceptor {
    /// The set-up of one connection, whose congestion controllers listen to `congestion`.
    fn config(&self, congestion: CongestionHandle) -> Result<Arc<quinn::ServerConfig>, TlsError> {
        let mut config = self.base.clone();
        config.crypto = Arc::new(self.tls.for_connection()?);
        let mut transport = quic::transport(&self.quic, self.mtu, congestion);
        // A tunnel is kept alive by [`silence::keep_alive`], a probe connection by its questions.
        transport.keep_alive_interval(None);
        config.transport_config(Arc::new(transport));
        Ok(Arc::new(config))
    }
}

impl Server {
    /// Waits for the end of a handshake; gives the peer that has the key which the client proved.
    async fn prove(
        &self,
        incoming: quinn::Incoming,
        congestion: CongestionHandle,
    ) -> anyhow::Result<Option<(Connection, Arc<Peer>)>> {
        let connecting = incoming.accept_with(self.acceptor.config(congestion)?)?;
        let connection = match connecting.into_0rtt() {
            Ok((connection, confirmed)) => self.confirm(connection, confirmed).await?,
            Err(connecting) => connecting.await?,
        };
        Ok(self.identify(&connection).map(|peer| (connection, peer)))
    }

    /// Waits for the end of the handshake. Packets of a client that resumes a session are delivered
    /// before that: an attacker can delay them, but not send them twice, since a ticket is used once.
    /// What comes together with the end of the handshake is left for whoever serves the connection.
    async fn confirm(
        &self,
        connection: Connection,
        confirmed: ZeroRttAccepted,
    ) -> Result<Connection, ConnectionError> {
        let deliver = |batch: &mut Vec<Packet>| match tls::peer_key(&connection) {
            Some(key) if tls::purpose(&connection).as_deref() == Some(tls::TUNNEL) => {
                match self.configured.borrow().peers.with_key(key) {
                    Some(peer) => self.admit(peer, batch),
                    None => self.counters.dropped(DropReason::ForeignSource, batch.len() as u64),
                }
            }
            _ => self.counters.dropped(DropReason::ForeignSource, batch.len() as u64),
        };
        tokio::select! {
            biased;
            _ = confirmed => {}
            lost = pump::downlink(&connection, &self.counters, &pump::UNGREETED, deliver) => return Err(lost),
        }
        connection.close_reason().map_or(Ok(connection), Err)
    }

    /// The peer behind a connection. Every handshake comes through here, resumed ones too; one with
    /// a key that is not in the configuration ends here, with a reason for both sides.
    fn identify(&self, connection: &Connection) -> Option<Arc<Peer>> {
        let key = tls::peer_key(connection)?;
        let peer = self.configured.borrow().peers.with_key(key).cloned();
        if peer.is_some() {
            return peer;
        }
        connection.close(close::UNKNOWN_KEY, b"unknown key");
        if let Some(suppressed) = self.handshakes.may_log() {
            warn!(
                %key,
                suppressed,
                "refused: no [[peer]] has this public-key; add one to let it in"
            );
        }
        None
    }

    /// Counts a client that spoke QUIC and offered another protocol than ours. TLS has told it so.
    fn note_other_protocol(&self, error: &anyhow::Error) {
        let refused = error.downcast_ref::<ConnectionError>().is_some_and(|error| {
            matches!(error, ConnectionError::TransportError(error) if tls::is_other_protocol(error.code))
        });
        if refused {
            self.other_protocols.fetch_add(1, Relaxed);
        }
    }

    /// Closes `connection` if the configuration has changed since `peer` was found in it.
    pub(super) fn still_has(&self, peer: &Arc<Peer>, connection: &Connection) -> bool {
        let is_there = self.has(peer);
        if !is_there {
            connection.close(close::TAKEN_OVER, b"the configuration changed");
        }
        is_there
    }
}

pub(super) fn quinn_config(
    key: &PrivateKey,
    tls: &ServerTls,
) -> Result<quinn::ServerConfig, TlsError> {
    let mut config =
        quinn::ServerConfig::new(Arc::new(tls.for_connection()?), quic::token_key(key));
    // All of these wait for a moment only, until the gate has decided.
    config
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING_BYTES);
    Ok(config)
}

pub(super) async fn accept(server: &Arc<Server>, endpoint: &Endpoint) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                let Some((remote, is_stream)) = server.socket.client(incoming.remote_address())
                else {
                    incoming.ignore();
                    continue;
                };
                // Whoever has a TCP connection receives packets at its address.
                let admitted = server.handshakes.enter(incoming, remote.ip(), is_stream);
                if let Some((incoming, permit)) = admitted {
                    let span = info_span!("peer", %remote);
                    connections.spawn(serve(server.clone(), incoming, permit).instrument(span));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// One connection, from its first datagram to its end.
async fn serve(server: Arc<Server>, incoming: quinn::Incoming, mut permit: HandshakePermit) {
    permit.begins();
    let remote = incoming.remote_address();
    let congestion = CongestionHandle::default();
    let proof = tokio::time::timeout(PROOF_TIMEOUT, server.prove(incoming, congestion.clone()));
    let proven = tokio::select! {
        proven = proof => proven,
        () = permit.must_give_way() => return debug!("handshake gave way to a newer one"),
    };
    let (connection, peer) = match proven {
        Ok(Ok(Some(proven))) => proven,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            server.note_other_protocol(&error);
            return debug!(%error, "handshake failed");
        }
        Err(_elapsed) => return debug!("handshake timed out"),
    };
    let is_probe = tls::purpose(&connection).as_deref() == Some(tls::PROBE);
    if !permit.proven(|| !is_probe && peer.returns(clock::now())) {
        return;
    }
    if let Some(streams) = server.socket.streams() {
        streams.proven(connection.remote_address(), peer.key);
    }
    if is_probe {
        let _place = peer.probes.admit(&connection);
        let idle_timeout = server.acceptor.quic.idle_timeout;
        if server.still_has(&peer, &connection) {
            let vicinity = Vicinity::new(server.neighbours.get().map(|it| &**it), remote);
            let (peer, drain) = (&peer, &server.drain);
            tokio::select! {
                () = answer_questions(&connection, peer, drain, vicinity, PROBE_IDLE, idle_timeout) => {}
                never = fallback::watch(&connection, &congestion) => match never {},
            }
        }
        return;
    }
    if let Some((messages, hello)) = server.greet(&connection, &peer).await {
        server.carry_session(&connection, &peer, messages, hello, &congestion).await;
    }
}
