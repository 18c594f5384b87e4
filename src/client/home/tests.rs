use std::net::SocketAddr;

use ipnet::IpNet;

use super::*;
use crate::{
    client::{
        plan::tests::tun,
        tests::session::{Neighbourhood, Tunnel},
        usage::Overdrawn,
    },
    config::ClientConfig,
    daemon::status::{BulkState, HomeState, HomeStatus},
    host::Layout,
    tests::simulation::world::{Hole, Link},
};

const HOME: usize = 0;
const LTE: usize = 1;
const LAPTOP: [u8; 4] = [192, 168, 1, 50];
/// As the simulated network numbers them.
const HARDWARE: Hardware = [2, 0, 0, 0, 0, HOME as u8];

fn server() -> SocketAddr {
    ([192, 168, 1, 10], 4433).into()
}

/// A laptop in a network with the server's home address, in which it has the address `seen` to the server, and lte with a
/// better metric.
fn laptop(mode: HomeMode, seen: &str, change: impl FnOnce(&mut ClientConfig)) -> Tunnel {
    let mut home = Link::new("home0", "192.168.1.50", seen, 600);
    (home.home, home.delay) = (Some(server()), Duration::from_millis(1));
    let lte = Link::new("lte0", "10.0.2.2", "198.51.100.2", 200);
    Tunnel::over(vec![home, lte], |config| {
        config.servers[0].home = vec![server()];
        config.home = mode;
        config.tun = tun(Some(&["10.1.0.0/16"]));
        change(config);
    })
}

/// The same with the server in that network, after some seconds.
async fn at_home(mode: HomeMode) -> Tunnel {
    let mut tunnel = laptop(mode, "192.168.1.50", |_| ());
    tunnel.neighbours = Neighbourhood(vec![(LAPTOP.into(), HARDWARE)]);
    tunnel.start_server(true);
    tunnel.after(5).await;
    tunnel
}

fn home(tunnel: &Tunnel) -> Option<(String, HomeState)> {
    tunnel.client.status().home.map(|HomeStatus { link, state }| (link, state))
}

fn is(state: HomeState) -> Option<(String, HomeState)> {
    Some(("home0".into(), state))
}

/// The layout that is in force.
fn layout(tunnel: &Tunnel) -> Layout {
    tunnel.host.wishes().pop().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_path_at_home_is_preferred_to_all_others_while_it_answers() {
    let tunnel = at_home(HomeMode::Direct).await;
    assert_eq!(tunnel.states(), ["home0 Active", "lte0 Standby"]);
    assert_eq!(home(&tunnel), is(HomeState::Direct));
    assert_eq!(layout(&tunnel).aside, None, "the tunnel carries on");
    tunnel.world.change(HOME, |home| home.up = false);
    tunnel.after(1).await;
    assert_eq!((tunnel.states(), home(&tunnel)), (vec!["lte0 Active".into()], None));
    tunnel.world.change(HOME, |home| home.up = true);
    tunnel.after(2).await;
    assert_eq!(tunnel.states(), ["home0 Active", "lte0 Standby"]);
    assert_eq!(tunnel.client.status().sessions, 1);
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_network_can_be_home() {
    const LAPTOP: &str = "fd00:1::50";
    let server: SocketAddr = "[fd00:1::10]:4433".parse().unwrap();
    let mut home0 = Link::new("home0", LAPTOP, LAPTOP, 600);
    home0.home = Some(server);
    let lte = Link::new("lte0", "10.0.2.2", "198.51.100.2", 200);
    let mut tunnel = Tunnel::over(vec![home0, lte], |config| {
        (config.servers[0].home, config.home) = (vec![server], HomeMode::Off);
        config.tun = tun(Some(&["10.1.0.0/16"]));
    });
    tunnel.neighbours = Neighbourhood(vec![(LAPTOP.parse().unwrap(), HARDWARE)]);
    tunnel.start_server(true);
    tunnel.after(5).await;
    assert_eq!(tunnel.states(), ["home0 Active", "lte0 Standby"]);
    assert_eq!(home(&tunnel), is(HomeState::Aside));
    tunnel.world.change(HOME, |home| home.up = false);
    tunnel.after(1).await;
    assert_eq!((layout(&tunnel).aside, home(&tunnel)), (None, None));
}

#[tokio::test(start_paused = true)]
async fn what_goes_home_from_the_inner_address_goes_into_the_tunnel_while_there_is_a_session() {
    let mut tunnel = laptop(HomeMode::Off, "192.168.1.50", |_| ());
    tunnel.world.change(HOME, |home| home.up = false);
    let net: IpNet = "192.168.1.0/24".parse().unwrap();
    tunnel.facts.send_modify(|facts| {
        facts.ethernet.push("home0".into());
        facts.networks.push(("home0".into(), net));
    });
    tunnel.start_server(true);
    tunnel.after(5).await;
    let before = layout(&tunnel);
    assert_eq!((before.home, before.aside), (vec![net], None));
    tunnel.facts.send_modify(|facts| facts.networks.clear());
    tunnel.after(1).await;
    tunnel.stop_server();
    tunnel.after(120).await;
    assert_eq!(layout(&tunnel).home, []);
}

#[tokio::test(start_paused = true)]
async fn bulk_flows_at_home_although_the_link_has_used_up_its_budget() {
    let tunnel = at_home(HomeMode::Direct).await;
    let held = ["home0", "lte0"].map(String::from).into();
    tunnel.client.roaming.overdrawn.send_replace(Overdrawn { held, ..Overdrawn::default() });
    assert_eq!(tunnel.after(1).await.bulk, BulkState::Flows);
    tunnel.world.change(HOME, |home| home.up = false);
    assert_eq!(tunnel.after(1).await.bulk, BulkState::Held);
    tunnel.world.change(HOME, |home| home.up = true);
    assert_eq!(tunnel.after(2).await.bulk, BulkState::Flows);
}

#[tokio::test(start_paused = true)]
async fn the_tunnel_stands_aside_at_home_and_its_routes_return_with_the_first_sign_of_leaving() {
    let tunnel = at_home(HomeMode::Off).await;
    assert_eq!(home(&tunnel), is(HomeState::Aside));
    let aside = layout(&tunnel);
    assert_eq!(aside.aside.as_deref(), Some("home0"));
    tunnel.world.change(HOME, |home| home.up = false);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(layout(&tunnel).aside, None);
    tunnel.after(1).await;
    assert_eq!((tunnel.states(), home(&tunnel)), (vec!["lte0 Active".into()], None));
    tunnel.world.change(HOME, |home| home.up = true);
    tunnel.after(5).await;
    assert_eq!(home(&tunnel), is(HomeState::Aside));
    assert_eq!(tunnel.client.status().sessions, 1, "the session is the same");
}

#[tokio::test(start_paused = true)]
async fn a_home_that_falls_silent_is_left_although_no_packet_goes_into_the_tunnel() {
    let tunnel = at_home(HomeMode::Off).await;
    tunnel.host.wishes();
    tunnel.world.change(HOME, |home| home.hole = Hole::Everything);
    sleep(EVERY + PATIENCE + Duration::from_millis(10)).await;
    assert_eq!(layout(&tunnel).aside, None);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(tunnel.states()[1], "lte0 Active");
    tunnel.world.change(HOME, |home| home.hole = Hole::None);
    tunnel.after(120).await;
    assert_eq!(home(&tunnel), is(HomeState::Aside));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_leaves_no_tunnel_that_stands_aside() {
    let mut tunnel = at_home(HomeMode::Off).await;
    tunnel.stop_server();
    tunnel.after(60).await;
    assert!(!tunnel.is_connected());
    assert_eq!((layout(&tunnel).aside, home(&tunnel)), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_to_take_the_traffic_back_is_asked_again() {
    let tunnel = at_home(HomeMode::Off).await;
    tunnel.host.wishes();
    tunnel.host.refuse(&[true]);
    tunnel.world.change(HOME, |home| home.up = false);
    tunnel.after(2).await;
    let wishes = tunnel.host.wishes();
    assert!(wishes.len() >= 2 && wishes.iter().all(|it| it.aside.is_none()), "{wishes:?}");
}

#[tokio::test(start_paused = true)]
async fn each_return_takes_longer_and_a_quiet_time_ends_that() {
    let tunnel = at_home(HomeMode::Off).await;
    let mut took = Vec::new();
    for quiet in [1, 1, 700] {
        tunnel.after(quiet).await;
        tunnel.world.change(HOME, |home| home.hole = Hole::Everything);
        sleep(EVERY + PATIENCE + Duration::from_millis(50)).await;
        tunnel.world.change(HOME, |home| home.hole = Hole::None);
        let begun = clock::now();
        while home(&tunnel) != is(HomeState::Aside) {
            sleep(Duration::from_millis(10)).await;
        }
        took.push(clock::now() - begun);
    }
    assert!(took[1] > took[0] && took[2] < took[1], "{took:?}");
}

/// Whether the tunnel of this laptop ever stood aside in two minutes.
async fn stood_aside(tunnel: &Tunnel) -> bool {
    tunnel.after(120).await;
    tunnel.host.wishes().iter().any(|layout| layout.aside.is_some())
}

#[tokio::test(start_paused = true)]
async fn in_a_cafe_that_forwards_the_home_address_to_the_server_the_tunnel_does_not_stand_aside() {
    // A router translates the laptop's address; or one of the server's network does, to its own address, which the café gave
    // the laptop as well. Or the server's kernel knows no such neighbour.
    let router = Neighbourhood(vec![(LAPTOP.into(), [2, 0, 0, 0, 0, 99])]);
    let laptop_is_there = Neighbourhood(vec![(LAPTOP.into(), HARDWARE)]);
    for (seen, neighbours) in [
        ("198.51.100.9", laptop_is_there),
        ("192.168.1.50", router),
        ("192.168.1.50", Neighbourhood::default()),
    ] {
        let mut tunnel = laptop(HomeMode::Off, seen, |_| ());
        tunnel.neighbours = neighbours;
        tunnel.start_server(true);
        assert!(!stood_aside(&tunnel).await, "{seen}");
        assert_eq!(tunnel.states(), ["home0 Active", "lte0 Standby"], "a path like others");
        assert_eq!(home(&tunnel), is(HomeState::Direct));
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_that_becomes_another_one_under_the_same_link_is_not_home_any_more() {
    let tunnel = at_home(HomeMode::Off).await;
    tunnel.host.wishes();
    // An access point of the same name takes the laptop over, and forwards.
    tunnel.world.change(HOME, |home| home.public = [198, 51, 100, 9].into());
    sleep(EVERY + PATIENCE).await;
    assert_eq!(layout(&tunnel).aside, None);
    assert!(!stood_aside(&tunnel).await);
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_what_is_done_at_home() {
    let tunnel = at_home(HomeMode::Off).await;
    for (mode, state) in [(HomeMode::Direct, HomeState::Direct), (HomeMode::Off, HomeState::Aside)]
    {
        let before = tunnel.client.config.borrow().clone();
        let new = ClientConfig {
            private_key: before.private_key.clone(),
            servers: before.servers.clone(),
            home: mode,
            tun: before.tun.clone(),
            paths: before.paths.clone(),
            quic: before.quic.clone(),
            log: before.log.clone(),
            metrics: None,
        };
        tunnel.client.config.send_replace(Arc::new(new));
        tunnel.after(3).await;
        assert_eq!(home(&tunnel), is(state));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cafe_with_the_prefix_of_home_is_asked_a_few_times_and_then_rarely() {
    let mut tunnel = laptop(HomeMode::Off, "198.51.100.9", |_| ());
    tunnel.world.change(HOME, |home| home.hole = Hole::Everything);
    tunnel.start_server(true);
    tunnel.after(120).await;
    assert_eq!(tunnel.states(), ["home0 Failed", "lte0 Active"]);
    let sent = || tunnel.world.links()[HOME].sent;
    let begun = sent();
    assert!(begun < 64 << 10, "{begun} bytes while it is new");
    tunnel.after(3600).await;
    let bytes = sent() - begun;
    assert!((1..96 << 10).contains(&bytes), "{bytes} bytes an hour");
    let link = &tunnel.world.links()[LTE];
    assert!(link.is_good() && home(&tunnel).is_none());
}
