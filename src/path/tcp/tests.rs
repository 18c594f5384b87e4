use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::{FutureExt as _, future::BoxFuture};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::Paths,
    identity::PrivateKey,
    link::{
        candidate::{Candidate, Transport},
        monitor::Hints,
    },
    path::{
        handshake::{Attempt, Handshake, HandshakeError},
        network::{Network, NetworkError},
        rank::LinkFacts,
    },
    quic::{self, tls},
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// The loopback, with TCP alone.
#[derive(Debug)]
struct Loopback;

impl Network for Loopback {
    fn candidates<'a>(
        &'a self,
        _: &'a [SocketAddr],
        _: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn bind(&self, candidate: &Candidate) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let local = SocketAddr::new(candidate.source, 0);
        Ok(TcpSocket::open(local, candidate.server, None, 0, None)?)
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
    let failed = handshake();
    let failed = failed.run(&Loopback, candidate, LONG, None);
    time::timeout(LONG / 2, failed).await.expect("it waits for an answer").unwrap_err()
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
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
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
    let socket = Loopback.bind(&candidate).unwrap();
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
    let mut attempt = Attempt::new(handshake(), Arc::new(Loopback), candidate);
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
