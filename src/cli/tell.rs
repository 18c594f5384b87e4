//! `roamd switch`, `roamd probe`, `roamd reload`, `roamd events`

use std::{
    io::{self, Write as _},
    thread,
    time::Duration,
};

use anyhow::bail;

use crate::{
    daemon::control::{ControlError, Request},
    host::instance::Instance,
};

/// How often a daemon that ended is looked for.
const FOLLOW_RETRY: Duration = Duration::from_millis(250);

/// Moves the tunnel to `link`, or to a `server`, or without either lets it choose by itself again.
pub(crate) fn switch(
    tunnel: Option<&str>,
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
pub(crate) fn probe(tunnel: Option<&str>, link: Option<String>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Probe { link })
}

/// Makes the daemon read its configuration again.
pub(crate) fn reload(tunnel: Option<&str>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Reload)
}

/// Prints what happens to the tunnel, until the daemon ends; with `follow` also what happens to the next one
/// of the name.
pub(crate) fn events(tunnel: Option<&str>, follow: bool) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let instance = Instance::find(tunnel)?;
    let mut events = instance.events()?;
    loop {
        // A daemon that ends may reset the connection.
        for line in events.map_while(Result::ok) {
            writeln!(stdout, "{line}")?;
        }
        if !follow {
            bail!("the daemon {} ended", instance.name());
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

fn tell(tunnel: Option<&str>, request: &Request) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in Instance::find(tunnel)?.tell(request)? {
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}
