//! Lists of flows, linked through an array: to the end, from the front and out of the middle in one step.

/// A flow's index in the arrays.
pub(super) type Slot = u16;
/// No flow.
pub(super) const NONE: Slot = Slot::MAX;

/// A flow's neighbours in the list that it is on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    previous: Slot,
    next: Slot,
}

impl Default for Link {
    fn default() -> Self {
        Self { previous: NONE, next: NONE }
    }
}

/// A list. All calls take the links of all flows; a flow belongs to one list at a time.
#[derive(Debug)]
pub(super) struct List {
    first: Slot,
    last: Slot,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) fn first(&self) -> Option<Slot> {
        (self.first != NONE).then_some(self.first)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// From the first to the last.
    pub(super) fn iter<'a>(&self, links: &'a [Link]) -> impl Iterator<Item = Slot> + use<'a> {
        std::iter::successors(self.first(), |slot| {
            let next = links[usize::from(*slot)].next;
            (next != NONE).then_some(next)
        })
    }

    pub(super) fn push(&mut self, links: &mut [Link], slot: Slot) {
        links[usize::from(slot)] = Link { previous: self.last, next: NONE };
        match self.last {
            NONE => self.first = slot,
            last => links[usize::from(last)].next = slot,
        }
        self.last = slot;
    }

    pub(super) fn remove(&mut self, links: &mut [Link], slot: Slot) {
        let Link { previous, next } = links[usize::from(slot)];
        match previous {
            NONE => self.first = next,
            previous => links[usize::from(previous)].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => links[usize::from(next)].previous = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_behaves_like_a_vector(steps in proptest::collection::vec(0..20_u16, 0..200)) {
            let (mut links, mut list, mut model) = (vec![Link::default(); 20], List::EMPTY, Vec::new());
            for slot in steps {
                if let Some(at) = model.iter().position(|other| *other == slot) {
                    model.remove(at);
                    list.remove(&mut links, slot);
                } else {
                    model.push(slot);
                    list.push(&mut links, slot);
                }
                let next = |slot: &Slot| Some(links[usize::from(*slot)].next).filter(|next| *next != NONE);
                let found: Vec<_> = std::iter::successors(list.first(), next).collect();
                prop_assert_eq!(&found, &model);
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
        }
    }
}
