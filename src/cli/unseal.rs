//! `roamd unseal`

use std::io::{self, Write as _};

use super::tunnel::{self, Tunnel};
use crate::host::{
    instance::Instance,
    record::{self, RecordError, UndoError},
};

/// Lets out what tunnels that do not run hold back: this one, or all.
pub(crate) fn unseal(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let names = match tunnel {
        Some(_) => vec![tunnel::instance(tunnel)?.name().to_owned()],
        None => record::names(&Instance::named("roamd")),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stdout = io::stdout().lock();
    let mut failure = None;
    for name in names {
        match runtime.block_on(record::unseal(&Instance::named(&name))) {
            Ok(true) => writeln!(stdout, "{name}: nothing is held back any more")?,
            Ok(false) => writeln!(stdout, "{name}: nothing was held back")?,
            Err(error @ UndoError::Record(RecordError::Running(_))) => {
                failure = Some(anyhow::Error::from(error).context(format!(
                    "stop it (systemctl stop roamd@{name}), or set tun.kill-switch = false and reload it; \
                     either lets everything out"
                )));
            }
            Err(error) => failure = Some(error.into()),
        }
    }
    failure.map_or(Ok(()), Err)
}
