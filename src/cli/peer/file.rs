//! A server's file, changed without touching what a person wrote around it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tempfile::NamedTempFile;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use crate::{
    cli::exit::Exit,
    clock,
    config::{Loaded, Peer, process_environment},
};

/// How long another command may take to change the same file. A hundred commands take a few seconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Keeps other commands from changing the files of one folder until it is dropped. The folder itself is
/// locked (flock(2)): the file is replaced, and a lock on the old one would exclude nobody.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl Lock {
    /// Locks the folder of `path`.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let path = fs::canonicalize(path)
            .map_err(|error| Exit::NoInput.because(error))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let cannot = || format!("cannot lock {}", folder.display());
        let mut opened = File::open(folder).with_context(cannot)?;
        let end = clock::now() + LOCK_TIMEOUT;
        loop {
            match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if clock::now() < end => {
                    opened = back;
                    thread::sleep(LOCK_RETRY);
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    let folder = folder.display();
                    return Err(anyhow!("another roamd peer has changed {folder} for too long"));
                }
                Err((_, error)) => return Err(error).with_context(cannot),
            }
        }
    }
}

/// The file with its comments.
pub(super) struct ServerFile(DocumentMut);

/// The changed file beside the old one, found good.
pub(super) struct Checked(NamedTempFile, PathBuf);

impl ServerFile {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self(text.parse().with_context(|| format!("cannot read {}", path.display()))?))
    }

    /// Adds a table at the end.
    pub(super) fn add(&mut self, peer: &Peer) {
        let mut table = Table::new();
        table.insert("name", value(&peer.name));
        table.insert("public-key", value(peer.public_key.to_string()));
        let addresses: Array = peer.addresses.iter().map(ToString::to_string).collect();
        table.insert("addresses", value(addresses));
        let peers = self.0.entry("peer").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        match peers {
            Item::ArrayOfTables(peers) => peers.push(table),
            // peer = [{ ... }]
            other => {
                if let Some(peers) = other.as_array_mut() {
                    peers.push(table.into_inline_table());
                }
            }
        }
    }

    /// Takes the peer with this index out, and the comments right above it.
    pub(super) fn remove(&mut self, index: usize) {
        match self.0.get_mut("peer") {
            Some(Item::ArrayOfTables(peers)) => {
                peers.remove(index);
            }
            Some(other) => {
                if let Some(peers) = other.as_array_mut() {
                    peers.remove(index);
                }
            }
            None => {}
        }
    }

    /// Writes it beside `path` and looks whether a daemon would take it.
    pub(super) fn check(&self, path: &Path) -> anyhow::Result<Checked> {
        let cannot = || format!("cannot write beside {}", path.display());
        let path = fs::canonicalize(path).with_context(cannot)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let before = fs::metadata(&path).with_context(cannot)?;
        let mut file = tempfile::Builder::new()
            .prefix(".roamd-")
            .suffix(".toml")
            .tempfile_in(directory)
            .map_err(|error| Exit::CannotCreate.because(error))
            .with_context(cannot)?;
        file.write_all(self.0.to_string().as_bytes()).with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        let mode = before.permissions().mode() & 0o7777;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).with_context(cannot)?;
        // Only root may give a file away; anyone else owns it anyhow.
        let _ = chown(file.path(), Some(before.uid()), Some(before.gid()));
        Loaded::new(file.path(), process_environment()).map_err(|errors| {
            let said = errors
                .to_string()
                .replace(&file.path().display().to_string(), &path.display().to_string());
            Exit::Config.because(anyhow!("{said}\n{} stays as it is", path.display()))
        })?;
        Ok(Checked(file, path))
    }
}

impl Checked {
    /// Puts it in the old file's place, at once.
    pub(super) fn replace(self) -> anyhow::Result<()> {
        let Self(file, path) = self;
        let result = file.persist(&path);
        result
            .map_err(|error| error.error)
            .with_context(|| format!("cannot replace {}", path.display()))?;
        Ok(())
    }
}
