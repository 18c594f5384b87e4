//! What the server shows of itself.

use std::sync::atomic::Ordering::Relaxed;

use super::{Server, peers::Peer, reload::Configured};
use crate::{
    clock,
    daemon::{
        events::Event,
        status::{
            self, DirectoryState, DirectoryStatus, PassedOverStatus, PeerStatus, RoutesStatus,
            ServerStatus, Status,
        },
    },
    fleet::{Known, PassedOver, Standing},
    wire::foreign::Foreign,
};

impl Server {
    pub(super) fn status(&self) -> Status {
        let (listen, further) = self.socket.addresses();
        // Before the configuration is looked at: the keeper of the claims looks at it, too.
        let mut holders = self.holders();
        let configured = self.configured.borrow();
        let peers = configured.peers.iter().map(|peer| PeerStatus {
            name: peer.name.clone(),
            public_key: peer.key.to_string(),
            addresses: peer.addresses.clone(),
            session: peer.session().map(|session| status::SessionStatus {
                remote: self.socket.shown(session.connection.remote_address()),
                since: status::seconds_ago(session.since),
                software: session.software,
                quic: status::QuicStatus::of(&session.connection),
            }),
            last_session: peer.last_session().map(|(ended, remote)| status::LastSessionStatus {
                ended: status::rounded(clock::now().saturating_duration_since(ended)),
                remote,
            }),
            rival: peer.rival(),
            holder: holders.remove(&peer.key),
            routes: self.routes(peer),
            routes_withdrawn: peer.withdrawn(),
            queued_bytes: peer.queue.bytes(),
            queue_delay: status::milliseconds(peer.queue.delay()),
            traffic: peer.counters.snapshot(),
        });
        Status::server(ServerStatus {
            listen,
            listen_also: further.collect(),
            interface: self.interface.clone(),
            left_out: self.left_out.borrow().clone(),
            uptime: status::seconds_ago(self.since),
            peers: peers.collect(),
            traffic: self.counters.snapshot(),
            send_errors: self.socket.send_errors(),
            receive_errors: self.socket.receive_errors(),
            refused_keys: self.handshakes.refused(),
            refused_protocols: self.other_protocols.load(Relaxed),
            draining: self.drain.status(),
            tcp: configured.config.listen_tcp.zip(self.socket.streams()).map(
                |(listen, streams)| status::TcpStatus {
                    listen,
                    connections: streams.count(),
                    refused: self.visitors.refused(),
                    dismissed: self.visitors.dismissed(),
                    dropped: streams.dropped(),
                },
            ),
            directory: directory(&configured),
        })
    }

    /// The host's routes to a peer. A session that has just come from another server has none yet.
    fn routes(&self, peer: &Peer) -> Option<RoutesStatus> {
        let (held, session) = (self.held.as_ref()?, peer.session()?);
        let withdrawn = session.withdrawn;
        if withdrawn.is_none() && !held.is_of(&peer.addresses, session.connection.stable_id()) {
            return None;
        }
        let since = clock::now().saturating_duration_since(session.routed);
        Some(RoutesStatus { withdrawn, since: status::rounded(since) })
    }
}

fn directory(configured: &Configured) -> Option<DirectoryStatus> {
    let etcd = &configured.config.directory.as_ref()?.etcd;
    let shared = &configured.shared;
    let (state, reason) = standing(shared);
    let passed_over = configured.passed_over.iter().cloned();
    Some(DirectoryStatus {
        state,
        since: status::seconds_ago(shared.since.unwrap_or_else(clock::wall)),
        reason,
        prefix: etcd.prefix.clone(),
        revision: shared.revision,
        peers: shared.peers.len(),
        passed_over: passed_over
            .map(|PassedOver { record, reason }| PassedOverStatus { record, reason })
            .collect(),
        unsaved: shared.unsaved.clone(),
    })
}

/// What listeners are told of the directory.
pub(super) fn directory_event(shared: &Known) -> Event {
    let (state, reason) = standing(shared);
    Event::Directory { state, peers: shared.peers.len(), reason }
}

fn standing(shared: &Known) -> (DirectoryState, Option<Foreign>) {
    match &shared.standing {
        Standing::Unasked => (DirectoryState::Unasked, None),
        Standing::Current => (DirectoryState::Current, None),
        Standing::Away(why) => (DirectoryState::Away, Some(why.clone())),
        Standing::Old(why) => (DirectoryState::Old, Some(why.clone())),
    }
}
