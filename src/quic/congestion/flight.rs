//! What was under way when each packet was sent.
//!
//! A packet's round trip tells of the queue that it met, which is what was under way when it was sent; what is
//! under way when it is acknowledged may be of another burst.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Sends of which is kept what was under way: quinn sends several packets at one moment.
const MOST: usize = 16 * 1024;

/// What a probe timeout has beside round trips (RFC 9000 §18.2).
const LATE: Duration = Duration::from_millis(25);

/// How slowly the longest time is forgotten that a loss may be found after, with each acknowledged packet.
const FORGOTTEN: u32 = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Flight {
    sends: VecDeque<(Instant, u64)>,
    /// How long after a packet was sent its loss may be found.
    known_after: Duration,
}

impl Flight {
    /// A packet leaves; with it `in_flight` bytes are under way.
    pub(super) fn sent(&mut self, now: Instant, in_flight: u64) {
        if let Some((at, most)) = self.sends.back_mut()
            && *at == now
        {
            *most = in_flight;
            return;
        }
        if self.sends.len() == MOST {
            self.sends.pop_front();
        }
        self.sends.push_back((now, in_flight));
    }

    /// What was under way after the packet of `sent`, which was acknowledged or lost; `None` for a late one.
    pub(super) fn at(&self, sent: Instant) -> Option<u64> {
        let at = self.sends.binary_search_by_key(&sent, |(at, _)| *at).ok()?;
        self.sends.get(at).map(|(_, in_flight)| *in_flight)
    }

    /// Forgets what is known to have arrived or not, as a packet of `sent` has arrived.
    pub(super) fn arrived(&mut self, now: Instant, sent: Instant) {
        // A loss is found two round trips after the packet was sent and when the next acknowledgement comes, a lost
        // tail after two probe timeouts (RFC 9002 §6.2). Where packets overtake one another, some take far less than others.
        let after = 3 * now.saturating_duration_since(sent) + LATE;
        self.known_after = after.max(self.known_after - self.known_after / FORGOTTEN);
        let known = sent.checked_sub(self.known_after);
        while self.sends.front().is_some_and(|(at, _)| Some(*at) < known) {
            self.sends.pop_front();
        }
    }
}
