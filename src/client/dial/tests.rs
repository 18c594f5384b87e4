use std::{collections::HashSet, sync::Mutex};

use tokio::time;

use super::{
    search::{CROWD, MAX_ATTEMPTS, SETTLE, SILENCE, in_turn, one_of_each_family},
    *,
};
use crate::{
    client::tests::{FakeNetwork, client, config},
    config::{ClientConfig, Preference},
    link::candidate::{Candidate, Transport},
    path::manager::{self, Choice, Manager, Settings},
    quic::HANDSHAKE_TIMEOUT,
};

fn candidate(link: u32, server: u8) -> Candidate {
    let (source, server) = ([10, 0, 0, 1].into(), ([192, 0, 2, server], 4433).into());
    Candidate {
        link: format!("eth{link}"),
        index: link,
        source,
        router: None,
        metric: 0,
        server,
        transport: Transport::Udp,
    }
}

fn loss(answered: Option<Candidate>, left: Option<SocketAddr>) -> Loss {
    Loss { at: clock::now(), server: None, answered, left }
}

#[test]
fn every_link_is_tried_with_any_number_of_addresses() {
    let all = (1..=3).flat_map(|link| (0..9).map(move |server| candidate(link, server)));
    let first: Vec<_> = in_turn(all, &loss(None, None)).take(MAX_ATTEMPTS).collect();
    assert_eq!(first[..3], [candidate(1, 0), candidate(2, 0), candidate(3, 0)]);
    for link in 1..=3 {
        assert!(first.iter().filter(|it| it.index == link).count() >= 5, "{first:?}");
    }
}

#[test]
fn the_candidate_over_which_the_server_answered_last_is_the_first() {
    let all = [candidate(1, 0), candidate(1, 1), candidate(2, 0)];
    let order =
        |answered| in_turn(all.clone().into_iter(), &loss(answered, None)).collect::<Vec<_>>();
    assert_eq!(order(None), [candidate(1, 0), candidate(2, 0), candidate(1, 1)]);
    let answered = candidate(1, 1);
    let expected = [answered.clone(), candidate(1, 0), candidate(2, 0)];
    assert_eq!(order(Some(answered)), expected);
    assert_eq!(order(Some(candidate(3, 0))), order(None), "it is gone");
}

#[test]
fn the_address_at_which_the_server_said_goodbye_is_the_last() {
    let all = [candidate(1, 0), candidate(2, 0), candidate(1, 1), candidate(2, 1)];
    let left = Some(candidate(1, 0).server);
    let order: Vec<_> = in_turn(all.clone().into_iter(), &loss(None, left)).collect();
    let [first, second, third, fourth] = all;
    assert_eq!(order, [third, fourth, first, second]);
}

#[test]
fn many_parallel_attempts_send_no_more_than_a_few() {
    let crowd = Crowd::default();
    let _searches = [crowd.clone(), crowd.clone()];
    let attempt = Arc::downgrade(&crowd.0);
    let mut attempts = vec![attempt; CROWD];
    assert_eq!(crowd.slowness(), 1);
    attempts.resize(MAX_ATTEMPTS, Arc::downgrade(&crowd.0));
    assert_eq!(crowd.slowness() as usize, MAX_ATTEMPTS / CROWD);
    attempts.clear();
    assert_eq!(crowd.slowness(), 1);
}

/// How a round ends; the milliseconds that it lasts, and those until the server is called silent.
struct Ran {
    ended: String,
    lasted: u128,
    silent: Vec<(u128, String)>,
}

/// A round over links on which nobody answers, with this configuration and choice.
async fn round(
    network: &Arc<FakeNetwork>,
    config: ClientConfig,
    choice: Option<Choice>,
    answered: Option<Candidate>,
) -> Ran {
    let mut manager = Manager::new(Settings::new(&config.paths));
    let _ = manager.handle(manager::Event::Choose(choice), clock::now());
    let client = client(config, network.clone());
    let begun = clock::now();
    let since = || (clock::now() - begun).as_millis();
    let silent = Mutex::new(Vec::new());
    let tell = |error: &HandshakeError| {
        silent.lock().unwrap().push((since(), error.to_string()));
    };
    let servers = client.servers.all();
    let server = Some(servers[0].key());
    let round = Round {
        servers: servers.to_vec(),
        dialing: manager.dialing().clone(),
        early: Arc::default(),
        loss: Loss { at: begun, server, answered, left: None },
        terms: client.terms,
        is_heard: Arc::default(),
        silent: &tell,
    };
    let dialed = dial(round, client.config.subscribe()).await;
    let ended = dialed.err().expect("nobody answers").to_string();
    Ran { ended, lasted: since(), silent: silent.into_inner().unwrap() }
}

/// The first attempts over each link, and when they began.
fn firsts(network: &FakeNetwork, begun: Instant) -> Vec<(String, u128)> {
    let mut seen = HashSet::new();
    let mut bound = network.bound_since(begun);
    bound.retain(|(link, _)| seen.insert(link.clone()));
    bound
}

fn at(firsts: &[(&str, u128)]) -> Vec<(String, u128)> {
    firsts.iter().map(|(link, at)| ((*link).into(), *at)).collect()
}

fn pinned(link: &str) -> Option<Choice> {
    Some(Choice { link: link.into(), pinned: true })
}

#[tokio::test(start_paused = true)]
async fn attempts_begin_a_moment_apart_in_the_managers_order() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0", "wwan0"]), clock::now());
    let mut config = config();
    config.paths.prefer.push(Preference {
        link: "ww*".into(),
        metered: false,
        ..Preference::default()
    });
    config.paths.ignore.push("eth0".into());
    round(&network, config, None, None).await;
    assert_eq!(firsts(&network, begun), at(&[("wwan0", 0), ("wlan0", 250)]));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_over_tcp_begins_a_moment_after_that_over_udp() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0"]), clock::now());
    let others = (2..10).map(|server| Candidate {
        server: ([192, 0, 2, server], 4433).into(),
        ..crate::client::tests::candidate("eth0", 1)
    });
    network.candidates.lock().unwrap().extend(others);
    let mut config = config();
    config.servers[0].tcp_port = Some(443);
    round(&network, config, None, None).await;
    let expected = [("eth0", 0), ("wlan0", 250), ("eth0 tcp", 300), ("wlan0 tcp", 550)];
    assert_eq!(firsts(&network, begun)[..4], at(&expected));
}

#[tokio::test(start_paused = true)]
async fn where_no_socket_can_be_opened_tcp_does_not_wait() {
    let (network, begun) = (FakeNetwork::of(&["wlan0"]), clock::now());
    network.broken.lock().unwrap().push("wlan0".into());
    let mut config = config();
    config.servers[0].tcp_port = Some(443);
    round(&network, config, None, None).await;
    assert_eq!(firsts(&network, begun), at(&[("wlan0", 0), ("wlan0 tcp", 0)]));
}

#[tokio::test(start_paused = true)]
async fn four_attempts_are_not_slowed_down() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "eth1", "eth2", "eth3"]), clock::now());
    round(&network, config(), None, None).await;
    let bound = network.bound_since(begun);
    let count = bound.iter().filter(|(_, at)| (1000..2000).contains(at)).count();
    assert!(count >= 16, "{count} handshakes in the second second, four for each");
}

#[test]
fn over_tcp_one_address_of_each_family_is_tried_over_each_link() {
    let v6 = |link, server: u16| {
        let server = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, server], 443).into();
        Candidate { server, transport: Transport::Tcp, ..candidate(link, 0) }
    };
    let v4 = |link, server| candidate(link, server).over_tcp(443);
    let found = vec![v6(1, 1), v4(1, 1), v4(1, 2), v4(2, 1), v6(1, 2), v6(2, 2)];
    let expected = [v6(1, 1), v4(1, 1), v4(2, 1), v6(2, 2)];
    assert_eq!(one_of_each_family(found).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_path_that_answered_last_is_dialed_first() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0", "wwan0"]), clock::now());
    let answered = crate::client::tests::candidate("wlan0", 2);
    round(&network, config(), None, Some(answered)).await;
    assert_eq!(firsts(&network, begun), at(&[("wlan0", 0), ("eth0", 250), ("wwan0", 500)]));
}

#[tokio::test(start_paused = true)]
async fn a_pinned_link_is_dialed_alone() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "wlan0"]), clock::now());
    let Ran { ended, .. } = round(&network, config(), pinned("wlan0"), None).await;
    assert_eq!(firsts(&network, begun), at(&[("wlan0", 0)]));
    assert_eq!(ended, "no answer from 192.0.2.1:4433 over wlan0");
    let Ran { ended, lasted, .. } = round(&network, config(), pinned("lte0"), None).await;
    assert!(ended.starts_with("lte0 has no route to 192.0.2.1:4433, and is pinned"), "{ended}");
    assert_eq!(lasted, 0);
}

#[tokio::test(start_paused = true)]
async fn after_an_attempt_that_cannot_succeed_the_next_begins_at_once() {
    let (network, begun) = (FakeNetwork::of(&["eth0", "eth1", "wlan0"]), clock::now());
    network.broken.lock().unwrap().extend(["eth0".into(), "eth1".into()]);
    let Ran { lasted, .. } = round(&network, config(), None, None).await;
    assert_eq!(network.bound_since(begun)[..3], at(&[("eth0", 0), ("eth1", 0), ("wlan0", 0)]));
    assert_eq!(lasted, HANDSHAKE_TIMEOUT.as_millis(), "the last one may succeed");
}

#[tokio::test(start_paused = true)]
async fn a_round_in_which_no_attempt_can_succeed_is_over_at_once() {
    let network = FakeNetwork::of(&["eth0", "wlan0"]);
    network.broken.lock().unwrap().extend(["eth0".into(), "wlan0".into()]);
    let Ran { ended, lasted, silent } = round(&network, config(), None, None).await;
    assert!(ended.starts_with("cannot reach 192.0.2.1:4433 over wlan0: "), "{ended}");
    assert_eq!((lasted, silent), (0, Vec::new()));
    network.have(&[]);
    let Ran { ended, lasted, .. } = round(&network, config(), None, None).await;
    assert_eq!(ended, "no network link has a route to 192.0.2.1:4433");
    assert_eq!(lasted, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_told_of_once_and_then_given_up() {
    let network = FakeNetwork::of(&["wlan0", "eth0"]);
    let Ran { ended, lasted, silent } = round(&network, config(), None, None).await;
    let why = "no answer from 192.0.2.1:4433 over eth0 or wlan0";
    assert_eq!((ended.as_str(), lasted), (why, HANDSHAKE_TIMEOUT.as_millis()));
    assert_eq!(silent, [(SILENCE.as_millis(), why.into())]);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_comes_up_during_a_round_is_dialed_too() {
    let (network, begun) = (FakeNetwork::of(&["eth0"]), clock::now());
    let comes_up = async {
        time::sleep(Duration::from_secs(3)).await;
        network.have(&["eth0", "wlan0"]);
    };
    tokio::join!(round(&network, config(), None, None), comes_up);
    let settled = 3000 + SETTLE.as_millis();
    assert_eq!(firsts(&network, begun), at(&[("eth0", 0), ("wlan0", settled)]));
}

#[tokio::test(start_paused = true)]
async fn a_round_makes_no_more_than_sixteen_attempts_and_leaves_no_socket() {
    let links: Vec<_> = (0..30).map(|link| format!("eth{link}")).collect();
    let links: Vec<_> = links.iter().map(String::as_str).collect();
    let (network, begun) = (FakeNetwork::of(&links), clock::now());
    round(&network, config(), None, None).await;
    assert_eq!(firsts(&network, begun).len(), MAX_ATTEMPTS);
    time::sleep(Duration::from_secs(5)).await;
    let sockets = network.sockets.lock().unwrap();
    let open = sockets.iter().filter(|(_, socket)| socket.strong_count() > 0);
    assert_eq!(open.count(), 0);
}
