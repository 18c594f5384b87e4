//! What the user sees: one screen that is drawn again and again on a terminal, lines elsewhere.

mod live;

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use anstyle::Style;

use super::{script::Script, session::Played};
use crate::{
    cli::{
        paint::{BOLD, DIM, GREEN, Paint, RED, YELLOW},
        record::{Care, Record},
        tally::{Tally, UNNOTICED},
    },
    clock,
};

/// How many lines of a log are worth reading at once.
const TAIL: usize = 15;

/// A longer pause is in the way.
const ANNOYING: Duration = Duration::from_secs(2);

/// Seconds between two lines about an outage.
const OUTAGE: u64 = 10;

/// A place to write to.
pub(super) struct Screen<'a> {
    out: Box<dyn Write + 'a>,
    paint: Paint,
    /// The lines on a screen that can be drawn again; none elsewhere.
    live: Option<usize>,
}

impl Screen<'static> {
    /// Standard output, drawn again where it has colours.
    pub(super) fn stdout() -> Self {
        let paint = Paint::for_stdout();
        Self { out: Box::new(io::stdout()), paint, live: paint.has_colours().then_some(0) }
    }
}

/// A moment of the session.
pub(super) struct Moment<'a> {
    /// When the first line was typed.
    pub(super) start: Instant,
    pub(super) at: Instant,
    pub(super) script: &'a Script,
    pub(super) tally: &'a Tally,
    pub(super) record: &'a Record,
}

impl Moment<'_> {
    /// The path that carries the tunnel, if any does.
    fn path(&self) -> Option<&str> {
        self.record.samples.last()?.active.as_deref()
    }

    /// The longest stall since the last event.
    fn stall(&self) -> Duration {
        let since = self.at.saturating_duration_since(self.start);
        let event = self.script.events.iter().rfind(|event| event.at <= since);
        self.tally.stall(event.map_or(self.start, |event| self.start + event.at), self.at)
    }

    /// The median echo of what was typed in the last second.
    fn echo(&self) -> Option<Duration> {
        self.tally.median_echo_when(|typed| typed + Duration::from_secs(1) >= self.at)
    }
}

impl<'a> Screen<'a> {
    /// Any other place, without colours.
    #[cfg(test)]
    pub(super) fn plain(out: impl Write + 'a) -> Self {
        Self { out: Box::new(out), paint: Paint::none(), live: None }
    }

    /// Whether it is drawn again.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    pub(super) fn title(&mut self) -> io::Result<()> {
        let title = self.paint(BOLD, "roamd demo");
        if self.is_live() {
            return self.write(&[title]);
        }
        writeln!(self.out, "{title}  a laptop with two networks, and a tunnel to a server\n")?;
        writeln!(self.out, "           ┌─ wifi   5 ms ─┐")?;
        writeln!(self.out, "   laptop ─┤               ├─ internet ─ server")?;
        writeln!(self.out, "           └─ lte   25 ms ─┘\n")
    }

    /// A step of the preparations is done; it took from `since` until this moment.
    pub(super) fn step(&mut self, what: &str, since: Instant) -> io::Result<()> {
        let mark = self.paint(GREEN, "✓");
        let took = self.paint(DIM, &format!("{:>8}", seconds(clock::now().duration_since(since))));
        // A line that wraps would be two to the next picture of the screen.
        let room = if self.is_live() { live::size().0.saturating_sub(11).min(44) } else { 44 };
        self.write(&[format!(" {mark} {:<room$}{took}", live::cut(what, room))])
    }

    /// The heading of the table that [`Screen::moment`] fills.
    pub(super) fn heading(&mut self) -> io::Result<()> {
        if self.is_live() {
            return Ok(());
        }
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

    /// A line about the time since the last moment, or the whole screen again.
    pub(super) fn moment(&mut self, moment: &Moment<'_>) -> io::Result<()> {
        if self.is_live() {
            return self.draw(moment);
        }
        let (stall, echo, tally) = (moment.stall(), moment.echo(), moment.tally);
        let second = (moment.at - moment.start).as_secs();
        if moment.path().is_none() && stall > ANNOYING && !second.is_multiple_of(OUTAGE) {
            return Ok(());
        }
        let via = self.paint(BOLD, &format!("{:<11}", moment.path().unwrap_or("no network")));
        let shown = echo.map_or_else(|| "none".to_owned(), milliseconds);
        let echo = self.paint(echo.map_or(RED, colour), &format!("{shown:>10}"));
        let lines = format!("{}/{}", tally.typed(), tally.echoed());
        let stall = self.paint(colour(stall), &format!("{:>13}", milliseconds(stall)));
        let at = seconds(moment.at - moment.start);
        writeln!(self.out, "{at:>7}   {via} {echo}   {lines:>13}   {stall}")
    }

    /// An event of the script.
    pub(super) fn event(&mut self, at: Duration, title: &str) -> io::Result<()> {
        if self.is_live() {
            return Ok(());
        }
        let title = self.paint(YELLOW, title);
        writeln!(self.out, "{:>7} ▸ {title}", seconds(at))
    }

    /// What happened, and how long the user waited each time; where there is room, what the tunnel did as well.
    pub(super) fn timeline(&mut self, played: &Played) -> io::Result<()> {
        if self.is_live() {
            return self.draw_timeline(played);
        }
        let Played { start, end, script, record, .. } = played;
        if played.acts().next().is_none() {
            return Ok(());
        }
        let heading = format!("{:>7}   {:<58} {:>10}", "time", "what happened", "stall");
        let heading = self.paint(DIM, &heading);
        writeln!(self.out, "\n{heading}")?;
        for (number, (event, stall)) in played.acts().enumerate() {
            let next = script.events.get(number + 1).map_or(*end, |next| *start + next.at);
            let shown = if event.offline {
                self.paint(DIM, &format!("{:>10}", "no network"))
            } else {
                self.paint(colour(stall), &format!("{:>10}", milliseconds(stall)))
            };
            writeln!(self.out, "{:>7} ▸ {:<58} {shown}", seconds(event.at), event.title)?;
            let within = |at: &Instant| (*start + event.at..next).contains(at);
            for switch in record.switches.iter().filter(|switch| within(&switch.at)) {
                writeln!(self.out, "            {}", self.paint(DIM, &switch.what.line("")))?;
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
        let Played { start, end, script, tally, record } = played;
        let spells = spells(script).into_iter();
        let spells: Vec<_> =
            spells.map(|(from, to)| *start + from..to.map_or(*end, |to| *start + to)).collect();
        let stall = spells.iter().map(|it| tally.stall_between(it.start, it.end)).max();
        let stall = stall.unwrap_or_default();
        writeln!(self.out)?;
        let mut rows = vec![
            ("lines typed".to_owned(), tally.typed().to_string()),
            ("lines echoed".to_owned(), tally.echoed().to_string()),
        ];
        for (path, echo) in medians(tally, record, *end) {
            rows.push((format!("echo over {path}"), milliseconds(echo)));
        }
        rows.push(("longest stall".to_owned(), milliseconds(stall)));
        let width =
            rows.iter().map(|(name, _)| name.chars().count() + 2).max().unwrap_or(0).max(15);
        for (name, value) in rows {
            writeln!(self.out, "   {name:<width$}{value:>10}")?;
        }
        if script.events.iter().any(|event| event.offline) {
            let words = "stalls without any network are not counted";
            writeln!(self.out, "   {}", self.paint(DIM, words))?;
        }
        let (style, words) = match stall {
            _ if tally.waiting() > 0 => (RED, "Some lines never came back."),
            stall if stall < UNNOTICED => {
                (GREEN, "Nothing was lost, and nobody would have noticed.")
            }
            stall if stall < ANNOYING => (YELLOW, "Nothing was lost; there was a short hitch."),
            _ => (RED, "Nothing was lost, but anyone would have noticed."),
        };
        let words = self.paint(style, words);
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

    /// Writes lines, which the next picture of the screen replaces.
    fn write(&mut self, lines: &[String]) -> io::Result<()> {
        for line in lines {
            writeln!(self.out, "{line}")?;
        }
        if let Some(drawn) = &mut self.live {
            *drawn += lines.len();
        }
        self.out.flush()
    }

    fn paint(&self, style: Style, text: &str) -> String {
        self.paint.paint(style, text)
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

/// The median echo over each path, of the lines that were typed while it was in use, in the order of their first use.
fn medians(tally: &Tally, record: &Record, end: Instant) -> Vec<(String, Duration)> {
    let spans = record.spans(end);
    let mut medians: Vec<(String, Duration)> = Vec::new();
    for path in spans.iter().filter_map(|(_, path)| path.as_ref()) {
        if medians.iter().any(|(known, _)| known == path) {
            continue;
        }
        let used = |at: Instant| {
            let mut spans = spans.iter().filter(|(_, it)| it.as_ref() == Some(path));
            spans.any(|(span, _)| span.contains(&at))
        };
        medians.extend(tally.median_echo_when(used).map(|echo| (path.clone(), echo)));
    }
    medians
}

fn colour(time: Duration) -> Style {
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
