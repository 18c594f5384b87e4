//! Reaching the server: all its addresses, over every link with a route to them, raced.
//!
//! Attempts start a moment apart, best link first (RFC 8305 §5), and the first handshake to
//! complete wins. The others close what they opened.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use quinn::{
    ConnectError, Connection, ConnectionError, Endpoint, TokioRuntime, TransportConfig,
    crypto::rustls::QuicClientConfig,
};
use tokio::{sync::mpsc, task::JoinSet, time};
use tracing::debug;

use crate::{
    config::{HostPort, Paths, ServerPeer},
    identity::{PrivateKey, PublicKey},
    link::candidate::{Candidate, candidates},
    netlink::Netlink,
    path::{
        preference::Preferences,
        socket::{PathError, PathId, PathSocket, VIRTUAL_SERVER},
        udp::UdpSocket,
    },
    quic::{self, HANDSHAKE_TIMEOUT, close},
    tls::{self, TlsError, WrongServerKey},
};

/// From one attempt to the next ("Connection Attempt Delay", RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// Attempts in one round.
const MAX_ATTEMPTS: usize = 16;
/// How long the resolver may take; libc's own default is two tries of five seconds.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a closing connection may use its socket to say so.
const LINGER: Duration = Duration::from_secs(1);
/// Reports of path errors that wait to be read.
const PATH_ERRORS: usize = 16;

/// Why a round of attempts reached no server.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A server answered with another key than the configured one.
    #[error(
        "the server at {server} has the key {shown}, not the configured server.public-key {expected}"
    )]
    WrongServerKey {
        /// Where.
        server: SocketAddr,
        /// The key that it showed. It need not own it.
        shown: PublicKey,
        /// The key that we want.
        expected: PublicKey,
    },
    /// What answers does not speak roamd.
    #[error("the server at {server} does not speak this protocol: {reason}")]
    NotRoamd {
        /// Where.
        server: SocketAddr,
        /// What it said.
        reason: String,
    },
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
    /// A handshake failed, in the words of the last one.
    #[error("no answer from {server} over {link}: {reason}")]
    Unreachable {
        /// Where.
        server: SocketAddr,
        /// Over which link.
        link: String,
        /// What went wrong.
        reason: String,
    },
    /// The kernel can't be asked for links and routes.
    #[error("can't read links and routes: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// An open endpoint on its own sockets. Dropped, it says goodbye to the server and closes them.
#[derive(Debug)]
pub struct Underlay {
    endpoint: Endpoint,
    socket: Arc<PathSocket>,
    /// What goes wrong on its paths.
    pub errors: mpsc::Receiver<PathError>,
}

impl Underlay {
    /// The socket that quinn sees.
    #[must_use]
    pub fn socket(&self) -> &Arc<PathSocket> {
        &self.socket
    }

    /// The endpoint of the connection.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        self.endpoint.close(close::NOT_NEEDED, b"");
        let (endpoint, socket) = (self.endpoint.clone(), self.socket.clone());
        tokio::spawn(async move {
            let _ = time::timeout(LINGER, endpoint.wait_idle()).await;
            socket.close_all();
        });
    }
}

/// A connection to the right server.
#[derive(Debug)]
pub struct Dialed {
    /// The connection.
    pub connection: Connection,
    /// What it runs on.
    pub underlay: Underlay,
    /// Its path.
    pub path: PathId,
    /// Where that leads.
    pub candidate: Candidate,
}

/// Connects.
pub struct Dialer {
    servers: Vec<HostPort>,
    expected: PublicKey,
    crypto: Arc<QuicClientConfig>,
    wrong: WrongServerKey,
    transport: Arc<TransportConfig>,
    preferences: Preferences,
    netlink: Netlink,
    own_link: u32,
}

impl Dialer {
    /// A dialer for `server` that never uses the link `own_link`, the tunnel itself.
    pub fn new(
        key: &PrivateKey,
        server: ServerPeer,
        paths: &Paths,
        transport: TransportConfig,
        netlink: Netlink,
        own_link: u32,
    ) -> Result<Self, TlsError> {
        let (crypto, wrong) = tls::client(key, server.public_key)?;
        Ok(Self {
            servers: server.addresses,
            expected: server.public_key,
            crypto: Arc::new(crypto),
            wrong,
            transport: Arc::new(transport),
            preferences: Preferences::new(paths),
            netlink,
            own_link,
        })
    }

    /// One round: resolves the names and races all addresses over all links.
    pub async fn dial(&self) -> Result<Dialed, DialError> {
        let addresses = resolve(&self.servers).await?;
        let mut found = Vec::new();
        for address in &addresses {
            found.extend(candidates(&self.netlink, *address, self.own_link).await?);
        }
        let rank = |candidate: Candidate| {
            Some((self.preferences.rank(&candidate.link, candidate.metric)?, candidate))
        };
        let mut ranked: Vec<_> = found.into_iter().filter_map(rank).collect();
        if ranked.is_empty() {
            return Err(DialError::NoRoute(addresses));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.truncate(MAX_ATTEMPTS);
        let attempts =
            ranked.into_iter().map(|(_, candidate)| Attempt::new(self, candidate).run()).collect();
        race(attempts).await
    }
}

/// Runs `attempts` a moment apart until one succeeds; the failure that says most if none does.
async fn race<F>(attempts: Vec<F>) -> Result<Dialed, DialError>
where
    F: Future<Output = Result<Dialed, DialError>> + Send + 'static,
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
                None => return Err(worst.unwrap_or(DialError::NoRoute(Vec::new()))),
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
fn more_telling(before: Option<DialError>, error: DialError) -> DialError {
    match before {
        Some(before @ (DialError::WrongServerKey { .. } | DialError::NotRoamd { .. })) => before,
        _ => error,
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
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    match failure {
        Some(error) if addresses.is_empty() => Err(error),
        _ => Ok(addresses),
    }
}

/// One handshake over one link.
struct Attempt {
    candidate: Candidate,
    config: quinn::ClientConfig,
    expected: PublicKey,
    wrong: WrongServerKey,
}

impl Attempt {
    fn new(dialer: &Dialer, candidate: Candidate) -> Self {
        let mut config = quinn::ClientConfig::new(dialer.crypto.clone());
        config.transport_config(dialer.transport.clone());
        Self { candidate, config, expected: dialer.expected, wrong: dialer.wrong.clone() }
    }

    async fn run(self) -> Result<Dialed, DialError> {
        let Candidate { source, ref link, server, .. } = self.candidate;
        debug!(link, %source, %server, "connecting");
        let opened = UdpSocket::bind(SocketAddr::new(source, 0), Some(link))
            .and_then(|udp| self.open(udp))
            .map_err(|error| self.unreachable(&error));
        let (underlay, path) = opened?;
        let connecting = underlay
            .endpoint
            .connect_with(self.config.clone(), VIRTUAL_SERVER, "roamd")
            .map_err(|error: ConnectError| self.unreachable(&error))?;
        match time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                Ok(Dialed { connection, underlay, path, candidate: self.candidate })
            }
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(_elapsed) => Err(self.unreachable(&"timed out")),
        }
    }

    fn open(&self, udp: Arc<UdpSocket>) -> io::Result<(Underlay, PathId)> {
        let (reports, errors) = mpsc::channel(PATH_ERRORS);
        let socket = PathSocket::new(reports);
        let path = socket.open(udp, self.candidate.server);
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::client_endpoint(),
            None,
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        Ok((Underlay { endpoint, socket, errors }, path))
    }

    fn failure(&self, error: &ConnectionError) -> DialError {
        let server = self.candidate.server;
        let shown = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (shown, error) {
            (Some(shown), ConnectionError::TransportError(_)) => {
                DialError::WrongServerKey { server, shown, expected: self.expected }
            }
            (_, ConnectionError::VersionMismatch) => {
                DialError::NotRoamd { server, reason: error.to_string() }
            }
            (_, ConnectionError::ConnectionClosed(close))
                if close.error_code == no_application_protocol() =>
            {
                DialError::NotRoamd { server, reason: error.to_string() }
            }
            _ => self.unreachable(error),
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> DialError {
        DialError::Unreachable {
            server: self.candidate.server,
            link: self.candidate.link.clone(),
            reason: reason.to_string(),
        }
    }
}

/// TLS alert 120 (RFC 7301 §3.2) as QUIC carries it (RFC 9001 §4.8).
fn no_application_protocol() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(120)
}
