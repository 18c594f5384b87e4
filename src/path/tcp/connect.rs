//! From a candidate to a stream of capsules: TCP, TLS 1.3, and a request for datagrams (RFC 9298 §3). A proxy is asked for
//! the server's TCP port before (CONNECT, RFC 9110 §9.3.6).

use std::{error::Error as _, io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Request, Response, StatusCode, Uri,
    client::conn::http1,
    header::{
        CONNECTION, HOST, HeaderName, PROXY_AUTHORIZATION, RETRY_AFTER, UPGRADE as UPGRADE_HEADER,
    },
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpSocket;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    congestion, http2,
    limited::{Limited, LimitedStream},
    stream::{AnyIo, Io, Stream},
    way::{Proxy, Way},
};
use crate::{
    config::HostPort,
    quic::tls::{self, TlsError},
};

/// The request's path, apart from the port and a slash: the default template of RFC 9298 §2, with a target that is the
/// server itself.
pub(crate) const PATH: &str = "/.well-known/masque/udp/localhost/";
/// The protocol that follows HTTP.
pub(crate) const UPGRADE: &str = "connect-udp";
/// RFC 9297 §3.4.
pub(super) const CAPSULES: HeaderName = HeaderName::from_static("capsule-protocol");
/// Headers in which a proxy says why: RFC 9209, and squid's own.
const REASONS: [HeaderName; 2] =
    [HeaderName::from_static("proxy-status"), HeaderName::from_static("x-squid-error")];
/// Versions of HTTP as TLS names them (RFC 7301 §6, RFC 9113 §3.1).
pub(crate) const HTTP_1: &[u8] = b"http/1.1";
pub(crate) const HTTP_2: &[u8] = b"h2";
/// What a client offers, as web browsers do.
pub(super) const ALPN: [&[u8]; 2] = [HTTP_2, HTTP_1];
/// Bytes of an answer's header; hyper takes no less.
pub(super) const HEADER: usize = 8192;

/// Bytes that the kernel takes before it has sent those before: about a full batch of TLS. What waits here is not in the
/// tunnel's queue.
const UNSENT: u32 = 16 * 1024;
/// How long the other side may leave bytes unacknowledged (TCP_USER_TIMEOUT of tcp(7)). After that a new connection may
/// find a way that this one has not: where a NAT forgot it, or its server was started again.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// A socket on `local` and on `link` alone; see [`TcpSocket::open`](super::TcpSocket::open).
pub(super) fn bind(
    local: SocketAddr,
    link: Option<&str>,
    dscp: u8,
    mark: Option<u32>,
) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(link) = link {
        socket.bind_device(Some(link.as_bytes()))?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    settle(&socket, local.is_ipv4(), dscp)?;
    socket.bind(&local.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Makes a TCP socket hold as little back as it can, and send in the class `dscp`.
pub(crate) fn settle(socket: &impl AsFd, is_ipv4: bool, dscp: u8) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    congestion::choose(&socket);
    if dscp != 0 {
        let class = u32::from(dscp << 2);
        if is_ipv4 {
            socket.set_tos_v4(class)?;
        } else {
            socket.set_tclass_v6(class)?;
        }
    }
    Ok(())
}

/// Connects, and asks the server for its own UDP port.
pub(super) async fn connect(socket: TcpSocket, to: SocketAddr, way: &Way) -> io::Result<Stream> {
    let (stream, limit) = Limited::of(socket.connect(to).await?);
    let (stream, server): (AnyIo, HostPort) = match way {
        Way::Direct => (Box::new(stream), to.into()),
        Way::Proxy(proxy) => (through(proxy, stream).await?, proxy.server.clone()),
        Way::Relay(relay) => {
            let stream = relay.tls.connect(stream).await?;
            let answer = ask_for_datagrams(stream, "the relay", relay.target.clone()).await;
            relay.leader.patience.answered(&answer);
            limit.lift();
            return answer;
        }
    };
    let stream = wrap(stream, &server).await?;
    let target = format!("https://{server}{PATH}{}/", server.port);
    let stream = ask_for_datagrams(stream, "it", target.parse().map_err(io::Error::other)?).await?;
    limit.lift();
    Ok(stream)
}

/// Asks `whom` for datagrams to the target that the URI names, in the version of HTTP that TLS has found.
async fn ask_for_datagrams<S: Io>(
    stream: TlsStream<S>,
    whom: &str,
    target: Uri,
) -> io::Result<Stream> {
    if stream.get_ref().1.alpn_protocol() == Some(HTTP_2) {
        return http2::ask(Box::new(stream), whom, target).await;
    }
    let path = target.path_and_query().map_or("/", |it| it.as_str());
    let request = Request::get(path)
        .header(HOST, target.authority().map_or("", |it| it.as_str()))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE_HEADER, UPGRADE)
        .header(CAPSULES, "?1");
    let is_upgrade = |status| status == StatusCode::SWITCHING_PROTOCOLS;
    ask(Box::new(stream), whom, request, is_upgrade).await
}

/// Has a proxy connect to the server.
async fn through(proxy: &Proxy, stream: LimitedStream) -> io::Result<AnyIo> {
    let stream: AnyIo = match &proxy.tls {
        Some(tls) => Box::new(tls.connect(stream).await?),
        None => Box::new(stream),
    };
    let server = proxy.server.to_string();
    let mut request = Request::connect(&server).header(HOST, &server);
    if let Some(credentials) = &proxy.credentials {
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let patience = &proxy.leader.patience;
    let turn = if proxy.credentials.is_some() { patience.turn().await? } else { None };
    let answer = ask(stream, "the proxy", request, |it| it.is_success()).await;
    patience.answered(&answer);
    drop(turn);
    let Stream { io, begun } = answer.map_err(|error| proxy.told(error))?;
    if !begun.is_empty() {
        // The server has said nothing, for it waits for our TLS.
        let error = "the proxy sent data of its own after its answer";
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(io)
}

impl Proxy {
    /// The error of an answer, without the secret that it may repeat.
    fn told(&self, error: io::Error) -> io::Error {
        let text = error.to_string();
        let secret = self.credentials.as_ref().and_then(|it| it.to_str().ok()?.split_once(' '));
        let Some((_, secret)) = secret else { return error };
        let plain = STANDARD.decode(secret).unwrap_or_default();
        let plain = String::from_utf8_lossy(&plain);
        let password = plain.split_once(':').map_or("", |(_, password)| password);
        let is_shown = |secret: &str| !secret.is_empty() && text.contains(secret);
        if is_shown(secret) || is_shown(password) {
            let told = "the proxy refused, in words that hold the password";
            return io::Error::new(error.kind(), told);
        }
        error
    }
}

/// Sends a request to `whom`; the stream behind the answer, if it `is_agreed`.
async fn ask(
    stream: AnyIo,
    whom: &str,
    request: hyper::http::request::Builder,
    is_agreed: impl Fn(StatusCode) -> bool,
) -> io::Result<Stream> {
    let request = request.body(String::new()).map_err(io::Error::other)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEADER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let upgraded = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        if is_agreed(response.status()) {
            hyper::upgrade::on(response).await.map_err(broken)
        } else {
            // The connection stays open for a further request, so nothing else is waited for.
            Err(refused(whom, &response))
        }
    };
    let connection = async { connection.with_upgrades().await.map_err(broken) };
    let (upgraded, ()) = tokio::try_join!(upgraded, connection)?;
    Stream::of(upgraded)
}

/// An answer that is not the one that was wanted.
#[derive(Debug, thiserror::Error)]
#[error("{whom} answered with HTTP status {status}{reason}")]
pub(super) struct Refused {
    whom: String,
    pub(super) status: StatusCode,
    /// What follows, such as its own words behind a colon.
    reason: String,
    /// How long it wants not to be asked.
    pub(super) retry_after: Option<Duration>,
}

impl Refused {
    pub(super) fn new(whom: &str, status: StatusCode, reason: String) -> Self {
        Self { whom: whom.into(), status, reason, retry_after: None }
    }
}

/// The error of an answer that is not the one that was wanted. One that may be another in a moment is no
/// [answer](is_answer).
pub(super) fn refused<B>(whom: &str, response: &Response<B>) -> io::Error {
    let status = response.status();
    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let kind = if may_pass { io::ErrorKind::ConnectionAborted } else { io::ErrorKind::Other };
    let reason = REASONS.iter().find_map(|name| response.headers().get(name)?.to_str().ok());
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    // It may be a date as well, which nobody's clock has to agree with.
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
    let mut refused = Refused::new(whom, status, reason);
    refused.retry_after =
        retry_after.and_then(|it| it.trim().parse().ok()).map(Duration::from_secs);
    io::Error::new(kind, refused)
}

/// The connection ended in the middle of HTTP, or what came was not HTTP.
fn broken(error: hyper::Error) -> io::Error {
    if let Some(below) = error.source().and_then(|it| it.downcast_ref::<io::Error>()) {
        return io::Error::new(below.kind(), below.to_string());
    }
    let is_http = error.is_parse() || error.is_user();
    let kind = if is_http { io::ErrorKind::Other } else { io::ErrorKind::ConnectionAborted };
    io::Error::new(kind, error)
}

/// Whether a connection that ended with this `error` shows that something else than roamd is at the other end: TLS or
/// HTTP failed. A further connection would end in the same way.
pub(crate) fn is_answer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidData)
}

/// Begins TLS with the server.
pub(crate) async fn wrap<S: Io>(stream: S, server: &HostPort) -> io::Result<TlsStream<S>> {
    let tls = TlsConnector::from(Arc::new(client().map_err(io::Error::other)?));
    tls.connect(name_of(&server.host)?, stream).await
}

/// The name that a certificate is for. An address is named to nobody.
pub(super) fn name_of(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(io::Error::other)
}

/// TLS 1.3 without proof of who the server is, which QUIC asks for.
pub(crate) fn client() -> Result<ClientConfig, TlsError> {
    let provider = tls::provider();
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(schemes)))
        .with_no_client_auth();
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Takes any certificate, and proof of any key.
#[derive(Debug)]
struct AnyServer(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
