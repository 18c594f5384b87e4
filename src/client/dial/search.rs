//! The attempts to reach one server in one round.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet, time};
use tracing::debug;

use super::{DialError, Round};
use crate::{
    client::{
        attempts::Attempts, chance::fraction, ended::Ended, loss::Loss, pace::pace,
        reload::InForce, servers::RemoteServer,
    },
    clock,
    link::candidate::{Candidate, Transport},
    path::{
        handshake::{Attempt, Connected, HandshakeError},
        manager::{Dialing, HEAD_START},
    },
    quic::HANDSHAKE_TIMEOUT,
};

/// From one attempt to the next ("Connection Attempt Delay", RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// From one look at links and routes to the next, at least.
pub(super) const SETTLE: Duration = Duration::from_millis(20);
/// Attempts over UDP in one round.
pub(super) const MAX_ATTEMPTS: usize = 16;
/// The same over TCP, to the server and by each detour.
const MAX_OVER_TCP: usize = 4;
/// A server that can be reached has answered by then, even over a slow link that loses a packet or two.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// Attempts that begin further handshakes at the full pace. With more of them each one is slower, so that an answer
/// with many addresses makes us no louder towards those who own them.
pub(super) const CROWD: usize = 4;
/// How long the further handshakes of an attempt may take. The first one may take longer, should the
/// network be that slow.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a search tells what it finds.
pub(super) struct Found {
    /// The server's place in the round.
    pub(super) place: usize,
    pub(super) complete: mpsc::Sender<(usize, Connected)>,
    pub(super) crowd: Crowd,
}

/// The attempts to reach one server in one round.
pub(super) struct Search<'a> {
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
    pub(super) fn new(round: &'a Round<'a>, found: Found, config: InForce) -> Self {
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
    pub(super) async fn run(mut self) -> Ended {
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
pub(super) fn in_turn(
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
pub(super) fn one_of_each_family(found: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
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
pub(super) struct Crowd(pub(super) Arc<()>);

impl Crowd {
    /// How much slower each of them has to be.
    pub(super) fn slowness(&self) -> u32 {
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

/// A server that answered wrongly tells more than one that did not answer.
fn more_telling(before: Option<HandshakeError>, error: HandshakeError) -> HandshakeError {
    match before {
        None => error,
        Some(HandshakeError::Unreachable { .. }) => error,
        Some(before) if before.is_of_one_handshake() => error,
        Some(before) => before,
    }
}
