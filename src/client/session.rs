//! One session: its packets, path and host, until it ends or another server has the next one.

use std::{
    convert::Infallible,
    future,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use quinn::{Connection, ConnectionError};
use tracing::info;

use super::{
    Client,
    connect::{Minds, STABLE},
    course::Course,
    ended::Ended,
    greeting::Reached,
    home::Home,
    moving::{Moved, Mover},
    reload::InForce,
    roam::{Datapath, Roamer},
    servers::InOrder,
    signs::Signals,
    view::{Line, milliseconds},
};
use crate::{
    clock,
    daemon::status::MoveReason,
    host::Setup,
    identity::PublicKey,
    link::candidate::Candidate,
    path::manager,
    quic::close,
    task::apart,
    tunnel::{egress, pump},
    wire::{message::Welcome, packet::Packet},
};

/// How long the old connection goes on after a move to another server: longer than a packet is under way, and longer than
/// the network behind the servers takes to send packets to the new one.
const GRACE: Duration = Duration::from_secs(3);
/// Connections that go on so at the same time.
const MOST_REMAINS: usize = 2;

impl Client {
    /// One session, until it ends or another server has the next one. It is kept in mind as the one `before` the next.
    pub(super) async fn session<'a>(
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
        let (home, aside) = Home::new();
        let Minds { manager, course, orders } = minds;
        course.begin(server.key());
        shown.serves(server.key());
        let mut roamer = Roamer::new(
            (roaming, shown, servers),
            datapath,
            manager,
            orders,
            (config, signals),
            home,
            reached,
        );
        let mut mover = Mover::new(self, server.clone(), course, heard);
        let former = before.former.take().filter(|former| former.server != server.key());
        let (mut is_greeted, is_return) = (false, former.is_some());
        let carry = async {
            if let Err(error) = self.greeted(host, server.key(), &welcome).await {
                return error.end(&connection);
            }
            is_greeted = true;
            self.begun(line, &candidate, &welcome, resumed, former);
            tokio::select! {
                lost = &mut pumps => Ended::Lost(lost),
                ended = apart(self.follow_host(host, aside)) => ended.end(&connection),
            }
        };
        let left = tokio::select! {
            ended = apart(carry) => Ok(Left::Ended(ended)),
            forgotten = apart(roamer.run()) => {
                forgotten.map(|it| Left::Ended(Ended::Forgotten(it)))
            }
            moved = apart(mover.run()) => Ok(Left::Moved(moved.into())),
            () = self.until_paused() => Ok(Left::Ended(Ended::Paused)),
            () = self.removed(server.key()) => Ok(Left::Ended(Ended::Removed)),
            never = apart(before.remains.run()) => match never {},
        };
        self.shown.home(None);
        self.end_session(host).await;
        let mut left = left?;
        let is_lost = left.is_lost();
        if let Left::Ended(Ended::Lost(_) | Ended::Forgotten(_)) = left
            && let Some(moved) = mover.conclude().await
        {
            left = Left::Moved(moved.into());
        }
        drop(mover);
        let reason = left.reason();
        let now = clock::now();
        let lasted = now.duration_since(begun);
        let is_preferred = self.servers.all().first().is_some_and(|it| it.key() == server.key());
        let known = [is_return && is_preferred, is_greeted];
        learn(minds.course, server.key(), &left, lasted, known);
        let (underlay, unheard_since) = roamer.end();
        // What its actions would close was the roamer's, and is closed.
        let _ = minds.manager.handle(manager::Event::Disconnected, clock::now());
        let mut silent_since = now;
        if matches!(reason, MoveReason::Silent | MoveReason::Ended) {
            silent_since = unheard_since.unwrap_or(now);
        }
        if matches!(left, Left::Ended(Ended::Paused)) {
            self.part(b"the client pauses").await;
            // The next session takes the place of none.
            return Ok(left);
        }
        if is_lost {
            session.give_back(&connection, &self.queue, &self.counters);
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

/// What a session that `lasted` says of its server: whether the return to it was worth it, and whether it works.
fn learn(
    course: &mut Course,
    server: PublicKey,
    left: &Left,
    lasted: Duration,
    [is_return, is_greeted]: [bool; 2],
) {
    let is_paused = matches!(left, Left::Ended(Ended::Paused));
    let reason = left.reason();
    let fails = matches!(reason, MoveReason::Silent | MoveReason::GoesAway | MoveReason::Ended);
    if is_return && fails && !is_paused {
        course.leave(lasted);
    }
    if is_greeted && lasted >= STABLE {
        course.succeed(server);
    } else if let Left::Ended(ended) = left
        && !is_paused
    {
        course.fail(server, ended.is_refusal());
    }
}

/// How a session was left.
pub(super) enum Left {
    Ended(Ended),
    /// There is one with another server.
    Moved(Box<Moved>),
}

impl Left {
    /// Whether the server is gone without a word. One that closes a connection has what was sent over it.
    fn is_lost(&self) -> bool {
        match self {
            Self::Ended(Ended::Lost(error)) => {
                matches!(error, ConnectionError::TimedOut | ConnectionError::Reset)
            }
            Self::Ended(ended) => matches!(ended, Ended::Forgotten(_)),
            Self::Moved(moved) => moved.why == MoveReason::Silent,
        }
    }

    fn reason(&self) -> MoveReason {
        match self {
            Self::Ended(_) => MoveReason::Ended,
            Self::Moved(moved) => moved.why,
        }
    }
}

/// The session before, as far as the next one takes its place.
#[derive(Default)]
pub(super) struct Before<'a> {
    former: Option<Former>,
    pub(super) remains: Remains<'a>,
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
    pub(super) fn server(&self) -> Option<PublicKey> {
        self.former.as_ref().map(|former| former.server)
    }

    /// The next session does not take its place.
    pub(super) fn forget(&mut self) {
        self.former = None;
    }

    pub(super) fn lasted(&self) -> Duration {
        self.former.as_ref().map_or(Duration::ZERO, |former| former.lasted)
    }
}

/// Connections to servers that were left, whose packets under way still arrive.
#[derive(Default)]
pub(super) struct Remains<'a>(Vec<BoxFuture<'a, ()>>);

impl<'a> Remains<'a> {
    fn add(&mut self, remains: BoxFuture<'a, ()>) {
        if self.0.len() == MOST_REMAINS {
            drop(self.0.remove(0));
        }
        self.0.push(remains);
    }

    /// Runs for ever, while they end. Cancel safe.
    pub(super) async fn run(&mut self) -> Infallible {
        future::poll_fn(|cx| {
            self.0.retain_mut(|remains| remains.as_mut().poll(cx).is_pending());
            Poll::Pending
        })
        .await
    }
}
