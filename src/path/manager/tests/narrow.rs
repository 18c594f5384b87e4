//! Paths that carry too little.

use super::{
    quality::{LOOK, SECOND, feel, lossy, sample, small, with_another_way_over},
    *,
};

#[test]
fn large_echoes_do_not_go_over_a_link_that_carries_too_little() {
    let (mut fixture, _) = with_another_way_over(1);
    let narrow = Symptoms { rate: Some(200_000), ..Symptoms::default() };
    assert_eq!(feel(&mut fixture, narrow), [Action::Sample(key(2), Burst::Large)]);
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

/// Its bursts are never quite clean, and then lte loses half of the packets.
#[test]
fn a_path_that_was_left_for_its_rate_long_ago_is_compared_by_what_its_bursts_show() {
    for (minutes, expected) in [(8, key(2)), (11, key(1))] {
        let mut fixture = on_wifi();
        let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
        let _ = feel(&mut fixture, Symptoms { starved: Some(200_000), ..lossy(0.3) });
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
        assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Narrow(200_000)));
        let (left, minute) = (fixture.now, 60 * SECOND);
        while fixture.manager.active() == Some(key(2)) && fixture.now < left + minutes * minute {
            let mut actions = fixture.wait(LOOK);
            if fixture.now >= left + (minutes - 1) * minute {
                actions.extend(feel(&mut fixture, lossy(0.5)));
            }
            for action in actions {
                let told = match action {
                    Action::Sample(path, _) if path == key(1) => {
                        Event::Sampled(path, sample(21, 10))
                    }
                    Action::Sample(path, _) => Event::Sampled(path, sample(6, 50)),
                    Action::Ask(path) => Event::Answered(path, Some(10 * MS)),
                    _ => continue,
                };
                let _ = fixture.tell(told);
            }
        }
        assert_eq!(fixture.manager.active(), Some(expected), "{minutes}");
    }
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
