//! Reaching the server: all its addresses, over every link with a route to them, raced.
//!
//! Attempts start a moment apart, best link first (RFC 8305 §5), and the first handshake to
//! complete wins. The others close what they opened.

use std::{collections::HashSet, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{task::JoinSet, time};
use tracing::debug;

use super::links::Links;
use crate::{
    config::HostPort,
    link::candidate::Candidate,
    path::handshake::{Connected, Handshake, HandshakeError},
    quic::HANDSHAKE_TIMEOUT,
};

/// From one attempt to the next ("Connection Attempt Delay", RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// Attempts in one round.
const MAX_ATTEMPTS: usize = 16;
/// How long the resolver may take; libc's own default is two tries of five seconds.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a round of attempts reached no server.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Every handshake failed; the most telling failure.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A name could not be resolved.
    #[error("can't resolve {name}: {reason}")]
    Resolve {
        /// The name.
        name: String,
        /// What the resolver said.
        reason: String,
    },
    /// No link has a route to the server.
    #[error("no network link has a route to {}", list(.0))]
    NoRoute(Vec<SocketAddr>),
    /// The kernel can't be asked for links and routes.
    #[error("can't read links and routes: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Connects.
pub struct Dialer {
    servers: Vec<HostPort>,
    handshake: Handshake,
    links: Arc<Links>,
}

impl Dialer {
    /// A dialer for `servers` over `links`.
    #[must_use]
    pub fn new(servers: Vec<HostPort>, handshake: Handshake, links: Arc<Links>) -> Self {
        Self { servers, handshake, links }
    }

    /// One round: resolves the names and races all addresses over all links. Gives the connection
    /// and all addresses of the server.
    pub async fn dial(&self) -> Result<(Connected, Vec<SocketAddr>), DialError> {
        let addresses = resolve(&self.servers).await?;
        let candidates = self.links.candidates(&addresses).await?;
        if candidates.is_empty() {
            return Err(DialError::NoRoute(addresses));
        }
        let attempts = candidates
            .into_iter()
            .take(MAX_ATTEMPTS)
            .map(|(_, candidate)| self.attempt(candidate))
            .collect();
        Ok((race(attempts).await?, addresses))
    }

    fn attempt(
        &self,
        candidate: Candidate,
    ) -> impl Future<Output = Result<Connected, HandshakeError>> + Send + 'static {
        let handshake = self.handshake.clone();
        async move { handshake.run(candidate, HANDSHAKE_TIMEOUT).await }
    }
}

/// Runs `attempts` a moment apart until one succeeds; the failure that says most if none does.
async fn race<F>(attempts: Vec<F>) -> Result<Connected, DialError>
where
    F: Future<Output = Result<Connected, HandshakeError>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut worst = None;
    start_next(&mut waiting, &mut running);
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(Ok(Ok(dialed))) => return Ok(dialed),
                Some(Ok(Err(error))) => {
                    debug!(%error, "attempt failed");
                    worst = Some(more_telling(worst, error));
                    start_next(&mut waiting, &mut running);
                }
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => return Err(worst.map_or(DialError::NoRoute(Vec::new()), DialError::from)),
            },
            () = time::sleep(STAGGER), if waiting.len() > 0 => start_next(&mut waiting, &mut running),
        }
    }
}

fn start_next<F>(waiting: &mut std::vec::IntoIter<F>, running: &mut JoinSet<F::Output>)
where
    F: Future<Output: Send> + Send + 'static,
{
    if let Some(attempt) = waiting.next() {
        running.spawn(attempt);
    }
}

/// A server that answered wrongly tells more than one that did not answer.
fn more_telling(before: Option<HandshakeError>, error: HandshakeError) -> HandshakeError {
    match before {
        None | Some(HandshakeError::Unreachable { .. }) => error,
        Some(before) => before,
    }
}

/// The addresses behind all names; an error only if there is none at all.
async fn resolve(servers: &[HostPort]) -> Result<Vec<SocketAddr>, DialError> {
    let answers = join_all(servers.iter().map(|server| async move {
        let lookup = tokio::net::lookup_host((server.host.as_str(), server.port));
        match time::timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<_>>()),
            Ok(Err(error)) => Err((server, error.to_string())),
            Err(_elapsed) => Err((server, "the resolver did not answer".into())),
        }
    }))
    .await;
    let mut addresses = Vec::new();
    let mut failure = None;
    for answer in answers {
        match answer {
            Ok(found) => addresses.extend(found),
            Err((server, reason)) => {
                failure = Some(DialError::Resolve { name: server.host.clone(), reason });
            }
        }
    }
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    match failure {
        Some(error) if addresses.is_empty() => Err(error),
        _ => Ok(addresses),
    }
}
