//! What changed lately, and how often each reason changed it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::answer::since;
use crate::clock;

/// Changes that are remembered.
pub(super) const REMEMBERED: usize = 16;

/// The last changes of a kind, and how many there were.
#[derive(Debug)]
pub(super) struct History<T, R> {
    last: VecDeque<(Instant, T)>,
    by_reason: BTreeMap<R, u64>,
}

impl<T, R> Default for History<T, R> {
    fn default() -> Self {
        Self { last: VecDeque::new(), by_reason: BTreeMap::new() }
    }
}

impl<T: Clone, R: Ord + Clone> History<T, R> {
    /// Takes in a change that was just over.
    pub(super) fn add(&mut self, change: T, reason: R) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back((clock::now(), change));
        *self.by_reason.entry(reason).or_default() += 1;
    }

    /// The last changes, oldest first; `aged` sets how many seconds ago each was over.
    pub(super) fn last(&self, aged: impl Fn(f64, T) -> T) -> Vec<T> {
        self.last.iter().map(|(at, change)| aged(since(*at), change.clone())).collect()
    }

    /// How often each reason was one since the daemon started.
    pub(super) fn by_reason(&self) -> BTreeMap<R, u64> {
        self.by_reason.clone()
    }
}
