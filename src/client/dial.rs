//! Reaching a server: all addresses of each, over every link with a route to them, raced.
//!
//! The search for one server starts a moment after that for the one before it, and at once when that is over. Its attempts
//! start a moment apart, best link first (RFC 8305 §5), and each starts further handshakes at a
//! steady pace; one over TCP starts a moment after that over UDP on the same link. The first handshake to complete asks for a session, while the race goes on:
//!
//! ```text
//!  attempts ──complete──▶ runner-up ──no greeting is due──▶ Greeting ──welcome──▶ Reached
//!                         (the last)                           │
//!                             ▲                                ▼
//!                             └── takes over ── overtaken, overdue, or forgotten by the server
//! ```
//! A handshake that is complete proves that its path worked half a round trip ago. The path may be dead by
//! now, and the connection could not even leave it: a client must not migrate before the server has its
//! last flight (RFC 9000 §9), and a server drops what comes from elsewhere until then. So a path that died
//! is left here by another handshake, and only from the welcome on by migration.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future, mem,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quinn::ConnectionError;
use tokio::{sync::mpsc, task::JoinSet, time};
use tracing::debug;

use super::{
    attempts::Attempts,
    chance::fraction,
    ended::Ended,
    greeting::{Greeting, Reached, Terms},
    moving::Course,
    pace::pace,
    reload::InForce,
    servers::RemoteServer,
};
use crate::{
    clock,
    identity::PublicKey,
    link::candidate::{Candidate, Transport},
    path::{
        handshake::{Attempt, Connected, HandshakeError},
        manager::{Dialing, HEAD_START},
        network::NetworkError,
        servers::ResolveError,
    },
    quic::{HANDSHAKE_TIMEOUT, close, session::SessionError},
};

/// From one attempt to the next ("Connection Attempt Delay", RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// From the first attempt at one server to the first at the next. One that is reached within a common round trip of a mobile
/// network has answered by then.
const SERVER_STAGGER: Duration = Duration::from_millis(300);
/// From one look at links and routes to the next, at least.
const SETTLE: Duration = Duration::from_millis(20);
/// Handshakes that are complete and wait to be looked at.
const COMPLETE: usize = 4;
/// Attempts over UDP in one round.
const MAX_ATTEMPTS: usize = 16;
/// The same over TCP, to the server and by each detour.
const MAX_OVER_TCP: usize = 4;
/// A server that can be reached has answered by then, even over a slow link that loses a packet or two.
const SILENCE: Duration = Duration::from_secs(2);
/// Attempts that begin further handshakes at the full pace. With more of them each one is slower, so that an answer
/// with many addresses makes us no louder towards those who own them.
const CROWD: usize = 4;
/// How long the further handshakes of an attempt may take. The first one may take longer, should the
/// network be that slow.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(3);
/// Why a round of attempts reached no server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Every handshake failed; the most telling failure.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// No address is known.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No link has a route to the server.
    #[error("no network link has a route to {}", list(.0))]
    NoRoute(Vec<SocketAddr>),
    /// The link that a person pinned has no route to the server.
    #[error("{link} has no route to {}, and is pinned; roamd switch --auto ends that", list(.servers))]
    Pinned { link: String, servers: Vec<SocketAddr> },
    /// The kernel cannot be asked for links and routes.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// How the last connection was lost.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) at: Instant,
    /// The server.
    pub(super) server: Option<PublicKey>,
    /// The path over which the server answered that it does not know the connection: it is tried first.
    pub(super) answered: Option<Candidate>,
    /// The address at which the server said goodbye: it is tried last.
    pub(super) left: Option<SocketAddr>,
}

impl Loss {
    /// Nothing was lost.
    pub(super) fn none() -> Self {
        Self { at: clock::now(), server: None, answered: None, left: None }
    }

    /// The same as one server is concerned.
    fn of(&self, server: &RemoteServer) -> Self {
        let is_it = self.server == Some(server.key());
        let (answered, left) = (self.answered.clone(), self.left);
        Self { answered: answered.filter(|_| is_it), left: left.filter(|_| is_it), ..*self }
    }

    /// Sorts servers into the order in which to try them: one that answered that it does not know the connection first, then
    /// the chosen one, and those last that said goodbye, will stop, or were of no use lately.
    pub(super) fn order(
        &self,
        servers: &[Arc<RemoteServer>],
        course: &Course,
    ) -> Vec<Arc<RemoteServer>> {
        let mut servers = servers.to_vec();
        servers.sort_by_key(|server| {
            let (Self { answered, left, .. }, key) = (self.of(server), server.key());
            let is_last = left.is_some() || course.is_last(key);
            (answered.is_none(), is_last, Some(key) != course.chosen)
        });
        servers
    }
}

/// What is dialed, and how.
pub(super) struct Round<'a> {
    /// The servers, the one that is tried first before the others.
    pub(super) servers: Vec<Arc<RemoteServer>>,
    pub(super) dialing: Dialing,
    /// Packets that go with the first packet of each attempt at the first server, where it lets that be: at another one they
    /// could arrive a second time.
    pub(super) early: Arc<[Bytes]>,
    pub(super) loss: Loss,
    pub(super) terms: Terms,
    /// Is set while a server is asked for a session.
    pub(super) is_heard: Arc<AtomicBool>,
    /// Hears that no server answers, which takes longer than it should.
    pub(super) silent: &'a (dyn Fn(&HandshakeError) + Sync),
}

/// Connects: races the servers, all addresses of each of them over all links, for a session.
///
/// Cancel safe: what it opened is closed.
pub(super) async fn dial(round: Round<'_>, config: InForce) -> Result<Reached, Ended> {
    Race::new(&round, config).run().await
}

/// One round: the searches for all servers, and the one greeting at a time.
struct Race<'a> {
    round: &'a Round<'a>,
    config: InForce,
    /// The servers whose search is to start, by their places in the round.
    waiting: VecDeque<usize>,
    searches: Vec<(usize, BoxFuture<'a, Ended>)>,
    /// Why each server is out of the race.
    ends: Vec<Option<Ended>>,
    /// Why a server no longer knew a connection that it should greet.
    forgotten: Vec<Option<SessionError>>,
    crowd: Crowd,
    complete: mpsc::Sender<(usize, Connected)>,
    completed: mpsc::Receiver<(usize, Connected)>,
    runner_up: Option<(usize, Connected)>,
    greeting: Option<Greeting>,
    /// The number of greetings so far.
    greetings: u32,
    /// When the next search may start.
    next: Instant,
}

impl<'a> Race<'a> {
    fn new(round: &'a Round<'a>, config: InForce) -> Self {
        let (complete, completed) = mpsc::channel(COMPLETE);
        let count = round.servers.len();
        Self {
            round,
            config,
            waiting: (0..count).collect(),
            searches: Vec::new(),
            ends: (0..count).map(|_| None).collect(),
            forgotten: (0..count).map(|_| None).collect(),
            crowd: Crowd::default(),
            complete,
            completed,
            runner_up: None,
            greeting: None,
            greetings: 0,
            next: clock::now(),
        }
    }

    /// Runs until a session begins or none can.
    async fn run(mut self) -> Result<Reached, Ended> {
        loop {
            self.greet();
            if self.is_over() {
                return Err(self.lost());
            }
            let due = self.greeting.as_ref().map(Greeting::due);
            let is_last = self.searches.is_empty() && self.waiting.is_empty();
            tokio::select! {
                // It may be overdue, and the freshest handshake is the one whose path most likely works.
                Some((server, connected)) = self.completed.recv() => {
                    self.complete(server, connected);
                }
                (server, ended) = Greeting::end(&mut self.greeting) => match self.judge(&server, ended) {
                    Some(reached) => return Ok(reached),
                    None => self.next = clock::now(),
                },
                () = clock::sleep_until(due), if self.runner_up.is_some() => {}
                () = clock::sleep_until(due), if is_last && due.is_some() => return Err(self.lost()),
                (server, ended) = first_to_end(&mut self.searches) => {
                    self.ends[server] = Some(ended);
                    self.next = clock::now();
                }
                () = clock::sleep_until(Some(self.next)), if !self.waiting.is_empty() => self.start(),
            }
        }
    }

    /// A handshake is complete. One with the server that is asked already does not take the place of another server's.
    fn complete(&mut self, server: usize, connected: Connected) {
        let asked = self.greeting.as_ref().map(|it| it.server().key());
        let is_asked = |place: usize| asked == Some(self.round.servers[place].key());
        let is_behind = self.runner_up.as_ref().is_some_and(|(other, _)| !is_asked(*other));
        if self.ends[server].is_none() && !(is_behind && is_asked(server)) {
            self.runner_up = Some((server, connected));
        }
    }

    /// Starts the search for the next server.
    fn start(&mut self) {
        let Some(place) = self.waiting.pop_front() else { return };
        self.next = clock::now() + SERVER_STAGGER;
        let found = Found { place, complete: self.complete.clone(), crowd: self.crowd.clone() };
        let search = Search::new(self.round, found, self.config.clone());
        self.searches.push((place, Box::pin(search.run())));
    }

    /// Lets the runner-up ask for a session, if no greeting is due.
    fn greet(&mut self) {
        let Self { runner_up, greeting, round, .. } = self;
        let takes_over = |(server, connected): &mut (usize, Connected)| {
            let server = &round.servers[*server];
            greeting.as_ref().is_none_or(|before| before.gives_way_to(server, connected))
        };
        if let Some((server, connected)) = runner_up.take_if(takes_over) {
            let server = round.servers[server].clone();
            *greeting = Some(Greeting::begin(server, connected, round.terms, self.greetings));
            self.greetings += 1;
        }
        self.round.is_heard.store(self.greeting.is_some(), Relaxed);
    }

    /// The session of a greeting that ended, if it has one. A server that no longer knows the connection may know the next; one
    /// that refuses is out of the race.
    fn judge(&mut self, server: &RemoteServer, ended: Result<Reached, Ended>) -> Option<Reached> {
        let mut servers = self.round.servers.iter();
        let place = servers.position(|it| it.key() == server.key())?;
        match ended {
            Ok(mut reached) => {
                // With another server than the first one nothing was sent early.
                reached.connected.early_arrived &= place == 0;
                return Some(reached);
            }
            Err(Ended::Session(lost)) if is_forgotten(&lost) => {
                debug!(reason = %lost, "no greeting");
                self.forgotten[place] = Some(lost);
            }
            Err(ended) => {
                self.searches.retain(|(other, _)| *other != place);
                self.ends[place] = Some(ended);
                self.runner_up.take_if(|(other, _)| *other == place);
            }
        }
        None
    }

    fn is_over(&self) -> bool {
        let none_is_tried = self.searches.is_empty() && self.waiting.is_empty();
        none_is_tried
            && self.greeting.is_none()
            && self.runner_up.is_none()
            && self.completed.is_empty()
    }

    /// Why there is no session when the race is over: the first server that did not refuse tells, as it is the one that may be
    /// back soonest.
    fn lost(self) -> Ended {
        let asked = self.greeting.map(|it| it.server().key());
        let mut ends: Vec<_> = self
            .round
            .servers
            .iter()
            .zip(self.forgotten.into_iter().zip(self.ends))
            .filter_map(|(server, (forgotten, ended))| match forgotten {
                Some(lost) => Some(Ended::Session(lost)),
                None if asked == Some(server.key()) => Some(Ended::NoGreeting),
                None => ended,
            })
            .collect();
        let told = ends.iter().position(|ended| !ended.is_refusal()).unwrap_or_default();
        if told < ends.len() { ends.swap_remove(told) } else { Ended::NoGreeting }
    }
}

/// The first search that ends; without one it waits for ever. Cancel safe.
async fn first_to_end(searches: &mut Vec<(usize, BoxFuture<'_, Ended>)>) -> (usize, Ended) {
    future::poll_fn(|cx| {
        for at in 0..searches.len() {
            let (place, search) = &mut searches[at];
            if let Poll::Ready(ended) = search.as_mut().poll(cx) {
                let place = *place;
                drop(searches.remove(at));
                return Poll::Ready((place, ended));
            }
        }
        Poll::Pending
    })
    .await
}

/// Where a search tells what it finds.
struct Found {
    /// The server's place in the round.
    place: usize,
    complete: mpsc::Sender<(usize, Connected)>,
    crowd: Crowd,
}

/// The attempts to reach one server in one round.
struct Search<'a> {
    round: &'a Round<'a>,
    server: Arc<RemoteServer>,
    config: InForce,
    found: Found,
    early: Arc<[Bytes]>,
    /// How the last connection was lost.
    loss: Loss,
    /// When the connection was lost, or a network changed after that.
    since: Instant,
    servers: Vec<SocketAddr>,
    /// Candidates whose attempts have not started.
    waiting: VecDeque<Candidate>,
    /// The same over TCP.
    over_tcp: Vec<Candidate>,
    /// When those over TCP start whose turn has come, the first one first.
    due: VecDeque<(Instant, Candidate)>,
    /// The candidates that wait, and those whose attempts have not failed.
    tried: HashSet<Candidate>,
    attempts: JoinSet<(Candidate, HandshakeError)>,
    /// The most telling failure of an attempt.
    failure: Option<HandshakeError>,
    /// When the next attempt may start.
    next: Instant,
    /// When a server that has not answered is called silent.
    silence: Instant,
    /// It was called silent.
    is_told: bool,
}

impl<'a> Search<'a> {
    fn new(round: &'a Round<'a>, found: Found, config: InForce) -> Self {
        let server = round.servers[found.place].clone();
        let (loss, now) = (round.loss.of(&server), clock::now());
        let is_first = found.place == 0;
        Self {
            servers: server.names.known(),
            early: if is_first { round.early.clone() } else { Arc::default() },
            since: loss.at,
            loss,
            round,
            server,
            config,
            found,
            waiting: VecDeque::new(),
            over_tcp: Vec::new(),
            due: VecDeque::new(),
            tried: HashSet::new(),
            attempts: JoinSet::new(),
            failure: None,
            next: now,
            silence: now + SILENCE,
            is_told: !is_first,
        }
    }

    /// Runs until the server cannot be reached.
    async fn run(mut self) -> Ended {
        match self.search().await {
            Ok(()) => self.failed(),
            Err(error) => error.into(),
        }
    }

    async fn search(&mut self) -> Result<(), DialError> {
        let server = self.server.clone();
        let RemoteServer { names, detours, network, peer, .. } = &*server;
        let mut hints = network.hints();
        let resolving = server.resolve();
        tokio::pin!(resolving);
        let mut unresolved = true;
        // A name may take the resolver seconds while the other ones are known.
        let (mut moved, mut renamed) = (detours.changes(), names.changes());
        renamed.mark_unchanged();
        if self.servers.is_empty() && detours.known(peer).is_empty() {
            // A proxy knows the server's name, where the resolver does not.
            tokio::select! {
                found = &mut resolving => {
                    unresolved = false;
                    match found {
                        Ok(found) => self.servers = found,
                        Err(error) if detours.known(peer).is_empty() => return Err(error.into()),
                        Err(error) => debug!(%error, "by detours only"),
                    }
                }
                Ok(()) = moved.changed() => {}
                Ok(()) = renamed.changed() => self.servers = names.known(),
            }
        }
        self.find().await?;
        // The time that the resolver took does not count.
        let end = clock::now() + HANDSHAKE_TIMEOUT;
        self.silence = clock::now() + SILENCE;
        while unresolved || !self.is_over() {
            tokio::select! {
                Some(ended) = self.attempts.join_next() => match ended {
                    Ok((candidate, error)) => self.fail(&candidate, error),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
                found = &mut resolving, if unresolved => {
                    unresolved = false;
                    if let Ok(found) = found {
                        self.servers = found;
                    }
                    self.find().await?;
                }
                () = clock::sleep_until(Some(end)), if !self.attempts.is_empty() => return Ok(()),
                () = clock::sleep_until(Some(self.silence)), if self.is_waiting_for_an_answer() => self.tell(),
                Ok(()) = moved.changed() => self.find().await?,
                Ok(()) = renamed.changed() => {
                    self.servers = names.known();
                    self.find().await?;
                }
                () = hints.hint() => {
                    self.find().await?;
                    self.since = clock::now();
                    time::sleep(SETTLE).await;
                }
                () = clock::sleep_until(Some(self.next)), if !self.waiting.is_empty() => self.start(),
                () = clock::sleep_until(self.due.front().map(|(at, _)| *at)) => {
                    if let Some((_, candidate)) = self.due.pop_front() {
                        self.attempt(candidate, clock::now());
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds candidates that are not tried yet.
    async fn find(&mut self) -> Result<(), DialError> {
        let config = self.config.borrow().clone();
        let found = self.server.find(&self.servers, &config.paths).await?;
        let found = self.round.dialing.order(found, clock::now());
        self.server.attempts.retain(|candidate| found.contains(candidate));
        let is_behind =
            |it: &Candidate| it.transport.is_stream() && Some(it) != self.loss.answered.as_ref();
        let (over_tcp, found): (Vec<_>, Vec<_>) = found.into_iter().partition(is_behind);
        let room = |most: usize, transport| {
            most.saturating_sub(self.tried.iter().filter(|it| it.transport == transport).count())
        };
        let rooms = Transport::ALL.map(|it| (it, room(MAX_OVER_TCP, it)));
        let room = room(MAX_ATTEMPTS, Transport::Udp);
        let turns = in_turn(found.into_iter(), &self.loss);
        self.waiting.extend(turns.filter(|it| self.tried.insert(it.clone())).take(room));
        let turns: Vec<_> = in_turn(one_of_each_family(over_tcp), &self.loss).collect();
        let mut new = Vec::new();
        for (transport, room) in rooms {
            let turns = turns.iter().filter(|it| it.transport == transport);
            new.extend(turns.filter(|it| self.tried.insert((*it).clone())).take(room).cloned());
        }
        let (later, soon): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|it| self.waiting.iter().any(|udp| are_twins(udp, it)));
        self.over_tcp.extend(later);
        let now = clock::now();
        self.due.extend(soon.into_iter().map(|it| (now + head_start(&it), it)));
        self.due.make_contiguous().sort_by_key(|(at, _)| *at);
        Ok(())
    }

    /// Starts the next attempt.
    fn start(&mut self) {
        let Some(candidate) = self.waiting.pop_front() else { return };
        let now = clock::now();
        self.next = now + STAGGER;
        let twins = self.over_tcp.extract_if(.., |it| are_twins(&candidate, it));
        self.due.extend(twins.map(|it| (now + head_start(&it), it)));
        self.due.make_contiguous().sort_by_key(|(at, _)| *at);
        self.attempt(candidate, now);
    }

    fn attempt(&mut self, candidate: Candidate, now: Instant) {
        let RemoteServer { tunnel, network, attempts, .. } = &*self.server;
        attempts.begin(&candidate, now);
        let attempt = Attempt::new(tunnel.clone(), network.clone(), candidate);
        let Found { place, complete, crowd, .. } = &self.found;
        let (early, since) = (self.early.clone(), self.since);
        let complete = (*place, complete.clone());
        let attempts = attempts.clone();
        self.attempts.spawn(pursue(attempt, early, since, complete, crowd.clone(), attempts));
    }

    /// An attempt failed such that all further ones over its candidate would.
    fn fail(&mut self, candidate: &Candidate, error: HandshakeError) {
        debug!(%error, "attempt failed");
        self.server.attempts.fail(candidate, error.to_string());
        self.tried.remove(candidate);
        self.failure = Some(more_telling(self.failure.take(), error));
        self.next = clock::now();
        let twin = self.due.iter().position(|(_, it)| are_twins(candidate, it));
        if let Some((_, twin)) = twin.and_then(|place| self.due.remove(place)) {
            self.due.push_front((self.next, twin));
        }
    }

    /// Tells that the server is silent, unless one answered.
    fn tell(&mut self) {
        if self.round.is_heard.load(Relaxed) {
            self.silence = clock::now() + SILENCE;
            return;
        }
        self.is_told = true;
        (self.round.silent)(self.failure.as_ref().unwrap_or(&no_answer(&self.tried)));
    }

    fn is_over(&self) -> bool {
        self.attempts.is_empty() && self.waiting.is_empty() && self.due.is_empty()
    }

    fn is_waiting_for_an_answer(&self) -> bool {
        !self.is_told && !self.attempts.is_empty()
    }

    /// Why the search is over.
    fn failed(self) -> Ended {
        if !self.attempts.is_empty() {
            let failure = self.failure.unwrap_or_else(|| no_answer(&self.tried));
            return DialError::from(failure).into();
        }
        match self.failure {
            Some(failure) => DialError::Handshake(failure).into(),
            None => {
                let detours = self.server.detours.known(&self.server.peer);
                let detours = detours.into_iter().map(|(_, at)| at);
                no_route(&self.round.dialing, self.servers.into_iter().chain(detours).collect())
                    .into()
            }
        }
    }
}

/// Each link in turn, the best first: a link over which nobody answers must not use up the attempts of the others.
/// Where the server answered last goes before all of them, and where it said goodbye behind.
fn in_turn(
    found: impl Iterator<Item = Candidate>,
    Loss { answered, left, .. }: &Loss,
) -> impl Iterator<Item = Candidate> {
    let mut before = HashMap::<_, usize>::new();
    let mut numbered: Vec<_> = found
        .map(|candidate| {
            let turn = before.entry(candidate.index).or_default();
            *turn += 1;
            (*turn, candidate)
        })
        .collect();
    numbered.sort_by_key(|(turn, candidate)| {
        (Some(candidate) != answered.as_ref(), Some(candidate.server) == *left, *turn)
    });
    numbered.into_iter().map(|(_, candidate)| candidate)
}

/// How long a candidate waits for those that go before it.
fn head_start(candidate: &Candidate) -> Duration {
    if candidate.transport.is_detour() { 2 * HEAD_START } else { HEAD_START }
}

/// Whether two candidates differ in nothing but transport and port.
fn are_twins(one: &Candidate, other: &Candidate) -> bool {
    let way = |it: &Candidate| (it.index, it.source, it.server.ip());
    one.transport != other.transport && way(one) == way(other)
}

/// The first candidate of each link and family to the server's TCP port, and all by detours.
fn one_of_each_family(found: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    let mut seen = HashSet::new();
    found
        .into_iter()
        .filter(move |it| it.transport.is_detour() || seen.insert((it.index, it.server.is_ipv6())))
}

fn no_route(dialing: &Dialing, servers: Vec<SocketAddr>) -> DialError {
    match dialing.pinned() {
        Some(link) => DialError::Pinned { link: link.into(), servers },
        None => DialError::NoRoute(servers),
    }
}

/// How many attempts are under way: each holds a weak reference.
#[derive(Clone, Default)]
struct Crowd(Arc<()>);

impl Crowd {
    /// How much slower each of them has to be.
    fn slowness(&self) -> u32 {
        let attempts = Arc::weak_count(&self.0);
        attempts.div_ceil(CROWD).max(1) as u32
    }
}

/// What there is to say of attempts that all wait.
fn no_answer(tried: &HashSet<Candidate>) -> HandshakeError {
    let listed = |tell: fn(&Candidate) -> String| {
        let mut listed: Vec<_> = tried.iter().map(tell).collect();
        listed.sort();
        listed.dedup();
        listed.join(" or ")
    };
    HandshakeError::TimedOut {
        server: listed(|candidate| candidate.server.to_string()),
        link: listed(|candidate| candidate.link.clone()),
    }
}

/// Handshakes over one candidate for as long as the race goes on, or until one fails such that all will.
async fn pursue(
    mut attempt: Attempt,
    early: Arc<[Bytes]>,
    mut since: Instant,
    (place, complete): (usize, mpsc::Sender<(usize, Connected)>),
    crowd: Crowd,
    attempts: Arc<Attempts>,
) -> (Candidate, HandshakeError) {
    let _one_of_them = Arc::downgrade(&crowd.0);
    attempt.start(HANDSHAKE_TIMEOUT, Some(early));
    let pause = |since, attempt: &Attempt| {
        let outage = clock::now().saturating_duration_since(since);
        pace(outage, attempt.is_put_off(), fraction()) * crowd.slowness()
    };
    let mut next = clock::now() + pause(since, &attempt);
    let mut has_answered = false;
    loop {
        tokio::select! {
            ended = attempt.next() => match ended {
                Ok(connected) => {
                    if !mem::replace(&mut has_answered, true) {
                        // The outage is over, but the greeting may be lost.
                        since = clock::now();
                        next = next.min(since + pause(since, &attempt));
                    }
                    // The race ends before its finish is gone.
                    let _ = complete.send((place, connected)).await;
                }
                Err(error) if error.is_of_one_handshake() => {
                    debug!(%error, "handshake failed");
                    if matches!(error, HandshakeError::NotConnected { .. }) {
                        attempts.fail(attempt.candidate(), error.to_string());
                    }
                }
                Err(error) => return (attempt.candidate().clone(), error),
            },
            () = time::sleep_until(next.into()) => {
                attempt.start(FURTHER_TIMEOUT, None);
                next = clock::now() + pause(since, &attempt);
            }
        }
    }
}

/// Whether a session did not begin because the server stopped, or was another one before. A handshake that is
/// under way may find the next one.
fn is_forgotten(error: &SessionError) -> bool {
    match error {
        SessionError::Connection(ConnectionError::ApplicationClosed(closed)) => {
            closed.error_code == close::GOODBYE
        }
        SessionError::Connection(error) => {
            matches!(error, ConnectionError::Reset | ConnectionError::TimedOut)
        }
        _ => false,
    }
}

/// A server that answered wrongly tells more than one that did not answer.
fn more_telling(before: Option<HandshakeError>, error: HandshakeError) -> HandshakeError {
    match before {
        None => error,
        Some(HandshakeError::Unreachable { .. }) => error,
        Some(before) if before.is_of_one_handshake() => error,
        Some(before) => before,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        client::tests::{FakeNetwork, client, config},
        config::{ClientConfig, Preference},
        path::manager::{self, Choice, Manager, Settings},
    };

    fn candidate(link: u32, server: u8) -> Candidate {
        let (source, server) = ([10, 0, 0, 1].into(), ([192, 0, 2, server], 4433).into());
        Candidate {
            link: format!("eth{link}"),
            index: link,
            source,
            metric: 0,
            server,
            transport: Transport::Udp,
        }
    }

    fn loss(answered: Option<Candidate>, left: Option<SocketAddr>) -> Loss {
        Loss { at: clock::now(), server: None, answered, left }
    }

    #[test]
    fn every_link_is_tried_with_any_number_of_addresses() {
        let all = (1..=3).flat_map(|link| (0..9).map(move |server| candidate(link, server)));
        let first: Vec<_> = in_turn(all, &loss(None, None)).take(MAX_ATTEMPTS).collect();
        assert_eq!(first[..3], [candidate(1, 0), candidate(2, 0), candidate(3, 0)]);
        for link in 1..=3 {
            assert!(first.iter().filter(|it| it.index == link).count() >= 5, "{first:?}");
        }
    }

    #[test]
    fn the_candidate_over_which_the_server_answered_last_is_the_first() {
        let all = [candidate(1, 0), candidate(1, 1), candidate(2, 0)];
        let order =
            |answered| in_turn(all.clone().into_iter(), &loss(answered, None)).collect::<Vec<_>>();
        assert_eq!(order(None), [candidate(1, 0), candidate(2, 0), candidate(1, 1)]);
        let answered = candidate(1, 1);
        let expected = [answered.clone(), candidate(1, 0), candidate(2, 0)];
        assert_eq!(order(Some(answered)), expected);
        assert_eq!(order(Some(candidate(3, 0))), order(None), "it is gone");
    }

    #[test]
    fn the_address_at_which_the_server_said_goodbye_is_the_last() {
        let all = [candidate(1, 0), candidate(2, 0), candidate(1, 1), candidate(2, 1)];
        let left = Some(candidate(1, 0).server);
        let order: Vec<_> = in_turn(all.clone().into_iter(), &loss(None, left)).collect();
        let [first, second, third, fourth] = all;
        assert_eq!(order, [third, fourth, first, second]);
    }

    #[test]
    fn many_parallel_attempts_send_no_more_than_a_few() {
        let crowd = Crowd::default();
        let _searches = [crowd.clone(), crowd.clone()];
        let attempt = Arc::downgrade(&crowd.0);
        let mut attempts = vec![attempt; CROWD];
        assert_eq!(crowd.slowness(), 1);
        attempts.resize(MAX_ATTEMPTS, Arc::downgrade(&crowd.0));
        assert_eq!(crowd.slowness() as usize, MAX_ATTEMPTS / CROWD);
        attempts.clear();
        assert_eq!(crowd.slowness(), 1);
    }

    /// How a round ends; the milliseconds that it lasts, and those until the server is called silent.
    struct Ran {
        ended: String,
        lasted: u128,
        silent: Vec<(u128, String)>,
    }

    /// A round over links on which nobody answers, with this configuration and choice.
    async fn round(
        network: &Arc<FakeNetwork>,
        config: ClientConfig,
        choice: Option<Choice>,
        answered: Option<Candidate>,
    ) -> Ran {
        let mut manager = Manager::new(Settings::new(&config.paths));
        let _ = manager.handle(manager::Event::Choose(choice), clock::now());
        let client = client(config, network.clone());
        let begun = clock::now();
        let since = || (clock::now() - begun).as_millis();
        let silent = Mutex::new(Vec::new());
        let tell = |error: &HandshakeError| {
            silent.lock().unwrap().push((since(), error.to_string()));
        };
        let servers = client.servers.all();
        let server = Some(servers[0].key());
        let round = Round {
            servers: servers.to_vec(),
            dialing: manager.dialing().clone(),
            early: Arc::default(),
            loss: Loss { at: begun, server, answered, left: None },
            terms: client.terms,
            is_heard: Arc::default(),
            silent: &tell,
        };
        let dialed = dial(round, client.config.subscribe()).await;
        let ended = dialed.err().expect("nobody answers").to_string();
        Ran { ended, lasted: since(), silent: silent.into_inner().unwrap() }
    }

    /// The first attempts over each link, and when they began.
    fn firsts(network: &FakeNetwork, begun: Instant) -> Vec<(String, u128)> {
        let mut seen = HashSet::new();
        let mut bound = network.bound_since(begun);
        bound.retain(|(link, _)| seen.insert(link.clone()));
        bound
    }

    fn at(firsts: &[(&str, u128)]) -> Vec<(String, u128)> {
        firsts.iter().map(|(link, at)| ((*link).into(), *at)).collect()
    }

    fn pinned(link: &str) -> Option<Choice> {
        Some(Choice { link: link.into(), pinned: true })
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_begin_a_moment_apart_in_the_managers_order() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0", "wwan0"]), clock::now());
        let mut config = config();
        config.paths.prefer.push(Preference { link: "ww*".into(), metered: false });
        config.paths.ignore.push("eth0".into());
        round(&network, config, None, None).await;
        assert_eq!(firsts(&network, begun), at(&[("wwan0", 0), ("wlan0", 250)]));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_over_tcp_begins_a_moment_after_that_over_udp() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0"]), clock::now());
        let others = (2..10).map(|server| Candidate {
            server: ([192, 0, 2, server], 4433).into(),
            ..crate::client::tests::candidate("eth0", 1)
        });
        network.candidates.lock().unwrap().extend(others);
        let mut config = config();
        config.servers[0].tcp_port = Some(443);
        round(&network, config, None, None).await;
        let expected = [("eth0", 0), ("wlan0", 250), ("eth0 tcp", 300), ("wlan0 tcp", 550)];
        assert_eq!(firsts(&network, begun)[..4], at(&expected));
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_socket_can_be_opened_tcp_does_not_wait() {
        let (network, begun) = (FakeNetwork::of(&["wlan0"]), clock::now());
        network.broken.lock().unwrap().push("wlan0".into());
        let mut config = config();
        config.servers[0].tcp_port = Some(443);
        round(&network, config, None, None).await;
        assert_eq!(firsts(&network, begun), at(&[("wlan0", 0), ("wlan0 tcp", 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn four_attempts_are_not_slowed_down() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "eth1", "eth2", "eth3"]), clock::now());
        round(&network, config(), None, None).await;
        let bound = network.bound_since(begun);
        let count = bound.iter().filter(|(_, at)| (1000..2000).contains(at)).count();
        assert!(count >= 16, "{count} handshakes in the second second, four for each");
    }

    #[test]
    fn over_tcp_one_address_of_each_family_is_tried_over_each_link() {
        let v6 = |link, server: u16| {
            let server = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, server], 443).into();
            Candidate { server, transport: Transport::Tcp, ..candidate(link, 0) }
        };
        let v4 = |link, server| candidate(link, server).over_tcp(443);
        let found = vec![v6(1, 1), v4(1, 1), v4(1, 2), v4(2, 1), v6(1, 2), v6(2, 2)];
        let expected = [v6(1, 1), v4(1, 1), v4(2, 1), v6(2, 2)];
        assert_eq!(one_of_each_family(found).collect::<Vec<_>>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_path_that_answered_last_is_dialed_first() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0", "wwan0"]), clock::now());
        let answered = crate::client::tests::candidate("wlan0", 2);
        round(&network, config(), None, Some(answered)).await;
        assert_eq!(firsts(&network, begun), at(&[("wlan0", 0), ("eth0", 250), ("wwan0", 500)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pinned_link_is_dialed_alone() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0"]), clock::now());
        let Ran { ended, .. } = round(&network, config(), pinned("wlan0"), None).await;
        assert_eq!(firsts(&network, begun), at(&[("wlan0", 0)]));
        assert_eq!(ended, "no answer from 192.0.2.1:4433 over wlan0");
        let Ran { ended, lasted, .. } = round(&network, config(), pinned("lte0"), None).await;
        assert!(ended.starts_with("lte0 has no route to 192.0.2.1:4433, and is pinned"), "{ended}");
        assert_eq!(lasted, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_attempt_that_cannot_succeed_the_next_begins_at_once() {
        let (network, begun) = (FakeNetwork::of(&["eth0", "eth1", "wlan0"]), clock::now());
        network.broken.lock().unwrap().extend(["eth0".into(), "eth1".into()]);
        let Ran { lasted, .. } = round(&network, config(), None, None).await;
        assert_eq!(network.bound_since(begun)[..3], at(&[("eth0", 0), ("eth1", 0), ("wlan0", 0)]));
        assert_eq!(lasted, HANDSHAKE_TIMEOUT.as_millis(), "the last one may succeed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_in_which_no_attempt_can_succeed_is_over_at_once() {
        let network = FakeNetwork::of(&["eth0", "wlan0"]);
        network.broken.lock().unwrap().extend(["eth0".into(), "wlan0".into()]);
        let Ran { ended, lasted, silent } = round(&network, config(), None, None).await;
        assert!(ended.starts_with("cannot reach 192.0.2.1:4433 over wlan0: "), "{ended}");
        assert_eq!((lasted, silent), (0, Vec::new()));
        network.have(&[]);
        let Ran { ended, lasted, .. } = round(&network, config(), None, None).await;
        assert_eq!(ended, "no network link has a route to 192.0.2.1:4433");
        assert_eq!(lasted, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_told_of_once_and_then_given_up() {
        let network = FakeNetwork::of(&["wlan0", "eth0"]);
        let Ran { ended, lasted, silent } = round(&network, config(), None, None).await;
        let why = "no answer from 192.0.2.1:4433 over eth0 or wlan0";
        assert_eq!((ended.as_str(), lasted), (why, HANDSHAKE_TIMEOUT.as_millis()));
        assert_eq!(silent, [(SILENCE.as_millis(), why.into())]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_up_during_a_round_is_dialed_too() {
        let (network, begun) = (FakeNetwork::of(&["eth0"]), clock::now());
        let comes_up = async {
            time::sleep(Duration::from_secs(3)).await;
            network.have(&["eth0", "wlan0"]);
        };
        tokio::join!(round(&network, config(), None, None), comes_up);
        let settled = 3000 + SETTLE.as_millis();
        assert_eq!(firsts(&network, begun), at(&[("eth0", 0), ("wlan0", settled)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_makes_no_more_than_sixteen_attempts_and_leaves_no_socket() {
        let links: Vec<_> = (0..30).map(|link| format!("eth{link}")).collect();
        let links: Vec<_> = links.iter().map(String::as_str).collect();
        let (network, begun) = (FakeNetwork::of(&links), clock::now());
        round(&network, config(), None, None).await;
        assert_eq!(firsts(&network, begun).len(), MAX_ATTEMPTS);
        time::sleep(Duration::from_secs(5)).await;
        let sockets = network.sockets.lock().unwrap();
        let open = sockets.iter().filter(|(_, socket)| socket.strong_count() > 0);
        assert_eq!(open.count(), 0);
    }
}
