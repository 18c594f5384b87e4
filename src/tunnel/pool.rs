//! Memory that the queues of a server share, and memory that what it keeps for repairs shares, so that no client can fill
//! it through the queues of others, and all clients together take no more than that.
//!
//! A queue may take a fraction of the memory that all others leave free: one half if it flows, one eighth if
//! it is held. Some memory is therefore always left, and a queue must give up part of its own as soon as
//! others need it (a dynamic threshold: Choudhury and Hahne, "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The divisor for a flowing queue. Such a queue may take more than a held one, because it is soon empty.
const FLOWING: usize = 2;
/// The divisor for a held queue.
const HELD: usize = 8;

/// The bytes of memory that a queue may take when the others have taken `others` of `all`.
fn limit(all: usize, others: usize, held: bool) -> usize {
    all.saturating_sub(others) / if held { HELD } else { FLOWING }
}

/// Bytes of memory that several queues share.
#[derive(Debug)]
pub struct Pool {
    all: usize,
    taken: AtomicUsize,
}

impl Pool {
    /// At most `all` bytes.
    #[must_use]
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: AtomicUsize::new(0) })
    }
}

/// The memory that one queue, or what is kept for the repairs of one session, takes from a pool; returned on drop.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// `None` if its own capacity is the only limit.
    pool: Option<Arc<Pool>>,
    taken: usize,
}

impl Share {
    pub(crate) fn of(pool: Arc<Pool>) -> Self {
        Self { pool: Some(pool), taken: 0 }
    }

    /// The bytes that the queue may take.
    pub(crate) fn limit(&self, held: bool) -> usize {
        self.pool.as_ref().map_or(usize::MAX, |pool| {
            limit(pool.all, pool.taken.load(Relaxed).saturating_sub(self.taken), held)
        })
    }

    /// Sets the bytes that the queue takes.
    pub(crate) fn take(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.taken, bytes);
        if let Some(pool) = &self.pool
            && bytes != before
        {
            // What was added is subtracted later: it wraps around, and comes out even.
            pool.taken.fetch_add(bytes.wrapping_sub(before), Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.take(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: usize = 16 << 20;
    const MOST: usize = 1 << 20;

    /// Has a queue ask for as many bytes; it gets what it may.
    fn ask(share: &mut Share, wanted: usize, held: bool) {
        let granted = wanted.min(MOST).min(share.limit(held));
        share.take(granted);
    }

    proptest! {
        #[test]
        fn all_queues_together_never_exceed_the_pool(
            steps in proptest::collection::vec((0usize..200, 0..2 * MOST, any::<bool>()), 1..2000),
        ) {
            let pool = Pool::new(ALL);
            let mut shares: Vec<_> = (0..200).map(|_| Share::of(pool.clone())).collect();
            for (number, wanted, held) in steps {
                ask(&mut shares[number], wanted, held);
                prop_assert!(pool.taken.load(Relaxed) <= ALL);
                prop_assert_eq!(
                    pool.taken.load(Relaxed),
                    shares.iter().map(|share| share.taken).sum::<usize>()
                );
            }
            drop(shares);
            prop_assert_eq!(pool.taken.load(Relaxed), 0);
        }

        #[test]
        fn greedy_held_queues_get_equal_shares_and_leave_one_for_a_newcomer(count in 1usize..300) {
            let pool = Pool::new(ALL);
            let mut shares: Vec<_> = (0..count).map(|_| Share::of(pool.clone())).collect();
            for _ in 0..1000 {
                shares.iter_mut().for_each(|share| ask(share, usize::MAX, true));
            }
            let newcomer = Share::of(pool.clone());
            // Each takes an eighth of what the others leave.
            let fair = (ALL / (HELD - 1 + count)).min(MOST);
            let near = |share: &Share| (fair * 99 / 100..=fair * 101 / 100).contains(&share.taken);
            prop_assert!(shares.iter().all(near), "{shares:?}");
            prop_assert!(newcomer.limit(true) >= fair * 85 / 100);
            prop_assert!(newcomer.limit(false) >= fair * 3);
        }
    }

    #[test]
    fn a_queue_without_a_pool_has_no_pool_limit() {
        assert_eq!(Share::default().limit(true), usize::MAX);
    }
}
