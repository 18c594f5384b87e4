use tokio::{sync::broadcast::Receiver, time::advance};

use super::{answer::unused, *};
use crate::{
    client::tests::{
        FakeNetwork, candidate, client_on, config, reports,
        session::{LTE, Tunnel, WIFI},
    },
    daemon::status::{ClientStatus, UnusedLink},
    link::candidate::{Transport, Unusable},
    path::Condition,
    tests::simulation::world::Hole,
    tunnel::counters::Counters,
};

const PAUSE: Duration = Duration::from_secs(10);

fn shown() -> (Shown, Receiver<Event>) {
    let events = Events::default();
    let listening = events.listen();
    (Shown::new(1400, events), listening)
}

fn status(shown: &Shown) -> ClientStatus {
    let nothing = Counters::default().snapshot();
    shown.status("roam0", clock::wall(), 0, Duration::ZERO, nothing)
}

fn told(events: &mut Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

fn path(link: &str, index: u32, condition: Condition) -> ShownPath {
    ShownPath {
        candidate: candidate(link, index),
        socket: None,
        measured: None,
        said: Said {
            condition,
            rtt: Some(Duration::from_millis(12)),
            portal: false,
            metered: false,
            choice: None,
            why: "because".into(),
        },
    }
}

/// What is told of a path that came or changed, or with `None` went.
fn change(link: &str, state: Option<Condition>) -> Event {
    let server = candidate(link, 0).server;
    Event::Path { link: link.into(), server, state, why: "because".into() }
}

#[test]
fn a_link_with_a_path_at_home_alone_is_no_unused_one() {
    let home = path("wlan0", 2, Condition::Active).status(None, Figures::default());
    let links = [("wlan0", Unusable::NoRoute), ("wwan0", Unusable::Down)];
    let links = links.map(|(link, why)| (link.to_owned(), why));
    let unused: Vec<_> = unused(links.into(), &[home]).into_iter().map(|it| it.link).collect();
    assert_eq!(unused, ["wwan0"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_shows_why_and_until_when() {
    let (shown, mut events) = shown();
    assert_eq!(status(&shown).state, ClientState::Connecting);
    shown.waiting("no carrier", false, PAUSE);
    advance(PAUSE / 4).await;
    let waiting = status(&shown);
    assert_eq!((waiting.state, waiting.next_attempt), (ClientState::Waiting, Some(7.5)));
    shown.connecting();
    let connecting = status(&shown);
    assert_eq!((connecting.state, connecting.next_attempt), (ClientState::Connecting, None));
    assert_eq!(connecting.last_error.as_deref(), Some("no carrier"));
    assert_eq!(told(&mut events), [], "there was no session that could end");
}

#[tokio::test]
async fn a_refusal_is_shown_until_an_attempt_ends_otherwise() {
    let (shown, _events) = shown();
    shown.waiting("no such peer", true, PAUSE);
    let words = shown.with(|state| state.said.clone());
    assert!(words.starts_with("refused by the server since "), "{words}");
    shown.connecting();
    shown.silent("no answer");
    assert!(status(&shown).refused_since.is_some(), "the next question is under way");
    assert_eq!(status(&shown).last_error.as_deref(), Some("no answer"));
    assert_eq!(shown.with(|state| state.said.clone()), words);
    shown.waiting("no answer", false, PAUSE);
    assert_eq!(status(&shown).refused_since, None);
    assert_eq!(shown.with(|state| state.said.clone()), "not connected: no answer");
}

#[test]
fn a_reason_is_news_until_another_one_takes_its_place() {
    let (shown, _events) = shown();
    let reasons = ["no carrier", "no carrier", "no answer", "no carrier"];
    assert_eq!(reasons.map(|reason| shown.is_news(reason)), [true, false, true, true]);
}

#[test]
fn the_service_manager_is_told_only_what_differs() {
    let (shown, _events) = shown();
    let say = |words: &str| shown.with(|state| state.say(words.into()));
    let told = ["a", "a", "b", "a"].map(say);
    assert_eq!(told, [Some("a".into()), None, Some("b".into()), Some("a".into())]);
}

#[test]
fn a_portal_is_told_of_when_it_is_found_or_found_on_another_link() {
    let (shown, mut events) = shown();
    for link in ["wlan0", "wlan0", "eth0"] {
        shown.portal(link);
    }
    let portal = |link: &str| Event::Portal { link: link.into() };
    assert_eq!(told(&mut events), [portal("wlan0"), portal("eth0")]);
    assert_eq!(status(&shown).portal.as_deref(), Some("eth0"));
}

#[test]
fn only_a_path_that_came_went_or_changed_its_condition_is_told_of() {
    let (shown, mut events) = shown();
    shown.paths(vec![path("wlan0", 1, Condition::Active), path("wwan0", 2, Condition::Probing)]);
    let came = [("wlan0", Condition::Active), ("wwan0", Condition::Probing)];
    assert_eq!(told(&mut events), came.map(|(link, state)| change(link, Some(state))));
    shown.paths(vec![path("wlan0", 1, Condition::Active), path("wwan0", 2, Condition::Standby)]);
    assert_eq!(told(&mut events), [change("wwan0", Some(Condition::Standby))]);
    assert_eq!(shown.in_use(), Some(candidate("wlan0", 1)));
    shown.paths(vec![path("wwan0", 2, Condition::Suspect)]);
    let gone = [change("wlan0", None), change("wwan0", Some(Condition::Suspect))];
    assert_eq!(told(&mut events), gone);
    assert_eq!(shown.in_use(), Some(candidate("wwan0", 2)), "silent, but still in use");
    shown.paths(vec![path("wwan0", 2, Condition::Failed)]);
    assert_eq!(shown.remote(), None);
}

#[test]
fn the_paths_are_one_line_in_which_each_link_that_works_is_named_once() {
    use Condition::{Active, Failed, Probing, Standby, Suspect, Waiting};
    let (shown, _events) = shown();
    let words = |paths: &[(&str, Condition)]| {
        let numbered = (1..).zip(paths);
        shown.paths(numbered.map(|(index, (link, it))| path(link, index, *it)).collect());
        shown.with(|state| state.said.clone())
    };
    let standbys = [("wwan0", Standby), ("wlan0", Active), ("wwan0", Standby), ("eth0", Failed)];
    assert_eq!(words(&standbys), "active on wlan0, 12 ms; standby wwan0");
    assert_eq!(words(&[("wlan0", Suspect), ("wwan0", Probing)]), "silent on wlan0");
    assert_eq!(words(&[("wlan0", Waiting)]), "no path works, waiting for one");
}

#[tokio::test(start_paused = true)]
async fn the_last_sixteen_switches_are_shown_and_all_are_counted() {
    let (shown, mut events) = shown();
    let wifi = candidate("wlan0", 1);
    let lte = candidate("wwan0", 2).over_tcp(443);
    let switched = |from: Option<&Candidate>, to: &Candidate, reason: Reason, gap| Switched {
        from: from.cloned(),
        to: to.clone(),
        reason,
        words: format!("{reason:?}"),
        gap: Duration::from_millis(gap),
    };
    shown.switched(&switched(None, &wifi, Reason::Gone, 1500));
    for _ in 0..history::REMEMBERED {
        advance(Duration::from_secs(1)).await;
        shown.switched(&switched(Some(&wifi), &lte, Reason::Silent, 300));
    }
    let status = status(&shown);
    let ages: Vec<_> = status.switches.iter().map(|switch| switch.ago).collect();
    assert_eq!(ages, (0..16).rev().map(f64::from).collect::<Vec<_>>());
    assert!(status.switches.iter().all(|it| it.from.as_deref() == Some("wlan0")), "no first one");
    let transports = |it: &SwitchStatus| (it.from_transport, it.to_transport);
    let expected = (Transport::Udp, Transport::Tcp);
    assert!(status.switches.iter().all(|it| transports(it) == expected));
    assert!(status.switches[0].line("").starts_with("wlan0 -> wwan0 (tcp): "));
    assert_eq!(status.switches_by_reason, [(Reason::Gone, 1), (Reason::Silent, 16)].into());
    let events = told(&mut events);
    let expected = Event::Switched {
        from: None,
        from_transport: Transport::Udp,
        to: "wlan0".into(),
        to_transport: Transport::Udp,
        reason: "Gone".into(),
        gap: 1500.0,
    };
    assert_eq!(events[0], expected);
    let moved = "moved from wlan0 to wwan0 (tcp) (Silent), 300 ms without a sign";
    assert_eq!(events[1].summary(), moved);
}

#[tokio::test(start_paused = true)]
async fn copies_are_told_of_together_once_there_are_no_more() {
    let (shown, mut events) = shown();
    shown.paths(vec![path("wlan0", 1, Condition::Active)]);
    told(&mut events);
    let mut look = async |sent, used| {
        shown.copies([sent, used], clock::now());
        advance(Duration::from_millis(500)).await;
        told(&mut events)
    };
    for (sent, used) in [(0, 0), (3, 0), (3, 0), (7, 2), (7, 2)] {
        assert_eq!(look(sent, used).await, []);
    }
    let expected = |sent, used| Event::Copies { link: "wlan0".into(), sent, used };
    assert_eq!(look(7, 2).await, [expected(7, 2)]);
    for (sent, used) in [(7, 2), (7, 3), (7, 3)] {
        assert_eq!(look(sent, used).await, []);
    }
    assert_eq!(look(7, 3).await, [expected(0, 1)]);
}

#[tokio::test]
async fn what_the_client_declines_and_what_the_kernel_refuses_is_left_out() {
    let (_facts, refused, reports) = reports();
    let client = client_on(config(), FakeNetwork::of(&[]), reports);
    let [declined, kernel] =
        ["route ::/0", "route 10.0.0.0/8"].map(|what| LeftOut::new(what, "no"));
    client.shown.set_up(1300, Vec::new(), Vec::new(), vec![declined.clone()]);
    refused.send_replace(vec![kernel.clone()]);
    let status = client.status();
    assert_eq!((status.mtu, status.left_out), (1300, vec![declined, kernel]));
    assert_eq!(status.server, ["192.0.2.1:4433"]);
}

#[tokio::test]
async fn links_that_carry_no_path_are_shown_with_the_reason() {
    let network = FakeNetwork::of(&["eth0"]);
    network.unused.lock().unwrap().push(("eth1".into(), Unusable::NoCarrier));
    let client = client_on(config(), network, reports().2);
    let status::Role::Client(status) = client.whole_status().await.role else { panic!("a server") };
    let unused = UnusedLink { link: "eth1".into(), why: "it has no carrier".into() };
    assert_eq!(status.unused_links, [unused]);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_shown_with_its_paths_and_what_crossed_them() {
    let tunnel = Tunnel::connected().await;
    let status = tunnel.client.status();
    let session = status.session.unwrap();
    assert_eq!(session.remote, tunnel.client.shown.remote().unwrap());
    assert!((20.0..25.0).contains(&session.quic.rtt), "{:?}", session.quic);
    let [wifi, lte] = &status.paths[..] else { panic!("{:?}", status.paths) };
    assert!(wifi.sent_bytes > 0 && wifi.received_bytes > 0 && wifi.mtu.is_some(), "{wifi:?}");
    assert_eq!((wifi.errors, wifi.loss), (0, Some(0.0)));
    assert_eq!((lte.sent_bytes, lte.received_bytes), (0, 0), "probes are not the tunnel's");
    assert!(lte.rtt.is_some_and(|rtt| (20.0..25.0).contains(&rtt)), "{lte:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_of_once_and_the_attempts_are_shown_as_paths() {
    let tunnel = Tunnel::connected().await;
    let mut events = tunnel.client.events.listen();
    for link in [WIFI, LTE] {
        tunnel.world.change(link, |it| it.hole = Hole::Everything);
    }
    let status = tunnel.after(120).await;
    assert!(status.session.is_none() && status.sessions == 1 && status.uptime >= 0.0);
    assert_eq!(tunnel.states(), ["lte0 Probing", "wifi0 Probing"]);
    assert!(status.paths[0].why.starts_with("no answer for 1m"), "{:?}", status.paths);
    let ends = told(&mut events).into_iter().filter(|it| matches!(it, Event::Disconnected { .. }));
    assert_eq!(ends.count(), 1);
}
