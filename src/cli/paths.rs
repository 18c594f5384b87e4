//! `roamd switch`, `roamd probe`

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

fn tell(tunnel: Option<&str>, request: &Request) -> anyhow::Result<()> {
    let instance = tunnel.map_or_else(Instance::only, |name| Ok(Instance::named(name)))?;
    let mut stdout = io::stdout().lock();
    for line in instance.tell(request)? {
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}
