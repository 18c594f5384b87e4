//! Finds the flow with the most waiting bytes in one step.
//!
//! Flows are kept in classes by size, four classes per doubling: the largest flow is at most a quarter larger
//! than the flow that is found.

use super::list::{Link, List, Slot};

/// The class of a flow without packets.
pub(super) const EMPTY: u8 = 0;
const CLASSES: usize = 64;
/// The smallest size that has a class of its own, as a power of two; the largest is 2^16 times that.
const SMALLEST: u32 = 8;

/// The class of a size in bytes.
pub(super) fn class(size: usize) -> u8 {
    let Some(power) = size.checked_ilog2() else { return EMPTY };
    let quarter = (size << 2 >> power) & 0b11;
    let class = (4 * power.saturating_sub(SMALLEST)) as usize + quarter;
    class.clamp(1, CLASSES - 1) as u8
}

/// Flows by the class of their size.
#[derive(Debug)]
pub(super) struct Sizes {
    lists: [List; CLASSES],
    /// A bit for each list that is not empty.
    occupied: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { lists: [const { List::EMPTY }; CLASSES], occupied: 0 }
    }
}

impl Sizes {
    /// Moves a flow from one class to another.
    pub(super) fn resize(&mut self, links: &mut [Link], slot: Slot, from: u8, to: u8) {
        if from != EMPTY {
            let list = &mut self.lists[usize::from(from)];
            list.remove(links, slot);
            self.occupied &= !(u64::from(list.is_empty()) << from);
        }
        if to != EMPTY {
            self.lists[usize::from(to)].push(links, slot);
            self.occupied |= 1 << to;
        }
    }

    /// The largest class that has a flow, and the flow that has been in it for the longest.
    pub(super) fn largest(&self) -> Option<(u8, Slot)> {
        let class = self.occupied.checked_ilog2()?;
        self.lists[class as usize].first().map(|slot| (class as u8, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_with_the_size_by_a_quarter_at_most() {
        assert_eq!(class(0), EMPTY);
        for size in 512..4 << 20 {
            let (this, larger) = (class(size), class(size + size / 4 + 1));
            assert!(this < larger || usize::from(this) == CLASSES - 1, "{size}");
            assert!(class(size + 1) - this <= 1, "{size}");
        }
    }

    #[test]
    fn the_largest_flow_is_found_after_any_resizes() {
        let (mut links, mut sizes) = (vec![Link::default(); 300], Sizes::default());
        let classes: Vec<_> =
            (0..300_u16).map(|slot| class(300 * (usize::from(slot) * 7 % 300 + 1))).collect();
        for (slot, class) in (0..).zip(&classes) {
            sizes.resize(&mut links, slot, EMPTY, *class);
        }
        let mut left = classes.clone();
        while let Some((class, slot)) = sizes.largest() {
            assert_eq!(Some(&class), left.iter().max());
            assert_eq!(class, classes[usize::from(slot)]);
            left[usize::from(slot)] = EMPTY;
            sizes.resize(&mut links, slot, class, EMPTY);
        }
        assert!(left.iter().all(|class| *class == EMPTY));
    }
}
