//! In which order links are dialed while there is no connection.

use std::{collections::BTreeMap, time::Instant};

use super::{event::Choice, record::Record};
use crate::{link::candidate::Candidate, path::rank::LinkFacts};

/// What decides in which order links are dialed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dialing {
    pub(super) choice: Option<Choice>,
    pub(super) record: Record,
}

impl Dialing {
    /// Sorts candidates into the order in which to dial, without those that a pinned link excludes. A link that
    /// failed lately, or that works badly as far as is known, comes after those that do not.
    #[must_use]
    pub(crate) fn order(&self, found: Vec<(Candidate, LinkFacts)>, now: Instant) -> Vec<Candidate> {
        let mut routers = BTreeMap::<_, Vec<_>>::new();
        for (Candidate { link, router, .. }, _) in &found {
            routers.entry(link.clone()).or_default().push(*router);
        }
        let mut allowed: Vec<_> = found
            .into_iter()
            .filter(|(candidate, _)| self.pinned().is_none_or(|link| link == candidate.link))
            .map(|(candidate, link)| {
                let chosen = self.is_chosen(&candidate.link);
                let is_bad = self.record.is_bad(&candidate, &routers[&candidate.link], now);
                ((!chosen, is_bad, link), candidate)
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
