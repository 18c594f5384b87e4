//! `roamd genkey` and `roamd pubkey`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, anyhow};

use super::exit::Exit;
use crate::{config::rights, identity::PrivateKey};

/// Writes a new private key to a file of its own or to standard output.
pub(crate) fn genkey(output: Option<&Path>) -> anyhow::Result<()> {
    let key = PrivateKey::generate()?;
    match output {
        Some(path) if path != Path::new("-") => write_new(path, &key),
        Some(_) | None => {
            warn_of_readers()?;
            Ok(writeln!(io::stdout().lock(), "{}", *key.to_base64())?)
        }
    }
}

/// Writes the public key of the private key in a file or on standard input.
pub(crate) fn pubkey(file: Option<&Path>) -> anyhow::Result<()> {
    let key = match file {
        Some(path) => PrivateKey::load(path)?,
        None => PrivateKey::read(io::stdin().lock())
            .context("cannot read standard input")?
            .map_err(|error| Exit::Data.because(error))
            .context("standard input is not a private key")?,
    };
    Ok(writeln!(io::stdout().lock(), "{}", key.public_key())?)
}

fn write_new(path: &Path, key: &PrivateKey) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| cannot_create(path, error))?;
    let written = writeln!(file, "{}", *key.to_base64())
        .and_then(|()| rights::give(&file, path))
        .and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a key is of no use, and would be in the way of the next attempt.
        let _ = fs::remove_file(path);
        cannot_create(path, error)
    })
}

fn cannot_create(path: &Path, error: io::Error) -> anyhow::Error {
    let path = path.display();
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Exit::CannotCreate.because(anyhow!(
            "{path} exists, and a key is never overwritten: choose another file, or remove this one"
        ));
    }
    let exit = match error.kind() == io::ErrorKind::PermissionDenied {
        true => Exit::Permission,
        false => Exit::CannotCreate,
    };
    exit.because(anyhow!("cannot create {path}: {error}"))
}

fn warn_of_readers() -> io::Result<()> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?).metadata()?;
    if stdout.is_file() && stdout.mode() & 0o077 != 0 {
        let mode = stdout.mode() & 0o7777;
        writeln!(
            io::stderr().lock(),
            "roamd: warning: the file on standard output has mode {mode:04o}, so others can use \
             the key: roamd genkey --output FILE makes one that they cannot"
        )?;
    }
    Ok(())
}
