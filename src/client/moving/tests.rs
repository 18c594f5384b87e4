use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::sleep,
};

use super::*;
use crate::{
    client::{
        command::{Order, What},
        tests::{FakeHost, SERVER, config, session::Neighbourhood},
    },
    config::{ClientConfig, HomeMode, HostPort, Peer, Preference, ServerConfig, ServerPeer},
    daemon::{
        events::Event,
        status::{ClientState, ClientStatus, HomeState, HomeStatus, RemoteState},
    },
    host::Reports,
    identity::PrivateKey,
    server::Server,
    tests::simulation::world::{Hole, Link, World},
    wire::packet::{Packet, tests::packet},
};

const SERVERS: [([u8; 4], u16); 3] = [SERVER, ([192, 0, 2, 2], 4433), ([192, 0, 2, 3], 4433)];
/// Where the first server is in its own network, and the client there.
const HOME: ([u8; 4], u16) = ([192, 168, 1, 10], 4433);
const AT_HOME: [u8; 4] = [192, 168, 1, 50];
const NAMES: [&str; 3] = ["berlin", "paris", "rome"];
const WIFI: usize = 0;
const LTE: usize = 1;
const BERLIN: usize = 0;
const PARIS: usize = 1;
/// Between two packets.
const PACE: Duration = Duration::from_millis(50);

/// Numbers of packets.
type Seen = Arc<Mutex<BTreeSet<u32>>>;

/// A client with servers and a program that sends to them; each echoes what comes.
struct Fleet {
    world: Arc<World>,
    client: Arc<Client>,
    host: FakeHost,
    orders: mpsc::Sender<Order>,
    /// Those of the servers and the client's.
    keys: [PrivateKey; 4],
    /// What each server calls the client inside.
    inner: [&'static str; 3],
    tasks: Vec<JoinHandle<()>>,
    servers: [Option<JoinHandle<()>>; 3],
    /// The packets that were sent, and those whose echo came.
    sent: Seen,
    came: Seen,
    /// The packets that came to any server, in their order.
    arrived: Arc<Mutex<Vec<u32>>>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for task in self.tasks.iter().chain(self.servers.iter().flatten()) {
            task.abort();
        }
    }
}

impl Fleet {
    /// Two servers run, and the client has a session with the first one.
    async fn new(change: impl FnOnce(&mut ClientConfig)) -> Self {
        Self::of(2, change).await
    }

    /// The same of so many servers.
    async fn of(count: usize, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut fleet = Self::without_servers(|config| {
            config.servers.truncate(count);
            change(config);
        });
        (0..count).for_each(|which| fleet.start(which));
        sleep(Duration::from_secs(3)).await;
        assert_eq!(fleet.in_use(), "berlin");
        fleet
    }

    fn without_servers(change: impl FnOnce(&mut ClientConfig)) -> Self {
        let links = vec![
            Link::new("wifi0", "10.0.1.2", "198.51.100.1", 100),
            Link::new("lte0", "10.0.2.2", "198.51.100.2", 200),
        ];
        let world = World::new(links, [SERVER.into(), ([0; 16], 0).into()], 7);
        let keys = [(); 4].map(|()| PrivateKey::generate().unwrap());
        let peer = |which: usize| ServerPeer {
            name: NAMES[which].into(),
            addresses: vec![HostPort {
                host: SocketAddr::from(SERVERS[which]).ip().to_string(),
                port: SERVERS[which].1,
            }],
            public_key: keys[which].public_key(),
            tcp_port: None,
            proxy: None,
            relay: None,
            home: Vec::new(),
        };
        let servers = (0..SERVERS.len()).map(peer).collect();
        let mut config = ClientConfig { private_key: keys[3].clone(), servers, ..config() };
        change(&mut config);
        let (device, mut delivered) = mpsc::channel::<Packet>(4096);
        let network = world.clone();
        let client = Client::new(config.into(), network, Box::new(device), Reports::default());
        let client = Arc::new(client.unwrap());
        let (host, (orders, mut ordered)) = (FakeHost::default(), mpsc::channel(1));
        let (typed, source) = mpsc::channel::<Packet>(4096);
        let (sent, came) = (Seen::default(), Seen::default());
        let running = {
            let (client, mut host) = (client.clone(), host.clone());
            async move {
                let ended = client.carry(source, &mut host, &mut ordered).await;
                panic!("the client ended: {ended:?}");
            }
        };
        let typing = {
            let sent = sent.clone();
            async move {
                for number in 0.. {
                    if typed.try_send(numbered(true, number)).is_ok() {
                        sent.lock().unwrap().insert(number);
                    }
                    sleep(PACE).await;
                }
            }
        };
        let reading = {
            let came = came.clone();
            async move {
                while let Some(packet) = delivered.recv().await {
                    came.lock().unwrap().insert(number(&packet));
                }
            }
        };
        let tasks = vec![tokio::spawn(running), tokio::spawn(typing), tokio::spawn(reading)];
        let (servers, inner) = ([const { None }; 3], ["10.66.0.2"; 3]);
        let arrived = Arc::default();
        Self { world, client, host, orders, keys, inner, tasks, servers, sent, came, arrived }
    }

    /// Starts a server; one that runs vanishes.
    fn start(&mut self, which: usize) {
        self.stop(which);
        self.world.cut(SERVERS[which].into(), false);
        let us = Peer {
            name: "laptop".into(),
            public_key: self.keys[3].public_key(),
            addresses: vec![self.inner[which].parse().unwrap()],
        };
        let config = ServerConfig::fake(&self.keys[which], SERVER, vec![us]);
        let socket = match which {
            BERLIN => self.world.listen(),
            _ => self.world.listen_at(SERVERS[which].into()),
        };
        let (to_device, mut delivered) = mpsc::channel::<Packet>(4096);
        let (from_device, source) = mpsc::channel::<Packet>(4096);
        let nothing = watch::Sender::default().subscribe();
        let (server, endpoint) =
            Server::new(config, vec![socket], Box::new(to_device), nothing).unwrap();
        // As the simulated network numbers them.
        let laptop = (AT_HOME.into(), [2, 0, 0, 0, 0, WIFI as u8]);
        server.knows(Box::new(Neighbourhood(vec![laptop])));
        let arrived = self.arrived.clone();
        let echoing = async move {
            while let Some(packet) = delivered.recv().await {
                arrived.lock().unwrap().push(number(&packet));
                let _ = from_device.try_send(numbered(false, number(&packet)));
            }
        };
        self.servers[which] = Some(tokio::spawn(async move {
            tokio::select! {
                _ = server.carry(source, &endpoint) => {}
                () = echoing => {}
            }
        }));
    }

    /// A server is gone without a word.
    fn kill(&mut self, which: usize) {
        self.world.cut(SERVERS[which].into(), true);
        self.stop(which);
    }

    /// A server says goodbye.
    fn stop(&mut self, which: usize) {
        if let Some(server) = self.servers[which].take() {
            server.abort();
        }
    }

    fn status(&self) -> ClientStatus {
        self.client.status()
    }

    /// The name of the server in use, or "" without one.
    fn in_use(&self) -> String {
        let servers = self.status().servers.into_iter();
        let in_use = servers.filter(|it| it.state == RemoteState::InUse).map(|it| it.name);
        in_use.collect()
    }

    /// The servers to which the session moved, with reasons.
    fn moves(&self) -> Vec<(String, MoveReason)> {
        self.status().moves.into_iter().map(|it| (it.to, it.reason)).collect()
    }

    /// The longest gap of a move in milliseconds.
    fn gap(&self) -> f64 {
        self.status().moves.iter().map(|it| it.gap).fold(0.0, f64::max)
    }

    /// Packets that were sent so far without an echo, after those under way have come.
    async fn lost(&self) -> Vec<u32> {
        let sent = self.sent.lock().unwrap().clone();
        sleep(Duration::from_secs(2)).await;
        let came = self.came.lock().unwrap();
        sent.into_iter().filter(|number| !came.contains(number)).collect()
    }

    /// Packets that were sent so far and came to no server, and how many came twice.
    async fn lost_and_twice(&self) -> (Vec<u32>, usize) {
        let sent = self.sent.lock().unwrap().clone();
        sleep(Duration::from_secs(2)).await;
        let arrived = self.arrived.lock().unwrap();
        let once: BTreeSet<_> = arrived.iter().copied().collect();
        (sent.difference(&once).copied().collect(), arrived.len() - once.len())
    }

    async fn order(&self, what: What) -> Result<Vec<String>, String> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { what, reply }).await.unwrap();
        match answer.await {
            Ok(Reply::Done(lines)) => Ok(lines),
            Ok(Reply::Error(why)) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    async fn choose(&self, name: &str) -> Result<Vec<String>, String> {
        self.order(What::Server { name: name.into() }).await
    }
}

/// A packet of UDP with this number.
fn numbered(from_client: bool, number: u32) -> Packet {
    let (client, server) = ("10.66.0.2".parse().unwrap(), "10.66.0.1".parse().unwrap());
    let (source, destination) = if from_client { (client, server) } else { (server, client) };
    let mut bytes = packet(source, destination, 80);
    bytes[9] = 17;
    bytes[40..44].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

fn number(packet: &Packet) -> u32 {
    u32::from_be_bytes(packet.ip()[40..44].try_into().unwrap())
}

fn nothing(_: &mut ClientConfig) {}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_without_a_word_is_left_for_the_next_within_a_second() {
    let mut fleet = Fleet::new(nothing).await;
    let mut events = fleet.client.events.listen();
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.in_use(), "paris");
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Silent)]);
    assert!(fleet.gap() < 1000.0, "{}", fleet.gap());
    let told = std::iter::from_fn(|| events.try_recv().ok())
        .any(|it| matches!(it, Event::ServerChanged { from, to, .. } if from == "berlin" && to == "paris"));
    assert!(told);
    let lost = fleet.lost().await;
    assert!(lost.len() < 50, "{lost:?}");
    // What was under way to it is lost with its echo; nothing that was sent is.
    let (lost_up, twice) = fleet.lost_and_twice().await;
    assert_eq!((&lost_up[..], twice <= 2), (&[][..], true), "{lost_up:?} {twice}");
    // The host is as it was.
    let wishes = fleet.host.wishes();
    assert!(wishes.iter().all(|it| it.servers.len() == 2), "both are let through");
    assert!(wishes.windows(2).all(|it| it[0] == it[1]), "{wishes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_and_a_link_that_die_together_are_both_left() {
    let mut fleet = Fleet::new(nothing).await;
    fleet.world.change(WIFI, |wifi| wifi.hole = Hole::Everything);
    fleet.kill(BERLIN);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Silent)]);
    let status = fleet.status();
    assert_eq!(status.paths.iter().find(|it| it.last_heard.is_some()).unwrap().link, "lte0");
}

#[tokio::test(start_paused = true)]
async fn while_no_network_works_the_session_stays_and_goes_on_with_its_server() {
    let fleet = Fleet::new(nothing).await;
    for link in [WIFI, LTE] {
        fleet.world.change(link, |it| it.hole = Hole::Everything);
    }
    sleep(Duration::from_secs(10)).await;
    for link in [WIFI, LTE] {
        fleet.world.change(link, |it| it.hole = Hole::None);
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.moves()), ("berlin", vec![]));
    assert_eq!(fleet.status().sessions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lone_link_that_dies_is_no_reason_to_leave_the_server() {
    let fleet = Fleet::new(nothing).await;
    fleet.world.change(WIFI, |wifi| wifi.hole = Hole::Everything);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.moves()), ("berlin", vec![]));
    assert_eq!(fleet.status().switches.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_session_returns_to_the_preferred_server_and_loses_nothing() {
    let mut fleet = Fleet::new(nothing).await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(3)).await;
    let lost = fleet.lost().await.len();
    fleet.start(BERLIN);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(fleet.in_use(), "paris", "it may be gone in a moment");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.in_use(), "berlin");
    assert_eq!(fleet.moves()[1..], [("berlin".into(), MoveReason::Preferred)]);
    assert!(fleet.status().moves[1].gap < 10.0, "{}", fleet.status().moves[1].gap);
    assert_eq!(fleet.lost().await.len(), lost, "nothing more");
}

#[tokio::test(start_paused = true)]
async fn of_several_servers_the_first_one_has_a_home_which_is_found_when_it_has_the_session() {
    let mut fleet = Fleet::new(|config| {
        (config.servers[BERLIN].home, config.home) = (vec![HOME.into()], HomeMode::Off);
    })
    .await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(fleet.in_use(), "paris");
    fleet.world.change(WIFI, |wifi| {
        (wifi.local, wifi.public) = (AT_HOME.into(), AT_HOME.into());
        wifi.home = Some(HOME.into());
    });
    sleep(Duration::from_secs(5)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.status().home), ("paris", None));
    fleet.start(BERLIN);
    sleep(Duration::from_secs(90)).await;
    let aside = HomeStatus { link: "wifi0".into(), state: HomeState::Aside };
    assert_eq!((fleet.in_use().as_str(), fleet.status().home), ("berlin", Some(aside)));
    assert_eq!(fleet.host.wishes().last().unwrap().aside.as_deref(), Some("wifi0"));
    // The other server's session is none at home, though the laptop still is.
    fleet.choose("paris").await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.status().home), ("paris", None));
    assert_eq!(fleet.host.wishes().last().unwrap().aside, None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_again_and_again_is_returned_to_ever_later() {
    let mut fleet = Fleet::new(nothing).await;
    let mut waits = Vec::new();
    for _ in 0..3 {
        fleet.kill(BERLIN);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fleet.in_use(), "paris");
        fleet.start(BERLIN);
        let begun = clock::now();
        while fleet.in_use() != "berlin" {
            sleep(Duration::from_secs(1)).await;
        }
        waits.push((clock::now() - begun).as_secs());
    }
    assert!((30..60).contains(&waits[0]), "{waits:?}");
    assert!(waits[1] >= 60 && waits[2] >= 120, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_person_moves_the_session_and_nothing_is_lost() {
    let mut fleet = Fleet::new(nothing).await;
    assert_eq!(fleet.choose("paris").await.unwrap(), ["paris: in use, until it fails"]);
    assert_eq!(fleet.in_use(), "paris");
    let why = "no server is named rome; there are: berlin, paris";
    assert_eq!(fleet.choose("rome").await.unwrap_err(), why);
    // The preferred one answers all the time.
    sleep(Duration::from_secs(120)).await;
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Chosen)]);
    assert_eq!(fleet.lost().await, [0; 0]);
    fleet.order(What::AutoLink).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.in_use(), "paris", "the choice of the server is another one");
    fleet.order(What::Auto).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.in_use(), "berlin");
    assert_eq!(fleet.lost().await, [0; 0]);
    fleet.kill(PARIS);
    let why = fleet.choose("paris").await.unwrap_err();
    assert!(why.starts_with("no answer from 192.0.2.2:4433"), "{why}");
    assert_eq!(fleet.in_use(), "berlin");
    assert_eq!(fleet.lost().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn without_a_session_the_next_server_is_tried_a_moment_later() {
    let mut fleet = Fleet::without_servers(|config| config.servers.truncate(2));
    fleet.start(PARIS);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.status().sessions), ("paris", 1));
    let state =
        |status: &ClientStatus| status.servers.iter().map(|it| it.state).collect::<Vec<_>>();
    assert_eq!(state(&fleet.status()), [RemoteState::Reserve, RemoteState::InUse]);
    fleet.kill(PARIS);
    sleep(Duration::from_secs(60)).await;
    assert_ne!(fleet.status().state, ClientState::Connected);
    fleet.start(BERLIN);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.in_use(), "berlin");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_goodbye_is_left_at_once() {
    let mut fleet = Fleet::new(nothing).await;
    sleep(Duration::from_secs(10)).await;
    fleet.stop(BERLIN);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Ended)]);
    assert!(fleet.gap() < 100.0, "{}", fleet.gap());
    assert_eq!(fleet.lost_and_twice().await.1, 0, "it had what it was sent");
}

#[tokio::test(start_paused = true)]
async fn the_reserve_is_asked_over_the_best_link_that_is_not_metered() {
    let metered = |config: &mut ClientConfig| {
        let link =
            |link: &str| Preference { link: link.into(), metered: true, ..Preference::default() };
        config.paths.prefer = vec![link("wifi*"), link("lte*")];
    };
    let answered = |fleet: &Fleet| fleet.status().servers[1].answered.is_some();
    let fleet = Fleet::new(nothing).await;
    assert!(answered(&fleet));
    let fleet = Fleet::new(metered).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!answered(&fleet));
    let fleet = Fleet::new(|config| {
        metered(config);
        config.paths.metered_reserve = true;
    })
    .await;
    assert!(answered(&fleet));
    // One that was never asked is used all the same.
    let mut fleet = Fleet::new(metered).await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.in_use(), "paris");
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_lets_standbys_be_asked_has_the_reserve_asked() {
    let answered = |fleet: &Fleet| fleet.status().servers[1].answered.is_some();
    let fleet = Fleet::new(|config| config.paths.standby_check = None).await;
    assert!(!answered(&fleet));
    let before = fleet.client.config.borrow().clone();
    let mut new = before.reloaded(config());
    new.servers.clone_from(&before.servers);
    new.paths.standby_check = Some(Duration::from_secs(15));
    fleet.client.config.send_replace(new.into());
    sleep(Duration::from_secs(1)).await;
    assert!(answered(&fleet));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_taken_out_of_the_configuration_is_left() {
    let fleet = Fleet::new(nothing).await;
    let before = fleet.client.config.borrow().clone();
    let mut new = before.reloaded(config());
    new.servers = before.servers[1..].to_vec();
    fleet.client.servers.renew(&new).unwrap();
    fleet.client.config.send_replace(new.into());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.in_use(), "paris");
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Removed)]);
    assert_eq!(fleet.lost().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reserve_that_is_gone_does_not_keep_the_session_from_the_one_after_it() {
    let mut fleet = Fleet::of(3, nothing).await;
    fleet.kill(PARIS);
    sleep(Duration::from_secs(60)).await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.moves(), [("rome".into(), MoveReason::Silent)]);
    // Both at once, one of which is back before the other.
    fleet.start(PARIS);
    sleep(Duration::from_secs(90)).await;
    assert_eq!(fleet.in_use(), "paris", "although berlin is still gone");
    fleet.kill(PARIS);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.in_use(), "rome");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_while_another_one_is_asked_in_vain_is_left_all_the_same() {
    let mut fleet = Fleet::of(3, nothing).await;
    fleet.kill(PARIS);
    let (reply, answer) = oneshot::channel();
    let what = What::Server { name: "paris".into() };
    fleet.orders.send(Order { what, reply }).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.moves(), [("rome".into(), MoveReason::Silent)]);
    assert!(matches!(answer.await, Ok(Reply::Error(_))));
}

#[tokio::test(start_paused = true)]
async fn each_person_gets_the_answer_to_their_own_order_and_the_last_one_holds() {
    let mut fleet = Fleet::of(3, nothing).await;
    fleet.kill(PARIS);
    let (reply, answer) = oneshot::channel();
    let what = What::Server { name: "paris".into() };
    fleet.orders.send(Order { what, reply }).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(fleet.choose("rome").await.unwrap(), ["rome: in use, until it fails"]);
    let Ok(Reply::Error(why)) = answer.await else { panic!("no error") };
    assert_eq!(why, "somebody chose something else meanwhile");
    assert_eq!(fleet.moves(), [("rome".into(), MoveReason::Chosen)]);
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_welcome_is_of_no_use_keeps_the_session_from_no_other() {
    let mut fleet = Fleet::without_servers(|config| config.servers.truncate(2));
    fleet.inner[BERLIN] = "127.0.0.1";
    fleet.start(BERLIN);
    fleet.start(PARIS);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.status().sessions), ("paris", 1));
    let why = fleet.choose("berlin").await.unwrap_err();
    assert!(why.starts_with("the server gives this client no inner address"), "{why}");
    let lost = fleet.lost().await;
    // It is preferred, and answers all the time.
    sleep(Duration::from_secs(300)).await;
    assert_eq!((fleet.in_use().as_str(), fleet.status().sessions), ("paris", 1));
    assert_eq!(fleet.lost().await, lost, "no more of them");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_about_to_be_returned_to_when_all_networks_fail_is_returned_to_later() {
    let mut fleet = Fleet::new(nothing).await;
    fleet.kill(BERLIN);
    sleep(Duration::from_secs(3)).await;
    fleet.start(BERLIN);
    sleep(Duration::from_secs(25)).await;
    for link in [WIFI, LTE] {
        fleet.world.change(link, |it| it.up = false);
    }
    sleep(Duration::from_secs(20)).await;
    assert_eq!(fleet.in_use(), "paris");
    for link in [WIFI, LTE] {
        fleet.world.change(link, |it| it.up = true);
    }
    sleep(Duration::from_secs(90)).await;
    assert_eq!(fleet.in_use(), "berlin");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_goodbye_while_another_one_is_reached_does_not_end_that() {
    let mut fleet = Fleet::new(nothing).await;
    for link in [WIFI, LTE] {
        fleet.world.change(link, |it| it.delay = Duration::from_millis(100));
    }
    let (reply, answer) = oneshot::channel();
    let what = What::Server { name: "paris".into() };
    fleet.orders.send(Order { what, reply }).await.unwrap();
    sleep(Duration::from_millis(250)).await;
    fleet.stop(BERLIN);
    sleep(Duration::from_secs(10)).await;
    assert!(matches!(answer.await, Ok(Reply::Done(_))));
    assert_eq!(fleet.moves(), [("paris".into(), MoveReason::Chosen)]);
    assert!(fleet.gap() < 500.0, "{}", fleet.gap());
    assert_eq!(fleet.status().sessions, 2);
}
