//! A peer's session, from its hello to the end of its connection.

use std::{sync::Arc, time::Duration};

use quinn::Connection;
use tracing::{debug, info};

use super::{
    Server,
    drain::Drain,
    fallback,
    holding::Attached,
    peers::{Peer, PeerSession},
    silence,
    vicinity::Vicinity,
};
use crate::{
    clock,
    daemon::events::Event,
    quic::{
        HANDSHAKE_TIMEOUT, close,
        congestion::CongestionHandle,
        session::{self, MessageStream},
    },
    task::apart,
    tunnel::pump,
    wire::{
        datagram::decode_offer, foreign::Foreign, message::Hello, packet::Packet,
        place::PlaceQuestion, question::Question,
    },
};

impl Server {
    /// Waits for a peer's hello and answers it. Packets that come before it are taken at once, so that
    /// they do not wait in quinn, which counts neither the memory around small ones nor their number.
    pub(super) async fn greet(
        &self,
        connection: &Connection,
        peer: &Arc<Peer>,
    ) -> Option<(MessageStream, Hello)> {
        let _place = peer.silent.admit(connection);
        if !self.still_has(peer, connection) {
            return None;
        }
        let greeted = tokio::select! {
            greeted = session::accept(connection, |version, hello| {
                let admitted = peer.admits(hello.instance, connection, &self.socket);
                admitted.then(|| self.welcome(peer, version))
            }) => greeted,
            lost = pump::downlink(connection, &peer.counters, &pump::UNGREETED, |batch| self.admit(peer, batch)) => {
                Err(lost.into())
            }
            () = tokio::time::sleep(HANDSHAKE_TIMEOUT) => {
                connection.close(close::PROTOCOL, b"no hello");
                return None;
            }
        };
        greeted.inspect_err(|error| debug!(%error, "no session")).ok()
    }

    /// A peer's session, until its connection ends.
    pub(super) async fn carry_session(
        &self,
        connection: &Connection,
        peer: &Arc<Peer>,
        mut messages: MessageStream,
        hello: Hello,
        congestion: &CongestionHandle,
    ) {
        let terms =
            pump::Terms { unchecked: hello.unchecked, repair: hello.repair, copies: hello.copies };
        let share = || peer.repair_memory();
        let session = Arc::new(pump::Session::sharing(share, terms, congestion));
        let datapath = session.clone();
        let claim = PeerSession {
            connection: connection.clone(),
            since: clock::wall(),
            software: hello.software.clone(),
            instance: hello.instance,
            datapath,
            withdrawn: None,
            routed: clock::now(),
        };
        peer.attach(claim, &self.socket);
        peer.begin_bulk(hello.instance);
        let attached = Attached { server: self, peer, connection };
        let takes_over = peer.elsewhere().is_some();
        if !takes_over {
            self.began(peer, connection, &hello);
        }
        let _movable = self.drain.attach(hello.moves);
        self.still_has(peer, connection);
        let remote = self.socket.shown(connection.remote_address());
        self.events.tell(Event::PeerConnected { peer: peer.name.clone(), remote });
        info!(peer = peer.name, software = %hello.software, "connected");
        let admit = |batch: &mut Vec<Packet>| self.admit(peer, batch);
        let reason = tokio::select! {
            reason = apart(pump::uplink(connection, &peer.queue, &peer.counters, &session)) => reason,
            reason = apart(pump::downlink(connection, &peer.counters, &session, admit)) => reason,
            never = apart(self.drain.converse(&mut messages, hello.moves, |held| {
                peer.hold_bulk(hello.instance, held);
            })) => {
                match never {}
            }
            never = apart(silence::watch(connection, &peer.queue, &session, congestion)) => {
                match never {}
            }
            never = apart(fallback::watch(connection, congestion)) => match never {},
            never = apart(self.take_over(peer, connection, &hello, congestion)), if takes_over => {
                match never {}
            }
            never = apart(silence::keep_alive(connection, self.acceptor.quic.keep_alive)) => {
                match never {}
            }
        };
        drop(attached);
        let reason = Foreign::of(reason);
        info!(peer = peer.name, %reason, "disconnected");
        self.events.tell(Event::PeerDisconnected { peer: peer.name.clone(), reason });
    }

    /// Takes packets from a peer: to other peers, or to the device.
    pub(super) fn admit(&self, peer: &Peer, batch: &mut Vec<Packet>) {
        self.configured.borrow().peers.deliver(peer, batch, &*self.tun);
    }
}

/// Answers the questions of a probe until it ends, or says nothing for longer than `limit`. Copies of packets are for
/// the session of the process that asked last; where the client wants some, and says something too rarely for the
/// `idle_timeout` of connections, the server does. A process that has its session elsewhere is told that this server
/// will stop.
pub(super) async fn answer_questions(
    connection: &Connection,
    peer: &Peer,
    drain: &Drain,
    mut vicinity: Vicinity<'_>,
    limit: Duration,
    idle_timeout: Duration,
) {
    let (mut process, mut is_elsewhere, mut is_kept) = (None, false, false);
    let seen = || (connection.remote_address(), connection.local_ip());
    let go_away = || connection.close(close::GOODBYE, b"the server will stop");
    loop {
        let question = tokio::time::timeout(limit, connection.read_datagram());
        let keep = silence::keep_alive(connection, idle_timeout / 3);
        tokio::select! {
            question = question => match question {
                Ok(Ok(datagram)) => {
                    let place = PlaceQuestion::decode(&datagram);
                    process = Question::process(&datagram).or(place.map(|it| it.process)).or(process);
                    let session = process.and_then(|it| peer.datapath_of(it));
                    is_elsewhere = process.is_some() && session.is_none();
                    if is_elsewhere && drain.is_draining() {
                        return go_away();
                    }
                    if let Some(place) = place {
                        let is_near = session.is_some() && vicinity.has(&place, seen).await;
                        let _ = connection.send_datagram(place.answer(is_near));
                    } else if Question::may_be(&datagram) {
                        // What cannot be answered is asked again.
                        let answer = Question::answer(datagram, |_process| session.is_some());
                        let _ = connection.send_datagram(answer);
                    } else if let Some(session) = session {
                        session.take_copy_over(connection, &datagram);
                        if let Some(per_minute) = decode_offer(&datagram) {
                            is_kept = per_minute > 0 && idle_timeout < pump::KEPT;
                        }
                    }
                }
                Ok(Err(_lost)) => return,
                Err(_elapsed) => return connection.close(close::NOT_NEEDED, b"no question"),
            },
            never = keep, if is_kept => match never {},
            () = drain.begun(), if is_elsewhere => return go_away(),
            _ = connection.accept_bi() => {
                return connection.close(close::PROTOCOL, b"a probe has no streams");
            }
        }
    }
}
