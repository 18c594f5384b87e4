//! Sets of numbers, kept as ranges: a jump over a million numbers costs as much as one over a single number.

use std::collections::BTreeMap;

/// Numbers, each range of them with a value.
#[derive(Debug)]
pub(super) struct Gaps<T> {
    /// By the first number: the first number after the range, and the value.
    ranges: BTreeMap<u64, (u64, T)>,
    numbers: u64,
}

impl<T> Default for Gaps<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new(), numbers: 0 }
    }
}

impl<T: Copy> Gaps<T> {
    /// Adds a range, none of whose numbers is in the set.
    pub(super) fn insert(&mut self, first: u64, end: u64, value: T) {
        if first < end {
            self.ranges.insert(first, (end, value));
            self.numbers += end - first;
        }
    }

    /// Removes a number; its value.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let (&first, &(end, value)) = self.ranges.range(..=number).next_back()?;
        if end <= number {
            return None;
        }
        self.ranges.remove(&first);
        self.numbers -= end - first;
        self.insert(first, number, value);
        self.insert(number + 1, end, value);
        Some(value)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, (end, _))| number < *end)
    }

    /// Removes the first `count` numbers of the first range, or fewer; the removed range.
    pub(super) fn remove_first(&mut self, count: u64) -> Option<(u64, u64)> {
        let (first, (end, value)) = self.ranges.pop_first()?;
        let middle = end.min(first.saturating_add(count));
        self.numbers -= end - first;
        self.insert(middle, end, value);
        Some((first, middle))
    }

    /// Removes the ranges whose value is not kept by `keep`; appends them to `removed`.
    pub(super) fn retain(
        &mut self,
        removed: &mut Vec<(u64, u64)>,
        mut keep: impl FnMut(u64, u64, &mut T) -> bool,
    ) {
        let numbers = &mut self.numbers;
        self.ranges.retain(|first, (end, value)| {
            let kept = keep(*first, *end, value);
            if !kept {
                *numbers -= *end - first;
                removed.push((*first, *end));
            }
            kept
        });
    }

    /// The ranges: the first number, the one after the last, and the value.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64, T)> {
        self.ranges.iter().map(|(first, (end, value))| (*first, *end, *value))
    }

    /// Changes all values.
    pub(super) fn change(&mut self, mut change: impl FnMut(&mut T)) {
        self.ranges.values_mut().for_each(|range| change(&mut range.1));
    }

    /// How many numbers there are.
    pub(super) fn numbers(&self) -> u64 {
        self.numbers
    }

    /// How many ranges there are.
    pub(super) fn ranges(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_numbers_are_those_of_a_set(
            steps in proptest::collection::vec((0u8..4, 0u64..60, 1u64..20), 1..200),
        ) {
            let (mut gaps, mut set, mut end) = (Gaps::default(), BTreeSet::new(), 0);
            for (kind, number, count) in steps {
                match kind {
                    0 => {
                        gaps.insert(end + 1, end + 1 + count, ());
                        set.extend(end + 1..end + 1 + count);
                        end += 1 + count;
                    }
                    1 => prop_assert_eq!(gaps.remove(number).is_some(), set.remove(&number)),
                    2 => {
                        if let Some((first, end)) = gaps.remove_first(count) {
                            prop_assert!(end - first <= count && set.first() == Some(&first));
                            for number in first..end {
                                prop_assert!(set.remove(&number));
                            }
                        }
                    }
                    _ => {
                        let mut removed = Vec::new();
                        gaps.retain(&mut removed, |first, _, ()| first >= number);
                        for number in removed.into_iter().flat_map(|(first, end)| first..end) {
                            prop_assert!(set.remove(&number));
                        }
                    }
                }
                prop_assert_eq!(gaps.numbers(), set.len() as u64);
                prop_assert_eq!(gaps.is_empty(), set.is_empty());
                prop_assert!(gaps.ranges() <= set.len());
                for number in 0..end + 2 {
                    prop_assert_eq!(gaps.contains(number), set.contains(&number));
                }
            }
        }
    }
}
