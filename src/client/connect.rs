//! Connects, for ever: one session after the other, and the pauses between them.

use std::{
    convert::Infallible,
    future, mem,
    sync::{Arc, atomic::AtomicBool},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use quinn::{Connection, ConnectionError};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::{
    Client,
    command::{Chosen, Order, next_choice, no_way},
    dial::{Loss, Round, dial},
    ended::{Ended, Refusal},
    greeting::{Reached, Terms},
    moving::{Course, Moved, Mover, Signals, no_server},
    pauses::{Pause, Pauses},
    reload::InForce,
    rival::Rival,
    roam::{Datapath, Roamer},
    servers::{InOrder, RemoteServer},
    view::{Line, milliseconds},
};
use crate::{
    clock,
    daemon::{control::Reply, status::MoveReason, systemd},
    host::Setup,
    identity::PublicKey,
    link::candidate::Candidate,
    path::{
        handshake::HandshakeError,
        manager::{self, Choice, Dialing, Manager, Settings},
    },
    quic::close,
    task::apart,
    tunnel::{egress, pump, queue::Taken},
    wire::{message::Welcome, packet::Packet},
};

/// Bytes of packets that go with the first flight of a handshake: less than a fresh window holds.
const EARLY: usize = 8 * 1024;
/// How long the old connection goes on after a move to another server: longer than a packet is under way, and longer than
/// the network behind the servers takes to send packets to the new one.
const GRACE: Duration = Duration::from_secs(3);
/// Connections that go on so at the same time.
const MOST_REMAINS: usize = 2;
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
        let mut manager = Manager::new(Settings::new(&self.config.borrow().paths));
        let mut course = Course::default();
        let mut minds = Minds { manager: &mut manager, course: &mut course, orders };
        let (mut loss, mut before, mut is_goodbye) = (Loss::none(), Before::default(), false);
        let mut pauses = Pauses::default();
        loop {
            let begun = clock::now();
            let sessions = self.shown.sessions();
            let ended = self.connect(host, &mut minds, &loss, &mut before).await?;
            // What its actions would close was the roamer's, and is closed.
            let _ = minds.manager.handle(manager::Event::Disconnected, clock::now());
            self.queue.hold(true);
            self.desired.lock().await.in_session = false;
            let refusal = ended.refusal(self.key);
            let rival = Rival::of(&ended);
            let has_session = self.shown.sessions() > sessions;
            if has_session {
                let in_use = self.shown.in_use();
                let left = in_use.as_ref().filter(|_| ended.is_goodbye()).map(|it| it.server);
                let (answered, server) = (ended.answered(in_use), before.server());
                loss = Loss { at: clock::now(), server, answered, left };
            }
            if clock::now().duration_since(begun) >= STABLE {
                pauses = Pauses::default();
            }
            let mut pause = pauses.after(&ended, refusal.as_ref());
            let was_goodbye = mem::replace(&mut is_goodbye, ended.is_goodbye());
            let is_sudden = before.lasted() < STABLE && (was_goodbye || !is_goodbye);
            let is_alone = self.servers.all().len() == 1 || rival.is_some();
            if has_session && !is_sudden && !is_alone {
                // The others are not known to be gone.
                pause = None;
            }
            let reason = match (&refusal, rival) {
                (_, Some(rival)) => rival.to_string(),
                (Some(refusal), None) => refusal.in_short(),
                (None, None) => ended.to_string(),
            };
            let refused = pause.is_some() && refusal.as_ref().is_some_and(Refusal::is_proven);
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
                self.sleep_or_change(pause, &mut minds).await;
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
        Minds { manager, course, orders }: &mut Minds<'_>,
    ) {
        let (mut hints, mut config) = (self.roaming.network.hints(), self.config.subscribe());
        let chosen = Notify::new();
        let pause = async {
            tokio::time::sleep(shortest).await;
            tokio::select! {
                () = tokio::time::sleep(longest.saturating_sub(shortest)) => {}
                () = hints.hint() => debug!("a network changed: trying at once"),
                () = chosen.notified() => debug!("a person chose: trying at once"),
                _ = config.changed() => debug!("the configuration changed: trying at once"),
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let answer = self.choose(choice, manager, course).await;
                    if matches!(answer, Reply::Done(_)) {
                        chosen.notify_one();
                    }
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Remembers a person's choice for the connection to come.
    async fn choose(&self, choice: Chosen, manager: &mut Manager, course: &mut Course) -> Reply {
        let (choice, done) = match choice {
            Chosen::Server(name) => {
                let servers = self.servers.all();
                let Some(server) = servers.iter().find(|server| server.name() == name) else {
                    return no_server(&name, &servers);
                };
                course.chosen = Some(server.key());
                return Reply::Done(vec![format!("{name}: dialed first, until it fails")]);
            }
            Chosen::Link(Choice { link, pinned }) => {
                let config = self.config.borrow().clone();
                let mut found = Vec::new();
                for server in &*self.servers.all() {
                    let there = server.find(&server.names.known(), &config.paths).await;
                    found.extend(there.unwrap_or_default());
                }
                let links = || found.iter().map(|(candidate, _)| candidate.link.as_str());
                if !links().any(|other| other == link) {
                    return no_way(&link, links());
                }
                let how = match pinned {
                    true => "dialed alone, whatever happens",
                    false => "dialed first, until it fails",
                };
                let done = format!("{link}: {how}");
                (Some(Choice { link, pinned }), done)
            }
            Chosen::Auto => {
                course.chosen = None;
                (None, "the best path is chosen again".into())
            }
        };
        // Without a connection there is nothing to do about it yet.
        let _ = manager.handle(manager::Event::Choose(choice), clock::now());
        Reply::Done(vec![done])
    }

    fn why_not_connected(&self) -> String {
        let why = self.shown.last_error().unwrap_or_else(|| "still connecting".into());
        format!("not connected ({why}): the links are tried as it is")
    }

    /// Begins a session with one of the servers.
    async fn dial(
        &self,
        Minds { manager, course, orders }: &mut Minds<'_>,
        loss: &Loss,
    ) -> Result<Reached, Ended> {
        let silent = |error: &HandshakeError| {
            let reason = error.to_string();
            self.shown.silent(&reason);
            self.not_connected(&reason);
        };
        let mut changes = self.servers.changes();
        loop {
            let servers = loss.order(&self.servers.all(), course);
            tokio::select! {
                reached = self.reach(
                    servers,
                    manager.dialing(),
                    loss,
                    true,
                    Arc::default(),
                    &silent,
                ) => return reached,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let _ = reply.send(self.choose(choice, manager, course).await);
                }
                Ok(()) = changes.changed() => debug!("the servers changed: trying anew"),
            }
        }
    }

    /// Races these servers for a session. What waits goes with the first packet, if it `hurries`. While a server is asked for
    /// the session, `is_heard` is set.
    ///
    /// Cancel safe.
    pub(super) async fn reach(
        &self,
        servers: Vec<Arc<RemoteServer>>,
        dialing: &Dialing,
        loss: &Loss,
        hurries: bool,
        is_heard: Arc<AtomicBool>,
        silent: &(dyn Fn(&HandshakeError) + Sync),
    ) -> Result<Reached, Ended> {
        let early = Early::take(self, hurries);
        let round = Round {
            servers,
            dialing: dialing.clone(),
            early: early.datagrams(),
            loss: loss.clone(),
            terms: Terms { moves: self.servers.all().len() > 1, ..self.terms },
            is_heard,
            silent,
        };
        let reached = dial(round, self.config.subscribe()).await?;
        if reached.connected.early_arrived {
            early.arrived();
        }
        Ok(reached)
    }

    /// Sessions, one taking the place of the other, from the first attempt to an end that none follows. An error is one of
    /// this machine's.
    async fn connect<'a>(
        &'a self,
        host: &mut impl Setup,
        minds: &mut Minds<'_>,
        loss: &Loss,
        before: &mut Before<'a>,
    ) -> anyhow::Result<Ended> {
        self.shown.connecting();
        // A change during the dialing is news to the roamer.
        let config = self.config.subscribe();
        let dialed = tokio::select! {
            dialed = self.dial(minds, loss) => dialed,
            never = self.look_for_portals(host) => match never {},
            never = before.remains.run() => match never {},
        };
        let mut reached = match dialed {
            Ok(reached) => reached,
            Err(ended) => return Ok(ended),
        };
        loop {
            let session = self.session(host, minds, config.clone(), reached, before);
            match session.await? {
                Left::Ended(ended) => return Ok(ended),
                Left::Moved(moved) => reached = moved.reached,
            }
            // What its actions would close was the roamer's, and is closed.
            let _ = minds.manager.handle(manager::Event::Disconnected, clock::now());
        }
    }

    /// One session, until it ends or another server has the next one. It is kept in mind as the one `before` the next.
    async fn session<'a>(
        &'a self,
        host: &mut impl Setup,
        minds: &mut Minds<'_>,
        config: InForce,
        reached: Reached,
        before: &mut Before<'a>,
    ) -> anyhow::Result<Left> {
        let begun = clock::now();
        let (connected, welcome) = (&reached.connected, reached.welcome.clone());
        let server = reached.server.clone();
        let (connection, candidate) = (connected.connection.clone(), connected.candidate.clone());
        let line = Line::of(&reached);
        let resumed = connected.early_arrived;
        let terms = pump::Terms {
            unchecked: welcome.unchecked,
            repair: welcome.repair,
            copies: welcome.copies,
        };
        let session = Arc::new(pump::Session::new(terms, &server.congestion));
        let mut pumps = Box::pin(self.pump(connection.clone(), session.clone()).fuse());
        // From here on the path is watched: the host may take its time.
        let Self { roaming, shown, servers, queue, counters, .. } = self;
        let datapath = Datapath { queue, counters, session: session.clone() };
        let (signals, heard) = Signals::new();
        let Minds { manager, course, orders } = minds;
        course.begin(server.key());
        shown.serves(server.key());
        let mut roamer = Roamer::new(
            (roaming, shown, servers),
            datapath,
            manager,
            orders,
            (config, signals),
            reached,
        );
        let mut mover = Mover::new(self, server.clone(), course, heard);
        let former = before.former.take().filter(|former| former.server != server.key());
        let (mut is_greeted, is_return) = (false, former.is_some());
        let carry = async {
            if let Err(error) = self.greeted(host, &welcome).await {
                return error.end(&connection);
            }
            is_greeted = true;
            self.begun(line, &candidate, &welcome, resumed, former);
            tokio::select! {
                lost = &mut pumps => Ended::Lost(lost),
                ended = apart(self.follow_host(host)) => ended.end(&connection),
            }
        };
        let left = tokio::select! {
            ended = apart(carry) => Ok(Left::Ended(ended)),
            forgotten = apart(roamer.run()) => {
                forgotten.map(|it| Left::Ended(Ended::Forgotten(it)))
            }
            moved = apart(mover.run()) => Ok(Left::Moved(moved.into())),
            () = self.removed(server.key()) => Ok(Left::Ended(Ended::Removed)),
            never = apart(before.remains.run()) => match never {},
        };
        let mut left = left?;
        if let Left::Ended(Ended::Lost(_) | Ended::Forgotten(_)) = left
            && let Some(moved) = mover.conclude().await
        {
            left = Left::Moved(moved.into());
        }
        drop(mover);
        let reason = left.reason();
        let (now, course) = (clock::now(), &mut *minds.course);
        let lasted = now.duration_since(begun);
        let is_preferred = self.servers.all().first().is_some_and(|it| it.key() == server.key());
        let fails = matches!(reason, MoveReason::Silent | MoveReason::GoesAway | MoveReason::Ended);
        if is_return && is_preferred && fails {
            course.leave(lasted);
        }
        if is_greeted && lasted >= STABLE {
            course.succeed(server.key());
        } else if let Left::Ended(ended) = &left {
            course.fail(server.key(), ended.is_refusal());
        }
        let (underlay, unheard_since) = roamer.end();
        let mut silent_since = now;
        if matches!(reason, MoveReason::Silent | MoveReason::Ended) {
            silent_since = unheard_since.unwrap_or(now);
        }
        if let Left::Moved(_) = &left {
            session.retire();
            let ends = async move {
                let _ = tokio::time::timeout(GRACE, pumps).await;
                connection.close(close::GOODBYE, b"the client moved to another server");
                drop(underlay);
            };
            before.remains.add(ends.boxed());
        }
        let (server, name) = (server.key(), server.name().into());
        before.former = Some(Former { server, name, silent_since, lasted, reason });
        Ok(left)
    }

    /// Tells that a session began, which took the place of the `former` one if that was with another server.
    fn begun(
        &self,
        line: Line,
        candidate: &Candidate,
        welcome: &Welcome,
        resumed: bool,
        former: Option<Former>,
    ) {
        let rtt = line.congestion.shortest_round_trip();
        info!(
            link = candidate.link,
            local = %candidate.source,
            server = %candidate.server,
            rtt = %milliseconds(rtt.unwrap_or_else(|| line.connection.rtt())),
            resumed,
            name = %welcome.name,
            addresses = ?welcome.addresses.iter().map(|net| net.0).collect::<Vec<_>>(),
            "connected"
        );
        let server = line.server.1.clone();
        self.shown.connected(line, candidate);
        if let Some(Former { name, silent_since, reason, .. }) = former {
            let gap = clock::now().saturating_duration_since(silent_since);
            self.shown.moved(name, server, reason, gap);
        }
        self.servers.all().iter().for_each(|server| server.attempts.clear());
    }

    /// Carries packets over a connection until it ends.
    async fn pump(&self, connection: Connection, session: Arc<pump::Session>) -> ConnectionError {
        let deliver = |batch: &mut Vec<Packet>| self.deliver(batch);
        let downlink = pump::downlink(&connection, &self.counters, &session, deliver);
        tokio::select! {
            lost = apart(pump::uplink(&connection, &self.queue, &self.counters, &session)) => lost,
            lost = apart(downlink) => lost,
        }
    }

    /// Waits until the configuration does not have the server with this key any more, and a moment longer: a session with
    /// another one may be on its way.
    async fn removed(&self, key: PublicKey) {
        let mut changes = self.servers.changes();
        let is_gone = |servers: &InOrder| servers.iter().all(|server| server.key() != key);
        if changes.wait_for(is_gone).await.is_err() {
            future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    }

    fn deliver(&self, batch: &mut Vec<Packet>) {
        egress::deliver(batch, &*self.tun, &self.counters, self.inside.load().judge());
    }
}

/// What stays from session to session and decides what is done, and who may have a say.
struct Minds<'a> {
    manager: &'a mut Manager,
    course: &'a mut Course,
    orders: &'a mut mpsc::Receiver<Order>,
}

/// How a session was left.
enum Left {
    Ended(Ended),
    /// There is one with another server.
    Moved(Box<Moved>),
}

impl Left {
    fn reason(&self) -> MoveReason {
        match self {
            Self::Ended(_) => MoveReason::Ended,
            Self::Moved(moved) => moved.why,
        }
    }
}

/// The session before, as far as the next one takes its place.
#[derive(Default)]
struct Before<'a> {
    former: Option<Former>,
    remains: Remains<'a>,
}

/// With which server a session was, and how it was left.
struct Former {
    server: PublicKey,
    name: String,
    /// Since when its server was not heard, or packets wait.
    silent_since: Instant,
    lasted: Duration,
    reason: MoveReason,
}

impl Before<'_> {
    fn server(&self) -> Option<PublicKey> {
        self.former.as_ref().map(|former| former.server)
    }

    fn lasted(&self) -> Duration {
        self.former.as_ref().map_or(Duration::ZERO, |former| former.lasted)
    }
}

/// Connections to servers that were left, whose packets under way still arrive.
#[derive(Default)]
struct Remains<'a>(Vec<BoxFuture<'a, ()>>);

impl<'a> Remains<'a> {
    fn add(&mut self, remains: BoxFuture<'a, ()>) {
        if self.0.len() == MOST_REMAINS {
            drop(self.0.remove(0));
        }
        self.0.push(remains);
    }

    /// Runs for ever, while they end. Cancel safe.
    async fn run(&mut self) -> Infallible {
        future::poll_fn(|cx| {
            self.0.retain_mut(|remains| remains.as_mut().poll(cx).is_pending());
            Poll::Pending
        })
        .await
    }
}

/// Packets that go with the first packet of a handshake. Those that did not arrive are in the queue again.
struct Early<'a> {
    client: &'a Client,
    taken: Option<Taken>,
}

impl<'a> Early<'a> {
    /// Takes what there is, if it `hurries`.
    fn take(client: &'a Client, hurries: bool) -> Self {
        let taken = hurries.then(|| {
            let (taken, dropped) = client.queue.take_early(EARLY);
            client.counters.dropped_by_queue(dropped);
            taken
        });
        Self { client, taken }
    }

    fn datagrams(&self) -> Arc<[Bytes]> {
        self.taken.as_ref().map(Taken::datagrams).unwrap_or_default()
    }

    fn arrived(mut self) {
        let early = self.datagrams();
        let bytes = early.iter().map(|packet| packet.len() as u64).sum();
        self.client.counters.sent.add(early.len() as u64, bytes);
        self.taken = None;
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.client.queue.put_back(taken);
        }
    }
}

#[cfg(test)]
mod tests;
