//! Turns, drops and floods.

use std::{collections::HashMap, iter::once, time::Duration};

use proptest::prelude::*;

use super::*;

fn usual() -> Tolerance {
    Tolerance::of(Duration::ZERO)
}

const MS: Duration = Duration::from_millis(1);
const BULK: Flow = Flow { hash: 1, is_tcp: true };
const KEYS: Flow = Flow { hash: 2, is_tcp: true };
const VOICE: Flow = Flow { hash: 3, is_tcp: false };

fn packet(flow: Flow, length: usize) -> Packet {
    vec![0x40 | flow.hash as u8; length].into()
}

/// The flow's hash, or whatever else stands in the first byte.
fn number(packet: &Packet) -> u64 {
    u64::from(packet.ip()[0] & 0x0f)
}

fn drain(fair: &mut Fair, now: Instant) -> (Vec<u64>, Dropped) {
    let mut dropped = Dropped::default();
    let mut flows = Vec::new();
    while let Some((_, packet)) = fair.pop(now, usual(), None, &mut dropped) {
        flows.push(number(&packet));
    }
    (flows, dropped)
}

#[test]
fn a_keystroke_overtakes_an_upload() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    for _ in 0..100 {
        fair.push(BULK, once(packet(BULK, 1400)), now, &mut dropped);
    }
    for _ in 0..10 {
        fair.pop(now, usual(), None, &mut dropped).unwrap();
    }
    fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
    assert_eq!(number(&fair.pop(now, usual(), None, &mut dropped).unwrap().1), 2);
}

/// While a path is late they leave out of turn. Later they owe nothing.
#[test]
fn what_left_out_of_turn_is_not_paid_for_later() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    let key = || once(packet(KEYS, 200));
    fair.push(BULK, (0..100).map(|_| packet(BULK, 1400)), now, &mut dropped);
    fair.push(KEYS, (0..8).map(|_| packet(KEYS, 200)), now, &mut dropped);
    (0..6).for_each(|_| drop(fair.pop(now, usual(), None, &mut dropped)));
    for _ in 0..500 {
        fair.push(KEYS, key(), now, &mut dropped);
        assert_eq!(number(&fair.pop_sparse(now, usual(), &mut dropped).unwrap().1), 2);
    }
    fair.push(KEYS, key(), now, &mut dropped);
    let mut next = || number(&fair.pop(now, usual(), None, &mut dropped).unwrap().1);
    assert!((0..3).any(|_| next() == 2), "within one round");
}

#[test]
fn no_congestion_is_signalled_while_the_queue_is_patient() {
    let (mut fair, start, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    fair.push(BULK, (0..1000).map(|_| packet(BULK, 1400)), start, &mut dropped);
    let patient = Tolerance { target: Duration::MAX, ..usual() };
    let mut told = |times: std::ops::Range<u32>, tolerance| {
        // These packets understand the mark (ECN).
        let popped =
            times.filter_map(|at| fair.pop(start + at * MS, tolerance, None, &mut dropped));
        popped.filter(|(_, packet)| packet.ip()[1] & 0b11 == 0b11).count()
    };
    assert_eq!(told(0..500, patient), 0);
    assert!(told(500..700, usual()) > 0);
}

#[test]
fn the_flow_table_shrinks_after_a_flood() {
    for held in [false, true] {
        let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
        fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
        flood(&mut fair, held, false, now);
        assert!(fair.flows.capacity() > BUCKETS / 2);
        fair.shrink(20 * (28 + 2 * OVERHEAD), held, &mut dropped);
        assert!(fair.flows.capacity() <= 2 * SPARE, "{} places", fair.flows.capacity());
        let packets = fair.packets;
        assert_eq!(drain(&mut fair, now).0.len(), packets);
    }
}

#[test]
fn two_bulk_flows_share_by_bytes() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    for _ in 0..1000 {
        fair.push(BULK, once(packet(BULK, 1400)), now, &mut dropped);
        fair.push(VOICE, once(packet(VOICE, 200)), now, &mut dropped);
    }
    let mut bytes = [0_usize; 4];
    for _ in 0..500 {
        let (_, packet) = fair.pop(now, usual(), None, &mut dropped).unwrap();
        bytes[number(&packet) as usize] += packet.size();
    }
    let ratio = bytes[1] as f64 / bytes[3] as f64;
    assert!((0.8..1.25).contains(&ratio), "{bytes:?}");
}

#[test]
fn a_full_queue_drops_from_the_flow_that_fills_it() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    fair.push(KEYS, once(packet(KEYS, 80)), now, &mut dropped);
    for _ in 0..20 {
        fair.push(BULK, once(packet(BULK, 1000)), now, &mut dropped);
    }
    fair.shrink(10_000 + 12 * OVERHEAD, false, &mut dropped);
    assert_eq!((dropped.full, fair.bytes()), (11, 9080));
    assert!(drain(&mut fair, now).0.contains(&2));
}

#[test]
fn a_full_held_queue_keeps_the_oldest_tcp_packets() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    for number in 0..10 {
        fair.push(VOICE, once(packet(VOICE, 1000)), now, &mut dropped);
        fair.push(BULK, once(vec![0x40 | number; 900].into()), now, &mut dropped);
    }
    fair.shrink(4500 + 6 * OVERHEAD, true, &mut dropped);
    let kept: Vec<_> = drain(&mut fair, now).0;
    assert_eq!(kept, [0, 1, 2, 3, 4]);
}

/// As many packets of 28 bytes, each of another flow, and how many steps each took.
fn flood(fair: &mut Fair, held: bool, is_tcp: bool, now: Instant) -> f64 {
    const PACKETS: u64 = 100_000;
    let (before, mut dropped) = (fair.steps, Dropped::default());
    for number in 0..PACKETS {
        let flow = Flow { hash: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8, is_tcp };
        fair.push(flow, once(packet(flow, 28)), now, &mut dropped);
        fair.shrink(1 << 20, held, &mut dropped);
        assert!(fair.cost <= 1 << 20);
    }
    (fair.steps - before) as f64 / PACKETS as f64
}

#[test]
fn a_hundred_thousand_flows_cost_no_more_for_each_packet_than_one() {
    let now = Instant::now();
    for held in [false, true] {
        let mut fair = Fair::default();
        for is_tcp in [false, true, false] {
            let steps = flood(&mut fair, held, is_tcp, now);
            // One to come, one to go; those of the flood before have to go as well.
            assert!(steps <= 2.1, "{steps}, held: {held}, TCP: {is_tcp}");
            assert!(fair.flows.len() <= 2 * BUCKETS);
            let places = fair.buckets.iter().filter(|bucket| **bucket != NONE).count();
            let used = fair.flows.iter().filter(|queue| !queue.backlog.is_empty()).count();
            assert_eq!(places, used, "a flow with nothing in it does not stay");
        }
        let (before, packets) = (fair.steps, fair.packets as u64);
        let mut leave = || fair.pop_sparse(now, usual(), &mut Dropped::default()).is_some();
        (0..packets / 2).for_each(|_| assert!(leave()));
        drain(&mut fair, now);
        assert!(fair.steps - before <= 4 * packets, "{} for {packets}", fair.steps - before);
        assert!(fair.flows.capacity() <= 2 * SPARE, "nor does its place");
    }
}

#[test]
fn a_held_queue_keeps_tcp_against_a_flood_of_flows() {
    let (mut fair, now, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    fair.push(KEYS, (0..100).map(|_| packet(KEYS, 1400)), now, &mut dropped);
    flood(&mut fair, true, false, now);
    let kept = drain(&mut fair, now).0;
    assert!(kept.iter().filter(|flow| **flow == 2).count() >= 100);
}

#[test]
fn stale_packets_are_dropped_but_tcp_is_kept() {
    let (mut fair, start, mut dropped) = (Fair::default(), Instant::now(), Dropped::default());
    fair.push(VOICE, once(packet(VOICE, 100)), start, &mut dropped);
    fair.push(KEYS, once(packet(KEYS, 100)), start, &mut dropped);
    let later = start + Duration::from_secs(90);
    fair.push(VOICE, once(packet(VOICE, 200)), later, &mut dropped);
    assert_eq!(dropped.stale, 1, "already when the next one comes");
    let (mut flows, _) = drain(&mut fair, later + 500 * MS);
    flows.sort_unstable();
    assert_eq!(flows, [2, 3]);
    fair.push(VOICE, once(packet(VOICE, 100)), start, &mut dropped);
    assert_eq!(drain(&mut fair, later), (vec![], Dropped { stale: 1, ..Dropped::default() }));
}

proptest! {
    #[test]
    fn every_packet_leaves_once_or_is_counted_and_flows_keep_their_order(
        steps in proptest::collection::vec((0u64..7, 40usize..1500, any::<bool>(), 0u64..20), 1..300),
        capacity in 2000usize..60_000,
    ) {
        let (mut fair, mut now) = (Fair::default(), Instant::now());
        let (mut dropped, mut thrift) = (Dropped::default(), None::<Thrift>);
        let (mut pushed, mut popped) = (0_u64, 0_u64);
        let mut last = HashMap::new();
        let mut check = |packet: Packet| {
            let number = u64::from_be_bytes(packet.ip()[8..16].try_into().unwrap());
            let flow = u64::from_be_bytes(packet.ip()[..8].try_into().unwrap());
            let before = last.insert(flow, number);
            before.is_none_or(|before| before < number)
        };
        for (hash, length, pop, pause) in steps {
            now += Duration::from_millis(pause);
            if hash == 6 {
                thrift = pop.then(|| Thrift::new(now));
                if !pop {
                    fair.release();
                }
                now += Duration::from_secs(pause / 4);
            }
            let flow = Flow { hash, is_tcp: hash % 2 == 0 };
            let mut bytes = vec![0; length];
            bytes[..8].copy_from_slice(&hash.to_be_bytes());
            bytes[8..16].copy_from_slice(&pushed.to_be_bytes());
            fair.push(flow, once(bytes.into()), now, &mut dropped);
            fair.shrink(capacity, false, &mut dropped);
            pushed += 1;
            prop_assert!(fair.cost <= capacity);
            let next = match (pop, pushed % 3) {
                (true, 0) => fair.pop_sparse(now, usual(), &mut dropped),
                (true, _) => fair.pop(now, usual(), thrift.as_mut(), &mut dropped),
                (false, _) => None,
            };
            if let Some((_, packet)) = next {
                popped += 1;
                prop_assert!(check(packet));
            }
        }
        let ready = fair.ready_at(thrift.as_ref().map(Thrift::next));
        let is_ready = ready.is_some_and(|ready| ready.is_now(now));
        prop_assert!(is_ready || fair.pop(now, usual(), thrift.as_mut(), &mut dropped).is_none());
        fair.release();
        while let Some((_, packet)) = fair.pop(now, usual(), None, &mut dropped) {
            popped += 1;
            prop_assert!(check(packet));
        }
        prop_assert_eq!(pushed, popped + dropped.full + dropped.stale + dropped.slow);
        prop_assert_eq!((fair.packets, fair.bytes, fair.cost), (0, 0, 0));
        prop_assert!(fair.lists.new.is_empty() && fair.lists.old.is_empty() && fair.lists.bulk.is_empty());
        prop_assert!(!fair.has_sparse());
        prop_assert!(fair.buckets.iter().all(|bucket| *bucket == NONE));
        prop_assert!(fair.sizes.iter().all(|sizes| sizes.largest().is_none()));
    }
}
