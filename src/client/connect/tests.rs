use std::{sync::Arc, time::Instant};

use tokio::{
    sync::{mpsc::Receiver, oneshot},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    client::{
        command::What,
        tests::{
            FakeNetwork, client, config,
            session::{LTE, Tunnel, WIFI},
        },
    },
    daemon::{events::Event, status::ClientState},
};

const PAUSE: Pause = Pause { shortest: Duration::from_secs(5), longest: Duration::from_secs(60) };

/// A client that pauses, and a person who may have something to say.
struct Pausing {
    client: Client,
    network: Arc<FakeNetwork>,
    manager: Manager,
    orders: mpsc::Sender<Order>,
    ordered: Receiver<Order>,
}

impl Pausing {
    fn new() -> Self {
        let network = FakeNetwork::of(&["eth0", "wlan0"]);
        let client = client(config(), network.clone());
        let manager = Manager::new(Settings::new(&config().paths));
        let (orders, ordered) = mpsc::channel(1);
        Self { client, network, manager, orders, ordered }
    }

    /// The seconds that a pause lasts in which `event` happens after so many.
    async fn lasts(&mut self, seconds: u64, event: impl FnOnce(&Client, &FakeNetwork)) -> u64 {
        let Self { client, network, manager, ordered, .. } = self;
        let begun = clock::now();
        let pause = async {
            let course = &mut Course::default();
            client.sleep_or_change(PAUSE, &mut Minds { manager, course, orders: ordered }).await;
            since(begun)
        };
        let happens = async {
            sleep(Duration::from_secs(seconds)).await;
            event(client, network);
        };
        tokio::join!(pause, happens).0
    }

    /// The answer to an order after ten seconds of a pause, and the seconds that the pause lasts.
    async fn orders(&mut self, what: What) -> (Reply, u64) {
        let (reply, answer) = oneshot::channel();
        let orders = self.orders.clone();
        let order = move |_: &Client, _: &FakeNetwork| {
            orders.try_send(Order { what, reply }).unwrap();
        };
        let lasted = self.lasts(10, order).await;
        (answer.await.unwrap(), lasted)
    }
}

fn since(begun: Instant) -> u64 {
    (clock::now() - begun).as_secs()
}

fn switch(link: &str, pin: bool) -> What {
    What::Switch { link: link.into(), pin }
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_which_nothing_happens_lasts_for_its_longest() {
    assert_eq!(Pausing::new().lasts(0, |_, _| ()).await, 60);
}

#[tokio::test(start_paused = true)]
async fn a_network_that_changes_ends_a_pause_but_not_before_its_shortest() {
    for (change, end) in [(1, 5), (20, 20)] {
        let lasted = Pausing::new().lasts(change, |_, network| network.have(&["eth0"])).await;
        assert_eq!(lasted, end);
    }
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_changes_ends_a_pause_but_not_before_its_shortest() {
    let changed = |client: &Client, _: &FakeNetwork| {
        client.config.send_replace(config().into());
    };
    for (change, end) in [(1, 5), (20, 20)] {
        assert_eq!(Pausing::new().lasts(change, changed).await, end);
    }
}

#[tokio::test(start_paused = true)]
async fn a_person_who_chooses_a_link_ends_a_pause_and_is_told_what_follows() {
    let mut pausing = Pausing::new();
    for (what, done, pinned) in [
        (switch("wlan0", true), "wlan0: dialed alone, whatever happens", Some("wlan0")),
        (switch("eth0", false), "eth0: dialed first, until it fails", None),
        (What::Auto, "the best path is chosen again", None),
        (switch("wlan0", true), "wlan0: dialed alone, whatever happens", Some("wlan0")),
        (What::AutoLink, "the best path is chosen again", None),
    ] {
        let (reply, lasted) = pausing.orders(what).await;
        assert!(matches!(&reply, Reply::Done(lines) if lines == &[done]), "{reply:?}");
        assert_eq!((lasted, pausing.manager.dialing().pinned()), (10, pinned));
    }
}

#[tokio::test(start_paused = true)]
async fn a_choice_that_is_refused_changes_neither_the_pause_nor_the_choice() {
    let mut pausing = Pausing::new();
    pausing.orders(switch("wlan0", true)).await;
    let (reply, lasted) = pausing.orders(switch("eth7", true)).await;
    let expected = "eth7 has no way to the server; links that have one: eth0, wlan0";
    assert!(matches!(&reply, Reply::Error(why) if why == expected), "{reply:?}");
    assert_eq!((lasted, pausing.manager.dialing().pinned()), (60, Some("wlan0")));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_a_connection_is_refused_with_the_reason_for_having_none() {
    let mut pausing = Pausing::new();
    for (last, why) in [(None, "still connecting"), (Some("no carrier"), "no carrier")] {
        if let Some(last) = last {
            pausing.client.shown.waiting(last, false, Duration::ZERO);
        }
        let (reply, lasted) = pausing.orders(What::Probe { link: None }).await;
        let expected = format!("not connected ({why}): the links are tried as it is");
        assert!(matches!(&reply, Reply::Error(why) if *why == expected), "{reply:?}");
        assert_eq!(lasted, 60);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_begins_as_soon_as_there_is_a_link_and_the_host_is_made_for_it() {
    let mut tunnel = Tunnel::without_server();
    tunnel.start_server(true);
    for link in [WIFI, LTE] {
        tunnel.world.change(link, |it| it.up = false);
    }
    let status = tunnel.after(60).await;
    let error = "no network link has a route to 192.0.2.1:4433";
    assert_eq!((status.sessions, status.last_error.as_deref()), (0, Some(error)));
    assert_eq!(tunnel.host.wishes(), []);
    tunnel.world.change(LTE, |lte| lte.up = true);
    let status = tunnel.after(1).await;
    assert_eq!((status.state, status.sessions), (ClientState::Connected, 1));
    let layouts = tunnel.host.wishes();
    assert_eq!(layouts.len(), 1);
    assert_eq!(layouts[0].addresses, status.addresses);
    assert_eq!(status.addresses, ["10.66.0.2/32".parse().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn a_client_started_by_hand_ends_when_the_server_does_not_know_its_key() {
    let mut tunnel = Tunnel::without_server();
    tunnel.start_server(false);
    let ended = timeout(Duration::from_secs(5), &mut tunnel.running).await;
    let error = ended.expect("it ends").unwrap().unwrap_err();
    assert!(error.downcast_ref::<Refusal>().is_some_and(Refusal::is_proven), "{error}");
    assert!(error.to_string().contains(&tunnel.client.key.to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_had_a_session_asks_a_server_that_refuses_it_again() {
    let mut tunnel = Tunnel::connected().await;
    let mut events = tunnel.client.events.listen();
    tunnel.start_server(false);
    let status = tunnel.after(15).await;
    assert_eq!((status.state, status.sessions), (ClientState::Waiting, 1));
    assert!(status.last_error.unwrap().starts_with("no [[peer]] of the server has"));
    assert!(status.refused_since.is_some() && status.next_attempt.unwrap() < 60.0);
    let told = std::iter::from_fn(|| events.try_recv().ok());
    assert_eq!(told.filter(|it| matches!(it, Event::Disconnected { .. })).count(), 1);
    tunnel.start_server(true);
    let status = tunnel.after(60).await;
    assert_eq!((status.state, status.sessions), (ClientState::Connected, 2));
    assert_eq!(status.refused_since, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_host_cannot_carry_ends_and_is_tried_again() {
    let mut tunnel = Tunnel::without_server();
    tunnel.host.refuse(&[true, false]);
    tunnel.start_server(true);
    let status = tunnel.after(2).await;
    assert_eq!(status.last_error.as_deref(), Some("the task that sets up the host has ended"));
    let status = tunnel.after(10).await;
    assert_eq!((status.state, status.sessions), (ClientState::Connected, 1));
    let addresses: Vec<_> =
        tunnel.host.wishes().iter().map(|layout| layout.addresses.len()).collect();
    assert_eq!(addresses, [1, 0, 1], "laid out, set back, laid out");
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_address_the_host_gets_elsewhere_ends_until_that_is_over() {
    let tunnel = Tunnel::connected().await;
    let inner = [10, 66, 0, 2].into();
    tunnel.facts.send_modify(|facts| facts.addresses.push(("eth0".into(), inner)));
    let status = tunnel.after(1).await;
    let why = "the server gives this client no inner address that it could use (address 10.66.0.2: \
               eth0 has it)";
    assert_eq!(status.last_error.as_deref(), Some(why));
    tunnel.facts.send_modify(|facts| facts.addresses.clear());
    let status = tunnel.after(15).await;
    assert_eq!((status.state, status.sessions), (ClientState::Connected, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pinned_link_without_a_way_to_the_server_is_waited_for() {
    let mut tunnel = Tunnel::connected().await;
    tunnel.switch("lte0", true).await.unwrap();
    tunnel.world.change(LTE, |lte| lte.up = false);
    tunnel.start_server(true);
    let status = tunnel.after(60).await;
    assert_eq!(status.state, ClientState::Waiting);
    let why = "lte0 has no route to 192.0.2.1:4433, and is pinned; roamd switch --auto ends that";
    assert_eq!(status.last_error.as_deref(), Some(why));
    assert_eq!(tunnel.order(What::Auto).await.unwrap(), ["the best path is chosen again"]);
    tunnel.after(1).await;
    assert_eq!(tunnel.states()[0], "wifi0 Active");
}
