//! What paths were like when they were left, each in its network.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{link::candidate::Candidate, path::PathKey, quic::congestion::Remembered};

/// A path is remembered for so long: other people use the network, too.
pub(super) const MEMORY: Duration = Duration::from_secs(600);
/// So many are remembered at most. A network may name another router again and again.
const MOST: usize = 64;

/// See the module's documentation. The newest is the last.
#[derive(Debug, Default)]
pub(super) struct Memories(VecDeque<Memory>);

#[derive(Debug)]
struct Memory {
    path: PathKey,
    /// The network is that of this router: links may lead through two in turns.
    router: Option<IpAddr>,
    left_at: Instant,
    remembered: Remembered,
}

impl Memory {
    fn is_of(&self, candidate: &Candidate) -> bool {
        self.path == PathKey::from(candidate) && self.router == candidate.router
    }
}

impl Memories {
    /// The path of this candidate is left. If nothing was found out of it, what was known before stays so.
    pub(super) fn keep(
        &mut self,
        candidate: &Candidate,
        remembered: Option<Remembered>,
        now: Instant,
    ) {
        let Some(remembered) = remembered else { return };
        self.0.retain(|it| !it.is_of(candidate));
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        let (path, router) = (PathKey::from(candidate), candidate.router);
        self.0.push_back(Memory { path, router, left_at: now, remembered });
    }

    /// What is remembered of the path of this candidate.
    pub(super) fn of(&self, candidate: &Candidate, now: Instant) -> Option<Remembered> {
        let memory = self.0.iter().find(|it| it.is_of(candidate))?;
        (now < memory.left_at + MEMORY).then_some(memory.remembered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::candidate;

    #[test]
    fn the_oldest_of_too_many_networks_is_forgotten() {
        let (mut memories, now) = (Memories::default(), crate::clock::now());
        let behind = |router: usize| Candidate {
            router: Some([10, 0, 0, router as u8].into()),
            ..candidate("wlan0", 1)
        };
        let remembered = |window: usize| Remembered {
            window: window as u64,
            rtt: Duration::from_millis(40),
        };
        for router in 0..=MOST {
            memories.keep(&behind(router), Some(remembered(router)), now);
        }
        assert_eq!(memories.of(&behind(0), now), None);
        for router in 1..=MOST {
            assert_eq!(memories.of(&behind(router), now), Some(remembered(router)));
        }
    }
}
