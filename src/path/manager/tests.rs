mod bursts;
mod narrow;
mod networks;
mod quality;
mod record;
mod tcp;

use proptest::prelude::*;

use super::{
    doubt::{LAST_CHANCE, SHORTEST_GRACE},
    preference::BRIEF_DWELL,
    probing::{DESPERATE_RETRY, SILENT_RETRY},
    state::{FORGIVENESS, LONGEST_DWELL, SAME_FAULT, SHORTEST_DWELL, SHORTEST_RETRY},
    *,
};
use crate::{
    link::candidate::{Candidate, Transport},
    path::{
        quality::{Burst, Fault, Sample, Symptoms},
        rank::LinkFacts,
    },
};

const TIMEOUT: Duration = Duration::from_secs(5);
const CHECK: Duration = Duration::from_secs(15);
const MS: Duration = Duration::from_millis(1);

fn settings() -> Settings {
    Settings {
        probe_timeout: TIMEOUT,
        standby_check: Some(CHECK),
        metered_check: None,
        metered_bursts: 64 << 10,
    }
}

fn candidate(link: u32) -> Candidate {
    Candidate {
        link: name(link),
        index: link,
        source: [10, 0, link as u8, 2].into(),
        router: None,
        metric: 0,
        server: ([192, 0, 2, 1], 4433).into(),
        transport: Transport::Udp,
    }
}

fn name(link: u32) -> String {
    format!("link{link}")
}

fn key(link: u32) -> PathKey {
    PathKey::from(&candidate(link))
}

fn found(links: &[(u32, u32)]) -> Vec<(Candidate, LinkFacts)> {
    let facts = |metric| LinkFacts { metric, ..LinkFacts::default() };
    links.iter().map(|(link, metric)| (candidate(*link), facts(*metric))).collect()
}

/// Smaller metrics are better.
fn candidates(links: &[(u32, u32)]) -> Event {
    Event::Candidates(found(links))
}

fn choose(link: u32) -> Event {
    Event::Choose(Some(Choice { link: name(link), pinned: false }))
}

fn pin(link: u32) -> Event {
    Event::Choose(Some(Choice { link: name(link), pinned: true }))
}

const WIFI: (u32, u32) = (1, 100);
const LTE: (u32, u32) = (2, 200);

struct Fixture {
    manager: Manager,
    now: Instant,
}

impl Fixture {
    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.manager.handle(event, self.now)
    }

    fn wait(&mut self, duration: Duration) -> Vec<Action> {
        let end = self.now + duration;
        let mut actions = Vec::new();
        while let Some(deadline) = self.manager.next_deadline().filter(|at| *at <= end) {
            self.now = deadline;
            actions.extend(self.manager.handle(None, deadline));
            assert!(self.manager.next_deadline().is_none_or(|at| at > deadline), "it fires again");
        }
        self.now = end;
        actions
    }

    fn condition(&self, link: u32) -> Option<Condition> {
        let mut paths = self.manager.paths();
        paths.find(|(path, ..)| *path == key(link)).map(|(_, condition, _)| condition)
    }
}

fn nothing() -> Fixture {
    Fixture { manager: Manager::new(settings()), now: Instant::now() }
}

/// Connected over wifi, with lte as a warm standby.
fn on_wifi() -> Fixture {
    let mut fixture = nothing();
    let asked = fixture.tell(candidates(&[WIFI, LTE]));
    assert_eq!(asked, [Action::Ask(key(1)), Action::Ask(key(2))]);
    assert_eq!(fixture.tell(Event::Connected(key(1))), [Action::Forget(key(1))]);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    assert_eq!(fixture.condition(1), Some(Condition::Active));
    assert_eq!(fixture.condition(2), Some(Condition::Standby));
    fixture
}

#[test]
fn the_standby_takes_over_at_once_when_the_active_path_is_gone() {
    let mut fixture = on_wifi();
    let actions = fixture.tell(candidates(&[LTE]));
    assert_eq!(actions, [Action::Forget(key(1)), Action::Switch(key(2), Reason::Gone)]);
}

#[test]
fn a_candidate_takes_over_unprobed_when_there_is_no_standby() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI]));
    let _ = fixture.tell(Event::Connected(key(1)));
    assert_eq!(fixture.tell(candidates(&[])), [Action::Forget(key(1))]);
    let actions = fixture.tell(candidates(&[LTE]));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Gone), Action::Ask(key(2))]);
}

#[test]
fn a_better_path_answers_before_it_takes_over_and_the_old_one_stays_warm() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    assert_eq!(fixture.tell(candidates(&[WIFI, LTE])), [Action::Ask(key(1))]);
    let actions = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(actions, [Action::Switch(key(1), Reason::Preferred)]);
    assert_eq!(fixture.condition(2), Some(Condition::Standby));
}

#[test]
fn a_silent_link_is_not_reentered_through_its_other_family() {
    let mut fixture = nothing();
    // Two ways over one wifi, as with both families, and lte.
    let _ = fixture.tell(candidates(&[WIFI, (3, 100), LTE]));
    let _ = fixture.tell(Event::Connected(key(1)));
    let _ = fixture.tell(Event::Answered(key(3), Some(10 * MS)));
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    let _ = fixture.tell(Event::Silent(key(1)));
    let _ = fixture.wait(SHORTEST_GRACE);
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert!(actions.contains(&Action::Switch(key(2), Reason::Silent)), "{actions:?}");
    assert_eq!(fixture.manager.active(), Some(key(2)));
    let _ = fixture.wait(TIMEOUT);
    assert_eq!(fixture.condition(3), Some(Condition::Failed));
    assert_eq!(fixture.manager.active(), Some(key(2)));
}

#[test]
fn a_chosen_link_is_used_until_it_fails() {
    let mut fixture = on_wifi();
    let actions = fixture.tell(choose(2));
    assert_eq!(actions, [Action::Ask(key(2)), Action::Switch(key(2), Reason::Chosen)]);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    assert_eq!(fixture.manager.why(key(1), fixture.now), "somebody chose another link");
    assert_eq!(fixture.wait(Duration::from_secs(10)), []);
    let actions = fixture.tell(candidates(&[WIFI]));
    assert!(actions.contains(&Action::Switch(key(1), Reason::Gone)), "{actions:?}");
    assert_eq!(fixture.manager.dialing.choice, None);
}

#[test]
fn a_pinned_link_is_not_left_even_when_it_is_silent() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(pin(1));
    let _ = fixture.tell(Event::Silent(key(1)));
    let _ = fixture.wait(Duration::from_secs(1));
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert!(!actions.iter().any(|it| matches!(it, Action::Switch(..))), "{actions:?}");
    let _ = fixture.tell(candidates(&[LTE]));
    assert_eq!(fixture.manager.active(), None, "not even when it is gone");
    let actions = fixture.tell(Event::Choose(None));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Gone)]);
}

#[test]
fn while_a_pinned_link_does_not_answer_the_tunnel_moves_to_no_other_one() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI, LTE, (3, 300)]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(pin(3));
    assert_eq!(fixture.tell(Event::Answered(key(1), Some(10 * MS))), [], "it is preferred");
    assert_eq!(fixture.manager.why(key(1), fixture.now), "another link is pinned");
    let actions = fixture.tell(Event::Answered(key(3), Some(50 * MS)));
    assert_eq!(actions, [Action::Switch(key(3), Reason::Chosen)]);
}

#[test]
fn a_chosen_path_that_failed_before_is_probed_first() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Refused(key(2)));
    let actions = fixture.tell(choose(2));
    assert_eq!(actions, [Action::Ask(key(2))]);
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Chosen)]);
}

#[test]
fn probe_deadline_passes_and_the_active_path_stays() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    assert_eq!(fixture.wait(TIMEOUT - MS), []);
    assert_eq!(fixture.wait(MS), [Action::Forget(key(1))]);
    assert_eq!(fixture.condition(1), Some(Condition::Failed));
    assert_eq!(fixture.manager.active(), Some(key(2)));
    assert_eq!(fixture.wait(SHORTEST_RETRY), [Action::Ask(key(1))]);
}

#[test]
fn a_silent_path_is_left_when_it_does_not_answer_and_a_standby_does() {
    let mut fixture = on_wifi();
    assert_eq!(fixture.tell(Event::Silent(key(1))), [Action::Ask(key(1))]);
    let actions = fixture.wait(SHORTEST_GRACE);
    assert_eq!(actions, [Action::Ask(key(2)), Action::Ask(key(1))]);
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Silent), Action::Forget(key(1))]);
    assert_eq!(fixture.condition(1), Some(Condition::Failed));
}

#[test]
fn a_false_alarm_costs_one_probe() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Silent(key(1)));
    assert_eq!(fixture.condition(1), Some(Condition::Suspect));
    assert_eq!(fixture.tell(Event::Answered(key(1), Some(12 * MS))), []);
    assert_eq!(fixture.condition(1), Some(Condition::Suspect), "the connection has no answer");
    assert_eq!(fixture.tell(Event::Heard(key(1))), []);
    assert_eq!(fixture.condition(1), Some(Condition::Active));
    assert_eq!(fixture.wait(SHORTEST_GRACE), []);
}

#[test]
fn the_only_path_stays_active_however_long_it_is_silent() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI]));
    let _ = fixture.tell(Event::Connected(key(1)));
    let _ = fixture.tell(Event::Silent(key(1)));
    let _ = fixture.wait(Duration::from_secs(600));
    assert_eq!(fixture.manager.active(), Some(key(1)));
    let _ = fixture.tell(Event::Heard(key(1)));
    assert_eq!(fixture.condition(1), Some(Condition::Active));
}

#[test]
fn a_standby_is_probed_periodically() {
    let mut fixture = on_wifi();
    assert_eq!(fixture.wait(CHECK), [Action::Ask(key(2))]);
    assert_eq!(fixture.condition(2), Some(Condition::Standby), "it stays usable meanwhile");
    assert_eq!(fixture.wait(TIMEOUT), [Action::Forget(key(2))]);
}

#[test]
fn while_no_path_works_every_path_is_probed_again_soon() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Silent(key(1)));
    let _ = fixture.wait(Duration::from_secs(300));
    let asked = fixture.wait(TIMEOUT + DESPERATE_RETRY);
    assert!(asked.contains(&Action::Ask(key(2))), "{asked:?}");
}

#[test]
fn while_no_path_works_a_silent_path_is_probed_sooner_than_one_that_refused() {
    for (ended, retry) in
        [(Event::TimedOut(key(2)), SILENT_RETRY), (Event::Refused(key(2)), SHORTEST_RETRY)]
    {
        let mut fixture = on_wifi();
        let _ = fixture.tell(Event::Silent(key(1)));
        let _ = fixture.wait(Duration::from_secs(1));
        let _ = fixture.tell(ended);
        assert_eq!(fixture.condition(2), Some(Condition::Failed));
        assert_eq!(fixture.wait(retry - MS), []);
        assert_eq!(fixture.wait(MS), [Action::Ask(key(2))]);
    }
}

#[test]
fn a_probe_that_ends_with_the_wait_for_it_has_failed_once() {
    for ended in [Event::Refused(key(2)), Event::TimedOut(key(2))] {
        let mut fixture = nothing();
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
        let _ = fixture.tell(Event::Connected(key(1)));
        assert_eq!(fixture.wait(settings().probe_timeout), [Action::Forget(key(2))]);
        assert_eq!(fixture.tell(ended), []);
        assert_eq!(fixture.wait(SHORTEST_RETRY - MS), []);
        assert_eq!(fixture.wait(MS), [Action::Ask(key(2))]);
    }
}

#[test]
fn a_path_that_flaps_waits_longer_each_time_before_it_is_preferred() {
    let mut fixture = on_wifi();
    let mut waits = Vec::new();
    for _ in 0..5 {
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
        let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
        let start = fixture.now;
        for _ in 0..200 {
            if fixture.manager.active() == Some(key(1)) {
                break;
            }
            for asked in fixture.wait(500 * MS) {
                if let Action::Ask(path) = asked {
                    let _ = fixture.tell(Event::Answered(path, Some(10 * MS)));
                }
            }
        }
        waits.push((fixture.now - start).as_millis());
    }
    assert_eq!(waits, [500, 4000, 8000, 16_000, 32_000]);
}

#[test]
fn paths_are_compared_when_both_are_measured() {
    let mut fixture = nothing();
    // Both families over one wifi.
    let _ = fixture.tell(candidates(&[WIFI, (3, 100)]));
    let _ = fixture.tell(Event::Connected(key(1)));
    assert_eq!(fixture.tell(Event::Answered(key(3), None)), []);
    assert_eq!(fixture.tell(Event::Measured(key(1), 60 * MS)), [], "the other is not measured");
    let _ = fixture.tell(Event::Connected(key(1)));
    assert_eq!(fixture.tell(Event::Answered(key(3), Some(10 * MS))), [], "this one is not");
    assert_eq!(fixture.tell(Event::Measured(key(1), 11 * MS)), [], "it is as fast");
    let actions = fixture.tell(Event::Measured(key(1), 60 * MS));
    assert_eq!(actions, [Action::Switch(key(3), Reason::Faster)]);
}

#[test]
fn a_standby_that_is_measured_goes_before_one_that_is_not() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI, (2, 100), (3, 100)]));
    let _ = fixture.tell(Event::Connected(key(1)));
    let _ = fixture.tell(Event::Answered(key(2), None));
    let _ = fixture.tell(Event::Answered(key(3), Some(10 * MS)));
    let actions = fixture.tell(candidates(&[(2, 100), (3, 100)]));
    assert!(actions.contains(&Action::Switch(key(3), Reason::Gone)), "{actions:?}");
}

#[test]
fn a_path_behind_a_captive_portal_ranks_last_until_it_answers() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(candidates(&[WIFI, LTE, (3, 300)]));
    let _ = fixture.tell(Event::Refused(key(2)));
    let _ = fixture.tell(Event::Portal(key(2)));
    assert!(fixture.manager.is_behind_portal(key(2)));
    let _ = fixture.tell(candidates(&[LTE, (3, 300)]));
    assert_eq!(fixture.manager.active(), Some(key(3)), "nothing was asked over either");
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert!(!fixture.manager.is_behind_portal(key(2)));
    assert_eq!(actions, [], "it failed lately");
    let why = fixture.manager.why(key(2), fixture.now);
    assert!(why.starts_with("failed lately, takes over"), "{why}");
}

#[test]
fn a_standby_reports_why_it_is_not_used() {
    let mut fixture = on_wifi();
    let why = |fixture: &Fixture, link| fixture.manager.why(key(link), fixture.now);
    assert_eq!(why(&fixture, 2), "the active path is preferred");
    let _ = fixture.tell(candidates(&[WIFI, (2, 100)]));
    assert_eq!(why(&fixture, 2), "as good as the active path", "wifi is not measured");
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    assert_eq!(why(&fixture, 2), "the active path is faster");
}

#[test]
fn a_path_that_refuses_to_send_is_left_at_once() {
    let mut fixture = on_wifi();
    let actions = fixture.tell(Event::SendFailed(key(1)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::SendFailed), Action::Forget(key(1))]);
}

#[test]
fn after_a_suspend_every_path_is_probed_at_once() {
    let mut fixture = on_wifi();
    let actions = fixture.tell(Event::Woke);
    assert_eq!(actions, [Action::Ask(key(2)), Action::Ask(key(1))]);
    assert_eq!(fixture.condition(1), Some(Condition::Suspect));
}

/// Connected over wifi, with a warm standby over lte to another machine.
fn on_wifi_beside_a_stranger() -> Fixture {
    let mut fixture = on_wifi();
    assert_eq!(fixture.tell(Event::HasSession(key(2), false)), []);
    fixture
}

#[test]
fn a_server_that_does_not_have_the_session_gets_no_copies() {
    assert_eq!(on_wifi().manager.backup(), Some((key(2), false)));
    assert_eq!(on_wifi_beside_a_stranger().manager.backup(), None);
}

/// Wifi is silent, and everybody is asked.
fn doubt(fixture: &mut Fixture) {
    let _ = fixture.tell(Event::Silent(key(1)));
    let asked = fixture.wait(SHORTEST_GRACE);
    assert!(asked.contains(&Action::Ask(key(2))), "{asked:?}");
}

#[test]
fn a_session_is_given_up_for_another_server_only_after_all_have_had_their_chance() {
    let mut fixture = on_wifi_beside_a_stranger();
    doubt(&mut fixture);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    assert_eq!(fixture.wait(LAST_CHANCE - MS), []);
    assert_eq!(fixture.wait(MS), [Action::BeginAnew(key(2))]);
    assert_eq!(fixture.wait(LAST_CHANCE), [], "the connection is over");
    assert_eq!(fixture.tell(Event::Disconnected), []);
}

#[test]
fn another_server_that_does_not_answer_is_no_reason_to_give_a_session_up() {
    let mut fixture = on_wifi_beside_a_stranger();
    doubt(&mut fixture);
    assert_eq!(fixture.wait(3 * LAST_CHANCE), []);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), [], "all were out of reach");
    assert_eq!(fixture.wait(LAST_CHANCE / 2), []);
    assert_eq!(fixture.tell(Event::Heard(key(1))), []);
    assert_eq!(fixture.wait(LAST_CHANCE), []);
    assert_eq!(fixture.condition(1), Some(Condition::Active));
}

#[test]
fn another_server_that_answered_and_is_gone_is_no_reason_to_give_a_session_up() {
    let mut fixture = on_wifi_beside_a_stranger();
    doubt(&mut fixture);
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    let _ = fixture.tell(candidates(&[WIFI]));
    assert_eq!(fixture.wait(2 * LAST_CHANCE), []);
    assert_eq!(fixture.condition(1), Some(Condition::Suspect));
}

#[test]
fn a_session_is_given_up_for_a_link_that_somebody_chose() {
    let mut fixture = on_wifi_beside_a_stranger();
    let actions = fixture.tell(choose(2));
    assert!(actions.ends_with(&[Action::BeginAnew(key(2))]), "{actions:?}");
}

/// A path over this link to another address of the server.
fn elsewhere(link: u32) -> (Candidate, LinkFacts) {
    let (path, facts) = found(&[(link, 500)]).remove(0);
    (Candidate { server: ([192, 0, 2, 9], 4433).into(), ..path }, facts)
}

#[test]
fn a_handshake_with_another_address_is_no_proof_that_the_session_is_there() {
    for (said, expected) in [(None, None), (Some(true), Some(Reason::Silent)), (Some(false), None)]
    {
        let mut fixture = on_wifi();
        let spare = elsewhere(1);
        let path = PathKey::from(&spare.0);
        let links = [found(&[WIFI, LTE]), vec![spare]].concat();
        assert_eq!(fixture.tell(Event::Candidates(links)), [Action::Ask(path)]);
        doubt(&mut fixture);
        assert_eq!(fixture.tell(Event::Answered(path, None)), []);
        let told = said.map(|said| fixture.tell(Event::HasSession(path, said)));
        let first = told.and_then(|actions| actions.first().copied());
        assert_eq!(first, expected.map(|reason| Action::Switch(path, reason)), "{said:?}");
        let actions = fixture.tell(Event::Answered(path, Some(10 * MS)));
        let switches = actions.contains(&Action::Switch(path, Reason::Silent));
        assert_eq!(switches, said.is_none(), "a server that says nothing is believed: {said:?}");
    }
}

#[test]
fn a_chosen_link_is_used_with_another_server_only_once_the_session_is_not_found_over_it() {
    for answers in [true, false] {
        let mut fixture = on_wifi_beside_a_stranger();
        let other = elsewhere(2);
        let path = PathKey::from(&other.0);
        let links = [found(&[WIFI, LTE]), vec![other]].concat();
        assert_eq!(fixture.tell(Event::Candidates(links)), [Action::Ask(path)]);
        let actions = fixture.tell(choose(2));
        assert!(!actions.contains(&Action::BeginAnew(key(2))), "{actions:?}");
        let (event, expected) = if answers {
            (Event::Answered(path, Some(50 * MS)), Action::Switch(path, Reason::Chosen))
        } else {
            let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
            (Event::Refused(path), Action::BeginAnew(key(2)))
        };
        let actions = fixture.tell(event);
        assert!(actions.contains(&expected), "{actions:?}");
    }
}

#[test]
fn a_path_to_the_server_of_the_session_goes_before_one_to_another_server() {
    let mut fixture = on_wifi_beside_a_stranger();
    let _ = fixture.tell(candidates(&[WIFI, LTE, (3, 300)]));
    let _ = fixture.tell(Event::Answered(key(3), Some(90 * MS)));
    doubt(&mut fixture);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    let actions = fixture.tell(Event::Answered(key(3), Some(90 * MS)));
    assert_eq!(actions[0], Action::Switch(key(3), Reason::Silent));
}

#[test]
fn a_slow_path_to_the_server_of_the_session_has_a_chance_to_answer() {
    let mut fixture = on_wifi_beside_a_stranger();
    let _ = fixture.tell(candidates(&[WIFI, LTE, (3, 300)]));
    let _ = fixture.tell(Event::Answered(key(3), Some(600 * MS)));
    doubt(&mut fixture);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    assert_eq!(fixture.wait(1499 * MS), []);
    let actions = fixture.tell(Event::Answered(key(3), Some(600 * MS)));
    assert_eq!(actions[0], Action::Switch(key(3), Reason::Silent));
}

#[test]
fn a_better_path_to_another_server_does_not_take_over_while_the_active_one_works() {
    let mut fixture = on_wifi_beside_a_stranger();
    assert_eq!(fixture.tell(candidates(&[WIFI, (2, 50)])), []);
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(MS))), []);
    let why = fixture.manager.why(key(2), fixture.now);
    assert_eq!(why, "another server, which does not have this session");
    let actions = fixture.tell(Event::HasSession(key(2), true));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Preferred)]);
}

#[test]
fn a_session_whose_last_path_is_gone_begins_anew_with_the_server_that_is_left() {
    let mut fixture = on_wifi_beside_a_stranger();
    let actions = fixture.tell(candidates(&[LTE]));
    assert_eq!(actions, [Action::Forget(key(1)), Action::BeginAnew(key(2))]);
}

#[test]
fn a_path_that_refuses_to_send_is_left_for_another_server_only_after_all_were_asked() {
    let mut fixture = on_wifi_beside_a_stranger();
    let actions = fixture.tell(Event::SendFailed(key(1)));
    assert_eq!(actions, [Action::Ask(key(2)), Action::Ask(key(1))]);
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(fixture.wait(LAST_CHANCE), [Action::BeginAnew(key(2))]);
}

/// The links in the order in which they would be dialed.
fn dial_order(fixture: &Fixture, links: &[(u32, u32)]) -> Vec<u32> {
    let order = fixture.manager.dialing().order(found(links), fixture.now);
    order.iter().map(|candidate| candidate.index).collect()
}

#[test]
fn without_a_connection_nothing_is_active_and_nothing_is_due() {
    let mut fixture = on_wifi();
    assert_eq!(fixture.tell(Event::Disconnected), []);
    assert_eq!(fixture.manager.active(), None);
    assert_eq!(fixture.manager.next_deadline(), None);
    let asked = fixture.tell(candidates(&[WIFI, LTE]));
    assert_eq!(asked, [Action::Ask(key(1)), Action::Ask(key(2))], "what was open is closed");
}

#[test]
fn links_are_dialed_in_the_order_in_which_paths_are_preferred() {
    assert_eq!(dial_order(&nothing(), &[LTE, WIFI, (3, 50)]), [3, 1, 2]);
}

#[test]
fn a_pinned_link_is_pinned_over_a_lost_connection_and_dialed_alone() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(pin(2));
    let _ = fixture.tell(Event::Disconnected);
    assert_eq!(fixture.manager.dialing().pinned(), Some("link2"));
    assert_eq!(dial_order(&fixture, &[WIFI, LTE]), [2]);
    assert!(dial_order(&fixture, &[WIFI]).is_empty(), "not even when it is gone");
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(fixture.manager.active(), Some(key(2)));
    assert_eq!(fixture.manager.why(key(1), fixture.now), "another link is pinned");
}

#[test]
fn a_pinned_modem_that_comes_back_with_another_index_is_still_pinned() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(pin(2));
    assert_eq!(fixture.manager.active(), Some(key(2)));
    let _ = fixture.tell(candidates(&[WIFI]));
    assert_eq!(fixture.manager.active(), None);
    let mut modem = candidate(7);
    modem.link = name(2);
    let mut there = found(&[WIFI]);
    there.push((modem, LinkFacts::default()));
    let actions = fixture.tell(Event::Candidates(there));
    assert_eq!(actions, [Action::Switch(key(7), Reason::Gone), Action::Ask(key(7))]);
}

#[test]
fn a_chosen_link_is_dialed_first_and_used_until_it_fails() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(choose(2));
    let _ = fixture.tell(Event::Disconnected);
    assert_eq!(dial_order(&fixture, &[WIFI, LTE]), [2, 1]);
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(1)));
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Chosen)]);
    let _ = fixture.tell(Event::Disconnected);
    let _ = fixture.tell(candidates(&[WIFI]));
    let _ = fixture.tell(Event::Connected(key(1)));
    assert_eq!(fixture.manager.dialing.choice, None, "its link is gone");
}

#[test]
fn the_failures_of_a_link_outlive_the_connection() {
    let mut fixture = on_wifi();
    for _ in 0..3 {
        let _ = fixture.wait(SAME_FAULT);
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
    }
    let _ = fixture.tell(Event::Disconnected);
    assert_eq!(dial_order(&fixture, &[WIFI, LTE]), [2, 1]);
    let dwell = 4 * SHORTEST_DWELL;
    let _ = fixture.wait(dwell);
    assert_eq!(dial_order(&fixture, &[WIFI, LTE]), [1, 2], "it may have been good since");
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    assert_eq!(fixture.tell(Event::Answered(key(1), Some(10 * MS))), []);
    assert_eq!(fixture.wait(dwell - MS), []);
    assert_eq!(fixture.wait(MS), [Action::Switch(key(1), Reason::Preferred)]);
}

#[test]
fn a_path_that_failed_once_is_used_again_after_half_a_second() {
    let mut fixture = on_wifi();
    for (failure, dwell) in [BRIEF_DWELL, 2 * SHORTEST_DWELL].into_iter().enumerate() {
        // The kernel refuses to send a moment before it says why.
        let _ = fixture.tell(Event::SendFailed(key(1)));
        let _ = fixture.wait(20 * MS);
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.wait(Duration::from_secs(6));
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
        assert_eq!(fixture.tell(Event::Answered(key(1), Some(10 * MS))), [], "{failure}");
        assert_eq!(fixture.wait(dwell - MS), [], "{failure}");
        assert_eq!(fixture.wait(MS), [Action::Switch(key(1), Reason::Preferred)], "{failure}");
        assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), []);
    }
}

#[test]
fn a_failure_while_no_path_works_carries_no_penalty() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Silent(key(2)));
    let _ = fixture.wait(Duration::from_secs(30));
    let _ = fixture.tell(Event::Disconnected);
    assert_eq!(dial_order(&fixture, &[WIFI, LTE]), [1, 2], "the server was away");
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let actions = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(actions, [Action::Switch(key(1), Reason::Preferred)]);
}

fn event() -> impl Strategy<Value = Event> {
    let path = (0u32..4).prop_map(key);
    let rtt = (1u32..500).prop_map(|ms| ms * MS);
    prop_oneof![
        3 => proptest::collection::btree_map(0u32..4, (0u32..3, 0u8..2), 0..4).prop_map(|links| {
            let of = |(link, (metric, router)): (u32, (u32, u8))| {
                let (candidate, facts) = found(&[(link, metric)]).remove(0);
                (Candidate { router: Some([10, 0, 0, router].into()), ..candidate }, facts)
            };
            Event::Candidates(links.into_iter().map(of).collect())
        }),
        2 => path.clone().prop_map(Event::Connected),
        2 => (path.clone(), rtt.clone()).prop_map(|(path, rtt)| Event::Measured(path, rtt)),
        1 => Just(Event::Disconnected),
        6 => (path.clone(), proptest::option::of(rtt))
            .prop_map(|(path, rtt)| Event::Answered(path, rtt)),
        2 => (path.clone(), any::<bool>())
            .prop_map(|(path, has_session)| Event::HasSession(path, has_session)),
        2 => path.clone().prop_map(Event::Refused),
        2 => path.clone().prop_map(Event::TimedOut),
        3 => path.clone().prop_map(Event::Silent),
        2 => path.clone().prop_map(Event::Heard),
        2 => path.clone().prop_map(Event::SendFailed),
        3 => (path.clone(), 0.0..0.5f64, 1u32..800).prop_map(|(path, loss, rtt)| {
            let rate = (rtt % 7 == 0).then_some(200_000);
            let rtt = Some(rtt * MS);
            Event::Symptoms(path, Symptoms { loss, rtt, rate, fell_to: rate, starved: rate })
        }),
        5 => (path.clone(), 0u32..=24, 1u32..800).prop_map(|(path, answered, rtt)| {
            let rate = (rtt % 2 == 0).then_some(5_000_000);
            let sample = Sample { sent: 24, answered, rtt: Some(rtt * MS), rate };
            Event::Sampled(path, (answered > 0).then_some(sample))
        }),
        1 => path.prop_map(Event::Portal),
        1 => (0u32..4, 0u8..2, 0u8..2).prop_map(|(link, router, machine)| Event::Router {
            link,
            address: [10, 0, 0, router].into(),
            hardware: [2, 0, 0, 0, 0, machine],
        }),
        1 => Just(Event::Woke),
        1 => prop_oneof![
            Just(Event::Choose(None)),
            (0u32..4).prop_map(choose),
            (0u32..4).prop_map(pin),
        ],
        1 => proptest::option::of((0u32..4).prop_map(name)).prop_map(Event::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn at_most_one_path_is_active_after_any_events(events in proptest::collection::vec((event(), 0u64..20_000), 1..60)) {
        let mut fixture = nothing();
        let mut connected = false;
        for (event, pause) in events {
            match event {
                Event::Connected(..) => connected = true,
                Event::Disconnected => connected = false,
                _ => {}
            }
            let lost = matches!(event, Event::Disconnected);
            let choice = fixture.manager.dialing.choice.clone();
            let actions = fixture.tell(event);
            let mut is_given_up = |actions: &[Action]| {
                connected &= !actions.iter().any(|it| matches!(it, Action::BeginAnew(_)));
            };
            is_given_up(&actions);
            if lost {
                prop_assert_eq!(actions, []);
                prop_assert_eq!(&fixture.manager.dialing.choice, &choice);
                prop_assert_eq!(fixture.manager.next_deadline(), None);
                prop_assert_eq!(fixture.manager.paths().count(), 0);
            }
            let all = [(0, 2), (1, 1), (2, 1), (3, 0)];
            let mut dialed = dial_order(&fixture, &all);
            dialed.sort_unstable();
            match fixture.manager.dialing.choice.as_ref().filter(|choice| choice.pinned) {
                Some(Choice { link, .. }) => {
                    prop_assert_eq!(dialed.into_iter().map(name).collect::<Vec<_>>(), [link.clone()]);
                }
                None => prop_assert_eq!(dialed, [0, 1, 2, 3], "every link is dialed"),
            }
            let mut steps = 0;
            let end = fixture.now + Duration::from_millis(pause);
            while let Some(at) = fixture.manager.next_deadline().filter(|at| *at <= end) {
                fixture.now = fixture.now.max(at);
                is_given_up(&fixture.manager.handle(None, fixture.now));
                steps += 1;
                prop_assert!(steps < 1000, "time does not move on");
            }
            fixture.now = end;
            let due = fixture.manager.handle(None, end);
            prop_assert_eq!(due, [], "without a deadline");

            let conditions: Vec<_> = fixture.manager.paths().map(|(_, it, _)| it).collect();
            let in_use = |it: &&Condition| matches!(it, Condition::Active | Condition::Suspect);
            let active = conditions.iter().filter(in_use).count();
            prop_assert!(active <= 1, "one active path at most: {conditions:?}");
            let pinned = fixture.manager.dialing().pinned().is_some();
            if connected && !pinned && !conditions.is_empty() {
                prop_assert_eq!(active, 1, "a path is used when there is one");
            }
            prop_assert!(!conditions.contains(&Condition::Waiting), "all are asked");
            if conditions.contains(&Condition::Probing) {
                let deadline = fixture.manager.next_deadline();
                prop_assert!(deadline.is_some_and(|at| at <= fixture.now + TIMEOUT));
            }
        }
    }
}
