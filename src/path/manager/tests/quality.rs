//! Paths that work badly.

use super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// A burst takes so long.
const TAKES: Duration = Duration::from_millis(500);
pub(super) const LOOK: Duration = Duration::from_millis(250);

pub(super) fn lossy(loss: f64) -> Symptoms {
    Symptoms { loss, ..Symptoms::default() }
}

pub(super) fn sample(answered: u32, rtt: u32) -> Option<Sample> {
    Some(Sample { sent: 24, answered, rtt: Some(rtt * MS), rate: None })
}

pub(super) fn feel(fixture: &mut Fixture, symptoms: Symptoms) -> Vec<Action> {
    let active = fixture.manager.active().unwrap();
    fixture.tell(Event::Symptoms(active, symptoms))
}

fn small(link: u32) -> Action {
    Action::Sample(key(link), Burst::Small)
}

/// Like [`on_wifi`], with an lte that costs money.
fn with_metered_lte() -> Fixture {
    let mut fixture = on_wifi();
    let mut links = found(&[WIFI, LTE]);
    links[1].1.metered = true;
    let _ = fixture.tell(Event::Candidates(links));
    fixture
}

#[test]
fn a_path_that_loses_packets_is_left_for_a_standby_that_does_not() {
    let mut fixture = on_wifi();
    assert_eq!(feel(&mut fixture, lossy(0.02)), [], "every wifi does");
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    assert_eq!(feel(&mut fixture, lossy(0.1)), [], "they are under way");
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [], "wifi may be good");
    let actions = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
    assert_eq!(fixture.condition(1), Some(Condition::Standby), "it is read for a while");
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)));
    assert_eq!(fixture.manager.why(key(1), fixture.now), "loses 29 %");
}

#[test]
fn a_bad_path_is_not_left_for_one_that_is_unknown_or_no_better() {
    for standby in [None, sample(18, 50), sample(0, 0), sample(24, 900)] {
        let mut fixture = on_wifi();
        let _ = feel(&mut fixture, lossy(0.1));
        let _ = fixture.tell(Event::Sampled(key(1), sample(17, 10)));
        let actions = fixture.tell(Event::Sampled(key(2), standby));
        assert_eq!(actions, [], "{standby:?}");
        let why = fixture.manager.why(key(1), fixture.now);
        assert_eq!(why, "loses 16 %, and no other path is known to be better");
        let actions = fixture.wait(Duration::from_secs(60));
        assert!(actions.contains(&small(1)) && actions.contains(&small(2)), "it goes on looking");
    }
}

/// A second address of the server, over wifi.
fn beside_wifi() -> Candidate {
    Candidate { server: ([192, 0, 2, 2], 4433).into(), ..candidate(1) }
}

/// What a link loses it mostly loses on the way to each server.
#[test]
fn a_bad_path_is_left_for_another_link_and_not_for_another_server_over_its_own() {
    let mut fixture = on_wifi();
    let second = PathKey::from(&beside_wifi());
    let mut links = found(&[WIFI, LTE]);
    links.insert(1, (beside_wifi(), links[0].1));
    let actions = fixture.tell(Event::Candidates(links));
    assert_eq!(actions, [Action::Ask(second)]);
    let _ = fixture.tell(Event::Answered(second, Some(10 * MS)));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(fixture.tell(Event::Sampled(second, sample(24, 10))), [], "by chance");
    let actions = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
    assert!(!fixture.wait(SHORTEST_DWELL).iter().any(|it| matches!(it, Action::Switch(..))));
    for _ in 0..4 {
        let _ = fixture.tell(Event::Sampled(key(1), sample(24, 10)));
        let _ = fixture.wait(SECOND);
    }
    assert_ne!(fixture.manager.active(), Some(key(2)), "wifi is clean");
}

#[test]
fn without_another_link_a_bad_path_is_left_for_another_server_over_its_own() {
    let mut fixture = on_wifi();
    let second = PathKey::from(&beside_wifi());
    let mut links = found(&[WIFI]);
    links.push((beside_wifi(), links[0].1));
    let _ = fixture.tell(Event::Candidates(links));
    let _ = fixture.tell(Event::Answered(second, Some(10 * MS)));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    let actions = fixture.tell(Event::Sampled(second, sample(24, 10)));
    assert_eq!(actions, [Action::Switch(second, Reason::Lossy)]);
}

#[test]
fn the_sample_of_a_standby_counts_for_some_seconds_only() {
    let mut fixture = on_wifi();
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    fixture.now += 6 * SECOND;
    let actions = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(actions, [small(2)], "it is measured again");
    let actions = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
}

#[test]
fn losses_that_no_burst_confirms_cause_no_switch_and_ever_fewer_bursts() {
    let mut fixture = on_wifi();
    let (mut bursts, end) = (0, fixture.now + 3600 * SECOND);
    while fixture.now < end {
        let mut actions = fixture.wait(LOOK);
        // A network that reorders.
        actions.extend(feel(&mut fixture, lossy(0.4)));
        for action in actions {
            let answer = match action {
                Action::Sample(path, _) => Event::Sampled(path, sample(24, 20)),
                Action::Ask(path) => Event::Answered(path, Some(50 * MS)),
                Action::Switch(..) | Action::Forget(_) | Action::BeginAnew(_) => {
                    panic!("{action:?}")
                }
            };
            bursts += u32::from(matches!(action, Action::Sample(..)));
            assert_eq!(fixture.tell(answer), []);
        }
    }
    assert_eq!(fixture.manager.active(), Some(key(1)));
    assert!((100..300).contains(&bursts), "{bursts} in an hour");
}

#[test]
fn losses_that_become_much_worse_are_looked_into_after_two_seconds() {
    for (loss, expected) in [(0.2, vec![]), (0.3, vec![small(1)])] {
        let mut fixture = on_wifi();
        for _ in 0..4 {
            for action in feel(&mut fixture, lossy(0.1)) {
                let Action::Sample(path, _) = action else { panic!("{action:?}") };
                let _ = fixture.tell(Event::Sampled(path, sample(24, 20)));
            }
            fixture.now += 20 * SECOND;
            let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
        }
        assert_eq!(feel(&mut fixture, lossy(loss)), []);
        fixture.now += SHORTEST_DWELL;
        assert_eq!(feel(&mut fixture, lossy(loss)), expected, "{loss}");
    }
}

#[test]
fn a_burst_that_is_not_sure_is_repeated_four_times() {
    let mut fixture = on_wifi();
    let _ = feel(&mut fixture, lossy(0.06));
    for _ in 0..4 {
        assert_eq!(fixture.tell(Event::Sampled(key(1), sample(22, 10))), [small(1)]);
    }
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(22, 10))), [], "10 of 120");
    let mut fixture = on_wifi();
    let _ = feel(&mut fixture, lossy(0.06));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(22, 10))), [small(1)]);
    let actions = fixture.tell(Event::Sampled(key(1), sample(19, 10)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)], "7 of 48");
}

#[test]
fn the_worst_symptoms_of_an_inspection_count_until_it_ends() {
    let mut fixture = on_wifi();
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    assert_eq!(feel(&mut fixture, lossy(0.04)), []);
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(23, 10))), [small(1)], "1 of 24");
    assert_eq!(feel(&mut fixture, lossy(0.04)), []);
    let actions = fixture.tell(Event::Sampled(key(1), sample(19, 10)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)], "6 of 48");
}

/// It would have to work for minutes before it is preferred to a path that is good.
#[test]
fn a_standby_that_failed_often_takes_over_from_a_bad_path_once_it_was_measured() {
    let mut fixture = on_wifi();
    for _ in 0..6 {
        let _ = fixture.wait(SAME_FAULT);
        let _ = fixture.tell(candidates(&[WIFI]));
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
    }
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    let _ = feel(&mut fixture, lossy(0.2));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [], "it just came back");
    let mut moved = None;
    for second in 1..10 {
        for action in fixture.wait(SECOND) {
            match action {
                Action::Sample(path, _) => {
                    let answered = [12, 24][path.link as usize - 1];
                    let _ = fixture.tell(Event::Sampled(path, sample(answered, 50)));
                }
                Action::Switch(path, Reason::Lossy) => moved = moved.or(Some((second, path))),
                _ => {}
            }
        }
    }
    assert_eq!(moved, Some((4, key(2))));
}

#[test]
fn a_path_over_which_not_even_a_burst_can_be_made_is_judged_by_its_losses() {
    for (loss, expected) in [(0.1, None), (0.3, Some(Action::Switch(key(2), Reason::Lossy)))] {
        let mut fixture = on_wifi();
        let _ = feel(&mut fixture, lossy(loss));
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let actions = fixture.tell(Event::Sampled(key(1), None));
        let switch = actions.into_iter().find(|it| matches!(it, Action::Switch(..)));
        assert_eq!(switch, expected, "{loss}");
    }
}

#[test]
fn a_metered_standby_is_measured_only_when_the_active_path_is_bad_and_left_again() {
    let mut fixture = with_metered_lte();
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1)]);
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(12, 10))), [small(2)]);
    let actions = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
    let left = fixture.now;
    while fixture.manager.active() == Some(key(2)) {
        for action in fixture.wait(LOOK) {
            if let Action::Sample(path, _) = action {
                assert_eq!(path, key(1), "lte is fine");
                let _ = fixture.tell(Event::Sampled(path, sample(24, 10)));
            }
        }
        assert!(fixture.now < left + 10 * SECOND);
    }
    assert!(fixture.now >= left + SHORTEST_DWELL);
}

#[test]
fn a_link_that_somebody_chose_is_kept_although_it_is_bad() {
    for event in [choose(1), pin(1)] {
        let mut fixture = on_wifi();
        let _ = fixture.tell(event);
        assert_eq!(feel(&mut fixture, lossy(0.3)), [small(1)]);
        assert_eq!(fixture.tell(Event::Sampled(key(1), sample(12, 10))), []);
        let why = fixture.manager.why(key(1), fixture.now);
        assert_eq!(why, "loses 29 %, but somebody chose it");
        let _ = fixture.tell(Event::Choose(None));
        let actions = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
    }
}

#[test]
fn without_a_standby_nothing_is_measured() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Refused(key(2)));
    assert_eq!(feel(&mut fixture, lossy(0.5)), []);
    assert_eq!(fixture.manager.why(key(1), fixture.now), "the only path that works");
}

#[test]
fn a_path_whose_round_trip_grows_is_left_for_one_with_half_of_it() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    let slow = |rtt: u32| Symptoms { rtt: Some(rtt * MS), ..Symptoms::default() };
    assert!(!fixture.manager.minds(&slow(80)));
    assert_eq!(feel(&mut fixture, slow(80)), []);
    assert_eq!(feel(&mut fixture, slow(100)), [small(2)]);
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [], "not half of it");
    let actions = feel(&mut fixture, slow(160));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Slow)]);
    assert_eq!(fixture.manager.why(key(1), fixture.now), "takes 160 ms instead of 10");
    for (rtt, is_over) in [(110, false), (99, true)] {
        while !fixture.wait(LOOK).contains(&small(1)) {}
        let _ = fixture.tell(Event::Sampled(key(1), sample(24, rtt)));
        let why = fixture.manager.why(key(1), fixture.now);
        assert_eq!(why.contains("until lately"), is_over, "{rtt} ms: {why}");
    }
}

#[test]
fn a_preferred_path_that_is_fine_replaces_one_with_a_fault_unmeasured() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
    let slow = Symptoms { rtt: Some(500 * MS), ..Symptoms::default() };
    assert_eq!(feel(&mut fixture, slow), []);
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let actions = fixture.tell(Event::Answered(key(1), Some(300 * MS)));
    assert_eq!(actions[0], Action::Switch(key(1), Reason::Preferred));
}

#[test]
fn a_slow_path_that_fell_idle_is_not_called_slow_for_ever() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    let _ = feel(&mut fixture, Symptoms { rtt: Some(100 * MS), ..Symptoms::default() });
    let slow = fixture.manager.fault(key(1));
    assert!(matches!(slow, Some(Fault::Slow { .. })), "{slow:?}");
    for (pause, expected) in [(SECOND, slow), (4 * SECOND, slow), (SECOND, None)] {
        fixture.now += pause;
        let _ = feel(&mut fixture, Symptoms::default());
        assert_eq!(fixture.manager.fault(key(1)), expected);
    }
}

#[test]
fn a_path_that_loses_packets_and_is_slow_is_one_that_loses_packets() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(1), sample(16, 10)));
    let _ = feel(&mut fixture, Symptoms { loss: 0.1, rtt: Some(100 * MS), ..Symptoms::default() });
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(18)));
}

#[test]
fn one_standby_of_each_link_is_measured_at_a_time_and_none_to_another_server() {
    let mut fixture = on_wifi();
    let other = elsewhere(2);
    let path = PathKey::from(&other.0);
    let _ = fixture.tell(Event::Candidates([found(&[WIFI, LTE]), vec![other]].concat()));
    let _ = fixture.tell(Event::Answered(path, Some(50 * MS)));
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), []);
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(24, 10))), []);
    fixture.now += 6 * SECOND;
    let actions = feel(&mut fixture, lossy(0.1));
    assert_eq!(actions, [Action::Sample(path, Burst::Small), small(1)], "it is its turn");
    let _ = fixture.tell(Event::HasSession(key(2), false));
    let _ = fixture.tell(Event::HasSession(path, false));
    for _ in 0..400 {
        for action in [fixture.wait(LOOK), feel(&mut fixture, lossy(0.1))].concat() {
            match action {
                Action::Sample(path, _) => {
                    assert_eq!(path, key(1));
                    let _ = fixture.tell(Event::Sampled(path, sample(24, 10)));
                }
                Action::Ask(path) => drop(fixture.tell(Event::Answered(path, Some(50 * MS)))),
                Action::Forget(_) | Action::Switch(..) | Action::BeginAnew(_) => {
                    panic!("{action:?}")
                }
            }
        }
    }
}

#[test]
fn large_echoes_do_not_go_over_a_link_that_carries_too_little() {
    let mut fixture = on_wifi();
    let other = elsewhere(1);
    let path = PathKey::from(&other.0);
    let _ = fixture.tell(Event::Candidates([found(&[WIFI, LTE]), vec![other]].concat()));
    let _ = fixture.tell(Event::Answered(path, Some(50 * MS)));
    let narrow = Symptoms { rate: Some(200_000), ..Symptoms::default() };
    assert_eq!(feel(&mut fixture, narrow), [Action::Sample(key(2), Burst::Large)]);
}

#[test]
fn a_metered_standby_with_a_fault_is_measured_only_if_that_is_of_use() {
    let mut fixture = with_metered_lte();
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    let _ = fixture.tell(Event::Answered(key(2), Some(500 * MS)));
    assert!(fixture.manager.fault(key(2)).is_some());
    let actions = fixture.wait(60 * SECOND);
    assert!(!actions.iter().any(|it| matches!(it, Action::Sample(..))), "{actions:?}");
    let _ = fixture.tell(Event::Answered(key(2), Some(500 * MS)));
    let actions = feel(&mut fixture, Symptoms { rtt: Some(100 * MS), ..Symptoms::default() });
    assert_eq!(actions, [small(2)]);
}

#[test]
fn a_preferred_path_that_loses_some_packets_is_better_than_one_that_carries_too_little() {
    for (answered, expected) in [(16, Some(key(1))), (8, Some(key(2)))] {
        let mut fixture = on_wifi();
        let _ = feel(&mut fixture, lossy(0.1));
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let actions = fixture.tell(Event::Sampled(key(1), sample(answered, 10)));
        assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
        let narrow = Symptoms { rate: Some(200_000), ..Symptoms::default() };
        let _ = feel(&mut fixture, narrow);
        assert_eq!(fixture.wait(SECOND), [Action::Sample(key(1), Burst::Both)]);
        let carries = Sample { rate: Some(5_000_000), ..sample(answered, 10).unwrap() };
        let _ = fixture.tell(Event::Sampled(key(1), Some(carries)));
        assert_eq!(fixture.manager.active(), expected, "{answered} of 24");
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        assert_eq!(fixture.manager.active(), expected, "it does not go to and fro");
    }
}

#[test]
fn a_path_that_seemed_dead_after_losses_is_measured_before_it_is_used_again() {
    for (loss, expected) in [(0.02, None), (0.2, Some(Fault::Lossy(20)))] {
        let mut fixture = on_wifi();
        let _ = feel(&mut fixture, lossy(loss));
        let _ = fixture.tell(Event::Silent(key(1)));
        let _ = fixture.wait(SHORTEST_GRACE);
        let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
        assert!(actions.contains(&Action::Switch(key(2), Reason::Silent)), "{actions:?}");
        assert_eq!(fixture.manager.fault(key(1)), expected);
        let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
        let _ = fixture.wait(10 * SECOND);
        let back = fixture.manager.active() == Some(key(1));
        assert_eq!(back, expected.is_none(), "{loss}");
    }
}

#[test]
fn a_standby_that_became_slow_is_not_moved_to_until_it_is_fast_again() {
    let mut fixture = nothing();
    let _ = fixture.tell(candidates(&[WIFI, LTE]));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
    let _ = fixture.tell(choose(2));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    let _ = fixture.tell(Event::Answered(key(1), Some(101 * MS)));
    let slow = Some(Fault::Slow { rtt: 101 * MS, floor: 10 * MS });
    assert_eq!(fixture.manager.fault(key(1)), slow, "lte takes half of it");
    assert_eq!(fixture.tell(Event::Choose(None)), []);
    let actions = fixture.tell(Event::Sampled(key(1), sample(24, 20)));
    assert_eq!(actions, [Action::Switch(key(1), Reason::Preferred)]);
}

#[test]
fn a_path_that_carries_too_little_is_left_for_one_that_carries_much_more() {
    let mut fixture = on_wifi();
    let narrow = Symptoms { rate: Some(200_000), ..Symptoms::default() };
    assert_eq!(feel(&mut fixture, narrow), [Action::Sample(key(2), Burst::Large)]);
    let carries =
        |rate| Some(Sample { sent: 10, answered: 10, rtt: Some(50 * MS), rate: Some(rate) });
    assert_eq!(fixture.tell(Event::Sampled(key(2), carries(900_000))), []);
    let _ = fixture.wait(5 * SECOND);
    let actions = fixture.tell(Event::Sampled(key(2), carries(5_000_000)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Narrow)]);
    let why = fixture.manager.why(key(1), fixture.now);
    assert_eq!(why, "carries 0.2 Mbit/s, more is asked");
}

/// What a standby carries is known by the time at which the active path turns out to be narrow.
#[test]
fn while_little_is_carried_the_rate_of_standbys_is_measured() {
    let mut fixture = on_wifi();
    let starved = Symptoms { starved: Some(200_000), ..lossy(0.1) };
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    let _ = feel(&mut fixture, starved);
    let large = Action::Sample(key(2), Burst::Large);
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [large]);
    let carries = Sample { rate: Some(9_000_000), ..sample(24, 50).unwrap() };
    assert_eq!(fixture.tell(Event::Sampled(key(2), Some(carries))), []);
    let actions = feel(&mut fixture, Symptoms { rate: Some(200_000), ..starved });
    assert_eq!(actions, [Action::Switch(key(2), Reason::Narrow)]);
}

/// Lets a look pass: wifi, the only standby, is clean, and carries so many bits per second. How many bursts could show that.
fn look_at_standbys(fixture: &mut Fixture, carries: u64) -> u32 {
    let mut bursts = 0;
    for action in fixture.wait(LOOK) {
        match action {
            Action::Sample(path, burst) => {
                assert_eq!(path, key(1));
                bursts += u32::from(burst == Burst::Both);
                let rate = (burst == Burst::Both).then_some(carries);
                let clean = sample(24, 10).map(|it| Sample { rate, ..it });
                let _ = fixture.tell(Event::Sampled(path, clean));
            }
            Action::Ask(path) => {
                let _ = fixture.tell(Event::Answered(path, Some(10 * MS)));
            }
            _ => {}
        }
    }
    bursts
}

/// It loses packets and is slow because its queue is full, and is fine while nothing is asked of it.
#[test]
fn a_path_that_was_left_while_it_carried_little_is_used_again_once_it_carries_more() {
    let starved = Some(200_000);
    let (loss, slow) = (Symptoms { starved, ..lossy(0.3) }, Some(300 * MS));
    for symptoms in [loss, Symptoms { starved, rtt: slow, ..Symptoms::default() }] {
        let mut fixture = on_wifi();
        let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
        let _ = feel(&mut fixture, symptoms);
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
        assert_eq!(fixture.manager.active(), Some(key(2)), "at once");
        assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Narrow(200_000)));
        let (mut bursts, mut until) = (0, fixture.now + 300 * SECOND);
        let mut carries = 180_000;
        while fixture.manager.active() == Some(key(2)) && fixture.now < until {
            bursts += look_at_standbys(&mut fixture, carries);
            if until - fixture.now < 40 * SECOND && carries < 1_000_000 {
                assert!((8..20).contains(&bursts), "{bursts}");
                (carries, until) = (2_000_000, fixture.now + 40 * SECOND);
            }
        }
        assert_eq!((carries, fixture.manager.active()), (2_000_000, Some(key(1))));
    }
}

/// It may be as narrow as it always is, and wide enough for most.
#[test]
fn a_path_that_carries_no_more_than_when_it_was_left_is_used_again_after_ten_minutes() {
    let mut fixture = on_wifi();
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    let _ = feel(&mut fixture, Symptoms { starved: Some(800_000), ..lossy(0.3) });
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    let left = fixture.now;
    while fixture.manager.active() == Some(key(2)) && fixture.now < left + 900 * SECOND {
        look_at_standbys(&mut fixture, 800_000);
    }
    assert_eq!(fixture.manager.active(), Some(key(1)));
    let after = fixture.now - left;
    assert!((600 * SECOND..840 * SECOND).contains(&after), "{after:?}");
}

/// The queue of a narrow path takes what is asked for longer than a silence lasts. Over a dead one nothing comes.
#[test]
fn a_path_that_seemed_dead_while_it_carried_little_must_carry_more() {
    for (loss, starved, expected) in [
        (0.2, 100_000, Some(Fault::Narrow(100_000))),
        (0.0, 100_000, Some(Fault::Narrow(100_000))),
        (0.0, 0, None),
    ] {
        let mut fixture = on_wifi();
        let symptoms = Symptoms { starved: Some(starved), ..lossy(loss) };
        assert!(fixture.manager.minds(&symptoms));
        let _ = feel(&mut fixture, symptoms);
        let _ = fixture.tell(Event::Silent(key(1)));
        let _ = fixture.wait(SHORTEST_GRACE);
        let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
        assert!(actions.contains(&Action::Switch(key(2), Reason::Silent)), "{actions:?}");
        assert_eq!(fixture.manager.fault(key(1)), expected);
    }
}

#[test]
fn what_a_small_burst_over_a_standby_does_not_tell_a_large_one_tells_at_once() {
    let mut fixture = on_wifi();
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    let narrow = Symptoms { rate: Some(200_000), ..lossy(0.1) };
    assert_eq!(feel(&mut fixture, narrow), [], "the small one is under way");
    let large = Action::Sample(key(2), Burst::Large);
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [large]);
    let slow = Sample { rate: Some(100_000), ..sample(24, 50).unwrap() };
    assert_eq!(fixture.tell(Event::Sampled(key(2), Some(slow))), []);
    assert!(!fixture.wait(3 * SECOND).contains(&large), "then it has its pause");
    assert!(fixture.wait(2 * SECOND).contains(&large));
}

/// Neither is good, so that nothing decides but how bad they are.
#[test]
fn of_two_bad_paths_the_one_that_becomes_much_worse_is_left() {
    let slow = Symptoms { rtt: Some(1200 * MS), ..Symptoms::default() };
    for (symptoms, answered, expected) in [
        (lossy(0.3), 2, Some(Reason::Lossy)),
        (lossy(0.3), 17, None),
        (slow, 24, Some(Reason::Slow)),
    ] {
        let mut fixture = on_wifi();
        let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
        // Lte was used once, and lost a tenth each way.
        let _ = feel(&mut fixture, lossy(0.1));
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
        let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
        let _ = feel(&mut fixture, lossy(0.1));
        let _ = fixture.tell(Event::Sampled(key(2), sample(19, 50)));
        let (mut left, end) = (None, fixture.now + 10 * SECOND);
        while fixture.now < end && left.is_none() {
            let mut actions = fixture.wait(LOOK);
            actions.extend(feel(&mut fixture, symptoms));
            while let Some(action) = actions.pop() {
                match action {
                    Action::Sample(path, _) if path == key(1) => {
                        actions.extend(fixture.tell(Event::Sampled(path, sample(20, 10))));
                    }
                    Action::Sample(path, _) => {
                        actions.extend(fixture.tell(Event::Sampled(path, sample(answered, 50))));
                    }
                    Action::Switch(path, reason) => left = Some((path, reason)),
                    Action::Ask(_) | Action::Forget(_) | Action::BeginAnew(_) => {}
                }
            }
        }
        assert_eq!(left, expected.map(|reason| (key(1), reason)), "{answered} of 24");
    }
}

/// Lte is preferred, and costs money; it was left because it carried too little.
#[test]
fn bursts_over_a_metered_standby_take_no_more_than_copies_may() {
    let mut fixture = nothing();
    let mut links = found(&[(1, 300), LTE]);
    links[1].1.metered = true;
    links[0].1.preference = 1;
    let _ = fixture.tell(Event::Candidates(links));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    let _ = feel(&mut fixture, Symptoms { rate: Some(200_000), ..Symptoms::default() });
    let wide = Sample { rate: Some(9_000_000), ..sample(24, 10).unwrap() };
    let actions = fixture.tell(Event::Sampled(key(1), Some(wide)));
    assert_eq!(actions, [Action::Switch(key(1), Reason::Narrow)]);
    let (begun, mut bytes) = (fixture.now, 0);
    // Now it seems to carry enough, now it does not: the shortest pauses.
    let mut rates = [100_000, 2_000_000].into_iter().cycle();
    while fixture.manager.active() == Some(key(1)) && fixture.now < begun + 600 * SECOND {
        for action in fixture.wait(LOOK) {
            if let Action::Sample(path, burst) = action {
                assert_eq!((path, burst), (key(2), Burst::Both));
                bytes += burst.bytes();
                let carries = Sample { rate: rates.next(), ..sample(24, 50).unwrap() };
                let _ = fixture.tell(Event::Sampled(path, Some(carries)));
            }
        }
        let took = fixture.now - begun;
        let most = Burst::Both.bytes() as f64 + took.as_secs_f64() / 60.0 * 65_536.0;
        assert!((bytes as f64) < most, "{bytes} in {took:?}");
    }
    assert!(bytes > 5 * (26 << 10), "{bytes}");
}

/// Lte to two addresses is slow, and whether it carries more than wifi is not known.
#[test]
fn the_budget_of_a_metered_link_is_for_all_of_its_paths_in_turn() {
    let mut fixture = with_metered_lte();
    let mut links = found(&[WIFI, LTE]);
    links.push(elsewhere(2));
    links[1..].iter_mut().for_each(|(_, facts)| facts.metered = true);
    let paths = [key(2), PathKey::from(&links[2].0)];
    let _ = fixture.tell(Event::Candidates(links));
    let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
    for path in paths {
        let _ = fixture.tell(Event::Answered(path, Some(50 * MS)));
        let _ = fixture.tell(Event::Answered(path, Some(900 * MS)));
    }
    let (begun, mut bytes, mut bursts) = (fixture.now, 0, [0_u32; 2]);
    while fixture.now < begun + 600 * SECOND {
        let mut actions =
            feel(&mut fixture, Symptoms { rate: Some(200_000), ..Symptoms::default() });
        actions.extend(fixture.wait(LOOK));
        for action in actions {
            match action {
                Action::Sample(path, burst) => {
                    bursts[paths.iter().position(|it| *it == path).unwrap()] += 1;
                    bytes += burst.bytes();
                    let narrow = Sample { rate: Some(100_000), ..sample(24, 900).unwrap() };
                    let _ = fixture.tell(Event::Sampled(path, Some(narrow)));
                }
                Action::Ask(path) => drop(fixture.tell(Event::Answered(path, Some(900 * MS)))),
                Action::Forget(_) | Action::Switch(..) | Action::BeginAnew(_) => {
                    panic!("{action:?}")
                }
            }
        }
        let took = fixture.now - begun;
        let most = Burst::Both.bytes() as f64 + took.as_secs_f64() / 60.0 * 65_536.0;
        assert!((bytes as f64) < most, "{bytes} in {took:?}");
    }
    assert!(bursts[0].min(bursts[1]) > 4 && bursts[0].abs_diff(bursts[1]) < 2, "{bursts:?}");
}

/// What is true of the networks, whose bursts and packets show it.
struct Truth {
    random: fastrand::Rng,
    /// Loss in each direction, and round trip, of wifi and lte.
    links: [(f64, u32); 2],
    under_way: Vec<(Instant, PathKey)>,
    switches: Vec<(Instant, Reason)>,
}

impl Truth {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, links: [(0.0, 10), (0.0, 50)], under_way: Vec::new(), switches: Vec::new() }
    }

    fn of(&self, path: PathKey) -> (f64, u32) {
        self.links[path.link as usize - 1]
    }

    /// How long an exchange takes over each link, in milliseconds.
    fn costs(&self) -> [f64; 2] {
        self.links.map(|(loss, rtt)| f64::from(rtt) + 1000.0 * (1.0 - (1.0 - loss).powi(2)))
    }

    /// Lives until the next look.
    fn live(&mut self, fixture: &mut Fixture) {
        let mut actions = fixture.wait(LOOK);
        let due: Vec<_> = self.under_way.extract_if(.., |(at, _)| *at <= fixture.now).collect();
        for (_, path) in due {
            let (loss, rtt) = self.of(path);
            let arrives = |_: &u32| self.random.f64() > loss && self.random.f64() > loss;
            let answered = (0..24).filter(arrives).count() as u32;
            let sampled = sample(answered, rtt).filter(|_| answered > 0);
            actions.extend(fixture.tell(Event::Sampled(path, sampled)));
        }
        if let Some(active) = fixture.manager.active() {
            let (loss, rtt) = self.of(active);
            let symptoms =
                Symptoms { loss: loss / 2.0, rtt: Some(rtt * MS), ..Symptoms::default() };
            actions.extend(
                fixture.tell(Event::Measured(active, [10, 50][active.link as usize - 1] * MS)),
            );
            if fixture.manager.minds(&symptoms) {
                actions.extend(fixture.tell(Event::Symptoms(active, symptoms)));
            }
        }
        for action in actions {
            match action {
                Action::Ask(path) => {
                    let rtt = self.of(path).1 * MS;
                    let _ = fixture.tell(Event::Answered(path, Some(rtt)));
                }
                Action::Sample(path, _) => self.under_way.push((fixture.now + TAKES, path)),
                Action::Switch(_, reason) => self.switches.push((fixture.now, reason)),
                Action::Forget(_) | Action::BeginAnew(_) => {}
            }
        }
    }
}

#[test]
fn a_path_that_becomes_bad_is_left_within_seconds_and_used_again_when_it_is_good() {
    for (loss, rtt) in [(0.1, 10), (0.3, 10), (0.0, 400)] {
        let (mut fixture, mut truth) = (on_wifi(), Truth::new(1));
        for turn in 0..6 {
            truth.links[0] = (loss, rtt);
            let begun = fixture.now;
            while fixture.manager.active() == Some(key(1)) {
                truth.live(&mut fixture);
                let took = fixture.now - begun;
                assert!(took < 5 * SECOND, "{loss} {rtt} {turn}: left after {took:?}");
            }
            for _ in 0..400 {
                truth.live(&mut fixture);
            }
            assert_eq!(fixture.manager.active(), Some(key(2)), "it is bad");
            truth.links[0] = (0.0, 10);
            let (begun, dwell) = (fixture.now, SHORTEST_DWELL * (1 << turn));
            while fixture.manager.active() == Some(key(2)) {
                truth.live(&mut fixture);
            }
            let waited = fixture.now - begun;
            assert!((dwell..2 * dwell + 35 * SECOND).contains(&waited), "{turn}: {waited:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Whatever the networks do: the dwell time of each path that was left limits how often it is left again, and beside one
    /// that is four times as good a path is not used for longer than that, the pause between two bursts, and a moment.
    #[test]
    fn switches_for_quality_are_few_and_no_path_is_used_beside_a_much_better_one(
        seed: u64,
        plan in proptest::collection::vec((0usize..2, 0u32..4, 1u32..120), 10..60),
    ) {
        let (mut fixture, mut truth) = (on_wifi(), Truth::new(seed));
        let mut plan = plan.into_iter().cycle();
        let (mut since, end) = (fixture.now, fixture.now + 3600 * SECOND);
        while fixture.now < end {
            let (link, kind, seconds) = plan.next().unwrap();
            let good = [10, 50][link];
            truth.links[link] = [(0.0, good), (0.1, good), (0.4, good), (0.01, 40 * good)][kind as usize];
            for _ in 0..4 * seconds {
                truth.live(&mut fixture);
                let (costs, active) = (truth.costs(), fixture.manager.active().unwrap().link);
                let other = costs[2 - active as usize];
                if costs[active as usize - 1] < 4.0 * other {
                    since = fixture.now;
                }
                let used = fixture.now - since;
                prop_assert!(used < 165 * SECOND, "{active} for {used:?}: {costs:?}");
            }
        }
        let departures = truth.switches.iter().filter(|(_, reason)| reason.is_of_quality());
        let departures = departures.count();
        prop_assert!(departures <= 2 * 40, "{departures} in an hour");
    }
}

/// A burst each 30 s, and a question each 15 s: where they met once, each would meet the next one.
#[test]
fn a_standby_is_not_asked_in_the_middle_of_a_burst_and_its_answers_count() {
    let mut fixture = on_wifi();
    let _ = fixture.wait(CHECK - 300 * MS);
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    assert_eq!(fixture.wait(600 * MS), [], "a question would cut it short");
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), []);
    let _ = feel(&mut fixture, lossy(0.0));
    let _ = fixture.tell(Event::Sampled(key(1), sample(24, 10)));
    assert_eq!(fixture.wait(CHECK - MS), []);
    assert_eq!(fixture.wait(MS), [Action::Ask(key(2))]);
}
