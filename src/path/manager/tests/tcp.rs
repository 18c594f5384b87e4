//! Paths over TCP beside those over UDP.

use super::*;

fn tcp(link: u32) -> PathKey {
    PathKey::from(&candidate(link).over_tcp(443))
}

/// Links with both transports.
fn twins(links: &[(u32, u32)]) -> Event {
    Event::Candidates(crate::path::network::with_tcp(found(links), Some(443)))
}

impl Fixture {
    fn condition_of(&self, key: PathKey) -> Option<Condition> {
        let mut paths = self.manager.paths();
        paths.find(|(path, ..)| *path == key).map(|(_, condition, _)| condition)
    }
}

/// Connected over UDP on wifi.
fn on_wifi() -> Fixture {
    let mut fixture = nothing();
    assert_eq!(fixture.tell(twins(&[WIFI])), [Action::Ask(key(1))]);
    let _ = fixture.tell(Event::Connected(key(1)));
    fixture
}

/// The same, and UDP fell silent, so that TCP took over.
fn on_tcp() -> Fixture {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Silent(key(1)));
    let _ = fixture.wait(SHORTEST_GRACE);
    let actions = fixture.tell(Event::Answered(tcp(1), Some(40 * MS)));
    assert_eq!(actions[0], Action::Switch(tcp(1), Reason::Silent));
    fixture
}

#[test]
fn tcp_is_not_asked_while_udp_over_the_same_link_works() {
    let mut fixture = on_wifi();
    let actions = fixture.wait(Duration::from_secs(600));
    assert!(!actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
    assert_eq!(fixture.manager.why(tcp(1), fixture.now), "UDP works over this link");
    assert!(!fixture.manager.is_asked_again(tcp(1)));
    // An answer to somebody who wants to know makes no standby of it.
    let actions = fixture.tell(Event::Check(None));
    assert!(actions.contains(&Action::Ask(tcp(1))));
    assert_eq!(fixture.tell(Event::Answered(tcp(1), Some(40 * MS))), []);
    assert_eq!(fixture.condition_of(tcp(1)), Some(Condition::Waiting));
    assert!(!fixture.manager.is_asked_again(tcp(1)));
}

#[test]
fn tcp_is_asked_a_moment_after_udp_and_not_after_its_deadline() {
    let mut fixture = nothing();
    assert_eq!(fixture.tell(candidates(&[LTE])), [Action::Ask(key(2))]);
    let _ = fixture.tell(Event::Connected(key(2)));
    assert_eq!(fixture.tell(twins(&[WIFI, LTE])), [Action::Ask(key(1))]);
    assert_eq!(fixture.wait(HEAD_START - MS), []);
    assert_eq!(fixture.wait(MS), [Action::Ask(tcp(1))]);
    // It is worth a standby, but no reason to leave UDP over another link.
    assert_eq!(fixture.tell(Event::Answered(tcp(1), Some(MS))), []);
    assert_eq!(fixture.condition_of(tcp(1)), Some(Condition::Standby));
    let actions = fixture.wait(TIMEOUT);
    assert!(actions.contains(&Action::Forget(key(1))), "{actions:?}");
    assert_eq!(fixture.manager.active(), Some(key(2)));
    // It is checked like any other, as long as UDP does not answer.
    let actions = fixture.wait(CHECK);
    assert!(actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
}

#[test]
fn a_silent_udp_path_is_left_for_tcp_over_the_same_link() {
    let mut fixture = on_wifi();
    assert_eq!(fixture.tell(Event::Silent(key(1))), [Action::Ask(key(1))]);
    let actions = fixture.wait(SHORTEST_GRACE);
    assert_eq!(actions, [Action::Ask(tcp(1)), Action::Ask(key(1))]);
    let actions = fixture.tell(Event::Answered(tcp(1), Some(40 * MS)));
    assert_eq!(actions, [Action::Switch(tcp(1), Reason::Silent), Action::Forget(key(1))]);
}

#[test]
fn udp_is_asked_again_and_takes_over_from_tcp() {
    let mut fixture = on_tcp();
    let actions = fixture.wait(SHORTEST_RETRY * 2);
    assert!(actions.contains(&Action::Ask(key(1))), "{actions:?}");
    let _ = fixture.tell(Event::Answered(key(1), Some(50 * MS)));
    let actions = fixture.wait(SHORTEST_DWELL * 2);
    assert!(actions.contains(&Action::Switch(key(1), Reason::Preferred)), "{actions:?}");
    assert_eq!(fixture.condition_of(tcp(1)), Some(Condition::Waiting));
    let actions = fixture.wait(Duration::from_secs(60));
    assert!(!actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
}

#[test]
fn a_metered_udp_path_is_better_than_tcp_over_a_preferred_link() {
    let mut fixture = on_tcp();
    let mut all = crate::path::network::with_tcp(found(&[WIFI, LTE]), Some(443));
    for (_, facts) in all.iter_mut().filter(|(candidate, _)| candidate.index == 2) {
        facts.metered = true;
    }
    let actions = fixture.tell(Event::Candidates(all));
    assert_eq!(actions, [Action::Ask(key(2))]);
    let actions = fixture.tell(Event::Answered(key(2), Some(90 * MS)));
    assert!(actions.contains(&Action::Switch(key(2), Reason::Preferred)), "{actions:?}");
}

#[test]
fn without_standby_checks_tcp_is_not_asked_without_end() {
    let mut fixture = on_tcp();
    fixture.manager.set_settings(Settings { standby_check: None, ..settings() });
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(twins(&[WIFI, LTE]));
    let _ = fixture.wait(HEAD_START);
    let _ = fixture.tell(Event::Answered(tcp(1), Some(40 * MS)));
    let actions = fixture.wait(Duration::from_secs(60));
    let asked = actions.iter().filter(|action| **action == Action::Ask(tcp(1))).count();
    assert!(asked <= 1, "{actions:?}");
}

/// The second address of a server with two, over UDP and over TCP.
fn second(link: u32, transport: Transport) -> Candidate {
    let server = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 4433).into();
    let second = Candidate { server, ..candidate(link) };
    if transport == Transport::Tcp { second.over_tcp(443) } else { second }
}

/// Connected over UDP on wifi; a second address of the server has answered over UDP on it, too.
fn on_wifi_with_two_addresses() -> (Fixture, PathKey, PathKey) {
    let mut fixture = nothing();
    let mut both = found(&[WIFI]);
    both.push((second(1, Transport::Udp), both[0].1));
    let _ = fixture.tell(Event::Candidates(crate::path::network::with_tcp(both, Some(443))));
    let _ = fixture.tell(Event::Connected(key(1)));
    let keys = [Transport::Udp, Transport::Tcp].map(|it| PathKey::from(&second(1, it)));
    let _ = fixture.tell(Event::HasSession(keys[0], true));
    let _ = fixture.tell(Event::Answered(keys[0], Some(40 * MS)));
    assert_eq!(fixture.condition_of(keys[0]), Some(Condition::Standby));
    (fixture, keys[0], keys[1])
}

#[test]
fn a_standby_over_udp_that_does_not_answer_is_waited_for_only_a_moment() {
    let (mut fixture, udp, second_tcp) = on_wifi_with_two_addresses();
    assert!(!fixture.wait(10 * CHECK).contains(&Action::Ask(tcp(1))));
    let _ = fixture.tell(Event::Answered(udp, Some(40 * MS)));
    assert_eq!(fixture.tell(Event::Silent(key(1))), [Action::Ask(key(1))]);
    let actions = fixture.wait(SHORTEST_GRACE);
    assert_eq!(actions, [Action::Ask(udp), Action::Ask(key(1))]);
    assert_eq!(fixture.wait(HEAD_START - MS), []);
    assert_eq!(fixture.manager.why(tcp(1), fixture.now), "not asked yet");
    let actions = fixture.wait(MS);
    assert!(actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
    assert!(actions.contains(&Action::Ask(second_tcp)), "{actions:?}");
    let actions = fixture.tell(Event::Answered(tcp(1), Some(40 * MS)));
    assert_eq!(actions[0], Action::Switch(tcp(1), Reason::Silent));
}

#[test]
fn after_a_sleep_tcp_is_asked_a_moment_after_the_standbys() {
    let (mut fixture, udp, _) = on_wifi_with_two_addresses();
    let actions = fixture.tell(Event::Woke);
    assert_eq!(actions, [Action::Ask(udp), Action::Ask(key(1))]);
    assert!(fixture.wait(HEAD_START).contains(&Action::Ask(tcp(1))));
}

#[test]
fn a_standby_over_a_slow_link_has_two_round_trips_before_tcp_is_asked() {
    let (mut fixture, udp, _) = on_wifi_with_two_addresses();
    let _ = fixture.tell(Event::Answered(udp, Some(HEAD_START)));
    let _ = fixture.tell(Event::Silent(key(1)));
    assert!(fixture.wait(SHORTEST_GRACE).contains(&Action::Ask(udp)));
    assert_eq!(fixture.wait(2 * HEAD_START - MS), []);
    assert!(fixture.wait(MS).contains(&Action::Ask(tcp(1))));
}

#[test]
fn what_another_server_answers_over_udp_keeps_nobody_from_tcp() {
    let (mut fixture, udp, _) = on_wifi_with_two_addresses();
    let _ = fixture.tell(Event::HasSession(udp, false));
    let _ = fixture.tell(Event::Silent(key(1)));
    let actions = fixture.wait(SHORTEST_GRACE);
    assert!(actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
}

#[test]
fn a_path_over_tcp_that_failed_is_asked_again_when_udp_falls_silent() {
    let (mut fixture, udp, _) = on_wifi_with_two_addresses();
    let _ = fixture.tell(Event::Check(None));
    let _ = fixture.tell(Event::Refused(tcp(1)));
    let _ = fixture.tell(Event::Answered(udp, Some(40 * MS)));
    assert_eq!(fixture.condition_of(tcp(1)), Some(Condition::Failed));
    let why = fixture.manager.why(tcp(1), fixture.now);
    assert!(why.starts_with("did not answer"), "{why}");
    let _ = fixture.tell(Event::Silent(key(1)));
    let actions = fixture.wait(SHORTEST_GRACE + HEAD_START);
    assert!(actions.contains(&Action::Ask(tcp(1))), "{actions:?}");
}

#[test]
fn a_second_refusal_to_send_does_not_take_back_the_turn_of_another_server() {
    let (mut fixture, udp, _) = on_wifi_with_two_addresses();
    let _ = fixture.tell(Event::HasSession(udp, false));
    let _ = fixture.tell(Event::SendFailed(key(1)));
    let _ = fixture.tell(Event::Answered(udp, Some(40 * MS)));
    let _ = fixture.wait(LAST_CHANCE - MS);
    let _ = fixture.tell(Event::SendFailed(key(1)));
    let _ = fixture.tell(Event::Answered(udp, Some(40 * MS)));
    assert!(fixture.wait(MS).contains(&Action::BeginAnew(udp)));
}
