//! Paths that work badly.

use super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);
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

pub(super) fn small(link: u32) -> Action {
    Action::Sample(key(link), Burst::Small)
}

/// Like [`on_wifi`], with a second standby over this link: to another address of the server.
pub(super) fn with_another_way_over(link: u32) -> (Fixture, PathKey) {
    let mut fixture = on_wifi();
    let other = elsewhere(link);
    let path = PathKey::from(&other.0);
    let _ = fixture.tell(Event::Candidates([found(&[WIFI, LTE]), vec![other]].concat()));
    let _ = fixture.tell(Event::Answered(path, Some(50 * MS)));
    (fixture, path)
}

/// Like [`on_wifi`], with an lte that costs money.
pub(super) fn with_metered_lte() -> Fixture {
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

/// It grew at once from 10 to 800 ms, so that the path was taken for silent.
#[test]
fn a_path_that_answers_again_is_measured_before_it_is_preferred() {
    for (rtt, expected) in [(12, Some(Reason::Preferred)), (800, None)] {
        let mut fixture = on_wifi();
        let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
        doubt(&mut fixture);
        let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
        assert_eq!(actions.first(), Some(&Action::Switch(key(2), Reason::Silent)));
        let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
        let actions = fixture.wait(SECOND);
        assert!(actions.contains(&Action::Ask(key(1))), "{actions:?}");
        assert_eq!(fixture.tell(Event::Answered(key(1), None)), [], "a handshake");
        assert_eq!(fixture.wait(SECOND), [], "its round trip is not known");
        assert_eq!(
            fixture.manager.why(key(1), fixture.now),
            "failed lately, takes over once its round trip is known"
        );
        let mut actions = fixture.tell(Event::Answered(key(1), Some(rtt * MS)));
        actions.extend(fixture.wait(SECOND));
        let switch = actions.iter().find(|action| matches!(action, Action::Switch(..)));
        assert_eq!(switch, expected.map(|reason| Action::Switch(key(1), reason)).as_ref());
        assert_eq!(fixture.manager.fault(key(1)).is_some(), expected.is_none());
    }
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
                    Action::Ask(_)
                    | Action::Forget(_)
                    | Action::Renew(_)
                    | Action::BeginAnew(_) => {}
                }
            }
        }
        assert_eq!(left, expected.map(|reason| (key(1), reason)), "{answered} of 24");
    }
}
