//! What a session has beyond its connection: the routes to its peer and, where several servers share their peers, the
//! claim that other servers see.

#[cfg(feature = "etcd")]
mod fleet;

use std::{collections::HashMap, convert::Infallible, future::pending, time::Duration};

use quinn::Connection;
use tokio::time;

use super::{Server, peers::Peer};
#[cfg(feature = "etcd")]
use crate::fleet::tenure::{Claim, Event, Hello};
use crate::{
    clock,
    daemon::status::HolderStatus,
    identity::PublicKey,
    quic::{congestion::CongestionHandle, touch},
    wire::message,
};

/// Between two looks at what the client has acknowledged: a quarter of the round trip within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The claim of a connection on the session of `peer`; dropping it gives the session up.
pub(super) struct Attached<'a> {
    pub(super) server: &'a Server,
    pub(super) peer: &'a Peer,
    pub(super) connection: &'a Connection,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let remote = self.server.socket.shown(self.connection.remote_address());
        self.peer.detach(self.connection, remote);
        self.server.ended(self.peer, self.connection);
    }
}

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
        if let Some((keeper, _)) = &self.keeper {
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
        touch(connection);
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
        if let Some((keeper, store)) = &self.keeper {
            return keeper.run(store, self).await;
        }
        pending().await
    }

    /// Gives up all claims, when nobody keeps them any more.
    #[cfg_attr(not(feature = "etcd"), expect(clippy::unused_async, reason = "as it is with etcd"))]
    pub(super) async fn give_up_claims(&self) {
        #[cfg(feature = "etcd")]
        if let Some((keeper, store)) = &self.keeper {
            keeper.leave(store).await;
        }
    }

    /// Which server has the session of whom, if this one knows.
    pub(super) fn holders(&self) -> HashMap<PublicKey, HolderStatus> {
        #[cfg(feature = "etcd")]
        if let Some((keeper, _)) = &self.keeper {
            let status = |(peer, claim, here): (_, Claim, _)| {
                (peer, HolderStatus { server: claim.name, epoch: claim.epoch, here })
            };
            return keeper.claims().into_iter().map(status).collect();
        }
        HashMap::new()
    }

    /// The connection has no session any more.
    fn ended(&self, peer: &Peer, connection: &Connection) {
        let session = connection.stable_id();
        // First, so that it gives this session no routes any more.
        #[cfg(feature = "etcd")]
        if let Some((keeper, _)) = &self.keeper {
            keeper.tell(self, Event::Ended { peer: peer.key, session });
        }
        if let Some(held) = &self.held {
            held.remove(&peer.addresses, session);
        }
    }
}
