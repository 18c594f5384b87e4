//! `roamd check`.

use std::io::{self, Write};
use std::path::Path;

use crate::config::{Loaded, process_environment, rights};

/// Prints the effective configuration with this host's public key, or fails with every
/// problem.
pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    let loaded = Loaded::new(file, process_environment())?;
    rights::check(file, loaded.key_file())?;
    for path in loaded.etcd_files() {
        rights::check(file, Some(path))?;
    }
    let toml = loaded.to_toml()?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "# {}: no problems; with every default it reads:", file.display())?;
    writeln!(stdout, "# this host's public key: {}", loaded.config.private_key().public_key())?;
    if let Some(said) = loaded.config.unusable_proxy() {
        writeln!(stdout, "# {said}")?;
    }
    write!(stdout, "\n{toml}")?;
    Ok(())
}
