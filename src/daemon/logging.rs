//! Where log lines go: standard error, as text or as JSON; or systemd's journal.

mod journal;

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tracing::warn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use self::journal::{Entries, Journal};
use crate::{
    config::{Filter, Log, LogFormat},
    wire::foreign::is_printable,
};

/// Logging was set up before.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct LoggingError(#[from] tracing_subscriber::util::TryInitError);

/// Changes what is logged.
#[derive(Clone, Debug)]
pub(crate) struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Logs these events from here on.
    pub(crate) fn set(&self, level: &Filter) {
        if let Err(error) = self.0.reload(level.to_env_filter()) {
            warn!(%error, "log.level stays as it was");
        }
    }
}

/// Sends this process's events to standard error from here on, or to the journal behind it.
pub(crate) fn init(log: &Log) -> Result<LogHandle, LoggingError> {
    let ansi = io::stderr().is_terminal();
    let lines = fmt::layer().with_ansi(ansi);
    let stderr = move || OneLine { to: io::stderr(), ansi };
    let journal = if is_journal() { Journal::open().ok() } else { None };
    let layer = match (log.format, journal) {
        (LogFormat::Json, _) => lines
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
        (LogFormat::Text, Some(journal)) => fmt::layer()
            .event_format(Entries::default())
            .with_ansi(false)
            .with_writer(Arc::new(journal))
            .boxed(),
        (LogFormat::Text, None) => lines.with_writer(stderr).boxed(),
    };
    let (filter, handle) = reload::Layer::new(log.level.to_env_filter());
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    Ok(LogHandle(handle))
}

/// Keeps each event on a line of its own, whatever is in its fields: tracing-subscriber writes a whole event at
/// once, and escapes a terminal's control characters in it but not ends of lines.
struct OneLine<W> {
    to: W,
    /// Whether escape sequences of tracing-subscriber itself are in it.
    ansi: bool,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let is_safe = |c: char| is_printable(c) || self.ansi && c == '\x1b';
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if line.chars().all(is_safe) {
            self.to.write_all(event)?;
        } else {
            let mut safe = String::with_capacity(2 * event.len());
            for c in line.chars() {
                if is_safe(c) { safe.push(c) } else { safe.extend(c.escape_debug()) }
            }
            safe.push('\n');
            self.to.write_all(safe.as_bytes())?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes what ends the process to standard error; for the journal, each line with its priority (sd-daemon(3)).
pub(crate) fn complain(lines: &str) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    let priority = if is_journal() { "<3>" } else { "" };
    lines.lines().try_for_each(|line| writeln!(stderr, "{priority}{line}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str, ansi: bool) -> String {
        let mut lines = OneLine { to: Vec::new(), ansi };
        lines.write_all(event.as_bytes()).unwrap();
        String::from_utf8(lines.to).unwrap()
    }

    #[test]
    fn any_event_is_logged_as_one_line() {
        assert_eq!(written("disconnected reason=ok\n", false), "disconnected reason=ok\n");
        assert_eq!(written("a\nroot logged in\r\n", false), "a\\nroot logged in\\r\n");
        assert_eq!(written("\x1b[31mred\u{9b}\n", false), "\\u{1b}[31mred\\u{9b}\n");
        assert_eq!(written("\x1b[31mred\u{9b}\n", true), "\x1b[31mred\\u{9b}\n");
    }
}
