//! One QUIC handshake with the server over one candidate, on sockets of its own.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use quinn::{
    Connecting, Connection, ConnectionError, Endpoint, TokioRuntime, TransportConfig,
    TransportErrorCode, crypto::rustls::QuicClientConfig,
};
use tokio::{sync::mpsc, time};
use tracing::debug;

use super::{
    network::Network,
    socket::{PathError, PathId, PathSocket, VIRTUAL_SERVER},
};
use crate::{
    clock,
    identity::{PrivateKey, PublicKey},
    link::candidate::Candidate,
    quic::{
        self, close,
        tls::{self, ClientTls, TlsError, WrongServerKey},
    },
    task,
    wire::foreign::Foreign,
};

/// How long a closing connection may use its socket to say so.
const LINGER: Duration = Duration::from_secs(1);
/// Reports of path errors that wait to be read.
const PATH_ERRORS: usize = 16;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server answered with another key than the configured one.
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
        reason: Foreign,
    },
    /// No answer in time.
    #[error("no answer from {server} over {link}")]
    TimedOut {
        /// Where.
        server: String,
        /// Over which link.
        link: String,
    },
    /// The server gave this handshake up. The next one may fare better.
    #[error("the server at {server} gave up a handshake over {link}")]
    GivenUp {
        /// Where.
        server: SocketAddr,
        /// Over which link.
        link: String,
    },
    /// No answer that tells anything.
    #[error("cannot reach {server} over {link}: {reason}")]
    Unreachable {
        /// Where.
        server: SocketAddr,
        /// Over which link.
        link: String,
        /// What went wrong; a peer may have chosen the words.
        reason: Foreign,
    },
}

impl HandshakeError {
    /// Whether this says nothing of further handshakes with the same server over the same link.
    #[must_use]
    pub fn is_of_one_handshake(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::GivenUp { .. } => true,
            Self::WrongServerKey { .. } | Self::NotRoamd { .. } | Self::Unreachable { .. } => false,
        }
    }
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
    fn open(network: &dyn Network, candidate: &Candidate) -> io::Result<(Self, PathId)> {
        let udp = network.bind(candidate)?;
        let (reports, errors) = mpsc::channel(PATH_ERRORS);
        let socket = PathSocket::new(reports);
        let path = socket.open(udp, candidate.server);
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::client_endpoint(),
            None,
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        Ok((Self { endpoint, socket, errors }, path))
    }

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
        task::detached("goodbye", async move {
            let _ = time::timeout(LINGER, endpoint.wait_idle()).await;
            socket.close_all();
        });
    }
}

/// A connection to the right server.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub connection: Connection,
    /// What it runs on.
    pub underlay: Underlay,
    /// Its path.
    pub path: PathId,
    /// Where that leads.
    pub candidate: Candidate,
    /// When the handshake began.
    pub begun: Instant,
    /// Whether the server took the packets that went before the handshake.
    pub early_arrived: bool,
}

/// Makes connections to one server for one purpose (ALPN).
#[derive(Clone)]
pub struct Handshake {
    resuming: quinn::ClientConfig,
    fresh: quinn::ClientConfig,
    expected: PublicKey,
    wrong: WrongServerKey,
}

impl Handshake {
    /// Handshakes with the server that has the key `server`, for the purpose `alpn`.
    pub fn new(
        key: &PrivateKey,
        server: PublicKey,
        alpn: &[u8],
        transport: TransportConfig,
    ) -> Result<Self, TlsError> {
        let ClientTls { resuming, fresh, wrong } = tls::client(key, server, alpn)?;
        let transport = Arc::new(transport);
        let config = |crypto: QuicClientConfig| {
            let mut config = quinn::ClientConfig::new(Arc::new(crypto));
            config.transport_config(transport.clone());
            config
        };
        let (resuming, fresh) = (config(resuming), config(fresh));
        Ok(Self { resuming, fresh, expected: server, wrong })
    }

    /// Connects over `candidate` within `limit`. With `early` packets it uses a ticket of an earlier
    /// session, if there is one, and sends them along; they may arrive more than once.
    ///
    /// Cancel safe: what it opened is closed.
    pub async fn run(
        &self,
        network: &dyn Network,
        candidate: Candidate,
        limit: Duration,
        early: Option<Arc<[Bytes]>>,
    ) -> Result<Connected, HandshakeError> {
        let unreachable = |reason: &dyn std::fmt::Display| HandshakeError::Unreachable {
            server: candidate.server,
            link: candidate.link.clone(),
            reason: Foreign::of(reason),
        };
        let Candidate { source, ref link, server, .. } = candidate;
        debug!(link, %source, %server, "connecting");
        let begun = clock::now();
        let (underlay, path) =
            Underlay::open(network, &candidate).map_err(|error| unreachable(&error))?;
        let config = if early.is_some() { &self.resuming } else { &self.fresh };
        let connecting = underlay
            .endpoint
            .connect_with(config.clone(), VIRTUAL_SERVER, "roamd")
            .map_err(|error| unreachable(&error))?;
        match time::timeout(limit, complete(connecting, early)).await {
            Ok(Ok((connection, early_arrived))) => {
                Ok(Connected { connection, underlay, path, candidate, begun, early_arrived })
            }
            Ok(Err(error)) => {
                let told = self.told(&candidate, &error);
                Err(told.unwrap_or_else(|| unreachable(&error)))
            }
            Err(_elapsed) => {
                Err(HandshakeError::TimedOut { server: server.to_string(), link: candidate.link })
            }
        }
    }

    /// What the server tells by ending the handshake with this `error`.
    fn told(&self, candidate: &Candidate, error: &ConnectionError) -> Option<HandshakeError> {
        let server = candidate.server;
        let shown = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (shown, error) {
            (Some(shown), ConnectionError::TransportError(_)) => {
                let expected = self.expected;
                Some(HandshakeError::WrongServerKey { server, shown, expected })
            }
            (_, ConnectionError::VersionMismatch) => {
                Some(HandshakeError::NotRoamd { server, reason: Foreign::of(error) })
            }
            (_, ConnectionError::ConnectionClosed(close))
                if close.error_code == no_application_protocol() =>
            {
                Some(HandshakeError::NotRoamd { server, reason: Foreign::of(error) })
            }
            (_, ConnectionError::Reset) => Some(given_up(candidate)),
            (_, ConnectionError::ConnectionClosed(close))
                if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
            {
                Some(given_up(candidate))
            }
            _ => None,
        }
    }
}

/// A server that closes a connection during its handshake says APPLICATION_ERROR, whatever its reason (RFC 9000
/// §10.2.3); one that was started again resets it.
fn given_up(candidate: &Candidate) -> HandshakeError {
    HandshakeError::GivenUp { server: candidate.server, link: candidate.link.clone() }
}

/// Handshakes over one candidate, side by side. QUIC repeats the first packet of a handshake ever more
/// rarely, and somebody waits: a further handshake finds a network that has just come back.
pub(crate) struct Attempt {
    handshake: Handshake,
    network: Arc<dyn Network>,
    candidate: Candidate,
    under_way: FuturesUnordered<BoxFuture<'static, Result<Connected, HandshakeError>>>,
}

impl Attempt {
    /// An attempt without a handshake.
    #[must_use]
    pub(crate) fn new(
        handshake: Handshake,
        network: Arc<dyn Network>,
        candidate: Candidate,
    ) -> Self {
        Self { handshake, network, candidate, under_way: FuturesUnordered::new() }
    }

    /// Where it leads.
    #[must_use]
    pub(crate) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Starts a handshake beside those that are under way; see [`Handshake::run`].
    pub(crate) fn start(&mut self, limit: Duration, early: Option<Arc<[Bytes]>>) {
        let (handshake, network) = (self.handshake.clone(), self.network.clone());
        let candidate = self.candidate.clone();
        let run = async move { handshake.run(&*network, candidate, limit, early).await };
        self.under_way.push(Box::pin(run));
    }

    /// The next handshake that completes, or fails such that the others will. A failure that concerns one handshake
    /// alone is told of when that was the last one. Without a handshake it waits. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Connected, HandshakeError> {
        loop {
            match self.under_way.next().await {
                Some(Err(error)) if error.is_of_one_handshake() && !self.under_way.is_empty() => {}
                Some(ended) => return ended,
                None => std::future::pending().await,
            }
        }
    }
}

/// Waits for the end of the handshake; whether the server took the `early` packets.
async fn complete(
    connecting: Connecting,
    early: Option<Arc<[Bytes]>>,
) -> Result<(Connection, bool), ConnectionError> {
    let Some(early) = early else { return Ok((connecting.await?, false)) };
    let (connection, accepted) = match connecting.into_0rtt() {
        Ok(early) => early,
        Err(connecting) => return Ok((connecting.await?, false)),
    };
    let all_sent = early.iter().all(|packet| connection.send_datagram(packet.clone()).is_ok());
    let accepted = accepted.await;
    // A lost connection counts as "not accepted", too.
    match connection.close_reason() {
        Some(error) => Err(error),
        None => Ok((connection, accepted && all_sent)),
    }
}

/// TLS alert 120 (RFC 7301 §3.2) as QUIC carries it (RFC 9001 §4.8).
fn no_application_protocol() -> TransportErrorCode {
    TransportErrorCode::crypto(120)
}
