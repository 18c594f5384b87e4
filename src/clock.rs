//! The one clock: tokio's, which tests and simulations can stop and advance (`tokio::time::pause`).

mod date;

use std::{
    mem::MaybeUninit,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::libc;

pub(crate) use self::date::Date;

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
    let Some(tm) = broken_down(time) else { return String::new() };
    let day = if time.elapsed().is_ok_and(|ago| ago >= DAY) {
        format!("{:04}-{:02}-{:02} ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday)
    } else {
        String::new()
    };
    format!("{day}{:02}:{:02}", tm.tm_hour, tm.tm_min)
}

/// The day of this time where this machine is; its time zone may change, as it travels.
#[must_use]
pub(crate) fn date(time: SystemTime) -> Date {
    unsafe extern "C" {
        safe fn tzset();
    }
    // localtime_r(3) would look at the time zone's file once only.
    tzset();
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let east = broken_down(time).map_or(0, |tm| tm.tm_gmtoff);
    Date::of_number(seconds.saturating_add(east).div_euclid(24 * 3600))
}

fn broken_down(time: SystemTime) -> Option<libc::tm> {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = libc::time_t::try_from(seconds).ok()?;
    let mut broken_down = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid, and the result is read only if the call says that it is there.
    let there = unsafe { libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()) };
    // SAFETY: localtime_r(3) filled it in.
    (!there.is_null()).then(|| unsafe { broken_down.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// The time zone is the process's, so that each one is looked at in a process of its own: this test once more, for
    /// one moment and the day that it is of.
    #[test]
    fn the_day_is_that_of_the_time_zone() {
        const MOMENT: [&str; 2] = ["TEST_MOMENT", "TEST_DAY"];
        if let [Ok(seconds), Ok(day)] = MOMENT.map(env::var) {
            let moment = UNIX_EPOCH + Duration::from_secs(seconds.parse().unwrap());
            assert_eq!(date(moment).to_string(), day);
            return;
        }
        let berlin = "CET-1CEST,M3.5.0,M10.5.0/3";
        for (zone, utc_day, utc_minute, day) in [
            ("UTC0", "2026-10-24", 22 * 60 + 30, "2026-10-24"),
            (berlin, "2026-03-28", 22 * 60 + 59, "2026-03-28"),
            (berlin, "2026-03-28", 23 * 60, "2026-03-29"),
            (berlin, "2026-03-29", 21 * 60 + 59, "2026-03-29"),
            (berlin, "2026-03-29", 22 * 60, "2026-03-30"),
            (berlin, "2026-10-24", 22 * 60, "2026-10-25"),
            (berlin, "2026-10-25", 22 * 60 + 59, "2026-10-25"),
            (berlin, "2026-10-25", 23 * 60, "2026-10-26"),
            ("EST5EDT,M3.2.0,M11.1.0", "2026-11-01", 3 * 60 + 59, "2026-10-31"),
            ("<+13>-13", "2026-11-01", 11 * 60, "2026-11-02"),
        ] {
            let midnight = utc_day.parse::<Date>().unwrap().number() * 24 * 60;
            let seconds = ((midnight + utc_minute) * 60).to_string();
            let mut again = Command::new(env::current_exe().unwrap());
            again.args(["--exact", "clock::tests::the_day_is_that_of_the_time_zone"]);
            again.env("TZ", zone).env(MOMENT[0], seconds).env(MOMENT[1], day);
            let output = again.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{zone} {text}");
        }
    }

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
