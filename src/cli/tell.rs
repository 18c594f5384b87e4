//! `roamd switch`, `roamd probe`, `roamd reload`, `roamd events`

use std::io::{self, Write as _};

use crate::control::{Instance, Request};

/// Moves the tunnel to `link`, or without one lets it choose by itself again.
pub fn switch(tunnel: Option<&str>, link: Option<String>, pin: bool) -> anyhow::Result<()> {
    tell(tunnel, &link.map_or(Request::Auto, |link| Request::Switch { link, pin }))
}

/// Asks the server over `link`, or over all.
pub fn probe(tunnel: Option<&str>, link: Option<String>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Probe { link })
}

/// Makes the daemon read its configuration again.
pub fn reload(tunnel: Option<&str>) -> anyhow::Result<()> {
    tell(tunnel, &Request::Reload)
}

/// Prints what happens to the tunnel, until the daemon ends.
pub fn events(tunnel: Option<&str>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in Instance::find(tunnel)?.events()? {
        writeln!(stdout, "{}", line?)?;
    }
    Ok(())
}

fn tell(tunnel: Option<&str>, request: &Request) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in Instance::find(tunnel)?.tell(request)? {
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}
