//! Client and server parts together, over real UDP sockets on loopback, without privileges.

mod messages;

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, Connection, ConnectionError, Endpoint, TokioRuntime, TransportConfig,
    UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    config::{Congestion, Quic},
    identity::{PrivateKey, PublicKey},
    path::{
        cut::Cut,
        socket::{PathError, PathSocket, VIRTUAL_SERVER},
        udp::UdpSocket,
    },
    quic::{
        self, close,
        congestion::CongestionHandle,
        session,
        tls::{self, ServerTls, WrongServerKey},
    },
    server::socket::ServerSocket,
    tunnel::{
        counters::{Counters, DropReason},
        device::{PacketSink, PacketSource},
        pump,
        queue::Queue,
    },
    wire::{
        message::{Net, Welcome},
        packet::Packet,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);
const TUN_MTU: u16 = 1400;

fn quic_settings() -> Quic {
    Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(10),
        congestion: Congestion::Cubic,
        dscp: 0,
    }
}

fn server_endpoint(key: &PrivateKey, listen: SocketAddr) -> Endpoint {
    let transport = quic::transport(&quic_settings(), TUN_MTU, CongestionHandle::default());
    server_endpoint_with(key, listen, transport)
}

fn server_endpoint_with(
    key: &PrivateKey,
    listen: SocketAddr,
    transport: TransportConfig,
) -> Endpoint {
    let tls = ServerTls::new(key, |_| true).unwrap();
    let mut config =
        quinn::ServerConfig::new(Arc::new(tls.for_connection().unwrap()), quic::token_key(key));
    config.transport_config(Arc::new(transport));
    Endpoint::new_with_abstract_socket(
        quic::server_endpoint(key),
        Some(config),
        ServerSocket::new(UdpSocket::bind(listen, None, 0, None).unwrap()).unwrap(),
        Arc::new(TokioRuntime),
    )
    .unwrap()
}

struct Client {
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    wrong: WrongServerKey,
    socket: Arc<PathSocket>,
    errors: mpsc::Receiver<PathError>,
    faults: Arc<Faults>,
}

impl Client {
    fn new(key: &PrivateKey, server_key: PublicKey, server: SocketAddr) -> Self {
        let tls::ClientTls { fresh, wrong, .. } =
            tls::client(key, server_key, tls::TUNNEL).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(fresh));
        config.transport_config(Arc::new(quic::transport(
            &quic_settings(),
            TUN_MTU,
            CongestionHandle::default(),
        )));
        let (reports, errors) = mpsc::channel(16);
        let socket = PathSocket::new(reports);
        let local = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let faults = Arc::new(Faults {
            inner: UdpSocket::bind(local.parse().unwrap(), None, 0, None).unwrap(),
            send: Mutex::default(),
            receive: Mutex::default(),
        });
        socket.open(faults.clone(), server, Cut::default());
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::client_endpoint(),
            None,
            socket.clone(),
            Arc::new(TokioRuntime),
        )
        .unwrap();
        Self { endpoint, config, wrong, socket, errors, faults }
    }

    async fn connect(&self) -> Result<Connection, ConnectionError> {
        self.endpoint.connect_with(self.config.clone(), VIRTUAL_SERVER, "roamd").unwrap().await
    }
}

/// A socket that fails on demand.
#[derive(Debug)]
struct Faults {
    inner: Arc<UdpSocket>,
    send: Mutex<Option<Errno>>,
    receive: Mutex<Option<Errno>>,
}

impl AsyncUdpSocket for Faults {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        match *self.send.lock().unwrap() {
            Some(errno) => Err(errno.into()),
            None => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.receive.lock().unwrap().take() {
            Some(errno) => Poll::Ready(Err(errno.into())),
            None => self.inner.poll_recv(cx, bufs, meta),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn welcome(version: u16) -> Welcome {
    Welcome {
        version,
        software: session::SOFTWARE.into(),
        name: "laptop".into(),
        addresses: vec![Net("10.66.0.2/24".parse().unwrap())],
        routes: Vec::new(),
        mtu: TUN_MTU,
        unchecked: true,
        dns: Vec::new(),
        search_domains: Vec::new(),
        server_addresses: Vec::new(),
        repair: true,
        copies: true,
        holds_bulk: true,
    }
}

/// A server that lets in one client; gives its connection and key.
async fn accept_one(endpoint: Endpoint) -> (Connection, Option<PublicKey>) {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (messages, _) =
        session::accept(&connection, |version, _| Some(welcome(version))).await.unwrap();
    let key = tls::peer_key(&connection);
    // The stream lives as long as the test.
    std::mem::forget(messages);
    (connection, key)
}

struct Pair {
    client: Client,
    here: Connection,
    there: Connection,
}

async fn pair(listen: &str) -> Pair {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, listen.parse().unwrap());
    let port = endpoint.local_addr().unwrap().port();
    let address = if listen.starts_with('[') { "[::1]" } else { "127.0.0.1" };
    let server = format!("{address}:{port}").parse().unwrap();
    let client = Client::new(&client_key, server_key.public_key(), server);
    let accepted = tokio::spawn(accept_one(endpoint));
    let here = client.connect().await.unwrap();
    let (messages, greeting) = session::open(&here, true, 1).await.unwrap();
    assert_eq!(greeting, welcome(1));
    std::mem::forget(messages);
    let (there, key) = accepted.await.unwrap();
    assert_eq!(key, Some(client_key.public_key()));
    assert_eq!(tls::peer_key(&here), Some(server_key.public_key()));
    Pair { client, here, there }
}

fn terms() -> pump::Terms {
    pump::Terms { unchecked: true, repair: true, copies: true }
}

fn packet(length: usize, fill: u8) -> Bytes {
    let mut packet = vec![fill; length];
    packet[0] = 0x45;
    packet.into()
}

fn inner(length: usize, fill: u8) -> Packet {
    Packet::from_datagram(packet(length, fill))
}

#[tokio::test]
async fn a_session_begins_over_both_families() {
    for listen in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        timeout(PATIENCE, pair(listen)).await.unwrap();
    }
}

#[tokio::test]
async fn an_ipv4_client_of_a_dual_stack_server_is_served() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "[::]:0".parse().unwrap());
    let port = endpoint.local_addr().unwrap().port();
    let client = Client::new(&client_key, server_key.public_key(), ([127, 0, 0, 1], port).into());
    let accepted = tokio::spawn(accept_one(endpoint));
    let here = client.connect().await.unwrap();
    session::open(&here, true, 1).await.unwrap();
    let (there, _) = accepted.await.unwrap();
    assert!(there.remote_address().is_ipv4(), "{}", there.remote_address());
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_and_named() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "127.0.0.1:0".parse().unwrap());
    let server = endpoint.local_addr().unwrap();
    tokio::spawn(async move { endpoint.accept().await.unwrap().await });
    let client = Client::new(&client_key, client_key.public_key(), server);
    timeout(PATIENCE, client.connect()).await.unwrap().unwrap_err();
    assert_eq!(*client.wrong.lock(), Some(server_key.public_key()));
}

#[tokio::test]
async fn a_returning_client_sends_packets_with_its_first_flight() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "127.0.0.1:0".parse().unwrap());
    let client = Client::new(&client_key, server_key.public_key(), endpoint.local_addr().unwrap());
    let tls = tls::client(&client_key, server_key.public_key(), tls::TUNNEL).unwrap();
    let connect = || {
        let resuming = quinn::ClientConfig::new(Arc::new(tls.resuming.once().unwrap()));
        client.endpoint.connect_with(resuming, VIRTUAL_SERVER, "roamd").unwrap()
    };
    let accept = async || endpoint.accept().await.unwrap().accept().unwrap().into_0rtt().unwrap();

    let connecting = connect().into_0rtt().map(|_| ()).unwrap_err();
    let (here, (there, confirmed)) = tokio::join!(connecting, accept());
    let (here, _) = (here.unwrap(), confirmed.await);
    // The tickets are on their way before this is.
    there.send_datagram(packet(100, 1)).unwrap();
    timeout(PATIENCE, here.read_datagram()).await.unwrap().unwrap();
    here.close(0_u32.into(), b"");

    let (here, accepted) = connect().into_0rtt().map_err(|_| "no ticket").unwrap();
    here.send_datagram(packet(100, 2)).unwrap();
    let (there, confirmed) = accept().await;
    let early = timeout(PATIENCE, there.read_datagram()).await.unwrap().unwrap();
    assert_eq!(early, packet(100, 2));
    assert_eq!(tls::peer_key(&there), Some(client_key.public_key()), "known from the ticket");
    assert!(accepted.await);
    confirmed.await;
    assert_eq!(there.close_reason(), None);
}

#[tokio::test]
async fn packets_of_every_size_cross_whole_even_where_the_path_is_narrow() {
    let Pair { client: _client, here, there } =
        timeout(PATIENCE, pair("127.0.0.1:0")).await.unwrap();
    let (counters, queue) = (Arc::new(Counters::default()), Arc::new(Queue::new(1 << 20)));
    let (to_device, mut device) = mpsc::channel::<Packet>(1024);
    tokio::spawn({
        let (counters, queue) = (counters.clone(), queue.clone());
        async move {
            pump::uplink(
                &here,
                &queue,
                &counters,
                &pump::Session::new(terms(), &CongestionHandle::default()),
            )
            .await
        }
    });
    tokio::spawn(async move {
        let counters = Counters::default();
        pump::downlink(
            &there,
            &counters,
            &pump::Session::new(terms(), &CongestionHandle::default()),
            |batch| {
                PacketSink::send(&to_device, batch);
            },
        )
        .await
    });
    // The first ones leave before the path's MTU is known to be more than 1200.
    let sent: Vec<_> = (28..=9000).step_by(97).map(|size| inner(size, size as u8)).collect();
    queue.hold(false);
    queue.push(&mut sent.clone());
    let mut received = Vec::new();
    while received.len() < sent.len() {
        timeout(PATIENCE, PacketSource::recv(&mut device, &mut received)).await.unwrap().unwrap();
    }
    // Each of them is a flow of its own, and the order is of each flow alone.
    received.sort_by_key(Packet::size);
    assert!(received == sent, "packets are damaged");
    assert!(counters.snapshot().split_packets > 0);
}

/// The uplink puts back what it did not send, and the session gives back what may not have arrived.
#[tokio::test]
async fn what_a_connection_that_ended_did_not_take_is_in_the_queue_once() {
    for is_given_back in [false, true] {
        let Pair { client: _client, here, there: _there } =
            timeout(PATIENCE, pair("127.0.0.1:0")).await.unwrap();
        let (counters, queue) = (Counters::default(), Queue::new(1 << 20));
        let session = pump::Session::new(terms(), &CongestionHandle::default());
        queue.hold(false);
        let sent: Vec<_> = (100..120).map(|size| inner(size, 0)).collect();
        queue.push(&mut sent.clone());
        here.close(close::GOODBYE, b"");
        timeout(PATIENCE, pump::uplink(&here, &queue, &counters, &session)).await.unwrap();
        if is_given_back {
            session.give_back(&here, &queue, &counters);
        }
        let mut left = Vec::new();
        let _ = queue.pop(&mut left, 100, usize::MAX);
        left.sort_by_key(Packet::size);
        assert!(left == sent, "{} of {}", left.len(), sent.len());
        assert_eq!(counters.snapshot().repeated_packets, 0);
    }
}

#[tokio::test]
async fn garbage_in_datagrams_is_counted_and_the_rest_arrives() {
    let Pair { client: _client, here, there } =
        timeout(PATIENCE, pair("127.0.0.1:0")).await.unwrap();
    let counters = Arc::new(Counters::default());
    let (to_device, mut device) = mpsc::channel::<Packet>(16);
    tokio::spawn({
        let counters = counters.clone();
        async move {
            pump::downlink(&there, &counters, &pump::UNGREETED, |batch| {
                PacketSink::send(&to_device, batch);
            })
            .await
        }
    });
    for datagram in [&[][..], &[0xff, 1], &[1, 0xf0, 0, 0, 0], &packet(100, 7)] {
        here.send_datagram(Bytes::copy_from_slice(datagram)).unwrap();
    }
    let mut received = Vec::new();
    timeout(PATIENCE, PacketSource::recv(&mut device, &mut received)).await.unwrap().unwrap();
    assert_eq!(received, [inner(100, 7)]);
    assert_eq!(counters.snapshot().dropped, [(DropReason::UnknownDatagram, 3)].into());
}

#[tokio::test]
async fn a_connection_outlives_every_error_of_its_socket() {
    let Pair { mut client, here, there } = timeout(PATIENCE, pair("127.0.0.1:0")).await.unwrap();
    for errno in [Errno::ENETDOWN, Errno::ENETUNREACH, Errno::EPERM, Errno::ENODEV, Errno::EINVAL] {
        *client.faults.send.lock().unwrap() = Some(errno);
        *client.faults.receive.lock().unwrap() = Some(errno);
        here.send_datagram(packet(100, 1)).unwrap();
        let reported = async {
            while let Some(report) = client.errors.recv().await {
                if report.error.raw_os_error() == Some(errno as i32) {
                    return;
                }
            }
        };
        timeout(PATIENCE, reported).await.unwrap();
        *client.faults.send.lock().unwrap() = None;

        here.send_datagram(packet(100, errno as u8)).unwrap();
        let received = timeout(PATIENCE, there.read_datagram()).await.unwrap().unwrap();
        assert_eq!(received, packet(100, errno as u8), "after {errno}");
        there.send_datagram(received.clone()).unwrap();
        let echo = timeout(PATIENCE, here.read_datagram()).await.unwrap().unwrap();
        assert_eq!(echo, received, "after {errno}");
    }
    assert_eq!((here.close_reason(), there.close_reason()), (None, None));
}

#[tokio::test]
async fn a_connection_moves_to_another_path_and_family() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "[::]:0".parse().unwrap());
    let port = endpoint.local_addr().unwrap().port();
    let client = Client::new(&client_key, server_key.public_key(), ([127, 0, 0, 1], port).into());
    let accepted = tokio::spawn(accept_one(endpoint));
    let here = client.connect().await.unwrap();
    session::open(&here, true, 1).await.unwrap();
    let (there, _) = accepted.await.unwrap();

    let v6 = UdpSocket::bind("[::1]:0".parse().unwrap(), None, 0, None).unwrap();
    let second = client.socket.open(v6, format!("[::1]:{port}").parse().unwrap(), Cut::default());
    assert!(client.socket.switch(second));
    for number in 0..20 {
        here.send_datagram(packet(100, number)).unwrap();
        let received = timeout(PATIENCE, there.read_datagram()).await.unwrap().unwrap();
        there.send_datagram(received).unwrap();
        timeout(PATIENCE, here.read_datagram()).await.unwrap().unwrap();
    }
    assert!(there.remote_address().is_ipv6(), "{}", there.remote_address());
    assert!(client.socket.stats(second).unwrap().received_bytes > 0);
}

#[tokio::test]
async fn a_restarted_server_tells_its_clients_at_once() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "127.0.0.1:0".parse().unwrap());
    let server = endpoint.local_addr().unwrap();
    let client = Client::new(&client_key, server_key.public_key(), server);
    let accepted = tokio::spawn(accept_one(endpoint.clone()));
    let here = client.connect().await.unwrap();
    session::open(&here, true, 1).await.unwrap();
    let (there, _) = accepted.await.unwrap();

    // The new process has the key and the address, and knows nothing of the connection.
    let restarted = server_endpoint(&server_key, "127.0.0.1:0".parse().unwrap());
    let address = restarted.local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), None, 0, None).unwrap();
    client.socket.switch(client.socket.open(udp, address, Cut::default()));
    let reason = timeout(PATIENCE, async {
        loop {
            let _ = here.send_datagram(packet(100, 1));
            tokio::select! {
                reason = here.closed() => return reason,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    });
    assert_eq!(reason.await.unwrap(), ConnectionError::Reset);
    drop((there, restarted));
}

#[tokio::test]
async fn a_malformed_welcome_ends_the_session_with_a_reason() {
    let (server_key, client_key) =
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let endpoint = server_endpoint(&server_key, "127.0.0.1:0".parse().unwrap());
    let client = Client::new(&client_key, server_key.public_key(), endpoint.local_addr().unwrap());
    // [1, [{0: 1, 1: "x", 2: "x", 3: [], 4: [], 5: 70000}]]: an MTU of more than 16 bits.
    let body =
        b"\x82\x01\x81\xa6\x00\x01\x01\x61x\x02\x61x\x03\x80\x04\x80\x05\x1a\x00\x01\x11\x70";
    let server = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, _receive) = connection.accept_bi().await.unwrap();
        send.write_all(&[0, body.len() as u8]).await.unwrap();
        send.write_all(body).await.unwrap();
        timeout(PATIENCE, connection.closed()).await.unwrap()
    });
    let connection = client.connect().await.unwrap();
    let error = session::open(&connection, true, 1).await.unwrap_err();
    assert!(matches!(error, session::SessionError::Message(_)), "{error}");
    let ConnectionError::ApplicationClosed(closed) = server.await.unwrap() else { panic!() };
    assert_eq!(closed.error_code, quic::close::PROTOCOL);
}
