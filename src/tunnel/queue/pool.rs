//! Memory that the queues of a server share, so that no one fills it through the queues of many.
//!
//! A queue may take a share of what all others leave free: half of it if it flows, an eighth if it is held.
//! Whatever the others hold, something is left, and each has to give up some of what it took alone as
//! soon as others need it (a dynamic threshold: Choudhury and Hahne, "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The share of a queue that flows, one in as many: it is the more useful, and soon empty.
const FLOWING: usize = 2;
/// That of a held one.
const HELD: usize = 8;

/// How many bytes of memory a queue may take when the others have taken `others` of `all`.
fn limit(all: usize, others: usize, held: bool) -> usize {
    all.saturating_sub(others) / if held { HELD } else { FLOWING }
}

/// Bytes of memory for some queues together.
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

/// What one queue takes of a pool; given back when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Without one, the queue's own capacity is its only limit.
    pool: Option<Arc<Pool>>,
    taken: usize,
}

impl Share {
    pub(super) fn of(pool: Arc<Pool>) -> Self {
        Self { pool: Some(pool), taken: 0 }
    }

    /// How many bytes the queue may take.
    pub(super) fn limit(&self, held: bool) -> usize {
        self.pool.as_ref().map_or(usize::MAX, |pool| {
            limit(pool.all, pool.taken.load(Relaxed).saturating_sub(self.taken), held)
        })
    }

    /// The queue takes as many bytes.
    pub(super) fn take(&mut self, bytes: usize) {
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
        fn all_queues_together_never_take_more_than_there_is(
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
        fn greedy_held_queues_leave_each_other_and_a_newcomer_as_much(count in 1usize..300) {
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
    fn a_queue_of_its_own_has_no_other_limit() {
        assert_eq!(Share::default().limit(true), usize::MAX);
    }
}
