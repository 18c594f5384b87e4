//! `roamd demo`: roaming on this machine alone, before anyone's eyes.
//!
//! ```text
//!  Stage   the scene, two real daemons, an echo server        made first, and taken away last
//!  Script  what happens to the laptop's networks, and when
//!  Session a line typed every 100 ms through the tunnel ──▶ Tally ──▶ Screen
//!  Watch   what the client says of its paths ──▶ Screen, Picture
//! ```
//!
//! Nothing outside this process changes: the network is a [`Scene`](roamd_lab::Scene), keys and
//! configuration lie in a temporary folder.

mod daemons;
mod echo;
mod keys;
mod screen;
mod script;
mod session;
mod stage;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Instant,
};

use anyhow::Context;

use self::{
    screen::Screen,
    script::Script,
    session::{Played, Session},
    stage::Stage,
};
use super::{
    interrupt::Interrupt,
    picture::{Act, Picture, can_write, seconds, spoken},
    tally::Tally,
};

/// What is needed to put the demonstration on.
struct Plan {
    /// The binary that serves as both daemons.
    program: PathBuf,
    /// Where the session's server is, as the client sees it.
    server: IpAddr,
    script: Script,
    /// Where to draw the show.
    svg: Option<PathBuf>,
}

/// Shows roaming: makes networks and daemons, types through the tunnel, reports on standard output.
///
/// Blocks until the show is over or interrupted. A picture that could not be written ends it at once. Must be called
/// before any thread is started, because it becomes root in a user namespace when it is not root already.
///
/// # Errors
///
/// When the kernel does not let it make networks, when a daemon fails (the end of its log has been
/// printed by then), and when the session lost something.
pub(crate) fn run(svg: Option<PathBuf>) -> anyhow::Result<()> {
    if let Some(file) = &svg {
        can_write(file)?;
    }
    roamd_lab::enter_user_namespace()?;
    File::options().read(true).write(true).open("/dev/net/tun").context(
        "cannot open /dev/net/tun, which the tunnel needs: load it with `sudo modprobe tun`, or \
         run this as root",
    )?;
    let plan = Plan {
        program: std::env::current_exe().context("cannot find the roamd binary")?,
        server: IpAddr::V4(Ipv4Addr::new(10, 66, 0, 1)),
        script: Script::roam(),
        svg,
    };
    perform(&plan, &mut Screen::stdout(), &Interrupt::watch(|| ())?)
}

fn perform(plan: &Plan, screen: &mut Screen<'_>, interrupt: &Interrupt) -> anyhow::Result<()> {
    screen.title()?;
    let mut stage = Stage::set(&plan.program, screen)?;
    let shown = show(plan, &mut stage, screen, interrupt);
    if shown.is_err() && !interrupt.is_set() {
        stage.print_logs(screen)?;
    }
    shown
}

fn show(
    plan: &Plan,
    stage: &mut Stage,
    screen: &mut Screen<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let connection = stage.connect(plan.server, screen, interrupt)?;
    let mut session = Session::new(connection, plan.script.clone())?;
    let played = session.play(stage, screen, interrupt)?;
    screen.timeline(&played)?;
    interrupt.check()?;
    screen.summary(&played)?;
    if let Some(file) = &plan.svg {
        picture(&played).write(file)?;
        screen.drawn(file)?;
    }
    verdict(&played.tally)
}

fn picture(played: &Played) -> Picture {
    let Played { start, script, tally, record, .. } = played;
    let since = |at: Instant| at.saturating_duration_since(*start).min(script.length);
    let spans = record.spans(*start + script.length).into_iter();
    Picture {
        title: "Typing through roamd while its networks come and go".into(),
        dots_are: "Each dot: a typed line, and when its echo was back".into(),
        length: script.length,
        clock: Box::new(seconds),
        dots: tally.echoes().map(|(typed, took)| (since(typed), took)).collect(),
        spans: spans.map(|(span, link)| (since(span.start)..since(span.end), link)).collect(),
        acts: played
            .acts()
            .map(|(event, stall)| Act {
                at: event.at,
                title: event.title.into(),
                cost: if event.offline { "no network".into() } else { spoken(stall) },
            })
            .collect(),
    }
}

fn verdict(tally: &Tally) -> anyhow::Result<()> {
    anyhow::ensure!(tally.waiting() == 0, "{} lines never came back", tally.waiting());
    Ok(())
}
