//! Someone at a terminal: a line typed every 100 ms, and its echo awaited.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    screen::{Moment, Screen},
    script::{Event, Script},
    stage::Stage,
};
use crate::{
    cli::{
        interrupt::Interrupt,
        record::{Record, Watch},
        tally::Tally,
    },
    clock,
};

/// Between two lines.
const TYPING: Duration = Duration::from_millis(100);

/// Between two reports, as lines or as pictures of a screen.
const REPORT: Duration = Duration::from_secs(1);
const REDRAW: Duration = Duration::from_millis(200);

/// How long echoes may be outstanding once the script is over.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection with someone typing into it.
#[derive(Debug)]
pub(super) struct Session {
    connection: TcpStream,
    echoes: mpsc::Receiver<Echo>,
    script: Script,
    tally: Tally,
}

/// A session that is over.
pub(super) struct Played {
    pub(super) start: Instant,
    /// When it was over, by itself or by an interruption.
    pub(super) end: Instant,
    pub(super) script: Script,
    pub(super) tally: Tally,
    pub(super) record: Record,
}

impl Played {
    /// What happened of the script, and how long the user waited at most until the next event.
    pub(super) fn acts(&self) -> impl Iterator<Item = (&Event, Duration)> {
        let Self { start, end, script, tally, .. } = self;
        let happened = script.events.iter().enumerate();
        let happened = happened.filter(move |(_, event)| *start + event.at <= *end);
        happened.map(move |(number, event)| {
            let next = script.events.get(number + 1).map(|next| *start + next.at);
            // The last lines may come back after the script is over.
            let until = next.map_or(*end, |next| next.min(*end));
            (event, tally.stall_between(*start + event.at, until))
        })
    }
}

#[derive(Debug)]
struct Echo {
    at: Instant,
    line: String,
}

impl Session {
    pub(super) fn new(connection: TcpStream, script: Script) -> anyhow::Result<Self> {
        connection.set_nodelay(true)?;
        let reader = BufReader::new(connection.try_clone()?);
        let (arrived, echoes) = mpsc::channel();
        thread::Builder::new().name("terminal".to_owned()).spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if arrived.send(Echo { at: clock::now(), line }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { connection, echoes, script, tally: Tally::default() })
    }

    /// Types until the script is over, then waits for the last echoes.
    pub(super) fn play(
        &mut self,
        stage: &Stage,
        screen: &mut Screen<'_>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Played> {
        screen.heading()?;
        let watch = stage.watch()?;
        let start = clock::now();
        let every = if screen.is_live() { REDRAW } else { REPORT };
        let (mut next_line, mut next_report) = (start, start + every);
        let end = start + self.script.length;
        let script = self.script.clone();
        let mut events = script.events.iter().peekable();
        while !interrupt.is_set() {
            let now = clock::now();
            if now >= end && (self.tally.waiting() == 0 || now >= end + PATIENCE) {
                break;
            }
            if let Some(event) = events.next_if(|event| start + event.at <= now) {
                screen.event(event.at, event.title)?;
                (event.act)(stage.scene())?;
            }
            if now >= next_report {
                stage.check()?;
                self.report((start, next_report), &watch, screen)?;
                next_report += every;
            }
            if now >= next_line && now < end {
                self.type_line(now)?;
                next_line += TYPING;
            }
            let next_line = if now < end { next_line.min(end) } else { next_report };
            let next_event = events.peek().map_or(next_report, |event| start + event.at);
            let next = next_line.min(next_report).min(next_event);
            self.await_echo(next.saturating_duration_since(clock::now()).min(TYPING))?;
        }
        if clock::now() >= next_report - TYPING {
            self.report((start, next_report), &watch, screen)?;
        }
        let (tally, record) = (std::mem::take(&mut self.tally), watch.record());
        Ok(Played { start, end: clock::now(), script, tally, record })
    }

    fn type_line(&mut self, now: Instant) -> anyhow::Result<()> {
        let line = format!("{}\n", line(self.tally.line_typed(now)));
        self.connection.write_all(line.as_bytes()).context("the connection broke while typing")
    }

    fn await_echo(&mut self, limit: Duration) -> anyhow::Result<()> {
        let echo = match self.echoes.recv_timeout(limit) {
            Ok(echo) => echo,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the connection was closed"),
        };
        let expected = line(self.tally.echoed());
        anyhow::ensure!(echo.line == expected, "typed `{expected}`, but `{}` came back", echo.line);
        self.tally.line_echoed(self.tally.echoed(), echo.at);
        Ok(())
    }

    fn report(
        &self,
        (start, at): (Instant, Instant),
        watch: &Watch,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<()> {
        let (script, tally, record) = (&self.script, &self.tally, watch.record());
        screen.moment(&Moment { start, at, script, tally, record: &record })?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The reader has a descriptor of its own, which a mere close would leave open.
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

/// The line with this number.
pub(super) fn line(number: usize) -> String {
    format!("{number:05} the quick brown fox jumps over the lazy dog")
}
