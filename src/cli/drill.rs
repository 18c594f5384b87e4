//! `roamd drill`: cuts the links of a running client one after another and measures what somebody at a terminal
//! would feel.
//!
//! ```text
//!  Plan       which links, to whom to type
//!  busy       who else uses the tunnel
//!  Typist     a keystroke every 100 ms through the TUN device, as an ICMP echo ──▶ Tally
//!  perform    move to a link, type, cut it, type on, wait until it is back ──▶ Outcome
//!  report     text, JSON, picture
//! ```
//!
//! The cut itself is the daemon's, see [`crate::path::cut`]; nothing else of the machine is touched.

mod busy;
mod perform;
mod plan;
mod report;
mod typist;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process,
};

use anyhow::{Context as _, bail};

use self::{perform::Drill, plan::Plan, report::Report};
use super::{Tunnel, exit::Exit, interrupt::Interrupt, picture::can_write, tunnel};
use crate::{
    daemon::{
        control::LONGEST_CUT,
        logging,
        status::{ClientState, ClientStatus, HomeState, HomeStatus, Role},
    },
    host::instance::Instance,
};

/// What a person wants of a drill.
pub(crate) struct Wanted {
    pub(crate) tunnel: Option<Tunnel>,
    /// Also while others use the tunnel.
    pub(crate) yes: bool,
    /// Metered links, too.
    pub(crate) metered: bool,
    /// How long each link is cut.
    pub(crate) seconds: u32,
    pub(crate) json: bool,
    pub(crate) svg: Option<PathBuf>,
}

/// Drills, and reports on standard output.
///
/// # Errors
///
/// When there is nothing to drill, when others would wait with it, when somebody interrupts it, and when the tunnel did not
/// leave a link that was cut although it had another one.
pub(crate) fn drill(wanted: &Wanted) -> anyhow::Result<()> {
    if !(1..=LONGEST_CUT).contains(&wanted.seconds) {
        let reason = anyhow::anyhow!("--for takes 1 s to {LONGEST_CUT} s");
        return Err(Exit::Usage.because(reason));
    }
    if let Some(file) = &wanted.svg {
        can_write(file)?;
    }
    let instance = tunnel::instance(wanted.tunnel.as_ref())?;
    let status = client(&instance)?;
    let plan = Plan::new(&status, wanted.metered)?;
    if !wanted.yes {
        refuse_at_home(status.home.as_ref())?;
        refuse_while_busy(&plan)?;
    }
    let interrupt = Interrupt::watch(leave)?;
    let mut out = io::stdout().lock();
    let report = Report::new(&instance.title(), wanted.seconds, wanted.json);
    report.plan(&mut out, &plan)?;
    let mut drill = Drill::begin(&instance, &plan, wanted.seconds, &interrupt)?;
    let performed = drill.perform(|outcome| report.outcome(&mut out, outcome));
    let outcomes = drill.end();
    performed?;
    report.summary(&mut out, &plan, &outcomes, interrupt.is_set())?;
    if let Some(file) = &wanted.svg {
        report.picture(&outcomes).write(file)?;
        if !wanted.json {
            writeln!(out, " The drill as a picture: {}", file.display())?;
        }
    }
    interrupt.check()?;
    outcomes.verdict()
}

/// Ends this process at once. The daemon, which may be what is waited for, ends the cut when it sees that its connection is closed.
fn leave() {
    let _ = logging::complain(
        "roamd: left at once. The daemon lifts the cut as soon as it runs; roamd switch --auto lets the tunnel choose its link again",
    );
    process::exit(Exit::Interrupted.code().into());
}

/// The status of a client that is connected.
fn client(instance: &Instance) -> anyhow::Result<ClientStatus> {
    match instance.status()?.role {
        Role::Client(status) if status.state == ClientState::Connected => Ok(*status),
        Role::Client(status) => {
            let why = status.last_error.map(|why| format!(": {why}")).unwrap_or_default();
            bail!("{} is not connected{why}", instance.title())
        }
        Role::Server(_) => bail!("{} is a server, which has no links of its own", instance.name()),
    }
}

/// What goes directly would be led into the tunnel as soon as it leaves the link of home, and for a while.
fn refuse_at_home(home: Option<&HomeStatus>) -> anyhow::Result<()> {
    let Some(HomeStatus { link, state: HomeState::Aside }) = home else { return Ok(()) };
    let reason = anyhow::anyhow!(
        "the tunnel stands aside at home, {link}: connections that were opened there would stall with the drill, \
         which --yes allows"
    );
    Err(Exit::Busy.because(reason))
}

/// Other people's connections would wait with the drill's own keystrokes.
fn refuse_while_busy(plan: &Plan) -> anyhow::Result<()> {
    const SHOWN: usize = 5;
    let connections =
        busy::connections(&plan.addresses).context("cannot tell who uses the tunnel")?;
    if connections.is_empty() {
        return Ok(());
    }
    let mut names: Vec<_> = connections.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more @ 1..) = connections.len().checked_sub(SHOWN) {
        names.push(format!("{more} more"));
    }
    let reason = anyhow::anyhow!(
        "the tunnel is in use: {}; they would wait with the drill, which --yes allows",
        names.join(", ")
    );
    Err(Exit::Busy.because(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_drill_takes_routes_from_connections_that_go_directly() {
        let home = |state| HomeStatus { link: "wlan0".into(), state };
        let error = refuse_at_home(Some(&home(HomeState::Aside))).unwrap_err().to_string();
        assert!(error.starts_with("the tunnel stands aside at home, wlan0: "), "{error}");
        assert!(refuse_at_home(Some(&home(HomeState::Direct))).is_ok());
        assert!(refuse_at_home(None).is_ok());
    }
}
