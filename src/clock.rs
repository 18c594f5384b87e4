//! The one clock: tokio's, which tests and simulations can stop and advance (`tokio::time::pause`).

use std::{
    mem::MaybeUninit,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::libc;

/// A time that is farther away than this is shown with its date.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The present moment.
#[must_use]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
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
