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

mod search;

use std::{
    collections::VecDeque,
    future,
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
use tokio::sync::mpsc;
use tracing::debug;

use self::search::{Crowd, Found, Search};
use super::{
    ended::Ended,
    greeting::{Greeting, Reached, Terms},
    loss::Loss,
    reload::InForce,
    servers::RemoteServer,
};
use crate::{
    clock,
    path::{
        handshake::{Connected, HandshakeError},
        manager::Dialing,
        network::NetworkError,
        servers::ResolveError,
    },
    quic::{close, session::SessionError},
};

/// From the first attempt at one server to the first at the next. One that is reached within a common round trip of a mobile
/// network has answered by then.
const SERVER_STAGGER: Duration = Duration::from_millis(300);
/// Handshakes that are complete and wait to be looked at.
const COMPLETE: usize = 4;

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

#[cfg(test)]
mod tests;
