//! What bursts over standbys may take where traffic costs money: so many bytes a minute over each link, whichever of its paths
//! they measure, and whatever became of the connection meanwhile. As of copies, a minute's bytes may go at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const MINUTE: Duration = Duration::from_secs(60);

/// By link, when what its bursts took is earned again.
#[derive(Clone, Debug, Default)]
pub(super) struct Debts(BTreeMap<String, Instant>);

/// So long it takes to earn these bytes.
fn time_of(bytes: usize, per_minute: u32) -> Duration {
    MINUTE.mul_f64(bytes as f64 / f64::from(per_minute.max(1)))
}

impl Debts {
    /// When a burst of so many bytes may be made over this link, which may carry `per_minute`; `None` for now. One that is
    /// larger than that waits until there is no debt.
    pub(super) fn allowed_at(&self, link: &str, bytes: usize, per_minute: u32) -> Option<Instant> {
        let room = MINUTE.saturating_sub(time_of(bytes, per_minute));
        self.0.get(link)?.checked_sub(room)
    }

    /// A burst of so many bytes begins.
    pub(super) fn spend(&mut self, link: &str, bytes: usize, per_minute: u32, now: Instant) {
        let before = self.0.get(link).map_or(now, |paid| now.max(*paid));
        self.0.insert(link.to_owned(), before + time_of(bytes, per_minute));
    }

    /// Forgets what was earned again a minute ago.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, paid| now < *paid + MINUTE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_bytes_may_go_at_once_over_each_link() {
        let (mut debts, now) = (Debts::default(), Instant::now() + 2 * MINUTE);
        let after = |seconds| now + Duration::from_secs(seconds);
        let waits = |debts: &Debts, bytes, at| {
            debts.allowed_at("wwan0", bytes, 6000).is_some_and(|allowed| at < allowed)
        };
        debts.spend("wwan0", 2000, 6000, now);
        assert!(!waits(&debts, 4000, now));
        debts.spend("wwan0", 3000, 6000, now);
        assert!(waits(&debts, 2000, after(9)) && !waits(&debts, 2000, after(10)));
        assert!(waits(&debts, 7000, after(49)) && !waits(&debts, 7000, after(50)));
        assert_eq!(debts.allowed_at("wwan1", 7000, 6000), None);
        debts.expire(after(109));
        assert_eq!(debts.allowed_at("wwan0", 7000, 6000), Some(after(50)));
        debts.expire(after(110));
        assert_eq!(debts.allowed_at("wwan0", 7000, 6000), None);
    }
}
