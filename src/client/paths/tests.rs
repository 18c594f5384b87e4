use std::io;

use quinn::AsyncUdpSocket as _;
use tokio::sync::mpsc;

use super::{networks::ROUTER_CHECK, *};
use crate::{
    client::tests::{FakeNetwork, candidate},
    identity::PrivateKey,
    link::router::MEMORY,
    path::{
        cut::Cut,
        handshake::Handshake,
        network::NetworkError,
        probe::{Probes, Report},
        udp::fake::FakeSocket,
    },
    quic::{self, tls},
};

const MS: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(5);
const KNOWN: Remembered = Remembered { window: 100_000, rtt: Duration::from_millis(40) };

struct Fixture {
    paths: PathTable,
    socket: Arc<PathSocket>,
    network: Arc<FakeNetwork>,
    reports: mpsc::Receiver<Report>,
    wifi: Arc<FakeSocket>,
    now: Instant,
}

fn key(candidate: &Candidate) -> PathKey {
    PathKey::from(candidate)
}

fn wifi() -> Candidate {
    candidate("wlan0", 1)
}

fn lte() -> Candidate {
    candidate("wwan0", 2)
}

/// Connected over wifi, with lte as a further candidate.
fn on_wifi() -> Fixture {
    let (errors, _) = mpsc::channel(1);
    let (sender, reports) = mpsc::channel(4);
    let (socket, network) = (PathSocket::new(errors), Arc::new(FakeNetwork::default()));
    let udp = FakeSocket::new("10.0.0.2:1000");
    let id = socket.open(udp.clone(), wifi().server, Cut::default());
    let key = PrivateKey::generate().unwrap();
    let probes =
        Handshake::new(&key, key.public_key(), tls::PROBE, quic::probe_transport()).unwrap();
    let probes = Probes { handshake: probes, process: 1 };
    let prober = Prober::new(probes, sender, drop);
    let paths = PathTable::new(socket.clone(), network.clone(), prober, (wifi(), id));
    let now = clock_now();
    let mut fixture = Fixture { paths, socket, network, reports, wifi: udp, now };
    fixture.update(&[wifi(), lte()]);
    fixture
}

fn clock_now() -> Instant {
    crate::clock::now()
}

impl Fixture {
    fn update(&mut self, found: &[Candidate]) {
        self.find(found, None);
    }

    /// The same, where the path in use delivers so much.
    fn find(&mut self, found: &[Candidate], memory: Option<Remembered>) {
        self.paths.update(found.iter(), memory, self.now);
        self.paths.retain(&found.iter().map(key).collect());
    }

    /// This path is in this condition.
    fn is(&mut self, candidate: &Candidate, condition: Condition) {
        self.paths.ask_networks([(key(candidate), condition, None)].into_iter(), self.now);
    }

    /// This path has answered.
    fn works(&mut self, candidate: &Candidate) {
        let path = (key(candidate), Condition::Standby, Some(20 * MS));
        self.paths.ask_networks([path].into_iter(), self.now);
    }

    /// What is found out in a while.
    async fn answered(&mut self) -> Option<Event> {
        tokio::time::timeout(LIMIT, self.paths.answered()).await.ok()
    }

    fn switch(&mut self, to: &Candidate) -> Option<Departure> {
        self.paths.switch(key(to), Some(KNOWN), self.now)
    }

    /// Waits, and closes what is due by then.
    fn wait(&mut self, duration: Duration, active: &Candidate) {
        self.now += duration;
        self.paths.close_old(Some(key(active)), self.now);
    }

    fn is_open(&self, candidate: &Candidate) -> bool {
        let id = self.paths.entries.get(&key(candidate)).and_then(|entry| entry.socket);
        id.is_some_and(|id| self.socket.stats(id).is_some())
    }

    /// The link that sends go by.
    fn active(&self) -> Option<&str> {
        let key = self.paths.with_socket(self.socket.active()?)?;
        Some(&self.paths.candidate(key)?.link)
    }

    /// The server is heard on wifi.
    fn hear_on_wifi(&self) {
        self.wifi.arrive(Ok((vec![1], wifi().server, None)));
        let (mut buffer, mut meta) = ([0; 1500], [quinn::udp::RecvMeta::default()]);
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let bufs = &mut [io::IoSliceMut::new(&mut buffer)];
        assert!(self.socket.poll_recv(cx, bufs, &mut meta).is_ready());
    }

    /// Sockets that probes have open on a link.
    fn probe_sockets(&self, link: &str) -> usize {
        let sockets = self.network.sockets.lock().unwrap();
        sockets.iter().filter(|(on, socket)| on == link && socket.strong_count() > 0).count()
    }
}

/// Lets tasks run.
async fn let_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_path_is_read_for_three_more_seconds() {
    let mut fixture = on_wifi();
    let departure = fixture.switch(&lte()).expect("a socket");
    assert_eq!((departure.from, departure.to), (Some(wifi()), lte()));
    assert_eq!(fixture.active(), Some("wwan0"));
    fixture.wait(GRACE - MS, &lte());
    assert!(fixture.is_open(&wifi()) && fixture.paths.is_draining());
    fixture.wait(MS, &lte());
    assert!(!fixture.is_open(&wifi()) && !fixture.paths.is_draining());
    assert!(fixture.is_open(&lte()));
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_used_again_within_the_grace_period_stays_open() {
    let mut fixture = on_wifi();
    assert!(fixture.switch(&lte()).is_some());
    fixture.wait(GRACE / 2, &lte());
    assert!(fixture.switch(&wifi()).is_some());
    fixture.wait(GRACE / 2, &wifi());
    assert!(fixture.is_open(&wifi()) && fixture.is_open(&lte()));
    fixture.wait(GRACE / 2, &wifi());
    assert!(fixture.is_open(&wifi()) && !fixture.is_open(&lte()));
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_left_twice_is_closed_after_the_first_grace_period() {
    let mut fixture = on_wifi();
    assert!(fixture.switch(&lte()).is_some());
    fixture.wait(GRACE / 2, &lte());
    fixture.paths.leave(key(&wifi()), None, fixture.now);
    fixture.wait(GRACE / 2, &lte());
    assert!(!fixture.is_open(&wifi()));
}

#[tokio::test(start_paused = true)]
async fn the_active_path_is_never_closed() {
    let mut fixture = on_wifi();
    fixture.paths.leave(key(&wifi()), None, fixture.now);
    fixture.wait(GRACE, &wifi());
    assert!(fixture.is_open(&wifi()) && !fixture.paths.is_draining());
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_opened_changes_nothing_and_is_reported() {
    let mut fixture = on_wifi();
    fixture.network.broken.lock().unwrap().push("wwan0".into());
    assert_eq!(fixture.switch(&lte()), None);
    assert_eq!(fixture.active(), Some("wlan0"));
    assert!(!fixture.paths.is_draining());
    let reported = fixture.reports.try_recv().unwrap().event();
    let is_of_lte =
        |event: &Event| matches!(event, Event::SendFailed(path) if *path == key(&lte()));
    assert!(reported.as_ref().is_some_and(is_of_lte), "{reported:?}");
}

#[tokio::test(start_paused = true)]
async fn a_path_begins_with_the_window_that_it_had_less_than_ten_minutes_ago() {
    for (away, memory) in [(MEMORY - MS, Some(KNOWN)), (MEMORY, None)] {
        let mut fixture = on_wifi();
        let departure = fixture.switch(&lte()).expect("a socket");
        assert_eq!(departure.memory, None, "nothing is known of a new path");
        fixture.wait(away, &lte());
        let departure = fixture.switch(&wifi()).expect("a socket");
        assert_eq!(departure.memory, memory, "after {away:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_network_on_the_same_link_inherits_nothing() {
    let mut fixture = on_wifi();
    assert!(fixture.switch(&lte()).is_some());
    let other = Candidate { source: "10.9.0.2".parse().unwrap(), ..wifi() };
    fixture.update(&[other.clone(), lte()]);
    assert_eq!(fixture.switch(&other).expect("a socket").memory, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_a_path_is_of_the_network_that_it_was_left_in() {
    let other = Candidate { router: Some([10, 0, 0, 9].into()), ..wifi() };
    for (there, memory) in [([other.clone(), lte()], None), ([wifi(), lte()], Some(KNOWN))] {
        let mut fixture = on_wifi();
        assert!(fixture.switch(&lte()).is_some());
        fixture.update(&[other.clone(), lte()]);
        fixture.update(&there);
        assert_eq!(fixture.switch(&there[0]).expect("a socket").memory, memory);
    }
}

/// Two routers of one network may take turns.
#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_the_path_in_use_outlives_its_turns_between_two_networks() {
    let mut fixture = on_wifi();
    let (here, there) = (wifi(), Candidate { router: Some([10, 0, 0, 9].into()), ..wifi() });
    let elsewhere = Remembered { window: 50_000, ..KNOWN };
    let memory = |fixture: &Fixture| fixture.paths.memory(key(&wifi()), fixture.now);
    fixture.find(&[there.clone(), lte()], Some(KNOWN));
    assert_eq!(memory(&fixture), None);
    fixture.find(&[here.clone(), lte()], Some(elsewhere));
    assert_eq!(memory(&fixture), Some(KNOWN));
    // So little is sent in this turn and the next one that nothing is found out.
    fixture.find(&[there, lte()], None);
    assert_eq!(memory(&fixture), Some(elsewhere));
    fixture.find(&[here, lte()], None);
    assert_eq!(memory(&fixture), Some(KNOWN));
    fixture.wait(MEMORY, &wifi());
    assert_eq!(memory(&fixture), None, "it is too old");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_left_for_another_one_stays_known_although_nothing_was_sent() {
    let mut fixture = on_wifi();
    assert!(fixture.switch(&lte()).is_some());
    assert!(fixture.paths.switch(key(&wifi()), None, fixture.now).is_some());
    assert!(fixture.paths.switch(key(&lte()), None, fixture.now).is_some());
    assert_eq!(fixture.switch(&wifi()).expect("a socket").memory, Some(KNOWN));
}

#[tokio::test(start_paused = true)]
async fn a_captive_portal_is_asked_about_again_in_another_network() {
    let mut fixture = on_wifi();
    for turn in 1..3 {
        fixture.is(&lte(), Condition::Failed);
        let_run().await;
        assert_eq!(fixture.network.asked.lock().unwrap().len(), turn);
        fixture.paths.renew(key(&lte()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_captive_portal_that_answers_late_counts_in_its_own_network_alone() {
    let mut fixture = on_wifi();
    fixture.network.portals.lock().unwrap().push("wwan0".into());
    fixture.is(&lte(), Condition::Failed);
    let_run().await;
    fixture.network.portals.lock().unwrap().clear();
    fixture.paths.renew(key(&lte()));
    fixture.is(&lte(), Condition::Failed);
    assert!(fixture.answered().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_window_outlives_the_path() {
    let mut fixture = on_wifi();
    assert!(fixture.switch(&lte()).is_some());
    fixture.update(&[lte()]);
    assert!(fixture.paths.candidate(key(&wifi())).is_some(), "it is still read");
    fixture.wait(GRACE, &lte());
    fixture.update(&[lte()]);
    assert_eq!(fixture.paths.candidate(key(&wifi())), None);
    assert_eq!(fixture.paths.candidate(key(&lte())), Some(&lte()));
    fixture.update(&[wifi(), lte()]);
    assert_eq!(fixture.switch(&wifi()).expect("a socket").memory, Some(KNOWN));
}

#[tokio::test(start_paused = true)]
async fn an_active_path_whose_socket_was_closed_is_nowhere_to_be_left_from() {
    let mut fixture = on_wifi();
    fixture.hear_on_wifi();
    assert_eq!(fixture.paths.heard_on(key(&wifi())), Some(clock_now()));
    fixture.paths.leave(key(&wifi()), None, fixture.now);
    fixture.now += GRACE;
    fixture.paths.close_old(None, fixture.now);
    assert_eq!(fixture.socket.active(), None);
    assert_eq!(fixture.paths.heard_on(key(&wifi())), None);
    assert_eq!(fixture.switch(&lte()).expect("a socket").from, None);
}

#[tokio::test(start_paused = true)]
async fn leaving_a_path_reports_since_when_it_is_unheard() {
    let mut fixture = on_wifi();
    let transmit = quinn::udp::Transmit {
        destination: crate::path::socket::VIRTUAL_SERVER,
        ecn: None,
        contents: &[0; 100],
        segment_size: None,
        src_ip: None,
    };
    fixture.socket.try_send(&transmit).unwrap();
    let sent = Some(clock_now());
    tokio::time::advance(500 * MS).await;
    assert_eq!(fixture.switch(&lte()).expect("a socket").unheard_since, sent);
    assert_eq!(fixture.switch(&wifi()).expect("a socket").unheard_since, None);
}

#[tokio::test(start_paused = true)]
async fn a_path_is_probed_until_it_is_abandoned() {
    let mut fixture = on_wifi();
    fixture.paths.ask(key(&lte()), LIMIT);
    let_run().await;
    assert_eq!(fixture.probe_sockets("wwan0"), 1);
    fixture.paths.hurry();
    let_run().await;
    assert_eq!(fixture.probe_sockets("wwan0"), 2, "a further handshake");
    fixture.paths.leave(key(&lte()), None, fixture.now);
    tokio::time::sleep(LIMIT).await;
    assert_eq!(fixture.probe_sockets("wwan0"), 0);
    assert!(!fixture.paths.is_draining(), "nothing of its own was open");
}

#[tokio::test(start_paused = true)]
async fn the_probe_of_an_active_path_ends_when_it_is_stopped() {
    let mut fixture = on_wifi();
    fixture.paths.ask(key(&lte()), LIMIT);
    let_run().await;
    assert!(fixture.switch(&lte()).is_some());
    let_run().await;
    assert_eq!(fixture.probe_sockets("wwan0"), 2, "it may have something to say of the session");
    fixture.paths.stop_asking(key(&lte()));
    tokio::time::sleep(LIMIT).await;
    assert_eq!(fixture.probe_sockets("wwan0"), 1, "the tunnel's own");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_path_is_neither_probed_nor_used() {
    let mut fixture = on_wifi();
    let strange = candidate("eth0", 7);
    fixture.paths.ask(key(&strange), LIMIT);
    fixture.paths.leave(key(&strange), None, fixture.now);
    assert_eq!(fixture.switch(&strange), None);
    let_run().await;
    assert_eq!(fixture.probe_sockets("eth0"), 0);
    assert!(fixture.reports.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_failed_path_is_checked_once_for_a_captive_portal() {
    let mut fixture = on_wifi();
    for _ in 0..3 {
        fixture.is(&lte(), Condition::Failed);
        let_run().await;
    }
    assert_eq!(*fixture.network.asked.lock().unwrap(), ["wwan0"]);
    fixture.is(&lte(), Condition::Standby);
    fixture.is(&lte(), Condition::Failed);
    let_run().await;
    assert_eq!(*fixture.network.asked.lock().unwrap(), ["wwan0", "wwan0"], "it worked meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_captive_portal_is_reported_with_its_path() {
    let mut fixture = on_wifi();
    fixture.network.portals.lock().unwrap().push("wlan0".into());
    fixture.is(&wifi(), Condition::Failed);
    fixture.is(&lte(), Condition::Failed);
    let found = fixture.answered().await;
    assert!(matches!(found, Some(Event::Portal(path)) if path == key(&wifi())), "{found:?}");
    assert!(fixture.answered().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_portal_answer_for_a_removed_path_is_ignored() {
    let mut fixture = on_wifi();
    fixture.network.portals.lock().unwrap().push("wwan0".into());
    fixture.is(&lte(), Condition::Failed);
    fixture.update(&[wifi()]);
    assert!(fixture.answered().await.is_none());
}

fn behind(router: u8, candidate: Candidate) -> Candidate {
    Candidate { router: Some([10, 0, 0, router].into()), ..candidate }
}

#[tokio::test(start_paused = true)]
async fn a_router_is_asked_about_once_for_all_paths_through_it() {
    let mut fixture = on_wifi();
    let wifi = behind(1, wifi());
    let renewed = Candidate { source: [10, 0, 0, 3].into(), ..wifi.clone() };
    let links = [wifi.clone(), renewed.clone(), behind(1, lte())];
    fixture.update(&links);
    fixture.network.machines.lock().unwrap().push_back(Ok(Some([2, 0, 0, 0, 0, 1])));
    for path in [&links[0], &links[1], &links[0]] {
        fixture.works(path);
    }
    let found = fixture.answered().await;
    let [address, hardware] = ["10.0.0.1", "[2, 0, 0, 0, 0, 1]"];
    let expected = format!("Router {{ link: 1, address: {address}, hardware: {hardware} }}");
    assert_eq!(found.map(|it| format!("{it:?}")), Some(expected));
    fixture.works(&links[2]);
    let_run().await;
    let address = address.parse().unwrap();
    let asked = || fixture.network.asked_routers.lock().unwrap().clone();
    assert_eq!(asked(), [(1, address), (2, address)]);
    assert!(fixture.paths.networks.router(&wifi).hardware.is_some());
    // No path leads there for a moment.
    fixture.update(&[lte()]);
    assert_eq!(fixture.paths.networks.router(&wifi).hardware, None);
    fixture.update(&links);
    fixture.works(&wifi);
    let_run().await;
    assert_eq!(fixture.network.asked_routers.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_router_is_asked_about_again_if_the_question_failed_after_a_minute_and_after_sleep() {
    let error = || Err(NetworkError("netlink".into()));
    for (answer, questions) in [(error(), 2), (Ok(None), 1), (Ok(Some([2; 6])), 1)] {
        let mut fixture = on_wifi();
        let wifi = behind(1, wifi());
        fixture.update(std::slice::from_ref(&wifi));
        fixture.network.machines.lock().unwrap().push_back(answer);
        for _ in 0..2 {
            fixture.works(&wifi);
            let _ = fixture.answered().await;
        }
        let asked = |fixture: &Fixture| fixture.network.asked_routers.lock().unwrap().len();
        assert_eq!(asked(&fixture), questions);
        fixture.now += ROUTER_CHECK;
        for _ in 0..2 {
            fixture.works(&wifi);
            let_run().await;
        }
        assert_eq!(asked(&fixture), questions + 1);
        fixture.paths.ask_routers_again();
        fixture.works(&wifi);
        let_run().await;
        assert_eq!(asked(&fixture), questions + 2);
    }
}

/// No path is in use for a moment.
#[tokio::test(start_paused = true)]
async fn a_network_that_is_gone_is_known_by_the_machine_of_its_router() {
    for (machine, after, expected) in
        [(1, MS, Some(KNOWN)), (2, MS, None), (1, 2 * GRACE, Some(KNOWN)), (2, 2 * GRACE, None)]
    {
        let mut fixture = on_wifi();
        let wifi = behind(1, wifi());
        fixture.update(std::slice::from_ref(&wifi));
        for last in [1, machine] {
            let hardware = Ok(Some([2, 0, 0, 0, 0, last]));
            fixture.network.machines.lock().unwrap().push_back(hardware);
        }
        fixture.works(&wifi);
        assert!(fixture.answered().await.is_some());
        fixture.paths.leave(key(&wifi), Some(KNOWN), fixture.now);
        fixture.update(&[]);
        fixture.wait(after, &lte());
        fixture.update(&[wifi.clone(), lte()]);
        assert!(fixture.paths.switch(key(&lte()), None, fixture.now).is_some());
        fixture.works(&wifi);
        assert!(fixture.answered().await.is_some());
        let departure = fixture.paths.switch(key(&wifi), None, fixture.now);
        assert_eq!(departure.expect("a socket").memory, expected, "{machine} after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_is_not_known_by_the_address_of_its_router_where_that_is_another_machine() {
    for (machine, expected) in [(1, Some(KNOWN)), (2, None)] {
        let mut fixture = on_wifi();
        let wifi = behind(1, wifi());
        fixture.update(&[wifi.clone(), lte()]);
        for last in [1, machine] {
            let hardware = Ok(Some([2, 0, 0, 0, 0, last]));
            fixture.network.machines.lock().unwrap().push_back(hardware);
        }
        fixture.works(&wifi);
        assert!(fixture.answered().await.is_some());
        assert!(fixture.switch(&lte()).is_some());
        fixture.update(&[lte()]);
        fixture.update(&[wifi.clone(), lte()]);
        fixture.works(&wifi);
        assert!(fixture.answered().await.is_some());
        assert_eq!(fixture.switch(&wifi).expect("a socket").memory, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_reopened_takes_the_place_of_the_old_one() {
    let mut fixture = on_wifi();
    fixture.hear_on_wifi();
    let before = fixture.socket.active();
    assert!(fixture.paths.reopen(key(&wifi()), Duration::ZERO, fixture.now));
    assert_ne!(fixture.socket.active(), before);
    assert_eq!(fixture.active(), Some("wlan0"));
    assert_eq!(fixture.socket.stats(before.unwrap()), None, "the old one is closed");
    assert_eq!(fixture.paths.heard_on(key(&wifi())), None, "the new one was not heard");
    assert!(!fixture.paths.reopen(key(&wifi()), MS, fixture.now), "it is new");
    fixture.wait(MS, &wifi());
    assert!(fixture.paths.reopen(key(&wifi()), MS, fixture.now));
    assert!(!fixture.paths.reopen(key(&lte()), Duration::ZERO, fixture.now), "it has none");
    fixture.wait(GRACE * 2, &wifi());
    assert!(fixture.is_open(&wifi()));
}

#[tokio::test(start_paused = true)]
async fn a_prepared_socket_is_used_by_the_switch_or_closed() {
    let mut fixture = on_wifi();
    let opened = |fixture: &Fixture| fixture.network.bound.lock().unwrap().len();
    fixture.paths.prepare(key(&lte()), fixture.now);
    fixture.paths.prepare(key(&wifi()), fixture.now);
    assert_eq!((fixture.active(), opened(&fixture)), (Some("wlan0"), 1));
    fixture.wait(PREPARED - MS, &wifi());
    assert!(fixture.is_open(&lte()));
    fixture.wait(MS, &wifi());
    assert!(!fixture.is_open(&lte()) && fixture.is_open(&wifi()));
    fixture.paths.prepare(key(&lte()), fixture.now);
    assert!(fixture.switch(&lte()).is_some());
    fixture.wait(PREPARED * 2, &lte());
    assert!(fixture.is_open(&lte()));
    assert_eq!(opened(&fixture), 2, "the switch opens no other one");
    fixture.paths.close(key(&wifi()));
    assert!(!fixture.is_open(&wifi()));
}
