//! In which order links are dialed while there is no connection.

use std::{collections::BTreeMap, time::Instant};

use super::{event::Choice, state::Failures};
use crate::{
    link::candidate::Candidate,
    path::{PathKey, rank::LinkFacts},
};

/// What decides in which order links are dialed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dialing {
    pub(super) choice: Option<Choice>,
    /// The failures of paths that are gone, for when they return.
    pub(super) record: BTreeMap<PathKey, Failures>,
}

impl Dialing {
    /// Sorts candidates into the order in which to dial, without those that a pinned link excludes. A link that
    /// failed lately comes after those that did not.
    #[must_use]
    pub(crate) fn order(&self, found: Vec<(Candidate, LinkFacts)>, now: Instant) -> Vec<Candidate> {
        let mut allowed: Vec<_> = found
            .into_iter()
            .filter(|(candidate, _)| self.pinned().is_none_or(|link| link == candidate.link))
            .map(|(candidate, link)| {
                let chosen = self.is_chosen(&candidate.link);
                let failures = self.record.get(&PathKey::from(&candidate));
                let failed_lately = failures.is_some_and(|failures| failures.are_recent(now));
                ((!chosen, failed_lately, link), candidate)
            })
            .collect();
        allowed.sort_by_key(|(place, _)| *place);
        allowed.into_iter().map(|(_, candidate)| candidate).collect()
    }

    /// The link that the user pinned.
    #[must_use]
    pub(crate) fn pinned(&self) -> Option<&str> {
        self.choice.as_ref().filter(|choice| choice.pinned).map(|choice| choice.link.as_str())
    }

    pub(super) fn is_chosen(&self, link: &str) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.link == link)
    }
}
