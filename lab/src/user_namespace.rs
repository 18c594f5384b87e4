//! Becomes root in a user namespace, so that the lab works without root privileges.

use std::{fs, io};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use super::error::{Error, Result};

/// linux/capability.h: what the lab needs. Making namespaces, configuring them, and the packet
/// sockets of the emulator.
const NEEDED: u64 = 1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

/// Settings with which distributions forbid user namespaces, and the value that allows them.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// Makes this process root in a user and network namespace of its own, unless it has the
/// capabilities of root already. Outside the namespace its user stays the same.
///
/// Must be called before any other thread is started: the kernel moves single-threaded processes
/// only (unshare(2)).
///
/// # Errors
///
/// When the kernel forbids it; the message says which setting to change.
pub fn enter_user_namespace() -> Result<()> {
    if has_capabilities() {
        return Ok(());
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        // user_namespaces(7): without privilege, a group can be mapped only where setgroups(2)
        // has been given up.
        .and_then(|()| fs::write("/proc/self/setgroups", "deny"))
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {group} 1")))
        .map_err(|source| Error::UserNamespace { advice: advice(&source), source })
}

fn has_capabilities() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|held| held & NEEDED == NEEDED)
}

fn advice(source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::InvalidInput {
        return "it must be done before the process starts a thread".to_owned();
    }
    for (path, forbids, allow) in SWITCHES {
        let set = fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default();
        if set.trim() == forbids {
            return format!("run this as root, or allow it with `sudo sysctl -w {allow}`");
        }
    }
    "this kernel or container does not let unprivileged users make one: run this as root".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_gets_an_error_that_says_why() {
        let error = io::Error::from(nix::errno::Errno::EINVAL);
        assert!(advice(&error).contains("before the process starts a thread"));
    }
}
