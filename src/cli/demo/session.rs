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
    interrupt::Interrupt,
    screen::{Screen, Second},
    script::Script,
    stage::Stage,
    tally::Tally,
    watch::{Record, Watch},
};
use crate::clock;

/// Between two lines.
const TYPING: Duration = Duration::from_millis(100);

/// Between two reports.
const REPORT: Duration = Duration::from_secs(1);

/// How long echoes may be outstanding once the script is over.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection with someone typing into it.
#[derive(Debug)]
pub(super) struct Session {
    connection: TcpStream,
    echoes: mpsc::Receiver<Echo>,
    script: Script,
    tally: Tally,
    /// Lines echoed when the last report was made.
    reported: usize,
}

/// A session that is over.
pub(super) struct Played {
    pub(super) start: Instant,
    pub(super) script: Script,
    pub(super) tally: Tally,
    pub(super) record: Record,
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
        Ok(Self { connection, echoes, script, tally: Tally::default(), reported: 0 })
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
        let (mut next_line, mut next_report) = (start, start + REPORT);
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
                self.report(next_report - start, &watch, screen)?;
                next_report += REPORT;
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
            self.report(next_report - start, &watch, screen)?;
        }
        let (tally, record) = (std::mem::take(&mut self.tally), watch.record());
        Ok(Played { start, script, tally, record })
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
        self.tally.line_echoed(echo.at);
        Ok(())
    }

    fn report(
        &mut self,
        at: Duration,
        watch: &Watch,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<()> {
        let via = watch.active();
        let echo = self.tally.median_echo_since(self.reported);
        let stall = self.tally.stall(clock::now());
        screen.second(&Second { at, via, echo, stall }, &self.tally)?;
        self.reported = self.tally.echoed();
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
fn line(number: usize) -> String {
    format!("{number:05} the quick brown fox jumps over the lazy dog")
}
