//! Copies over standbys, as they are told of: together, once there are no more.

use std::time::{Duration, Instant};

use crate::daemon::events::Event;

/// After so long without a copy those before are told of.
const CALM: Duration = Duration::from_secs(1);
/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Those that were sent and those that were used, as last seen and when they were told of last.
    seen: [u64; 2],
    told: [u64; 2],
    /// When the last was seen, and the link that was late.
    last: Option<(Instant, String)>,
}

impl Copies {
    /// Takes in what was counted so far; the event, if it is over.
    pub(super) fn look(
        &mut self,
        counted: [u64; 2],
        link: Option<&str>,
        now: Instant,
    ) -> Option<Event> {
        if std::mem::replace(&mut self.seen, counted) != counted {
            // The link that was late is the one that was in use at first.
            let link = self.last.take().map_or_else(|| link.unwrap_or("a path").into(), |it| it.1);
            self.last = Some((now, link));
            return None;
        }
        let (_, link) = self.last.take_if(|(at, _)| *at + CALM <= now)?;
        let [sent, used] = [0, 1].map(|it| counted[it] - self.told[it]);
        self.told = counted;
        Some(Event::Copies { link, sent, used })
    }
}
