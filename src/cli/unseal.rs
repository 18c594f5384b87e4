//! `roamd unseal`

use std::io::{self, Write as _};

use super::{
    advice::stops,
    tunnel::{self, Tunnel},
};
use crate::host::{
    instance::{Instance, directory},
    record::{self, RecordError, UndoError},
};

/// Lets out what tunnels that do not run hold back: this one, or all.
pub(crate) fn unseal(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let tunnels = match tunnel {
        Some(_) => vec![tunnel::instance(tunnel)?],
        None => Instance::all_within(&directory(), record::SUFFIX).unwrap_or_default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stdout = io::stdout().lock();
    let mut failure = None;
    for tunnel in tunnels {
        let name = tunnel.title();
        match runtime.block_on(record::unseal(&tunnel)) {
            Ok(true) => writeln!(stdout, "{name}: nothing is held back any more")?,
            Ok(false) => writeln!(stdout, "{name}: nothing was held back")?,
            Err(error @ UndoError::Record(RecordError::Running(_))) => {
                failure = Some(anyhow::Error::from(error).context(format!(
                    "stop it ({}), or set tun.kill-switch = false and reload it; \
                     either lets everything out",
                    stops(&tunnel)
                )));
            }
            Err(error) => failure = Some(error.into()),
        }
    }
    failure.map_or(Ok(()), Err)
}
