//! What links carried, on disk: the file `NAME.usage`, and `NAME.usage-before` as it was one writing before.
//!
//! A write goes to a third file, `NAME.usage-new`, which then takes the place of the old one; so whenever the power fails,
//! one of the two is whole. A checksum tells: the first line is the text, the second its SHA-256.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ring::digest;
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use crate::host::file;

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
struct Content<L> {
    version: u32,
    #[serde(flatten)]
    ledger: L,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Store {
    #[must_use]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, is_whole: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file beside it with this at the end of its name.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// What was written last, or before that, and what is damaged, if something is. An error if it may well be whole, but
    /// cannot be read at present, or is of a later version.
    pub(crate) fn read(&mut self) -> io::Result<(Ledger, Option<io::Error>)> {
        let damage = match read(&self.path) {
            Ok(ledger) => {
                self.is_whole = true;
                return Ok((ledger, None));
            }
            Err(error) if is_damage(&error) => error,
            Err(error) => return Err(error),
        };
        // Without a newer one the power failed between two renamings.
        let is_missing = damage.kind() == io::ErrorKind::NotFound;
        match read(&self.beside("-before")) {
            Ok(ledger) => Ok((ledger, Some(damage).filter(|_| !is_missing))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_missing => {
                Ok((Ledger::default(), None))
            }
            Err(error) if is_damage(&error) => Ok((Ledger::default(), Some(damage))),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file. Blocks until the disk has it.
    pub(crate) fn write(&mut self, ledger: &Ledger) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = self.beside("-new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = file::plain(&mut options, &new)?;
        if let Err(error) = fill(&mut file, folder, ledger) {
            // On a full disk it takes the room.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        if self.is_whole {
            match fs::rename(&self.path, self.beside("-before")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        fs::rename(&new, &self.path)?;
        self.is_whole = true;
        File::open(folder)?.sync_all()
    }
}

fn fill(file: &mut File, folder: &Path, ledger: &Ledger) -> io::Result<()> {
    file.write_all(&encode(ledger)?)?;
    file::give(file, folder)?;
    file.sync_all()
}

/// Whether there is nothing to be read that could be lost.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

fn encode(ledger: &Ledger) -> serde_json::Result<Vec<u8>> {
    let content = Content { version: VERSION, ledger };
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
    let damage = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let Version { version } = serde_json::from_str(content).map_err(damage)?;
    if version != VERSION {
        let reason = format!("it has the version {version}, and this roamd knows {VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    let content: Content<Ledger> = serde_json::from_str(content).map_err(damage)?;
    Ok(content.ledger.checked())
}

pub(super) fn checksum(bytes: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, bytes);
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> io::Result<Ledger> {
    let mut text = String::new();
    file::plain(&mut File::options(), path)?.take(LONGEST).read_to_string(&mut text)?;
    decode(&text)
}
