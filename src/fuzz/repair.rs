//! Numbers, requests and time from a peer that says anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    tunnel::repair::{Events, MEMORY, Moment, Receiver, Sender},
    wire::{datagram::Datagram, numbered::Exchange, packet::Packet},
};

const RTT: Duration = Duration::from_millis(40);
/// Longer than any packet is waited for.
const LONG: Duration = Duration::from_secs(2);
/// Numbers on the wire wrap here.
const WRAP: u64 = 1 << 24;

/// Reads `data` as steps, each of one kind:
///
/// ```text
///  0  length (1 byte)  datagram      a datagram from the other side
///  1  number (3)  back (2)           a numbered packet
///  2  milliseconds (1)               time passes
///  3  count (1)                      packets of this side are numbered: TCP, or UDP if the count is odd
///  4                                 the connection has another path
///  5                                 this side says what it has
///  6  milliseconds (1)               what this side sent so long ago is acknowledged
/// ```
///
/// Numbers are big endian. Each packet that is received is delivered once, is held, or is told of as a duplicate; a
/// packet overtakes the one that it names only if that was given up or has a successor already; only what is missing
/// is asked for; memory is bounded, and free when time has passed. What is sent again was sent before.
pub fn repair(mut data: &[u8]) {
    let mut model = Model::new();
    while let Some((kind, rest)) = data.split_first() {
        data = rest;
        match (kind % 7, data) {
            (0, [length, rest @ ..]) => {
                let (datagram, rest) = rest.split_at(rest.len().min((*length).into()));
                data = rest;
                model.datagram(Bytes::copy_from_slice(datagram));
            }
            (1, [a, b, c, d, e, rest @ ..]) => {
                data = rest;
                let bytes = [3, *a, *b, *c, *d, *e, 0x45];
                model.datagram([&bytes[..], &model.count.to_be_bytes()].concat().into());
            }
            (2, [milliseconds, rest @ ..]) => {
                data = rest;
                model.wait(Duration::from_millis((*milliseconds).into()));
            }
            (3, [count, rest @ ..]) => {
                data = rest;
                model.send(*count);
            }
            (4, _) => model.change_path(),
            (5, _) => model.resume(),
            (6, [milliseconds, rest @ ..]) => {
                data = rest;
                let sent = model.now.checked_sub(Duration::from_millis((*milliseconds).into()));
                let _ = model.sender.acknowledged(sent, model.began, model.moment());
            }
            _ => break,
        }
    }
    model.wait(LONG);
    assert_eq!(model.receiver.kept(), 0);
    assert_eq!(model.receiver.next_deadline(), None);
    assert_eq!(model.undelivered, 0);
}

struct Model {
    now: Instant,
    /// When the present path began.
    began: Option<Instant>,
    receiver: Receiver,
    sender: Sender,
    /// The number that comes next.
    next: u64,
    /// Packets by their place in the input: the number, and the number that must come before.
    received: BTreeMap<u32, (u64, Option<u64>)>,
    delivered: BTreeSet<u64>,
    /// Numbers that a packet waits for, with the number of that packet.
    successors: BTreeMap<u64, u64>,
    given_up: u64,
    undelivered: i64,
    count: u32,
    sent: BTreeSet<Bytes>,
}

impl Model {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn new() -> Self {
        Self {
            now: Instant::now(),
            began: None,
            receiver: Receiver::default(),
            sender: Sender::default(),
            next: 0,
            received: BTreeMap::new(),
            delivered: BTreeSet::new(),
            successors: BTreeMap::new(),
            given_up: 0,
            undelivered: 0,
            count: 0,
            sent: BTreeSet::new(),
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, rtt: RTT }
    }

    /// The number nearest to the next one with these low bits.
    fn whole(&self, low: u64) -> Option<u64> {
        let about = self.next.cast_signed();
        let base = (self.next - self.next % WRAP).cast_signed() + low.cast_signed();
        let wrap = WRAP.cast_signed();
        let nearest = [base - wrap, base, base + wrap]
            .into_iter()
            .find(|number| (-wrap / 2..wrap / 2).contains(&(number - about)));
        nearest.and_then(|number| number.try_into().ok())
    }

    fn datagram(&mut self, datagram: Bytes) {
        let mut batch = Vec::new();
        match Datagram::decode(datagram.clone()) {
            Ok(Datagram::Numbered(mut numbered)) => {
                let low = u64::from(u32::from_be_bytes([0, datagram[1], datagram[2], datagram[3]]));
                let back = u64::from(u16::from_be_bytes([datagram[4], datagram[5]]));
                let number = self.whole(low);
                // The packet tells which one it is.
                let mut bytes = vec![0x45];
                bytes.extend_from_slice(&self.count.to_be_bytes());
                numbered.packet = Packet::from_datagram(bytes.into());
                if let Some(number) = number {
                    let before = number.checked_sub(back).filter(|_| back > 0);
                    self.received.insert(self.count, (number, before));
                    let _ = before.map(|before| *self.successors.entry(before).or_insert(number));
                    self.next = self.next.max(number + 1);
                }
                self.count += 1;
                self.undelivered += 1;
                self.receiver.receive(numbered, self.moment(), &mut batch);
            }
            Ok(Datagram::Next(next)) => {
                let low = u64::from(u32::from_be_bytes([0, datagram[1], datagram[2], datagram[3]]));
                self.next = self.next.max(self.whole(low).unwrap_or(0));
                self.receiver.next_is(next, self.moment(), &mut batch);
            }
            Ok(Datagram::Missing(missing)) => {
                self.sender.asked(&missing, self.moment());
                self.repeat();
            }
            Ok(Datagram::Resume(resume)) => {
                self.sender.resumed(&resume, self.now, self.moment());
                self.repeat();
            }
            Ok(Datagram::Fragment(_) | Datagram::Packet(_) | Datagram::Padding) | Err(_) => {}
        }
        self.check(batch);
    }

    fn repeat(&mut self) {
        let mut copies: BTreeMap<Bytes, u8> = BTreeMap::new();
        while let Some(repeated) = self.sender.repeat(usize::MAX, self.now) {
            assert!(self.sent.contains(&repeated), "it was never sent");
            let copies = copies.entry(repeated).or_default();
            *copies += 1;
            assert!(*copies <= 3);
        }
    }

    fn change_path(&mut self) {
        self.began = Some(self.now);
        let _ = self.sender.acknowledged(None, self.began, self.moment());
        self.sender.moved(self.moment());
        self.repeat();
        self.receiver.path_changed(self.moment());
    }

    fn resume(&mut self) {
        let exchange = Exchange { id: 1, is_answer: false };
        let state = self.receiver.resume(exchange, self.moment());
        let Ok(Datagram::Resume(state)) = Datagram::decode(state) else {
            panic!("a state that cannot be read")
        };
        assert_eq!(state.next.near(self.next), Some(self.next));
        for (first, count) in state.missing() {
            let first = first.near(self.next).expect("a number that exists");
            for number in first..first + u64::from(count) {
                assert!(number < self.next, "{number} was not sent yet");
                assert!(!self.delivered.contains(&number), "{number} was delivered");
            }
        }
    }

    fn check(&mut self, batch: Vec<Packet>) {
        let Events { given_up, duplicates, .. } = self.receiver.take_events();
        self.given_up += given_up;
        self.undelivered -= duplicates.cast_signed();
        for packet in batch {
            self.undelivered -= 1;
            let place =
                packet.ip().last_chunk().copied().map(u32::from_be_bytes).expect("it is ours");
            let (number, before) = self.received[&place];
            assert!(self.delivered.insert(number), "{number} is delivered twice");
            let Some(before) = before else { continue };
            let first = self.successors[&before];
            let may_overtake = self.given_up > 0 || first != number;
            assert!(
                may_overtake || self.delivered.contains(&before),
                "{number} overtakes {before}"
            );
        }
        assert!(self.receiver.kept() <= MEMORY);
        assert!(self.undelivered >= 0);
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.receiver.next_deadline()
            && deadline <= end
        {
            self.now = self.now.max(deadline);
            self.expire();
        }
        self.now = end;
        self.expire();
        let _ = self.sender.tail(self.moment());
    }

    fn expire(&mut self) {
        let mut batch = Vec::new();
        let request = self.receiver.expire(self.moment(), &mut batch);
        self.check(batch);
        if let Some(request) = request {
            let Ok(Datagram::Missing(missing)) = Datagram::decode(request) else {
                panic!("a request that cannot be read")
            };
            for range in missing.ranges() {
                assert!(range.count > 0 && range.attempt > 0);
                let first = range.first.near(self.next).expect("a number that exists");
                for number in first..first + u64::from(range.count) {
                    assert!(number < self.next, "{number} was not sent yet");
                    assert!(!self.delivered.contains(&number), "{number} was delivered");
                }
            }
        }
    }

    fn send(&mut self, count: u8) {
        let mut packet = vec![0; 41];
        let protocol = if count.is_multiple_of(2) { 6 } else { 17 };
        (packet[0], packet[3], packet[9], packet[32]) = (0x45, 41, protocol, 0x50);
        let batch = vec![Packet::from(packet); count.into()];
        let mut datagrams = Vec::new();
        self.sender.number(&batch, self.moment(), &mut datagrams);
        assert_eq!(datagrams.len(), batch.len());
        assert!(datagrams.iter().all(|datagram| datagram[0] == 3 && datagram.len() == 47));
        self.sent.extend(datagrams);
    }
}
