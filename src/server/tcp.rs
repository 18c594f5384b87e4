//! The server's TCP port: TLS and HTTP around the datagrams of clients whose networks let no UDP out.
//!
//! ```text
//!  accept ─ Gate ─▶ TLS ─▶ HTTP ─┬─▶ Upgrade: connect-udp ─▶ capsules ─▶ a known key is proven ─▶ stays
//!                   until REQUEST └─▶ anything else: 404              until PROOF: closed
//! ```
//! Until a known peer's QUIC connection runs over it, a TCP connection is one of many that the [gate](super::gate)
//! bounds: by number, by address and by rate, and the oldest gives way to a newer one. What it sends is read under a
//! [`Meter`]. Whether it may stay is decided in [`streams`](super::streams).

mod http2;
mod meter;
mod tls;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

pub(crate) use self::meter::Meter;
use self::{meter::Metered, tls::acceptor};
use super::{
    Server,
    handshake::HandshakePermit,
    streams::{Standing, Streams},
};
use crate::{
    clock,
    mutex::Mutex,
    path::tcp::{AnyIo, HTTP_2, PATH, Stream, UPGRADE as CONNECT_UDP, carry, settle},
    task::Task,
};

/// How long a client may take from the TCP handshake to the upgrade: three round trips of one second, and some
/// retransmissions.
const REQUEST: Duration = Duration::from_secs(10);
/// How often peers' QUIC connections are looked for at least, and at most.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Maximum of connections, each with a file descriptor.
const MOST: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;
/// The pause after the kernel refused to accept one, for want of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause after a connection was refused, which costs some ten microseconds of the datapath's thread.
const REFUSED: Duration = Duration::from_millis(1);
/// Bytes of a request's header; hyper takes no less.
const HEADER: usize = 8192;

/// The TCP port.
pub(crate) struct Port {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    dscp: u8,
}

/// What a TCP port counts.
#[derive(Debug, Default)]
pub(crate) struct Visitors {
    /// Refused at once, since there are too many.
    refused: AtomicU64,
    /// Closed for silence, garbage or want of a known key.
    dismissed: AtomicU64,
}

impl Visitors {
    #[must_use]
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    #[must_use]
    pub(crate) fn dismissed(&self) -> u64 {
        self.dismissed.load(Relaxed)
    }
}

impl Port {
    /// Listens on an address. `[::]` also takes IPv4. Packets are sent in the class `dscp`.
    pub(crate) fn bind(listen: SocketAddr, dscp: u8) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(!listen.ip().is_unspecified())?;
        }
        socket.set_nonblocking(true)?;
        // A restart need not wait for the connections before it (TIME-WAIT, RFC 9293 §3.6.1).
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        Ok(Self { listener, acceptor: acceptor().map_err(io::Error::other)?, dscp })
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it listens")
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, client)) => {
                    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                    return (stream, client);
                }
                Err(error) => {
                    debug!(%error, "cannot accept a TCP connection");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Takes clients on the port, until the task is dropped.
pub(super) fn spawn(server: &Arc<Server>, port: Port) -> Task {
    let server = server.clone();
    Task::spawn("TCP port", async move {
        // Whoever has a port has made the socket with streams.
        let Some(streams) = server.socket.streams().cloned() else { return };
        tokio::select! {
            never = serve(&server, &streams, Arc::new(port)) => match never {},
            never = look(&server, &streams) => match never {},
        }
    })
}

async fn serve(server: &Arc<Server>, streams: &Arc<Streams>, port: Arc<Port>) -> Infallible {
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            (stream, client) = port.accept() => {
                let has_room = visits.len() < MOST;
                let admitted = has_room.then(|| server.handshakes.admit_over_tcp(client.ip()));
                let Some(Ok(permit)) = admitted else {
                    server.visitors.refused.fetch_add(1, Relaxed);
                    drop(stream);
                    time::sleep(REFUSED).await;
                    continue;
                };
                let visit = Visit {
                    server: server.clone(),
                    streams: streams.clone(),
                    port: port.clone(),
                    client,
                };
                visits.spawn(visit.run(stream, permit));
            }
            Some(_ended) = visits.join_next() => {}
        }
    }
}

/// Looks where peers' QUIC connections are, for ever.
async fn look(server: &Server, streams: &Streams) -> Infallible {
    loop {
        let _ = time::timeout(LOOK, streams.look_is_due()).await;
        if streams.count() > 0 {
            let at = server.configured.borrow().peers.over_tcp();
            streams.looked(&at, clock::now());
        }
        time::sleep(LOOK_PAUSE).await;
    }
}

/// One TCP connection.
struct Visit {
    server: Arc<Server>,
    streams: Arc<Streams>,
    port: Arc<Port>,
    client: SocketAddr,
}

impl Visit {
    async fn run(self, stream: TcpStream, mut permit: HandshakePermit) {
        let meter = Arc::<Meter>::default();
        let upgraded = tokio::select! {
            upgraded = time::timeout(REQUEST, self.upgrade(stream, &meter)) => upgraded,
            () = permit.must_give_way() => return self.dismissed("gave way to a newer one"),
        };
        let stream = match upgraded {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return,
            Ok(Err(_)) => return self.dismissed("no TLS or HTTP"),
            Err(_elapsed) => return self.dismissed("no request in time"),
        };
        permit.asked_for_datagrams();
        let attached = self.streams.attach(self.client, meter);
        let mut standings = attached.standing.clone();
        let carried = carry(stream, &attached.outbox, attached.address, &attached);
        tokio::pin!(carried);
        let mut permit = Some(permit);
        loop {
            let standing = *standings.borrow_and_update();
            match standing {
                Standing::Stranger | Standing::Seen => {}
                // Its place at the gate is free. Whether its address is a good one is known by the QUIC handshake.
                Standing::Known => permit = None,
                Standing::Unused => return debug!(client = %self.client, "no peer any more"),
                Standing::Dismissed(why) => return self.dismissed(why),
            }
            let gives_way = permit.as_mut().filter(|_| standing == Standing::Stranger);
            tokio::select! {
                ended = &mut carried => return self.ended(ended),
                () = must_give_way(gives_way) => return self.dismissed("gave way to a newer one"),
                _ = standings.changed() => {}
            }
        }
    }

    fn dismissed(&self, why: &str) {
        debug!(client = %self.client, why, "TCP connection closed");
        self.server.visitors.dismissed.fetch_add(1, Relaxed);
    }

    fn ended(&self, Err(error): io::Result<Infallible>) {
        if error.kind() == io::ErrorKind::InvalidData {
            self.server.visitors.dismissed.fetch_add(1, Relaxed);
        }
        debug!(client = %self.client, %error, "TCP connection ended");
    }

    /// Answers one request; `None` if it does not ask for datagrams.
    async fn upgrade(&self, stream: TcpStream, meter: &Arc<Meter>) -> io::Result<Option<Stream>> {
        settle(&stream, self.client.is_ipv4(), self.port.dscp)?;
        let stream = self.port.acceptor.accept(Metered::of(stream, meter.clone())).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        let stream: AnyIo = Box::new(stream);
        if is_http2 {
            return http2::upgrade(stream).await;
        }
        let upgrade = Mutex::new(None);
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .max_buf_size(HEADER)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(|request| std::future::ready(answer(request, &upgrade))),
            )
            .with_upgrades()
            .await
            .map_err(io::Error::other)?;
        let upgrade = upgrade.into_inner();
        let Some(upgrade) = upgrade else { return Ok(None) };
        Stream::of(upgrade.await.map_err(io::Error::other)?).map(Some)
    }
}

/// Waits until a newer connection takes the place of this one; for ever if it has none.
async fn must_give_way(permit: Option<&mut HandshakePermit>) {
    match permit {
        Some(permit) => permit.must_give_way().await,
        None => std::future::pending().await,
    }
}

/// The answer to a request. One that asks for datagrams to this server itself is upgraded; to all others, this is a web
/// server with no page.
fn answer(
    mut request: Request<Incoming>,
    upgrade: &Mutex<Option<OnUpgrade>>,
) -> hyper::Result<Response<String>> {
    let mut response = Response::new(String::new());
    if !asks_for_datagrams(&request) {
        *response.status_mut() = StatusCode::NOT_FOUND;
        // One request has had its turn on the datapath's thread. Not by hyper's setting, which would close an upgraded
        // connection in name as well.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    *upgrade.lock() = Some(hyper::upgrade::on(&mut request));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(CONNECT_UDP));
    headers.insert("capsule-protocol", HeaderValue::from_static("?1"));
    Ok(response)
}

/// Whether a request is for the host `localhost`. The port is not looked at: there is one server only, and no other is ever
/// sent to.
fn asks_for_us<B>(request: &Request<B>) -> bool {
    let port = request.uri().path().strip_prefix(PATH).and_then(|rest| rest.strip_suffix('/'));
    port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether a request is what RFC 9298 §3.2 says, for this server itself.
fn asks_for_datagrams<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && asks_for_us(request)
        && has_token(request.headers(), CONNECTION, "upgrade")
        && has_token(request.headers(), UPGRADE, CONNECT_UDP)
}

/// Whether a header that is a list (RFC 9110 §5.6.1) has this element.
fn has_token(headers: &HeaderMap, name: hyper::header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|element| element.trim().eq_ignore_ascii_case(token))
}
