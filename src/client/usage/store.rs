//! What links carried, on disk: the file `NAME.usage`, and `NAME.usage-before` as it was one writing before.
//!
//! A write goes to a file of its own, which then takes the place of the old one; so whenever the power fails, one of
//! the two is whole. A checksum tells: the first line is the text, the second its SHA-256.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use nix::{libc, unistd::geteuid};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::ledger::{Account, Ledger};

/// The version of the file.
const VERSION: u32 = 1;
/// More than the largest ledger takes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The file.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Whether the file is known to be whole: one that is not does not take the place of the one before.
    is_whole: bool,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    links: BTreeMap<String, Account>,
}

impl Store {
    #[must_use]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, is_whole: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn before(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push("-before");
        name.into()
    }

    /// What was written last, or before that, and what is wrong with the file, if something is.
    pub(crate) fn read(&mut self) -> (Ledger, Option<io::Error>) {
        let damage = match read(&self.path) {
            Ok(ledger) => {
                self.is_whole = true;
                return (ledger, None);
            }
            Err(error) => error,
        };
        match read(&self.before()) {
            // The power failed between two renamings, or somebody deleted the newer one.
            Ok(ledger) if damage.kind() == io::ErrorKind::NotFound => (ledger, None),
            Ok(ledger) => (ledger, Some(damage)),
            Err(_) if damage.kind() == io::ErrorKind::NotFound => (Ledger::default(), None),
            Err(_) => (Ledger::default(), Some(damage)),
        }
    }

    /// Replaces the file. Blocks until the disk has it.
    pub(crate) fn write(&mut self, ledger: &Ledger) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Of mode 0600 from the start.
        let mut file = tempfile::Builder::new().prefix(".roamd-").tempfile_in(folder)?;
        file.write_all(&encode(ledger)?)?;
        if geteuid().is_root() {
            // The next run may be the unit's, with its own user.
            let owner = fs::metadata(folder)?;
            fchown(file.as_file(), Some(owner.uid()), Some(owner.gid()))?;
        }
        file.as_file().sync_all()?;
        if self.is_whole {
            match fs::rename(&self.path, self.before()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        file.persist(&self.path)?;
        self.is_whole = true;
        File::open(folder)?.sync_all()
    }
}

fn encode(ledger: &Ledger) -> serde_json::Result<Vec<u8>> {
    let content = Content { version: VERSION, links: ledger.accounts().clone() };
    let mut text = serde_json::to_string(&content)?;
    let sum = checksum(text.as_bytes());
    text.extend(["\n", &sum, "\n"]);
    Ok(text.into_bytes())
}

fn decode(text: &str) -> io::Result<Ledger> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let (content, sum) = text.split_once('\n').ok_or_else(damaged)?;
    if sum.strip_suffix('\n') != Some(&checksum(content.as_bytes())) {
        return Err(damaged());
    }
    let content: Content = serde_json::from_str(content)?;
    if content.version != VERSION {
        let reason =
            format!("it has the version {}, and this roamd knows {VERSION}", content.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(Ledger::of(content.links))
}

fn checksum(bytes: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, bytes);
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A plain file: root must not wait at a pipe in a folder of the daemon's.
fn read(path: &Path) -> io::Result<Ledger> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    decode(&text)
}
