//! Memory from which packets are cut, one behind the other.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Memory to cut packets from. A chunk is reused when all its packets are gone.
#[derive(Debug)]
pub(crate) struct Chunks {
    size: usize,
    kept: usize,
    current: BytesMut,
    /// Used chunks, oldest first.
    used: VecDeque<BytesMut>,
}

impl Chunks {
    /// Chunks of `size` bytes, of which at most `kept` are kept for reuse.
    pub(crate) fn new(size: usize, kept: usize) -> Self {
        Self { size, kept, current: BytesMut::new(), used: VecDeque::new() }
    }

    /// An empty chunk with room for `size` bytes more.
    pub(crate) fn room(&mut self, size: usize) -> &mut BytesMut {
        if self.current.capacity() < size {
            let size = self.size.max(size);
            let free = self.used.front_mut().is_some_and(|chunk| chunk.try_reclaim(size));
            let new = match self.used.pop_front() {
                Some(chunk) if free => chunk,
                Some(chunk) if self.used.len() < self.kept => {
                    self.used.push_front(chunk);
                    BytesMut::with_capacity(size)
                }
                Some(_) | None => BytesMut::with_capacity(size),
            };
            self.used.push_back(std::mem::replace(&mut self.current, new));
        }
        &mut self.current
    }
}
