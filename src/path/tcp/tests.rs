use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::{FutureExt as _, future::BoxFuture};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::{Paths, Proxy, ServerPeer},
    identity::PrivateKey,
    link::{
        candidate::{Candidate, Transport},
        monitor::Hints,
    },
    path::{
        handshake::{Attempt, Handshake, HandshakeError},
        meter::Purpose,
        network::{Network, NetworkError},
        rank::LinkFacts,
        servers::Detours,
    },
    quic::{self, tls},
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// The loopback, with TCP alone.
#[derive(Debug)]
struct Loopback(Way);

impl Network for Loopback {
    fn candidates<'a>(
        &'a self,
        _: &'a [SocketAddr],
        _: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn bind(&self, candidate: &Candidate, _: Purpose) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let local = SocketAddr::new(candidate.source, 0);
        Ok(TcpSocket::open(local, candidate.server, self.0.clone(), None, 0, None)?)
    }

    fn hints(&self) -> Hints {
        Hints::of(&watch::Sender::new(()))
    }
}

/// A server, and the way to it.
async fn listen() -> (TcpListener, Candidate) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let candidate = Candidate {
        link: "lo".into(),
        index: 1,
        source: [127, 0, 0, 1].into(),
        router: None,
        metric: 0,
        server: listener.local_addr().unwrap(),
        transport: Transport::Tcp,
    };
    (listener, candidate)
}

fn handshake() -> Handshake {
    let key = PrivateKey::generate().unwrap();
    Handshake::new(&key, key.public_key(), tls::PROBE, quic::probe_transport()).unwrap()
}

async fn failure(candidate: Candidate) -> HandshakeError {
    failure_by(Way::Direct, candidate).await
}

async fn failure_by(way: Way, candidate: Candidate) -> HandshakeError {
    let (failed, loopback) = (handshake(), Loopback(way));
    let failed = failed.run(&loopback, candidate, LONG, None);
    time::timeout(LONG / 2, failed).await.expect("it waits for an answer").unwrap_err()
}

/// Reads a request.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

fn acceptor() -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(tls::provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config).into()
}

#[tokio::test]
async fn an_answer_that_is_no_upgrade_is_told_with_its_status() {
    let (listener, candidate) = listen().await;
    let serve = async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor().accept(stream).await.unwrap();
        request(&mut stream).await;
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
        // It waits for a further request, as web servers do.
        std::future::pending::<()>().await;
    };
    let _server = Task::spawn("web server", serve);
    let error = failure(candidate).await;
    assert!(error.to_string().ends_with("HTTP status 403 Forbidden"), "{error}");
    assert!(!error.is_of_one_handshake(), "a further one would end in the same way");
}

#[tokio::test]
async fn what_speaks_no_tls_is_told() {
    let (listener, candidate) = listen().await;
    let serve = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail.example.com ESMTP\r\n").await.unwrap();
        std::future::pending::<()>().await;
    };
    let _server = Task::spawn("mail server", serve);
    let error = failure(candidate).await;
    assert!(matches!(error, HandshakeError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_port_that_is_closed_is_told_and_worth_another_try() {
    let (listener, candidate) = listen().await;
    drop(listener);
    let error = failure(candidate).await;
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(error.is_of_one_handshake(), "a server may be back in a moment");
}

#[tokio::test]
async fn a_connection_that_ends_is_not_followed_by_another_one() {
    let (listener, candidate) = listen().await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let serve = async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
            count.fetch_add(1, Relaxed);
        }
    };
    let _server = Task::spawn("server", serve);
    let socket = Loopback(Way::Direct).bind(&candidate, Purpose::Tunnel).unwrap();
    let mut meta = [RecvMeta::default()];
    let error = std::future::poll_fn(|cx| {
        socket.poll_recv(cx, &mut [IoSliceMut::new(&mut [0; 1500])], &mut meta)
    });
    assert!(error.await.is_err());
    time::sleep(Duration::from_millis(600)).await;
    assert_eq!(accepted.load(Relaxed), 1);
    let transmit = Transmit {
        destination: candidate.server,
        ecn: None,
        contents: &[0; 1200],
        segment_size: None,
        src_ip: None,
    };
    assert_eq!(socket.try_send(&transmit).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_fresh_handshake_takes_the_place_of_one_that_stalls_but_not_of_the_first() {
    let (listener, candidate) = listen().await;
    let mut attempt = Attempt::new(handshake(), Arc::new(Loopback(Way::Direct)), candidate);
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..6 {
        attempt.start(LONG, None);
        tokio::select! {
            ended = attempt.next() => panic!("{:?}", ended.map(drop)),
            accepted = listener.accept() => streams.push(accepted.unwrap().0),
        }
    }
    let mut open = Vec::new();
    let drain = async {
        // An endpoint that is dropped says goodbye for a second.
        time::sleep(Duration::from_millis(1500)).await;
        for (place, stream) in streams.iter_mut().enumerate() {
            let mut hello = Vec::new();
            let ended = time::timeout(Duration::from_millis(100), stream.read_to_end(&mut hello));
            if ended.await.is_err() {
                open.push(place);
            }
        }
    };
    tokio::select! {
        ended = attempt.next() => panic!("{:?}", ended.map(drop)),
        () = drain => {}
    }
    assert_eq!(open, [0, 4, 5]);
}

/// A server that only a proxy knows, which wants user and password.
fn behind_proxy() -> ServerPeer {
    let credentials = Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".parse().unwrap());
    let at = "192.0.2.8:3128".parse().unwrap();
    ServerPeer {
        name: "vpn".into(),
        addresses: vec!["vpn.example.net:4433".parse().unwrap()],
        tcp_port: Some(443),
        relay: None,
        home: Vec::new(),
        proxy: Some(Box::new(Proxy { at, tls: false, credentials })),
        public_key: PrivateKey::generate().unwrap().public_key(),
    }
}

/// The way there.
fn by_proxy() -> Way {
    let ways = Ways::new(&behind_proxy(), Arc::new(Detours::new()), None);
    let over = |address: &str| ways.over(Transport::Proxy, address.parse().unwrap());
    assert!(over("192.0.2.9:3128").is_none(), "the password is not for everybody");
    over("192.0.2.8:3128").unwrap()
}

#[test]
fn a_reload_forgets_what_a_proxy_refused_if_something_of_it_has_changed() {
    let (server, detours) = (behind_proxy(), Arc::new(Detours::new()));
    let before = Ways::new(&server, detours.clone(), None);
    let is_kept = |change: fn(&mut ServerPeer)| {
        let mut server = server.clone();
        change(&mut server);
        let after = Ways::new(&server, detours.clone(), Some(&before));
        let over = |ways: &Ways| ways.over(Transport::Proxy, "192.0.2.8:3128".parse().unwrap());
        match (over(&before), over(&after)) {
            (Some(Way::Proxy(before)), Some(Way::Proxy(after))) => Arc::ptr_eq(&before, &after),
            other => panic!("{other:?}"),
        }
    };
    assert!(is_kept(|server| server.addresses.push("192.0.2.1:4433".parse().unwrap())));
    assert!(!is_kept(|server| server.tcp_port = Some(8443)));
    assert!(!is_kept(|server| server.proxy.as_mut().unwrap().credentials = None));
}

/// A proxy that gives every request this answer, followed by `more` again and again.
async fn proxy(answer: &'static [u8], more: &'static [u8]) -> (Task, Candidate) {
    let (listener, candidate) = listen().await;
    let serve = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let request = request(&mut stream).await;
            assert!(request.starts_with("CONNECT vpn.example.net:443 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("proxy-authorization: Basic QWxhZ"), "{request}");
            let mut written = stream.write_all(answer).await;
            while written.is_ok() && !more.is_empty() {
                written = stream.write_all(more).await;
            }
            if answer.is_empty() {
                continue;
            }
            // It waits for what follows, as proxies do.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    };
    (Task::spawn("proxy", serve), candidate)
}

#[tokio::test]
async fn what_a_proxy_says_is_told_in_its_words() {
    let denied = b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nContent-Length: 0\r\n\r\n";
    let wrong = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
    let moved = b"HTTP/1.1 302 Found\r\nLocation: https://192.0.2.9/\r\n\r\n";
    for (answer, words) in [
        (&denied[..], "HTTP status 403 Forbidden: ERR_ACCESS_DENIED 0"),
        (wrong, "HTTP status 407 Proxy Authentication Required"),
        (moved, "HTTP status 302 Found"),
    ] {
        let (_proxy, candidate) = proxy(answer, b"").await;
        let error = failure_by(by_proxy(), candidate).await;
        assert!(error.to_string().ends_with(words), "{error}");
        assert!(!error.is_of_one_handshake(), "{error}");
        assert!(!error.to_string().contains("QWxh"), "{error}");
    }
    let echo = b"HTTP/1.1 403 Forbidden\r\nProxy-Status: x; details=\"open sesame\"\r\n\r\n";
    let (_proxy, candidate) = proxy(echo, b"").await;
    let error = failure_by(by_proxy(), candidate).await.to_string();
    assert!(error.contains("the proxy refused") && !error.contains("sesame"), "{error}");
    let down = b"HTTP/1.1 503 Service Unavailable\r\nProxy-Status: a; error=dns_error\r\n\r\n";
    let (_proxy, candidate) = proxy(down, b"").await;
    let error = failure_by(by_proxy(), candidate).await;
    assert!(error.to_string().contains("503 Service Unavailable"), "{error}");
    assert!(error.is_of_one_handshake(), "the server may be back in a moment");
}

#[tokio::test]
async fn a_proxy_that_says_nothing_sensible_is_given_up() {
    let early = b"HTTP/1.1 200 OK\r\n\r\n220 mail.example.com ESMTP\r\n";
    let answers: [(&[u8], &[u8], &str); 6] = [
        (b"\x05\x00\xff\r\n\r\n", b"", "invalid HTTP version parsed"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
            "it sent 65536 bytes and no answer",
        ),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", "message head is too large"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"bbbbbbbbbbbbbbbb", "message head is too large"),
        (early, b"", "the proxy sent data of its own after its answer"),
        (b"", b"", "connection closed before message completed"),
    ];
    for (answer, more, words) in answers {
        let (_proxy, candidate) = proxy(answer, more).await;
        let error = failure_by(by_proxy(), candidate).await;
        assert!(error.to_string().ends_with(words), "{error}");
        assert_eq!(error.is_of_one_handshake(), answer.is_empty(), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_is_asked_for_the_server_and_told_no_more_than_tls_shows() {
    let (listener, candidate) = listen().await;
    let serve = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut stream = acceptor().accept(stream).await.unwrap();
        assert_eq!(stream.get_ref().1.server_name(), Some("vpn.example.net"));
        let asked = request(&mut stream).await;
        assert!(
            asked.starts_with("GET /.well-known/masque/udp/localhost/443/ HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(!asked.to_lowercase().contains("authorization"), "{asked}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        // A datagram capsule with QUIC's first packet.
        assert_eq!(stream.read_u8().await.unwrap(), 0);
    };
    let server = tokio::spawn(serve);
    let socket = Loopback(by_proxy()).bind(&candidate, Purpose::Tunnel).unwrap();
    let transmit = Transmit {
        destination: candidate.server,
        ecn: None,
        contents: &[0; 1200],
        segment_size: None,
        src_ip: None,
    };
    socket.try_send(&transmit).unwrap();
    time::timeout(LONG, server).await.expect("it ends").unwrap();
}

/// The failure at a relay in HTTP/2 that answers so, and holds what it returns.
async fn relay(
    server: h2::server::Builder,
    answer: fn(h2::server::SendResponse<Bytes>) -> Option<h2::SendStream<Bytes>>,
) -> HandshakeError {
    let (listener, candidate) = listen().await;
    let mut tls = Arc::unwrap_or_clone(acceptor().config().clone());
    tls.alpn_protocols = vec![HTTP_2.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let serve = async move {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        let mut held = Vec::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            assert_eq!(request.uri().to_string(), "https://relay.example/vpn.example.net/4433/");
            held.push((answer(respond), request));
        }
    };
    let _relay = Task::spawn("relay", serve);
    let way = Way::unproven("https://relay.example/vpn.example.net/4433/", HTTP_2);
    failure_by(way, candidate).await
}

#[tokio::test]
async fn what_a_relay_says_is_told() {
    let mut server = h2::server::Builder::new();
    let error = relay(server.clone(), |_| None).await;
    assert!(error.to_string().ends_with("the relay has no extended CONNECT (RFC 8441)"), "{error}");
    server.enable_connect_protocol();
    let error = relay(server.clone(), |mut respond| {
        let answer =
            hyper::Response::builder().status(302).header("location", "https://192.0.2.9/");
        respond.send_response(answer.body(()).unwrap(), true).ok()
    });
    let error = error.await;
    assert!(error.to_string().ends_with("HTTP status 302 Found"), "{error}");
    assert!(!error.is_of_one_handshake(), "{error}");
    let error = relay(server, |mut respond| {
        respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
        None
    });
    let error = error.await;
    assert!(error.is_of_one_handshake(), "{error}");
}

#[tokio::test]
async fn capsules_of_a_relay_that_cannot_be_are_the_end_and_others_are_skipped() {
    let server = || {
        let mut server = h2::server::Builder::new();
        server.enable_connect_protocol().clone()
    };
    // A DATAGRAM of no bytes, which has no context.
    let error = relay(server(), |mut respond| {
        let mut stream = respond.send_response(hyper::Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(&[0, 0]), false).unwrap();
        Some(stream)
    });
    let error = error.await;
    assert!(matches!(error, HandshakeError::Unreachable { .. }), "{error}");
    // A type that nobody knows, of 2^62 - 1 bytes, and the end in the middle of it.
    let error = relay(server(), |mut respond| {
        let mut stream = respond.send_response(hyper::Response::new(()), false).unwrap();
        let begun = [&[0x40, 0x99][..], &[0xff; 8], &[7; 100]].concat();
        stream.send_data(begun.into(), true).unwrap();
        Some(stream)
    });
    let error = error.await;
    assert!(matches!(error, HandshakeError::NotConnected { .. }), "{error}");
}

#[tokio::test]
async fn a_password_that_is_refused_is_not_sent_again_soon() {
    let refuse = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    let (way, (asked, candidate)) = (by_proxy(), proxy(refuse, b"").await);
    failure_by(way.clone(), candidate).await;
    drop(asked);
    let (_agreeing, candidate) = proxy(b"HTTP/1.1 200 OK\r\n\r\n", b"").await;
    let error = failure_by(way, candidate).await.to_string();
    assert!(
        error.ends_with("407 Proxy Authentication Required; it is asked again later"),
        "{error}"
    );
}

#[tokio::test]
async fn of_many_attempts_at_the_same_time_one_sends_the_password() {
    let (listener, candidate) = listen().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let serve = async move {
        let mut streams = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            streams.spawn(async move {
                // Whoever gives up has asked nothing.
                while stream.read_u8().await.is_ok_and(|byte| byte != b'\n') {}
                if stream.read_u8().await.is_ok() {
                    count.fetch_add(1, Relaxed);
                    time::sleep(Duration::from_millis(100)).await;
                    let refuse = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                    let _ = stream.write_all(refuse).await;
                }
            });
        }
    };
    let _proxy = Task::spawn("proxy", serve);
    let way = by_proxy();
    let attempts = (0..4).map(|_| failure_by(way.clone(), candidate.clone()));
    for error in futures_util::future::join_all(attempts).await {
        assert!(error.to_string().contains("407 Proxy Authentication Required"), "{error}");
    }
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn a_proxy_that_wants_to_be_left_alone_is() {
    let busy = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 60\r\n\r\n";
    let (way, (_busy, candidate)) = (by_proxy(), proxy(busy, b"").await);
    let error = failure_by(way.clone(), candidate.clone()).await;
    assert!(error.is_of_one_handshake(), "{error}");
    let error = failure_by(way, candidate).await;
    assert!(error.to_string().ends_with("503 Service Unavailable; it is asked again later"));
    assert!(!error.is_of_one_handshake(), "{error}");
}
