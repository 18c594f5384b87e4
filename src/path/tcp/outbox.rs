//! Capsules that wait to be written to a TCP connection.
//!
//! ```text
//!  push ─▶ capsules ─ take, one TLS record at most ─▶ batch ─▶ TCP
//!          └──────────── at most the limit ───────────┘
//! ```
//! What waits here is not in the tunnel's queue, which lets small packets overtake. So the limit is what the connection
//! writes in [`DELAY`], as measured while something waited, within fixed bounds.

use std::{
    io,
    sync::MutexGuard,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use quinn::udp::Transmit;
use tokio::sync::Notify;

use crate::{clock, mutex::Mutex, wire::capsule};

/// How long a datagram may wait, about.
const DELAY: Duration = Duration::from_millis(30);
/// Bytes that may wait however slow the connection is: one batch of TLS.
const LEAST: usize = 16 * 1024;
/// Bytes of one batch: what a TLS record holds (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
/// Memory in bytes that an empty outbox keeps.
const KEPT: usize = 32 * 1024;
/// A rate is that of so long a time in which something waited all along.
const MEASURED: Duration = Duration::from_millis(100);

/// Capsules that wait, up to a number of bytes and one transmit more.
#[derive(Debug)]
pub(crate) struct Outbox {
    kept: Mutex<Kept>,
    filled: Notify,
}

#[derive(Debug)]
struct Kept {
    most: usize,
    capsules: BytesMut,
    /// Bytes that were taken and are not written yet.
    taken: usize,
    drain: Drain,
    /// Tasks that wait for room.
    waiting: Vec<Waker>,
    is_closed: bool,
}

/// How fast a connection writes.
#[derive(Debug, Default)]
struct Drain {
    /// Since when something waits, and the bytes written since then.
    busy: Option<(Instant, usize)>,
    /// Bytes per second.
    rate: Option<f64>,
}

impl Drain {
    /// So many bytes were written. `is_empty` says that no more wait.
    fn wrote(&mut self, bytes: usize, is_empty: bool, now: Instant) {
        let Some((since, written)) = &mut self.busy else { return };
        *written += bytes;
        let time = now.saturating_duration_since(*since);
        if time >= MEASURED {
            self.rate = Some(*written as f64 / time.as_secs_f64());
            self.busy = Some((now, 0));
        }
        if is_empty {
            self.busy = None;
        }
    }

    fn wait(&mut self, now: Instant) {
        self.busy.get_or_insert((now, 0));
    }

    /// Bytes that may wait, `most` at most.
    fn limit(&self, most: usize) -> usize {
        let in_time = self.rate.map_or(most, |rate| (rate * DELAY.as_secs_f64()) as usize);
        in_time.max(LEAST).min(most)
    }
}

impl Kept {
    fn has_room(&self) -> bool {
        self.capsules.len() + self.taken < self.drain.limit(self.most)
    }

    fn wake(&mut self) {
        if self.has_room() || self.is_closed {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }

    fn clear(&mut self) {
        self.capsules = BytesMut::new();
        self.taken = 0;
        self.drain = Drain::default();
        self.wake();
    }
}

impl Outbox {
    /// An empty one that has room until `most` bytes wait.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        let kept = Kept {
            most,
            capsules: BytesMut::new(),
            taken: 0,
            drain: Drain::default(),
            waiting: Vec::new(),
            is_closed: false,
        };
        Self { kept: Mutex::new(kept), filled: Notify::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    /// Has room until `most` bytes wait.
    pub(crate) fn allow(&self, most: usize) {
        self.kept().most = most;
    }

    /// Adds the datagrams of a transmit: all, or none if there is no room (`WouldBlock`) or the connection has ended
    /// (`BrokenPipe`).
    pub(crate) fn push(&self, transmit: &Transmit) -> io::Result<()> {
        let mut kept = self.kept();
        if kept.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !kept.has_room() {
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
        if kept.is_closed || kept.has_room() {
            return Poll::Ready(());
        }
        if !kept.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            kept.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The `batch` taken before is written. Waits for capsules and moves them there, as many as one TLS record holds.
    /// Cancel safe.
    pub(crate) async fn take(&self, batch: &mut BytesMut) {
        batch.clear();
        self.written(clock::now());
        while !self.take_some(batch, clock::now()) {
            self.filled.notified().await;
        }
    }

    fn written(&self, now: Instant) {
        let mut kept = self.kept();
        let (taken, is_empty) = (std::mem::take(&mut kept.taken), kept.capsules.is_empty());
        kept.drain.wrote(taken, is_empty, now);
        kept.wake();
    }

    fn take_some(&self, batch: &mut BytesMut, now: Instant) -> bool {
        let mut kept = self.kept();
        let count = kept.capsules.len().min(RECORD);
        if count == 0 {
            return false;
        }
        batch.extend_from_slice(&kept.capsules[..count]);
        kept.capsules.advance(count);
        kept.taken = count;
        kept.drain.wait(now);
        if kept.capsules.is_empty() {
            // The memory is used again, unless it is much.
            kept.capsules.clear();
            if !kept.capsules.try_reclaim(1) || kept.capsules.capacity() > KEPT {
                kept.capsules = BytesMut::new();
            }
        }
        true
    }

    /// The connection has ended and another one may follow, to which what waits is of no use: it is late, and its
    /// beginning may be missing.
    pub(crate) fn clear(&self) {
        self.kept().clear();
    }

    /// The last connection has ended.
    pub(crate) fn close(&self) {
        let mut kept = self.kept();
        kept.is_closed = true;
        kept.clear();
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
        assert!(outbox.poll_room(&mut cx).is_pending(), "what is being written counts");
        assert!(outbox.take(&mut batch).now_or_never().is_none());
        assert!(outbox.poll_room(&mut cx).is_ready());
        push(&outbox, &[4], None).unwrap();
    }

    /// Fills the outbox, and writes one batch every so many milliseconds for four seconds; the bytes that waited at most
    /// in the last two.
    fn waited(most: usize, every: u64) -> usize {
        let (outbox, mut batch, begun) = (Outbox::new(most), BytesMut::new(), Instant::now());
        let mut waited = 0;
        for millisecond in 0..4000 {
            while push(&outbox, &[1; 12_000], Some(1200)).is_ok() {}
            if millisecond >= 2000 {
                let kept = outbox.kept();
                waited = waited.max(kept.capsules.len() + kept.taken);
            }
            if millisecond % every == 0 {
                let now = begun + Duration::from_millis(millisecond);
                outbox.written(now);
                batch.clear();
                assert!(outbox.take_some(&mut batch, now));
                assert!(batch.len() <= RECORD);
            }
        }
        waited
    }

    #[test]
    fn no_more_waits_than_the_connection_writes_in_a_moment() {
        const MOST: usize = 128 * 1024;
        let transmit = 12_040;
        // 16 kB each 13 ms are 10 Mbit/s.
        for (every, expected) in [(1, MOST), (13, 38_000), (100, LEAST)] {
            let waited = waited(MOST, every);
            let range = expected * 9 / 10..=expected * 11 / 10 + transmit;
            assert!(range.contains(&waited), "{every} {waited} {range:?}");
        }
        assert!(waited(LEAST, 1) <= LEAST + transmit);
    }

    #[test]
    fn what_waited_for_an_ended_connection_is_not_written_to_the_next_one() {
        let (outbox, mut batch) = (Outbox::new(2000), BytesMut::new());
        push(&outbox, &[1; 1200], None).unwrap();
        outbox.take(&mut batch).now_or_never().unwrap();
        push(&outbox, &[2; 1200], None).unwrap();
        outbox.clear();
        assert!(outbox.take(&mut batch).now_or_never().is_none());
        push(&outbox, &[3; 10], None).unwrap();
        outbox.take(&mut batch).now_or_never().unwrap();
        assert_eq!(batch.len(), 14);
    }

    #[test]
    fn an_empty_outbox_keeps_little_memory() {
        let (outbox, mut batch) = (Outbox::new(128 * 1024), BytesMut::new());
        while push(&outbox, &[1; 12_000], Some(1200)).is_ok() {}
        while outbox.take(&mut batch).now_or_never().is_some() {}
        assert!(outbox.kept().capsules.capacity() <= KEPT);
        assert!(batch.capacity() <= KEPT);
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
