//! What a daemon changes on its host beyond its own interface: written down before it is done, so that the
//! next run, or `roamd unseal`, takes back what a daemon that was killed could not.
//!
//! The record is the file `NAME.state` beside the control socket. The daemon holds a lock on it, flock(2), for
//! as long as it runs. A tunnel that takes all traffic holds a second lock, on one file for each network
//! namespace: there cannot be two such tunnels in one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    file::{give, single},
    instance::Instance,
    nft::{self, NftError},
    reverse_path::ReversePaths,
    rules::Rules,
    sysctl::{self, Sysctls},
};
use crate::{link::netlink::Netlink, mutex::Mutex};

pub(crate) const SUFFIX: &str = "state";
/// More than any record of ours has.
const MAX_RECORD: u64 = 64 * 1024;

/// What there is to take back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Changes {
    /// The TUN device.
    pub interface: String,
    /// Whether a kill switch holds traffic back.
    pub sealed: bool,
    /// Interfaces for which there are firewall tables.
    pub tables: BTreeSet<String>,
    /// Whether there are routing rules.
    pub rules: bool,
    /// The index of the TUN device for which there are rules of [`ReversePaths`].
    pub reverse_paths: Option<u32>,
    /// Kernel parameters that were changed, see [`Sysctls`].
    pub sysctls: BTreeMap<String, Parameter>,
}

/// A changed kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parameter {
    /// What it was.
    pub before: String,
    /// What it was set to.
    pub set: String,
}

impl Changes {
    /// Reads the first line. `unseal` runs as root and the file is the daemon's, which does not: what a daemon
    /// of ours would not write is not believed.
    fn read(file: &File) -> io::Result<Self> {
        let mut text = String::new();
        file.take(MAX_RECORD).read_to_string(&mut text)?;
        let line = text.lines().next().unwrap_or_default();
        let mut changes: Self = serde_json::from_str(line).unwrap_or_default();
        changes.sysctls.retain(|name, parameter| {
            let is_number = |text: &str| text.parse::<i32>().is_ok();
            sysctl::is_ours(name) && is_number(&parameter.before) && is_number(&parameter.set)
        });
        Ok(changes)
    }
}

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Its daemon runs.
    #[error("roamd {0} is running")]
    Running(String),
    /// Another tunnel takes all traffic.
    #[error(
        "tunnel {0} already takes all traffic of this host, and only one can: stop it, or list the prefixes \
         that belong in this tunnel in tun.routes"
    )]
    Taken(String),
    #[error("cannot use {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

impl RecordError {
    /// The system's error, if it is one.
    pub(crate) fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Running(_) | Self::Taken(_) => None,
        }
    }
}

/// Why changes of an earlier run could not be taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndoError {
    #[error("{0}")]
    Record(RecordError),
    #[error("cannot remove firewall rules: {0}")]
    Tables(NftError),
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    #[error("cannot remove routing rules: {0}")]
    Rules(rtnetlink::Error),
    #[error("cannot remove routes: {0}")]
    Routes(rtnetlink::Error),
}

impl UndoError {
    /// The system's error, if it is one.
    pub(crate) fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Record(error) => error.io_error(),
            Self::Tables(error) => error.io_error(),
            Self::Netlink(error) => Some(error),
            Self::Rules(_) | Self::Routes(_) => None,
        }
    }
}

/// A tunnel's record, locked. Clones are the same record.
#[derive(Clone, Debug)]
pub(crate) struct Record(Arc<Inner>);

/// Lasts as long as the right, see [`Record::borrow_everything`].
#[derive(Debug)]
pub(super) struct Borrowed(#[expect(dead_code, reason = "held")] Option<Flock<File>>);

#[derive(Debug)]
struct Inner {
    instance: Instance,
    file: Flock<File>,
    changes: Mutex<Changes>,
    /// The lock of the one tunnel that takes all traffic, if this is it.
    everything: Mutex<Option<Flock<File>>>,
}

impl Record {
    /// The record of this tunnel, with what an earlier run left to take back.
    pub(crate) fn open(instance: &Instance) -> Result<Self, RecordError> {
        let path = path(instance);
        let broken = |error| RecordError::Io { path: path.clone(), error };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(broken)?;
        }
        let Some(file) = lock(open(&path).map_err(broken)?).map_err(broken)? else {
            return Err(RecordError::Running(instance.title()));
        };
        let changes = Changes::read(&file).map_err(broken)?;
        Ok(Self(Arc::new(Inner {
            instance: instance.clone(),
            file,
            changes: Mutex::new(changes),
            everything: Mutex::default(),
        })))
    }

    /// What there is to take back.
    #[must_use]
    pub(crate) fn changes(&self) -> Changes {
        self.lock().clone()
    }

    /// Writes down a change that is about to be made, or one that was taken back.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Changes)) {
        let mut changes = self.lock();
        let before = changes.clone();
        change(&mut changes);
        if *changes != before
            && let Err(error) = self.write(&changes)
        {
            warn!(%error, "changes to this host cannot be recorded: a run that is killed leaves them");
        }
    }

    /// One write, then the rest of a longer line is cut: a reader takes the first line.
    fn write(&self, changes: &Changes) -> io::Result<()> {
        let line = format!("{}\n", serde_json::to_string(changes)?);
        self.0.file.write_all_at(line.as_bytes(), 0)?;
        self.0.file.set_len(line.len() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.0.changes.lock()
    }

    /// Makes this the tunnel that takes all traffic, or not any more.
    pub(crate) fn take_everything(&self, takes: bool) -> Result<(), RecordError> {
        let mut held = self.0.everything.lock();
        if !takes {
            *held = None;
        } else if held.is_none() {
            *held = Some(self.lock_everything()?);
        }
        Ok(())
    }

    /// The right to change what belongs to the tunnel that takes all traffic: it is this one or none.
    pub(super) fn borrow_everything(&self) -> Option<Borrowed> {
        let held = self.0.everything.lock();
        if held.is_some() {
            Some(Borrowed(None))
        } else {
            self.lock_everything().ok().map(|lock| Borrowed(Some(lock)))
        }
    }

    fn lock_everything(&self) -> Result<Flock<File>, RecordError> {
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_or(0, |it| it.ino());
        let path = path(&self.0.instance).with_file_name(format!("everything-{namespace}"));
        let broken = |error| RecordError::Io { path: path.clone(), error };
        let file = open_everything(&path).map_err(broken)?;
        let name = self.0.instance.title();
        match lock(file).map_err(broken)? {
            Some(file) => {
                let line = format!("{name}\n");
                file.write_all_at(line.as_bytes(), 0).map_err(broken)?;
                file.set_len(line.len() as u64).map_err(broken)?;
                Ok(file)
            }
            None => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                Err(RecordError::Taken(holder.trim().escape_default().to_string()))
            }
        }
    }

    /// Takes back firewall tables, but for the one of the interface `but`, that no longer have a daemon.
    pub(crate) async fn remove_tables(&self, but: Option<&str>) -> Result<(), NftError> {
        for interface in self.changes().tables {
            if Some(interface.as_str()) != but {
                nft::delete(&nft::table(&interface)).await?;
                self.update(|changes| _ = changes.tables.remove(&interface));
            }
        }
        Ok(())
    }

    /// Takes back everything: firewall, routing rules, kernel parameters. Returns whether there was anything.
    pub(crate) async fn undo(&self) -> Result<bool, UndoError> {
        let before = self.changes();
        self.remove_tables(None).await.map_err(UndoError::Tables)?;
        self.update(|changes| changes.sealed = false);
        let reverse_paths = ReversePaths::new(0, self.clone()).map_err(UndoError::Netlink)?;
        reverse_paths.remove().await.map_err(UndoError::Rules)?;
        let mut rules = Rules::new(Netlink::open().map_err(UndoError::Netlink)?, self.clone());
        rules.remove().await.map_err(UndoError::Rules)?;
        rules.flush_table().await.map_err(UndoError::Routes)?;
        Sysctls::new(self.clone()).restore();
        Ok(before != self.changes())
    }
}

/// Whether a tunnel that does not run holds traffic back.
#[must_use]
pub(crate) fn is_sealed(instance: &Instance) -> bool {
    let Ok(file) = look(&path(instance)) else { return false };
    let is_sealed = Changes::read(&file).is_ok_and(|changes| changes.sealed);
    is_sealed && lock(file).is_ok_and(|lock| lock.is_some())
}

/// Whether a tunnel of this name runs.
#[cfg(feature = "networkmanager")]
#[must_use]
pub(crate) fn is_held(instance: &Instance) -> bool {
    look(&path(instance)).and_then(lock).is_ok_and(|lock| lock.is_none())
}

/// The tunnel in the directory of `instance` that runs and has this interface.
#[must_use]
pub(crate) fn who_has(interface: &str, instance: &Instance) -> Option<String> {
    let holder = instance.beside(SUFFIX).into_iter().find(|it| {
        let Ok(file) = look(&path(it)) else { return false };
        let is_its = Changes::read(&file).is_ok_and(|changes| changes.interface == interface);
        is_its && lock(file).is_ok_and(|lock| lock.is_none())
    });
    holder.map(|it| it.title())
}

/// Takes back what a daemon that is gone has left. Returns whether there was anything.
pub(crate) async fn unseal(instance: &Instance) -> Result<bool, UndoError> {
    if !path(instance).exists() {
        return Ok(false);
    }
    Record::open(instance).map_err(UndoError::Record)?.undo().await
}

fn path(instance: &Instance) -> PathBuf {
    instance.file(SUFFIX)
}

fn open(path: &Path) -> io::Result<File> {
    open_as(path, 0o600)
}

fn open_as(path: &Path, mode: u32) -> io::Result<File> {
    let file = single(File::options().write(true).create(true).truncate(false).mode(mode), path)?;
    if let Some(folder) = path.parent() {
        give(&file, folder)?;
    }
    Ok(file)
}

/// The lock of all tunnels of a namespace: whoever has it first, any unit can have it next. A child of NetworkManager cannot
/// give a file away, but is of the unit's group.
fn open_everything(path: &Path) -> io::Result<File> {
    let file = open_as(path, 0o660)?;
    // Without what the umask takes. Only the owner may, who has done it.
    let _ = file.set_permissions(Permissions::from_mode(0o660));
    Ok(file)
}

fn look(path: &Path) -> io::Result<File> {
    single(&mut File::options(), path)
}

/// Locks the file, unless another process holds the lock.
fn lock(file: File) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => Ok(Some(locked)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(folder: &tempfile::TempDir) -> Instance {
        Instance::within(folder.path(), "home")
    }

    #[test]
    fn a_record_outlives_its_daemon_and_belongs_to_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let instance = instance(&folder);
        let record = Record::open(&instance).unwrap();
        record.update(|changes| {
            changes.interface = "roam0".into();
            changes.sealed = true;
            let parameter = Parameter { before: "0".into(), set: "1".into() };
            changes.sysctls.insert("ipv4/ip_forward".into(), parameter);
        });
        assert!(
            matches!(Record::open(&instance), Err(RecordError::Running(name)) if name == "home")
        );
        assert_eq!(who_has("roam0", &instance).as_deref(), Some("home"));
        let left = record.changes();
        drop(record);
        assert!(is_sealed(&instance));
        assert_eq!(who_has("roam0", &instance), None);
        let record = Record::open(&instance).unwrap();
        assert_eq!(record.changes(), left);
        // A shorter line after a longer one.
        record.update(|changes| *changes = Changes::default());
        drop(record);
        assert_eq!(Record::open(&instance).unwrap().changes(), Changes::default());
    }

    #[test]
    fn a_forged_record_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let instance = instance(&folder);
        let evil = r#"{"sysctls":{"../kernel/core_pattern":{"before":"1","set":"0"},
            "ipv6/conf/../../../kernel/accept_ra":{"before":"1","set":"0"},
            "ipv4/ip_forward":{"before":"|/bin/sh","set":"0"}}}"#;
        fs::write(path(&instance), evil.replace('\n', "")).unwrap();
        assert_eq!(Record::open(&instance).unwrap().changes(), Changes::default());
        fs::write(path(&instance), "no record at all").unwrap();
        assert_eq!(Record::open(&instance).unwrap().changes(), Changes::default());
    }

    #[test]
    fn a_pipe_or_hard_link_is_not_used_as_a_record() {
        use nix::{sys::stat::Mode, unistd::mkfifo};
        let folder = tempfile::tempdir().unwrap();
        let instance = instance(&folder);
        mkfifo(&path(&instance), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(matches!(Record::open(&instance), Err(RecordError::Io { .. })), "a pipe");
        assert!(!is_sealed(&instance) && who_has("roam0", &instance).is_none());
        fs::remove_file(path(&instance)).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, r#"{"sealed":true}"#).unwrap();
        fs::hard_link(&victim, path(&instance)).unwrap();
        assert!(matches!(Record::open(&instance), Err(RecordError::Io { .. })), "a second name");
        fs::write(folder.path().join("a\u{1b}[2J.state"), "").unwrap();
        assert_eq!(instance.beside(SUFFIX), [instance]);
    }

    #[test]
    fn one_tunnel_alone_takes_all_traffic() {
        let folder = tempfile::tempdir().unwrap();
        let home = Record::open(&instance(&folder)).unwrap();
        let work = Record::open(&Instance::within(folder.path(), "work")).unwrap();
        home.take_everything(true).unwrap();
        home.take_everything(true).unwrap();
        let files = fs::read_dir(folder.path()).unwrap().flatten();
        let locks = files.filter(|it| it.file_name().to_string_lossy().starts_with("everything-"));
        let modes: Vec<_> = locks.map(|it| it.metadata().unwrap().mode() & 0o777).collect();
        assert_eq!(modes, [0o660], "whichever user's unit comes next");
        let refused = work.take_everything(true).unwrap_err().to_string();
        assert!(refused.starts_with("tunnel home already takes all traffic"), "{refused}");
        home.take_everything(false).unwrap();
        work.take_everything(true).unwrap();
    }
}
