use super::*;
use crate::{
    client::{
        command::What,
        tests::{
            config,
            session::{LTE, Tunnel, WIFI},
        },
    },
    config::{ClientConfig, HostPort, Preference},
    path::Reason,
    tests::simulation::world::{Hole, Link},
};

/// Changes the configuration while the client runs.
async fn reload(tunnel: &Tunnel, change: impl FnOnce(&mut ClientConfig)) {
    let before = tunnel.client.config.borrow().clone();
    let mut new = before.reloaded(config());
    new.servers.clone_from(&before.servers);
    change(&mut new);
    tunnel.client.servers.renew(&new).unwrap();
    tunnel.client.config.send_replace(new.into());
    tunnel.after(1).await;
}

/// The reasons for which the tunnel moved, each with the link to which it did.
fn moves(tunnel: &Tunnel) -> Vec<(String, String)> {
    let switches = tunnel.client.status().switches.into_iter();
    switches.map(|switch| (switch.to, switch.reason)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chosen_link_is_used_until_it_fails() {
    let tunnel = Tunnel::connected().await;
    let answer = tunnel.switch("lte0", false).await.unwrap();
    assert_eq!(answer, ["lte0: in use, until it fails"]);
    tunnel.after(60).await;
    assert_eq!(tunnel.states(), ["wifi0 Standby", "lte0 Active"]);
    tunnel.world.change(LTE, |lte| lte.up = false);
    tunnel.after(1).await;
    tunnel.world.change(LTE, |lte| lte.up = true);
    tunnel.after(300).await;
    assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
    let expected = [("lte0".into(), Reason::Chosen), ("wifi0".into(), Reason::Gone)];
    assert_eq!(moves(&tunnel), expected.map(|(to, why)| (to, why.to_string())));
    assert_eq!(tunnel.client.status().sessions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pinned_link_is_used_even_though_it_fails_until_the_choice_is_taken_back() {
    let tunnel = Tunnel::connected().await;
    let answer = tunnel.switch("lte0", true).await.unwrap();
    assert_eq!(answer, ["lte0: in use, whatever happens"]);
    tunnel.after(5).await;
    tunnel.world.change(LTE, |lte| lte.hole = Hole::Everything);
    tunnel.after(20).await;
    assert_eq!(moves(&tunnel), [("lte0".into(), Reason::Chosen.to_string())]);
    assert_ne!(tunnel.states()[0], "wifi0 Active");
    let answer = tunnel.order(What::Auto).await.unwrap();
    assert_eq!(answer, ["the best path is chosen again"]);
    tunnel.after(5).await;
    assert_eq!(tunnel.states()[0], "wifi0 Active");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_does_not_answer_is_used_as_soon_as_it_does() {
    let tunnel = Tunnel::connected().await;
    tunnel.world.change(LTE, |lte| lte.hole = Hole::Everything);
    tunnel.after(60).await;
    assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Failed"]);
    let answer = tunnel.switch("lte0", false).await.unwrap();
    assert_eq!(answer, ["lte0: used as soon as it answers, until it fails"]);
    tunnel.world.change(LTE, |lte| lte.hole = Hole::None);
    tunnel.after(150).await;
    assert_eq!(tunnel.states(), ["wifi0 Standby", "lte0 Active"]);
}

#[tokio::test(start_paused = true)]
async fn bulk_is_held_on_a_link_that_has_used_up_its_budget_and_flows_on_another_one() {
    let tunnel = Tunnel::connected().await;
    let overdrawn = |links: &[&str]| {
        let held = links.iter().map(|link| (*link).to_owned()).collect();
        let overdrawn = Overdrawn { held, ..Overdrawn::default() };
        tunnel.client.roaming.overdrawn.send_replace(overdrawn);
    };
    let bulk = async || tunnel.after(1).await.bulk;
    assert_eq!(bulk().await, BulkState::Flows);
    overdrawn(&["wifi0"]);
    assert_eq!(bulk().await, BulkState::Held);
    tunnel.switch("lte0", false).await.unwrap();
    assert_eq!(bulk().await, BulkState::Flows);
    overdrawn(&["wifi0", "lte0"]);
    assert_eq!(bulk().await, BulkState::Held);
    overdrawn(&[]);
    assert_eq!(bulk().await, BulkState::Flows);
    assert_eq!(tunnel.client.status().sessions, 1, "the server understands what it is told");
}

#[tokio::test(start_paused = true)]
async fn a_network_that_becomes_another_one_is_asked_again_and_the_session_goes_on() {
    let tunnel = Tunnel::connected().await;
    for (link, other, delay) in [(WIFI, 9, 60u32), (LTE, 9, 25), (WIFI, 1, 5)] {
        tunnel.world.change(link, |it| {
            (it.router, it.delay) =
                (Some([10, 0, 1, other].into()), Duration::from_millis(delay.into()));
        });
        let paths = tunnel.after(1).await.paths;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
        let trip = f64::from(2 * delay);
        assert!(paths[link].rtt.is_some_and(|it| (trip..trip + 10.0).contains(&it)), "{paths:?}");
        tunnel.after(30).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
    }
    assert_eq!((moves(&tunnel), tunnel.client.status().sessions), (vec![], 1));
}

/// A client with a session over wifi, of which it knows how much it carries, and lte as standby.
async fn measured() -> Tunnel {
    let mut links = vec![
        Link::new("wifi0", "10.0.1.2", "198.51.100.1", 100),
        Link::new("lte0", "10.0.2.2", "198.51.100.2", 200),
    ];
    links.iter_mut().for_each(|it| it.delay = Duration::from_millis(100));
    let mut tunnel = Tunnel::over(links, |_| ());
    tunnel.start_server(true);
    tunnel.after(3).await;
    for _ in 0..300 {
        tunnel.client.queue.push(&mut vec![vec![0x45; 1200].into(); 20]);
        time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
    assert!(tunnel.client.servers.all()[0].congestion.known().is_some());
    tunnel
}

fn behind(router: Option<u8>) -> impl FnOnce(&mut Link) {
    move |link| link.router = router.map(|last| [10, 0, 1, last].into())
}

#[tokio::test(start_paused = true)]
async fn a_network_to_which_the_link_returns_is_known_as_it_was_and_another_one_is_not() {
    let tunnel = measured().await;
    let congestion = || tunnel.client.servers.all()[0].congestion.clone();
    for router in [Some(9), None, Some(9), None] {
        tunnel.world.change(WIFI, behind(router));
        tunnel.after(5).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
        assert_eq!(congestion().known(), None, "nothing is sent");
        assert_eq!(congestion().remembered().is_some(), router.is_none(), "{router:?}");
    }
}

/// The switch follows in the same breath.
#[tokio::test(start_paused = true)]
async fn what_a_network_delivered_stays_its_own_although_another_link_takes_over_at_once() {
    let tunnel = measured().await;
    let remembered = || tunnel.client.servers.all()[0].congestion.remembered();
    tunnel.world.change(LTE, |it| it.metric = 50);
    tunnel.world.change(WIFI, behind(Some(9)));
    for (router, is_known) in [(Some(9), false), (None, true)] {
        tunnel.world.change(WIFI, behind(router));
        tunnel.after(5).await;
        assert_eq!(tunnel.states(), ["wifi0 Standby", "lte0 Active"]);
        tunnel.world.change(WIFI, |it| it.metric = 10);
        tunnel.after(5).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
        assert_eq!(remembered().is_some(), is_known, "behind {router:?}");
        tunnel.world.change(WIFI, |it| it.metric = 100);
    }
}

#[tokio::test(start_paused = true)]
async fn small_packets_that_are_lost_as_the_network_becomes_another_one_are_sent_again() {
    let tunnel = Tunnel::connected().await;
    tunnel.world.change(WIFI, |it| it.hole = Hole::Everything);
    for _ in 0..5 {
        tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
        time::sleep(Duration::from_millis(10)).await;
    }
    tunnel.world.change(WIFI, |it| it.hole = Hole::None);
    tunnel.world.change(WIFI, behind(Some(9)));
    let resumed = tunnel.after(1).await.traffic.resumed_packets;
    assert!(resumed >= 5, "{resumed}");
    assert_eq!(moves(&tunnel), []);
}

/// The router was gone a moment before the route said so, and the way behind the next one is longer.
#[tokio::test(start_paused = true)]
async fn the_silence_of_a_network_does_not_count_in_the_next_one() {
    let tunnel = Tunnel::connected().await;
    tunnel.world.change(WIFI, |it| it.hole = Hole::Everything);
    for _ in 0..20 {
        tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
        time::sleep(Duration::from_millis(10)).await;
    }
    tunnel.world.change(WIFI, |it| {
        (it.hole, it.delay) = (Hole::None, Duration::from_millis(120));
        behind(Some(9))(it);
    });
    tunnel.after(10).await;
    assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
    assert_eq!(moves(&tunnel), []);
}

/// Whenever it dies between two looks at what it carries.
#[tokio::test(start_paused = true)]
async fn a_path_that_dies_under_a_transfer_is_not_taken_for_a_narrow_one() {
    for phase in (0..250).step_by(25) {
        let tunnel = Tunnel::connected().await;
        let transfer = async |ms: u32| {
            for _ in 0..ms / 5 {
                tunnel.client.queue.push(&mut vec![vec![0x45; 1000].into(); 2]);
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        transfer(3000 + phase).await;
        tunnel.world.change(WIFI, |it| it.hole = Hole::Everything);
        transfer(1000).await;
        tunnel.world.change(WIFI, |it| it.hole = Hole::None);
        tunnel.after(2).await;
        assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"], "{phase}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_is_not_taken_for_a_bad_one_whose_router_had_the_same_address() {
    for (machine, expected) in [(0, "loses "), (9, "failed lately, ")] {
        let tunnel = Tunnel::connected().await;
        let change = |change: fn(&mut Link)| tunnel.world.change(WIFI, change);
        change(|it| it.router = Some([192, 168, 1, 1].into()));
        tunnel.after(1).await;
        change(|it| it.loss = 0.3);
        for _ in 0..500 {
            tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
            time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(tunnel.states(), ["wifi0 Standby", "lte0 Active"]);
        change(|it| it.up = false);
        tunnel.after(1).await;
        tunnel.world.change(WIFI, |it| {
            (it.up, it.loss, it.hardware[5]) = (true, 0.0, machine);
        });
        let paths = tunnel.after(1).await.paths;
        assert!(paths[WIFI].why.starts_with(expected), "{machine}: {paths:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_about_a_link_without_a_path_is_refused() {
    let tunnel = Tunnel::connected().await;
    let why = "eth7 has no way to the server; links that have one: lte0, wifi0";
    assert_eq!(tunnel.switch("eth7", true).await.unwrap_err(), why);
    let probe = What::Probe { link: Some("eth7".into()) };
    assert_eq!(tunnel.order(probe).await.unwrap_err(), why);
    tunnel.after(5).await;
    assert_eq!(tunnel.states(), ["wifi0 Active", "lte0 Standby"]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_asks_over_every_path_that_is_not_in_use() {
    let tunnel = Tunnel::connected().await;
    let lines = tunnel.order(What::Probe { link: None }).await.unwrap();
    let [wifi, lte] = &lines[..] else { panic!("{lines:?}") };
    assert!(wifi.starts_with("wifi0 10.0.1.2 -> 192.0.2.1:4433: in use, 20."), "{wifi}");
    assert!(lte.starts_with("lte0 10.0.2.2 -> 192.0.2.1:4433: works, 20."), "{lte}");
    tunnel.world.change(LTE, |lte| lte.hole = Hole::Everything);
    let begun = clock::now();
    let failed = tunnel.order(What::Probe { link: Some("lte0".into()) }).await.unwrap_err();
    assert_eq!(failed, "lte0 10.0.2.2 -> 192.0.2.1:4433: no answer");
    assert!(clock::now() - begun <= config().paths.probe_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_link_gets_into_another_network_says_so() {
    let tunnel = Tunnel::connected().await;
    tunnel.world.change(LTE, |lte| lte.hole = Hole::Everything);
    let probe = tunnel.order(What::Probe { link: Some("lte0".into()) });
    let change = async {
        time::sleep(Duration::from_secs(1)).await;
        tunnel.world.change(LTE, |lte| lte.router = Some([10, 0, 2, 9].into()));
    };
    let (answer, ()) = tokio::join!(probe, change);
    let expected = "lte0 10.0.2.2 -> 192.0.2.1:4433: the link is in another network by now";
    assert_eq!(answer.unwrap_err(), expected);
}

#[tokio::test(start_paused = true)]
async fn another_preference_moves_the_tunnel_within_its_session() {
    let tunnel = Tunnel::connected().await;
    let lte = Preference { link: "lte*".into(), metered: false, ..Preference::default() };
    reload(&tunnel, |config| config.paths.prefer.push(lte)).await;
    assert_eq!(tunnel.states(), ["wifi0 Standby", "lte0 Active"]);
    assert_eq!(moves(&tunnel), [("lte0".into(), Reason::Preferred.to_string())]);
    assert_eq!(tunnel.client.status().sessions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_ignored_from_now_on_is_left_at_once() {
    let tunnel = Tunnel::connected().await;
    reload(&tunnel, |config| config.paths.ignore.push("wifi?".into())).await;
    assert_eq!(tunnel.states(), ["lte0 Active"]);
    assert_eq!(moves(&tunnel), [("lte0".into(), Reason::Gone.to_string())]);
    tunnel.after(5).await;
    let open: Vec<_> = tunnel.world.open_sockets().into_iter().map(|(link, _)| link).collect();
    assert_eq!(open, [LTE], "nor is a socket left there");
}

#[tokio::test(start_paused = true)]
async fn the_servers_address_in_use_stays_when_the_names_stand_for_others() {
    let tunnel = Tunnel::connected().await;
    let elsewhere = HostPort { host: "203.0.113.9".into(), port: 4433 };
    reload(&tunnel, |config| config.servers[0].addresses = vec![elsewhere]).await;
    let paths = tunnel.client.status().paths;
    let of_link = |link: &str| paths.iter().filter(|path| path.link == link).count();
    assert_eq!((of_link("wifi0"), of_link("lte0")), (2, 2), "{paths:?}");
    let active = paths.iter().find(|path| path.state == crate::path::Condition::Active).unwrap();
    assert_eq!(active.server.to_string(), "192.0.2.1:4433");
    assert_eq!(moves(&tunnel), []);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_forgot_the_connection_has_a_new_session_before_the_old_one_times_out() {
    let mut tunnel = Tunnel::connected().await;
    tunnel.start_server(true);
    let status = tunnel.after(15).await;
    assert!(tunnel.is_connected(), "{:?}", status.last_error);
    assert_eq!(status.sessions, 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_forgot_and_cannot_say_so_is_found_out_by_what_it_says_of_the_session() {
    for links in [&[WIFI, LTE][..], &[WIFI]] {
        let mut tunnel = Tunnel::connected().await;
        tunnel.world.change(LTE, |lte| lte.up = links.contains(&LTE));
        tunnel.after(1).await;
        tunnel.world.lose_resets();
        tunnel.start_server(true);
        let begun = clock::now();
        while tunnel.client.status().sessions < 2 {
            tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
            time::sleep(Duration::from_millis(10)).await;
            assert!(clock::now() - begun < Duration::from_secs(1), "{:?}", tunnel.states());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn packets_wait_while_no_link_is_left_and_the_session_outlives_it() {
    let tunnel = Tunnel::connected().await;
    for link in [WIFI, LTE] {
        tunnel.world.change(link, |it| it.up = false);
    }
    tunnel.after(1).await;
    let packet = vec![0x45; 100];
    tunnel.client.queue.push(&mut vec![packet.into()]);
    assert!(tunnel.after(9).await.queued_bytes >= 100);
    tunnel.world.change(LTE, |it| it.up = true);
    let status = tunnel.after(2).await;
    assert_eq!((status.queued_bytes, status.sessions), (0, 1));
    assert_eq!(tunnel.states(), ["lte0 Active"]);
}
