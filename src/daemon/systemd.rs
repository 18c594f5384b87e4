//! systemd: what the daemon tells its service manager (sd_notify(3)), and what it leaves with it.
//!
//! The TUN device's descriptor is left in the service's store (`FileDescriptorStoreMax=`), so that the
//! device, and every connection over it, survives a restart and an upgrade.

#[cfg(feature = "dbus")]
mod job;

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::{mutex::Mutex, wire::foreign::printable};

/// Characters of a status: some paths with their states. A new line in it would begin the next assignment
/// (sd_notify(3)), and sd-notify writes it as it is.
const STATUS: usize = 500;
/// The name of the TUN device's descriptor in the store.
const TUN: &str = "tun";

/// Whether a service manager runs this process. The environment of a program that a person starts may hold
/// variables of the service that their terminal belongs to, hence the process id (systemd.exec(5)).
#[must_use]
pub(crate) fn is_managed() -> bool {
    let own = |id: String| id == std::process::id().to_string();
    std::env::var_os("NOTIFY_SOCKET").is_some() || std::env::var("SYSTEMD_EXEC_PID").is_ok_and(own)
}

/// The last state and the note after it.
static TOLD: Mutex<(String, String)> = Mutex::new((String::new(), String::new()));

/// Tells systemd, where it asked to be told, that the daemon does its work.
pub(crate) fn ready(status: &str) {
    say(&[NotifyState::Ready], |told| told.0 = status.into());
}

/// Tells systemd the daemon's state, as `systemctl status` shows it.
pub(crate) fn report(status: &str) {
    say(&[], |told| told.0 = status.into());
}

/// A status as the value of an assignment. systemd takes a backslash away and the next character as it is, and drops a
/// message that ends with one.
fn assigned(status: &str) -> String {
    printable(status, STATUS).replace('\\', "\\\\")
}

/// Appends a note to every state that systemd is told; an empty text removes it.
pub(crate) fn note(note: &str) {
    say(&[], |told| told.1 = note.into());
}

fn say(states: &[NotifyState<'_>], change: impl FnOnce(&mut (String, String))) {
    let mut told = TOLD.lock();
    change(&mut told);
    let text = match &*told {
        (status, note) if note.is_empty() => status.clone(),
        (status, note) => format!("{status} ({note})"),
    };
    let status = assigned(&text);
    notify(&[states, &[NotifyState::Status(&status)]].concat());
}

/// Tells systemd that the configuration is being read again; [`reloaded`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "systemd could not be told"),
    }
}

/// Tells systemd that [`reloading`] is over.
pub(crate) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// Tells systemd that the daemon is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Asks systemd to wait for `longer` from now on while the daemon ends (`EXTEND_TIMEOUT_USEC=` of sd_notify(3)).
pub(crate) fn extend(longer: Duration) {
    let longer = longer.as_micros().try_into().unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(longer)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "systemd could not be told");
    }
}

/// Proves that the daemon's main loop makes progress.
#[derive(Debug, Default)]
pub(crate) struct Heart {
    beats: AtomicU64,
    asked: Notify,
}

impl Heart {
    /// The loop made a turn.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the loop should make a turn. Cancel safe.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Beats for as long as it is polled: beside what the loop waits for.
    pub(crate) async fn keep(&self) -> Infallible {
        loop {
            self.asked().await;
            self.beat();
        }
    }
}

/// Keeps systemd's watchdog (`WatchdogSec=`) quiet for as long as the heart beats. It shares its thread with
/// the datapath, so that it does not wake when that is stuck.
pub(crate) async fn watchdog(heart: &Heart) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // A quarter of the limit: a loop that misses one question still answers the next in time.
    let pace = (limit / 4).max(Duration::from_millis(1));
    ask(heart, pace, |is_beating| {
        if is_beating {
            notify(&[NotifyState::Watchdog]);
        } else {
            warn!("the main loop does not come round");
        }
    })
    .await
}

/// Tells at this pace whether the heart beats.
async fn ask(heart: &Heart, pace: Duration, mut tell: impl FnMut(bool)) -> Infallible {
    // A notification reaches only waiting tasks, and at first no task waits.
    tokio::time::sleep(pace).await;
    loop {
        let before = heart.beats.load(Ordering::Relaxed);
        heart.asked.notify_waiters();
        tokio::time::sleep(pace).await;
        tell(heart.beats.load(Ordering::Relaxed) != before);
    }
}

#[cfg(feature = "dbus")]
pub(crate) use job::is_restarting;

/// Whether systemd stops this process to start it again: not known without D-Bus, so that it is a stop.
#[cfg(not(feature = "dbus"))]
pub(crate) fn is_restarting() -> std::future::Ready<bool> {
    std::future::ready(false)
}

/// The TUN devices that the last daemon left with systemd.
pub(crate) fn left_devices() -> io::Result<Vec<OwnedFd>> {
    let descriptors = sd_notify::listen_fds_with_names()?;
    let owned = |(descriptor, name): (_, String)| {
        // SAFETY: systemd opened these for this process (sd_listen_fds(3)); this is called once, and nobody
        // else takes them.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        (name == TUN).then_some(descriptor)
    };
    Ok(descriptors.filter_map(owned).collect())
}

/// Leaves the TUN device with systemd for the next daemon, in the place of any other.
pub(crate) fn leave_device(tun: &impl AsFd) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(TUN)]);
    let keep = [NotifyState::FdStore, NotifyState::FdName(TUN)];
    if let Err(error) = sd_notify::notify_with_fds(&keep, &[tun.as_fd()]) {
        debug!(%error, "the TUN device could not be left with systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_status_text_is_sent_as_one_assignment() {
        assert_eq!(assigned("a\nWATCHDOG=trigger\\"), "a\\\\nWATCHDOG=trigger\\\\");
    }

    async fn told(heart: &Heart, beats: bool) -> Vec<bool> {
        let mut told = Vec::new();
        let asked = ask(heart, Duration::from_secs(1), |is_beating| told.push(is_beating));
        tokio::select! {
            // As at a start: the watchdog comes first.
            biased;
            never = asked => match never {},
            never = heart.keep(), if beats => match never {},
            () = tokio::time::sleep(Duration::from_millis(9_500)) => {}
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_event_loop_is_never_reported_as_stalled() {
        assert_eq!(told(&Heart::default(), true).await, [true; 8]);
        assert_eq!(told(&Heart::default(), false).await, [false; 8]);
    }
}
