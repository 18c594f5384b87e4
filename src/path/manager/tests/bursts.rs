//! Which bursts are made, and when.

use super::{
    quality::{LOOK, SECOND, feel, lossy, sample, small, with_another_way_over, with_metered_lte},
    record::at,
    *,
};
use crate::path::manager::quality::Quality;

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
                Action::Switch(..)
                | Action::Forget(_)
                | Action::Renew(_)
                | Action::BeginAnew(_) => {
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

#[test]
fn what_a_standby_carries_is_measured_where_little_is_carried_over_it_or_the_active_path() {
    let (lossy, narrow) = (Some(Fault::Lossy(30)), Some(Fault::Narrow(200_000)));
    for (standby, active, starved, expected) in [
        (None, None, false, Burst::Small),
        (None, None, true, Burst::Large),
        (None, lossy, false, Burst::Small),
        (None, lossy, true, Burst::Large),
        (None, narrow, false, Burst::Large),
        (lossy, None, false, Burst::Small),
        (lossy, lossy, false, Burst::Small),
        (lossy, lossy, true, Burst::Both),
        (lossy, narrow, false, Burst::Both),
        (narrow, None, false, Burst::Both),
    ] {
        let mut paths = [Quality::default(); 2];
        (paths[0].fault, paths[1].fault) = (standby, active);
        let starved = starved.then_some(100_000);
        paths[1].symptoms = Symptoms { starved, loss: 0.1, ..Symptoms::default() };
        let burst = |is_beside| paths[0].burst(&paths[1], is_beside);
        assert_eq!(burst(false), Some(expected), "{standby:?} {active:?} {starved:?}");
        let is_known = standby.is_none() && active == narrow;
        assert_eq!(burst(true), (!is_known).then_some(Burst::Small), "over one link");
    }
}

/// Nothing else happens meanwhile that would have the manager look.
#[test]
fn the_next_standby_of_a_link_has_its_turn_as_soon_as_the_sample_of_the_last_one_is_too_old() {
    let (mut fixture, path) = with_another_way_over(2);
    let _ = feel(&mut fixture, lossy(0.1));
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(12, 50))), []);
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(12, 10))), [], "no better");
    assert_eq!(fixture.wait(5 * SECOND - MS), [small(1)]);
    assert_eq!(fixture.wait(MS), [Action::Sample(path, Burst::Small)]);
}

#[test]
fn one_standby_of_each_link_is_measured_at_a_time_and_none_to_another_server() {
    let (mut fixture, path) = with_another_way_over(2);
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
                Action::Forget(_)
                | Action::Renew(_)
                | Action::Switch(..)
                | Action::BeginAnew(_) => {
                    panic!("{action:?}")
                }
            }
        }
    }
}

#[test]
fn the_result_of_a_burst_that_is_not_awaited_any_more_shows_nothing() {
    let mut fixture = on_wifi();
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    let _ = fixture.wait(6 * SECOND);
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [], "it is late");
    let _ = fixture.wait(2 * SECOND);
    let _ = fixture.tell(Event::Refused(key(2)));
    assert_eq!(fixture.tell(Event::Sampled(key(2), sample(24, 50))), [], "lte failed meanwhile");
    assert_eq!(fixture.manager.active(), Some(key(1)));
    assert_eq!(fixture.tell(Event::Answered(key(2), Some(50 * MS))), [small(2)]);
}

#[test]
fn a_burst_over_a_path_that_fails_is_not_awaited() {
    let (mut fixture, path) = with_another_way_over(2);
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    let actions = fixture.tell(Event::Refused(key(2)));
    assert_eq!(actions, [Action::Forget(key(2)), Action::Sample(path, Burst::Small)]);
}

#[test]
fn a_burst_that_is_not_wanted_any_more_is_not_awaited_for_ever() {
    let mut fixture = on_wifi();
    fixture.manager.set_settings(Settings { standby_check: None, ..settings() });
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    assert_eq!(feel(&mut fixture, lossy(0.0)), []);
    assert!(fixture.manager.is_asked_again(key(2)));
    let _ = fixture.wait(6 * SECOND);
    assert!(!fixture.manager.is_asked_again(key(2)), "nothing asks it any more");
}

#[test]
fn after_a_burst_that_was_cut_short_another_standby_of_the_link_has_its_turn_at_once() {
    let (mut fixture, path) = with_another_way_over(2);
    assert_eq!(feel(&mut fixture, lossy(0.1)), [small(1), small(2)]);
    let actions = fixture.tell(Event::Sampled(key(2), Some(Sample::default())));
    assert_eq!(actions, [Action::Sample(path, Burst::Small)]);
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
    while fixture.manager.active() == Some(key(1)) && fixture.now < begun + 590 * SECOND {
        for action in fixture.wait(LOOK) {
            if let Action::Sample(path, burst) = action {
                assert_eq!((path, burst), (key(2), Burst::Both));
                bytes += burst.bytes();
                let carries = Sample { rate: rates.next(), ..sample(24, 50).unwrap() };
                let _ = fixture.tell(Event::Sampled(path, Some(carries)));
            }
        }
        let took = fixture.now - begun;
        let most = (1.0 + took.as_secs_f64() / 60.0) * 65_536.0;
        assert!((bytes as f64) < most, "{bytes} in {took:?}");
    }
    assert!(bytes > 5 * (26 << 10), "{bytes}");
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
                Action::Forget(_)
                | Action::Renew(_)
                | Action::Switch(..)
                | Action::BeginAnew(_) => {
                    panic!("{action:?}")
                }
            }
        }
        let took = fixture.now - begun;
        let most = (1.0 + took.as_secs_f64() / 60.0) * 65_536.0;
        assert!((bytes as f64) < most, "{bytes} in {took:?}");
    }
    assert!(bursts[0].min(bursts[1]) > 4 && bursts[0].abs_diff(bursts[1]) < 2, "{bursts:?}");
}

/// They would delay each other.
#[test]
fn paths_over_one_link_are_measured_one_after_the_other() {
    let mut fixture = nothing();
    let mut links = at(2, 1);
    links[0].1.metric = 300;
    let mut other = links[0].clone();
    other.0.server = ([192, 0, 2, 77], 4433).into();
    let second = PathKey::from(&other.0);
    links.push(other);
    let _ = fixture.tell(Event::Candidates(links));
    let _ = fixture.tell(Event::Connected(key(2)));
    let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
    for path in [key(1), second] {
        let _ = fixture.tell(Event::Answered(path, Some(10 * MS)));
        let _ = fixture.tell(Event::Answered(path, Some(900 * MS)));
        assert!(fixture.manager.fault(path).is_some(), "slow beside lte");
    }
    let (mut under_way, mut measured) = (None, Vec::new());
    for _ in 0..200 {
        for action in fixture.wait(LOOK) {
            if let Action::Sample(path, _) = action {
                assert_eq!(under_way.replace(path), None);
                measured.push(path);
            }
        }
        if let Some(path) = under_way.take() {
            let _ = fixture.tell(Event::Sampled(path, sample(24, 900)));
        }
    }
    assert!([key(1), second].iter().all(|path| measured.contains(path)), "{measured:?}");
}

/// One that goes on with the last one has no pause, and each waits for the budget of its link.
#[test]
fn a_burst_is_made_when_it_is_due_and_not_before() {
    let now = Instant::now();
    let after = |seconds: u64| now + Duration::from_secs(seconds);
    let mut standby = Quality::default();
    assert!(standby.start(Burst::Small, None, now));
    standby.add(sample(24, 50), now);
    standby.judge_standby((false, None), Duration::ZERO, 4, now);
    for (burst, allowed, due) in [
        (Burst::Small, None, Some(8)),
        (Burst::Small, Some(3), Some(8)),
        (Burst::Small, Some(20), Some(20)),
        (Burst::Large, None, None),
        (Burst::Large, Some(3), Some(3)),
    ] {
        let (mut standby, allowed, due) = (standby, allowed.map(after), due.map(after));
        assert_eq!(standby.due(burst, allowed), due);
        assert!(!due.is_some_and(|due| standby.start(burst, allowed, due - MS)));
        assert!(standby.start(burst, allowed, due.unwrap_or(now)));
    }
}

#[test]
fn pauses_grow_although_bursts_wait_for_their_budget() {
    let (mut standby, mut now) = (Quality::default(), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let allowed = Some(now + 90 * SECOND);
        now = standby.due(Burst::Both, allowed).unwrap();
        assert!(standby.start(Burst::Both, allowed, now));
        standby.add(None, now);
        standby.judge_standby((false, None), Duration::ZERO, 1, now);
        pauses.push((standby.due(Burst::Both, None).unwrap() - now).as_secs());
    }
    assert_eq!(pauses, [2, 4, 8, 16, 30, 30]);
}
