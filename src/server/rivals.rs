//! Tells two live machines with one key apart, by the instance id of each process.
//!
//! A client that comes back takes its session over, after roaming or a restart. Two machines with the same
//! key would do so in turns for ever. Therefore the newer machine stays. The older one is told so, and is
//! admitted again only when the newer one is gone. A restarted machine has a new process and therefore counts
//! as newer.
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

/// Displaced processes that are kept per peer: few machines share one key.
const REMEMBERED: usize = 8;
/// A displaced machine asks every few minutes; after this time without a question it is gone.
const SHOWN: Duration = Duration::from_secs(600);

/// The machines with a peer's key whose session another machine has taken over.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    displaced: VecDeque<u64>,
    seen: Option<(IpAddr, Instant)>,
}

impl Rivals {
    /// Whether `newcomer` may take the session over from the process `current`, if that is known.
    pub(super) fn admit(&self, newcomer: u64, current: Option<u64>) -> bool {
        current == Some(newcomer) || !self.displaced.contains(&newcomer)
    }

    /// `newcomer` takes the session over from the process `current`, or a free one. Returns whether `current` is another
    /// machine.
    pub(super) fn take_over(&mut self, newcomer: u64, current: Option<u64>) -> bool {
        self.displaced.retain(|it| *it != newcomer);
        let Some(current) = current.filter(|it| *it != newcomer) else { return false };
        if self.displaced.len() == REMEMBERED {
            self.displaced.pop_front();
        }
        self.displaced.push_back(current);
        true
    }

    /// A displaced machine was seen at `address`.
    pub(super) fn see(&mut self, address: IpAddr, now: Instant) {
        self.seen = Some((address, now));
    }

    /// The address where a displaced machine was seen lately.
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
        assert!(rivals.admit(2, Some(1)));
        assert!(rivals.take_over(2, Some(1)));
        assert!(!rivals.admit(1, Some(2)), "the older one asks again");
        assert!(rivals.admit(2, Some(2)), "the newer one roams");
        assert!(!rivals.take_over(2, Some(2)));
    }

    #[test]
    fn a_restarted_machine_counts_as_the_newer_one() {
        let mut rivals = Rivals::default();
        rivals.take_over(2, Some(1));
        assert!(rivals.admit(3, Some(2)));
        rivals.take_over(3, Some(2));
        assert!(!rivals.admit(1, Some(3)) && !rivals.admit(2, Some(3)));
    }

    #[test]
    fn a_displaced_machine_that_returns_while_the_newer_one_is_away_is_readmitted() {
        let mut rivals = Rivals::default();
        rivals.take_over(2, Some(1));
        rivals.take_over(1, None);
        assert!(rivals.admit(1, Some(2)));
    }

    #[test]
    fn displaced_instances_are_bounded_and_shown_for_a_limited_time() {
        let (mut rivals, now) = (Rivals::default(), Instant::now());
        for instance in 0..100 {
            rivals.take_over(instance + 1, Some(instance));
        }
        assert_eq!(rivals.displaced.len(), REMEMBERED);
        let address = "192.0.2.1".parse().unwrap();
        rivals.see(address, now);
        assert_eq!(rivals.address(now), Some(address));
        assert_eq!(rivals.address(now + SHOWN), None);
    }
}
