//! A server that says what no configuration lets a server say.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::{Connection, ConnectionError, Endpoint, TokioRuntime};
use roamd::internals::{
    config::{Congestion, Quic},
    identity::PrivateKey,
    path::udp::UdpSocket,
    quic::{
        self, close,
        congestion::CongestionHandle,
        session::{self, MessageStream},
        tls::{self, ServerTls},
    },
    server::socket::ServerSocket,
    wire::message::{Message, Net, Welcome},
};
use tokio::runtime::{Builder, Runtime};

use crate::harness::Host;

/// The server; it ends with this.
pub(crate) struct Rogue {
    runtime: Runtime,
    session: Arc<Mutex<Option<(Connection, MessageStream)>>>,
    refused: Arc<Mutex<usize>>,
}

/// A welcome with these addresses and this MTU.
pub(crate) fn welcome(addresses: &[&str], mtu: u16) -> Welcome {
    Welcome {
        version: 1,
        software: "rogue".into(),
        name: "victim".into(),
        addresses: addresses.iter().map(|net| Net(net.parse().unwrap())).collect(),
        routes: Vec::new(),
        mtu,
        unchecked: false,
        dns: Vec::new(),
        search_domains: Vec::new(),
        server_addresses: Vec::new(),
        repair: true,
        copies: true,
        holds_bulk: true,
    }
}

impl Rogue {
    /// Listens with the key of `host`, in its place. `welcomes` gets the number of the session.
    pub(crate) fn start(
        host: &Host,
        welcomes: impl Fn(usize) -> Welcome + Send + Sync + 'static,
    ) -> Self {
        let key = PrivateKey::load(&host.folder().join("own.key")).unwrap();
        let (session, refused) = (Arc::default(), Arc::default());
        let runtime = host
            .namespace
            .run(|| {
                let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
                let runtime = runtime.unwrap();
                let endpoint = {
                    let _entered = runtime.enter();
                    endpoint(&key)
                };
                let (session, refused) = (Arc::clone(&session), Arc::clone(&refused));
                runtime.spawn(serve(endpoint, welcomes, session, refused));
                runtime
            })
            .unwrap();
        Self { runtime, session, refused }
    }

    /// How many connections a client closed with `PROTOCOL`.
    pub(crate) fn refused(&self) -> usize {
        *self.refused.lock().unwrap()
    }

    /// Closes the present connection.
    pub(crate) fn end_session(&self) {
        let _entered = self.runtime.enter();
        let session = self.session.lock().unwrap().take();
        session.unwrap().0.close(close::GOODBYE, b"");
    }

    /// Sends an inner packet of protocol 253 (RFC 3692) through the tunnel.
    pub(crate) fn send(&self, source: &str, destination: &str) {
        let packet = match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 253, 0, 0];
                packet.extend(source.octets().into_iter().chain(destination.octets()));
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 8, 253, 255];
                packet.extend(source.octets().into_iter().chain(destination.octets()));
                packet
            }
            _ => panic!("{source} and {destination} are of two families"),
        };
        let datagram = [packet, vec![0; 8]].concat();
        let _entered = self.runtime.enter();
        let session = self.session.lock().unwrap();
        session.as_ref().unwrap().0.send_datagram(datagram.into()).unwrap();
    }

    /// Says something on the control stream.
    pub(crate) fn tell(&self, message: &Message) {
        let _entered = self.runtime.enter();
        self.session.lock().unwrap().as_mut().unwrap().1.tell(message);
    }
}

fn endpoint(key: &PrivateKey) -> Endpoint {
    let tls = ServerTls::new(key, |_| true).unwrap();
    let mut config =
        quinn::ServerConfig::new(Arc::new(tls.for_connection().unwrap()), quic::token_key(key));
    let settings = Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(10),
        congestion: Congestion::Cubic,
        dscp: 0,
    };
    config.transport_config(Arc::new(quic::transport(
        &settings,
        1400,
        CongestionHandle::default(),
    )));
    let listen: SocketAddr = "[::]:4433".parse().unwrap();
    Endpoint::new_with_abstract_socket(
        quic::server_endpoint(key),
        Some(config),
        ServerSocket::new(UdpSocket::bind(listen, None, 0, None).unwrap()).unwrap(),
        Arc::new(TokioRuntime),
    )
    .unwrap()
}

async fn serve(
    endpoint: Endpoint,
    welcomes: impl Fn(usize) -> Welcome,
    session: Arc<Mutex<Option<(Connection, MessageStream)>>>,
    refused: Arc<Mutex<usize>>,
) {
    let mut number = 0;
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        if tls::purpose(&connection).as_deref() != Some(tls::TUNNEL) {
            continue;
        }
        let Ok((messages, _)) = session::accept(&connection, |_, _| Some(welcomes(number))).await
        else {
            continue;
        };
        number += 1;
        *session.lock().unwrap() = Some((connection.clone(), messages));
        let refused = Arc::clone(&refused);
        tokio::spawn(async move {
            if let ConnectionError::ApplicationClosed(closed) = connection.closed().await
                && closed.error_code == close::PROTOCOL
            {
                *refused.lock().unwrap() += 1;
            }
        });
    }
}
