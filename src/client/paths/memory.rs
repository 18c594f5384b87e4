//! What paths were like when they were left, each in its network.

use std::{collections::VecDeque, time::Instant};

use crate::{
    link::router::{MEMORY, MOST, Router},
    path::PathKey,
    quic::congestion::Remembered,
};

/// See the module's documentation. The newest is the last.
#[derive(Debug, Default)]
pub(super) struct Memories(VecDeque<Memory>);

#[derive(Debug)]
struct Memory {
    path: PathKey,
    /// The network is that of this router: links may lead through two in turns.
    router: Router,
    left_at: Instant,
    remembered: Remembered,
}

impl Memories {
    /// The path is left, and led through this router. If nothing was found out of it, what was known before stays so.
    pub(super) fn keep(
        &mut self,
        path: PathKey,
        router: Router,
        remembered: Option<Remembered>,
        now: Instant,
    ) {
        let Some(remembered) = remembered else { return };
        // It may have been found before the hardware address was known.
        let unknown = Router { hardware: None, ..router };
        self.0.retain(|it| it.path != path || ![router, unknown].contains(&it.router));
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Memory { path, router, left_at: now, remembered });
    }

    /// What is remembered of a path through this router.
    pub(super) fn of(&self, path: PathKey, router: Router, now: Instant) -> Option<Remembered> {
        let is_it = |it: &&Memory| it.path == path && it.router.may_be(router);
        let alike = || self.0.iter().rev().filter(is_it);
        let memory = alike().find(|it| it.router == router).or_else(|| alike().next())?;
        (now < memory.left_at + MEMORY).then_some(memory.remembered)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::tests::candidate;

    fn router(last: usize, machine: Option<u8>) -> Router {
        Router {
            address: Some([10, 0, 0, last as u8].into()),
            hardware: machine.map(|last| [2, 0, 0, 0, 0, last]),
        }
    }

    fn remembered(window: usize) -> Option<Remembered> {
        Some(Remembered { window: window as u64, rtt: Duration::from_millis(40) })
    }

    #[test]
    fn the_oldest_of_too_many_networks_is_forgotten() {
        let (mut memories, now) = (Memories::default(), crate::clock::now());
        let path = PathKey::from(&candidate("wlan0", 1));
        for last in 0..=MOST {
            memories.keep(path, router(last, None), remembered(last), now);
        }
        assert_eq!(memories.of(path, router(0, None), now), None);
        for last in 1..=MOST {
            assert_eq!(memories.of(path, router(last, None), now), remembered(last));
        }
    }

    #[test]
    fn networks_whose_routers_have_one_address_are_told_apart_where_their_machines_are_known() {
        let (mut memories, now) = (Memories::default(), crate::clock::now());
        let path = PathKey::from(&candidate("wlan0", 1));
        memories.keep(path, router(1, Some(1)), remembered(1), now);
        assert_eq!(memories.of(path, router(1, None), now), remembered(1), "it may be that one");
        assert_eq!(memories.of(path, router(1, Some(2)), now), None);
        memories.keep(path, router(1, Some(2)), remembered(2), now);
        for (machine, expected) in [(Some(1), 1), (Some(2), 2), (None, 2)] {
            assert_eq!(memories.of(path, router(1, machine), now), remembered(expected));
        }
    }
}
