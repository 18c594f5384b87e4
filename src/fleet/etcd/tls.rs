//! The certificates and the key for TLS to etcd, read from their files for each connection.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use etcd_client::{Certificate, Identity, TlsOptions};
use zeroize::Zeroizing;

use super::StoreError;
use crate::config::Etcd;

/// The size of a file with certificates or a key, in bytes, at most.
const MOST_MATERIAL: u64 = 1 << 20;

/// What the endpoints are reached with, unless it is plain TCP.
pub(super) fn tls(access: &Etcd) -> Result<Option<TlsOptions>, StoreError> {
    let Some(ca) = &access.ca else { return Ok(None) };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&*material(ca)?));
    if let (Some(cert), Some(key)) = (&access.cert, &access.key) {
        check_mode(key)?;
        tls = tls.identity(Identity::from_pem(&*material(cert)?, &*material(key)?));
    }
    Ok(Some(tls))
}

fn material(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let read = || {
        let file = File::open(path)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(file.metadata()?.len() as usize));
        file.take(MOST_MATERIAL).read_to_end(&mut bytes).map(|_| bytes)
    };
    read().map_err(|error| unusable(path, format!("cannot read it: {error}")))
}

fn unusable(path: &Path, reason: String) -> StoreError {
    StoreError::Material { path: path.to_owned(), reason }
}

/// A key that others can read is refused, as the configuration does.
fn check_mode(path: &Path) -> Result<(), StoreError> {
    match fs::metadata(path).map(|found| found.permissions().mode() & 0o7777) {
        Ok(mode) if mode & 0o077 != 0 => {
            Err(unusable(path, format!("has mode {mode:04o}, so others can use the key")))
        }
        _ => Ok(()),
    }
}
