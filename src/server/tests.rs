//! The whole server, apart from its device, against clients that do not play by the rules.

mod draining;
mod over_tcp;

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket as StdSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Server,
    gate::RETRIES,
    handshake::PROOF_TIMEOUT,
    holding::Attached,
    peers::{Elsewhere, PeerSession},
    tcp,
};
use crate::{
    clock,
    config::{self, Congestion, Quic, ServerConfig, ServerTun},
    daemon::status::Role,
    fleet::{Known, PassedOver},
    identity::{PrivateKey, PublicKey},
    path::udp::UdpSocket,
    quic::{
        self, close,
        congestion::CongestionHandle,
        session,
        tls::{self, ClientTls, Servers, sealed::TicketKey},
    },
    task::Task,
    tunnel::pump,
    wire::{
        datagram::encode_offer,
        message::Message,
        numbered::Numbered,
        packet::{Packet, tests::packet},
        question::{Answer, Question},
    },
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than anything takes that should happen.
const WHILE: Duration = Duration::from_millis(600);
const KEEP_ALIVE: Duration = Duration::from_millis(100);

struct Site {
    server: Arc<Server>,
    endpoint: Endpoint,
    address: SocketAddr,
    /// Its TCP port.
    tcp: SocketAddr,
    key: PrivateKey,
    laptop: PrivateKey,
    delivered: mpsc::Receiver<Packet>,
    /// The device's other side.
    _device: mpsc::Sender<Packet>,
    running: JoinHandle<()>,
    _port: Task,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn quic_settings() -> Quic {
    Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: KEEP_ALIVE,
        congestion: Congestion::Cubic,
        dscp: 0,
    }
}

impl Site {
    /// A server with one peer, a laptop.
    fn new() -> Self {
        Self::of(PrivateKey::generate().unwrap())
    }

    fn of(laptop: PrivateKey) -> Self {
        let key = PrivateKey::generate().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), None, 0, None).unwrap();
        let (to_device, delivered) = mpsc::channel(1024);
        let (_device, source) = mpsc::channel::<Packet>(1);
        let (config, nothing) = (Self::config(&key, &[&laptop]), watch::Sender::default());
        let (server, endpoint) =
            Server::new(config, vec![udp], Box::new(to_device), nothing.subscribe()).unwrap();
        let port = tcp::Port::bind("127.0.0.1:0".parse().unwrap(), 0).unwrap();
        let tcp = port.address();
        let running = tokio::spawn({
            let (server, endpoint) = (server.clone(), endpoint.clone());
            async move { drop(server.carry(source, &endpoint).await) }
        });
        let port = tcp::spawn(&server, port);
        let address = endpoint.local_addr().unwrap();
        Self {
            server,
            endpoint,
            address,
            tcp,
            key,
            laptop,
            delivered,
            _device,
            running,
            _port: port,
        }
    }

    fn config(key: &PrivateKey, peers: &[&PrivateKey]) -> ServerConfig {
        let peer = |peer: &&PrivateKey| config::Peer {
            name: "laptop".into(),
            public_key: peer.public_key(),
            addresses: vec!["10.66.0.2".parse().unwrap()],
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let fake = ServerConfig::fake(key, listen, peers.iter().map(peer).collect());
        ServerConfig {
            listen_tcp: Some(listen),
            drain: Duration::from_secs(5),
            tun: ServerTun { peer_routes: true, ..fake.tun },
            quic: quic_settings(),
            ..fake
        }
    }

    fn forget_laptop(&self) {
        self.server.renew(Self::config(&self.key, &[])).unwrap();
    }

    fn tls(&self, key: &PrivateKey, alpn: &[u8]) -> ClientTls {
        tls::client(key, self.key.public_key(), alpn).unwrap()
    }

    async fn connect(&self, key: &PrivateKey, alpn: &[u8]) -> Connection {
        let config = quinn::ClientConfig::new(Arc::new(self.tls(key, alpn).fresh));
        let connecting = client().connect_with(config, self.address, "roamd").unwrap();
        timeout(PATIENCE, connecting).await.unwrap().unwrap()
    }

    async fn probe(&self) -> Connection {
        let config = self.tls(&self.laptop, tls::PROBE).fresh;
        let mut config = quinn::ClientConfig::new(Arc::new(config));
        config.transport_config(Arc::new(quic::probe_transport()));
        let connecting = client().connect_with(config, self.address, "roamd").unwrap();
        timeout(PATIENCE, connecting).await.unwrap().unwrap()
    }

    /// Whether a packet comes to the device.
    async fn delivers(&mut self) -> bool {
        timeout(WHILE, self.delivered.recv()).await.is_ok()
    }
}

fn client() -> Endpoint {
    let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), None, 0, None).unwrap();
    let runtime = Arc::new(TokioRuntime);
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, udp, runtime).unwrap()
}

fn from_laptop() -> bytes::Bytes {
    packet("10.66.0.2".parse().unwrap(), "10.66.0.1".parse().unwrap(), 8).into()
}

async fn answers(connection: &Connection) -> bool {
    connection.send_datagram("\0now?".into()).unwrap();
    matches!(timeout(PATIENCE, connection.read_datagram()).await, Ok(Ok(echo)) if echo == "\0now?")
}

/// Asks for a process; whether the server has its session.
async fn ask(probe: &Connection, process: u64) -> bool {
    probe.send_datagram(Question { asked: 5, process }.encode()).unwrap();
    let answer = timeout(PATIENCE, probe.read_datagram()).await.unwrap().unwrap();
    let Answer { asked, has_session } = Answer::decode(&answer).unwrap();
    assert_eq!(asked, 5);
    has_session
}

/// With which code the server ends a connection.
async fn closed(connection: &Connection) -> quinn::VarInt {
    match timeout(PATIENCE, connection.closed()).await.expect("it ends") {
        ConnectionError::ApplicationClosed(close) => close.error_code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_stranger_gets_no_answer_to_a_probe() {
    let site = Site::new();
    let stranger = site.connect(&PrivateKey::generate().unwrap(), tls::PROBE).await;
    let _ = stranger.send_datagram("\0now?".into());
    assert_eq!(closed(&stranger).await, close::UNKNOWN_KEY);
    assert!(stranger.read_datagram().await.is_err());
}

/// A client of HTTP/3, as a browser's or somebody's who looks what is there.
fn http3(address: SocketAddr) -> quinn::Connecting {
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    client().connect_with(config, address, "vpn.example.net").unwrap()
}

#[tokio::test]
async fn a_client_of_http3_is_told_that_nobody_speaks_it_here_and_is_counted() {
    let site = Site::new();
    for count in 1..=3 {
        match timeout(PATIENCE, http3(site.address)).await.expect("it is told at once") {
            Err(ConnectionError::ConnectionClosed(close)) => {
                assert!(tls::is_other_protocol(close.error_code), "{close}");
                // Nothing but TLS's own words.
                assert!(!String::from_utf8_lossy(&close.reason).contains("roamd"), "{close}");
            }
            other => panic!("{other:?}"),
        }
        let Role::Server(status) = site.server.status().role else { panic!("not a server") };
        assert_eq!((status.refused_protocols, status.refused_keys), (count, 0));
    }
    assert!(answers(&site.probe().await).await, "ours go on");
}

#[tokio::test]
async fn clients_of_http3_have_the_budget_of_strangers() {
    let site = Site::new();
    let attempts = (0..200).map(|_| http3(site.address));
    let ended = futures_util::future::join_all(attempts.map(|it| timeout(3 * WHILE, it))).await;
    let answered = ended.iter().filter(|it| it.is_ok()).count();
    assert!((1..200).contains(&answered), "{answered} of 200 from one address");
    assert!(answers(&site.probe().await).await, "a known client gets in");
}

#[tokio::test]
async fn a_peer_has_few_probe_connections_and_the_newest_one_works() {
    let site = Site::new();
    let mut probes = Vec::new();
    for _ in 0..17 {
        probes.push(site.probe().await);
        assert!(answers(probes.last().unwrap()).await);
    }
    assert_eq!(closed(&probes[0]).await, close::TAKEN_OVER);
    for probe in &probes[1..] {
        assert!(answers(probe).await);
    }
}

#[tokio::test]
async fn a_removed_peers_probe_connections_end_with_its_session() {
    let site = Site::new();
    let probe = site.probe().await;
    assert!(answers(&probe).await);
    site.forget_laptop();
    assert_eq!(closed(&probe).await, close::UNKNOWN_KEY);
}

#[tokio::test]
async fn a_peer_of_the_directory_has_a_session_until_it_is_removed_there() {
    let site = Site::new();
    let nas = PrivateKey::generate().unwrap();
    let peer = |name: &str, key: PublicKey, address: &str| config::Peer {
        name: name.into(),
        public_key: key,
        addresses: vec![address.parse().unwrap()],
    };
    let heed = |peers: Vec<config::Peer>| {
        site.server.heed(Arc::new(Known { peers, ..Known::default() }));
    };
    let other = |n: u8| PublicKey::from([n; 32]);
    heed(vec![
        peer("nas", nas.public_key(), "10.66.0.3"),
        // The same as in the file.
        peer("laptop", site.laptop.public_key(), "10.66.0.2"),
        peer("laptop", other(1), "10.66.0.4"),
        peer("phone", other(2), "10.66.0.2"),
        peer("far", other(3), "10.67.0.2"),
        peer("us", other(4), "10.66.0.1"),
        peer("we", site.key.public_key(), "10.66.0.5"),
    ]);
    {
        let configured = site.server.configured.borrow();
        let names: Vec<_> = configured.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["laptop", "nas"]);
        let said = |it: &PassedOver| format!("{}: {}", it.record, it.reason);
        let said: Vec<_> = configured.passed_over.iter().map(said).collect();
        assert_eq!(
            said,
            [
                "laptop: another peer has the same name, in this server's file, which wins",
                "phone: has the address 10.66.0.2 of laptop, in this server's file, which wins",
                "far: 10.67.0.2 is outside of every network in tun.addresses (10.66.0.1/24)",
                "us: 10.66.0.1 is this server's own",
                "we: has this server's own key",
            ]
        );
    }
    let connection = site.connect(&nas, tls::TUNNEL).await;
    let _session = session::open(&connection, true, 1).await.unwrap();
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let _other_session = session::open(&laptop, true, 2).await.unwrap();
    heed(vec![peer("phone", other(2), "10.66.0.6")]);
    assert_eq!(closed(&connection).await, close::UNKNOWN_KEY);
    assert!(laptop.close_reason().is_none(), "the others notice nothing");
    // The file is read again, and what the directory has stays.
    site.server.renew(Site::config(&site.key, &[&site.laptop])).unwrap();
    assert!(site.server.configured.borrow().peers.with_key(other(2)).is_some());
    assert!(laptop.close_reason().is_none());
}

#[tokio::test]
async fn peers_of_networks_that_take_a_restart_are_not_taken_over() {
    let site = Site::new();
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let _session = session::open(&laptop, true, 1).await.unwrap();
    for (network, address) in [("10.66.0.254/24", "10.66.0.1"), ("10.67.0.1/24", "10.67.0.2")] {
        let mut new = Site::config(&site.key, &[&site.laptop]);
        new.tun.addresses = vec![network.parse().unwrap()];
        new.peers[0].addresses = vec![address.parse().unwrap()];
        let refused = site.server.renew(new).unwrap_err().to_string();
        assert!(refused.contains(address) && refused.contains("restart"), "{refused}");
    }
    assert!(laptop.close_reason().is_none());
}

#[tokio::test]
async fn a_probe_is_told_whether_its_process_has_the_session() {
    let site = Site::new();
    let probe = site.probe().await;
    assert!(!ask(&probe, 7).await);
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let _session = session::open(&laptop, true, 7).await.unwrap();
    assert!(ask(&probe, 7).await && !ask(&probe, 8).await);
    laptop.close(close::GOODBYE, b"");
    let begun = clock::now();
    while ask(&probe, 7).await {
        assert!(clock::now() - begun < PATIENCE);
    }
}

#[tokio::test]
async fn a_probe_connection_has_no_streams() {
    let site = Site::new();
    let probe = site.probe().await;
    assert!(answers(&probe).await);
    let (mut stream, _) = timeout(PATIENCE, probe.open_bi()).await.unwrap().unwrap();
    let _ = stream.write(&[0; 1000]).await;
    assert_eq!(closed(&probe).await, close::PROTOCOL);
}

#[tokio::test]
async fn the_server_keeps_sessions_alive_and_leaves_probe_connections_alone() {
    let site = Site::new();
    let probe = site.probe().await;
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let _session = session::open(&laptop, true, 1).await.unwrap();
    assert!(answers(&probe).await);
    sleep(WHILE).await;
    let heard = |connection: &Connection| connection.stats().udp_rx.datagrams;
    let before = (heard(&laptop), heard(&probe));
    sleep(WHILE).await;
    assert!(heard(&laptop) >= before.0 + 2);
    assert_eq!(heard(&probe), before.1);
}

#[tokio::test]
async fn a_second_hello_ends_the_session() {
    let site = Site::new();
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let (mut messages, welcome) = session::open(&laptop, true, 1).await.unwrap();
    messages.tell(&Message::Welcome(welcome));
    assert_eq!(closed(&laptop).await, close::PROTOCOL);
}

#[tokio::test]
async fn packets_before_the_hello_are_taken() {
    let mut site = Site::new();
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    laptop.send_datagram(from_laptop()).unwrap();
    assert!(site.delivers().await);
    let _session = session::open(&laptop, true, 1).await.unwrap();
    laptop.send_datagram(from_laptop()).unwrap();
    assert!(site.delivers().await);
}

#[tokio::test]
async fn a_peer_has_few_connections_that_say_no_hello() {
    let site = Site::new();
    let mut silent = Vec::new();
    for _ in 0..9 {
        silent.push(site.connect(&site.laptop, tls::TUNNEL).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(closed(&silent[0]).await, close::TAKEN_OVER);
    assert_eq!(silent[1].close_reason(), None);
    session::open(&silent[8], true, 1).await.unwrap();
    site.forget_laptop();
    assert_eq!(closed(&silent[1]).await, close::UNKNOWN_KEY);
}

fn numbered(number: u64, source: [u8; 4]) -> bytes::Bytes {
    let plain = packet(source.into(), "10.66.0.1".parse().unwrap(), 8);
    let mut bytes = bytes::BytesMut::new();
    Numbered::write(number, 0, &plain, &mut bytes);
    bytes.freeze()
}

#[tokio::test]
async fn a_copy_on_a_probe_connection_is_judged_as_a_packet_of_the_session() {
    let mut site = Site::new();
    let probe = site.probe().await;
    let first = numbered(0, [10, 66, 0, 2]);
    probe.send_datagram(first.clone()).unwrap();
    probe.send_datagram(encode_offer(1000)).unwrap();
    assert!(answers(&probe).await, "without a session neither comes back");
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let _session = session::open(&laptop, true, 1).await.unwrap();
    sleep(WHILE).await;
    for process in [None, Some(2)] {
        if let Some(process) = process {
            ask(&probe, process).await;
        }
        probe.send_datagram(first.clone()).unwrap();
        assert!(!site.delivers().await, "the session is not of {process:?}");
    }
    ask(&probe, 1).await;
    probe.send_datagram(first.clone()).unwrap();
    assert!(site.delivers().await);
    laptop.send_datagram(first).unwrap();
    assert!(!site.delivers().await, "it came already");
    probe.send_datagram(numbered(1, [10, 66, 0, 3])).unwrap();
    assert!(!site.delivers().await, "another peer's address");
    for nonsense in [&[4][..], &[3, 0, 0], &[7], &[5, 255, 255, 255], &[6, 1, 2]] {
        probe.send_datagram(bytes::Bytes::copy_from_slice(nonsense)).unwrap();
    }
    assert!(answers(&probe).await);
    assert_eq!(laptop.close_reason(), None);
}

#[tokio::test]
async fn a_session_ends_with_its_task_even_if_that_panics() {
    let site = Site::new();
    let connection = site.connect(&site.laptop, tls::PROBE).await;
    let peer = site.server.configured.borrow().peers.with_key(site.laptop.public_key()).cloned();
    let peer = peer.unwrap();
    let task = tokio::spawn({
        let peer = peer.clone();
        async move {
            let congestion = CongestionHandle::default();
            let session = PeerSession {
                connection: connection.clone(),
                since: std::time::SystemTime::now(),
                software: "a program".into(),
                instance: 1,
                datapath: Arc::new(pump::Session::new(pump::Terms::default(), &congestion)),
                withdrawn: None,
                routed: clock::now(),
            };
            peer.attach(session, &site.server.socket);
            let _attached = Attached { server: &site.server, peer: &peer, connection: &connection };
            panic!("on purpose");
        }
    });
    task.await.unwrap_err();
    assert!(peer.session().is_none());
}

#[tokio::test]
async fn of_a_peer_that_has_left_it_is_known_when_and_where_it_was() {
    let site = Site::new();
    let shown = || {
        let Role::Server(mut status) = site.server.status().role else { panic!("not a server") };
        let peer = status.peers.remove(0);
        (peer.session.map(|it| it.remote), peer.last_session.map(|it| (it.ended, it.remote)))
    };
    assert_eq!(shown(), (None, None));
    for process in 1..=2 {
        let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
        let session = session::open(&laptop, true, process).await.unwrap();
        let remote = loop {
            if let (Some(remote), last) = shown() {
                assert_eq!(last, None);
                break remote;
            }
            sleep(Duration::from_millis(5)).await;
        };
        laptop.close(close::GOODBYE, b"");
        drop(session);
        while shown().0.is_some() {
            sleep(Duration::from_millis(5)).await;
        }
        let (ended, last) = shown().1.unwrap();
        assert_eq!(last, remote);
        assert!((0.0..PATIENCE.as_secs_f64()).contains(&ended), "{ended}");
    }
}

#[tokio::test]
async fn a_machine_that_another_server_displaced_is_refused_here() {
    let site = Site::new();
    let peer = site.server.configured.borrow().peers.with_key(site.laptop.public_key()).cloned();
    let peer = peer.unwrap();
    let laptop = site.connect(&site.laptop, tls::TUNNEL).await;
    let session = session::open(&laptop, true, 1).await.unwrap();
    while peer.session().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    let client = Some([192, 0, 2, 1].into());
    peer.set_elsewhere(Some(Elsewhere { server: "berlin".into(), process: Some(2), client }));
    laptop.close(close::GOODBYE, b"");
    drop(session);
    while peer.session().is_some() {
        sleep(Duration::from_millis(5)).await;
    }

    let again = site.connect(&site.laptop, tls::TUNNEL).await;
    assert!(session::open(&again, true, 1).await.is_err());
    assert_eq!(closed(&again).await, close::DISPLACED);
    assert!(peer.rival().is_some());
    let newer = site.connect(&site.laptop, tls::TUNNEL).await;
    session::open(&newer, true, 3).await.unwrap();
}

/// Passes on what one client sends to `server`, and what comes back for as long as `answers` says so; where it listens.
async fn relay(server: SocketAddr, answers: watch::Receiver<bool>) -> SocketAddr {
    let [near, far] = [(); 2].map(|()| tokio::net::UdpSocket::bind("127.0.0.1:0"));
    let (near, far) = (near.await.unwrap(), far.await.unwrap());
    let address = near.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, mut there, mut back) = (None, [0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                Ok((size, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    far.send_to(&there[..size], server).await.unwrap();
                }
                Ok((size, _)) = far.recv_from(&mut back) => {
                    if let Some(client) = client.filter(|_| *answers.borrow()) {
                        near.send_to(&back[..size], client).await.unwrap();
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn a_session_that_is_at_another_server_stays_there_until_the_client_hears_the_welcome() {
    let site = Site::new();
    let peer = site.server.configured.borrow().peers.with_key(site.laptop.public_key()).cloned();
    let peer = peer.unwrap();
    let has_begun = || site.server.held.as_ref().unwrap().has(peer.addresses[0]);
    peer.set_elsewhere(Some(Elsewhere { server: "berlin".into(), process: Some(1), client: None }));
    let answers = watch::Sender::new(true);
    let relay = relay(site.address, answers.subscribe()).await;
    let config = quinn::ClientConfig::new(Arc::new(site.tls(&site.laptop, tls::TUNNEL).fresh));
    let connecting = client().connect_with(config, relay, "roamd").unwrap();
    let laptop = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    // What was under way arrives, so that nothing but the welcome is missed.
    sleep(WHILE).await;
    answers.send_replace(false);
    let opening = tokio::spawn({
        let laptop = laptop.clone();
        async move { session::open(&laptop, true, 1).await }
    });
    while peer.session().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(WHILE).await;
    assert!(!has_begun(), "the client may be at the other server");
    answers.send_replace(true);
    let _session = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    let begun = clock::now();
    while !has_begun() {
        assert!(clock::now() - begun < PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
}

/// A laptop that has tickets and comes back.
struct Returning {
    tls: ClientTls,
    endpoint: Endpoint,
}

impl Returning {
    async fn new(site: &Site) -> Self {
        let laptop = Self { tls: site.tls(&site.laptop, tls::TUNNEL), endpoint: client() };
        laptop.visit(site.address).await;
        laptop
    }

    /// Has a session for a moment, and gets tickets.
    async fn visit(&self, to: SocketAddr) {
        let connection = timeout(PATIENCE, self.connect(to)).await.unwrap().unwrap();
        let _session = session::open(&connection, true, 1).await.unwrap();
        connection.close(close::GOODBYE, b"");
    }

    fn connect(&self, to: SocketAddr) -> quinn::Connecting {
        let mut config = quinn::ClientConfig::new(Arc::new(self.tls.resuming.once().unwrap()));
        config.transport_config(Arc::new(quic::transport(
            &quic_settings(),
            1400,
            CongestionHandle::default(),
        )));
        self.endpoint.connect_with(config, to, &self.tls.name).unwrap()
    }

    /// Begins a connection with a ticket, and sends a packet along.
    fn come_back(&self, to: SocketAddr) -> (Connection, quinn::ZeroRttAccepted) {
        let connecting = self.connect(to).into_0rtt();
        let (connection, accepted) = connecting.map_err(|_| "no ticket").unwrap();
        connection.send_datagram(from_laptop()).unwrap();
        (connection, accepted)
    }
}

#[tokio::test]
async fn a_ticket_of_a_removed_key_lets_nobody_in() {
    let mut site = Site::new();
    let laptop = Returning::new(&site).await;
    let (known, accepted) = laptop.come_back(site.address);
    assert!(accepted.await, "with its key there it lets the client in");
    assert!(site.delivers().await);
    known.close(close::GOODBYE, b"");
    site.forget_laptop();
    let (removed, accepted) = laptop.come_back(site.address);
    assert_eq!(closed(&removed).await, close::UNKNOWN_KEY);
    assert!(!accepted.await);
    assert!(!site.delivers().await);
}

#[tokio::test]
async fn at_another_server_of_the_fleet_packets_go_after_the_handshake_and_arrive_once() {
    let here = Site::new();
    let mut there = Site::of(here.laptop.clone());
    let shared = TicketKey::generate(clock::unix()).unwrap();
    for site in [&here, &there] {
        site.server.acceptor.tls.ticket_keys().set(vec![shared.clone()]);
    }
    let servers = Servers::new(&here.laptop).unwrap();
    let to = |site: &Site| {
        let tls = servers.with(site.key.public_key(), tls::TUNNEL).unwrap();
        Returning { tls, endpoint: client() }
    };
    let (to_here, to_there) = (to(&here), to(&there));
    to_here.visit(here.address).await;
    let connecting = to_there.connect(there.address).into_0rtt();
    let connecting = connecting.map(|_| "early data").unwrap_err();
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    connection.send_datagram(from_laptop()).unwrap();
    assert!(there.delivers().await);
    assert!(!there.delivers().await, "once");
    connection.close(close::GOODBYE, b"");
    let (connection, accepted) = to_there.come_back(there.address);
    assert!(accepted.await, "with a ticket of its own");
    assert!(there.delivers().await);
    connection.close(close::GOODBYE, b"");
}

/// Takes a client's first flight, and withholds it from the server.
fn record(from: &StdSocket) -> Vec<Vec<u8>> {
    from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (mut flight, mut buffer) = (Vec::new(), [0; 2048]);
    while let Ok(length) = from.recv(&mut buffer) {
        flight.push(buffer[..length].to_vec());
    }
    flight
}

#[tokio::test]
async fn a_recorded_first_flight_is_delivered_once_however_often_it_is_sent() {
    let mut site = Site::new();
    let laptop = Returning::new(&site).await;
    let on_the_way = StdSocket::bind("127.0.0.1:0").unwrap();
    let (connection, _) = laptop.come_back(on_the_way.local_addr().unwrap());
    sleep(Duration::from_millis(100)).await;
    let flight = record(&on_the_way);
    assert!(flight.len() >= 2, "{}", flight.len());
    let replay = || {
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        for datagram in &flight {
            socket.send_to(datagram, site.address).unwrap();
        }
    };
    replay();
    replay();
    assert!(timeout(PATIENCE, site.delivered.recv()).await.is_ok(), "late, but whole");
    assert!(!matches!(timeout(WHILE, site.delivered.recv()).await, Ok(Some(_))), "both at once");
    // The server forgets the connection, since the client never answers.
    timeout(PATIENCE, async {
        while site.endpoint.open_connections() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("forgotten");
    replay();
    assert!(!matches!(timeout(WHILE, site.delivered.recv()).await, Ok(Some(_))), "again");
    assert!(site.endpoint.open_connections() > 0, "it did look at it");
    drop(connection);
}

/// A client that sends its first flight, and never anything else.
struct Mute {
    socket: StdSocket,
    endpoint: quinn_proto::Endpoint,
    config: quinn::ClientConfig,
    server: SocketAddr,
}

impl Mute {
    fn new(site: &Site) -> Self {
        let tls = site.tls(&PrivateKey::generate().unwrap(), tls::TUNNEL);
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            endpoint: quinn_proto::Endpoint::new(
                Arc::new(EndpointConfig::default()),
                None,
                false,
                None,
            ),
            config: quinn::ClientConfig::new(Arc::new(tls.fresh)),
            server: site.address,
        }
    }

    /// The datagrams that begin a handshake.
    fn flight(&mut self) -> Vec<Vec<u8>> {
        let config = self.config.clone();
        let (_, mut connection) =
            self.endpoint.connect(Instant::now(), config, self.server, "roamd").unwrap();
        let next = || {
            let mut datagram = Vec::new();
            connection.poll_transmit(Instant::now(), 1, &mut datagram).map(|_| datagram)
        };
        std::iter::from_fn(next).collect()
    }

    fn send(&self, flight: &[Vec<u8>]) {
        for datagram in flight {
            // What finds no room is lost.
            let _ = self.socket.send_to(datagram, self.server);
        }
    }

    fn heard(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }
}

/// RFC 9000 §8.1: "an endpoint MUST limit the amount of data it sends to the unvalidated address to three
/// times the amount of data received from that address". quinn sends the last datagram whole.
#[tokio::test]
async fn an_address_that_proves_nothing_is_sent_three_times_what_it_sent() {
    let site = Site::new();
    let mut mute = Mute::new(&site);
    let flight = mute.flight();
    mute.send(&flight);
    let (sent, mut heard) = (flight.iter().map(Vec::len).sum::<usize>(), 0);
    let over = async {
        loop {
            sleep(Duration::from_millis(10)).await;
            heard +=
                std::iter::from_fn(|| mute.heard()).map(|datagram| datagram.len()).sum::<usize>();
            if heard > 0 && site.endpoint.open_connections() == 0 {
                return heard;
            }
        }
    };
    let heard = timeout(PATIENCE, over).await.expect("the server forgets it");
    assert!(heard < 3 * sent + 1200, "{heard} bytes for {sent}");
}

/// What a server answers to first packets: Initial or Retry (RFC 9000 §17.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_first_packets_from_one_address_are_asked_for_proof_and_then_ignored() {
    const SENT: usize = 1000;
    let site = Site::new();
    let mut mute = Mute::new(&site);
    let flights: Vec<_> = (0..SENT).map(|_| mute.flight()).collect();
    let (mut answered, mut retries) = (HashSet::new(), 0);
    let mut read = |mute: &Mute| {
        while let Some(datagram) = mute.heard() {
            match datagram[0] & 0xf0 {
                0xf0 => retries += 1,
                // Its destination connection id is the client's own.
                0xc0 => drop(answered.insert(datagram[6..6 + usize::from(datagram[5])].to_vec())),
                _ => {}
            }
        }
        !answered.is_empty() && retries > 0
    };
    let begun = Instant::now();
    for flight in &flights {
        mute.send(flight);
        read(&mute);
    }
    // On a busy machine the first handshake takes a while.
    let both = async {
        while !read(&mute) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, both).await.expect("some are answered, and others asked for proof");
    sleep(WHILE).await;
    read(&mute);
    let answered = answered.len();
    let seconds = begun.elapsed().as_secs_f64();
    // Each takes its place for as long as the server waits for the proof of a key.
    let most = 16.0 * (1.0 + seconds / PROOF_TIMEOUT.as_secs_f64());
    assert!(answered as f64 <= most, "{answered} answered in {seconds} s");
    // A fifth more, as the two sides read the clock at different moments.
    let most = 1.2 * (RETRIES.burst + RETRIES.per_second * seconds);
    assert!(f64::from(retries) <= most, "{retries} Retries in {seconds} s");
    // And a client is let in all the same.
    assert!(answers(&site.probe().await).await);
}
