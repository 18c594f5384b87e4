//! Capsules that wait to be written to a TCP connection.

use std::{
    io, mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use quinn::udp::Transmit;
use tokio::sync::Notify;

use crate::wire::capsule;

/// Capsules that wait, up to a number of bytes and one transmit more.
#[derive(Debug)]
pub(crate) struct Outbox {
    most: usize,
    kept: Mutex<Kept>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    capsules: BytesMut,
    /// Tasks that wait for room.
    waiting: Vec<Waker>,
    is_closed: bool,
}

impl Outbox {
    /// An empty one that has room until `most` bytes wait.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        Self { most, kept: Mutex::default(), filled: Notify::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the datagrams of a transmit: all, or none if there is no room (`WouldBlock`) or the connection has ended
    /// (`BrokenPipe`).
    pub(crate) fn push(&self, transmit: &Transmit) -> io::Result<()> {
        let mut kept = self.kept();
        if kept.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if kept.capsules.len() >= self.most {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let contents = transmit.contents;
        for payload in contents.chunks(transmit.segment_size.unwrap_or(contents.len()).max(1)) {
            capsule::encode(payload, &mut kept.capsules);
        }
        drop(kept);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for room.
    pub(crate) fn poll_room(&self, cx: &mut Context) -> Poll<()> {
        let mut kept = self.kept();
        if kept.is_closed || kept.capsules.len() < self.most {
            return Poll::Ready(());
        }
        if !kept.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            kept.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits for capsules and moves them all into `batch`, which is empty. Cancel safe.
    pub(crate) async fn take(&self, batch: &mut BytesMut) {
        while !self.swap(batch) {
            self.filled.notified().await;
        }
    }

    fn swap(&self, batch: &mut BytesMut) -> bool {
        let mut kept = self.kept();
        if kept.capsules.is_empty() {
            return false;
        }
        mem::swap(&mut kept.capsules, batch);
        kept.waiting.drain(..).for_each(Waker::wake);
        true
    }

    /// The connection has ended.
    pub(crate) fn close(&self) {
        let mut kept = self.kept();
        kept.is_closed = true;
        kept.capsules = BytesMut::new();
        kept.waiting.drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::wire::capsule::Decoder;

    fn push(outbox: &Outbox, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let destination = ([192, 0, 2, 1], 443).into();
        outbox.push(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None })
    }

    fn kind(result: io::Result<()>) -> Option<io::ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn each_segment_of_a_transmit_is_a_capsule() {
        let (outbox, mut batch) = (Outbox::new(1), BytesMut::new());
        assert!(outbox.take(&mut batch).now_or_never().is_none(), "nothing to take");
        push(&outbox, &[7; 2500], Some(1000)).unwrap();
        assert!(outbox.take(&mut batch).now_or_never().is_some());
        let mut decoder = Decoder::new(1500);
        decoder.buffer().extend_from_slice(&batch);
        let lengths = std::iter::from_fn(|| decoder.next().unwrap()).map(|payload| payload.len());
        assert_eq!(lengths.collect::<Vec<_>>(), [1000, 1000, 500]);
    }

    #[test]
    fn a_full_outbox_holds_the_sender_back_until_it_is_emptied() {
        let outbox = Outbox::new(2000);
        let mut cx = Context::from_waker(Waker::noop());
        push(&outbox, &[1; 1200], None).unwrap();
        assert!(outbox.poll_room(&mut cx).is_ready());
        push(&outbox, &[2; 1200], None).unwrap();
        assert!(outbox.poll_room(&mut cx).is_pending());
        assert_eq!(kind(push(&outbox, &[3], None)), Some(io::ErrorKind::WouldBlock));
        let mut batch = BytesMut::new();
        outbox.take(&mut batch).now_or_never().unwrap();
        assert_eq!(batch.len(), 2 * 1204);
        assert!(outbox.poll_room(&mut cx).is_ready());
        push(&outbox, &[4], None).unwrap();
    }

    #[test]
    fn nothing_waits_for_a_connection_that_has_ended() {
        let outbox = Outbox::new(1);
        push(&outbox, &[1; 1200], None).unwrap();
        outbox.close();
        assert!(outbox.poll_room(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(kind(push(&outbox, &[3], None)), Some(io::ErrorKind::BrokenPipe));
        assert!(outbox.take(&mut BytesMut::new()).now_or_never().is_none());
    }
}
