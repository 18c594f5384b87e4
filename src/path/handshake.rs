//! One QUIC handshake with the server over one candidate, on sockets of its own.

use std::{
    collections::VecDeque,
    future, io,
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quinn::{
    Connecting, Connection, ConnectionError, Endpoint, TokioRuntime, TransportConfig,
    TransportErrorCode, crypto::rustls::QuicClientConfig,
};
use tokio::{sync::mpsc, time};
use tracing::debug;

use super::{
    meter::Purpose,
    network::Network,
    socket::{PathError, PathId, PathSocket, VIRTUAL_SERVER},
    tcp,
};
use crate::{
    clock,
    identity::{PrivateKey, PublicKey},
    link::candidate::{Candidate, Transport},
    quic::{
        self, SMALLEST_UDP_PAYLOAD, close,
        tls::{self, ClientTls, Resuming, Servers, TlsError, WrongServerKey},
    },
    task,
    wire::foreign::Foreign,
};

/// How long a socket stays open after its connection was closed, to send the CONNECTION_CLOSE frame.
const LINGER: Duration = Duration::from_secs(1);
/// Handshakes of one attempt over TCP that are under way at most.
const TCP_HANDSHAKES: usize = 3;
/// Capacity of the channel for path errors.
const PATH_ERRORS: usize = 16;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server answered with another key than the configured one.
    #[error(
        "the server at {server} has the key {shown}, not the configured server.public-key {expected}"
    )]
    WrongServerKey {
        /// The server's address.
        server: SocketAddr,
        /// The key that it presented, possibly without owning it.
        shown: PublicKey,
        /// The configured key.
        expected: PublicKey,
    },
    /// What answers does not speak roamd.
    #[error("the server at {server} does not speak this protocol: {reason}")]
    NotRoamd {
        /// The server's address.
        server: SocketAddr,
        /// The error, whose text may come from the peer.
        reason: Foreign,
    },
    /// No answer in time.
    #[error("no answer from {server} over {link}")]
    TimedOut {
        /// The server's address.
        server: String,
        /// The link's name.
        link: String,
    },
    /// The server gave up this handshake. A further one may succeed.
    #[error("the server at {server} gave up a handshake over {link}")]
    GivenUp {
        /// The server's address.
        server: SocketAddr,
        /// The link's name.
        link: String,
    },
    /// The path's TCP connection could not be made, or ended. A further one may stand.
    #[error("no connection to {server} over {link}: {reason}")]
    NotConnected {
        /// The server's address.
        server: SocketAddr,
        /// The link's name.
        link: String,
        /// The error.
        reason: Foreign,
    },
    /// The handshake failed for another reason.
    #[error("cannot reach {server} over {link}: {reason}")]
    Unreachable {
        /// The server's address.
        server: SocketAddr,
        /// The link's name.
        link: String,
        /// The error, whose text may come from the peer.
        reason: Foreign,
    },
}

impl HandshakeError {
    /// Whether a further handshake with the same server over the same link may succeed.
    #[must_use]
    pub fn is_of_one_handshake(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::GivenUp { .. } | Self::NotConnected { .. } => true,
            Self::WrongServerKey { .. } | Self::NotRoamd { .. } | Self::Unreachable { .. } => false,
        }
    }
}

/// An open endpoint on its own sockets. When dropped, it closes its connection with [`close::NOT_NEEDED`], then the
/// sockets.
#[derive(Debug)]
pub struct Underlay {
    endpoint: Endpoint,
    socket: Arc<PathSocket>,
    /// Errors of its paths.
    pub errors: mpsc::Receiver<PathError>,
}

impl Underlay {
    fn open(
        network: &dyn Network,
        candidate: &Candidate,
        purpose: Purpose,
    ) -> io::Result<(Self, PathId)> {
        let udp = network.bind(candidate, purpose)?;
        let (reports, errors) = mpsc::channel(PATH_ERRORS);
        let socket = PathSocket::new(reports);
        let path = socket.open(udp, candidate.server, network.cut(&candidate.link));
        let config = match purpose {
            Purpose::Tunnel => quic::client_endpoint(),
            Purpose::Probe => quic::probe_endpoint(),
        };
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
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
    /// Its endpoint and sockets.
    pub underlay: Underlay,
    /// Its path.
    pub path: PathId,
    /// The candidate of that path.
    pub candidate: Candidate,
    /// When the handshake began.
    pub begun: Instant,
    /// Whether the server accepted the early packets (0-RTT).
    pub early_arrived: bool,
}

/// Makes connections to one server for one purpose (ALPN).
#[derive(Clone)]
pub struct Handshake {
    purpose: Purpose,
    transport: Arc<TransportConfig>,
    name: Arc<str>,
    fresh: Arc<QuicClientConfig>,
    resuming: Arc<Resuming>,
    expected: PublicKey,
    wrong: WrongServerKey,
}

impl Handshake {
    /// Handshakes with the one server of a client, which has the key `server`, for the purpose `alpn`.
    pub fn new(
        key: &PrivateKey,
        server: PublicKey,
        alpn: &[u8],
        transport: TransportConfig,
    ) -> Result<Self, TlsError> {
        Self::with(&Servers::new(key)?, server, alpn, transport)
    }

    /// Handshakes with that of the `servers` of a client which has the key `server`.
    pub(crate) fn with(
        servers: &Servers,
        server: PublicKey,
        alpn: &[u8],
        transport: TransportConfig,
    ) -> Result<Self, TlsError> {
        let ClientTls { name, fresh, resuming, wrong } = servers.with(server, alpn)?;
        Ok(Self {
            purpose: if alpn == tls::PROBE { Purpose::Probe } else { Purpose::Tunnel },
            transport: Arc::new(transport),
            name: name.into(),
            fresh: Arc::new(fresh),
            resuming: Arc::new(resuming),
            expected: server,
            wrong,
        })
    }

    fn config(&self, resumes: bool) -> Result<quinn::ClientConfig, TlsError> {
        let crypto = if resumes { Arc::new(self.resuming.once()?) } else { self.fresh.clone() };
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(self.transport.clone());
        Ok(config)
    }

    /// Connects over `candidate` within `limit`. `early` packets are sent with the first flight if there is a
    /// ticket of an earlier session (0-RTT, RFC 8446 §2.3); they may arrive more than once.
    ///
    /// Cancel safe: all that was opened is closed.
    pub async fn run(
        &self,
        network: &dyn Network,
        candidate: Candidate,
        limit: Duration,
        early: Option<Arc<[Bytes]>>,
    ) -> Result<Connected, HandshakeError> {
        self.begin(network, candidate, early)?.end(limit).await
    }

    fn begin(
        &self,
        network: &dyn Network,
        candidate: Candidate,
        early: Option<Arc<[Bytes]>>,
    ) -> Result<Begun, HandshakeError> {
        let Candidate { source, ref link, server, .. } = candidate;
        debug!(link, %source, %server, "connecting");
        let begun = clock::now();
        let (underlay, path) = Underlay::open(network, &candidate, self.purpose)
            .map_err(|error| unreachable(&candidate, &error))?;
        let config =
            self.config(early.is_some()).map_err(|error| unreachable(&candidate, &error))?;
        let connecting = underlay
            .endpoint
            .connect_with(config, VIRTUAL_SERVER, &self.name)
            .map_err(|error| unreachable(&candidate, &error))?;
        let handshake = self.clone();
        Ok(Begun { handshake, underlay, path, candidate, begun, connecting, early })
    }

    /// What it means that the handshake ended with this `error`.
    fn told(&self, candidate: &Candidate, error: &ConnectionError) -> Option<HandshakeError> {
        let server = candidate.server;
        let shown = self.wrong.lock().take();
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
                if matches!(
                    close.error_code,
                    TransportErrorCode::APPLICATION_ERROR | TransportErrorCode::CONNECTION_REFUSED
                ) =>
            {
                Some(given_up(candidate))
            }
            _ => None,
        }
    }
}

/// A handshake under way.
struct Begun {
    handshake: Handshake,
    underlay: Underlay,
    path: PathId,
    candidate: Candidate,
    begun: Instant,
    connecting: Connecting,
    early: Option<Arc<[Bytes]>>,
}

impl Begun {
    async fn end(self, limit: Duration) -> Result<Connected, HandshakeError> {
        let Self { handshake, mut underlay, path, candidate, begun, connecting, early } = self;
        let completed = tokio::select! {
            completed = time::timeout(limit, complete(connecting, early)) => completed,
            error = ended(&mut underlay.errors, candidate.transport) => {
                return Err(not_connected(&candidate, &error));
            }
        };
        match completed {
            Ok(Ok((connection, early_arrived))) => {
                Ok(Connected { connection, underlay, path, candidate, begun, early_arrived })
            }
            Ok(Err(error)) => {
                let told = handshake.told(&candidate, &error);
                Err(told.unwrap_or_else(|| unreachable(&candidate, &error)))
            }
            Err(_elapsed) => {
                let server = candidate.server.to_string();
                Err(HandshakeError::TimedOut { server, link: candidate.link })
            }
        }
    }
}

fn unreachable(candidate: &Candidate, reason: &dyn std::fmt::Display) -> HandshakeError {
    HandshakeError::Unreachable {
        server: candidate.server,
        link: candidate.link.clone(),
        reason: Foreign::of(reason),
    }
}

/// A server that closes a connection during its handshake sends APPLICATION_ERROR for any reason (RFC 9000
/// §10.2.3); one that stops refuses new ones, and may be back in a moment; a restarted server sends a stateless reset.
fn given_up(candidate: &Candidate) -> HandshakeError {
    HandshakeError::GivenUp { server: candidate.server, link: candidate.link.clone() }
}

/// Waits until the connection ends that a path over TCP is. An error of UDP is none of the path: the next packet may
/// arrive.
async fn ended(errors: &mut mpsc::Receiver<PathError>, transport: Transport) -> io::Error {
    if transport.is_stream()
        && let Some(PathError { error, .. }) = errors.recv().await
    {
        return error;
    }
    future::pending().await
}

fn not_connected(Candidate { server, link, .. }: &Candidate, error: &io::Error) -> HandshakeError {
    let (server, link, reason) = (*server, link.clone(), Foreign::of(error));
    if tcp::is_answer(error) {
        HandshakeError::Unreachable { server, link, reason }
    } else {
        HandshakeError::NotConnected { server, link, reason }
    }
}

/// Parallel handshakes over one candidate. QUIC retransmits the first packet of a handshake at doubling intervals
/// (RFC 9002 §6.2.1). When a network comes back, a further handshake succeeds before the next retransmission.
pub(crate) struct Attempt {
    handshake: Handshake,
    network: Arc<dyn Network>,
    candidate: Candidate,
    /// The oldest first.
    under_way: VecDeque<UnderWay>,
}

struct UnderWay {
    /// Its path; none if it could not be opened.
    path: Option<(Arc<PathSocket>, PathId)>,
    ends: BoxFuture<'static, Result<Connected, HandshakeError>>,
}

impl Attempt {
    /// An attempt without a handshake.
    #[must_use]
    pub(crate) fn new(
        handshake: Handshake,
        network: Arc<dyn Network>,
        candidate: Candidate,
    ) -> Self {
        Self { handshake, network, candidate, under_way: VecDeque::new() }
    }

    /// The candidate.
    #[must_use]
    pub(crate) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Starts a further handshake; see [`Handshake::run`]. Over TCP, where each is a connection of its own, only a few
    /// are under way. The oldest has the time that a slow path needs; of the others the older one gives way, as TCP, too,
    /// retransmits at doubling intervals.
    pub(crate) fn start(&mut self, limit: Duration, early: Option<Arc<[Bytes]>>) {
        let is_tcp = self.candidate.transport.is_stream();
        if is_tcp && self.under_way.len() >= TCP_HANDSHAKES {
            self.under_way.remove(1);
        }
        let begun = self.handshake.begin(&*self.network, self.candidate.clone(), early);
        let path = begun.as_ref().ok().map(|begun| (begun.underlay.socket.clone(), begun.path));
        let ends = Box::pin(async move { begun?.end(limit).await });
        self.under_way.push_back(UnderWay { path, ends });
    }

    /// Whether the server has heard of a handshake and only asked for a proof of the client's address (RFC 9000 §8.1.2): it
    /// is busy, and will hear of the same handshake again.
    #[must_use]
    pub(crate) fn is_put_off(&self) -> bool {
        let is_retry = |received| (1..u64::from(SMALLEST_UDP_PAYLOAD)).contains(&received);
        let paths = self.under_way.iter().filter_map(|it| it.path.as_ref());
        let mut received =
            paths.filter_map(|(socket, path)| Some(socket.stats(*path)?.received_bytes));
        !self.candidate.transport.is_stream() && received.any(is_retry)
    }

    /// Returns the first handshake that completes, or an error that the others would end with as well. An error of
    /// one handshake alone is returned only if no other one is left. Without a handshake this waits for ever.
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Connected, HandshakeError> {
        loop {
            match self.first_to_end().await {
                Err(error) if error.is_of_one_handshake() && !self.under_way.is_empty() => {}
                ended => return ended,
            }
        }
    }

    async fn first_to_end(&mut self) -> Result<Connected, HandshakeError> {
        future::poll_fn(|cx| {
            for place in 0..self.under_way.len() {
                if let Poll::Ready(ended) = self.under_way[place].ends.as_mut().poll(cx) {
                    drop(self.under_way.remove(place));
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Waits for the end of the handshake. Returns whether the server accepted the `early` packets.
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
