//! A TCP connection in slow start, as Linux has it, over a tunnel that repairs what its network loses.
//!
//! The network is a queue without a bound and a delay. The connection may pace its packets (as with the fq scheduler),
//! or not.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Thinning, bare};
use crate::{
    tunnel::{
        flow::tests::of_flow,
        repair::{Moment, Receiver, Sender},
    },
    wire::{datagram::Datagram, packet::Packet},
};

const TICK: Duration = Duration::from_micros(100);
/// Bytes of a segment on the wire.
const SEGMENT: usize = 1400;
const MS: Duration = Duration::from_millis(1);

/// One direction of the network.
struct Link {
    /// Bytes in a tick; how much of it is left.
    rate: f64,
    credit: f64,
    loss: f64,
    delay: Duration,
    queue: VecDeque<Bytes>,
    flying: VecDeque<(Duration, Bytes)>,
    seed: u64,
}

impl Link {
    fn new(mbits: f64, rtt: Duration, loss: f64, seed: u64) -> Self {
        Self {
            rate: mbits * 1e6 / 8.0 * TICK.as_secs_f64(),
            credit: 0.0,
            loss,
            delay: rtt / 2,
            queue: VecDeque::new(),
            flying: VecDeque::new(),
            seed,
        }
    }

    /// What arrives now.
    fn tick(&mut self, now: Duration) -> Vec<Bytes> {
        self.credit = if self.queue.is_empty() { 0.0 } else { self.credit } + self.rate;
        while let Some(first) = self.queue.front()
            && self.credit > first.len() as f64
        {
            self.credit -= first.len() as f64;
            let datagram = self.queue.pop_front().unwrap();
            if self.draw() >= self.loss {
                self.flying.push_back((now + self.delay, datagram));
            }
        }
        let landed = self.flying.partition_point(|(at, _)| *at <= now);
        self.flying.drain(..landed).map(|(_, datagram)| datagram).collect()
    }

    /// From 0 to 1 (SplitMix64).
    fn draw(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.seed;
        it = (it ^ it >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ it >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (it ^ it >> 31) as f64 / u64::MAX as f64
    }
}

/// The sender: slow start until HyStart ends it (tcp_cubic.c of Linux: hystart_update).
#[derive(Default)]
struct Tcp {
    window: u32,
    acknowledged: u32,
    /// When each segment was sent.
    sent: Vec<Duration>,
    paced_until: Duration,
    is_paced: bool,
    base: Option<Duration>,
    srtt: Duration,
    round_end: u32,
    round_start: Duration,
    last_ack: Duration,
    least: Option<Duration>,
    samples: u32,
    has_ended: bool,
}

impl Tcp {
    /// Segments that leave now.
    fn send(&mut self, now: Duration) -> Vec<Packet> {
        let mut segments = Vec::new();
        while (self.sent.len() as u32) < self.acknowledged + self.window
            && (!self.is_paced || self.paced_until <= now)
        {
            segments.push(segment(self.sent.len() as u32));
            self.sent.push(now);
            if self.is_paced && self.sent.len() > 10 {
                let gap = self.srtt / (2 * self.window);
                self.paced_until = self.paced_until.max(now.saturating_sub(TICK)) + gap;
            }
        }
        segments
    }

    /// All before `next` are acknowledged.
    fn on_ack(&mut self, next: u32, now: Duration) {
        if next <= self.acknowledged {
            return;
        }
        let count = next - self.acknowledged;
        self.acknowledged = next;
        let rtt = now - self.sent[next as usize - 1];
        self.srtt = if self.srtt.is_zero() { rtt } else { (self.srtt * 7 + rtt) / 8 };
        let base = *self.base.insert(self.base.map_or(rtt, |base| base.min(rtt)));
        if next > self.round_end {
            (self.round_end, self.round_start) = (self.sent.len() as u32, now);
            (self.last_ack, self.least, self.samples) = (now, None, 0);
        }
        if self.window >= 16 {
            if now - self.last_ack <= 2 * MS {
                self.last_ack = now;
                let long = if self.is_paced { base } else { base / 2 };
                self.has_ended |= now - self.round_start > long + MS / 2;
            }
            let least = *self.least.insert(self.least.map_or(rtt, |least| least.min(rtt)));
            if self.samples < 8 {
                self.samples += 1;
            } else {
                self.has_ended |= least > base + (base / 8).clamp(4 * MS, 16 * MS);
            }
        }
        self.window += count;
    }
}

#[derive(Clone, Copy)]
struct Case {
    mbits: f64,
    rtt: Duration,
    loss: f64,
    is_paced: bool,
    /// Segments that reach the receiver in one tick: it may be in a network behind the tunnel.
    answered: usize,
    thins: bool,
}

impl Case {
    /// Segments that fit the path.
    fn capacity(&self) -> u32 {
        (self.mbits * 1e6 / 8.0 * self.rtt.as_secs_f64() / SEGMENT as f64) as u32
    }
}

/// The receiver: it acknowledges every second segment, and each of the first.
#[derive(Default)]
struct Answers {
    delivered: VecDeque<u32>,
    next: u32,
    early: BTreeSet<u32>,
    unanswered: u32,
    gathered: Vec<Packet>,
}

impl Answers {
    fn tick(&mut self, most: usize) {
        for number in self.delivered.drain(..self.delivered.len().min(most)) {
            let in_order = number == self.next;
            self.early.insert(number);
            while self.early.remove(&self.next) {
                self.next += 1;
            }
            self.unanswered += 1;
            if self.unanswered == 2 || !in_order || self.next < 30 {
                self.gathered.push(acknowledgement(self.next));
                self.unanswered = 0;
            }
        }
    }
}

/// The window when slow start ends; at most twice what fits the path.
fn window_after_slow_start(case: Case, seed: u64) -> u32 {
    let (start, Case { mbits, rtt, loss, .. }) = (Instant::now(), case);
    let mut up = Link::new(mbits, rtt, loss, seed);
    let mut down = Link::new(mbits, rtt, loss, !seed);
    let mut tcp = Tcp { window: 10, is_paced: case.is_paced, ..Tcp::default() };
    let (mut sender, mut receiver) = (Sender::default(), Receiver::default());
    let (mut answers, mut thinning) = (Answers::default(), Thinning::default());
    let mut now = Duration::ZERO;
    while !tcp.has_ended && tcp.window < 8 * case.capacity() && now < 100 * rtt {
        now += TICK;
        let moment = Moment { now: start + now, rtt };
        let (mut datagrams, mut delivered) = (Vec::new(), Vec::new());
        sender.number(&tcp.send(now), moment, &mut datagrams);
        up.queue.extend(datagrams.into_iter().chain(sender.tail(moment)));
        for datagram in up.tick(now) {
            match Datagram::decode(datagram).unwrap() {
                Datagram::Numbered(numbered) => {
                    let before = delivered.len();
                    receiver.receive(numbered, moment, &mut delivered);
                    thinning.arrived(SEGMENT, moment);
                    if delivered.len() > before + 1 {
                        thinning.released(moment.now);
                    }
                }
                Datagram::Next(next) => receiver.next_is(next, moment, &mut delivered),
                other => panic!("{other:?}"),
            }
        }
        down.queue.extend(receiver.expire(moment, &mut delivered));
        answers.delivered.extend(delivered.iter().map(number_of));
        answers.tick(case.answered);
        if !case.thins || thinning.gathers_until(moment.now).is_none() {
            if case.thins {
                thinning.thin(&mut answers.gathered, moment.now);
            }
            down.queue.extend(answers.gathered.drain(..).map(|it| it.datagram().clone()));
        }
        for datagram in down.tick(now) {
            match Datagram::decode(datagram).unwrap() {
                Datagram::Packet(packet) => {
                    tcp.on_ack(bare(packet.ip()).unwrap().acknowledged, now)
                }
                Datagram::Missing(missing) => {
                    sender.asked(&missing, moment);
                    while let Some(datagram) = sender.repeat(usize::MAX, moment.now) {
                        up.queue.push_front(datagram);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    tcp.window
}

fn segment(number: u32) -> Packet {
    let mut bytes = of_flow(false, 6, 1, SEGMENT);
    bytes[32] = 0x50;
    bytes[SEGMENT - 4..].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

fn number_of(segment: &Packet) -> u32 {
    u32::from_be_bytes(*segment.ip().last_chunk().unwrap())
}

fn acknowledgement(next: u32) -> Packet {
    let mut bytes = of_flow(false, 6, 2, 40);
    bytes[28..32].copy_from_slice(&next.to_be_bytes());
    (bytes[32], bytes[33]) = (0x50, 0x10);
    bytes.into()
}

/// The windows of 20 connections after slow start, as parts of what fits the path.
fn windows(case: Case) -> Vec<f64> {
    let part = |window| f64::from(window) / f64::from(case.capacity());
    (0..20).map(|seed| part(window_after_slow_start(case, seed))).collect()
}

fn reaching(windows: &[f64]) -> usize {
    windows.iter().filter(|window| **window >= 1.0).count()
}

const WIFI: Case = Case {
    mbits: 100.0,
    rtt: Duration::from_millis(40),
    loss: 0.01,
    is_paced: true,
    answered: usize::MAX,
    thins: true,
};

#[test]
fn slow_start_goes_on_while_losses_are_repaired_and_until_the_path_is_full() {
    let slow = Case { mbits: 5.0, rtt: 300 * MS, ..WIFI };
    let bad = Case { mbits: 20.0, rtt: 60 * MS, loss: 0.03, ..WIFI };
    let far = Case { mbits: 50.0, rtt: 100 * MS, loss: 0.005, ..WIFI };
    for (name, path) in [("wifi", WIFI), ("slow", slow), ("bad", bad), ("far", far)] {
        for (is_paced, answered) in [(false, usize::MAX), (true, usize::MAX), (true, 8)] {
            let windows = windows(Case { is_paced, answered, ..path });
            assert!(
                reaching(&windows) >= 14 && windows.iter().filter(|it| **it < 6.0).count() >= 12,
                "{name}, paced {is_paced}, {answered} in a tick: {windows:?}"
            );
        }
    }
}

/// The test above shows nothing otherwise.
#[test]
fn slow_start_ends_early_where_all_acknowledgements_come() {
    let windows = windows(Case { thins: false, ..WIFI });
    assert!(reaching(&windows) <= 8, "{windows:?}");
}
