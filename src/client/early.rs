//! What goes with the first packet of a handshake.

use std::sync::Arc;

use bytes::Bytes;

use super::Client;
use crate::tunnel::queue::Taken;

/// Bytes of packets that go with the first flight of a handshake: less than a fresh window holds.
const EARLY: usize = 8 * 1024;

/// Packets that go with the first packet of a handshake. Those that did not arrive are in the queue again.
pub(super) struct Early<'a> {
    client: &'a Client,
    taken: Option<Taken>,
}

impl<'a> Early<'a> {
    /// Takes what there is, if it `hurries`.
    pub(super) fn take(client: &'a Client, hurries: bool) -> Self {
        let taken = hurries.then(|| {
            let (taken, dropped) = client.queue.take_early(EARLY);
            client.counters.dropped_by_queue(dropped);
            taken
        });
        Self { client, taken }
    }

    pub(super) fn datagrams(&self) -> Arc<[Bytes]> {
        self.taken.as_ref().map(Taken::datagrams).unwrap_or_default()
    }

    pub(super) fn arrived(mut self) {
        let early = self.datagrams();
        let bytes = early.iter().map(|packet| packet.len() as u64).sum();
        self.client.counters.sent.add(early.len() as u64, bytes);
        self.taken = None;
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.client.queue.put_back(taken);
        }
    }
}
