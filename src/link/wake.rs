//! Notices that the machine slept, or that this process did.
//!
//! Timers follow CLOCK_MONOTONIC, which stands still while the machine is suspended: to them no time
//! has passed, while the server and every NAT on the way have long forgotten us. CLOCK_BOOTTIME goes
//! on (clock_gettime(2)). A process that was stopped sees neither stand still, only that it comes
//! late.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// A sleep shorter than this does no harm.
const SHORTEST_SLEEP: Duration = Duration::from_secs(2);

/// Compares the clocks at each call.
#[derive(Debug)]
pub struct Wake {
    /// The longest that should pass between two calls.
    pace: Duration,
    last: Option<(Instant, Duration)>,
}

impl Wake {
    /// For a loop that comes round at least once in `pace`.
    #[must_use]
    pub fn new(pace: Duration) -> Self {
        Self { pace, last: None }
    }

    /// Whether the machine or the process slept since the last call.
    pub fn slept(&mut self) -> bool {
        let Ok(since_boot) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return false };
        self.slept_at(Instant::now(), since_boot.into())
    }

    fn slept_at(&mut self, now: Instant, since_boot: Duration) -> bool {
        let Some((before, boot_before)) = self.last.replace((now, since_boot)) else {
            return false;
        };
        let awake = now.saturating_duration_since(before);
        let suspended = since_boot.saturating_sub(boot_before).saturating_sub(awake);
        suspended > SHORTEST_SLEEP || awake > self.pace + SHORTEST_SLEEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_suspended_machine_is_noticed_although_its_timers_stood_still() {
        let (mut wake, start, boot) = (Wake::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!wake.slept_at(start, boot));
        assert!(!wake.slept_at(start + PACE, boot + PACE));
        assert!(wake.slept_at(start + PACE + SECOND, boot + PACE + 3600 * SECOND));
        assert!(!wake.slept_at(start + PACE + 2 * SECOND, boot + PACE + 3601 * SECOND));
    }

    #[test]
    fn a_stopped_process_notices_that_it_is_late() {
        let (mut wake, start, boot) = (Wake::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!wake.slept_at(start, boot));
        assert!(wake.slept_at(start + 45 * SECOND, boot + 45 * SECOND));
    }

    #[test]
    fn a_busy_moment_is_no_sleep() {
        let (mut wake, start, boot) = (Wake::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!wake.slept_at(start, boot));
        assert!(!wake.slept_at(start + 6 * SECOND, boot + 6 * SECOND));
    }
}
