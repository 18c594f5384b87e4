//! Files in a folder that root shares with the daemon's user.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use nix::{libc, unistd::geteuid};

/// Opens a plain file to be read, and for what `options` say: root must not wait at a pipe in a folder of the daemon's.
pub(crate) fn plain(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options.read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no plain file")) }
}

/// The same if it has no other name: root must not give away a file of somebody else's.
pub(super) fn single(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = plain(options, path)?;
    if file.metadata()?.nlink() > 1 {
        return Err(io::Error::other("it has another name"));
    }
    Ok(file)
}

/// Gives root's file to the owner of its folder: the next run may be the unit's, with its own user.
pub(crate) fn give(file: &File, folder: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(folder)?;
    match fchown(file, Some(owner.uid()), Some(owner.gid())) {
        // Root without CAP_CHOWN, as NetworkManager's children are. Their files are for no unit.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}
