//! What the user sees.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::tally::Tally;
use crate::lab::Access;

/// How many lines of a log are worth reading at once.
const TAIL: usize = 15;

/// Below this a pause is not felt as one; above the second, it is in the way.
const UNNOTICED: Duration = Duration::from_millis(300);
const ANNOYING: Duration = Duration::from_secs(2);

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// A place to write to, with or without colours.
pub(super) struct Screen<'a> {
    out: Box<dyn Write + 'a>,
    colours: bool,
}

impl Screen<'static> {
    /// Standard output, with colours on a terminal that shows them.
    pub(super) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        let colours = wanted && io::stdout().is_terminal();
        Self { out: Box::new(io::stdout()), colours }
    }
}

impl<'a> Screen<'a> {
    /// Any other place, without colours.
    #[cfg(test)]
    pub(super) fn plain(out: impl Write + 'a) -> Self {
        Self { out: Box::new(out), colours: false }
    }

    pub(super) fn title(&mut self) -> io::Result<()> {
        let title = self.paint(BOLD, "roamd demo");
        writeln!(self.out, "{title}  a laptop with two networks, and a tunnel to a server\n")?;
        writeln!(self.out, "           ┌─ wifi   5 ms ─┐")?;
        writeln!(self.out, "   laptop ─┤               ├─ internet ─ server")?;
        writeln!(self.out, "           └─ lte   25 ms ─┘\n")
    }

    /// A step of the preparations is done; it took from `since` until this moment.
    pub(super) fn step(&mut self, what: &str, since: Instant) -> io::Result<()> {
        let mark = self.paint(GREEN, "✓");
        let took = self.paint(DIM, &format!("{:>8}", seconds(since.elapsed())));
        writeln!(self.out, " {mark} {what:<44}{took}")
    }

    /// The heading of the table that [`Screen::second`] fills.
    pub(super) fn heading(&mut self) -> io::Result<()> {
        writeln!(
            self.out,
            "\nA line is typed every 100 ms into a connection through the tunnel:\n"
        )?;
        let heading = format!(
            "{:>7}   {:<5} {:>10}   {:>13}   {:>13}",
            "time", "via", "echo", "typed/echoed", "longest stall"
        );
        let heading = self.paint(DIM, &heading);
        writeln!(self.out, "{heading}")
    }

    /// One line about the second that has passed.
    pub(super) fn second(&mut self, second: &Second, tally: &Tally) -> io::Result<()> {
        let via = second.via.map_or_else(|| "-".to_owned(), |access| access.to_string());
        let via = self.paint(BOLD, &format!("{via:<5}"));
        let echo = second.echo.map_or_else(|| "none".to_owned(), milliseconds);
        let echo = self.paint(second.echo.map_or(RED, colour), &format!("{echo:>10}"));
        let lines = format!("{}/{}", tally.typed(), tally.echoed());
        let stall =
            self.paint(colour(second.stall), &format!("{:>13}", milliseconds(second.stall)));
        writeln!(self.out, "{:>7}   {via} {echo}   {lines:>13}   {stall}", seconds(second.at))
    }

    /// An event of the script.
    pub(super) fn event(&mut self, at: Duration, title: &str) -> io::Result<()> {
        let title = self.paint(YELLOW, title);
        writeln!(self.out, "{:>7} ▸ {title}", seconds(at))
    }

    /// What it all came to.
    pub(super) fn summary(&mut self, tally: &Tally) -> io::Result<()> {
        let stall = tally.stall(Instant::now());
        let echo = |time: Option<Duration>| time.map_or_else(|| "none".to_owned(), milliseconds);
        writeln!(self.out)?;
        let rows = [
            ("lines typed", tally.typed().to_string()),
            ("lines echoed", tally.echoed().to_string()),
            ("median echo", echo(tally.median_echo_since(0))),
            ("worst echo", echo(tally.worst_echo())),
            ("longest stall", milliseconds(stall)),
        ];
        for (name, value) in rows {
            writeln!(self.out, "   {name:<15}{value:>10}")?;
        }
        let (code, words) = match stall {
            _ if tally.waiting() > 0 => (RED, "Some lines never came back."),
            stall if stall < UNNOTICED => {
                (GREEN, "Nothing was lost, and nobody would have noticed.")
            }
            stall if stall < ANNOYING => (YELLOW, "Nothing was lost; there was a short hitch."),
            _ => (RED, "Nothing was lost, but anyone would have noticed."),
        };
        let words = self.paint(code, words);
        writeln!(self.out, "\n {words}")
    }

    /// The end of a daemon's log.
    pub(super) fn log(&mut self, name: &str, log: &str) -> io::Result<()> {
        let lines: Vec<&str> = log.lines().collect();
        let heading = self.paint(RED, &format!("The end of the {name}'s log:"));
        writeln!(self.out, "\n{heading}")?;
        if lines.is_empty() {
            writeln!(self.out, "   (nothing)")?;
        }
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            writeln!(self.out, "   {line}")?;
        }
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What is told about one second of the session.
#[derive(Debug)]
pub(super) struct Second {
    /// Since the first line was typed.
    pub(super) at: Duration,
    /// The network that carried most of it, if any did.
    pub(super) via: Option<Access>,
    /// The median echo of the lines that came back in it.
    pub(super) echo: Option<Duration>,
    /// The longest stall so far.
    pub(super) stall: Duration,
}

fn colour(time: Duration) -> &'static str {
    if time < UNNOTICED {
        GREEN
    } else if time < ANNOYING {
        YELLOW
    } else {
        RED
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds < 100.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}
