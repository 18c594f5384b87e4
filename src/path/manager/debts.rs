//! What bursts over standbys may take where traffic costs money: so many bytes a minute over each link, whichever of its paths
//! they measure, and whatever became of the connection meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// By link, when what its bursts took is earned again. Until then there is no other one.
#[derive(Clone, Debug, Default)]
pub(super) struct Debts(BTreeMap<String, Instant>);

impl Debts {
    /// When the next burst over this link may be made; `None` for now.
    pub(super) fn paid_at(&self, link: &str) -> Option<Instant> {
        self.0.get(link).copied()
    }

    /// A burst of so many bytes begins over this link, which may carry `per_minute`.
    pub(super) fn spend(&mut self, link: &str, bytes: usize, per_minute: u32, now: Instant) {
        let earned = Duration::from_secs(60).mul_f64(bytes as f64 / f64::from(per_minute.max(1)));
        let before = self.paid_at(link).map_or(now, |paid| paid.max(now));
        self.0.insert(link.to_owned(), before + earned);
    }

    /// Forgets what is earned again.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, paid| now < *paid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_before_it_is_earned_adds_up_on_its_link() {
        let (mut debts, now) = (Debts::default(), Instant::now());
        let seconds = |seconds| Some(now + Duration::from_secs(seconds));
        debts.spend("wwan0", 1000, 6000, now);
        debts.spend("wwan0", 2000, 6000, now);
        assert_eq!([debts.paid_at("wwan0"), debts.paid_at("wwan1")], [seconds(30), None]);
        debts.expire(now + Duration::from_secs(30));
        assert_eq!(debts.paid_at("wwan0"), None);
    }
}
