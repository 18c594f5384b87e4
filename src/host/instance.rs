//! A tunnel of this host by its name, and the files that its daemon keeps under that name in the runtime directory.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::wire::foreign::is_printable;

const DEFAULT_DIRECTORY: &str = "/run/roamd";
const DEFAULT_CONFIGURATIONS: &str = "/etc/roamd";

/// A daemon's name and runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    name: String,
    directory: PathBuf,
}

impl Instance {
    /// The instance that a configuration file makes: `/etc/roamd/home.toml` is `home`.
    #[must_use]
    pub(crate) fn of_file(file: &Path) -> Self {
        let stem = file.file_stem().unwrap_or(file.as_os_str());
        Self::named(&stem.to_string_lossy())
    }

    #[must_use]
    pub(crate) fn named(name: &str) -> Self {
        Self::within(&directory(), name)
    }

    #[must_use]
    pub(crate) fn within(directory: &Path, name: &str) -> Self {
        Self { name: name.into(), directory: directory.into() }
    }

    /// All that have a file with this suffix in `directory`, by name. What is not printable is no name: the daemon's user
    /// may write there.
    pub(crate) fn all_within(directory: &Path, suffix: &str) -> io::Result<Vec<Self>> {
        let entries = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
        let mut names: Vec<_> = entries
            .filter(|path| path.extension().is_some_and(|its| its == suffix))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .filter(|name| name.chars().all(is_printable))
            .collect();
        names.sort_unstable();
        Ok(names.iter().map(|name| Self::within(directory, name)).collect())
    }

    /// All that have a file with this suffix in the same directory, by name.
    pub(crate) fn beside(&self, suffix: &str) -> Vec<Self> {
        Self::all_within(&self.directory, suffix).unwrap_or_default()
    }

    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The instance's file with this suffix.
    #[must_use]
    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}.{suffix}", self.name))
    }

    /// The instance's file with this suffix that outlives a restart of the machine: in the folder that systemd says
    /// (systemd.exec(5), `StateDirectory=`), or `/var/lib/roamd`.
    #[must_use]
    pub(crate) fn state_file(&self, suffix: &str) -> PathBuf {
        state_directory().join(format!("{}.{suffix}", self.name))
    }
}

/// `$STATE_DIRECTORY`, or `/var/lib/roamd`.
pub(crate) fn state_directory() -> PathBuf {
    const DEFAULT: &str = "/var/lib/roamd";
    env::var_os("STATE_DIRECTORY").map_or_else(|| DEFAULT.into(), PathBuf::from)
}

/// `$ROAMD_RUNTIME_DIR`, or `/run/roamd`.
pub(crate) fn directory() -> PathBuf {
    env::var_os("ROAMD_RUNTIME_DIR").map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// Where the configurations of tunnels are that are named without a path: `$ROAMD_CONFIG_DIR`, or `/etc/roamd`.
pub(crate) fn configurations() -> PathBuf {
    env::var_os("ROAMD_CONFIG_DIR").map_or_else(|| DEFAULT_CONFIGURATIONS.into(), PathBuf::from)
}
