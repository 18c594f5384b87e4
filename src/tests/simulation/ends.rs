//! The real client and server, with numbered packets of a TCP connection and of a call between their devices.

use std::collections::BTreeSet;

use super::*;

/// What a device is given: protocol, number and time, in order.
type Arrivals = Arc<Mutex<Vec<(u8, u32, Instant)>>>;

pub(super) struct Ends {
    pub(super) day: Day,
    pub(super) client: Arc<Client>,
    laptop: mpsc::Sender<Packet>,
    server: mpsc::Sender<Packet>,
    up: Arrivals,
    down: Arrivals,
}

/// The `number`-th packet of its flow, with data.
fn packet(from_client: bool, protocol: u8, number: u32, length: usize) -> Packet {
    let plain = packet_at(from_client, clock::now(), number, &vec![0; length]);
    let mut bytes = plain.ip().to_vec();
    bytes[9] = protocol;
    bytes.into()
}

async fn receive(mut device: mpsc::Receiver<Packet>, arrivals: Arrivals) {
    while let Some(packet) = device.recv().await {
        let ip = packet.ip();
        if let Some(number) = ip.get(40..44) {
            let number = u32::from_be_bytes(number.try_into().unwrap());
            arrivals.lock().unwrap().push((ip[9], number, clock::now()));
        }
    }
}

impl Ends {
    /// Connected over wifi, with lte as a warm standby of 50 ms.
    pub(super) async fn connected(seed: u64) -> Self {
        Self::connected_with(Day::new(seed), |_, _| {}).await
    }

    /// The same in a world that was changed, and with other configurations.
    pub(super) async fn connected_with(
        mut day: Day,
        change: impl FnOnce(&mut ClientConfig, &mut ServerConfig),
    ) -> Self {
        day.world.change(1, |lte| lte.delay = Duration::from_millis(25));
        let (to_laptop, at_laptop) = mpsc::channel::<Packet>(1024);
        let (laptop, source) = mpsc::channel::<Packet>(1024);
        let (mut config, mut server_config) =
            (day.hosts.client_config(), day.hosts.server_config());
        change(&mut config, &mut server_config);
        let device = Box::new(to_laptop);
        let client = Client::new(Arc::new(config), day.world.clone(), device, Reports::default());
        let client = Arc::new(client.unwrap());
        let running = client.clone();
        tokio::spawn(async move {
            let (_orders, mut ordered) = mpsc::channel(1);
            let _ = running.carry(source, &mut NoInterface, &mut ordered).await;
        });
        let (to_server, at_server) = mpsc::channel::<Packet>(1024);
        let (server, source) = mpsc::channel::<Packet>(1024);
        let nothing = watch::Sender::default().subscribe();
        let (daemon, endpoint) =
            Server::new(server_config, vec![day.world.listen()], Box::new(to_server), nothing)
                .unwrap();
        day.server = Some(tokio::spawn(async move {
            let _ = daemon.carry(source, &endpoint).await;
        }));
        let (up, down) = (Arrivals::default(), Arrivals::default());
        tokio::spawn(receive(at_server, up.clone()));
        tokio::spawn(receive(at_laptop, down.clone()));
        sleep(Duration::from_secs(2)).await;
        Self { day, client, laptop, server, up, down }
    }

    /// Changes the client's configuration while it runs.
    pub(super) async fn reload(&self, change: impl FnOnce(&mut ClientConfig)) {
        let before = self.client.config.borrow().clone();
        let mut new = before.reloaded(self.day.hosts.client_config());
        new.paths = before.paths.clone();
        change(&mut new);
        self.client.config.send_replace(new.into());
        sleep(Duration::from_secs(1)).await;
    }

    /// Each side sends the `number`-th packet of a flow.
    pub(super) async fn send(&self, protocol: u8, number: u32, length: usize) {
        for is_up in [true, false] {
            self.send_one(is_up, protocol, number, length).await;
        }
    }

    /// The laptop or the server sends the `number`-th packet of a flow.
    pub(super) async fn send_one(&self, is_up: bool, protocol: u8, number: u32, length: usize) {
        let device = if is_up { &self.laptop } else { &self.server };
        device.send(packet(is_up, protocol, number, length)).await.unwrap();
    }

    /// The number of the packet of a flow that arrived last, upwards or downwards.
    pub(super) fn newest(&self, is_up: bool, protocol: u8) -> Option<u32> {
        let arrivals = if is_up { &self.up } else { &self.down }.lock().unwrap();
        arrivals.iter().rev().find(|arrival| arrival.0 == protocol).map(|(_, number, _)| *number)
    }

    /// What arrived of a flow, upwards and downwards; nothing came twice.
    pub(super) fn arrived(&self, protocol: u8) -> [(&'static str, Vec<(u32, Instant)>); 2] {
        [("up", &self.up), ("down", &self.down)].map(|(way, arrivals)| {
            let arrivals = arrivals.lock().unwrap();
            let of_flow = arrivals.iter().filter(|arrival| arrival.0 == protocol);
            let of_flow: Vec<_> = of_flow.map(|(_, number, at)| (*number, *at)).collect();
            let unique: BTreeSet<_> = of_flow.iter().map(|(number, _)| *number).collect();
            assert_eq!(unique.len(), of_flow.len(), "{way}: one came twice");
            (way, of_flow)
        })
    }
}
