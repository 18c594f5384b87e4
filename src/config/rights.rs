//! Permissions of a tunnel's files.
//!
//! A file with a key in it belongs to the user that reads it, mode 0600. The daemon's group may ask the daemon
//! ([`control`](crate::daemon::control)), and nothing more: so the group reads no key.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{self, Path, PathBuf},
    thread,
};

use nix::{
    libc,
    unistd::{Gid, User, geteuid, getgrouplist, setfsgid, setfsuid},
};

/// Where `roamd@.service` has its files, and the user that it runs as.
const DIRECTORY: &str = "/etc/roamd";
const USER: &str = "roamd";

/// A user cannot read a file that it needs.
#[derive(Debug, thiserror::Error)]
#[error("{}: {advice}", self.found())]
pub(crate) struct Unreadable {
    user: String,
    file: PathBuf,
    /// What to do about it.
    pub advice: String,
}

impl Unreadable {
    /// Who cannot read what.
    #[must_use]
    pub(crate) fn found(&self) -> String {
        format!("user {} cannot read {}", self.user, self.file.display())
    }
}

/// The user that will read `file`, if it is one of the unit's.
#[must_use]
pub(crate) fn reader(file: &Path) -> Option<User> {
    let directory = fs::canonicalize(path::absolute(file).ok()?.parent()?).ok()?;
    directory.starts_with(DIRECTORY).then(|| User::from_name(USER).ok().flatten())?
}

/// Gives a new file to the user that will read it. Only root can.
pub(crate) fn give(file: &File, path: &Path) -> io::Result<()> {
    match reader(path) {
        Some(user) if geteuid().is_root() => {
            fchown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        }
        _ => Ok(()),
    }
}

/// The command that leaves `file` to its reader alone.
#[must_use]
pub(crate) fn mend(file: &Path) -> String {
    let shown = file.display();
    let owner = fs::metadata(file).map(|found| found.uid()).ok();
    match reader(file).filter(|user| owner != Some(user.uid.as_raw())) {
        Some(user) => format!("chown {}: {shown} && chmod 600 {shown}", user.name),
        None => format!("chmod 600 {shown}"),
    }
}

/// Whether the unit's user can read the configuration `file` and its `key`, as far as root can tell for it.
pub(crate) fn check(file: &Path, key: Option<&Path>) -> Result<(), Unreadable> {
    let Some(user) = reader(file).filter(|_| geteuid().is_root()) else { return Ok(()) };
    readable_by(&user, file)?;
    // LoadCredential= of the unit: systemd reads that one, as root.
    let credential = path::absolute(file.with_extension("key")).ok();
    match key.filter(|key| credential.as_deref() != Some(*key)) {
        Some(key) => readable_by(&user, key),
        None => Ok(()),
    }
}

/// Whether `user` can read `file`. The kernel decides, in a thread that takes the user's place: modes, groups,
/// ACLs and folders all count. Needs root; for anyone else, the answer is their own.
pub(crate) fn readable_by(user: &User, file: &Path) -> Result<(), Unreadable> {
    thread::scope(|scope| {
        let asked = scope.spawn(|| match take_place_of(user) {
            Ok(()) => readable(user, file),
            Err(_not_root) => Ok(()),
        });
        asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What to do about this error of reading `file`, where the unit's user is the one that met it.
#[must_use]
pub(crate) fn advice(file: &Path, error: &io::Error) -> Option<String> {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    let user = reader(file).filter(|user| is_denied && user.uid == geteuid())?;
    readable(&user, file).err().map(|unreadable| unreadable.advice)
}

/// Access to files as `user` has it, for this thread only: fsuid and groups are a thread's own, and the fsuid
/// of anyone but root takes the capabilities that override modes away (capabilities(7)).
fn take_place_of(user: &User) -> io::Result<()> {
    let name = std::ffi::CString::new(user.name.as_str())?;
    let groups: Vec<libc::gid_t> =
        getgrouplist(&name, user.gid)?.into_iter().map(Gid::as_raw).collect();
    // SAFETY: `groups` holds as many ids as the call is told. The C library's setgroups() would change every
    // thread of the process.
    if unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    setfsgid(user.gid);
    setfsuid(user.uid);
    Ok(())
}

/// Whether this thread can read `file`, which `user` should.
fn readable(user: &User, file: &Path) -> Result<(), Unreadable> {
    let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    // A pipe would wait for its writer.
    match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file) {
        Err(error) if is_denied(&error) => {}
        // It may not exist: that is for others to say.
        Ok(_) | Err(_) => return Ok(()),
    }
    let path = path::absolute(file).unwrap_or_else(|_| file.into());
    let mut folders: Vec<_> = path.ancestors().skip(1).collect();
    folders.reverse();
    let closed =
        folders.into_iter().find(|it| fs::metadata(it.join(".")).is_err_and(|it| is_denied(&it)));
    let advice = match closed {
        Some(folder) if folder.starts_with(DIRECTORY) => {
            let (folder, name) = (folder.display(), &user.name);
            format!("run chgrp {name} {folder} && chmod 750 {folder}")
        }
        Some(folder) => {
            format!("{} is closed to it; keep the file in {DIRECTORY}", folder.display())
        }
        None => {
            let file = file.display();
            format!("run chown {}: {file} && chmod 600 {file}", user.name)
        }
    };
    Err(Unreadable { user: user.name.clone(), file: file.into(), advice })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Uid, getgid};
    use std::os::unix::fs::{PermissionsExt as _, chown};

    fn nobody() -> User {
        assert!(
            geteuid().is_root(),
            "this test needs root: only root can take another user's place"
        );
        User::from_name("nobody").unwrap().unwrap()
    }

    /// A folder of mode 0755 and a file in it, owned by root.
    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("home.toml");
        fs::write(&file, "").unwrap();
        for (path, mode) in [(folder.path(), 0o755), (&file, mode)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        (folder, file)
    }

    #[test]
    fn the_access_of_another_user_is_known_without_becoming_that_user() {
        let user = nobody();
        let (_folder, closed) = file(0o600);
        let error = readable_by(&user, &closed).unwrap_err();
        let path = closed.display();
        assert_eq!(
            error.to_string(),
            format!("user nobody cannot read {path}: run chown nobody: {path} && chmod 600 {path}")
        );
        chown(&closed, Some(user.uid.as_raw()), None).unwrap();
        readable_by(&user, &closed).unwrap();
        let (_folder, open) = file(0o644);
        readable_by(&user, &open).unwrap();
        let (_folder, of_the_group) = file(0o640);
        readable_by(&user, &of_the_group).unwrap_err();
        chown(&of_the_group, None, Some(user.gid.as_raw())).unwrap();
        readable_by(&user, &of_the_group).unwrap();
    }

    #[test]
    fn a_closed_folder_is_named() {
        let user = nobody();
        let (folder, file) = file(0o644);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let error = readable_by(&user, &file).unwrap_err().to_string();
        assert!(error.contains(&format!("{} is closed", folder.path().display())), "{error}");
    }

    #[test]
    fn asking_for_another_user_changes_nothing_for_this_thread() {
        let user = nobody();
        let (_folder, closed) = file(0o600);
        readable_by(&user, &closed).unwrap_err();
        // The file system's ids are what these return: the ones before.
        assert_eq!(setfsuid(Uid::from_raw(0)), Uid::from_raw(0));
        assert_eq!(setfsgid(getgid()), getgid());
        fs::read(&closed).unwrap();
    }

    #[test]
    fn a_file_outside_the_configuration_folder_needs_no_particular_reader() {
        let (_folder, file) = file(0o640);
        assert_eq!(reader(&file), None);
        assert_eq!(mend(&file), format!("chmod 600 {}", file.display()));
        check(&file, None).unwrap();
    }
}
