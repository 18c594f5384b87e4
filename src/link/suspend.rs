//! Detects that the machine was suspended or that this process was stopped.
//!
//! Timers follow CLOCK_MONOTONIC, which stands still while the machine is suspended: for them no time passes,
//! while the server and every NAT on the way forget the connection. CLOCK_BOOTTIME goes on
//! (clock_gettime(2)). For a process that was stopped both clocks go on, and its timers fire late.
//!
//! To notice a resume at once and not at the next timer, [`ClockJump`] lets the kernel report that the clocks
//! drifted apart.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A shorter suspension does no harm.
const SHORTEST_SLEEP: Duration = Duration::from_secs(2);

/// Reports a jump of CLOCK_REALTIME against CLOCK_MONOTONIC: after a resume, and after the clock was set. A
/// timer in the far future is cancelled then (TFD_TIMER_CANCEL_ON_SET of timerfd_create(2)).
#[derive(Debug)]
pub(crate) struct ClockJump(AsyncFd<Timer>);

#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl ClockJump {
    /// Arms the timer.
    pub(crate) fn watch() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, flags)?;
        // SAFETY: `Timer` owns its descriptor, always names the same one, and closes it when the
        // `AsyncFd` that owns it has deregistered it.
        let jump =
            Self(unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?);
        jump.arm()?;
        Ok(jump)
    }

    fn arm(&self) -> io::Result<()> {
        let far = Expiration::OneShot(TimeSpec::new(i64::MAX, 0));
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.0.get_ref().0.set(far, flags)?)
    }

    /// Returns when the clocks drifted apart. Cancel safe.
    pub(crate) async fn occurs(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|timer| Ok(timer.get_ref().0.wait()?)) {
                // Not yet.
                Err(_would_block) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ECANCELED as i32) => {
                    return self.arm();
                }
                Ok(other) => return other,
            }
        }
    }
}

/// How long the machine was suspended since it was started.
#[must_use]
pub(crate) fn suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    let awake = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(awake)
}

/// Compares the clocks at each call of [`Self::was_suspended`].
#[derive(Debug)]
pub(crate) struct SuspendDetector {
    /// The longest expected time between two calls.
    pace: Duration,
    last: Option<(Instant, Duration)>,
}

impl SuspendDetector {
    /// For a loop with at least one turn per `pace`.
    #[must_use]
    pub(crate) fn new(pace: Duration) -> Self {
        Self { pace, last: None }
    }

    /// Whether the machine was suspended, or this process stopped, since the last call.
    pub(crate) fn was_suspended(&mut self) -> bool {
        let Ok(since_boot) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return false };
        #[expect(
            clippy::disallowed_methods,
            reason = "held against another of the kernel's clocks"
        )]
        let now = Instant::now();
        self.was_suspended_at(now, since_boot.into())
    }

    fn was_suspended_at(&mut self, now: Instant, since_boot: Duration) -> bool {
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
    fn a_suspend_is_detected_although_the_monotonic_clock_stood_still() {
        let (mut detector, start, boot) =
            (SuspendDetector::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!detector.was_suspended_at(start, boot));
        assert!(!detector.was_suspended_at(start + PACE, boot + PACE));
        assert!(detector.was_suspended_at(start + PACE + SECOND, boot + PACE + 3600 * SECOND));
        assert!(!detector.was_suspended_at(start + PACE + 2 * SECOND, boot + PACE + 3601 * SECOND));
    }

    #[test]
    fn a_stopped_process_notices_that_it_is_late() {
        let (mut detector, start, boot) =
            (SuspendDetector::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!detector.was_suspended_at(start, boot));
        assert!(detector.was_suspended_at(start + 45 * SECOND, boot + 45 * SECOND));
    }

    #[test]
    fn a_short_delay_is_no_suspend() {
        let (mut detector, start, boot) =
            (SuspendDetector::new(PACE), Instant::now(), 1000 * SECOND);
        assert!(!detector.was_suspended_at(start, boot));
        assert!(!detector.was_suspended_at(start + 6 * SECOND, boot + 6 * SECOND));
    }
}
