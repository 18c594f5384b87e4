//! Where log lines go: standard error, as text or as JSON.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::warn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Filter, Log, LogFormat};

/// Logging was set up before.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LoggingError(#[from] tracing_subscriber::util::TryInitError);

/// Changes what is logged.
#[derive(Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Logs these events from here on.
    pub fn set(&self, level: &Filter) {
        if let Err(error) = self.0.reload(level.to_env_filter()) {
            warn!(%error, "log.level stays as it was");
        }
    }
}

/// Sends this process's events to standard error from here on.
pub fn init(log: &Log) -> Result<LogHandle, LoggingError> {
    let ansi = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(ansi);
    let layer = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text if is_journal() => lines.without_time().boxed(),
        LogFormat::Text => lines.boxed(),
    };
    let (filter, handle) = reload::Layer::new(log.level.to_env_filter());
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    Ok(LogHandle(handle))
}

/// Whether standard error is the journal, which has its own clock.
///
/// systemd.exec(5): `$JOURNAL_STREAM` holds device and inode of the stream, to be compared,
/// since a child process inherits the variable even where its standard error leads elsewhere.
fn is_journal() -> bool {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let Ok(stream) = stderr.and_then(|file| file.metadata()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|id| id == format!("{}:{}", stream.dev(), stream.ino()))
}
