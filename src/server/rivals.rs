//! Two live machines with one key, told apart by what each process says of itself.
//!
//! A client that comes back takes its session over: it roamed, or was started again. Two machines with the
//! same key would do so in turns, for ever. So the newer one stays, and the older one, which is told so, is
//! let in again only when the newer one is gone. To a machine that was started again this rule says nothing:
//! its process is a new one, and so the newer.
//!
//! ```text
//!  a session of another process stands ─▶ this one is remembered as displaced ─▶ no: the newer one stays
//!                                     └─▶ otherwise ─▶ yes: the other one is displaced
//! ```

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Displaced processes that are remembered of a peer: machines with one key are few.
const REMEMBERED: usize = 8;
/// A displaced machine asks every few minutes; one that has not for so long is gone.
const SHOWN: Duration = Duration::from_secs(600);

/// A process, as its hello names it; older clients do not.
pub(super) type Instance = Option<u64>;

/// The machines with a peer's key that have no session because another one has it.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    displaced: VecDeque<u64>,
    seen: Option<(IpAddr, Instant)>,
}

impl Rivals {
    /// Whether `newcomer` may take the session over from the process `current`.
    pub(super) fn admit(&self, newcomer: Instance, current: Instance) -> bool {
        newcomer == current || newcomer.is_none_or(|it| !self.displaced.contains(&it))
    }

    /// `newcomer` takes the session over from the process `current`; whether that is another machine's, as far
    /// as can be told.
    pub(super) fn take_over(&mut self, newcomer: Instance, current: Instance) -> bool {
        self.displaced.retain(|it| Some(*it) != newcomer);
        let (Some(_), Some(current)) = (newcomer, current.filter(|_| newcomer != current)) else {
            return false;
        };
        if self.displaced.len() == REMEMBERED {
            self.displaced.pop_front();
        }
        self.displaced.push_back(current);
        true
    }

    /// A displaced machine is at `address`.
    pub(super) fn see(&mut self, address: IpAddr, now: Instant) {
        self.seen = Some((address, now));
    }

    /// Where a displaced machine was seen lately.
    pub(super) fn address(&self, now: Instant) -> Option<IpAddr> {
        let (address, at) = self.seen?;
        (now.saturating_duration_since(at) < SHOWN).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_machine_stays() {
        let mut rivals = Rivals::default();
        assert!(rivals.admit(Some(2), Some(1)));
        assert!(rivals.take_over(Some(2), Some(1)));
        assert!(!rivals.admit(Some(1), Some(2)), "the older one asks again");
        assert!(rivals.admit(Some(2), Some(2)), "the newer one roams");
        assert!(!rivals.take_over(Some(2), Some(2)));
    }

    #[test]
    fn a_machine_that_is_started_again_is_the_newer_one() {
        let mut rivals = Rivals::default();
        rivals.take_over(Some(2), Some(1));
        assert!(rivals.admit(Some(3), Some(2)));
        rivals.take_over(Some(3), Some(2));
        assert!(!rivals.admit(Some(1), Some(3)) && !rivals.admit(Some(2), Some(3)));
    }

    #[test]
    fn who_returns_while_the_newer_one_is_away_is_displaced_no_more() {
        let mut rivals = Rivals::default();
        rivals.take_over(Some(2), Some(1));
        rivals.take_over(Some(1), None);
        assert!(rivals.admit(Some(1), Some(2)));
    }

    #[test]
    fn clients_that_do_not_name_themselves_take_over_as_ever() {
        let mut rivals = Rivals::default();
        for (newcomer, current) in [(None, None), (Some(1), None), (None, Some(1))] {
            assert!(rivals.admit(newcomer, current));
            assert!(!rivals.take_over(newcomer, current));
        }
    }

    #[test]
    fn only_some_are_remembered_and_they_are_shown_for_a_while() {
        let (mut rivals, now) = (Rivals::default(), Instant::now());
        for instance in 0..100 {
            rivals.take_over(Some(instance + 1), Some(instance));
        }
        assert_eq!(rivals.displaced.len(), REMEMBERED);
        let address = "192.0.2.1".parse().unwrap();
        rivals.see(address, now);
        assert_eq!(rivals.address(now), Some(address));
        assert_eq!(rivals.address(now + SHOWN), None);
    }
}
