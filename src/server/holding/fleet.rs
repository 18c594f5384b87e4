//! What this server does as one of several: it carries out the orders that follow from the claims in etcd.

use std::sync::Arc;

use tracing::{info, warn};

use crate::{
    daemon::{events::Event, status::Withdrawal},
    fleet::{
        keeper::Site,
        tenure::{Claim, Order, SessionId, Why},
    },
    identity::PublicKey,
    quic::{close, touch},
    server::{
        Server,
        peers::{Elsewhere, Peer, Peers},
    },
    wire::foreign::Foreign,
};

impl From<Claim> for Elsewhere {
    fn from(claim: Claim) -> Self {
        Self { server: claim.name, process: claim.hello.map(|it| it.process), client: claim.client }
    }
}

impl Server {
    fn peer(&self, key: PublicKey) -> Option<Arc<Peer>> {
        self.configured.borrow().peers.with_key(key).cloned()
    }

    /// Tells peers that are new since `before` whether their sessions are at another server.
    pub(in crate::server) fn place(&self, before: &Peers) {
        let Some((keeper, _)) = &self.keeper else { return };
        let is_new = |peer: &&Arc<Peer>| {
            before.with_key(peer.key).is_none_or(|before| !Arc::ptr_eq(before, peer))
        };
        // The keeper looks for peers itself.
        let new: Vec<_> = self.configured.borrow().peers.iter().filter(is_new).cloned().collect();
        for peer in new {
            peer.set_elsewhere(keeper.elsewhere(peer.key).map(Elsewhere::from));
        }
    }

    fn withdraw(&self, peer: &Peer, session: SessionId) {
        if self.take_routes(peer, session, Withdrawal::Elsewhere) {
            let server = peer.elsewhere().unwrap_or_else(|| Foreign::from("none"));
            info!(peer = peer.name, %server, "the session is at another server");
            self.events.tell(Event::PeerMoved { peer: peer.name.clone(), server });
        }
    }

    /// The session goes on, and what the kernel has no other way for waits for it.
    fn suspend(&self, peer: &Peer, session: SessionId) {
        if self.take_routes(peer, session, Withdrawal::Unheard) {
            info!(peer = peer.name, "no routes: neither etcd nor the peer is heard");
        }
    }

    fn restore(&self, peer: &Peer, session: SessionId) {
        if peer.set_withdrawn(session, None)
            && let Some(held) = &self.held
        {
            held.add(&peer.addresses, session);
            info!(peer = peer.name, "it has its routes again");
            self.events.tell(Event::PeerRoutes { peer: peer.name.clone(), withdrawn: None });
        }
    }

    /// Takes the routes of a session that goes on; whether it is still there.
    fn take_routes(&self, peer: &Peer, session: SessionId, why: Withdrawal) -> bool {
        let is_here = peer.set_withdrawn(session, Some(why));
        let had_routes =
            self.held.as_ref().is_some_and(|held| held.remove(&peer.addresses, session));
        if is_here && had_routes {
            peer.count_withdrawal(why);
            self.events.tell(Event::PeerRoutes { peer: peer.name.clone(), withdrawn: Some(why) });
        }
        is_here
    }

    fn close(&self, peer: &Peer, session: SessionId, why: Why) {
        let current = peer.session().filter(|it| it.connection.stable_id() == session);
        let Some(current) = current else { return };
        let (code, reason) = match why {
            Why::TakenOver => (close::TAKEN_OVER, "another server has the session".to_owned()),
            Why::Displaced(by) => {
                (close::DISPLACED, by.map(|by| by.to_string()).unwrap_or_default())
            }
            Why::CutOff => {
                warn!(peer = peer.name, "given up: neither etcd nor the peer is heard");
                (close::GOODBYE, "this server is cut off".to_owned())
            }
        };
        current.connection.close(code, reason.as_bytes());
    }
}

impl Site for Server {
    fn carry_out(&self, order: Order) {
        let Some(peer) = self.peer(order.peer()) else { return };
        match order {
            Order::Withdraw { session, .. } => self.withdraw(&peer, session),
            Order::Suspend { session, .. } => self.suspend(&peer, session),
            Order::Restore { session, .. } => self.restore(&peer, session),
            Order::Close { session, why, .. } => self.close(&peer, session, why),
            Order::Elsewhere { holder, .. } => {
                peer.set_elsewhere(holder.map(Elsewhere::from));
            }
        }
    }

    fn sessions(&self) -> Vec<(PublicKey, SessionId, u64)> {
        let configured = self.configured.borrow();
        let session = |peer: &Arc<Peer>| {
            let connection = peer.session()?.connection;
            // Of packets that were decrypted: anybody can send others.
            let frames = connection.stats().frame_rx;
            Some((peer.key, connection.stable_id(), frames.acks + frames.datagram))
        };
        configured.peers.iter().filter_map(session).collect()
    }

    fn ask(&self, peer: PublicKey, session: SessionId) {
        let current = self.peer(peer).and_then(|peer| peer.session());
        if let Some(current) = current.filter(|it| it.connection.stable_id() == session) {
            // It is acknowledged, if the client is there.
            touch(&current.connection);
        }
    }
}
