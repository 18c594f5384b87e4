//! One direction of a link, pure: frames and times in, frames and times out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{random::SplitMix, shape::LinkShape};

/// Destination, source, type.
const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_UDP: u8 = 17;

/// Maximum of bytes under way, which bounds the memory. Only a shape with a long delay and no rate reaches it.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// A frame counts as late from this delay on.
const LATE: Duration = Duration::from_millis(1);

/// Counters of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to the other side.
    pub passed: u64,
    /// Bytes in those, Ethernet headers included.
    pub bytes: u64,
    /// Lost by chance, as [`LinkShape::loss`] asks.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Longer than [`LinkShape::mtu`].
    pub oversize: u64,
    /// Dropped by the black hole, or since UDP is blocked.
    pub swallowed: u64,
    /// Not taken by the link at the other side, because it is down.
    pub refused: u64,
    /// Passed more than 1 ms after their time, because this machine was too slow.
    pub late: u64,
    /// Never seen by the emulator, because this machine was too slow. A measurement with any of these is invalid.
    pub missed: u64,
}

/// A line: a rate limit with a queue, then a delay. First in, first out.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) shape: LinkShape,
    pub(super) counters: Counters,
    black_hole: bool,
    random: SplitMix,
    /// When the last frame that was admitted will have been clocked out.
    free_at: Option<Instant>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
}

#[derive(Debug)]
struct InFlight {
    due: Instant,
    frame: Box<[u8]>,
}

impl Line {
    pub(super) fn new(shape: LinkShape, seed: u64) -> Self {
        Self {
            shape,
            counters: Counters::default(),
            black_hole: false,
            random: SplitMix(seed),
            free_at: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    pub(super) fn seed(&mut self, seed: u64) {
        self.random = SplitMix(seed);
    }

    pub(super) fn set_black_hole(&mut self, on: bool) {
        self.black_hole = on;
        if on {
            self.counters.swallowed += self.in_flight.len() as u64;
            self.in_flight.clear();
            self.in_flight_bytes = 0;
            self.free_at = None;
        }
    }

    /// Takes a frame that arrived at `now`, of which `length` bytes were on the wire.
    pub(super) fn admit(&mut self, frame: &[u8], length: usize, now: Instant) {
        if self.black_hole || self.shape.blocks_udp && is_udp(frame) {
            self.counters.swallowed += 1;
        } else if length > self.shape.mtu + ETHERNET_HEADER || length > frame.len() {
            self.counters.oversize += 1;
        } else if !is_spared(frame) && self.random.fraction() < self.shape.loss {
            self.counters.lost += 1;
        } else if let Some(clocked_out) = self.take_turn(length, now) {
            self.put_in_flight(frame, clocked_out);
        } else {
            self.counters.overflowed += 1;
        }
    }

    /// When the next frame arrives.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.in_flight.front().map(|next| next.due)
    }

    /// Takes the next frame off the line, if it has arrived.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Box<[u8]>> {
        self.next_due().filter(|due| *due <= now)?;
        let next = self.in_flight.pop_front()?;
        self.in_flight_bytes -= next.frame.len();
        self.counters.late += u64::from(now - next.due > LATE);
        Some(next.frame)
    }

    /// When a frame of this length has been clocked out, unless the queue has no room for it.
    fn take_turn(&mut self, length: usize, now: Instant) -> Option<Instant> {
        if self.in_flight_bytes + length > IN_FLIGHT_BYTES {
            return None;
        }
        let Some(rate) = self.shape.rate else { return Some(now) };
        let turn = self.free_at.map_or(now, |free| free.max(now));
        if turn - now > self.shape.queue {
            return None;
        }
        let nanoseconds = (length as u64 * 8).saturating_mul(1_000_000_000) / rate.max(1);
        let clocked_out = turn + Duration::from_nanos(nanoseconds);
        self.free_at = Some(clocked_out);
        Some(clocked_out)
    }

    fn put_in_flight(&mut self, frame: &[u8], clocked_out: Instant) {
        let mut due = clocked_out + self.shape.delay;
        if !self.shape.jitter.is_zero() {
            due += self.shape.jitter.mul_f64(self.random.fraction());
        }
        if let Some(last) = self.in_flight.back() {
            due = due.max(last.due);
        }
        self.in_flight_bytes += frame.len();
        self.in_flight.push_back(InFlight { due, frame: frame.into() });
    }
}

/// Whether a frame has UDP in it: RFC 791 §3.1, RFC 8200 §3.
fn is_udp(frame: &[u8]) -> bool {
    let protocol = match frame.get(12..ETHERNET_HEADER) {
        Some(kind) if kind == ETHERTYPE_IPV4 => frame.get(ETHERNET_HEADER + 9),
        Some(kind) if kind == ETHERTYPE_IPV6 => frame.get(ETHERNET_HEADER + 6),
        Some(_) | None => None,
    };
    protocol == Some(&IPPROTO_UDP)
}

/// Whether a frame is exempt from random loss: multicast, broadcast, ARP, and ICMPv6 from router solicitation to
/// redirect (RFC 4861 §4).
fn is_spared(frame: &[u8]) -> bool {
    let to_group = frame.first().is_some_and(|first| first & 1 == 1);
    let kind = frame.get(12..ETHERNET_HEADER);
    let ipv6_next_header = frame.get(ETHERNET_HEADER + 6).copied();
    let icmpv6_type = frame.get(ETHERNET_HEADER + 40).copied();
    to_group
        || kind == Some(&ETHERTYPE_ARP)
        || kind == Some(&ETHERTYPE_IPV6)
            && ipv6_next_header == Some(IPPROTO_ICMPV6)
            && icmpv6_type.is_some_and(|kind| (133..=137).contains(&kind))
}

#[cfg(test)]
mod tests;
