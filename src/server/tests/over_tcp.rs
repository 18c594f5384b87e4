//! Clients over TCP, those that are none, and those that want more than there is.

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::{
    path::{
        cut::Cut,
        socket::{PathId, PathSocket, VIRTUAL_SERVER},
        tcp::{HTTP_1, HTTP_2, TcpSocket, Way, wrap},
    },
    server::streams::is_virtual,
    wire::capsule,
};

/// What a client asks for.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n";

/// A client whose packets go over TCP first.
struct Roamer {
    endpoint: Endpoint,
    socket: Arc<PathSocket>,
    tcp: PathId,
    udp: PathId,
}

impl Roamer {
    fn new(site: &Site) -> Self {
        Self::by(site, Way::Direct)
    }

    fn by(site: &Site, way: Way) -> Self {
        let (errors, _) = mpsc::channel(1);
        let socket = PathSocket::new(errors);
        let local = "127.0.0.1:0".parse().unwrap();
        let over_tcp = TcpSocket::open(local, site.tcp, way, None, 0, None).unwrap();
        let tcp = socket.open(over_tcp, site.tcp, Cut::default());
        let udp = socket.open(
            UdpSocket::bind(local, None, 0, None).unwrap(),
            site.address,
            Cut::default(),
        );
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::client_endpoint(),
            None,
            socket.clone(),
            runtime,
        )
        .unwrap();
        Self { endpoint, socket, tcp, udp }
    }

    async fn connect(&self, site: &Site, key: &PrivateKey) -> Result<Connection, ConnectionError> {
        self.connect_for(tls::PROBE, site, key).await
    }

    async fn connect_for(
        &self,
        purpose: &[u8],
        site: &Site,
        key: &PrivateKey,
    ) -> Result<Connection, ConnectionError> {
        let mut config = quinn::ClientConfig::new(Arc::new(site.tls(key, purpose).fresh));
        config.transport_config(Arc::new(quic::probe_transport()));
        self.endpoint.connect_with(config, VIRTUAL_SERVER, "roamd").unwrap().await
    }
}

/// Asks until there is an answer.
async fn ask(connection: &Connection) {
    let answered = async {
        loop {
            let question = Question { asked: 0, process: 1 };
            connection.send_datagram(question.encode()).unwrap();
            let heard = timeout(Duration::from_millis(200), connection.read_datagram()).await;
            // The server pads, too.
            if heard.is_ok_and(|heard| Answer::decode(&heard.unwrap()).is_some()) {
                return;
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("no answer");
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !done() {
        assert!(clock::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl Site {
    fn over_tcp(&self) -> usize {
        self.server.socket.streams().unwrap().count()
    }

    async fn tls_stream(&self) -> TlsStream<TcpStream> {
        wrap(TcpStream::connect(self.tcp).await.unwrap(), &self.tcp.into()).await.unwrap()
    }

    /// Sends a request and returns the connection and the answer's header.
    async fn request(&self, request: &str) -> (TlsStream<TcpStream>, String) {
        let mut stream = self.tls_stream().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (stream, String::from_utf8(answer).unwrap())
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    // An end without close_notify is an error to rustls.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it stays open");
}

#[tokio::test]
async fn one_connection_moves_from_tcp_to_udp_and_back() {
    let target = "https://localhost/.well-known/masque/udp/localhost/4433/";
    let versions = [HTTP_1, HTTP_2].map(|alpn| Way::unproven(target, alpn));
    for way in [Way::Direct].into_iter().chain(versions) {
        moves_from_tcp_to_udp_and_back(way).await;
    }
}

async fn moves_from_tcp_to_udp_and_back(way: Way) {
    let site = Site::new();
    let roamer = Roamer::by(&site, way);
    let connecting = roamer.connect(&site, &site.laptop);
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    let peer = site.server.configured.borrow().peers.iter().next().unwrap().clone();
    for (path, over_tcp) in
        [(roamer.tcp, true), (roamer.udp, false), (roamer.tcp, true), (roamer.udp, false)]
    {
        assert!(roamer.socket.switch(path));
        ask(&connection).await;
        let is_there = || {
            let remotes = peer.probes.remotes();
            remotes.len() == 1 && is_virtual(remotes[0].ip()) == over_tcp
        };
        eventually("the server follows", is_there).await;
    }
    assert_eq!(site.over_tcp(), 1, "all over one TCP connection");
    roamer.socket.close(roamer.tcp);
    ask(&connection).await;
    eventually("the TCP connection ends", || site.over_tcp() == 0).await;
}

#[tokio::test]
async fn a_stranger_is_refused_over_tcp_as_over_udp() {
    let site = Site::new();
    let roamer = Roamer::new(&site);
    let stranger = PrivateKey::generate().unwrap();
    // The handshake is complete for the client before the server has looked at the key.
    if let Ok(connection) = timeout(PATIENCE, roamer.connect(&site, &stranger)).await.unwrap() {
        let Ok(ConnectionError::ApplicationClosed(closed)) =
            timeout(PATIENCE, connection.closed()).await
        else {
            panic!("not refused");
        };
        assert_eq!(closed.error_code, close::UNKNOWN_KEY);
    }
    assert_eq!(site.server.handshakes.refused(), 1);
}

#[tokio::test]
async fn to_everybody_else_it_is_a_web_server_with_no_page() {
    let site = Site::new();
    let target = "/.well-known/masque/udp/localhost/4433/";
    for request in [
        get("/", ""),
        get("/index.html", UPGRADE),
        get(target, ""),
        get(target, "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        get("/.well-known/masque/udp/localhost/0/", UPGRADE),
        get("/.well-known/masque/udp/localhost/65536/", UPGRADE),
        get("/.well-known/masque/udp/192.0.2.1/53/", UPGRADE),
        get("/.well-known/masque/udp/127.0.0.1/53/", UPGRADE),
        get("/.well-known/masque/udp/localhost.example.net/443/", UPGRADE),
        get(target, UPGRADE).replace("GET", "POST"),
        "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n".into(),
    ] {
        let (_, answer) = site.request(&request).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{request} {answer}");
        assert!(!answer.to_lowercase().contains("roam"), "{answer}");
    }
    let (_, answer) = site.request(&get(target, UPGRADE)).await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: upgrade\r\n"), "{answer}");
    assert!(!answer.to_lowercase().contains("close"), "{answer}");
}

#[tokio::test]
async fn a_connection_has_one_request_and_one_answer() {
    let site = Site::new();
    let mut stream = site.tls_stream().await;
    stream.write_all(get("/", "").repeat(50).as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    // The server may leave the rest unread, and reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answers)).await.expect("it stays open");
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 1, "{answers}");
}

/// A connection in HTTP/2, by a client of h2's own.
async fn http2(
    site: &Site,
) -> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let mut tls = crate::path::tcp::client().unwrap();
    tls.alpn_protocols = vec![HTTP_2.to_vec()];
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let stream = TcpStream::connect(site.tcp).await.unwrap();
    let stream = tls.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender.ready().await.unwrap(), tokio::spawn(connection))
}

fn http2_request(method: &str, target: &str, protocol: Option<&'static str>) -> hyper::Request<()> {
    let mut request = hyper::Request::builder().method(method).uri(target);
    if let Some(protocol) = protocol {
        request = request.extension(h2::ext::Protocol::from_static(protocol));
    }
    request.body(()).unwrap()
}

#[tokio::test]
async fn in_http2_too_it_is_a_web_server_with_no_page_and_one_request_for_each_connection() {
    let site = Site::new();
    let page = "https://localhost/";
    let target = "https://localhost/.well-known/masque/udp/localhost/4433/";
    let other = "https://localhost/.well-known/masque/udp/192.0.2.1/53/";
    for (method, target, protocol) in [
        ("GET", page, None),
        ("GET", target, None),
        ("CONNECT", "localhost:4433", None),
        ("CONNECT", target, Some("websocket")),
        ("CONNECT", other, Some("connect-udp")),
    ] {
        let (mut sender, connection) = http2(&site).await;
        // The settings that allow an extended CONNECT come with the first answer at the latest.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let request = http2_request(method, target, protocol);
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 404, "{method} {target}");
        let further = match sender.ready().await {
            Ok(mut sender) => match sender.send_request(http2_request("GET", page, None), true) {
                Ok((answer, _)) => timeout(PATIENCE, answer).await.unwrap().map(drop),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        assert!(further.is_err(), "a second request is answered");
        let _ = timeout(PATIENCE, connection).await.expect("it stays open");
    }
    assert_eq!(site.over_tcp(), 0);
}

#[tokio::test]
async fn in_http2_hostile_frames_end_a_connection() {
    let frame = |length: usize, kind: u8, flags: u8, stream: u8| {
        let [.., a, b, c] = (length as u32).to_be_bytes();
        vec![a, b, c, kind, flags, 0, 0, 0, stream]
    };
    // GET https /, from HPACK's static table.
    let get = |stream| [frame(3, 1, 5, stream), vec![0x82, 0x87, 0x84]].concat();
    let resets = (0..100).flat_map(|it| {
        let stream = 2 * it + 1;
        [get(stream), frame(4, 3, 0, stream), vec![0, 0, 0, 8]].concat()
    });
    let endless = [frame(3, 1, 0, 1), vec![0x82, 0x87, 0x84]]
        .into_iter()
        .chain((0..2000).map(|_| [frame(5, 9, 0, 1), vec![0, 1, b'a', 1, b'b']].concat()))
        .flatten();
    let many = frame(0, 4, 0, 0).repeat(20000);
    for (what, hostile) in [
        ("rapid resets", resets.collect::<Vec<_>>()),
        ("CONTINUATION without end", endless.collect()),
        ("settings without end", many),
        ("no frames", vec![0xff; 20000]),
    ] {
        let site = Site::new();
        let mut tls = crate::path::tcp::client().unwrap();
        tls.alpn_protocols = vec![HTTP_2.to_vec()];
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = TcpStream::connect(site.tcp).await.unwrap();
        let mut stream = tls.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(0, 4, 0, 0)[..]].concat();
        stream.write_all(&preface).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = tokio::spawn(async move { writer.write_all(&hostile).await });
        closed(&mut reader).await;
        write.abort();
        assert_eq!(site.over_tcp(), 0, "{what}");
        let roamer = Roamer::new(&site);
        let connecting = roamer.connect(&site, &site.laptop);
        ask(&timeout(PATIENCE, connecting).await.unwrap().unwrap()).await;
    }
}

#[tokio::test]
async fn it_sends_to_nobody_else() {
    let site = Site::new();
    let bystander = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = bystander.local_addr().unwrap().port();
    let path = format!("/.well-known/masque/udp/localhost/{port}/");
    let (mut stream, answer) = site.request(&get(&path, UPGRADE)).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let mut capsules = BytesMut::new();
    capsule::encode(b"to a port of this host that is not yours", &mut capsules);
    // A first packet of a QUIC version that nobody has: whoever speaks QUIC names his own (RFC 9000 §6).
    let ids = [8, 1, 1, 1, 1, 1, 1, 1, 1, 8, 2, 2, 2, 2, 2, 2, 2, 2];
    let packet = [&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a][..], &ids, &[0; 1200]].concat();
    capsule::encode(&packet, &mut capsules);
    stream.write_all(&capsules).await.unwrap();
    let mut decoder = capsule::Decoder::new(1500);
    let answer = async {
        loop {
            if let Some(answer) = decoder.next().unwrap() {
                return answer;
            }
            stream.read_buf(decoder.buffer()).await.unwrap();
        }
    };
    let answer = timeout(PATIENCE, answer).await.expect("the server's own QUIC port is silent");
    assert_eq!(answer[1..5], [0; 4], "no version negotiation: {answer:?}");
    let mut buffer = [0; 100];
    let received = timeout(WHILE, bystander.recv(&mut buffer)).await;
    assert!(received.is_err(), "a datagram was forwarded");
}

#[tokio::test]
async fn silence_and_garbage_hurt_nobody_else() {
    let site = Site::new();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(site.tcp).await.unwrap());
    }
    let half = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for stream in &mut silent[100..] {
        // The server may have closed it.
        let _ = stream.write_all(&half).await;
    }
    let connecting = async {
        loop {
            // Like a client, it tries again.
            let roamer = Roamer::new(&site);
            if let Ok(Ok(connection)) =
                timeout(Duration::from_secs(1), roamer.connect(&site, &site.laptop)).await
            {
                return (roamer, connection);
            }
        }
    };
    let (_roamer, connection) = timeout(PATIENCE, connecting).await.unwrap();
    ask(&connection).await;
    let mut plain = TcpStream::connect(site.tcp).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(&mut plain).await;
    // Most were closed without waiting for anything.
    let visitors = &site.server.visitors;
    assert!(visitors.refused() + visitors.dismissed() > 150, "{visitors:?}");
}

#[tokio::test]
async fn garbage_in_place_of_capsules_ends_a_connection() {
    let site = Site::new();
    let path = "/.well-known/masque/udp/localhost/4433/";
    let (mut stream, answer) = site.request(&get(path, UPGRADE)).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    eventually("it is there", || site.over_tcp() == 1).await;
    stream.write_all(&[0, 0]).await.unwrap();
    closed(&mut stream).await;
    eventually("it is gone", || site.over_tcp() == 0).await;
    assert_eq!(site.server.visitors.dismissed(), 1);
}

/// A neighbour behind the same address connects 50 times a second and says nothing.
fn flood(to: SocketAddr) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut silent = std::collections::VecDeque::new();
        loop {
            silent.push_back(TcpStream::connect(to).await);
            silent.truncate(500);
            sleep(Duration::from_millis(20)).await;
        }
    })
}

#[tokio::test]
async fn a_neighbour_that_connects_all_the_time_neither_keeps_a_client_out_nor_throws_it_out() {
    let site = Site::new();
    let flooding = flood(site.tcp);
    sleep(WHILE).await;
    let roamer = Roamer::new(&site);
    let connecting = roamer.connect(&site, &site.laptop);
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    ask(&connection).await;
    let peer = site.server.configured.borrow().peers.iter().next().unwrap().clone();
    let before = peer.probes.remotes();
    assert!(is_virtual(before[0].ip()));
    let refused_before = site.server.visitors.dismissed();
    sleep(3 * WHILE).await;
    ask(&connection).await;
    assert_eq!(peer.probes.remotes(), before, "it had to connect again");
    assert!(site.server.visitors.dismissed() > refused_before, "the neighbour was not there");
    flooding.abort();
}

#[tokio::test]
async fn a_client_that_moves_to_tcp_is_not_thrown_out_by_a_neighbour() {
    let site = Site::new();
    let roamer = Roamer::new(&site);
    assert!(roamer.socket.switch(roamer.udp));
    let connecting = roamer.connect(&site, &site.laptop);
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    let peer = site.server.configured.borrow().peers.iter().next().unwrap().clone();
    let flooding = flood(site.tcp);
    sleep(WHILE).await;
    assert!(roamer.socket.switch(roamer.tcp));
    let has_moved = || peer.probes.remotes().iter().all(|it| is_virtual(it.ip()));
    let deadline = clock::now() + PATIENCE;
    while !has_moved() {
        assert!(clock::now() < deadline, "it does not come over TCP");
        ask(&connection).await;
    }
    let before = peer.probes.remotes();
    sleep(3 * WHILE).await;
    ask(&connection).await;
    assert_eq!(peer.probes.remotes(), before, "it had to connect again");
    flooding.abort();
}

#[tokio::test]
async fn a_server_that_stops_says_so_over_tcp() {
    let site = Site::new();
    let roamer = Roamer::new(&site);
    let connecting = roamer.connect(&site, &site.laptop);
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    ask(&connection).await;
    // As in the daemon: the connections' tasks end, the port's does not.
    site.endpoint.close(close::GOODBYE, b"the server stops");
    site.running.abort();
    assert_eq!(super::closed(&connection).await, close::GOODBYE);
}

#[tokio::test]
async fn another_machine_with_the_key_is_named_by_its_real_address() {
    let site = Site::new();
    let mut machines = Vec::new();
    for instance in [1, 2] {
        let roamer = Roamer::new(&site);
        let connecting = roamer.connect_for(tls::TUNNEL, &site, &site.laptop);
        let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
        let session = session::open(&connection, true, instance).await.unwrap();
        machines.push((roamer, connection, session));
    }
    let reason = timeout(PATIENCE, machines[0].1.closed()).await.expect("both stay");
    let ConnectionError::ApplicationClosed(closed) = reason else { panic!("{reason}") };
    assert_eq!((closed.error_code, &closed.reason[..]), (close::DISPLACED, &b"127.0.0.1"[..]));
    let crate::daemon::status::Role::Server(status) = site.server.status().role else {
        panic!("no server");
    };
    let session = status.peers[0].session.as_ref().unwrap();
    assert!(session.remote.ip().is_loopback(), "{}", session.remote);
}
