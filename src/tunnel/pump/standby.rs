//! Copies over the standby: what goes there, and what comes from there.
//!
//! A path that is late may be dead, and to decide that takes a quarter of a second and more. Meanwhile small packets go a
//! second time over the standby's probe connection. Their numbers make copies harmless.

use std::{
    collections::VecDeque,
    sync::{
        MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::Notify;

use crate::{
    mutex::Mutex,
    tunnel::flow,
    wire::{datagram::encode_offer, numbered},
};

/// Copies that wait to be taken. Further ones are dropped: they are copies.
const INBOX: usize = 256;
/// Bytes around a copy on the network (IP, UDP, QUIC), about.
const OVERHEAD: u32 = 64;
/// Bytes on the network of the largest copy. A standby whose budget has no room for it is of no use.
const LARGEST: u32 = (numbered::HEADER + flow::SMALL) as u32 + OVERHEAD;
/// Bytes a minute on a standby that is not metered, in both directions each, and the most that the other side may offer.
pub(crate) const UNMETERED: u32 = 256 << 10;
/// The same where the other side has sent a copy and not said how much may be sent back.
const UNTOLD: u32 = 64 << 10;
/// After so long without an offer it is made again, so that the connection is there when it is needed: many a NAT gives it
/// up after half a minute. Standbys that cost nothing are asked more often.
const KEEP: Duration = Duration::from_secs(25);
/// That suffices for a server whose connections end after so long without a packet, or longer: QUIC repairs an offer that
/// is lost within the rest. The client cannot know what is negotiated, so other servers see to it themselves.
pub(crate) const KEPT: Duration = Duration::from_secs(30);
/// A standby that was sent copies and acknowledged nothing for so long is as dead as the path in use.
const UNANSWERED: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Standby {
    way: Mutex<Way>,
    inbox: Mutex<VecDeque<Bytes>>,
    /// Copies wait in the inbox.
    arrived: Notify,
    /// A copy came before its original, and nothing over the path in use since.
    is_needed: AtomicBool,
}

/// The probe connection that is used, and what may be sent over it.
#[derive(Debug, Default)]
struct Way {
    connection: Option<Connection>,
    per_minute: u32,
    budget: Budget,
    /// When the offer is made again; none on the side that hears it.
    offer_at: Option<Instant>,
    /// When the first copy was sent since something was received, and what was received before it.
    unanswered: Option<(Instant, u64)>,
}

impl Way {
    /// The connection, unless it answers nothing.
    fn answering(&mut self, now: Instant) -> Option<&Connection> {
        self.connection.take_if(|connection| connection.close_reason().is_some());
        let connection = self.connection.as_ref()?;
        self.unanswered.take_if(|(_, before)| received(connection) != *before);
        let is_silent = self.unanswered.is_some_and(|(since, _)| since + UNANSWERED <= now);
        (!is_silent).then_some(connection)
    }

    fn offer(&mut self, now: Instant) {
        self.offer_at = None;
        let open = self.connection.as_ref().filter(|it| it.close_reason().is_none());
        if let Some(connection) = open {
            // One that is lost is made again, and a copy tells as much.
            let _ = connection.send_datagram(encode_offer(self.per_minute));
            self.offer_at = (self.per_minute > 0).then_some(now + KEEP);
        }
    }
}

/// Datagrams that came over a connection.
fn received(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}

impl Standby {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock()
    }

    /// Sends copies over this connection from here on, so many bytes a minute. Returns whether one of the two is another one.
    pub(super) fn use_over(&self, connection: &Connection, per_minute: u32) -> bool {
        let mut way = self.way();
        let is_as_much = std::mem::replace(&mut way.per_minute, per_minute) == per_minute;
        let id = connection.stable_id();
        let is_known = way.connection.as_ref().is_some_and(|known| known.stable_id() == id);
        if !is_known {
            (way.connection, way.unanswered) = (Some(connection.clone()), None);
        }
        !is_known || !is_as_much
    }

    /// Tells the other side how many bytes a minute it may send over the connection that is used.
    pub(super) fn offer(&self, now: Instant) {
        self.way().offer(now);
    }

    /// Makes the offer again if that is due; returns when it is due next.
    pub(super) fn keep(&self, now: Instant) -> Option<Instant> {
        let mut way = self.way();
        if way.offer_at? <= now {
            way.offer(now);
        }
        way.offer_at
    }

    /// A copy came over this connection: the other side hears copies there.
    pub(super) fn heard_over(&self, connection: &Connection) {
        let known = {
            let way = self.way();
            let id = connection.stable_id();
            way.connection.as_ref().is_some_and(|known| known.stable_id() == id)
        };
        if !known {
            self.use_over(connection, UNTOLD);
        }
    }

    /// There is no standby.
    pub(super) fn forget(&self) {
        let mut way = self.way();
        (way.connection, way.offer_at) = (None, None);
    }

    /// Whether copies can be sent now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let mut way = self.way();
        way.answering(now).is_some() && way.budget.has(LARGEST, way.per_minute, now)
    }

    /// How many small packets the budget has room for.
    pub(super) fn room(&self, now: Instant) -> usize {
        let way = self.way();
        way.budget.packets(LARGEST, way.per_minute, now)
    }

    /// Sends a copy if it fits and the budget allows it; whether it did.
    pub(super) fn send(&self, datagram: &Bytes, now: Instant) -> bool {
        let mut way = self.way();
        let Way { connection: Some(connection), per_minute, budget, unanswered, .. } = &mut *way
        else {
            return false;
        };
        let is_sent = budget.take(datagram.len() as u32 + OVERHEAD, *per_minute, now)
            && connection.send_datagram(datagram.clone()).is_ok();
        if is_sent {
            unanswered.get_or_insert_with(|| (now, received(connection)));
        }
        is_sent
    }

    /// Takes note of a copy that came.
    pub(super) fn arrive(&self, datagram: Bytes) {
        let mut inbox = self.inbox.lock();
        if inbox.len() < INBOX {
            inbox.push_back(datagram);
            self.arrived.notify_one();
        }
    }

    /// Waits until copies have come. Cancel safe.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// The copies that have come.
    pub(super) fn take(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.inbox.lock())
    }

    /// Whether the other side sends copies that are needed.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed.load(Relaxed)
    }

    /// A copy came before its original, or something came over the path in use. Returns what was the case before.
    pub(super) fn set_needed(&self, is_needed: bool) -> bool {
        self.is_needed.swap(is_needed, Relaxed)
    }
}

/// A token bucket: one minute's bytes may go at once.
#[derive(Debug, Default)]
struct Budget {
    /// Bytes that were spent and not yet earned again.
    spent: f64,
    at: Option<Instant>,
}

impl Budget {
    fn take(&mut self, bytes: u32, per_minute: u32, now: Instant) -> bool {
        let is_allowed = self.has(bytes, per_minute, now);
        (self.spent, self.at) = (self.spent_by(per_minute, now), Some(now));
        if is_allowed {
            self.spent += f64::from(bytes);
        }
        is_allowed
    }

    /// Whether so many bytes may be spent.
    fn has(&self, bytes: u32, per_minute: u32, now: Instant) -> bool {
        self.spent_by(per_minute, now) + f64::from(bytes) <= f64::from(per_minute)
    }

    /// How many packets of so many bytes may be sent.
    fn packets(&self, bytes: u32, per_minute: u32, now: Instant) -> usize {
        let left = f64::from(per_minute) - self.spent_by(per_minute, now);
        (left / f64::from(bytes)) as usize
    }

    /// What is spent and not yet earned again now.
    fn spent_by(&self, per_minute: u32, now: Instant) -> f64 {
        let since = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        (self.spent - since * f64::from(per_minute) / 60.0).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn no_more_is_sent_in_a_minute_than_the_budget_has() {
        let (mut budget, start) = (Budget::default(), clock::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let sent = |budget: &mut Budget, seconds: std::ops::Range<u64>| -> u32 {
            let times = seconds.flat_map(|at| (0..100).map(move |part| 1000 * at + 10 * part));
            times.map(|time| if budget.take(100, 6000, at(time)) { 100 } else { 0 }).sum()
        };
        assert_eq!(sent(&mut budget, 0..1), 6000, "a burst");
        assert!(!budget.has(500, 6000, at(1000)) && budget.has(500, 6000, at(7000)));
        assert_eq!([1000, 7000].map(|it| budget.packets(500, 6000, at(it))), [0, 1]);
        let minute = sent(&mut budget, 1..60);
        assert!((5800..=6000).contains(&minute), "{minute}");
        assert_eq!(sent(&mut budget, 600..601), 6000, "a burst after a pause");
        assert!(!budget.take(100, 0, start + Duration::from_secs(7200)), "none is allowed");
    }

    #[test]
    fn an_inbox_is_bounded() {
        let standby = Standby::default();
        (0..10 * INBOX).for_each(|_| standby.arrive(Bytes::from_static(&[3])));
        assert_eq!(standby.take().len(), INBOX);
        assert_eq!(standby.take().len(), 0);
    }
}
