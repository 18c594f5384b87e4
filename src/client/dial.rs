//! Reaching the server: all its addresses, over every link with a route to them, raced.
//!
//! Attempts start a moment apart, best link first (RFC 8305 §5), and each starts further handshakes at a
//! steady pace. The first handshake to complete asks for a session, while the race goes on:
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
    mem,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::ConnectionError;
use tokio::{sync::mpsc, task::JoinSet, time};
use tracing::debug;

use super::{
    attempts::Attempts,
    chance::fraction,
    ended::Ended,
    greeting::{Greeting, Reached, Terms},
    reload::InForce,
};
use crate::{
    clock,
    link::candidate::Candidate,
    path::{
        handshake::{Attempt, Connected, Handshake, HandshakeError},
        manager::Manager,
        network::{Network, NetworkError},
        servers::{ResolveError, ServerAddresses},
    },
    quic::{HANDSHAKE_TIMEOUT, close, session::SessionError},
};

/// From one attempt to the next ("Connection Attempt Delay", RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// From one look at links and routes to the next, at least.
const SETTLE: Duration = Duration::from_millis(20);
/// Handshakes that are complete and wait to be looked at.
const COMPLETE: usize = 4;
/// Attempts in one round.
const MAX_ATTEMPTS: usize = 16;
/// A server that can be reached has answered by then, even over a slow link that loses a packet or two.
const SILENCE: Duration = Duration::from_secs(2);
/// Attempts that begin further handshakes at the full pace. With more of them each one is slower, so that an answer
/// with many addresses makes us no louder towards those who own them.
const CROWD: usize = 4;
/// How long the further handshakes of an attempt may take. The first one may take longer, should the
/// network be that slow.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(3);
/// How soon after the loss of the connection, and how often at most from then on, a handshake
/// begins. Each costs some 2.5 kB, and the server half a millisecond: when it was started again, all its
/// clients begin at once.
const PACES: [(Duration, Duration); 3] = [
    (Duration::ZERO, Duration::from_millis(250)),
    (Duration::from_secs(2), Duration::from_secs(1)),
    (Duration::from_secs(600), Duration::from_secs(5)),
];

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
    /// The path over which the server answered that it does not know the connection: it is tried first.
    pub(super) answered: Option<Candidate>,
}

/// Connects.
pub(super) struct Dialer {
    names: Arc<ServerAddresses>,
    handshake: Handshake,
    network: Arc<dyn Network>,
    terms: Terms,
    config: InForce,
    /// What became of the attempts so far, for people.
    pub(super) attempts: Attempts,
}

impl Dialer {
    /// A dialer for the server of the configuration that is in force, with these `names` over `network`. The
    /// server is asked for a session on these `terms`.
    pub(super) fn new(
        names: Arc<ServerAddresses>,
        handshake: Handshake,
        network: Arc<dyn Network>,
        terms: Terms,
        config: InForce,
    ) -> Self {
        Self { names, handshake, network, terms, config, attempts: Attempts::default() }
    }

    /// One round: races all addresses over all links, in the `manager`'s order and also those that are found
    /// meanwhile, for a session. Packets of `early` go with the first packet of each attempt, where the server lets
    /// that be. A server that does not answer soon is told to `silent`.
    ///
    /// Cancel safe: what it opened is closed.
    pub(super) async fn dial(
        &self,
        manager: &Manager,
        early: Arc<[Bytes]>,
        Loss { at: mut since, answered: first }: Loss,
        silent: impl Fn(&HandshakeError),
    ) -> Result<Reached, Ended> {
        let mut hints = self.network.hints();
        let config = self.config.borrow().clone();
        let resolving = self.names.resolve(&config.server.addresses);
        tokio::pin!(resolving);
        let mut servers = self.names.known();
        let mut unresolved = true;
        if servers.is_empty() {
            servers = resolving.as_mut().await.map_err(DialError::Resolve)?;
            unresolved = false;
        }
        let mut tried = HashSet::new();
        let mut waiting =
            VecDeque::from(self.find(manager, &servers, &mut tried, first.as_ref()).await?);
        let mut attempts = JoinSet::<(Candidate, HandshakeError)>::new();
        let (complete, mut completed) = mpsc::channel(COMPLETE);
        let mut runner_up = None;
        let (mut greeting, mut greetings) = (None::<Greeting>, 0);
        let (mut failure, crowd) = (None, Crowd::default());
        let mut forgotten: Option<SessionError> = None;
        let mut next = clock::now();
        let end = next + HANDSHAKE_TIMEOUT;
        let (mut silence, mut is_told) = (next + SILENCE, false);
        loop {
            let takes_over =
                |it: &mut Connected| greeting.as_ref().is_none_or(|before| before.gives_way_to(it));
            if let Some(connected) = runner_up.take_if(takes_over) {
                greeting = Some(Greeting::begin(connected, &self.terms, greetings));
                greetings += 1;
            }
            let is_over = waiting.is_empty() && attempts.is_empty() && completed.is_empty();
            if is_over && !unresolved && greeting.is_none() {
                if let Some(lost) = forgotten {
                    return Err(lost.into());
                }
                return Err(failure
                    .map_or_else(|| no_route(manager, servers), DialError::Handshake)
                    .into());
            }
            let due = greeting.as_ref().map_or(end, Greeting::due);
            tokio::select! {
                // It may be overdue, and the freshest handshake is the one whose path most likely works.
                Some(connected) = completed.recv() => runner_up = Some(connected),
                ended = Greeting::end(&mut greeting) => match ended {
                    Err(Ended::Session(lost)) if is_forgotten(&lost) => {
                        debug!(reason = %lost, "no greeting");
                        forgotten = Some(lost);
                        silence = clock::now() + SILENCE;
                    }
                    ended => return ended,
                },
                () = time::sleep_until(due.into()), if runner_up.is_some() => {}
                Some(ended) = attempts.join_next() => match ended {
                    Ok((candidate, error)) => {
                        debug!(%error, "attempt failed");
                        self.attempts.fail(&candidate, error.to_string());
                        tried.remove(&candidate);
                        failure = Some(more_telling(failure, error));
                        next = clock::now();
                    }
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
                found = &mut resolving, if unresolved => {
                    unresolved = false;
                    if let Ok(found) = found {
                        servers = found;
                        waiting.extend(self.find(manager, &servers, &mut tried, None).await?);
                    }
                }
                () = time::sleep_until(end.max(due).into()), if !attempts.is_empty() || greeting.is_some() => {
                    return Err(match (forgotten, greeting) {
                        (Some(lost), _) => lost.into(),
                        (None, Some(_)) => Ended::NoGreeting,
                        (None, None) => {
                            DialError::from(failure.unwrap_or_else(|| no_answer(&tried))).into()
                        }
                    });
                }
                // A server that completed a handshake has answered.
                () = time::sleep_until(silence.into()),
                    if !is_told && greeting.is_none() && !attempts.is_empty() =>
                {
                    is_told = true;
                    silent(failure.as_ref().unwrap_or(&no_answer(&tried)));
                }
                () = hints.hint() => {
                    waiting.extend(self.find(manager, &servers, &mut tried, None).await?);
                    since = clock::now();
                    time::sleep(SETTLE).await;
                }
                () = time::sleep_until(next.into()), if !waiting.is_empty() => {
                    next = clock::now() + STAGGER;
                    if let Some(candidate) = waiting.pop_front() {
                        self.attempts.begin(&candidate, clock::now());
                        let (handshake, network) = (self.handshake.clone(), self.network.clone());
                        let attempt = Attempt::new(handshake, network, candidate);
                        let (complete, crowd) = (complete.clone(), crowd.clone());
                        attempts.spawn(pursue(attempt, early.clone(), since, complete, crowd));
                    }
                }
            }
        }
    }

    /// Candidates that are not `tried` yet, `first` before all others.
    async fn find(
        &self,
        manager: &Manager,
        servers: &[SocketAddr],
        tried: &mut HashSet<Candidate>,
        first: Option<&Candidate>,
    ) -> Result<Vec<Candidate>, DialError> {
        let config = self.config.borrow().clone();
        let found = self.network.candidates(servers, &config.paths).await?;
        let found = manager.dial_order(found, clock::now());
        self.attempts.retain(|candidate| found.contains(candidate));
        let room = MAX_ATTEMPTS.saturating_sub(tried.len());
        let turns = in_turn(found.into_iter(), first);
        Ok(turns.filter(|it| tried.insert(it.clone())).take(room).collect())
    }
}

/// Each link in turn, the best first: a link over which nobody answers must not use up the attempts of the others.
/// `first` goes before all of them.
fn in_turn(
    found: impl Iterator<Item = Candidate>,
    first: Option<&Candidate>,
) -> impl Iterator<Item = Candidate> {
    let mut before = HashMap::<_, usize>::new();
    let mut numbered: Vec<_> = found
        .map(|candidate| {
            let turn = before.entry(candidate.index).or_default();
            *turn += 1;
            (*turn, candidate)
        })
        .collect();
    numbered.sort_by_key(|(turn, candidate)| (Some(candidate) != first, *turn));
    numbered.into_iter().map(|(_, candidate)| candidate)
}

fn no_route(manager: &Manager, servers: Vec<SocketAddr>) -> DialError {
    match manager.pinned() {
        Some(link) => DialError::Pinned { link: link.into(), servers },
        None => DialError::NoRoute(servers),
    }
}

/// How many attempts are under way.
#[derive(Clone, Default)]
struct Crowd(Arc<()>);

impl Crowd {
    /// How much slower each of them has to be.
    fn slowness(&self) -> u32 {
        let attempts = Arc::strong_count(&self.0) - 1;
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
    complete: mpsc::Sender<Connected>,
    crowd: Crowd,
) -> (Candidate, HandshakeError) {
    attempt.start(HANDSHAKE_TIMEOUT, Some(early));
    let pause = |since| {
        let outage = clock::now().saturating_duration_since(since);
        pace(outage, fraction()) * crowd.slowness()
    };
    let mut next = clock::now() + pause(since);
    let mut has_answered = false;
    loop {
        tokio::select! {
            ended = attempt.next() => match ended {
                Ok(connected) => {
                    if !mem::replace(&mut has_answered, true) {
                        // The outage is over, but the greeting may be lost.
                        since = clock::now();
                        next = next.min(since + pause(since));
                    }
                    // The race ends before its finish is gone.
                    let _ = complete.send(connected).await;
                }
                Err(error) if error.is_of_one_handshake() => debug!(%error, "handshake failed"),
                Err(error) => return (attempt.candidate().clone(), error),
            },
            () = time::sleep_until(next.into()) => {
                attempt.start(FURTHER_TIMEOUT, None);
                next = clock::now() + pause(since);
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

/// The pause before a further handshake, when there has been no connection for as long as `outage` says: of
/// the longest one half to all, by `chance`.
fn pace(outage: Duration, chance: f32) -> Duration {
    let slower = PACES.iter().rev().find(|(from, _)| *from <= outage);
    slower.map_or(STAGGER, |(_, pace)| *pace).mul_f32(0.5 + chance / 2.0)
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
    use super::*;

    fn candidate(link: u32, server: u8) -> Candidate {
        let (source, server) = ([10, 0, 0, 1].into(), ([192, 0, 2, server], 4433).into());
        Candidate { link: format!("eth{link}"), index: link, source, metric: 0, server }
    }

    #[test]
    fn every_link_is_tried_with_any_number_of_addresses() {
        let all = (1..=3).flat_map(|link| (0..9).map(move |server| candidate(link, server)));
        let first: Vec<_> = in_turn(all, None).take(MAX_ATTEMPTS).collect();
        assert_eq!(first[..3], [candidate(1, 0), candidate(2, 0), candidate(3, 0)]);
        for link in 1..=3 {
            assert!(first.iter().filter(|it| it.index == link).count() >= 5, "{first:?}");
        }
    }

    #[test]
    fn the_candidate_over_which_the_server_answered_last_is_the_first() {
        let all = [candidate(1, 0), candidate(1, 1), candidate(2, 0)];
        let order = |first| in_turn(all.clone().into_iter(), first).collect::<Vec<_>>();
        assert_eq!(order(None), [candidate(1, 0), candidate(2, 0), candidate(1, 1)]);
        let answered = candidate(1, 1);
        assert_eq!(order(Some(&answered)), [answered.clone(), candidate(1, 0), candidate(2, 0)]);
        assert_eq!(order(Some(&candidate(3, 0))), order(None), "it is gone");
    }

    #[test]
    fn many_parallel_attempts_send_no_more_than_a_few() {
        let crowd = Crowd::default();
        let mut attempts = vec![crowd.clone(); CROWD];
        assert_eq!(crowd.slowness(), 1);
        attempts.resize(MAX_ATTEMPTS, crowd.clone());
        assert_eq!(crowd.slowness() as usize, MAX_ATTEMPTS / CROWD);
        attempts.clear();
        assert_eq!(crowd.slowness(), 1);
    }
    /// Handshakes that a path begins in an outage that lasts `seconds`.
    fn handshakes(seconds: u64) -> usize {
        let (mut outage, mut count) = (Duration::ZERO, 0);
        while outage < Duration::from_secs(seconds) {
            outage += pace(outage, 0.5);
            count += 1;
        }
        count
    }

    #[test]
    fn handshakes_slow_down_after_the_first_few() {
        assert!(handshakes(2) >= 8, "{}", handshakes(2));
        assert!(handshakes(60) <= 100, "{}", handshakes(60));
        let clients = [0.0, 0.3, 1.0].map(|chance| pace(Duration::from_secs(10), chance));
        assert!(clients.is_sorted() && clients[0] < clients[2], "not all at once: {clients:?}");
    }

    #[test]
    fn a_server_that_comes_back_is_found_within_a_second_in_the_first_ten_minutes() {
        for outage in (0..600).map(Duration::from_secs) {
            assert!(pace(outage, 1.0) <= Duration::from_secs(1));
        }
    }
}
