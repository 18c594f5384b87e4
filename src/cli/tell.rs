//! `roamd switch`, `roamd probe`, `roamd pause`, `roamd reload`, `roamd drain`, `roamd events`

use std::{
    io::{self, Write as _},
    thread,
    time::Duration,
};

use anyhow::bail;
use serde::Deserialize;

use super::tunnel::{self, Tunnel};
use crate::daemon::control::{ControlError, Request};

/// How often a daemon that ended is looked for.
const FOLLOW_RETRY: Duration = Duration::from_millis(250);

/// Moves the tunnel to `link`, or to a `server`, or without either lets it choose by itself again.
pub(crate) fn switch(
    tunnel: Option<&Tunnel>,
    link: Option<String>,
    server: Option<String>,
    pin: bool,
) -> anyhow::Result<()> {
    let request = match (link, server) {
        (Some(link), _) => Request::Switch { link, pin },
        (None, Some(name)) => Request::SwitchServer { name },
        (None, None) => Request::Auto,
    };
    tell(tunnel, &request)
}

/// Asks the server over `link`, or over all.
pub(crate) fn probe(tunnel: Option<&Tunnel>, link: Option<String>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Probe { link })
}

/// Makes the tunnel send nothing, for so long or until it is resumed.
pub(crate) fn pause(tunnel: Option<&Tunnel>, lasts: Option<Duration>) -> anyhow::Result<()> {
    let seconds = lasts.map(whole_seconds);
    tell(tunnel, &Request::Pause { seconds })
}

/// Seconds as requests have them.
pub(crate) fn whole_seconds(time: Duration) -> u32 {
    time.as_secs_f64().ceil() as u32
}

/// Ends a pause.
pub(crate) fn resume(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Resume)
}

/// Makes the daemon read its configuration again.
pub(crate) fn reload(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Reload)
}

/// An event, as far as `roamd drain` shows it.
#[derive(Deserialize)]
struct Told {
    event: String,
    summary: String,
}

/// Makes a server send its clients elsewhere, and waits until it has ended.
pub(crate) fn drain(tunnel: Option<&Tunnel>, within: Duration) -> anyhow::Result<()> {
    let instance = tunnel::instance(tunnel)?;
    // Before the request, so that no event is missed.
    let events = instance.events()?;
    let seconds = whole_seconds(within);
    instance.tell(&Request::Drain { seconds })?;
    let mut stdout = io::stdout().lock();
    // The daemon ends, and may reset the connection.
    for line in events.map_while(Result::ok) {
        let Ok(Told { event, summary }) = serde_json::from_str(&line) else { continue };
        match event.as_str() {
            "draining" | "missed" => writeln!(stdout, "{summary}")?,
            "drain-cancelled" => bail!(summary),
            _ => {}
        }
    }
    writeln!(stdout, "{} has ended", instance.title())?;
    Ok(())
}

/// Makes a server serve on that was to end.
pub(crate) fn cancel_drain(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    tell(tunnel, &Request::DrainCancel)
}

/// Prints what happens to the tunnel, until the daemon ends; with `follow` also what happens to the next one
/// of the name.
pub(crate) fn events(tunnel: Option<&Tunnel>, follow: bool) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let instance = tunnel::instance(tunnel)?;
    let mut events = instance.events()?;
    loop {
        // A daemon that ends may reset the connection.
        for line in events.map_while(Result::ok) {
            writeln!(stdout, "{line}")?;
        }
        if !follow {
            bail!("the daemon {} ended", instance.title());
        }
        events = loop {
            thread::sleep(FOLLOW_RETRY);
            match instance.events() {
                Err(ControlError::NotRunning { .. }) => {}
                found => break found?,
            }
        };
    }
}

fn tell(tunnel: Option<&Tunnel>, request: &Request) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in tunnel::instance(tunnel)?.tell(request)? {
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}
