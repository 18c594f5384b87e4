//! systemd's journal, by its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>): a datagram for
//! each event, with its priority, its text, and every field of it as a field of the journal.
//!
//! The tracing-journald crate has no values in the text, so that journalctl(1) would show "switched" and not
//! from where to where.

use std::{fmt, io, os::unix::net::UnixDatagram, path::Path, time::Duration};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Full, Writer},
    },
    registry::LookupSpan,
};

use crate::wire::foreign::is_printable;

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a full journal may hold the daemon's one thread up, for each line.
const PATIENCE: Duration = Duration::from_millis(50);

/// The journal's socket.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    pub(super) fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }
}

impl io::Write for &Journal {
    /// One entry, as [`Entries`] makes them.
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if self.0.send(entry).is_err() {
            let text = entry.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
            io::stderr().write_all(text.strip_prefix(b"MESSAGE=").unwrap_or(text))?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes entries of events.
#[derive(Debug)]
pub(super) struct Entries(Format<Full, ()>);

impl Default for Entries {
    fn default() -> Self {
        Self(format::format().without_time().with_level(false).with_target(false))
    }
}

impl<S, N> FormatEvent<S, N> for Entries
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let mut entry = Entry { writer, written: Ok(()) };
        entry.add("MESSAGE", &text.trim_end());
        entry.add("PRIORITY", &priority(*event.metadata().level()));
        entry.add("SYSLOG_IDENTIFIER", &"roamd");
        entry.add("TARGET", &event.metadata().target());
        event.record(&mut entry);
        entry.written
    }
}

/// Of syslog(3). What tracing calls INFO is a line that a user wants to see, and no more.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

struct Entry<'a> {
    writer: Writer<'a>,
    written: fmt::Result,
}

impl Entry<'_> {
    /// One line. A new line in the value would begin another field, so it is escaped.
    fn add(&mut self, name: &str, value: &dyn fmt::Display) {
        let value = value.to_string();
        let Self { writer, written } = self;
        let mut write = || {
            write!(writer, "{name}=")?;
            for character in value.chars() {
                match is_printable(character) {
                    true => writer.write_char(character)?,
                    false => write!(writer, "{}", character.escape_debug())?,
                }
            }
            writer.write_char('\n')
        };
        *written = written.and_then(|()| write());
    }
}

impl Visit for Entry<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // The message is in the text, and so are the values.
        if field.name() != "message" {
            self.add(&field.name().to_uppercase().replace(['.', '-'], "_"), &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing::{debug, error, info, warn};
    use tracing_subscriber::{fmt::layer, prelude::*, registry};

    /// What the journal gets.
    fn entries(log: impl FnOnce()) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let journal = Arc::new(Journal::at(&path).unwrap());
        let layer = layer().event_format(Entries::default()).with_ansi(false).with_writer(journal);
        tracing::subscriber::with_default(registry().with(layer), log);
        let mut entry = [0; 4096];
        let mut entries = Vec::new();
        while let Ok(length) = socket.recv(&mut entry) {
            entries.push(String::from_utf8(entry[..length].to_vec()).unwrap());
        }
        entries
    }

    #[test]
    fn an_event_keeps_its_priority_and_its_fields() {
        let target = module_path!();
        assert_eq!(
            entries(|| warn!(link = "wlan0", gap = %"19ms", "switched")),
            [format!(
                "MESSAGE=switched link=\"wlan0\" gap=19ms\nPRIORITY=4\nSYSLOG_IDENTIFIER=roamd\n\
                 TARGET={target}\nLINK=wlan0\nGAP=19ms\n"
            )]
        );
        let all = entries(|| {
            error!("a");
            info!("b");
            debug!("c");
        });
        let priorities: Vec<_> = all.iter().filter_map(|entry| entry.lines().nth(1)).collect();
        assert_eq!(priorities, ["PRIORITY=3", "PRIORITY=6", "PRIORITY=7"]);
    }

    #[test]
    fn a_value_cannot_add_journal_fields() {
        let entries = entries(|| warn!(reason = %"x\nPRIORITY=0\x1b[2J", "lost"));
        assert_eq!(entries[0].lines().filter(|line| line.starts_with("PRIORITY=")).count(), 1);
        assert!(entries[0].contains("\nREASON=x\\nPRIORITY=0\\u{1b}[2J\n"), "{entries:?}");
    }
}
