//! Holds bulk back while each byte costs money, and lets pass what people wait for.
//!
//! A flow that takes little is interactive, and leaves as ever: a shell, a call, the names of hosts. One that took more
//! is bulk, and stays bulk until it was quiet for a while. All bulk together leaves at a trickle, so that its
//! connections stay and go on at once when it is not held any more.

use std::time::{Duration, Instant};

/// Bytes that a flow may take at once: some screens full of coloured text.
const BURST: u32 = 64 * 1024;
/// Bytes a second that a flow may take in the long run: a call of G.711 with headers and encryption.
const RATE: u32 = 16_000;
/// A bulk flow that was quiet for so long begins anew.
const QUIET: Duration = Duration::from_secs(10);
/// Bytes a second of all bulk: a full packet every one and a half seconds. TCP gives a connection up after minutes without an
/// answer (tcp_retries2 of tcp(7)).
const TRICKLE: u32 = 1024;
/// Buckets by the hash of a flow, as many as the fair queue has.
const BUCKETS: usize = 2048;
/// The mark of a bulk flow.
const BULK: u32 = u32::MAX;

/// What flows took, by their bucket.
#[derive(Debug)]
pub(super) struct Thrift {
    epoch: Instant,
    meters: Box<[Meter]>,
    /// When the next packet of bulk may leave.
    next: Instant,
}

/// What a flow took lately, in 8 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    /// Bytes, less what it might have taken since; or [`BULK`].
    taken: u32,
    /// When that was so, in milliseconds since the epoch. It comes round after 49 days.
    at: u32,
}

impl Thrift {
    pub(super) fn new(now: Instant) -> Self {
        Self { epoch: now, meters: vec![Meter::default(); BUCKETS].into(), next: now }
    }

    fn milliseconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.epoch).as_millis() as u32
    }

    /// Whether the flow of this bucket is bulk, and has to wait.
    pub(super) fn is_bulk(&mut self, bucket: usize, now: Instant) -> bool {
        let now = self.milliseconds(now);
        let meter = &mut self.meters[bucket % BUCKETS];
        let age = now.wrapping_sub(meter.at);
        if meter.taken == BULK {
            if u128::from(age) >= QUIET.as_millis() {
                *meter = Meter { taken: 0, at: now };
            }
        } else {
            let given = u64::from(age) * u64::from(RATE) / 1000;
            // Looks in quick succession lose no part of a byte.
            if given > 0 || meter.taken == 0 {
                let given = u32::try_from(given).unwrap_or(u32::MAX);
                *meter = Meter { taken: meter.taken.saturating_sub(given), at: now };
            }
            if meter.taken > BURST {
                *meter = Meter { taken: BULK, at: now };
            }
        }
        meter.taken == BULK
    }

    /// A packet of this size left, of a flow that is not bulk.
    pub(super) fn took(&mut self, bucket: usize, bytes: usize) {
        let meter = &mut self.meters[bucket % BUCKETS];
        if meter.taken != BULK {
            meter.taken = meter.taken.saturating_add(bytes as u32).min(BULK - 1);
        }
    }

    /// When the next packet of bulk may leave.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// A packet of this size left, of a flow that is bulk and not quiet.
    pub(super) fn trickled(&mut self, bucket: usize, bytes: usize, now: Instant) {
        self.next = now + Duration::from_secs_f64(bytes as f64 / f64::from(TRICKLE));
        self.meters[bucket % BUCKETS].at = self.milliseconds(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// When the flow became bulk that sends packets of `bytes` each `pause`, within an hour.
    fn bulk_after(bytes: usize, pause: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut thrift = Thrift::new(start);
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(3600) {
            if thrift.is_bulk(0, start + at) {
                return Some(at);
            }
            thrift.took(0, bytes);
            at += pause;
        }
        None
    }

    #[test]
    fn a_shell_and_a_call_are_never_bulk_and_a_download_soon_is() {
        assert_eq!(bulk_after(120, 20 * MS), None, "keys held down");
        assert_eq!(bulk_after(300, 20 * MS), None, "G.711 over IPv6, encrypted");
        assert_eq!(bulk_after(13_000, Duration::from_secs(2)), None, "screens");
        assert_eq!(bulk_after(1400, MS), Some(48 * MS), "a download");
        assert!(bulk_after(1400, 20 * MS).is_some_and(|it| it < Duration::from_secs(2)), "video");
    }

    #[test]
    fn a_bulk_flow_begins_anew_only_when_it_was_quiet() {
        let start = Instant::now();
        let mut thrift = Thrift::new(start);
        thrift.took(0, 70_000);
        assert!(thrift.is_bulk(0, start));
        assert!(!thrift.is_bulk(1, start), "another flow");
        assert!(thrift.is_bulk(0, start + QUIET - MS));
        thrift.trickled(0, 1400, start + QUIET - MS);
        assert!(thrift.is_bulk(0, start + 2 * QUIET - 2 * MS));
        assert!(!thrift.is_bulk(0, start + 2 * QUIET - MS));
    }
}
