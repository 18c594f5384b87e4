//! What the user sees.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use super::{script::Script, session::Played, tally::Tally, watch::Care};
use crate::clock;

/// How long the last echoes are waited for at most.
const LAST: Duration = Duration::from_secs(10);

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
        let took = self.paint(DIM, &format!("{:>8}", seconds(clock::now().duration_since(since))));
        writeln!(self.out, " {mark} {what:<44}{took}")
    }

    /// The heading of the table that [`Screen::second`] fills.
    pub(super) fn heading(&mut self) -> io::Result<()> {
        writeln!(
            self.out,
            "\nA line is typed every 100 ms into a connection through the tunnel:\n"
        )?;
        let heading = format!(
            "{:>7}   {:<11} {:>10}   {:>13}   {:>13}",
            "time", "via", "echo", "typed/echoed", "longest stall"
        );
        let heading = self.paint(DIM, &heading);
        writeln!(self.out, "{heading}")
    }

    /// One line about the second that has passed.
    pub(super) fn second(&mut self, second: &Second, tally: &Tally) -> io::Result<()> {
        let via = second.via.clone().unwrap_or_else(|| "-".to_owned());
        let via = self.paint(BOLD, &format!("{via:<11}"));
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

    /// What happened, and how long the user waited each time.
    pub(super) fn timeline(&mut self, played: &Played) -> io::Result<()> {
        let Played { start, script, tally, record } = played;
        if script.events.is_empty() {
            return Ok(());
        }
        let heading = format!("{:>7}   {:<58} {:>8}", "time", "what happened", "stall");
        let heading = self.paint(DIM, &heading);
        writeln!(self.out, "\n{heading}")?;
        let end = *start + script.length + LAST;
        for (number, event) in script.events.iter().enumerate() {
            let next = script.events.get(number + 1).map_or(end, |next| *start + next.at);
            let stall = tally.stall_between(*start + event.at, next);
            let shown = if event.offline {
                self.paint(DIM, &format!("{:>8}", "no way"))
            } else {
                self.paint(colour(stall), &format!("{:>8}", milliseconds(stall)))
            };
            writeln!(self.out, "{:>7} ▸ {:<58} {shown}", seconds(event.at), event.title)?;
            let within = |at: &Instant| (*start + event.at..next).contains(at);
            for switch in record.switches.iter().filter(|switch| within(&switch.at)) {
                let what = &switch.what;
                let (from, to) = what.ways();
                let line = format!("{from} -> {to}: {}, gap {:.0} ms", what.reason, what.gap);
                writeln!(self.out, "            {}", self.paint(DIM, &line))?;
            }
            let care = record.care(*start + event.at, next);
            if care != Care::default() {
                writeln!(self.out, "            {}", self.paint(DIM, &care.to_string()))?;
            }
        }
        Ok(())
    }

    /// What it all came to.
    pub(super) fn summary(&mut self, played: &Played) -> io::Result<()> {
        let Played { start, script, tally, .. } = played;
        let end = *start + script.length + LAST;
        let spells = spells(script).into_iter();
        let spells: Vec<_> =
            spells.map(|(from, to)| *start + from..to.map_or(end, |to| *start + to)).collect();
        let stall = spells.iter().map(|it| tally.stall_between(it.start, it.end)).max();
        let stall = stall.unwrap_or_default();
        let median = tally.median_echo_when(|typed| spells.iter().any(|it| it.contains(&typed)));
        let offline = script.events.iter().any(|event| event.offline);
        let echo = |time: Option<Duration>| time.map_or_else(|| "none".to_owned(), milliseconds);
        writeln!(self.out)?;
        let rows = [
            ("lines typed", tally.typed().to_string()),
            ("lines echoed", tally.echoed().to_string()),
            (if offline { "echo, online" } else { "median echo" }, echo(median)),
            (if offline { "stall, online" } else { "longest stall" }, milliseconds(stall)),
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

    /// Where the picture is.
    pub(super) fn drawn(&mut self, file: &Path) -> io::Result<()> {
        writeln!(self.out, " The show as a picture: {}", file.display())
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

/// The times in which some network worked, from and until when.
fn spells(script: &Script) -> Vec<(Duration, Option<Duration>)> {
    let mut spells = vec![(Duration::ZERO, None)];
    for event in &script.events {
        match spells.last_mut() {
            Some((_, until @ None)) if event.offline => *until = Some(event.at),
            Some((_, Some(_))) if !event.offline => spells.push((event.at, None)),
            _ => {}
        }
    }
    spells
}

/// The summary of one second of the session.
#[derive(Debug)]
pub(super) struct Second {
    /// Since the first line was typed.
    pub(super) at: Duration,
    /// The link that carries the tunnel, if any does.
    pub(super) via: Option<String>,
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
