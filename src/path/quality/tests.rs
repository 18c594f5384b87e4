use super::*;

const MS: Duration = Duration::from_millis(1);

/// Looks at counters that grow as a path's do.
struct Fixture {
    watch: Watch,
    look: Look,
}

fn path() -> Fixture {
    let at = Instant::now();
    let mut watch = Watch::default();
    watch.begin(at - SETTLE);
    let look = Look {
        at,
        acknowledged: 1000,
        lost: 50,
        sent_bytes: 1_000_000,
        received: 2000,
        missing: 7,
        received_bytes: 3_000_000,
        rtt: None,
        wait: Duration::ZERO,
    };
    let _ = watch.look(look);
    Fixture { watch, look }
}

impl Fixture {
    fn next(&mut self, change: impl FnOnce(&mut Look)) -> Symptoms {
        self.look.at += LOOK;
        self.look.rtt = None;
        change(&mut self.look);
        self.watch.look(self.look)
    }
}

#[test]
fn the_least_share_is_that_of_wilsons_interval() {
    for (lost, all, expected) in [
        (0, 0, 0.0),
        (0, 50, 0.0),
        (1, 1, 0.271),
        (5, 10, 0.270),
        (10, 100, 0.061),
        (300, 1000, 0.277),
    ] {
        let least = least_share(lost, all);
        assert!((least - expected).abs() < 0.001, "{lost} of {all}: {least}");
    }
}

#[test]
fn one_lost_keystroke_is_suspicious_and_one_lost_packet_of_a_transfer_is_not() {
    for (packets, is_lossy) in [(4, true), (50, false)] {
        let mut path = path();
        let symptoms =
            path.next(|look| (look.acknowledged, look.lost) = (look.acknowledged + packets, 51));
        assert_eq!(symptoms.is_lossy(), is_lossy, "1 of {packets}: {}", symptoms.loss);
    }
}

#[test]
fn losses_of_either_direction_count_for_two_seconds() {
    let mut path = path();
    let first = path.next(|look| {
        look.acknowledged += 100;
        look.received += 100;
        look.missing += 30;
    });
    assert!((0.2..0.3).contains(&first.loss), "{first:?}");
    let [up, down] = path.watch.figures().loss;
    assert_eq!((up, down), (Some(0.0), Some(0.3)));
    for _ in 0..6 {
        assert!(path.next(|look| look.received += 1).is_lossy());
    }
    for _ in 0..2 {
        path.next(|look| look.received += 1);
    }
    assert!(!path.next(|_| ()).is_lossy(), "they are too old");
}

#[test]
fn losses_of_the_path_before_do_not_count() {
    let mut path = path();
    path.watch.begin(path.look.at);
    for _ in 0..3 {
        assert!(
            !path
                .next(
                    |look| (look.lost, look.acknowledged) = (look.lost + 20, look.acknowledged + 1)
                )
                .is_lossy()
        );
    }
    assert!(
        path.next(|look| (look.lost, look.acknowledged) = (look.lost + 20, look.acknowledged + 1))
            .is_lossy()
    );
}

#[test]
fn the_round_trip_is_the_shortest_of_four_looks() {
    let mut path = path();
    for (rtt, expected) in [(10, None), (400, None), (300, None), (350, Some(10)), (360, Some(300))]
    {
        let symptoms = path.next(|look| look.rtt = Some(rtt * MS));
        assert_eq!(symptoms.rtt, expected.map(|it: u32| it * MS), "{rtt} ms");
    }
    let own = path
        .next(|look| (look.rtt, look.sent_bytes) = (Some(500 * MS), look.sent_bytes + 1_000_000));
    assert_eq!(own.rtt, Some(Duration::ZERO), "the tunnel fills the queue itself");
    let others = path.next(|look| look.rtt = None);
    assert_eq!(others.rtt, Some(Duration::ZERO));
}

#[test]
fn a_path_that_grew_slow_is_one_with_thrice_its_round_trip_and_a_bit() {
    let slow =
        |rtt: u32| Symptoms { rtt: Some(rtt * MS), ..Symptoms::default() }.fault(Some(10 * MS));
    assert_eq!(slow(80), None);
    assert_eq!(slow(81), Some(Fault::Slow { rtt: 81 * MS, floor: 10 * MS }));
    assert_eq!(slow(81).unwrap().to_string(), "takes 81 ms instead of 10");
}

#[test]
fn a_rate_is_too_low_only_if_more_waits_all_the_time_and_something_arrives() {
    let carry = |bytes: u64, wait: Duration, stall: bool| {
        let mut path = path();
        for _ in 0..8 {
            path.next(|look| look.sent_bytes += 500_000);
        }
        let mut last = Symptoms::default();
        for turn in 0..6 {
            last = path.next(|look| {
                look.sent_bytes += if stall && (3..5).contains(&turn) { 0 } else { bytes };
                look.wait = wait;
            });
        }
        last.rate
    };
    assert_eq!(carry(6_250, 100 * MS, false), Some(200_000));
    assert_eq!(carry(25_000, 100 * MS, false), Some(800_000), "it carried 16 Mbit/s before");
    assert_eq!(carry(40_000, 100 * MS, false), None, "this is enough");
    assert_eq!(carry(6_250, MS, false), None, "nothing more is asked");
    assert_eq!(carry(6_250, 100 * MS, true), None, "it may be silent");
}

#[test]
fn a_path_that_never_carried_more_is_not_called_narrow_unless_it_is_very_slow() {
    for (bytes, expected) in [(12_500, None), (6_250, Some(200_000))] {
        let mut path = path();
        let mut last = Symptoms::default();
        for _ in 0..20 {
            last = path
                .next(|look| (look.sent_bytes, look.wait) = (look.sent_bytes + bytes, 100 * MS));
        }
        assert_eq!(last.rate, expected);
    }
}

#[test]
fn a_tunnel_that_only_keeps_itself_alive_is_not_looked_at() {
    let mut path = path();
    for _ in 0..8 {
        assert_eq!(path.watch.next_look(), Some(path.look.at + LOOK));
        path.next(|_| ());
    }
    assert!(path.watch.is_resting());
    assert_eq!(path.watch.next_look(), None);
    for keep_alives in [true, false] {
        path.look.at += 15 * WINDOW;
        path.watch.wake(path.look.at);
        assert_eq!(path.watch.next_look(), Some(path.look.at + LOOK));
        let packets = if keep_alives { FEW } else { FEW + 1 };
        path.next(|look| look.acknowledged += packets);
        assert_eq!(path.watch.is_resting(), keep_alives);
    }
    assert_eq!(path.watch.next_look(), Some(path.look.at + LOOK));
}

#[test]
fn a_tunnel_that_lost_something_or_has_just_moved_is_looked_at() {
    let mut path = path();
    for _ in 0..7 {
        path.next(|_| ());
    }
    path.next(|look| look.missing += 1);
    for _ in 0..7 {
        path.next(|_| ());
        assert!(!path.watch.is_resting());
    }
    path.next(|_| ());
    assert!(path.watch.is_resting());
    path.watch.begin(path.look.at);
    assert_eq!(path.watch.next_look(), Some(path.look.at + LOOK));
}

#[test]
fn a_fault_is_over_when_a_burst_finds_nothing_of_it() {
    let sample =
        |answered, rtt: u32, rate| Sample { sent: 24, answered, rtt: Some(rtt * MS), rate };
    let floor = Some(10 * MS);
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    for (fault, sample, expected) in [
        (Fault::Lossy(30), sample(24, 12, None), true),
        (Fault::Lossy(30), sample(23, 12, None), true),
        (Fault::Lossy(30), sample(22, 12, None), false),
        (Fault::Lossy(30), sample(24, 200, None), false),
        (slow, sample(24, 49, None), true),
        (slow, sample(24, 50, None), false),
        (slow, sample(20, 12, None), false),
        (Fault::Narrow(200_000), sample(24, 12, None), false),
        (Fault::Narrow(200_000), sample(24, 12, Some(400_000)), false),
        (Fault::Narrow(200_000), sample(24, 12, Some(8_000_000)), true),
        (Fault::Narrow(1_500_000), sample(24, 12, Some(2_000_000)), false),
        (Fault::Narrow(1000), sample(24, 12, Some(250_000)), false),
        (Fault::Narrow(50_000), sample(24, 12, Some(500_000)), true),
    ] {
        assert_eq!(is_over(fault, &sample, floor, Some(10 * MS)), expected, "{fault}: {sample:?}");
    }
}

#[test]
fn a_slow_path_that_is_about_as_fast_as_the_active_one_is_used_again() {
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    for (rtt, expected) in [(99, true), (100, false)] {
        let sample = Sample { sent: 24, answered: 24, rtt: Some(rtt * MS), rate: None };
        assert_eq!(is_over(slow, &sample, None, Some(50 * MS)), expected, "{rtt} ms");
        let active = Fault::Slow { rtt: rtt * MS, floor: 10 * MS };
        let other = Sample { rtt: Some(50 * MS), ..sample };
        assert!(!active.is_cured_by(&other), "and is not left at once");
    }
}

#[test]
fn a_standby_that_loses_packets_is_no_cure() {
    let slow = Fault::Slow { rtt: 400 * MS, floor: 10 * MS };
    let rate = Some(8_000_000);
    for (fault, answered, expected) in [
        (slow, 24, true),
        (slow, 3, false),
        (Fault::Narrow(200_000), 23, true),
        (Fault::Narrow(200_000), 20, false),
        (Fault::Lossy(60), 20, true),
    ] {
        let standby = Sample { sent: 24, answered, rtt: Some(20 * MS), rate };
        assert_eq!(fault.is_cured_by(&standby), expected, "{fault}: {answered} of 24");
    }
}

#[test]
fn rare_round_trips_do_not_make_a_path_slow() {
    for (apart, expected) in [(LOOK, Some(300 * MS)), (3 * Duration::from_secs(1), None)] {
        let mut path = path();
        let mut last = Symptoms::default();
        for _ in 0..6 {
            last = path.next(|look| (look.at, look.rtt) = (look.at + apart, Some(300 * MS)));
        }
        assert_eq!(last.rtt, expected, "{apart:?}");
    }
}

#[test]
fn a_few_echoes_show_that_a_path_is_bad_but_not_that_it_is_good() {
    let finding = |sent, answered| {
        let sample = Sample { sent, answered, rtt: Some(10 * MS), rate: None };
        Symptoms::default().finding(Some(&sample))
    };
    assert_eq!(finding(6, 1), Finding::Bad(Fault::Lossy(59)));
    assert_eq!(finding(7, 7), Finding::Unsure);
    assert_eq!(finding(8, 7), Finding::Clean);
}

/// A path that loses a tenth each way answers 23 or 24 of 24 echoes in one burst of 24.
#[test]
fn with_many_lost_packets_a_path_is_not_clean_because_one_burst_lost_one_echo() {
    for (loss, sent, lost, expected) in [
        (0.05, 24, 1, Finding::Clean),
        (0.1, 24, 1, Finding::Unsure),
        (0.1, 24, 0, Finding::Clean),
        (0.1, 48, 1, Finding::Clean),
        (0.1, 48, 2, Finding::Unsure),
    ] {
        let sample = Sample { sent, answered: sent - lost, rtt: Some(10 * MS), rate: None };
        let symptoms = Symptoms { loss, ..Symptoms::default() };
        assert_eq!(symptoms.finding(Some(&sample)), expected, "{loss}: {lost} of {sent}");
    }
}

/// A wifi falls to 0.2 Mbit/s under a download: the queue is at its other end, and shows in the round trip only.
#[test]
fn a_path_is_narrow_if_its_round_trip_grows_as_a_download_falls() {
    let fall = |before: u64, after: u64, upload: u64| {
        let mut path = path();
        for _ in 0..8 {
            path.next(|look| look.received_bytes += before);
        }
        let mut last = Symptoms::default();
        for _ in 0..6 {
            last = path.next(|look| {
                look.received_bytes += after;
                look.sent_bytes += upload;
                look.rtt = Some(300 * MS);
            });
        }
        last.fault(Some(10 * MS)).map(|fault| fault.to_string())
    };
    let slow = "takes 300 ms instead of 10";
    let narrow = "carries 0.2 Mbit/s, more is asked";
    assert_eq!(fall(500_000, 6_250, 100).as_deref(), Some(narrow));
    assert_eq!(fall(25_000, 6_250, 100).as_deref(), Some(slow), "this is not far below");
    assert_eq!(fall(6_250, 6_250, 100).as_deref(), Some(slow), "it never carried more");
    assert_eq!(fall(500_000, 6_250, 500_000), None, "an upload fills the queue");
}

/// An upload over a wifi that falls to 0.2 Mbit/s: for a second the rate is that of before.
#[test]
fn a_path_is_starved_if_it_carries_little_of_what_is_asked_or_of_what_it_carried() {
    let carry = |before: u64, after: u64, wait: Duration| {
        let mut path = path();
        for _ in 0..8 {
            path.next(|look| look.sent_bytes += before);
        }
        let looks = [wait, Duration::ZERO].map(|wait| {
            path.next(|look| (look.sent_bytes, look.wait) = (look.sent_bytes + after, wait))
        });
        let [_, last] = looks;
        (last.starved, last.rate, last.fell_to)
    };
    assert_eq!(carry(500_000, 6_250, MS), (Some(200_000), None, None), "it carried 16 Mbit/s");
    assert_eq!(carry(6_250, 6_250, 100 * MS), (Some(200_000), None, None), "more waits");
    assert_eq!(carry(6_250, 6_250, MS).0, None, "nothing more is asked");
    assert_eq!(carry(500_000, 40_000, 100 * MS).0, None, "this is enough");
    assert_eq!(carry(2_000, 0, MS).0, None, "somebody stops typing");
}
