//! Connects, for ever: one session after the other, and the pauses between them.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::{
    Client,
    command::{Order, next_choice, no_way},
    dial::{Loss, Round, dial},
    ended::{Ended, Refusal},
    greeting::{Reached, Terms},
    pauses::{Pause, Pauses},
    rival::Rival,
    roam::{Datapath, Roamer},
    servers::InOrder,
    view::{Line, milliseconds},
};
use crate::{
    clock,
    daemon::{control::Reply, systemd},
    host::Setup,
    identity::PublicKey,
    path::{
        handshake::HandshakeError,
        manager::{self, Choice, Manager, Settings},
    },
    task::apart,
    tunnel::{egress, pump},
    wire::packet::Packet,
};

/// Bytes of packets that go with the first flight of a handshake: less than a fresh window holds.
const EARLY: usize = 8 * 1024;
/// After a session that lasted so long, the pauses begin anew.
const STABLE: Duration = Duration::from_secs(10);

impl Client {
    /// Connects, for ever. Returns only errors of this machine and, to whoever started the client by hand, a
    /// refusal before the first session.
    pub(super) async fn stay_connected(
        &self,
        host: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        let mut pauses = Pauses::default();
        let mut loss = Loss::none();
        let mut manager = Manager::new(Settings::new(&self.config.borrow().paths));
        loop {
            let begun = clock::now();
            let sessions = self.shown.sessions();
            self.shown.connecting();
            let ended = self.connect(host, &mut manager, orders, loss.clone()).await?;
            // What its actions would close was the roamer's, and is closed.
            let _ = manager.handle(manager::Event::Disconnected, clock::now());
            self.queue.hold(true);
            self.desired.lock().await.in_session = false;
            let refusal = ended.refusal(self.key);
            let rival = Rival::of(&ended);
            if self.shown.sessions() > sessions {
                let in_use = self.shown.in_use();
                let left = in_use.as_ref().filter(|_| ended.is_goodbye()).map(|it| it.server);
                let (answered, server) = (ended.answered(in_use), self.shown.server());
                loss = Loss { at: clock::now(), server, answered, left };
            }
            if clock::now().duration_since(begun) >= STABLE {
                pauses = Pauses::default();
            }
            let pause = pauses.after(&ended, refusal.as_ref());
            let reason = match (&refusal, rival) {
                (_, Some(rival)) => rival.to_string(),
                (Some(refusal), None) => refusal.in_short(),
                (None, None) => ended.to_string(),
            };
            let refused = refusal.as_ref().is_some_and(Refusal::is_proven);
            self.shown.waiting(&reason, refused, pause.map_or(Duration::ZERO, |it| it.longest));
            match refusal {
                // Whoever started it by hand reads this, and mends it at once.
                Some(refusal) if self.shown.sessions() == 0 && !systemd::is_managed() => {
                    return Err(refusal.into());
                }
                Some(_) | None => {}
            }
            self.not_connected(&reason);
            if refused {
                // A server that answers is behind no portal, and the pause may be long.
                self.give_way(false, host).await;
            }
            if let Some(pause) = pause {
                self.sleep_or_change(pause, &mut manager, orders).await;
            }
        }
    }

    /// Logs why there is no connection, once.
    fn not_connected(&self, reason: &str) {
        if self.shown.is_news(reason) {
            warn!(reason, "not connected");
        } else {
            debug!(reason, "not connected");
        }
    }

    /// Waits for the longest of the pause, or less if a network changes or a person chooses a link, but for the
    /// shortest at least.
    async fn sleep_or_change(
        &self,
        Pause { shortest, longest }: Pause,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
    ) {
        let (mut hints, mut config) = (self.roaming.network.hints(), self.config.subscribe());
        let chosen = Notify::new();
        let pause = async {
            tokio::time::sleep(shortest).await;
            tokio::select! {
                () = tokio::time::sleep(longest.saturating_sub(shortest)) => {}
                () = hints.hint() => debug!("a network changed: trying at once"),
                () = chosen.notified() => debug!("a person chose a link: trying at once"),
                _ = config.changed() => debug!("the configuration changed: trying at once"),
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let answer = self.choose(choice, manager).await;
                    if matches!(answer, Reply::Done(_)) {
                        chosen.notify_one();
                    }
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Remembers a person's choice for the connection to come.
    async fn choose(&self, choice: Option<Choice>, manager: &mut Manager) -> Reply {
        let done = match &choice {
            Some(Choice { link, pinned }) => {
                let config = self.config.borrow().clone();
                let mut found = Vec::new();
                for server in &*self.servers.all() {
                    let there = server.find(&server.names.known(), &config.paths).await;
                    found.extend(there.unwrap_or_default());
                }
                let links = || found.iter().map(|(candidate, _)| candidate.link.as_str());
                if !links().any(|other| other == link) {
                    return no_way(link, links());
                }
                let how = match pinned {
                    true => "dialed alone, whatever happens",
                    false => "dialed first, until it fails",
                };
                format!("{link}: {how}")
            }
            None => "the best path is chosen again".into(),
        };
        // Without a connection there is nothing to do about it yet.
        let _ = manager.handle(manager::Event::Choose(choice), clock::now());
        Reply::Done(vec![done])
    }

    fn why_not_connected(&self) -> String {
        let why = self.shown.last_error().unwrap_or_else(|| "still connecting".into());
        format!("not connected ({why}): the links are tried as it is")
    }

    /// Begins a session, and lets what waits go with the first packet.
    async fn dial(
        &self,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
        loss: Loss,
    ) -> Result<Reached, Ended> {
        let (taken, dropped) = self.queue.take_early(EARLY);
        self.counters.dropped_by_queue(dropped);
        let early = taken.datagrams();
        let silent = |error: &HandshakeError| {
            let reason = error.to_string();
            self.shown.silent(&reason);
            self.not_connected(&reason);
        };
        let dialed = loop {
            let servers = self.servers.all();
            let round = Round {
                servers: loss.order(&servers, None),
                dialing: manager.dialing().clone(),
                early: early.clone(),
                loss: loss.clone(),
                terms: Terms { moves: servers.len() > 1, ..self.terms },
                silent: &silent,
            };
            tokio::select! {
                dialed = dial(round, self.config.subscribe()) => break dialed,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let _ = reply.send(self.choose(choice, manager).await);
                }
            }
        };
        if dialed.as_ref().is_ok_and(|reached| reached.connected.early_arrived) {
            let bytes = early.iter().map(|packet| packet.len() as u64).sum();
            self.counters.sent.add(early.len() as u64, bytes);
        } else {
            self.queue.put_back(taken);
        }
        dialed
    }

    /// One session, from the first attempt to its end. An error is one of this machine's.
    async fn connect(
        &self,
        host: &mut impl Setup,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
        loss: Loss,
    ) -> anyhow::Result<Ended> {
        // A change during the dialing is news to the roamer.
        let config = self.config.subscribe();
        let dialed = tokio::select! {
            dialed = self.dial(manager, orders, loss) => dialed,
            never = self.look_for_portals(host) => match never {},
        };
        let reached = match dialed {
            Ok(reached) => reached,
            Err(ended) => return Ok(ended),
        };
        let (connected, welcome) = (&reached.connected, reached.welcome.clone());
        let server = reached.server.clone();
        let (connection, candidate) = (connected.connection.clone(), connected.candidate.clone());
        let line = Line {
            connection: connection.clone(),
            endpoint: connected.underlay.endpoint().clone(),
            socket: connected.underlay.socket().clone(),
            congestion: server.congestion.clone(),
            server: (server.key(), server.name().into()),
            software: welcome.software.clone(),
            since: clock::wall(),
        };
        let resumed = connected.early_arrived;
        let terms = pump::Terms {
            unchecked: welcome.unchecked,
            repair: welcome.repair,
            copies: welcome.copies,
        };
        let session = &Arc::new(pump::Session::new(terms, &server.congestion));
        // From here on the path is watched: the host may take its time.
        let Self { roaming, shown, servers, queue, counters, .. } = self;
        let datapath = Datapath { queue, counters, session: session.clone() };
        let roamer =
            Roamer::new((roaming, shown, servers), datapath, manager, orders, config, reached);
        let carry = async {
            if let Err(error) = self.greeted(host, &welcome).await {
                return error.end(&connection);
            }
            let rtt = server.congestion.shortest_round_trip();
            info!(
                link = candidate.link,
                local = %candidate.source,
                server = %candidate.server,
                rtt = %milliseconds(rtt.unwrap_or_else(|| connection.rtt())),
                resumed,
                name = %welcome.name,
                addresses = ?welcome.addresses.iter().map(|net| net.0).collect::<Vec<_>>(),
                "connected"
            );
            self.shown.connected(line, &candidate);
            self.servers.all().iter().for_each(|server| server.attempts.clear());
            let deliver = |batch: &mut Vec<Packet>| self.deliver(batch);
            let downlink = pump::downlink(&connection, &self.counters, session, deliver);
            tokio::select! {
                lost = apart(pump::uplink(&connection, &self.queue, &self.counters, session)) => {
                    Ended::Lost(lost)
                }
                lost = apart(downlink) => {
                    Ended::Lost(lost)
                }
                ended = apart(self.follow_host(host)) => ended.end(&connection),
            }
        };
        tokio::select! {
            ended = apart(carry) => Ok(ended),
            forgotten = apart(roamer.run()) => forgotten.map(Ended::Forgotten),
            () = self.removed(server.key()) => Ok(Ended::Removed),
        }
    }

    /// Waits until the configuration does not have the server with this key any more.
    async fn removed(&self, key: PublicKey) {
        let mut changes = self.servers.changes();
        let is_gone = |servers: &InOrder| servers.iter().all(|server| server.key() != key);
        if changes.wait_for(is_gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn deliver(&self, batch: &mut Vec<Packet>) {
        egress::deliver(batch, &*self.tun, &self.counters, self.inside.load().judge());
    }
}

#[cfg(test)]
mod tests;
