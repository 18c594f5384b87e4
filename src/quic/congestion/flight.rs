//! What was under way when each packet was sent.
//!
//! A packet's round trip tells of the queue that it met, which is what was under way when it was sent; what is
//! under way when it is acknowledged may be of another burst.

use std::{collections::VecDeque, time::Instant};

/// Sends of which is kept what was under way: quinn sends several packets at one moment.
const MOST: usize = 16 * 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Flight(VecDeque<(Instant, u64)>);

impl Flight {
    /// A packet leaves; with it `in_flight` bytes are under way.
    pub(super) fn sent(&mut self, now: Instant, in_flight: u64) {
        if let Some((at, most)) = self.0.back_mut()
            && *at == now
        {
            *most = in_flight;
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((now, in_flight));
    }

    /// What was under way after the packet of `sent`, which was acknowledged; `None` for a late one.
    pub(super) fn at(&mut self, sent: Instant) -> Option<u64> {
        while self.0.front().is_some_and(|(at, _)| *at < sent) {
            self.0.pop_front();
        }
        self.0.front().filter(|(at, _)| *at == sent).map(|(_, in_flight)| *in_flight)
    }
}
