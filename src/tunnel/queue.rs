//! The queue between the TUN device and the connection.
//!
//! Bounded in bytes. Where it overflows, the oldest packet gives way: its sender has waited longest
//! and will sooner hear of the loss. Both ends work in batches, so that the lock is taken once for
//! many packets.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// A bounded first-in, first-out queue of inner packets.
#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    pushed: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    /// A queue of at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { waiting: Mutex::default(), pushed: Notify::new(), capacity }
    }

    /// Takes all of `batch`; returns how many older packets gave way.
    pub fn push(&self, batch: &mut Vec<Bytes>) -> u64 {
        let mut dropped = 0;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for packet in batch.drain(..) {
                waiting.bytes += packet.len();
                waiting.packets.push_back(packet);
            }
            while waiting.bytes > self.capacity {
                let Some(oldest) = waiting.packets.pop_front() else { break };
                waiting.bytes -= oldest.len();
                dropped += 1;
            }
        }
        self.pushed.notify_one();
        dropped
    }

    /// Waits for packets and moves at most `limit` of them to the end of `batch`. Cancel safe.
    pub async fn pop(&self, batch: &mut Vec<Bytes>, limit: usize) {
        loop {
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let count = waiting.packets.len().min(limit);
                if count > 0 {
                    let before = batch.len();
                    batch.extend(waiting.packets.drain(..count));
                    waiting.bytes -= batch[before..].iter().map(Bytes::len).sum::<usize>();
                    return;
                }
            }
            self.pushed.notified().await;
        }
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn packets(lengths: &[usize]) -> Vec<Bytes> {
        lengths.iter().map(|length| vec![*length as u8; *length].into()).collect()
    }

    #[test]
    fn packets_leave_in_the_order_in_which_they_came() {
        let queue = Queue::new(1000);
        assert_eq!(queue.push(&mut packets(&[1, 2, 3])), 0);
        let mut batch = Vec::new();
        assert!(queue.pop(&mut batch, 2).now_or_never().is_some());
        assert!(queue.pop(&mut batch, 2).now_or_never().is_some());
        assert_eq!(batch, packets(&[1, 2, 3]));
        assert_eq!(queue.bytes(), 0);
        assert!(queue.pop(&mut batch, 2).now_or_never().is_none());
    }

    #[test]
    fn the_oldest_gives_way_when_the_queue_overflows() {
        let queue = Queue::new(10);
        assert_eq!(queue.push(&mut packets(&[4, 5])), 0);
        assert_eq!(queue.push(&mut packets(&[3])), 1);
        let mut batch = Vec::new();
        assert!(queue.pop(&mut batch, 9).now_or_never().is_some());
        assert_eq!(batch, packets(&[5, 3]));
    }

    #[tokio::test]
    async fn a_push_wakes_the_reader() {
        let queue = std::sync::Arc::new(Queue::new(10));
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move {
                let mut batch = Vec::new();
                queue.pop(&mut batch, 1).await;
                batch
            }
        });
        tokio::task::yield_now().await;
        queue.push(&mut packets(&[7]));
        assert_eq!(reader.await.unwrap(), packets(&[7]));
    }
}
