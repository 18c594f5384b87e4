//! Bounds the cost of unknown clients: handshakes and TCP connections under way, and log lines about them.
//!
//! quinn itself sends at most three times what an unvalidated address sent (RFC 9000 §8.1).

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::Incoming;
use tokio::sync::oneshot;

use super::gate::{Gate, Verdict};
use crate::{clock, mutex::Mutex};

/// How long a client may take to prove its key: a round trip of one second and two retransmissions.
pub(crate) const PROOF_TIMEOUT: Duration = Duration::from_secs(3);
/// The minimum time between two log lines about refused keys.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Admits handshakes within the limits of a [`Gate`], and log lines about refused keys.
#[derive(Debug)]
pub(crate) struct HandshakeLimiter {
    inner: Arc<Mutex<Inner>>,
    refused: AtomicU64,
    last_line: Mutex<Option<(Instant, u64)>>,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    /// Dropped when a newer handshake replaces this one.
    stays: HashMap<u64, oneshot::Sender<Infallible>>,
}

/// The permit of a handshake under way. The handshake counts until this is dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    id: u64,
    since: Instant,
    inner: Arc<Mutex<Inner>>,
    stays: oneshot::Receiver<Infallible>,
}

/// A client that is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It must prove its address.
    Retry,
    /// It gets no answer.
    Ignore,
}

impl Default for HandshakeLimiter {
    fn default() -> Self {
        let inner = Inner { gate: Gate::new(clock::now()), stays: HashMap::new() };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            refused: AtomicU64::default(),
            last_line: Mutex::default(),
        }
    }
}

impl Inner {
    fn give_way(&mut self, others: &[u64]) {
        for other in others {
            self.stays.remove(other);
        }
    }
}

impl HandshakeLimiter {
    /// Admits `incoming`, answers it with a Retry, or ignores it. Its client is at `source`, and `is_validated` says
    /// that it has proved that.
    pub(crate) fn enter(
        &self,
        incoming: Incoming,
        source: IpAddr,
        is_validated: bool,
    ) -> Option<(Incoming, HandshakePermit)> {
        match self.admit(source, is_validated || incoming.remote_address_validated()) {
            Ok(permit) => Some((incoming, permit)),
            Err(Refusal::Retry) => {
                // It fails only for an address that is already validated.
                let _ = incoming.retry();
                None
            }
            Err(Refusal::Ignore) => {
                incoming.ignore();
                None
            }
        }
    }

    /// Admits a client at `source`; `is_validated` says that it has proved that it is there.
    pub(crate) fn admit(
        &self,
        source: IpAddr,
        is_validated: bool,
    ) -> Result<HandshakePermit, Refusal> {
        self.admitted(|gate| gate.enter(source, is_validated, clock::now()))
    }

    /// Admits a TCP connection of a client at `source`.
    pub(crate) fn admit_over_tcp(&self, source: IpAddr) -> Result<HandshakePermit, Refusal> {
        self.admitted(|gate| gate.enter_over_tcp(source, clock::now()))
    }

    fn admitted(
        &self,
        enter: impl FnOnce(&mut Gate) -> Verdict,
    ) -> Result<HandshakePermit, Refusal> {
        let mut inner = self.inner.lock();
        match enter(&mut inner.gate) {
            Verdict::Admit { id, give_way } => {
                inner.give_way(&give_way);
                let (holds, stays) = oneshot::channel();
                inner.stays.insert(id, holds);
                let (since, inner) = (clock::now(), self.inner.clone());
                Ok(HandshakePermit { id, since, inner, stays })
            }
            Verdict::Retry => Err(Refusal::Retry),
            Verdict::Ignore => Err(Refusal::Ignore),
        }
    }

    /// Counts a refused key. `Some` if it may be logged, with the number of refusals that were not
    /// logged since the last line.
    pub(crate) fn may_log(&self) -> Option<u64> {
        self.may_log_at(clock::now())
    }

    fn may_log_at(&self, now: Instant) -> Option<u64> {
        let refused = self.refused.fetch_add(1, Relaxed) + 1;
        let mut last = self.last_line.lock();
        match *last {
            Some((then, _)) if now.duration_since(then) < LOG_INTERVAL => None,
            before => {
                *last = Some((now, refused));
                Some(refused - 1 - before.map_or(0, |(_, logged)| logged))
            }
        }
    }

    /// The number of connections that were refused for their key.
    #[must_use]
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

impl HandshakePermit {
    /// Waits until a newer handshake replaces this one.
    pub(crate) async fn must_give_way(&mut self) {
        let Err(_closed) = (&mut self.stays).await;
    }

    /// The client of a TCP connection asked for datagrams; see [`Gate::asked_for_datagrams`].
    pub(crate) fn asked_for_datagrams(&self) {
        let mut inner = self.inner.lock();
        let give_way = inner.gate.asked_for_datagrams(self.id);
        inner.give_way(&give_way);
    }

    /// The handshake's own task runs: as long as it had to wait, a packet of a session waits as well.
    pub(crate) fn begins(&self) {
        self.inner.lock().gate.waited(clock::now().saturating_duration_since(self.since));
    }

    /// The client proved a known key; `false` if a newer handshake has replaced this one. If not, `returns` says whether
    /// the client comes back after it had no session; it may take other locks.
    #[must_use]
    pub(crate) fn proven(self, returns: impl FnOnce() -> bool) -> bool {
        let stays = self.inner.lock().gate.proven(self.id);
        if stays && returns() {
            self.inner.lock().gate.returned();
        }
        stays
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        inner.gate.ended(self.id);
        inner.stays.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second() {
        let (limiter, start) = (HandshakeLimiter::default(), Instant::now());
        assert_eq!(limiter.may_log_at(start), Some(0));
        for _ in 0..100 {
            assert_eq!(limiter.may_log_at(start + LOG_INTERVAL / 2), None);
        }
        assert_eq!(limiter.may_log_at(start + LOG_INTERVAL), Some(100));
        assert_eq!(limiter.refused(), 102);
    }
}
