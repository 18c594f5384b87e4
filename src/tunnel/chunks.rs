//! Memory from which packets are cut, one behind the other.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Memory to cut packets from. A chunk is reused when all its packets are gone.
///
/// Of several such chunks, the one that was filled last comes first: it is still in the processor's cache. If they took
/// turns, each would be fetched from memory again, however few are needed at once. One whose packets are not gone hides those that
/// were filled after it.
#[derive(Debug)]
pub(crate) struct Chunks {
    size: usize,
    kept: usize,
    current: Option<BytesMut>,
    /// Chunks with packets, oldest first.
    used: VecDeque<BytesMut>,
    /// Chunks without. Those that were filled last come last, and are used first.
    free: Vec<BytesMut>,
}

impl Chunks {
    /// Chunks of `size` bytes, of which at most `kept` are kept for reuse.
    pub(crate) fn new(size: usize, kept: usize) -> Self {
        Self { size, kept, current: None, used: VecDeque::new(), free: Vec::new() }
    }

    /// An empty chunk with room for `size` bytes more.
    pub(crate) fn room(&mut self, size: usize) -> &mut BytesMut {
        if !self.current.as_mut().is_some_and(|chunk| chunk.try_reclaim(size)) {
            let new = self.unused(self.size.max(size));
            self.used.extend(self.current.replace(new));
        }
        self.current.get_or_insert_default()
    }

    fn unused(&mut self, size: usize) -> BytesMut {
        while self.used.front_mut().is_some_and(|chunk| chunk.try_reclaim(self.size)) {
            self.free.extend(self.used.pop_front());
        }
        let reused = self.free.pop_if(|chunk| chunk.try_reclaim(size));
        if self.used.len() + self.free.len() >= self.kept {
            self.used.pop_front();
        }
        reused.unwrap_or_else(|| BytesMut::with_capacity(size))
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, Bytes};

    use super::*;

    const SIZE: usize = 4096;
    const KEPT: usize = 3;

    /// A packet that fills a chunk.
    fn cut(chunks: &mut Chunks) -> Bytes {
        let chunk = chunks.room(SIZE);
        chunk.put_bytes(0, SIZE);
        chunk.split().freeze()
    }

    #[test]
    fn one_chunk_is_enough_for_packets_that_are_gone_at_once() {
        let mut chunks = Chunks::new(SIZE, KEPT);
        let first = cut(&mut chunks).as_ptr();
        assert!((0..100).all(|_| cut(&mut chunks).as_ptr() == first));
    }

    #[test]
    fn of_free_chunks_the_one_that_was_filled_last_is_used_first() {
        let mut chunks = Chunks::new(SIZE, KEPT);
        let packets = [(); KEPT].map(|()| cut(&mut chunks));
        let [first, second, third] = packets.each_ref().map(|packet| packet.as_ptr());
        let [one, other, kept] = packets;
        drop([one, other]);
        let again = [(); 2].map(|()| cut(&mut chunks));
        assert_eq!(again.each_ref().map(|packet| packet.as_ptr()), [second, first]);
        drop(kept);
        assert_eq!(cut(&mut chunks).as_ptr(), third);
    }

    #[test]
    fn what_is_kept_for_reuse_is_bounded() {
        let mut chunks = Chunks::new(SIZE, KEPT);
        let packets: Vec<_> = (0..100).map(|_| cut(&mut chunks)).collect();
        assert!(chunks.used.len() + chunks.free.len() <= KEPT);
        drop(packets);
        cut(&mut chunks);
        assert!(chunks.used.len() + chunks.free.len() <= KEPT);
    }
}
