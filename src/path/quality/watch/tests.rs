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
    let _ = watch.look(look, None);
    Fixture { watch, look }
}

impl Fixture {
    fn next(&mut self, change: impl FnOnce(&mut Look)) -> Symptoms {
        self.look.at += LOOK;
        self.look.rtt = None;
        change(&mut self.look);
        self.watch.look(self.look, Some(10 * MS))
    }

    /// So many bytes are acknowledged, and packets have always waited for so long.
    fn carry(&mut self, bytes: u64, wait: Duration) -> Symptoms {
        self.next(|look| {
            look.acknowledged += bytes.div_ceil(1250);
            (look.sent_bytes, look.wait) = (look.sent_bytes + bytes, wait);
        })
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
    assert_eq!(fall(25_000, 0, 100).as_deref(), Some(slow), "somebody has read a page");
    assert_eq!(fall(500_000, 6_250, 500_000), None, "an upload fills the queue");
}

/// An upload over a wifi that falls to 0.2 Mbit/s: for a second the rate is that of before.
#[test]
fn a_path_is_starved_if_it_carries_little_of_what_is_asked_or_of_what_it_carried() {
    let carry = |before: u64, after: u64, wait: Duration| {
        let mut path = path();
        for _ in 0..8 {
            path.carry(before, Duration::ZERO);
        }
        let last = path.carry(after, wait);
        (last.starved, last.rate, last.fell_to)
    };
    assert_eq!(carry(500_000, 6_250, MS), (Some(200_000), None, None), "it carried 16 Mbit/s");
    assert_eq!(carry(6_250, 6_250, 100 * MS), (Some(200_000), None, None), "more waits");
    assert_eq!(carry(6_250, 6_250, MS).0, None, "nothing more is asked");
    assert_eq!(carry(500_000, 40_000, 100 * MS).0, None, "this is enough");
    assert_eq!(carry(2_000, 0, MS).0, None, "somebody stops typing");
}

/// A path that is used again under a transfer: how fast the other path was is what is asked of it.
#[test]
fn what_was_carried_over_the_path_before_is_asked_of_the_next() {
    for (rests, expected) in [(false, Some(200_000)), (true, None)] {
        let mut path = path();
        for _ in 0..8 {
            path.next(|look| {
                look.received += 400;
                look.received_bytes += 500_000;
            });
        }
        for _ in 0..if rests { 8 } else { 0 } {
            path.next(|_| {});
        }
        path.watch.begin(path.look.at);
        let mut last = Symptoms::default();
        for _ in 0..8 {
            last = path.next(|look| {
                look.received_bytes += 6_250;
                look.rtt = Some(300 * MS);
            });
        }
        assert_eq!((last.starved, last.fell_to), (expected, expected), "rests: {rests}");
    }
}

/// A download ends, and somebody types; six seconds later the path loses packets. Or its rate falls, and then it does.
#[test]
fn a_transfer_that_has_ended_asks_for_nothing_and_one_whose_rate_falls_does() {
    let after = |packets: u64, bytes: u64, rtt: u32| {
        let mut path = path();
        let mut last = Symptoms::default();
        for number in 0..33 {
            last = path.next(|look| {
                let (packets, bytes) = if number < 8 { (800, 1_000_000) } else { (packets, bytes) };
                look.received += packets;
                look.received_bytes += bytes;
                look.rtt = Some(if number < 8 { 10 } else { rtt } * MS);
                look.missing += u64::from(number == 32);
            });
        }
        (last.starved, last.fell_to)
    };
    assert_eq!(after(3, 300, 10), (None, None));
    let fell = (Some(200_000), Some(200_000));
    assert_eq!(after(8, 6_250, 300), fell);
    assert_eq!(after(8, 6_250, 10), fell, "it waits at the server");
}

/// Counters are not read during a rest, so that the last look before it is the first of the rate after it.
#[test]
fn a_rest_is_no_time_in_which_little_was_carried() {
    let mut path = path();
    for _ in 0..8 {
        path.carry(500_000, Duration::ZERO);
    }
    let mut last = Symptoms::default();
    while !path.watch.is_resting() {
        last = path.next(|_| ());
    }
    assert_eq!(last.starved, None, "nothing is asked");
    path.look.at += 60 * WINDOW;
    path.watch.wake(path.look.at);
    for _ in 0..8 {
        let symptoms = path.carry(100_000, 100 * MS);
        assert_eq!(symptoms.starved, None, "it carries 3.2 Mbit/s");
    }
    assert_eq!(path.watch.figures().rate, [3_200_000, 0]);
}
