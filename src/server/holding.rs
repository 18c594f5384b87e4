//! What a session has beyond its connection: the routes to its peer and, where several servers share their peers, the
//! claim that other servers see.

use std::{collections::HashMap, convert::Infallible, future::pending, time::Duration};

use bytes::Bytes;
use quinn::Connection;
use tokio::time;

use super::{Server, peers::Peer};
#[cfg(feature = "etcd")]
use crate::fleet::{
    etcd::Store,
    keeper::Keeper,
    tenure::{Claim, Event, Hello},
};
use crate::{
    clock,
    daemon::status::HolderStatus,
    identity::PublicKey,
    quic::congestion::CongestionHandle,
    wire::{datagram::PADDING, message},
};

/// Between two looks at what the client has acknowledged: a quarter of the round trip within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long a server that stops tries to give up its claims.
#[cfg(feature = "etcd")]
const GIVING_UP: Duration = Duration::from_secs(1);

impl Server {
    /// The connection has the peer's session, which has attached it.
    #[cfg_attr(
        not(feature = "etcd"),
        expect(unused_variables, reason = "others hear of it through etcd")
    )]
    pub(super) fn began(&self, peer: &Peer, connection: &Connection, hello: &message::Hello) {
        let session = connection.stable_id();
        if let Some(held) = &self.held {
            held.add(&peer.addresses, session);
        }
        #[cfg(feature = "etcd")]
        if let Some(keeper) = &self.keeper {
            let hello = Hello { process: hello.instance, number: hello.number };
            let client = Some(self.socket.shown(connection.remote_address()).ip().to_canonical());
            keeper.tell(self, Event::Began { peer: peer.key, session, hello, client });
        }
    }

    /// The same for a session that another server has. That one is closed when it hears of the claim, so the client has
    /// to be sure to know of this session: nothing happens before it acknowledges what was sent to it after the welcome.
    pub(super) async fn take_over(
        &self,
        peer: &Peer,
        connection: &Connection,
        hello: &message::Hello,
        congestion: &CongestionHandle,
    ) -> Infallible {
        let welcomed = clock::now();
        // The client may have nothing to send.
        let _ = connection.send_datagram(Bytes::from_static(&[PADDING]));
        let pause = (connection.rtt() / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        while congestion.newest_acknowledged().is_none_or(|sent| sent < welcomed) {
            time::sleep(pause).await;
        }
        if connection.close_reason().is_none() {
            self.began(peer, connection, hello);
        }
        pending().await
    }

    /// Keeps the claims of this server's sessions in etcd, for ever.
    pub(super) async fn keep_claims(&self) -> Infallible {
        #[cfg(feature = "etcd")]
        if let Some((keeper, store)) = self.claims() {
            return keeper.run(&store, self).await;
        }
        pending().await
    }

    /// Gives up all claims, when nobody keeps them any more.
    #[cfg_attr(not(feature = "etcd"), expect(clippy::unused_async, reason = "as it is with etcd"))]
    pub(super) async fn give_up_claims(&self) {
        #[cfg(feature = "etcd")]
        if let Some((keeper, store)) = self.claims() {
            // A server stops without etcd, too.
            let _ = time::timeout(GIVING_UP, keeper.leave(&store)).await;
        }
    }

    #[cfg(feature = "etcd")]
    fn claims(&self) -> Option<(&Keeper, Store)> {
        let configured = self.configured.borrow();
        let directory = configured.config.directory.as_ref()?;
        Some((self.keeper.as_ref()?, Store::new(&directory.etcd)))
    }

    /// Which server has the session of whom, if this one knows.
    pub(super) fn holders(&self) -> HashMap<PublicKey, HolderStatus> {
        #[cfg(feature = "etcd")]
        if let Some(keeper) = &self.keeper {
            let status = |(peer, claim, here): (_, Claim, _)| {
                (peer, HolderStatus { server: claim.name, epoch: claim.epoch, here })
            };
            return keeper.claims().into_iter().map(status).collect();
        }
        HashMap::new()
    }

    /// The connection has no session any more.
    pub(super) fn ended(&self, peer: &Peer, connection: &Connection) {
        let session = connection.stable_id();
        if let Some(held) = &self.held {
            held.remove(&peer.addresses, session);
        }
        #[cfg(feature = "etcd")]
        if let Some(keeper) = &self.keeper {
            keeper.tell(self, Event::Ended { peer: peer.key, session });
        }
    }
}

#[cfg(feature = "etcd")]
mod fleet {
    use std::sync::Arc;

    use bytes::Bytes;
    use tracing::{info, warn};

    use crate::{
        daemon::events::Event,
        fleet::{
            keeper::Site,
            tenure::{Claim, Order, SessionId, Why},
        },
        identity::PublicKey,
        quic::close,
        server::{
            Server,
            peers::{Elsewhere, Peer, Peers},
        },
        wire::{datagram::PADDING, foreign::Foreign},
    };

    impl From<Claim> for Elsewhere {
        fn from(claim: Claim) -> Self {
            Self { server: claim.name, process: claim.hello.process, client: claim.client }
        }
    }

    impl Server {
        fn peer(&self, key: PublicKey) -> Option<Arc<Peer>> {
            self.configured.borrow().peers.with_key(key).cloned()
        }

        /// Tells peers that are new since `before` whether their sessions are at another server.
        pub(in crate::server) fn place(&self, before: &Peers) {
            let Some(keeper) = &self.keeper else { return };
            let is_new = |peer: &&Arc<Peer>| {
                before.with_key(peer.key).is_none_or(|before| !Arc::ptr_eq(before, peer))
            };
            // The keeper looks for peers itself.
            let new: Vec<_> =
                self.configured.borrow().peers.iter().filter(is_new).cloned().collect();
            for peer in new {
                peer.set_elsewhere(keeper.elsewhere(peer.key).map(Elsewhere::from));
            }
        }

        fn withdraw(&self, peer: &Peer, session: SessionId) {
            if let Some(held) = &self.held {
                held.remove(&peer.addresses, session);
            }
            if peer.set_leaving(session, true) {
                let server = peer.elsewhere().unwrap_or_else(|| Foreign::from("none"));
                info!(peer = peer.name, %server, "the session is at another server");
                self.events.tell(Event::PeerMoved { peer: peer.name.clone(), server });
            }
        }

        fn restore(&self, peer: &Peer, session: SessionId) {
            if peer.set_leaving(session, false)
                && let Some(held) = &self.held
            {
                held.add(&peer.addresses, session);
            }
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
                Some((peer.key, connection.stable_id(), connection.stats().udp_rx.datagrams))
            };
            configured.peers.iter().filter_map(session).collect()
        }

        fn ask(&self, peer: PublicKey, session: SessionId) {
            let current = self.peer(peer).and_then(|peer| peer.session());
            if let Some(current) = current.filter(|it| it.connection.stable_id() == session) {
                // It is acknowledged, if the client is there.
                let _ = current.connection.send_datagram(Bytes::from_static(&[PADDING]));
            }
        }
    }
}
