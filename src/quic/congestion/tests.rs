//! The controller as quinn sees it, and as networks do.

mod foreign;
mod network;
mod scenarios;

use std::time::Duration;

use super::*;
use crate::quic::liveness::Owed;

const MTU: u16 = 1200;

#[test]
fn what_was_in_flight_before_does_not_fill_the_window() {
    let handle = CongestionHandle::default();
    let start = Instant::now();
    let factory = Arc::new(Factory::<Cubic>::new(handle.clone()));
    let mut controller = factory.build(start, MTU);
    let initial = controller.window();
    controller.on_sent(start, initial, 9);
    handle.restart_cold();
    assert_eq!(controller.window(), 2 * initial, "at once, before the next packet");

    let later = start + Duration::from_secs(1);
    controller.on_sent(later, 1000, 10);
    assert_eq!(controller.window(), 2 * initial);
    controller.on_congestion_event(later, start, true, initial / 2);
    assert_eq!(controller.window(), initial + initial / 2, "old losses are no congestion");
    controller.on_congestion_event(later, start, true, initial / 2);
    assert_eq!(controller.window(), initial);
    controller.on_sent(later, 5 * u64::from(MTU), 11);
    controller.on_congestion_event(later, later, true, 1000);
    assert!(controller.window() < initial, "new ones are");
}

#[test]
fn what_the_other_side_does_not_miss_is_not_lost() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    handle.asked_for(1_000_000);
    let mut controller = Arc::new(Factory::<Cubic>::new(handle.clone())).build(start, MTU);
    handle.trust_requests(true);
    let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
    for packet in 0..60 {
        controller.on_sent(at(packet), 1200, packet);
    }
    let window = controller.window();
    controller.on_congestion_event(at(100), at(50), false, 40 * 1200);
    assert_eq!(controller.window(), window, "packets were overtaken");
    handle.asked_for(40 * 1200);
    controller.on_end_acks(at(110), 0, false, Some(59));
    assert!(controller.window() < window, "the other side misses them");
    let window = controller.window();
    controller.on_congestion_event(at(200), at(150), true, 1200);
    assert!(controller.window() < window, "nothing arrives at all");
}

/// quinn sends bursts at one moment, and tells of each packet that arrived.
#[test]
fn packets_that_were_sent_at_one_moment_count_as_one() {
    let (start, size) = (Instant::now(), u64::from(MTU));
    let told = |packets: u64, size: u64| {
        let handle = CongestionHandle::default();
        let controller = Arc::new(Factory::<Cubic>::new(handle.clone())).build(start, MTU);
        let mut controller = controller.into_any().downcast::<Renewable<Cubic>>().unwrap();
        for round in 0..20 {
            let sent = start + round * Duration::from_millis(50);
            let now = sent + Duration::from_millis(40);
            (0..packets).for_each(|packet| controller.on_sent(sent, size, packet));
            (0..packets).for_each(|_| controller.arrived(now, sent, size, false));
            controller.on_end_acks(now, 0, false, None);
        }
        (controller.window(), handle.delivered())
    };
    let ((window, delivered), (same, _)) = (told(20, size), told(1, 20 * size));
    assert_eq!((window, delivered), (same, (400, 400 * size)));
    assert!(window > INITIAL_WINDOW, "it grew");
}

/// So it is with the acknowledgements of a transfer the other way.
#[test]
fn a_burst_that_takes_all_of_the_little_that_is_sent_does_not_close_the_window() {
    let (start, size) = (Instant::now(), u64::from(MTU));
    let lost = |packets: u64| {
        let mut path = PathControl::<Cubic>::new(start, 400_000, MTU);
        path.on_sent(start, size, packets * size, 0);
        path.on_loss(start + Duration::from_millis(300), start, true, size);
        path.window()
    };
    assert_eq!(lost(1), 400_000);
    assert_eq!(lost(4), 400_000);
    assert_eq!(lost(5), 2 * size);
    assert_eq!(lost(300), 2 * size);
}

#[test]
fn what_is_remembered_of_a_path_is_what_it_delivered() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    handle.measure_from(start);
    let mut path = PathControl::<Cubic>::new(start, 5_000_000, MTU);
    let (rtt, millisecond) = (Duration::from_millis(40), Duration::from_millis(1));
    for packet in 1..3000 {
        let sent = start + packet * millisecond;
        path.on_sent(sent, 10_000, 400_000, packet.into());
        path.on_ack(sent + rtt, sent, 10_000, false);
        handle.acknowledged(sent + rtt, sent);
    }
    assert_eq!(handle.known(), None, "nothing was delivered so far");
    handle.set_delivered(&path);
    let known = handle.known().expect("a path that delivers 10 MB/s");
    assert_eq!(known.rtt, rtt);
    assert!((380_000..420_000).contains(&known.window), "{known:?}");
}

#[test]
fn the_handle_tells_whether_an_answer_is_due() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    let factory = Arc::new(Factory::<Cubic>::new(handle.clone()));
    let mut controller = factory.build(start, MTU);
    assert_eq!(handle.owed(), Owed::Nothing);
    controller.on_sent(start, 1200, 0);
    assert_eq!(handle.owed(), Owed::Answer);
    controller.on_end_acks(start, 0, false, Some(0));
    assert_eq!(handle.owed(), Owed::Nothing);
}

#[test]
fn a_bare_acknowledgement_is_not_answered() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    let factory = Arc::new(Factory::<Cubic>::new(handle.clone()));
    let mut controller = factory.build(start, MTU);
    controller.on_sent(start, 35, 0);
    assert_eq!(handle.owed(), Owed::Perhaps);
    assert_eq!(handle.unacknowledged_since(), None);
    controller.on_sent(start, 100, 1);
    assert_eq!(handle.owed(), Owed::Answer);
    assert_eq!(handle.unacknowledged_since(), Some(start));
    controller.on_end_acks(start, 0, false, Some(1));
    assert_eq!(handle.owed(), Owed::Nothing);
}

#[test]
fn the_handle_tells_how_long_nothing_was_acknowledged() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    let factory = Arc::new(Factory::<Cubic>::new(handle.clone()));
    let mut controller = factory.build(start, MTU);
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    assert_eq!((handle.unacknowledged_since(), handle.newest_acknowledged()), (None, None));
    controller.on_sent(at(1), 1200, 0);
    controller.on_sent(at(2), 1200, 1);
    assert_eq!(handle.unacknowledged_since(), Some(at(1)));
    handle.acknowledged(at(3), at(1));
    assert_eq!(
        (handle.unacknowledged_since(), handle.newest_acknowledged()),
        (Some(at(3)), Some(at(1)))
    );
    handle.expect_from(at(5));
    assert_eq!(handle.unacknowledged_since(), Some(at(5)));
    controller.on_end_acks(at(6), 0, false, Some(1));
    assert_eq!(handle.unacknowledged_since(), None);
}

/// The window after rounds in which so many packets each were sent, one after the other; with `app_limited` no more
/// waited.
fn window_after(rounds: &[u64], app_limited: bool) -> u64 {
    let mut now = Instant::now();
    let (mut path, size) = (PathControl::<Cubic>::new(now, INITIAL_WINDOW, MTU), u64::from(MTU));
    let (rtt, pace) = (Duration::from_millis(40), Duration::from_micros(20));
    for packets in rounds {
        let sent = |packet| now + pace * packet as u32;
        for packet in 1..=*packets {
            path.on_sent(sent(packet), size, packet * size, packet);
        }
        for packet in 1..=*packets {
            path.on_ack(sent(packet) + rtt, sent(packet), size, app_limited);
        }
        now += 2 * rtt;
    }
    path.window() / size
}

#[test]
fn slow_start_is_ahead_of_senders_that_double_what_they_send() {
    let rounds = [10, 20, 40, 80, 160, 320];
    for (last, sent) in rounds.iter().enumerate() {
        assert!(window_after(&rounds[..=last], true) >= 2 * sent - 2, "{sent}");
    }
    let little = window_after(&[10; 20], true);
    assert_eq!(little, INITIAL_WINDOW / u64::from(MTU), "what is hardly used does not grow");
    assert!(window_after(&[40; 20], true) <= 2 * 40 + 1, "twice what is used is enough");
}

/// A packet that was sent while little was under way does not say that more fits.
#[test]
fn slow_start_is_not_ahead_of_what_arrived_where_more_waits() {
    assert_eq!(
        window_after(&[INITIAL_WINDOW / u64::from(MTU) / 2 - 1], false),
        window_after(&[], false)
    );
    assert!(window_after(&[40], false) + 10 < window_after(&[40], true));
    assert!(window_after(&[40; 20], false) <= 2 * 40 + 1);
}

/// A long burst of losses among the first packets, as of a radio, and then none.
#[test]
fn the_handle_tells_while_slow_start_is_on_trial() {
    let (handle, start) = (CongestionHandle::default(), Instant::now());
    let controller = Arc::new(Factory::<Cubic>::new(handle.clone())).build(start, MTU);
    let mut controller = controller.into_any().downcast::<Renewable<Cubic>>().unwrap();
    let (rtt, size) = (Duration::from_millis(40), u64::from(MTU));
    let mut round = |number: u32, lost: u64| {
        let sent = |packet| start + number * rtt + packet as u32 * Duration::from_micros(100);
        for packet in 0..100 {
            controller.on_sent(sent(packet), size, packet);
        }
        for packet in lost..100 {
            controller.arrived(sent(packet) + rtt, sent(packet), size, false);
        }
        if lost > 0 {
            controller.on_congestion_event(sent(100) + rtt, sent(lost), false, lost * size);
        }
        controller.on_end_acks(sent(100) + rtt, 0, false, Some(100));
        handle.is_start_on_trial()
    };
    assert!(!round(0, 0));
    assert!(round(1, 50));
    let rounds = (2..20).take_while(|number| round(*number, 0)).count();
    assert!((6..10).contains(&rounds), "{rounds}");
    assert!(!round(20, 50), "it goes on once");
}

#[tokio::test]
async fn the_handle_tells_that_a_path_was_left() {
    use futures_util::FutureExt as _;

    let (handle, start) = (CongestionHandle::default(), Instant::now());
    let factory = Arc::new(Factory::<Cubic>::new(handle.clone()));
    let before = factory.build(start, MTU);
    // A change of port copies the controller, see `PathData::from_previous` of quinn-proto.
    let after = before.clone_box();
    assert_eq!(handle.path_left().now_or_never(), None);
    drop(after);
    assert_eq!(handle.path_left().now_or_never(), Some(()));
}
