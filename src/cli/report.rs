//! `roamd report`: what a day of `roamd events` came to, as text and as the picture of the demo.

mod day;
mod timeline;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use self::day::{Day, Moved, Way};
use super::{
    exit::Exit,
    picture::{Act, Picture, can_write, seconds, spoken},
};
use crate::clock;

/// Moves with the longest gaps, and outages, that are listed.
const LISTED: usize = 10;
/// In so short a time the clock's minutes tell little.
const SHORT: Duration = Duration::from_secs(600);
/// What happened, at most, in the picture.
const DRAWN: usize = 12;

/// Reports on recorded events, of the time `since` then if that is given.
pub(crate) fn report(
    file: Option<&Path>,
    since: Option<Duration>,
    svg: Option<&Path>,
) -> anyhow::Result<()> {
    if let Some(svg) = svg {
        can_write(svg)?;
    }
    let lines: Box<dyn BufRead> = match file.filter(|file| *file != Path::new("-")) {
        Some(file) => {
            let opened = File::open(file).map_err(|error| Exit::NoInput.because(error));
            let opened = opened.with_context(|| format!("cannot read {}", file.display()))?;
            Box::new(BufReader::new(opened))
        }
        None if io::stdin().is_terminal() => {
            let reason = anyhow::anyhow!(
                "report needs recorded events: roamd events --follow > day.jsonl, then roamd report day.jsonl"
            );
            return Err(Exit::Usage.because(reason));
        }
        None => Box::new(io::stdin().lock()),
    };
    let since = since.and_then(|since| clock::wall().checked_sub(since));
    let day = Day::read(lines, since).context("cannot read the events")?;
    if day.begin == day.end {
        bail!("there are no events{}", if since.is_some() { " in that time" } else { "" });
    }
    let mut out = io::stdout().lock();
    print(&mut out, &day)?;
    if let Some(svg) = svg {
        picture(&day).write(svg)?;
        writeln!(out, "\nThe time as a picture: {}", svg.display())?;
    }
    Ok(())
}

fn print(out: &mut impl Write, day: &Day) -> io::Result<()> {
    let Day { begin, end, moves, outages, skipped, missed, .. } = day;
    let whole = day.length();
    writeln!(out, "from {} to {}, {}", clock::local(*begin), clock::local(*end), spoken(whole))?;
    if *skipped > 0 {
        writeln!(out, "{skipped} lines are no events of this version, and are left out")?;
    }
    if *missed > 0 {
        writeln!(out, "{missed} events are missing: they came faster than they were recorded")?;
    }
    writeln!(out, "\n{:<18}{:>12}{:>8}", "in use", "time", "share")?;
    for (way, time) in day.times() {
        let share = 100.0 * time.as_secs_f64() / whole.as_secs_f64();
        writeln!(out, "{:<18}{:>12}{share:>6.1} %", way.to_string(), spoken(time))?;
    }
    if !moves.is_empty() {
        writeln!(
            out,
            "\n{:<44}{:>6}{:>12}{:>11}",
            "moved because", "times", "median gap", "longest"
        )?;
    }
    for (reason, mut gaps) in day.by_reason() {
        gaps.sort_unstable();
        let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        let times = gaps.len();
        writeln!(out, "{reason:<44}{times:>6}{:>12}{:>11}", spoken(median), spoken(longest))?;
    }
    let mut worst: Vec<&Moved> = moves.iter().collect();
    worst.sort_by_key(|moved| std::cmp::Reverse(moved.gap));
    if !worst.is_empty() {
        writeln!(out, "\nlongest gaps")?;
    }
    for Moved { at, from, to, gap, why } in worst.into_iter().take(LISTED) {
        let ways = format!("{} -> {to}", from.as_deref().unwrap_or("no path"));
        writeln!(out, "  {:<18}{:>9}  {ways}: {why}", clock::local(*at), spoken(*gap))?;
    }
    if !outages.is_empty() {
        writeln!(out, "\nno connection")?;
    }
    for (at, time, why) in outages.iter().rev().take(LISTED).rev() {
        writeln!(out, "  {:<18}{:>9}  {why}", clock::local(*at), lasted(*time))?;
    }
    if let Some(more @ 1..) = outages.len().checked_sub(LISTED) {
        writeln!(out, "  and {more} before")?;
    }
    Ok(())
}

/// How long an outage was, where an event tells of its end.
fn lasted(time: Duration) -> String {
    if time.is_zero() { "not known".into() } else { spoken(time) }
}

fn picture(day: &Day) -> Picture {
    let begin = day.begin;
    let since = move |at: SystemTime| at.duration_since(begin).unwrap_or_default();
    let gaps = day.moves.iter().map(|moved| (since(moved.at), moved.gap));
    let spans = day.spans.iter().map(|(span, way)| {
        let link = match way {
            Way::Over(link) => Some(link.clone()),
            Way::None | Way::Paused | Way::Unknown => None,
        };
        (since(span.start)..since(span.end), link)
    });
    let mut acts: Vec<_> = day
        .outages
        .iter()
        .map(|(at, time, why)| (*at, *time, format!("no connection: {why}"), lasted(*time)))
        .chain(day.moves.iter().map(|moved| {
            let from = moved.from.as_deref().unwrap_or("no path");
            let title = format!("{from} -> {}: {}", moved.to, moved.why);
            (moved.at, moved.gap, title, spoken(moved.gap))
        }))
        .collect();
    // The costliest, in order.
    acts.sort_by_key(|(_, cost, ..)| std::cmp::Reverse(*cost));
    acts.truncate(DRAWN);
    acts.sort_by_key(|(at, ..)| *at);
    Picture {
        title: format!("roamd from {} to {}", clock::local(day.begin), clock::local(day.end)),
        dots_are: "Each dot: a change of path, and how long nothing was heard".into(),
        length: day.length(),
        clock: if day.length() < SHORT {
            Box::new(seconds)
        } else {
            Box::new(move |at| clock::local(begin + at))
        },
        dots: gaps.collect(),
        spans: spans.collect(),
        acts: acts
            .into_iter()
            .map(|(at, _, title, cost)| Act { at: since(at), title, cost })
            .collect(),
    }
}
