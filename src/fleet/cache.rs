//! What a server keeps on disk of the directory, so that it starts without etcd, and so that nobody who was removed
//! comes back by that.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{belief::Saved, entry::Entry};
use crate::host::file;

/// The version of the file.
const VERSION: u32 = 1;

/// The file.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    path: PathBuf,
    /// The prefix in etcd. What is of another one is not read.
    prefix: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    prefix: String,
    revision: i64,
    entries: Vec<Line>,
    /// The revisions at which peers were gone, by their key.
    removed: BTreeMap<String, i64>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    value: String,
    created: i64,
    modified: i64,
}

impl Cache {
    pub(super) fn at(path: PathBuf, prefix: &str) -> Self {
        Self { path, prefix: prefix.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved last; nothing if that was another directory, or never.
    pub(super) fn read(&self) -> io::Result<Saved> {
        let text = match file::plain(&mut File::options(), &self.path).and_then(io::read_to_string)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
            text => text?,
        };
        let content: Content = serde_json::from_str(&text)?;
        if content.version != VERSION || content.prefix != self.prefix {
            return Ok(Saved::default());
        }
        let entry = |Line { key, value, created, modified }| Entry {
            key,
            value: value.into_bytes(),
            created,
            modified,
            lease: 0,
        };
        let entries = content.entries.into_iter().map(entry).collect();
        Ok(Saved { revision: content.revision, entries, removed: content.removed })
    }

    /// Deletes the file, which takes no room on the disk.
    pub(super) fn delete(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    /// Replaces the file at once. Blocks until the disk has it.
    pub(super) fn write(&self, saved: Saved) -> io::Result<()> {
        let line = |Entry { key, value, created, modified, .. }| Line {
            key,
            value: String::from_utf8_lossy(&value).into_owned(),
            created,
            modified,
        };
        let content = Content {
            version: VERSION,
            prefix: self.prefix.clone(),
            revision: saved.revision,
            entries: saved.entries.into_iter().map(line).collect(),
            removed: saved.removed,
        };
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Of mode 0600 from the start.
        let mut file = tempfile::Builder::new().prefix(".roamd-").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file::give(file.as_file(), folder)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_by_its_owner_alone_and_for_the_same_prefix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/home.directory");
        let cache = Cache::at(path.clone(), "/roamd/home");
        assert_eq!(cache.read().unwrap(), Saved::default());
        let entry = Entry {
            key: "peers/x".into(),
            value: b"{}".to_vec(),
            created: 3,
            modified: 4,
            lease: 0,
        };
        let saved = Saved {
            revision: 7,
            entries: vec![entry],
            removed: [("peers/y".to_owned(), 5)].into(),
        };
        cache.write(saved.clone()).unwrap();
        assert_eq!(cache.read().unwrap(), saved);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
        assert_eq!(Cache::at(path.clone(), "/roamd/work").read().unwrap(), Saved::default());
        fs::write(&path, "{").unwrap();
        assert!(cache.read().is_err());
    }
}
