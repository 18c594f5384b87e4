//! The sending side: numbers, the ring of what was sent, and what is sent once more.

use std::{
    collections::{HashSet, VecDeque},
    iter,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Moment, proof::Proof};
use crate::{
    tunnel::{
        chunks::Chunks,
        flow::{self, Classifier, Kind, SMALL},
        pool::Share,
        queue::is_stale,
    },
    wire::{
        numbered::{HEADER, Missing, Numbered, Resume, encode_next},
        packet::Packet,
    },
};

/// Bytes of memory that the ring may take, if it shares none with others.
const MEMORY: usize = 8 << 20;
/// Bytes of memory that a packet in the ring takes beside its own.
const OVERHEAD: usize = size_of::<Sent>();
/// Packets are written into chunks of this size, one behind the other, so that the ring keeps nothing else in memory.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = MEMORY / CHUNK + 4;
/// Flows share a fixed number of buckets by their hash. Flows in one bucket are kept in order together.
const BUCKETS: usize = 1024;
/// A packet is kept until a later one is proven to have arrived, and then for so long: a receiver asks again and again
/// for three and a half round trips, and its last request takes half a round trip.
const KEPT_ROUND_TRIPS: u32 = 3;
const KEPT_LONGER: Duration = Duration::from_millis(30);
/// While nobody asks, a packet is kept for half a round trip and this: the first request finds it, and what a fast
/// network does not lose stays in the processor's cache.
pub(super) const KEPT_UNASKED: Duration = Duration::from_millis(5);
/// How long after a request the next one is expected.
const ASKING: Duration = Duration::from_secs(30);
/// A packet is kept for so long at most once something that was sent no earlier has arrived, or a silence has ended: it
/// takes a while to learn that a path has died. A datagram is of use to nobody after that.
pub(super) const LONGEST: Duration = Duration::from_secs(3);
/// The most that is added to how long packets are kept because some were asked for too late.
const OVERTAKEN: Duration = Duration::from_millis(375);
/// Where nothing new was acknowledged for so long, and for two round trips, and what is acknowledged then leaves out as
/// much time, there was a silence: what was sent in it may be lost. Packets are numbered long before they leave a slow
/// link, and acknowledgements are as far apart there as packets.
const SILENCE: Duration = Duration::from_millis(100);
/// A datagram that arrives later than this, by half a round trip, is of little use to a game or a call (ITU-T G.114: most
/// people do not notice less).
const OF_USE: Duration = Duration::from_millis(150);
/// Without a further packet for so long, a packet is taken for the last one: it has no successor to show its loss.
const TAIL: Duration = Duration::from_millis(8);
/// How often the last packet is told of.
const TAILS: u8 = 3;
/// The last packet is sent again itself if it has at most as many bytes; else its number is.
const SMALL_TAIL: usize = 256;
/// The most packets of at most [`SMALL`] bytes that are sent again after a switch, or over the standby at once.
const MOST_SMALL: usize = 256;
/// The most copies of a packet that answer one request, and how often questions have it sent again.
const COPIES: u8 = 3;
/// Packets that may be sent again in one round trip in any case.
const LEAST_REPEATED: usize = 64;
/// Numbers that are looked at in one round trip: twice as many as an honest receiver misses at once.
const LOOKS: usize = 2 * 4096;
/// Bytes that QUIC puts around a datagram, rounded up.
const AROUND: usize = 48;
/// The size of a packet that was asked for and is not in the ring any more, in bytes.
const FORGOTTEN: u64 = 1200;
/// A round trip lasts so long at least.
const SHORTEST_ROUND_TRIP: Duration = Duration::from_millis(1);

/// Numbers packets, and sends again what the other side misses.
#[derive(Debug)]
pub struct Sender {
    next: u64,
    classifier: Classifier,
    /// The last number of each bucket, plus 1; 0: none.
    last: Box<[u64]>,
    /// What was sent last, in the order of its numbers.
    ring: VecDeque<Sent>,
    bytes: usize,
    share: Share,
    chunks: Chunks,
    /// Numbers that were asked for, and how many copies of each.
    wanted: VecDeque<(u64, u8)>,
    /// Numbers of large packets that were lost with a path: they leave after all others.
    bulk: VecDeque<(u64, u8)>,
    allowance: Allowance,
    /// When the other side last asked for something.
    asked: Option<Instant>,
    /// Bytes of QUIC packets of the present path that it asked for since the last look.
    missed: u64,
    /// How much later than a packet that was asked for the newest one was sent that was known to have arrived: the longest
    /// of late.
    overtaken: Duration,
    proof: Proof,
    tail: Option<Tail>,
    /// Small packets with numbers below this one were offered to the standby.
    offered: u64,
    /// Packets that were to be sent again because a path died or was silent, since the last look.
    resumed: u64,
    /// The numbers of packets of the newest batch that went into a queue again.
    given_back: HashSet<u64>,
}

#[derive(Debug)]
struct Sent {
    datagram: Bytes,
    kind: Kind,
    at: Instant,
    repeated: Option<Instant>,
    /// It waits to be sent again.
    waits: bool,
    /// The standby took a copy.
    has_copy: bool,
    /// The other side has asked for it.
    is_missed: bool,
    /// How often a question of the other side had it sent again.
    questioned: u8,
}

/// The packets that may still be sent again in the present round trip.
#[derive(Debug, Default)]
struct Allowance {
    ends: Option<Instant>,
    left: usize,
    looks: usize,
}

impl Sent {
    /// Whether it is sent again first.
    fn is_small(&self) -> bool {
        self.datagram.len() <= HEADER + SMALL
    }

    /// Whether anybody has a use for it still after its path died or was silent.
    fn is_of_use(&self, now: Instant) -> bool {
        match self.kind {
            Kind::Stream => true,
            Kind::Datagram => now.saturating_duration_since(self.at) < LONGEST,
            Kind::BareAck => false,
        }
    }
}

/// The last packet that nothing may show to be missing.
#[derive(Clone, Copy, Debug)]
struct Tail {
    number: u64,
    /// When it was told of last, and when it is the next time.
    at: Instant,
    due: Instant,
    told: u8,
}

impl Default for Sender {
    fn default() -> Self {
        Self {
            next: 0,
            classifier: Classifier::default(),
            last: vec![0; BUCKETS].into(),
            ring: VecDeque::new(),
            bytes: 0,
            share: Share::default(),
            chunks: Chunks::new(CHUNK, CHUNKS),
            wanted: VecDeque::new(),
            bulk: VecDeque::new(),
            allowance: Allowance::default(),
            asked: None,
            missed: 0,
            overtaken: Duration::ZERO,
            proof: Proof::default(),
            tail: None,
            offered: 0,
            resumed: 0,
            given_back: HashSet::new(),
        }
    }
}

impl Sender {
    /// One whose ring has a part of a pool's memory only.
    pub(crate) fn sharing(share: Share) -> Self {
        Self { share, ..Self::default() }
    }

    /// Numbers the packets of `batch`: `datagrams` gets their datagrams, in order.
    pub fn number(&mut self, batch: &[Packet], moment: Moment, datagrams: &mut Vec<Bytes>) {
        let Moment { now, .. } = moment;
        self.given_back.clear();
        let mut run: Option<(&Packet, usize)> = None;
        for packet in batch {
            let (kind, number) = (flow::kind(packet.ip()), self.next);
            let mut back = 0;
            if kind == Kind::Stream {
                let bucket = match run {
                    Some((first, bucket)) if flow::is_same(first.ip(), packet.ip()) => bucket,
                    _ => self.classifier.flow(packet.ip()).hash as usize % BUCKETS,
                };
                run = Some((packet, bucket));
                let last = std::mem::replace(&mut self.last[bucket], number + 1);
                if last > 0 {
                    back = u16::try_from(number + 1 - last).unwrap_or(0);
                }
                self.tail = Some(Tail { number, at: now, due: now + TAIL, told: 0 });
            }
            datagrams.push(self.sent(packet, kind, back, now));
        }
        self.forget(moment);
    }

    fn sent(&mut self, packet: &Packet, kind: Kind, back: u16, now: Instant) -> Bytes {
        let plain = packet.datagram();
        let chunk = self.chunks.room(HEADER + plain.len());
        Numbered::write(self.next, back, plain, chunk);
        self.next += 1;
        let datagram = chunk.split().freeze();
        self.bytes += datagram.len() + OVERHEAD;
        self.ring.push_back(Sent {
            datagram: datagram.clone(),
            kind,
            at: now,
            repeated: None,
            waits: false,
            has_copy: false,
            is_missed: false,
            questioned: 0,
        });
        datagram
    }

    /// Takes note of when the newest packet that was acknowledged was sent, and of when the present path began. Returns
    /// whether the path was silent, so that packets may be lost that nobody asks for in time.
    pub(crate) fn acknowledged(
        &mut self,
        newest: Option<Instant>,
        began: Option<Instant>,
        Moment { now, rtt }: Moment,
    ) -> bool {
        let limit = SILENCE.max(2 * rtt);
        let proof = &mut self.proof;
        if let Some(began) = began
            && proof.began() < Some(began)
        {
            proof.begin(began, proof.newest);
            proof.moved = Some(began);
            self.overtaken = Duration::ZERO;
        }
        if newest <= proof.newest {
            return false;
        }
        let known = proof.newest.max(proof.began());
        let before = std::mem::replace(&mut proof.newest, newest);
        let at = proof.at.replace(now);
        let is_late = at.is_some_and(|at| now.saturating_duration_since(at) > limit);
        if is_late {
            proof.again = Some(now);
        }
        let unproven = self.ring.partition_point(|sent| Some(sent.at) <= known);
        let was_silent = self
            .ring
            .get(unproven)
            .zip(newest)
            .is_some_and(|(sent, newest)| newest.saturating_duration_since(sent.at) > limit)
            && is_late;
        if was_silent {
            newest.into_iter().for_each(|newest| proof.begin(newest, before));
        }
        was_silent
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Drops from the ring what is too old, or too much.
    fn forget(&mut self, Moment { now, rtt }: Moment) {
        let is_asking = self.asked.is_some_and(|at| now.saturating_duration_since(at) < ASKING);
        let margin = match is_asking {
            true => KEPT_ROUND_TRIPS * rtt + KEPT_LONGER + 2 * self.overtaken,
            false => rtt / 2 + KEPT_UNASKED,
        };
        let memory = MEMORY.min(self.share.limit(false));
        while let Some(oldest) = self.ring.front()
            && (self.bytes > memory
                || now >= self.proof.end(oldest.at)
                || self.proof.of(oldest.at).is_some_and(|newest| oldest.at + margin < newest))
        {
            self.bytes -= oldest.datagram.len() + OVERHEAD;
            self.ring.pop_front();
        }
        self.share.take(self.bytes);
        let oldest = self.ring.front().map(|oldest| oldest.at);
        while self.proof.earlier.len() > 1 && oldest.is_none_or(|at| self.proof.earlier[0].0 < at) {
            self.proof.earlier.pop_front();
        }
        if self.ring.is_empty() {
            (self.ring, self.chunks) = (VecDeque::new(), Chunks::new(CHUNK, CHUNKS));
        }
    }

    /// The number of the oldest packet in the ring.
    fn oldest(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    /// A round trip may be over.
    fn renew_allowance(&mut self, Moment { now, rtt }: Moment) {
        if self.allowance.ends.is_none_or(|ends| ends <= now) {
            // About as much as is sent in one round trip.
            let left = LEAST_REPEATED + self.ring.len() / (KEPT_ROUND_TRIPS + 1) as usize;
            let ends = Some(now + rtt.max(SHORTEST_ROUND_TRIP));
            self.allowance = Allowance { ends, left, looks: LOOKS };
        }
    }

    /// Takes note of what the other side misses. Returns whether there is something to send again.
    pub(crate) fn asked(&mut self, missing: &Missing, moment: Moment) -> bool {
        let Moment { now, rtt } = moment;
        self.asked = Some(now);
        self.forget(moment);
        self.renew_allowance(moment);
        let oldest = self.oldest();
        for range in missing.ranges() {
            let Some(first) = range.first.near(self.next) else { continue };
            let end = (first + u64::from(range.count)).min(self.next);
            if range.attempt == 1 && first < oldest.min(end) {
                // Kept for too short a time.
                self.overtaken = KEPT_LONGER.max(self.overtaken * 2).min(OVERTAKEN);
                if self.proof.is_of_this_path(now.checked_sub(LONGEST)) {
                    self.missed += (end.min(oldest) - first) * FORGOTTEN;
                }
            }
            for number in first.max(oldest)..end {
                if self.allowance.looks == 0 {
                    return !self.wanted.is_empty();
                }
                self.allowance.looks -= 1;
                let sent = &mut self.ring[(number - oldest) as usize];
                if !std::mem::replace(&mut sent.is_missed, true) {
                    if self.proof.is_of_this_path(Some(sent.at)) {
                        self.missed += (sent.datagram.len() + AROUND) as u64;
                    }
                    let newest = self.proof.of(sent.at).unwrap_or(sent.at);
                    let overtaken = newest.saturating_duration_since(sent.at).min(LONGEST);
                    self.overtaken = overtaken.max(self.overtaken - self.overtaken / 64);
                }
                if self.allowance.left == 0 {
                    continue;
                }
                // What was sent less than a round trip ago may just not have arrived.
                let again = |at: Instant| now.saturating_duration_since(at) < rtt * 3 / 4;
                let is_of_use = match sent.kind {
                    Kind::Stream => true,
                    Kind::Datagram => now.saturating_duration_since(sent.at) + rtt / 2 <= OF_USE,
                    Kind::BareAck => false,
                };
                if sent.waits || sent.repeated.is_some_and(again) || !is_of_use {
                    continue;
                }
                sent.waits = true;
                let copies = range.attempt.clamp(1, COPIES);
                self.allowance.left = self.allowance.left.saturating_sub(copies.into());
                self.wanted.push_back((number, copies));
            }
        }
        !self.wanted.is_empty()
    }

    /// Bytes of QUIC packets that the other side has asked for since the last call.
    pub(crate) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// The other side says what it has after a path died or was silent: all else that was sent before `since` is sent
    /// again, small packets first. What was sent later may be under way. Returns whether there is something to send
    /// again.
    pub(crate) fn resumed(&mut self, resume: &Resume, since: Instant, moment: Moment) -> bool {
        self.asked = Some(moment.now);
        self.forget(moment);
        self.renew_allowance(moment);
        let is_answer = resume.exchange.is_answer;
        // A number that is not here tells nothing.
        let Some(next) = resume.next.near(self.next).filter(|next| *next <= self.next) else {
            return self.is_wanted();
        };
        let ranges = resume.missing().filter_map(|(first, count)| {
            let first = first.near(self.next)?;
            Some(first..first + u64::from(count))
        });
        let (oldest, end) = (self.oldest(), self.next);
        for range in ranges.chain(iter::once(next..end)) {
            for number in range.start.max(oldest)..range.end.min(end) {
                if self.allowance.looks == 0 {
                    return self.is_wanted();
                }
                self.allowance.looks -= 1;
                let sent = &mut self.ring[(number - oldest) as usize];
                let was_repeated = sent.repeated.is_some_and(|at| at >= since);
                if sent.waits || sent.at > since || was_repeated || !sent.is_of_use(moment.now) {
                    continue;
                }
                // We ask in measure ourselves; the other side may not.
                if !is_answer {
                    if sent.questioned == COPIES {
                        continue;
                    }
                    sent.questioned += 1;
                }
                sent.waits = true;
                self.resumed += 1;
                if sent.is_small() { &mut self.wanted } else { &mut self.bulk }
                    .push_back((number, 1));
            }
        }
        self.is_wanted()
    }

    /// The path died, or was silent: small packets that may have been lost with it are sent again at once. Their
    /// numbers make copies harmless. Returns whether there are any.
    pub(crate) fn moved(&mut self, Moment { now, rtt }: Moment) -> bool {
        let oldest = self.oldest();
        let newest_first = self.ring.iter_mut().enumerate().rev();
        // What was sent again over the present path may be under way.
        let is_on_its_way = |at: Instant| Some(at) > self.proof.began() && now < at + rtt;
        let small = newest_first.filter(|(_, sent)| {
            // One with a copy probably arrived.
            !sent.waits
                && !sent.has_copy
                && sent.is_small()
                && sent.is_of_use(now)
                && self.proof.leaves_open(sent.at, rtt)
                && !sent.repeated.is_some_and(is_on_its_way)
        });
        let small = small.take(MOST_SMALL).map(|(at, sent)| {
            sent.waits = true;
            (oldest + at as u64, 1)
        });
        let small: Vec<_> = small.collect();
        self.resumed += small.len() as u64;
        self.wanted.extend(small.into_iter().rev());
        self.is_wanted()
    }

    /// The path is late: offers small packets that may be lost with it to `copy`, each once. Returns how many it took.
    pub(crate) fn copy(
        &mut self,
        Moment { now, rtt }: Moment,
        mut copy: impl FnMut(&Bytes) -> bool,
    ) -> u64 {
        let offered = self.offered.saturating_sub(self.oldest()) as usize;
        self.offered = self.next;
        let proof = &self.proof;
        let newest_first = self.ring.iter_mut().skip(offered).rev();
        let small = newest_first
            .filter(|sent| {
                sent.is_small() && sent.is_of_use(now) && proof.leaves_open(sent.at, rtt)
            })
            .take(MOST_SMALL);
        // The newest of them, in their order.
        let small: Vec<_> = small.collect();
        let mut taken = 0;
        for sent in small.into_iter().rev() {
            sent.has_copy = copy(&sent.datagram);
            taken += u64::from(sent.has_copy);
        }
        taken
    }

    /// The connection is over, and `packets`, the newest ones, were not sent: they leave the ring. What has been given back
    /// already leaves `packets`.
    pub(crate) fn take_unsent(&mut self, packets: &mut Vec<Packet>) {
        let mut numbers = self.next.saturating_sub(packets.len() as u64)..;
        packets.retain(|_| numbers.next().is_some_and(|number| !self.given_back.contains(&number)));
        let dropped = self.ring.split_off(self.ring.len().saturating_sub(packets.len()));
        self.next -= dropped.len() as u64;
        self.bytes -= dropped.iter().map(|sent| sent.datagram.len() + OVERHEAD).sum::<usize>();
        self.share.take(self.bytes);
        self.tail = None;
    }

    /// The other side is gone: empties the ring, and returns its small packets that nothing proves to have arrived and that
    /// a queue still lets leave, in their order, with the time at which each was sent. Large ones belong to transfers, which
    /// send again what is still of use. A copy over a standby counts for nothing: it went to the same place.
    pub(crate) fn take_unproven(&mut self, now: Instant) -> Vec<(Instant, Packet)> {
        let (ring, proof) = (std::mem::take(&mut self.ring), &self.proof);
        let is_unproven = |at: Instant| proof.of(at).is_none_or(|newest| newest < at);
        let is_of_use = |sent: &Sent| match sent.kind {
            Kind::Stream => !is_stale(true, sent.at, now),
            Kind::Datagram => !is_stale(false, sent.at, now),
            Kind::BareAck => false,
        };
        let newest_first = (0..self.next).rev().zip(ring.into_iter().rev());
        let small = newest_first
            .filter(|(_, sent)| sent.is_small() && is_of_use(sent) && is_unproven(sent.at))
            .take(MOST_SMALL);
        let packet = |(number, sent): (u64, Sent)| {
            let packet = Packet::from_datagram(sent.datagram.slice(HEADER..));
            // It does not keep a chunk in memory.
            (number, (sent.at, packet.detached()))
        };
        let (numbers, mut taken): (HashSet<_>, Vec<_>) = small.map(packet).unzip();
        (self.given_back, self.bytes, self.tail) = (numbers, 0, None);
        taken.reverse();
        self.share.take(0);
        taken
    }

    /// How many packets are sent again because a path died or was silent, since the last call.
    pub(crate) fn take_resumed(&mut self) -> u64 {
        std::mem::take(&mut self.resumed)
    }

    /// Whether something is to be sent again.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.wanted.is_empty() || !self.bulk.is_empty()
    }

    /// The next datagram that is to be sent again now, if it has at most `room` bytes.
    pub(crate) fn repeat(&mut self, room: usize, now: Instant) -> Option<Bytes> {
        let oldest = self.oldest();
        for wanted in [&mut self.wanted, &mut self.bulk] {
            while let Some((number, copies)) = wanted.front_mut() {
                let sent = number.checked_sub(oldest).and_then(|at| self.ring.get_mut(at as usize));
                let Some(sent) = sent else {
                    wanted.pop_front();
                    continue;
                };
                if sent.datagram.len() > room {
                    return None;
                }
                let datagram = sent.datagram.clone();
                *copies -= 1;
                if *copies == 0 {
                    (sent.waits, sent.repeated) = (false, Some(now));
                    wanted.pop_front();
                }
                return Some(datagram);
            }
        }
        None
    }

    /// What tells the other side of the last packet, if it is time to do so.
    pub(crate) fn tail(&mut self, moment: Moment) -> Option<Bytes> {
        let Moment { now, rtt } = moment;
        if self.end().is_some_and(|end| end <= now) {
            self.forget(moment);
        }
        let tail = self.tail.as_mut().filter(|tail| tail.due <= now)?;
        // Whatever was sent after it was told of, and arrived, has shown its number.
        let is_known = tail.told > 0 && self.proof.newest >= Some(tail.at);
        if is_known || tail.told == TAILS {
            self.tail = None;
            return None;
        }
        (tail.at, tail.due) = (now, now + rtt * 5 / 4 + TAIL);
        tail.told += 1;
        let number = tail.number;
        let last = number.checked_sub(self.oldest()).and_then(|at| self.ring.get(at as usize));
        let last = last.filter(|last| last.datagram.len() <= HEADER + SMALL_TAIL);
        Some(last.map_or_else(|| encode_next(self.next), |last| last.datagram.clone()))
    }

    /// When the ring is emptied if nothing more is sent, or at least begins to be.
    fn end(&self) -> Option<Instant> {
        let (oldest, last) = (self.ring.front()?.at, self.ring.back()?.at);
        Some(self.proof.end(oldest).max(last + LONGEST))
    }

    /// When [`Self::tail`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tail.map(|tail| tail.due).into_iter().chain(self.end()).min()
    }

    /// Bytes of memory of what is kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.bytes
    }
}
