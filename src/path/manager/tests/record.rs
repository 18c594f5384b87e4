//! What is remembered of paths that are gone, or whose network is another.

use super::{
    quality::{LOOK, SECOND, feel, lossy, sample},
    *,
};

/// Wifi with this address of ours and this router, and lte.
pub(super) fn at(address: u8, router: u8) -> Vec<(Candidate, LinkFacts)> {
    let mut links = found(&[WIFI, LTE]);
    links[0].0.source = [10, 0, 1, address].into();
    links[0].0.router = Some([10, 0, 1, router].into());
    links
}

/// Wifi was left for lte, since it loses packets.
fn lte_beside_bad_wifi() -> Fixture {
    let mut fixture = nothing();
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    let _ = fixture.tell(Event::Connected(key(1)));
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    let actions = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(actions, [Action::Switch(key(2), Reason::Lossy)]);
    fixture
}

#[test]
fn what_was_found_of_a_network_is_known_under_another_address_of_ours() {
    for (router, ends, expected) in
        [(1, false, Some(Fault::Lossy(29))), (1, true, Some(Fault::Lossy(29))), (9, false, None)]
    {
        let mut fixture = lte_beside_bad_wifi();
        if ends {
            let _ = fixture.tell(Event::Disconnected);
            let order = fixture.manager.dialing().order(at(77, router), fixture.now);
            assert_eq!(order[0].link, name(2), "wifi is dialed last");
        }
        let links = at(77, router);
        let renewed = PathKey::from(&links[0].0);
        let _ = fixture.tell(Event::Candidates(links));
        if ends {
            let _ = fixture.tell(Event::Connected(key(2)));
        }
        assert_eq!(fixture.manager.fault(renewed), expected);
        let _ = fixture.tell(Event::Answered(renewed, Some(10 * MS)));
        let _ = fixture.wait(SECOND);
        assert_eq!(fixture.manager.active() == Some(renewed), expected.is_none());
    }
}

#[test]
fn what_was_found_of_a_network_that_is_gone_is_known_for_ten_minutes() {
    for (minutes, expected) in [(9, Some(Fault::Lossy(29))), (11, None)] {
        let mut fixture = on_wifi();
        let _ = feel(&mut fixture, lossy(0.1));
        let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
        let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
        let _ = fixture.tell(candidates(&[LTE]));
        fixture.now += minutes * 60 * SECOND;
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.tell(candidates(&[WIFI, LTE]));
        assert_eq!(fixture.manager.fault(key(1)), expected, "{minutes} minutes");
    }
}

/// The lease is the same, the router another.
#[test]
fn a_network_with_another_router_is_another_one_although_our_address_stays() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Candidates(at(2, 9)));
    assert_eq!(fixture.manager.fault(key(1)), None);
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)));
}

/// A question, or a burst, that is under way is over the network before.
#[test]
fn a_network_that_is_another_one_is_asked_again_whatever_is_under_way() {
    let mut fixture = lte_beside_bad_wifi();
    assert_eq!(fixture.wait(SECOND), [Action::Sample(key(1), Burst::Small)]);
    let _ = fixture.tell(Event::Check(None));
    let actions = fixture.tell(Event::Candidates(at(2, 9)));
    assert_eq!(actions, [Action::Renew(key(1)), Action::Ask(key(1))]);
    assert_eq!(fixture.condition(1), Some(Condition::Probing));
    assert!(fixture.manager.paths().all(|(path, _, rtt)| path != key(1) || rtt.is_none()));
    assert_eq!(fixture.tell(Event::Sampled(key(1), sample(0, 10))), [], "it is that of before");
    let actions = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    let switch = Action::Switch(key(1), Reason::Preferred);
    assert!(actions.contains(&switch), "failures are of the network before: {actions:?}");
}

/// Its connection tells more than a probe, and may well go on.
#[test]
fn the_active_path_stays_so_when_its_network_is_another() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Measured(key(2), 50 * MS));
    let mut links = at(2, 1);
    links[1].0.router = Some([10, 0, 2, 1].into());
    assert_eq!(fixture.tell(Event::Candidates(links)), [Action::Renew(key(2))]);
    assert_eq!(fixture.condition(2), Some(Condition::Active));
    let actions = fixture.wait(2 * TIMEOUT);
    assert!(!actions.iter().any(|it| matches!(it, Action::Switch(..) | Action::Forget(_))));
    assert_eq!(fixture.condition(2), Some(Condition::Active));
}

/// Nothing but a burst shows the end of losses, and without another path none is made.
#[test]
fn a_network_that_was_bad_is_judged_anew_where_the_active_path_gets_into_it_again() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Candidates(at(2, 9)));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(fixture.manager.active(), Some(key(1)));
    let wifi = || vec![at(2, 1).remove(0)];
    assert_eq!(
        fixture.tell(Event::Candidates(wifi())),
        [Action::Forget(key(2)), Action::Renew(key(1))]
    );
    assert_eq!(fixture.manager.fault(key(1)), None);
    let _ = fixture.wait(60 * SECOND);
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    assert_eq!(actions, [], "there is no fault that would have lte measured");
    let _ = fixture.wait(SECOND);
    // It is bad again, and that it was before counts.
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(fixture.manager.active(), Some(key(2)));
    let left = fixture.now;
    while fixture.manager.active() == Some(key(2)) {
        for action in fixture.wait(LOOK) {
            if let Action::Sample(path, _) = action {
                let _ = fixture.tell(Event::Sampled(path, sample(24, 10)));
            }
        }
        assert!(fixture.now < left + 60 * SECOND);
    }
    assert!(fixture.now >= left + 2 * SHORTEST_DWELL, "{:?}", fixture.now - left);
}

/// Wifi was bad behind the first router, and is in use behind the other one.
fn wifi_in_a_good_network() -> Fixture {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Candidates(at(2, 9)));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(fixture.manager.active(), Some(key(1)));
    fixture
}

/// Two routers of one network may take turns.
#[test]
fn a_network_in_which_the_active_path_was_for_a_moment_is_as_bad_as_before() {
    let mut fixture = wifi_in_a_good_network();
    for router in [1, 9, 1, 9] {
        let _ = fixture.tell(Event::Candidates(at(2, router)));
        assert_eq!(fixture.manager.fault(key(1)), None, "it is in use");
        let _ = fixture.wait(SECOND);
    }
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)));
}

#[test]
fn a_network_in_which_the_active_path_works_is_bad_no_more() {
    let measured = || Some(Event::Measured(key(1), 10 * MS));
    for (shown, then, is_over) in [
        (measured(), None, true),
        (None, None, false),
        (None, Some(Event::Silent(key(1))), false),
        (measured(), Some(Event::Silent(key(1))), false),
    ] {
        let mut fixture = wifi_in_a_good_network();
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        for event in shown.into_iter().chain(then) {
            let _ = fixture.tell(event);
        }
        let _ = fixture.wait(2 * SHORTEST_DWELL);
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        assert_eq!(fixture.manager.fault(key(1)).is_none(), is_over);
    }
}

/// The silence is that of the network before, unless that never answered either.
#[test]
fn an_active_path_that_gets_into_another_network_is_not_in_doubt_for_the_one_before() {
    for has_answered in [true, false] {
        let mut fixture = wifi_in_a_good_network();
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        if has_answered {
            let _ = fixture.tell(Event::Measured(key(1), 10 * MS));
        }
        let _ = fixture.tell(Event::Silent(key(1)));
        let _ = fixture.wait(SHORTEST_GRACE);
        assert!(fixture.manager.is_in_doubt());
        let actions = fixture.tell(Event::Candidates(at(2, 9)));
        assert!(actions.contains(&Action::Renew(key(1))));
        assert_eq!(fixture.manager.is_in_doubt(), !has_answered);
        let actions = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
        let switch = Action::Switch(key(2), Reason::Silent);
        assert_eq!(actions.contains(&switch), !has_answered, "{actions:?}");
    }
}

#[test]
fn a_verdict_that_the_packets_of_the_path_confirm_counts_from_then_on() {
    for (loss, expected) in [(0.2, Some(Fault::Lossy(29))), (0.1, None)] {
        let mut fixture = lte_beside_bad_wifi();
        let _ = fixture.tell(Event::Candidates(vec![]));
        let _ = fixture.wait(10 * SECOND);
        // It is all there is.
        let wifi = || Event::Candidates(vec![at(2, 1).remove(0)]);
        let _ = fixture.tell(wifi());
        assert_eq!(fixture.manager.active(), Some(key(1)));
        fixture.now += 9 * 60 * SECOND;
        let _ = feel(&mut fixture, lossy(loss));
        let _ = fixture.tell(Event::Candidates(vec![]));
        fixture.now += 2 * 60 * SECOND;
        let _ = fixture.tell(wifi());
        assert_eq!(fixture.manager.fault(key(1)), expected);
    }
}

#[test]
fn a_verdict_that_nothing_confirms_counts_no_longer_than_at_first() {
    for (minutes, expected) in [(9, Some(Fault::Lossy(29))), (11, None)] {
        let mut fixture = lte_beside_bad_wifi();
        let _ = fixture.tell(candidates(&[LTE]));
        fixture.now += 5 * 60 * SECOND;
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)));
        let _ = fixture.tell(candidates(&[LTE]));
        fixture.now += (minutes - 5) * 60 * SECOND;
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        assert_eq!(fixture.manager.fault(key(1)), expected, "{minutes} minutes");
    }
}

/// The routers of a café and at home have one address.
const CAFE: u8 = 1;
const HOME: u8 = 2;

/// Wifi leads through this machine.
fn is_at(fixture: &mut Fixture, machine: u8) -> Vec<Action> {
    let (address, hardware) = ([10, 0, 1, 1].into(), [2, 0, 0, 0, 0, machine]);
    fixture.tell(Event::Router { link: 1, address, hardware })
}

/// The café's wifi was left for lte, since it lost packets. Wifi is back, nobody knows where.
fn somewhere() -> Fixture {
    let mut fixture = nothing();
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    let _ = fixture.tell(Event::Connected(key(1)));
    let _ = is_at(&mut fixture, CAFE);
    let _ = fixture.tell(Event::Answered(key(2), Some(50 * MS)));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.wait(SECOND);
    return_to_wifi(&mut fixture);
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)), "it looks alike");
    fixture
}

fn return_to_wifi(fixture: &mut Fixture) {
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    let _ = fixture.tell(Event::Answered(key(1), Some(10 * MS)));
    assert_eq!(fixture.manager.active(), Some(key(2)));
}

#[test]
fn what_was_found_of_a_network_does_not_count_where_the_router_is_another_machine() {
    for (machine, expected) in [(CAFE, Some(Fault::Lossy(29))), (HOME, None)] {
        let mut fixture = somewhere();
        let _ = is_at(&mut fixture, machine);
        assert_eq!(fixture.manager.fault(key(1)), expected);
        let actions = fixture.wait(3 * SHORTEST_DWELL);
        let switch = Action::Switch(key(1), Reason::Preferred);
        assert_eq!(actions.contains(&switch), expected.is_none(), "{actions:?}");
    }
}

#[test]
fn what_was_found_of_a_network_is_known_there_after_a_visit_to_another_one_that_looks_alike() {
    for (minutes, expected) in [(9, Some(Fault::Lossy(29))), (11, None)] {
        let mut fixture = somewhere();
        let _ = is_at(&mut fixture, HOME);
        let _ = fixture.tell(candidates(&[LTE]));
        fixture.now += minutes * 60 * SECOND;
        let _ = fixture.tell(candidates(&[LTE]));
        let _ = fixture.tell(Event::Candidates(at(2, 1)));
        let _ = is_at(&mut fixture, CAFE);
        assert_eq!(fixture.manager.fault(key(1)), expected, "{minutes} minutes");
    }
}

#[test]
fn two_bad_networks_that_look_alike_are_told_apart() {
    let mut fixture = somewhere();
    let _ = is_at(&mut fixture, HOME);
    let _ = fixture.wait(3 * SHORTEST_DWELL);
    assert_eq!(fixture.manager.active(), Some(key(1)));
    let _ = feel(&mut fixture, lossy(0.1));
    let _ = fixture.tell(Event::Sampled(key(2), sample(24, 50)));
    let _ = fixture.tell(Event::Sampled(key(1), sample(17, 10)));
    let _ = fixture.tell(candidates(&[LTE]));
    for (machine, expected) in [(CAFE, Fault::Lossy(29)), (HOME, Fault::Lossy(16))] {
        return_to_wifi(&mut fixture);
        assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(16)), "the newest");
        let _ = is_at(&mut fixture, machine);
        assert_eq!(fixture.manager.fault(key(1)), Some(expected));
        let _ = fixture.tell(candidates(&[LTE]));
    }
}

/// The link gets into the other network without a word of the kernel.
#[test]
fn what_a_network_showed_is_its_own_although_the_next_one_looks_alike() {
    let mut fixture = somewhere();
    let _ = is_at(&mut fixture, CAFE);
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)));
    for (machine, expected) in [(HOME, None), (CAFE, Some(Fault::Lossy(29)))] {
        let _ = is_at(&mut fixture, machine);
        assert_eq!(fixture.manager.fault(key(1)), expected, "{machine}");
        let _ = fixture.tell(candidates(&[LTE]));
        return_to_wifi(&mut fixture);
        let _ = is_at(&mut fixture, machine);
        assert_eq!(fixture.manager.fault(key(1)), expected, "{machine}, back");
    }
}

#[test]
fn what_a_network_showed_itself_stays_when_it_is_told_from_another_one() {
    let mut fixture = somewhere();
    let _ = is_at(&mut fixture, HOME);
    assert_eq!(fixture.manager.fault(key(1)), None);
    let path = &fixture.manager.paths[&key(1)];
    assert!(path.quality.awaited().is_some(), "a burst is under way, and is so here");
    assert_eq!(path.failures.count(fixture.now), 1, "the link was gone");

    let mut fixture = somewhere();
    let _ = fixture.tell(Event::Sampled(key(1), sample(12, 10)));
    let _ = is_at(&mut fixture, HOME);
    assert_eq!(fixture.manager.fault(key(1)), Some(Fault::Lossy(29)), "it is no better");
}

/// A café's wifi was bad. At home its IPv6 is no worse for that.
#[test]
fn what_was_found_over_one_family_counts_for_the_other_one_in_the_same_network() {
    for (router, expected) in [(1, [2, 1, 1]), (9, [1, 1, 2])] {
        let mut fixture = lte_beside_bad_wifi();
        let _ = fixture.tell(Event::Disconnected);
        fixture.now += 10 * SECOND;
        let mut links = at(2, router);
        let (wifi, facts) = links[0].clone();
        let [source, router, server] = ["2001:db8:1::2", "fe80::1", "2001:db8::1"];
        links.push((
            Candidate {
                source: source.parse().unwrap(),
                router: router.parse().ok(),
                server: SocketAddr::new(server.parse().unwrap(), 4433),
                ..wifi
            },
            facts,
        ));
        let order = fixture.manager.dialing().order(links, fixture.now);
        let order: Vec<_> = order.into_iter().map(|it| it.link).collect();
        assert_eq!(order, expected.map(name));
    }
}

#[test]
fn a_bad_network_is_dialed_last_for_all_servers() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Disconnected);
    let other_server = |(candidate, facts): (Candidate, LinkFacts)| {
        (Candidate { server: ([192, 0, 2, 77], 4433).into(), ..candidate }, facts)
    };
    let links = at(2, 1).into_iter().map(other_server).collect();
    let order = fixture.manager.dialing().order(links, fixture.now);
    assert_eq!(order[0].link, name(2));
}

/// Nobody else is there who could be measured beside it.
#[test]
fn a_bad_network_over_which_the_next_session_begins_is_judged_anew() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Disconnected);
    let mut links = at(2, 1);
    links.truncate(1);
    let _ = fixture.tell(Event::Candidates(links));
    let _ = fixture.tell(Event::Connected(key(1)));
    assert_eq!(fixture.manager.fault(key(1)), None);
}

/// Another network has a router with the same address, and is far away: it was never that fast.
#[test]
fn what_was_found_of_a_network_counts_for_ten_minutes_in_one_that_looks_alike() {
    let mut fixture = lte_beside_bad_wifi();
    let _ = fixture.tell(Event::Measured(key(1), 5 * MS));
    let left = fixture.now;
    let _ = fixture.tell(candidates(&[LTE]));
    let _ = fixture.tell(Event::Candidates(at(2, 1)));
    while fixture.manager.active() == Some(key(2)) && fixture.now < left + 900 * SECOND {
        for action in fixture.wait(LOOK) {
            let _ = match action {
                Action::Sample(path, burst) => {
                    assert_eq!((path, burst), (key(1), Burst::Small));
                    fixture.tell(Event::Sampled(path, sample(24, 120)))
                }
                Action::Ask(path) => fixture.tell(Event::Answered(path, Some(120 * MS))),
                _ => Vec::new(),
            };
        }
    }
    assert!(fixture.now < left + 60 * SECOND, "{:?}", fixture.now - left);
}
