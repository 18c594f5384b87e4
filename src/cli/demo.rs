//! `roamd demo`: roaming on this machine alone, before anyone's eyes.
//!
//! ```text
//!  Stage   the scene, two real daemons, an echo server        made first, and taken away last
//!  Script  what happens to the laptop's networks, and when
//!  Session a line typed every 100 ms through the tunnel ──▶ Tally ──▶ Screen
//!  Watch   what the client says of its paths ──▶ Screen, Chart
//! ```
//!
//! Nothing outside this process changes: the network is a [`Scene`](roamd_lab::Scene), keys and
//! configuration lie in a temporary folder.

mod chart;
mod daemons;
mod echo;
mod interrupt;
mod keys;
mod screen;
mod script;
mod session;
mod stage;
mod tally;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::Context;

use self::{
    chart::Chart,
    interrupt::Interrupt,
    screen::Screen,
    script::Script,
    session::{Played, Session},
    stage::Stage,
    tally::Tally,
};
use super::exit::Exit;

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
/// Blocks until the show is over or interrupted. A picture that could not be written ends it at once. Must be called before any thread is started,
/// because it becomes root in a user namespace when it is not root already.
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
    perform(&plan, &mut Screen::stdout(), &Interrupt::watch()?)
}

/// Finds out before the show whether its picture could be written. A file that is there stays as it is.
fn can_write(file: &Path) -> anyhow::Result<()> {
    let is_new = !file.exists();
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .map_err(|error| Exit::CannotCreate.because(error))
        .with_context(|| format!("cannot write {}", file.display()))?;
    if is_new {
        std::fs::remove_file(file)?;
    }
    Ok(())
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
    interrupt.check()?;
    screen.timeline(&played)?;
    screen.summary(&played)?;
    if let Some(file) = &plan.svg {
        draw(file, &played)?;
        screen.drawn(file)?;
    }
    verdict(&played.tally)
}

fn draw(file: &Path, played: &Played) -> anyhow::Result<()> {
    let Played { start, script, tally, record } = played;
    let chart =
        Chart { start: *start, length: script.length, events: &script.events, tally, record };
    std::fs::write(file, chart.svg()).with_context(|| format!("cannot write {}", file.display()))
}

fn verdict(tally: &Tally) -> anyhow::Result<()> {
    anyhow::ensure!(tally.waiting() == 0, "{} lines never came back", tally.waiting());
    Ok(())
}
