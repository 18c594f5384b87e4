//! Both sides over a network in virtual time that loses, repeats and reorders.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    tunnel::{
        flow::tests::of_flow,
        pool::{Pool, Share},
    },
    wire::{
        datagram::Datagram,
        numbered::{Exchange, Missing, Numbered, Range, Resume, Short},
        packet::Packet,
    },
};

const MS: Duration = Duration::from_millis(1);

/// A network, with probabilities in thousandths.
#[derive(Clone, Copy, Debug)]
struct Network {
    loss: u64,
    duplicates: u64,
    one_way: Duration,
    jitter: Duration,
}

impl Network {
    fn losing(loss: u64) -> Self {
        Self { loss, duplicates: 0, one_way: 20 * MS, jitter: Duration::ZERO }
    }

    fn rtt(&self) -> Duration {
        2 * self.one_way + self.jitter
    }
}

/// A datagram under way, in the order of arrival: its way, when it was sent, and what it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight(std::cmp::Reverse<(Duration, u64)>, bool, Duration, Bytes);

/// The two sides of a stream of packets. Either may be the client, which moves and asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

struct World {
    network: Network,
    /// The round trip that QUIC measures, if it is another one than the network's.
    measured: Option<Duration>,
    seed: u64,
    start: Instant,
    now: Duration,
    sender: Sender,
    receiver: Receiver,
    flights: BinaryHeap<Flight>,
    count: u64,
    /// Acknowledgements under way: when they arrive, and when what they acknowledge was sent.
    acks: BTreeSet<(Duration, Duration)>,
    acknowledged: Option<Instant>,
    /// When the present path began.
    began: Option<Instant>,
    exchanges: Exchanges,
    client: Side,
    /// By flow: number within it and time of delivery.
    delivered: BTreeMap<u16, Vec<(u32, Duration)>>,
    events: Events,
    /// Datagrams, and the most bytes of memory on either side.
    sent: u64,
    kept: usize,
}

/// Flows from this number on are UDP.
const DATAGRAMS: u16 = 1000;

/// The `number`-th packet of a flow.
fn packet(port: u16, number: u32, length: usize) -> Packet {
    let is_tcp = port < DATAGRAMS;
    let mut bytes = of_flow(false, if is_tcp { 6 } else { 17 }, port, length.max(44));
    bytes[32] = 0x50;
    bytes[40..44].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

impl World {
    fn new(network: Network, seed: u64) -> Self {
        Self {
            network,
            measured: None,
            seed,
            start: Instant::now(),
            now: Duration::ZERO,
            sender: Sender::default(),
            receiver: Receiver::default(),
            flights: BinaryHeap::new(),
            count: 0,
            acks: BTreeSet::new(),
            acknowledged: None,
            began: None,
            exchanges: Exchanges::default(),
            client: Side::Sender,
            delivered: BTreeMap::new(),
            events: Events::default(),
            sent: 0,
            kept: 0,
        }
    }

    /// A number below `below` (SplitMix64).
    fn draw(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.seed;
        it = (it ^ it >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ it >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (it ^ it >> 31) % below.max(1)
    }

    fn moment(&self) -> Moment {
        let rtt = self.measured.unwrap_or(self.network.rtt());
        Moment { now: self.start + self.now, rtt }
    }

    fn transmit(&mut self, forward: bool, datagram: &Bytes) {
        self.sent += 1;
        let copies = 1 + u64::from(self.draw(1000) < self.network.duplicates);
        for _ in 0..copies {
            if self.draw(1000) >= self.network.loss {
                self.count += 1;
                let jitter = self.draw(self.network.jitter.as_micros() as u64 + 1);
                let at = self.now + self.network.one_way + Duration::from_micros(jitter);
                let order = std::cmp::Reverse((at, self.count));
                self.flights.push(Flight(order, forward, self.now, datagram.clone()));
            }
        }
    }

    /// What is acknowledged by now.
    fn acknowledge(&mut self) {
        while let Some((arrives, sent)) = self.acks.first().copied()
            && arrives <= self.now
        {
            self.acks.pop_first();
            self.acknowledged = self.acknowledged.max(Some(self.start + sent));
        }
        if self.sender.acknowledged(self.acknowledged, self.began, self.moment()) {
            self.exchanges.begin(self.start + self.now);
            self.client = Side::Sender;
        }
    }

    /// The path is left; what is under way on it is lost if it `is_dead`.
    fn switch(&mut self, one_way: Duration, is_dead: bool, client: Side) {
        self.acknowledge();
        if is_dead {
            self.flights.clear();
            self.acks.clear();
            self.exchanges.begin_anew(self.start + self.now);
        }
        (self.began, self.client) = (Some(self.start + self.now), client);
        self.receiver.path_changed(self.moment());
        self.network.one_way = one_way;
        self.ask();
    }

    fn ask(&mut self) {
        let Some(question) = self.exchanges.question(self.start + self.now) else { return };
        let exchange = Exchange { id: question.id, is_answer: false };
        match self.client {
            Side::Sender => {
                self.transmit(true, &Resume::encode(exchange, 0, []));
                if question.is_first {
                    self.sender.moved(self.moment());
                    self.repeat();
                }
            }
            Side::Receiver => {
                let question = self.receiver.resume(exchange, self.moment());
                self.transmit(false, &question);
            }
        }
    }

    fn resumed(&mut self, forward: bool, resume: &Resume) {
        let (now, moment) = (self.start + self.now, self.moment());
        let Exchange { id, is_answer } = resume.exchange;
        let mut since = self.began.max(now.checked_sub(moment.rtt)).unwrap();
        if is_answer {
            let Some(asked) = self.exchanges.answered(id) else { return };
            since = asked;
        } else {
            let answer = Exchange { id, is_answer: true };
            let answer = match forward {
                true => self.receiver.resume(answer, moment),
                false => Resume::encode(answer, 0, []),
            };
            self.transmit(!forward, &answer);
        }
        if !forward {
            self.sender.resumed(resume, since, moment);
            self.repeat();
        }
    }

    fn repeat(&mut self) {
        while let Some(datagram) = self.sender.repeat(usize::MAX, self.start + self.now) {
            self.transmit(true, &datagram);
        }
    }

    fn send(&mut self, batch: &[Packet]) {
        let mut datagrams = Vec::new();
        self.acknowledge();
        self.sender.number(batch, self.moment(), &mut datagrams);
        for datagram in datagrams {
            self.transmit(true, &datagram);
        }
        self.kept = self.kept.max(self.sender.kept());
    }

    /// Lets time pass.
    fn run_until(&mut self, end: Duration) {
        loop {
            let deadline = [
                self.sender.next_deadline(),
                self.receiver.next_deadline(),
                self.exchanges.next_deadline(),
            ];
            let deadline = deadline.into_iter().flatten().min();
            // Timers are late.
            let timer = deadline.map(|at| at.max(self.start) - self.start + MS / 2);
            let flight = self.flights.peek().map(|flight| flight.0.0.0);
            let Some(next) = timer.into_iter().chain(flight).min().filter(|next| *next <= end)
            else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.acknowledge();
            let mut batch = Vec::new();
            if flight == Some(next) {
                let Some(Flight(_, forward, sent, datagram)) = self.flights.pop() else {
                    unreachable!()
                };
                if forward && self.draw(1000) >= self.network.loss {
                    self.acks.insert((self.now + self.network.one_way, sent));
                }
                self.arrive(forward, datagram, &mut batch);
            }
            self.ask();
            if let Some(request) = self.receiver.expire(self.moment(), &mut batch) {
                self.transmit(false, &request);
            }
            while let Some(tail) = self.sender.tail(self.moment()) {
                self.transmit(true, &tail);
            }
            self.deliver(batch);
        }
    }

    fn arrive(&mut self, forward: bool, datagram: Bytes, batch: &mut Vec<Packet>) {
        match Datagram::decode(datagram).unwrap() {
            Datagram::Numbered(numbered) => {
                self.receiver.receive(numbered, self.moment(), batch);
            }
            Datagram::Next(next) => self.receiver.next_is(next, self.moment(), batch),
            Datagram::Missing(missing) => {
                self.sender.asked(&missing, self.moment());
                self.repeat();
            }
            Datagram::Resume(resume) => self.resumed(forward, &resume),
            Datagram::Packet(packet) => batch.push(packet),
            other @ (Datagram::Fragment(_) | Datagram::Padding) => panic!("{other:?}"),
        }
        self.kept = self.kept.max(self.receiver.kept());
    }

    fn deliver(&mut self, batch: Vec<Packet>) {
        for packet in batch {
            let ip = packet.ip();
            if packet == bare_ack() {
                continue;
            }
            let port = u16::from_be_bytes([ip[20], ip[21]]);
            let number = u32::from_be_bytes(ip[40..44].try_into().unwrap());
            self.delivered.entry(port).or_default().push((number, self.now));
        }
        let Events { repaired, given_up, awaited, duplicates } = self.receiver.take_events();
        self.events.repaired += repaired;
        self.events.given_up += given_up;
        self.events.awaited += awaited;
        self.events.duplicates += duplicates;
    }

    /// Has `flows` flows send `count` packets of `length` bytes each, one every `interval`, and waits for the rest.
    fn stream(&mut self, flows: u16, count: u32, length: usize, interval: Duration) {
        for number in 0..count {
            for port in 0..flows {
                self.send(&[packet(port, number, length)]);
            }
            self.run_until(self.now + interval);
        }
        self.rest();
    }

    fn rest(&mut self) {
        self.run_until(self.now + Duration::from_secs(10));
        assert_eq!(self.receiver.next_deadline(), None, "nothing is outstanding");
        assert_eq!(self.sender.next_deadline(), None, "nothing is outstanding");
        assert_eq!((self.receiver.kept(), self.sender.kept()), (0, 0));
    }

    /// How many packets were not delivered. The others came once, and in the order of their flow but for those that
    /// came after they had been given up.
    fn lost(&self, flows: u16, count: u32) -> usize {
        let (mut lost, mut late) = (0, 0);
        for port in 0..flows {
            let (mut seen, mut highest) = (BTreeSet::new(), None);
            for (number, _) in self.delivered.get(&port).into_iter().flatten() {
                assert!(seen.insert(*number), "{number} of flow {port} came twice");
                late += u64::from(port < DATAGRAMS && Some(*number) < highest);
                highest = highest.max(Some(*number));
            }
            lost += count as usize - seen.len();
        }
        assert!(late <= self.events.given_up, "{late} out of order: {:?}", self.events);
        lost
    }
}

#[test]
fn nothing_is_lost_and_little_is_late_at_one_percent() {
    for seed in 0..20 {
        let mut world = World::new(Network::losing(10), seed);
        world.stream(3, 1000, 1400, MS / 2);
        assert_eq!(world.lost(3, 1000), 0, "seed {seed}");
        assert!(world.events.repaired > 10 && world.events.given_up == 0, "{:?}", world.events);
        assert!(world.events.duplicates < 6, "{:?}", world.events);
    }
}

#[test]
fn next_to_nothing_is_lost_at_five_percent() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut world = World::new(Network::losing(50), seed);
        world.stream(3, 1000, 1400, MS / 2);
        lost += world.lost(3, 1000);
    }
    assert!(lost <= 6, "{lost} of 60,000, of which 3,000 were lost at first");
}

#[test]
fn a_lossless_network_costs_a_tail_and_nothing_else() {
    let mut world = World::new(Network::losing(0), 1);
    world.stream(2, 1000, 1400, MS);
    assert_eq!(world.lost(2, 1000), 0);
    assert_eq!(world.sent, 2000 + 1);
    assert_eq!(world.events, Events::default());
}

#[test]
fn the_last_packet_is_not_lost_without_notice() {
    let network = Network::losing(0);
    for length in [60, 1400] {
        let mut world = World::new(network, 1);
        world.stream(1, 5, length, MS);
        // The next one is lost, and no other one follows.
        world.network.loss = 1000;
        let sent = world.now;
        world.send(&[packet(0, 5, length)]);
        world.network.loss = 0;
        world.rest();
        assert_eq!(world.lost(1, 6), 0);
        let took = world.delivered[&0][5].1 - sent;
        // A small one comes with the tail itself.
        let bound = if length < 256 { network.one_way + 10 * MS } else { network.rtt() * 2 };
        assert!(took <= bound, "{length} bytes took {took:?}");
    }
}

#[test]
fn only_its_own_flow_waits_for_a_packet() {
    let mut world = World::new(Network::losing(0), 1);
    // One of a flow, and all others.
    let batch = |number| (0..50).map(|port| packet(port, number, 600)).collect::<Vec<_>>();
    world.send(&batch(0));
    world.run_until(50 * MS);
    world.network.loss = 1000;
    world.send(&batch(1)[..1]);
    world.network.loss = 0;
    world.send(&batch(1)[1..]);
    world.send(&batch(2));
    world.run_until(75 * MS);
    let flows_on_time = world.delivered.values().filter(|it| it.len() == 3).count();
    assert_eq!(world.delivered[&0].len(), 1);
    // Others may share its bucket.
    assert!(flows_on_time >= 47, "{flows_on_time}");
    world.rest();
    assert_eq!(world.lost(50, 3), 0);
}

#[test]
fn a_network_that_reorders_is_learnt() {
    let network = Network { jitter: 20 * MS, ..Network::losing(0) };
    let mut world = World::new(network, 3);
    world.stream(1, 4000, 1400, MS);
    assert_eq!(world.lost(1, 4000), 0);
    let asked_in_vain = world.sent - 4000;
    assert!(asked_in_vain < 100, "{asked_in_vain}");
}

/// QUIC measures the round trip by the packets that overtake others.
#[test]
fn a_network_that_reorders_by_far_more_than_a_round_trip_is_learnt() {
    for seed in 0..5 {
        let network = Network { jitter: 40 * MS, one_way: MS, ..Network::losing(10) };
        let mut world = World::new(network, seed);
        world.measured = Some(6 * MS);
        world.stream(1, 10_000, 1400, MS / 2);
        // Three losses of one packet in a row.
        assert!(world.lost(1, 10_000) == 0 && world.events.given_up <= 3, "{:?}", world.events);
        // A request and its answer for each of a hundred, and what it takes to learn.
        let more = world.sent - 10_000;
        assert!(more < 400, "{more}");
        let missed = world.sender.take_missed() / 1400;
        assert!((90..250).contains(&missed), "{missed}");
    }
}

#[test]
fn what_comes_twice_was_asked_for_too_early() {
    let (start, mut receiver, mut batch) = (Instant::now(), Receiver::default(), Vec::new());
    let moment = |at| Moment { now: start + at * MS, rtt: 10 * MS };
    let take = |receiver: &mut Receiver, number: u32, at| {
        let packet = packet(0, number, 1400);
        let numbered = Numbered { number: Short::of(number.into()), back: 0, packet };
        receiver.receive(numbered, moment(at), &mut Vec::new());
    };
    let mut waits = |receiver: &mut Receiver, at| {
        (at..at + 100).find(|at| receiver.expire(moment(*at), &mut batch).is_some()).unwrap() - at
    };
    take(&mut receiver, 0, 0);
    take(&mut receiver, 2, 0);
    assert_eq!(waits(&mut receiver, 0), 2);
    // Either the original or the answer, and then the other one.
    take(&mut receiver, 1, 12);
    take(&mut receiver, 1, 20);
    take(&mut receiver, 4, 40);
    assert_eq!(waits(&mut receiver, 40), 2, "one may be an accident");
    take(&mut receiver, 3, 52);
    take(&mut receiver, 3, 60);
    take(&mut receiver, 6, 80);
    assert_eq!(waits(&mut receiver, 80), 15, "5/4 of 12 ms");
    take(&mut receiver, 5, 105);
    // A network that sends everything twice says nothing.
    take(&mut receiver, 5, 106);
    take(&mut receiver, 8, 120);
    assert!((13..=15).contains(&waits(&mut receiver, 120)));
    take(&mut receiver, 7, 145);
    take(&mut receiver, 10, 3000);
    let half = waits(&mut receiver, 3000);
    assert!((7..=9).contains(&half), "half is forgotten: {half}");
    receiver.path_changed(moment(3020));
    take(&mut receiver, 9, 3020);
    take(&mut receiver, 12, 4200);
    assert_eq!(waits(&mut receiver, 4200), 2, "the next path is another one");
}

#[test]
fn what_the_other_side_misses_is_counted_once() {
    let mut world = World::new(Network::losing(0), 1);
    let missing = |attempt| {
        let ranges = [Range { first: Short::of(3), count: 4, attempt }];
        let Datagram::Missing(missing) = Datagram::decode(Missing::encode(&ranges)).unwrap() else {
            panic!()
        };
        missing
    };
    for number in 0..10 {
        world.send(&[packet(0, number, 1400)]);
    }
    let mut ask = |attempt| {
        world.sender.asked(&missing(attempt), world.moment());
        world.sender.take_missed() / 1400
    };
    assert_eq!((ask(1), ask(1), ask(2)), (4, 0, 0), "they wait to be sent again");
    world.repeat();
    let mut ask = |attempt| {
        world.sender.asked(&missing(attempt), world.moment());
        world.sender.take_missed() / 1400
    };
    assert_eq!(ask(2), 0, "it is under way");
}

#[test]
fn what_the_path_before_lost_is_not_counted() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 40 * MS };
    let mut missed = |first: u64, at| {
        let ranges = [Range { first: Short::of(first), count: 2, attempt: 1 }];
        let Datagram::Missing(missing) = Datagram::decode(Missing::encode(&ranges)).unwrap() else {
            panic!()
        };
        sender.number(&[packet(0, first as u32, 1400)], moment(at), &mut Vec::new());
        sender.number(&[packet(0, first as u32 + 1, 1400)], moment(at + 10), &mut Vec::new());
        let _ = sender.acknowledged(None, Some(start + 5 * MS), moment(at + 40));
        sender.asked(&missing, moment(at + 40));
        sender.take_missed() / 1400
    };
    assert_eq!(missed(0, 0), 1, "one was sent before the path began");
    assert_eq!(missed(2, 60), 2);
}

#[test]
fn what_never_comes_is_given_up_in_time() {
    let mut world = World::new(Network::losing(0), 1);
    world.stream(1, 2, 1400, MS);
    let sent = world.now;
    let mut datagrams = Vec::new();
    // It is lost, and so are all repetitions.
    world.sender.number(&[packet(0, 2, 1400)], world.moment(), &mut datagrams);
    world.send(&[packet(0, 3, 1400)]);
    let lost = datagrams.remove(0);
    for _ in 0..200 {
        world.flights = std::mem::take(&mut world.flights)
            .into_iter()
            .filter(|Flight(.., datagram)| *datagram != lost)
            .collect();
        world.run_until(world.now + MS);
    }
    world.rest();
    assert_eq!((world.events.given_up, world.events.awaited), (1, 1));
    let took = world.delivered[&0].last().unwrap().1 - sent;
    assert!((170 * MS..=195 * MS).contains(&took), "{took:?}");
    assert_eq!(world.lost(1, 4), 1);
}

#[test]
fn a_request_is_answered_once_in_a_round_trip_and_in_measure() {
    let mut world = World::new(Network::losing(0), 1);
    let range = |at: u64| Range { first: Short::of(at * 200), count: 200, attempt: 255 };
    let everything = Missing::encode(&(0..20).map(range).collect::<Vec<_>>());
    let Datagram::Missing(everything) = Datagram::decode(everything).unwrap() else { panic!() };
    assert!(!world.sender.asked(&everything, world.moment()), "there is nothing yet");
    for number in 0..1000 {
        world.send(&[packet(0, number, 1400)]);
        world.now += MS / 10;
    }
    let mut repeated = 0;
    for _ in 0..100 {
        world.sender.asked(&everything, world.moment());
        while world.sender.repeat(usize::MAX, world.moment().now).is_some() {
            repeated += 1_usize;
        }
    }
    // Three copies of each.
    assert!((64 + 1000 / 4..64 + 1000 / 4 + 3).contains(&repeated), "{repeated}");
}

/// Lossy and jittery first, so that late packets are waited for; then near and in order.
#[test]
fn what_a_slow_network_taught_leaves_time_for_repairs_on_a_fast_one() {
    let slow = Network { loss: 10, duplicates: 0, one_way: 20 * MS, jitter: 60 * MS };
    let mut world = World::new(slow, 1);
    world.stream(1, 1000, 300, MS);
    world.network = Network { loss: 20, duplicates: 0, one_way: 2 * MS, jitter: Duration::ZERO };
    let before = world.events;
    for number in 1000..3000 {
        world.send(&[packet(0, number, 300)]);
        world.run_until(world.now + MS);
    }
    world.network.loss = 0;
    world.rest();
    let given_up = world.events.given_up - before.given_up;
    let repaired = world.events.repaired - before.repaired;
    assert!(repaired > 20 && given_up <= 1, "{repaired} repaired, {given_up} given up");
}

/// Every second one of four million numbers that were given up.
#[test]
fn what_was_given_up_stays_bounded_when_it_comes_all_the_same() {
    let mut world = World::new(Network::losing(0), 1);
    let send = |world: &mut World, number: u64| {
        let mut bytes = bytes::BytesMut::new();
        Numbered::write(number, 0, packet(0, 0, 60).datagram(), &mut bytes);
        world.arrive(true, bytes.freeze(), &mut Vec::new());
    };
    for jump in 1..=64 {
        send(&mut world, jump * 4097);
    }
    world.run_until(world.now + Duration::from_secs(1));
    for number in (0..64 * 4097).step_by(2) {
        send(&mut world, number);
    }
    assert!(world.receiver.given_up_ranges() <= 1024, "{}", world.receiver.given_up_ranges());
}

#[test]
fn nonsense_is_cheap_and_forgotten() {
    let mut world = World::new(Network::losing(0), 1);
    // 100,000 jumps by millions, each with a held packet.
    for step in 0..100_000_u64 {
        let mut bytes = bytes::BytesMut::new();
        Numbered::write(
            step * 1_000_003,
            (step % 3) as u16,
            packet(0, 0, 60).datagram(),
            &mut bytes,
        );
        let mut batch = Vec::new();
        world.arrive(true, bytes.freeze(), &mut batch);
        world.now += Duration::from_micros(10);
        let _ = world.receiver.expire(world.moment(), &mut batch);
    }
    assert!(world.kept <= 4096 * 512, "{}", world.kept);
    world.run_until(world.now + Duration::from_secs(1));
    assert_eq!(world.receiver.kept(), 0);
}

/// A TCP packet without data.
fn bare_ack() -> Packet {
    let mut bytes = of_flow(false, 6, 9, 40);
    bytes[32] = 0x50;
    bytes.into()
}

#[test]
fn a_lone_keystroke_costs_one_packet_more() {
    let mut world = World::new(Network::losing(0), 1);
    for number in 0..10 {
        world.send(&[packet(0, number, 80)]);
        world.run_until(world.now + 200 * MS);
    }
    assert_eq!(world.sent, 20);
    assert_eq!(world.lost(1, 10), 0);
}

#[test]
fn streams_of_datagrams_and_acknowledgements_cost_nothing_more() {
    let mut world = World::new(Network::losing(0), 1);
    for number in 0..100 {
        world.send(&[packet(DATAGRAMS, number, 200), bare_ack()]);
        world.run_until(world.now + 20 * MS);
    }
    world.rest();
    assert_eq!((world.sent, world.delivered[&DATAGRAMS].len()), (200, 100));
}

/// One of each kind is lost on networks of 40, 80 and 120 ms.
#[test]
fn a_datagram_is_repeated_while_it_is_of_use_and_a_bare_acknowledgement_never() {
    for (one_way, repaired) in [(20 * MS, 2), (40 * MS, 2), (60 * MS, 1)] {
        let mut world = World::new(Network { one_way, ..Network::losing(0) }, 1);
        world.send(&[packet(0, 0, 200), packet(DATAGRAMS, 0, 200)]);
        world.run_until(world.now + 300 * MS);
        world.network.loss = 1000;
        world.send(&[packet(0, 1, 200), packet(DATAGRAMS, 1, 200), bare_ack()]);
        world.network.loss = 0;
        world.send(&[packet(0, 2, 200), packet(DATAGRAMS, 2, 200)]);
        world.rest();
        assert_eq!(world.events.repaired, repaired, "{one_way:?}");
        assert_eq!(world.events.given_up, 3 - repaired);
        assert_eq!(world.events.awaited, 0, "nothing waited for them");
        assert_eq!(world.lost(1, 3), 0);
    }
}

/// A connection that uploads, a keystroke each 50 ms, and a call; the path dies, and 400 ms later another one is used.
#[test]
fn what_a_path_takes_with_it_comes_over_the_next_one_small_packets_first() {
    for client in [Side::Sender, Side::Receiver] {
        let mut world = World::new(Network { one_way: 5 * MS, ..Network::losing(0) }, 1);
        let send = |world: &mut World, at: u32| {
            world.send(&[packet(1, at, 1400), packet(DATAGRAMS, at, 160)]);
            if at.is_multiple_of(5) {
                world.send(&[packet(0, at / 5, 80)]);
            }
            world.run_until(world.now + 10 * MS);
        };
        (0..100).for_each(|at| send(&mut world, at));
        world.network.loss = 1000;
        (100..140).for_each(|at| send(&mut world, at));
        world.network.loss = 0;
        let (switched, before) = (world.now, world.events.duplicates);
        world.switch(25 * MS, true, client);
        (140..200).for_each(|at| send(&mut world, at));
        world.rest();
        for (port, count) in [(0, 40), (1, 200), (DATAGRAMS, 200)] {
            let delivered = world.delivered[&port].iter().map(|(number, _)| *number);
            let mut delivered: Vec<_> = delivered.collect();
            if client == Side::Receiver && port == DATAGRAMS {
                // Those that are sent before the question comes are there first.
                delivered.sort_unstable();
            }
            assert!(delivered.into_iter().eq(0..count), "{client:?}: flow {port}");
        }
        let late = |port: u16, number: usize| world.delivered[&port][number].1 - switched;
        // The sender does not wait for an answer if it is the one that moves.
        let small = if client == Side::Sender { 30 } else { 55 };
        assert!(late(0, 27) <= small * MS, "{client:?}: {:?}", late(0, 27));
        assert!(late(DATAGRAMS, 139) <= small * MS, "{client:?}");
        assert!(late(1, 139) <= 80 * MS, "{client:?}: {:?}", late(1, 139));
        assert_eq!(world.events.given_up, 0, "{client:?}: {:?}", world.events);
        let copies = world.events.duplicates - before;
        assert!(copies <= 20, "{client:?}: {:?}", world.events);
    }
}

/// 50 kbit/s: packets are numbered one second before they leave, 224 ms apart.
#[test]
fn a_slow_link_is_not_silent_between_its_acknowledgements() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let mut silent = Vec::new();
    for at in 0..40 {
        let numbered = start + at * 224 * MS;
        let moment = Moment { now: numbered, rtt: 300 * MS };
        sender.number(&[packet(0, at, 1400)], moment, &mut Vec::new());
        let left = (at >= 5).then(|| numbered - 5 * 224 * MS + 1000 * MS);
        // Nothing comes for a while.
        if !(20..30).contains(&at) && sender.acknowledged(left, Some(start), moment) {
            silent.push(at);
        }
    }
    assert_eq!(silent, [30]);
}

#[test]
fn what_was_just_sent_again_is_not_sent_a_third_time_over_the_same_path() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 40 * MS };
    let began = |at: u32| Some(start + at * MS);
    let repeated = |sender: &mut Sender, at| {
        sender.moved(moment(at));
        std::iter::from_fn(|| sender.repeat(usize::MAX, moment(at).now)).count()
    };
    let _ = sender.acknowledged(None, began(1), moment(1));
    sender.number(&[packet(0, 0, 80)], moment(2), &mut Vec::new());
    assert_eq!(repeated(&mut sender, 300), 1);
    assert_eq!(repeated(&mut sender, 320), 0);
    let _ = sender.acknowledged(None, began(330), moment(330));
    assert_eq!(repeated(&mut sender, 330), 1, "over another path");
}

#[test]
fn sessions_that_share_memory_keep_less_the_more_they_are() {
    let pool = Pool::new(4 << 20);
    let (now, rtt) = (Instant::now(), 40 * MS);
    let mut senders: Vec<_> = (0..8).map(|_| Sender::sharing(Share::of(pool.clone()))).collect();
    let batch: Vec<_> = (0..64).map(|number| packet(0, number, 1400)).collect();
    for _ in 0..100 {
        for sender in &mut senders {
            sender.number(&batch, Moment { now, rtt }, &mut Vec::new());
        }
    }
    let kept: Vec<_> = senders.iter().map(Sender::kept).collect();
    assert!(kept.iter().sum::<usize>() <= 4 << 20, "{kept:?}");
    let fair = (4 << 20) / 9;
    assert!(kept.iter().all(|kept| (fair / 2..2 * fair).contains(kept)), "{kept:?}");
    drop(senders);

    let mut receiver = Receiver::sharing(Share::of(pool));
    let mut batch = Vec::new();
    for number in (1..4000).step_by(2) {
        let numbered = Numbered { number: Short::of(number), back: 1, packet: packet(0, 0, 1400) };
        receiver.receive(numbered, Moment { now, rtt }, &mut batch);
    }
    assert!(receiver.kept() <= 2 << 20, "{}", receiver.kept());
    assert!(!batch.is_empty(), "what is not held is delivered");
}

/// All networks are silent for 20 s; meanwhile links come and go, and paths begin over which nothing arrives.
#[test]
fn what_a_long_outage_took_is_sent_again_when_it_ends_but_for_old_datagrams() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 40 * MS };
    let at = |at: u32| Some(start + at * MS);
    let send = |sender: &mut Sender, port, number, now| {
        sender.number(&[packet(port, number, 80)], moment(now), &mut Vec::new());
    };
    let _ = sender.acknowledged(None, at(0), moment(0));
    send(&mut sender, 0, 0, 100);
    let _ = sender.acknowledged(at(100), at(0), moment(140));
    for (number, now) in [(1, 200), (2, 600), (3, 1400), (4, 3000), (5, 6200), (6, 12_600)] {
        send(&mut sender, 0, number, now);
        send(&mut sender, DATAGRAMS, number, now);
        let _ = sender.acknowledged(at(100), at(now + 50), moment(now + 50));
    }
    send(&mut sender, 0, 7, 20_000);
    send(&mut sender, DATAGRAMS, 7, 20_000);
    let _ = sender.acknowledged(at(20_000), at(19_950), moment(20_040));
    let resume = Resume::encode(Exchange { id: 1, is_answer: true }, 1, []);
    let Ok(Datagram::Resume(resume)) = Datagram::decode(resume) else { panic!() };
    assert!(sender.resumed(&resume, start + 19_950 * MS, moment(20_050)));
    let mut repeated: Vec<_> =
        std::iter::from_fn(|| sender.repeat(usize::MAX, moment(20_050).now)).collect();
    repeated.dedup();
    assert_eq!(repeated.len(), 6, "the six of the connection");
    send(&mut sender, 0, 8, 20_500);
    let _ = sender.acknowledged(at(20_500), at(19_950), moment(20_540));
    send(&mut sender, 0, 9, 80_000);
    assert!(sender.kept() < 3 * 256, "old paths are forgotten: {}", sender.kept());
}

#[test]
fn what_the_standby_did_not_take_is_sent_again_after_a_switch() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 40 * MS };
    let packets: Vec<_> = (0..4).map(|number| packet(0, number, 80)).collect();
    let mut datagrams = Vec::new();
    sender.number(&packets, moment(0), &mut datagrams);
    let mut offered = Vec::new();
    let taken = sender.copy(moment(200), |datagram| {
        offered.push(datagram.clone());
        offered.len() % 2 == 1
    });
    assert_eq!((taken, &offered), (2, &datagrams));
    assert_eq!(sender.copy(moment(201), |_| true), 0, "each is offered once");
    sender.moved(moment(300));
    let repeated: Vec<_> =
        std::iter::from_fn(|| sender.repeat(usize::MAX, moment(300).now)).collect();
    assert_eq!(repeated, [datagrams[1].clone(), datagrams[3].clone()]);
}

#[test]
fn questions_without_end_have_a_packet_sent_again_three_times() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 10 * MS };
    sender.number(&[packet(0, 0, 80), packet(0, 1, 1400), bare_ack()], moment(0), &mut Vec::new());
    let question = Resume::encode(Exchange { id: 1, is_answer: false }, 0, []);
    let Ok(Datagram::Resume(question)) = Datagram::decode(question) else { panic!() };
    let mut repeated = 0;
    for at in 1..50 {
        let now = moment(50 * at);
        sender.resumed(&question, now.now - now.rtt, now);
        repeated += std::iter::from_fn(|| sender.repeat(usize::MAX, now.now)).count();
    }
    assert_eq!(repeated, 2 * 3);
}

#[test]
fn what_a_server_that_is_gone_may_not_have_got_is_taken_once_and_in_order() {
    let (start, mut sender) = (Instant::now(), Sender::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 10 * MS };
    let number = |sender: &mut Sender, at, packets: &[Packet]| {
        sender.number(packets, moment(at), &mut Vec::new());
    };
    number(&mut sender, 0, &[packet(0, 0, 80), packet(DATAGRAMS, 0, 80)]);
    let late = [packet(0, 1, 80), packet(0, 2, 1400), bare_ack(), packet(DATAGRAMS, 1, 80)];
    number(&mut sender, 10, &late);
    number(&mut sender, 20, &[packet(0, 3, 80)]);
    let _ = sender.acknowledged(Some(start + 5 * MS), None, moment(25));
    let taken = sender.take_unproven(moment(300).now);
    let expected = [(10, &late[0]), (10, &late[3]), (20, &packet(0, 3, 80))];
    let taken: Vec<_> = taken.iter().map(|(at, it)| (*at - start, it)).collect();
    assert_eq!(taken, expected.map(|(at, it)| (at * MS, it)));
    assert!(sender.is_empty() && sender.take_unproven(moment(300).now).is_empty());
    // It goes on with what comes.
    number(&mut sender, 400, &[packet(0, 4, 80), packet(DATAGRAMS, 2, 80)]);
    assert_eq!(sender.take_unproven(moment(1200).now).len(), 1, "a datagram is of no use for long");
}

#[test]
fn what_was_not_sent_leaves_the_ring() {
    let (now, mut sender) = (Instant::now(), Sender::default());
    let moment = Moment { now, rtt: 10 * MS };
    let packets: Vec<_> = (0..5).map(|number| packet(0, number, 80)).collect();
    sender.number(&packets, moment, &mut Vec::new());
    let mut unsent = packets[3..].to_vec();
    sender.take_unsent(&mut unsent);
    assert_eq!(unsent, packets[3..]);
    assert_eq!(sender.next_deadline().map(|at| at > now), Some(true));
    let taken: Vec<_> = sender.take_unproven(now).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(taken, packets[..3]);
    let mut unsent = packets[1..3].to_vec();
    sender.take_unsent(&mut unsent);
    assert_eq!((sender.kept(), unsent), (0, vec![]), "they were given back already");
}

/// Large packets are not given back, nor is what an acknowledgement of their batch seems to prove.
#[test]
fn what_was_not_sent_and_not_given_back_is_returned() {
    let (now, mut sender) = (Instant::now(), Sender::default());
    let moment = Moment { now, rtt: 10 * MS };
    let packets = [packet(0, 0, 80), packet(0, 1, 1200), packet(0, 2, 80)];
    for (is_proven, expected) in [(false, &packets[1..2]), (true, &packets[1..])] {
        sender.number(&packets, moment, &mut Vec::new());
        if is_proven {
            let _ = sender.acknowledged(Some(now), None, Moment { now: now + 10 * MS, ..moment });
        }
        let _ = sender.take_unproven(now + 10 * MS);
        let mut unsent = packets[1..].to_vec();
        sender.take_unsent(&mut unsent);
        assert_eq!(unsent, expected);
    }
}

#[test]
fn what_was_not_sent_is_not_lost_where_no_memory_is_left_for_it() {
    let (now, mut sender) = (Instant::now(), Sender::sharing(Share::of(Pool::new(0))));
    let packets: Vec<_> = (0..5).map(|number| packet(0, number, 80)).collect();
    sender.number(&packets, Moment { now, rtt: 10 * MS }, &mut Vec::new());
    assert_eq!(sender.kept(), 0);
    let mut unsent = packets.clone();
    sender.take_unsent(&mut unsent);
    assert_eq!(unsent, packets);
}

#[test]
fn what_copies_overtake_is_not_asked_for_within_a_round_trip() {
    let (start, mut receiver) = (Instant::now(), Receiver::default());
    let moment = |at: u32| Moment { now: start + at * MS, rtt: 40 * MS };
    let mut datagrams = Vec::new();
    let packets: Vec<_> = (0..3).map(|number| packet(0, number, 80)).collect();
    Sender::default().number(&packets, moment(0), &mut datagrams);
    let mut batch = Vec::new();
    for at in [0, 2] {
        let Ok(Datagram::Numbered(it)) = Datagram::decode(datagrams[at].clone()) else { panic!() };
        receiver.receive(it, moment(0), &mut batch);
    }
    receiver.wait_for_switch(moment(0));
    let asked = |at: &u32| receiver.expire(moment(*at), &mut batch).is_some();
    assert_eq!((1..100).find(asked), Some(40));
}

/// The other side has not kept it, and acknowledgements come in such a way that it begins one exchange after the other.
#[test]
fn a_flow_is_not_held_up_for_good_however_often_the_path_seems_silent() {
    for copies in [false, true] {
        let (start, mut receiver) = (Instant::now(), Receiver::default());
        let moment = |at: u32| Moment { now: start + at * MS, rtt: 20 * MS };
        let mut datagrams = Vec::new();
        let packets: Vec<_> = (0..3).map(|number| packet(0, number, 80)).collect();
        Sender::default().number(&packets, moment(0), &mut datagrams);
        let mut batch = Vec::new();
        for at in [0, 2] {
            let Ok(Datagram::Numbered(it)) = Datagram::decode(datagrams[at].clone()) else {
                panic!()
            };
            receiver.receive(it, moment(0), &mut batch);
        }
        assert_eq!(batch.len(), 1);
        let delivered = (0..10_000).find(|at| {
            if copies {
                receiver.wait_for_switch(moment(*at));
            } else if at % 400 == 0 {
                let _ = receiver.resume(Exchange { id: 1, is_answer: true }, moment(*at));
            }
            let _ = receiver.expire(moment(*at), &mut batch);
            batch.len() == 2
        });
        assert_eq!(delivered, Some(3000), "copies: {copies}");
    }
}

#[test]
fn nothing_is_asked_for_that_is_still_under_way_on_a_slower_path() {
    let mut world = World::new(Network { one_way: 150 * MS, ..Network::losing(0) }, 1);
    for number in 0..200 {
        if number == 100 {
            world.switch(10 * MS, false, Side::Sender);
        }
        world.send(&[packet(0, number, 1400), packet(DATAGRAMS, number, 160)]);
        world.run_until(world.now + 5 * MS);
    }
    world.rest();
    assert_eq!(world.lost(1, 200), 0);
    assert_eq!(world.events, Events::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_path_that_dies_takes_nothing_with_it(
        seed in any::<u64>(),
        silences in proptest::collection::vec((0u32..2000, 1u32..150), 1..4),
        is_sender in any::<bool>(),
        loss in 0u64..20,
    ) {
        let mut world = World::new(Network { one_way: 5 * MS, ..Network::losing(0) }, seed);
        let client = if is_sender { Side::Sender } else { Side::Receiver };
        let mut number = 0;
        let mut send = |world: &mut World, duration: Duration| {
            let end = world.now + duration;
            while world.now < end {
                world.send(&[packet(0, number, 80), packet(1, number, 1400)]);
                world.send(&[packet(DATAGRAMS, number, 160)]);
                world.run_until(world.now + 10 * MS);
                number += 1;
            }
        };
        let mut lossy = Vec::new();
        for (silence, one_way) in silences {
            send(&mut world, 500 * MS);
            world.network.loss = 1000;
            send(&mut world, silence * MS);
            world.network.loss = loss;
            world.switch(one_way * MS, true, client);
            let before = world.now;
            send(&mut world, 1000 * MS);
            lossy.push(before..world.now);
            world.network.loss = 0;
        }
        send(&mut world, 1000 * MS);
        world.rest();
        // What the path after it loses, with its repair, is another matter: that may be given up. One packet leaves each 10 ms.
        let is_of_later = |number: u32| lossy.iter().any(|it| it.contains(&(10 * MS * number)));
        for flow in 0..2 {
            let here: BTreeSet<_> = world.delivered[&flow].iter().map(|(number, _)| *number).collect();
            let mut lost = (0..number).filter(|number| !here.contains(number));
            prop_assert!(lost.all(|number| loss > 0 && is_of_later(number)), "of the dead path");
        }
        prop_assert!(world.lost(2, number) as u64 <= world.events.given_up);
        let datagrams = world.delivered.remove(&DATAGRAMS).unwrap_or_default();
        let unique: BTreeSet<_> = datagrams.iter().map(|(number, _)| *number).collect();
        prop_assert_eq!(unique.len(), datagrams.len());
        if loss == 0 {
            prop_assert_eq!(unique.len(), number as usize);
        }
    }

    #[test]
    fn a_flow_stays_in_order_whatever_the_network_does(
        seed in any::<u64>(),
        loss in 0u64..600,
        duplicates in 0u64..300,
        one_way in 0u32..300,
        flows in 1u16..5,
        gap in 0u32..3000,
    ) {
        let network = Network { loss, duplicates, one_way: one_way * MS, jitter: Duration::ZERO };
        let mut world = World::new(network, seed);
        world.stream(flows, 200, 300, Duration::from_micros(gap.into()));
        let lost = world.lost(flows, 200);
        prop_assert!(world.kept <= 200 * usize::from(flows) * 600);
        if loss <= 10 {
            prop_assert!(lost <= 1, "{lost}");
        }
    }

    #[test]
    fn each_packet_comes_once_even_if_everything_is_reordered(
        seed in any::<u64>(),
        loss in 0u64..200,
        one_way in 0u32..100,
        jitter in 0u32..400,
    ) {
        let network = Network { loss, duplicates: 100, one_way: one_way * MS, jitter: jitter * MS };
        let mut world = World::new(network, seed);
        for number in 0..300 {
            world.send(&[packet(0, number, 300), packet(1, number, 300)]);
            world.run_until(world.now + MS);
        }
        world.network.loss = 0;
        world.rest();
        let lost = world.lost(2, 300) as u64;
        prop_assert!(lost <= world.events.given_up);
    }
}
