//! The one clock: tokio's, which tests and simulations can stop and advance (`tokio::time::pause`).

use std::{
    mem::MaybeUninit,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::libc;

/// A time that is farther away than this is shown with its date.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The present moment.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits until then; without an instant for ever.
///
/// Cancel safe.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The present time of day, for people: it may jump.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// The present time of day in seconds since 1970, for what several hosts must agree on: it may jump.
#[must_use]
pub(crate) fn unix() -> u64 {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where [`AtomicInstant`]s count from: a day before the first one is set. Simulated clocks of the same process
/// start at different moments, and none of them may be before this one.
static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    let first = now();
    first.checked_sub(DAY).unwrap_or(first)
});

/// An instant, or none, that tasks share without a lock.
#[derive(Debug, Default)]
pub(crate) struct AtomicInstant(AtomicU64);

impl AtomicInstant {
    #[must_use]
    pub(crate) fn get(&self) -> Option<Instant> {
        decoded(self.0.load(Relaxed))
    }

    #[must_use]
    pub(crate) fn is_none(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    pub(crate) fn set(&self, at: Instant) {
        self.0.store(encoded(at), Relaxed);
    }

    /// Sets the instant unless a later one is set.
    pub(crate) fn advance(&self, at: Instant) {
        self.0.fetch_max(encoded(at), Relaxed);
    }

    /// Sets the instant; gives the one before.
    pub(crate) fn replace(&self, at: Instant) -> Option<Instant> {
        decoded(self.0.swap(encoded(at), Relaxed))
    }

    pub(crate) fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Nanoseconds from the origin plus one, since zero is none. They last for 584 years.
fn encoded(at: Instant) -> u64 {
    at.saturating_duration_since(*ORIGIN).as_nanos() as u64 + 1
}

fn decoded(nanoseconds: u64) -> Option<Instant> {
    Some(*ORIGIN + Duration::from_nanos(nanoseconds.checked_sub(1)?))
}

/// The time of the day where this machine is, as `10:02`; with its date if it is far from now.
#[must_use]
pub(crate) fn local(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let Ok(seconds) = libc::time_t::try_from(seconds) else { return String::new() };
    let mut broken_down = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid, and the result is read only if the call says that it is there.
    let there = unsafe { libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()) };
    if there.is_null() {
        return String::new();
    }
    // SAFETY: localtime_r(3) filled it in.
    let tm = unsafe { broken_down.assume_init() };
    let day = if time.elapsed().is_ok_and(|ago| ago >= DAY) {
        format!("{:04}-{:02}-{:02} ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday)
    } else {
        String::new()
    };
    format!("{day}{:02}:{:02}", tm.tm_hour, tm.tm_min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_instant_keeps_every_nanosecond() {
        let (shared, at) = (AtomicInstant::default(), now());
        assert_eq!((shared.get(), shared.is_none()), (None, true));
        let next = at + Duration::from_nanos(1);
        shared.set(at);
        assert_eq!((shared.get(), shared.is_none()), (Some(at), false));
        assert_eq!(shared.replace(next), Some(at));
        shared.clear();
        assert_eq!(shared.get(), None);
    }

    #[test]
    fn an_atomic_instant_advances_and_does_not_go_back() {
        let (shared, at) = (AtomicInstant::default(), now());
        let later = at + Duration::from_secs(1);
        for (told, expected) in [(at, at), (later, later), (at, later)] {
            shared.advance(told);
            assert_eq!(shared.get(), Some(expected));
        }
    }
}
