//! What strangers may cost: bounds on handshakes under way and on log lines about them.
//!
//! quinn itself sends at most three times what an unvalidated address sent (RFC 9000 §8.1).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::Incoming;

/// Handshakes under way from which on a client must first prove its address with a Retry
/// (RFC 9000 §8.1.2), which costs it a round trip and us nothing.
const RETRY_FROM: usize = 32;
/// Handshakes under way from which on new ones are ignored; the client tries again.
const IGNORE_FROM: usize = 512;
/// At most one log line about refused keys in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Lets handshakes in.
#[derive(Debug, Default)]
pub struct Gate {
    under_way: Arc<AtomicUsize>,
    refused: AtomicU64,
    last_line: Mutex<Option<(Instant, u64)>>,
}

/// A handshake under way; it counts until this is dropped.
#[derive(Debug)]
pub struct Pass(Arc<AtomicUsize>);

impl Gate {
    /// Lets `incoming` in, or answers it with a Retry, or ignores it.
    pub fn enter(&self, incoming: Incoming) -> Option<(Incoming, Pass)> {
        let under_way = self.under_way.load(Relaxed);
        if under_way >= IGNORE_FROM {
            incoming.ignore();
            return None;
        }
        if under_way >= RETRY_FROM && !incoming.remote_address_validated() {
            // It can only fail for an address that is validated already.
            let _ = incoming.retry();
            return None;
        }
        self.under_way.fetch_add(1, Relaxed);
        Some((incoming, Pass(self.under_way.clone())))
    }

    /// Counts a refused key; `Some` if it may be logged, with how many were not since the last one.
    pub fn may_log(&self) -> Option<u64> {
        self.may_log_at(Instant::now())
    }

    fn may_log_at(&self, now: Instant) -> Option<u64> {
        let refused = self.refused.fetch_add(1, Relaxed) + 1;
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((then, _)) if now.duration_since(then) < LOG_INTERVAL => None,
            before => {
                *last = Some((now, refused));
                Some(refused - 1 - before.map_or(0, |(_, logged)| logged))
            }
        }
    }

    /// Connections refused for their key.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second() {
        let (gate, start) = (Gate::default(), Instant::now());
        assert_eq!(gate.may_log_at(start), Some(0));
        for _ in 0..100 {
            assert_eq!(gate.may_log_at(start + LOG_INTERVAL / 2), None);
        }
        assert_eq!(gate.may_log_at(start + LOG_INTERVAL), Some(100));
        assert_eq!(gate.refused(), 102);
    }
}
