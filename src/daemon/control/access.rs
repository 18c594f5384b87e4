//! Decides which users may send requests to the daemon: its own user, root, and members of the
//! daemon's group.
//!
//! The socket's mode says the same, but not where its directory or the socket was opened wider.

use std::{io, os::fd::AsRawFd};

use nix::{
    libc,
    unistd::{getegid, geteuid},
};

/// The kernel's limit of groups per process (NGROUPS_MAX).
const GROUPS: usize = 65_536;

/// Whether the process at the other end of a UNIX socket, whose user id is `uid`, may ask.
pub(super) fn is_allowed(stream: &impl AsRawFd, uid: u32) -> io::Result<bool> {
    if uid == 0 || uid == geteuid().as_raw() {
        return Ok(true);
    }
    let own = getegid().as_raw();
    Ok(own != 0 && groups(stream)?.contains(&own))
}

/// The groups of the process at the other end when it connected (SO_PEERGROUPS of unix(7)).
fn groups(stream: &impl AsRawFd) -> io::Result<Vec<libc::gid_t>> {
    let mut groups = vec![0; GROUPS];
    let mut length = size_of_val(&groups[..]) as libc::socklen_t;
    // SAFETY: `groups` has room for `length` bytes, and any bytes are group ids.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / size_of::<libc::gid_t>());
    Ok(groups)
}
