//! The sending side: numbers, the ring of what was sent, and what is sent once more.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Moment;
use crate::{
    tunnel::{
        chunks::Chunks,
        flow::{self, Classifier},
    },
    wire::{
        numbered::{HEADER, Missing, Numbered, encode_next},
        packet::Packet,
    },
};

/// Bytes of memory that the ring may take.
const MEMORY: usize = 8 << 20;
/// Bytes of memory that a packet in the ring takes beside its own.
const OVERHEAD: usize = size_of::<Sent>();
/// Packets are written into chunks of this size, one behind the other, so that the ring keeps nothing else in memory.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = MEMORY / CHUNK + 4;
/// Flows share a fixed number of buckets by their hash. Flows in one bucket are kept in order together.
const BUCKETS: usize = 1024;
/// How long a packet is kept: a receiver asks again and again for three and a half round
/// trips, and its last request takes half a round trip.
const KEPT_ROUND_TRIPS: u32 = 4;
const KEPT_LONGER: Duration = Duration::from_millis(30);
/// While nobody asks, a packet is kept for one and a half round trips and this: the first request finds it, and what a
/// fast network does not lose stays in the processor's cache.
const KEPT_UNASKED: Duration = Duration::from_millis(5);
/// How long after a request the next one is expected.
const ASKING: Duration = Duration::from_secs(30);
/// So much is kept for longer: it takes a while to learn that a path has died.
const LAST_BYTES: usize = 256 << 10;
const LAST: Duration = Duration::from_secs(2);
/// Without a further packet for so long, a packet is taken for the last one: it has no successor to show its loss.
const TAIL: Duration = Duration::from_millis(8);
/// How often the last packet is told of.
const TAILS: u8 = 3;
/// The last packet is sent again itself if it has at most as many bytes; else its number is.
const SMALL_TAIL: usize = 256;
/// The most copies of a packet that answer one request.
const COPIES: u8 = 3;
/// Packets that may be sent again in one round trip in any case.
const LEAST_REPEATED: usize = 64;
/// Numbers that are looked at in one round trip: twice as many as an honest receiver misses at once.
const LOOKS: usize = 2 * 4096;
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
    chunks: Chunks,
    /// Numbers that were asked for, and how many copies of each.
    wanted: VecDeque<(u64, u8)>,
    allowance: Allowance,
    /// When the other side last asked for something.
    asked: Option<Instant>,
    tail: Option<Tail>,
}

#[derive(Debug)]
struct Sent {
    datagram: Bytes,
    at: Instant,
    repeated: Option<Instant>,
    /// It waits to be sent again.
    waits: bool,
}

/// The packets that may still be sent again in the present round trip.
#[derive(Debug, Default)]
struct Allowance {
    ends: Option<Instant>,
    left: usize,
    looks: usize,
}

#[derive(Clone, Copy, Debug)]
struct Tail {
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
            chunks: Chunks::new(CHUNK, CHUNKS),
            wanted: VecDeque::new(),
            allowance: Allowance::default(),
            asked: None,
            tail: None,
        }
    }
}

impl Sender {
    /// Numbers the packets among `batch` that are worth it: `datagrams` gets the datagrams of all of them, in order.
    pub fn number(&mut self, batch: &[Packet], moment: Moment, datagrams: &mut Vec<Bytes>) {
        let mut run: Option<(&Packet, usize)> = None;
        for packet in batch {
            if !flow::is_repaired(packet.ip()) {
                datagrams.push(packet.datagram().clone());
                continue;
            }
            let bucket = match run {
                Some((first, bucket)) if flow::is_same(first.ip(), packet.ip()) => bucket,
                _ => self.classifier.flow(packet.ip()).hash as usize % BUCKETS,
            };
            run = Some((packet, bucket));
            datagrams.push(self.sent(packet, bucket, moment.now));
        }
        if run.is_some() {
            self.forget(moment);
            self.tail = Some(Tail { due: moment.now + TAIL, told: 0 });
        }
    }

    fn sent(&mut self, packet: &Packet, bucket: usize, now: Instant) -> Bytes {
        let number = self.next;
        self.next += 1;
        let last = std::mem::replace(&mut self.last[bucket], self.next);
        let back = if last == 0 { 0 } else { u16::try_from(self.next - last).unwrap_or(0) };
        let plain = packet.datagram();
        let chunk = self.chunks.room(HEADER + plain.len());
        Numbered::write(number, back, plain, chunk);
        let datagram = chunk.split().freeze();
        self.bytes += datagram.len() + OVERHEAD;
        self.ring.push_back(Sent {
            datagram: datagram.clone(),
            at: now,
            repeated: None,
            waits: false,
        });
        datagram
    }

    /// Drops from the ring what is too old, or too much.
    fn forget(&mut self, Moment { now, rtt }: Moment) {
        let is_asking = self.asked.is_some_and(|at| now.saturating_duration_since(at) < ASKING);
        let useful = match is_asking {
            true => KEPT_ROUND_TRIPS * rtt + KEPT_LONGER,
            false => rtt * 3 / 2 + KEPT_UNASKED,
        };
        while let Some(oldest) = self.ring.front()
            && let age = now.saturating_duration_since(oldest.at)
            && (self.bytes > MEMORY || age > useful && (self.bytes > LAST_BYTES || age > LAST))
        {
            self.bytes -= oldest.datagram.len() + OVERHEAD;
            self.ring.pop_front();
        }
        if self.ring.is_empty() {
            (self.ring, self.chunks) = (VecDeque::new(), Chunks::new(CHUNK, CHUNKS));
        }
    }

    /// Takes note of what the other side misses. Returns whether there is something to send again.
    pub(crate) fn asked(&mut self, missing: &Missing, moment: Moment) -> bool {
        let Moment { now, rtt } = moment;
        self.asked = Some(now);
        self.forget(moment);
        if self.allowance.ends.is_none_or(|ends| ends <= now) {
            // About as much as is sent in one round trip.
            let left = LEAST_REPEATED + self.ring.len() / KEPT_ROUND_TRIPS as usize;
            let ends = Some(now + rtt.max(SHORTEST_ROUND_TRIP));
            self.allowance = Allowance { ends, left, looks: LOOKS };
        }
        let oldest = self.next - self.ring.len() as u64;
        for range in missing.ranges() {
            let Some(first) = range.first.near(self.next) else { continue };
            let end = (first + u64::from(range.count)).min(self.next);
            for number in first.max(oldest)..end {
                if self.allowance.looks == 0 || self.allowance.left == 0 {
                    return !self.wanted.is_empty();
                }
                self.allowance.looks -= 1;
                let sent = &mut self.ring[(number - oldest) as usize];
                // What was sent less than a round trip ago may just not have arrived.
                let again = |at: Instant| now.saturating_duration_since(at) < rtt * 3 / 4;
                if sent.waits || sent.repeated.is_some_and(again) {
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

    /// Whether something is to be sent again.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The next datagram that is to be sent again now, if it has at most `room` bytes.
    pub(crate) fn repeat(&mut self, room: usize, now: Instant) -> Option<Bytes> {
        let oldest = self.next - self.ring.len() as u64;
        while let Some((number, copies)) = self.wanted.front_mut() {
            let sent = number.checked_sub(oldest).and_then(|at| self.ring.get_mut(at as usize));
            let Some(sent) = sent else {
                self.wanted.pop_front();
                continue;
            };
            if sent.datagram.len() > room {
                return None;
            }
            let datagram = sent.datagram.clone();
            *copies -= 1;
            if *copies == 0 {
                (sent.waits, sent.repeated) = (false, Some(now));
                self.wanted.pop_front();
            }
            return Some(datagram);
        }
        None
    }

    /// What tells the other side of the last packet, if it is time to do so.
    pub(crate) fn tail(&mut self, moment: Moment) -> Option<Bytes> {
        let tail = self.tail.filter(|tail| tail.due <= moment.now)?;
        if tail.told == TAILS {
            self.forget(moment);
            self.tail = (!self.ring.is_empty()).then(|| self.end(moment));
            return None;
        }
        let told = tail.told + 1;
        self.tail = Some(if told == TAILS {
            self.end(moment)
        } else {
            Tail { due: moment.now + moment.rtt * 5 / 4 + TAIL, told }
        });
        let last = self.ring.back().filter(|last| last.datagram.len() <= HEADER + SMALL_TAIL);
        Some(last.map_or_else(|| encode_next(self.next), |last| last.datagram.clone()))
    }

    /// The end of the tail: the ring is emptied.
    fn end(&self, Moment { now, rtt }: Moment) -> Tail {
        let useful = KEPT_ROUND_TRIPS * rtt + KEPT_LONGER;
        Tail { due: now + useful.max(LAST) + KEPT_LONGER, told: TAILS }
    }

    /// When [`Self::tail`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tail.map(|tail| tail.due)
    }

    /// Bytes of memory of what is kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.bytes
    }
}
