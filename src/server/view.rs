//! What the server shows of itself.

use std::sync::atomic::Ordering::Relaxed;

use super::Server;
use crate::daemon::status::{self, PeerStatus, ServerStatus, Status};

impl Server {
    pub(super) fn status(&self) -> Status {
        let (listen, further) = self.socket.addresses();
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
            rival: peer.rival(),
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
            tcp: configured.config.listen_tcp.zip(self.socket.streams()).map(
                |(listen, streams)| status::TcpStatus {
                    listen,
                    connections: streams.count(),
                    refused: self.visitors.refused(),
                    dismissed: self.visitors.dismissed(),
                    dropped: streams.dropped(),
                },
            ),
        })
    }
}
