//! A client that runs, and a server behind two simulated links.

use std::net::IpAddr;

use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use super::*;
use crate::{
    client::command::{Order, What},
    config::{Peer, ServerConfig},
    daemon::{
        control::Reply,
        status::{ClientState, ClientStatus},
    },
    link::neighbour::{Hardware, Neighbours},
    server::Server,
    tests::simulation::world::{Link, World},
};

pub(in super::super) const WIFI: usize = 0;
pub(in super::super) const LTE: usize = 1;

/// Client and server. The client runs until it is dropped.
pub(in super::super) struct Tunnel {
    pub(in super::super) world: Arc<World>,
    pub(in super::super) client: Arc<Client>,
    pub(in super::super) host: FakeHost,
    pub(in super::super) facts: watch::Sender<Facts>,
    pub(in super::super) running: JoinHandle<anyhow::Result<()>>,
    orders: mpsc::Sender<Order>,
    keys: [PrivateKey; 2],
    server: Option<JoinHandle<()>>,
    /// The hosts on the server's links.
    pub(in super::super) neighbours: Neighbourhood,
}

/// Hosts on a link of the server.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Neighbourhood(pub(in super::super) Vec<(IpAddr, Hardware)>);

impl Neighbours for Neighbourhood {
    fn hardware(&self, address: IpAddr) -> BoxFuture<'_, Vec<Hardware>> {
        let found = self.0.iter().filter(|(other, _)| *other == address).map(|it| it.1).collect();
        Box::pin(std::future::ready(found))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.running.abort();
        self.stop_server();
    }
}

impl Tunnel {
    /// A client that asks a server that is not there yet.
    pub(in super::super) fn without_server() -> Self {
        let links = vec![
            Link::new("wifi0", "10.0.1.2", "198.51.100.1", 100),
            Link::new("lte0", "10.0.2.2", "198.51.100.2", 200),
        ];
        Self::over(links, |_| ())
    }

    /// The same over these links, with other changes to its configuration.
    pub(in super::super) fn over(links: Vec<Link>, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let world = World::new(links, [SERVER.into(), ([0; 16], 0).into()], 7);
        let keys = [(); 2].map(|()| PrivateKey::generate().unwrap());
        let public_key = keys[1].public_key();
        let servers = config().servers.into_iter().map(|it| ServerPeer { public_key, ..it });
        let mut config =
            ClientConfig { private_key: keys[0].clone(), servers: servers.collect(), ..config() };
        change(&mut config);
        let (facts, _, reports) = reports();
        let client = Arc::new(client_on(config, world.clone(), reports));
        let (host, (orders, mut ordered)) = (FakeHost::default(), mpsc::channel(1));
        let running = tokio::spawn({
            let (client, mut host) = (client.clone(), host.clone());
            async move {
                let (_device, source) = mpsc::channel(1);
                client.carry(source, &mut host, &mut ordered).await
            }
        });
        let (server, neighbours) = (None, Neighbourhood::default());
        Self { world, client, host, facts, running, orders, keys, server, neighbours }
    }

    /// A client with a session over wifi, and lte as standby.
    pub(in super::super) async fn connected() -> Self {
        let mut tunnel = Self::without_server();
        tunnel.start_server(true);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
        tunnel
    }

    /// Starts a server, which knows the client's key or does not; one that runs vanishes.
    pub(in super::super) fn start_server(&mut self, knows_us: bool) {
        self.stop_server();
        let us = Peer {
            name: "laptop".into(),
            public_key: self.keys[0].public_key(),
            addresses: vec!["10.66.0.2".parse().unwrap()],
        };
        let peers = if knows_us { vec![us] } else { Vec::new() };
        let config = ServerConfig::fake(&self.keys[1], SERVER, peers);
        let (socket, (device, source)) = (self.world.listen(), mpsc::channel(1));
        let left_out = watch::Sender::default().subscribe();
        let (server, endpoint) =
            Server::new(config, vec![socket], Box::new(device.clone()), left_out).unwrap();
        server.knows(Box::new(self.neighbours.clone()));
        self.server = Some(tokio::spawn(async move {
            let _device = device;
            server.carry(source, &endpoint).await.unwrap();
        }));
    }

    pub(in super::super) fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }

    /// Runs for so many seconds; the status then.
    pub(in super::super) async fn after(&self, seconds: u64) -> ClientStatus {
        sleep(Duration::from_secs(seconds)).await;
        self.client.status()
    }

    pub(in super::super) fn is_connected(&self) -> bool {
        self.client.status().state == ClientState::Connected
    }

    /// The paths and their conditions.
    pub(in super::super) fn states(&self) -> Vec<String> {
        let paths = self.client.status().paths.into_iter();
        paths.map(|path| format!("{} {:?}", path.link, path.state)).collect()
    }

    /// What a person hears who orders this.
    pub(in super::super) async fn order(&self, what: What) -> Result<Vec<String>, String> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { what, reply }).await.unwrap();
        match answer.await {
            Ok(Reply::Done(lines)) => Ok(lines),
            Ok(Reply::Error(why)) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    pub(in super::super) async fn switch(
        &self,
        link: &str,
        pin: bool,
    ) -> Result<Vec<String>, String> {
        self.order(What::Switch { link: link.into(), pin }).await
    }
}
