//! `roamd status`

use std::io::{self, Write as _};

use super::{
    paint::Paint,
    text::Text,
    tunnel::{self, Tunnel},
};
use crate::host::instance::Instance;

/// Prints what the daemon of `tunnel` does; without one what all do, as text, or the only one as JSON.
pub(crate) fn status(tunnel: Option<&Tunnel>, json: bool) -> anyhow::Result<()> {
    let running = if tunnel.is_none() && !json { Instance::running()? } else { Vec::new() };
    let mut stdout = io::stdout().lock();
    if running.len() > 1 {
        for (number, instance) in running.iter().enumerate() {
            let gap = if number > 0 { "\n" } else { "" };
            let status = instance.status()?;
            let text = Text { status: &status, paint: Paint::for_stdout() };
            write!(stdout, "{gap}tunnel       {}\n{text}", instance.title())?;
        }
        return Ok(());
    }
    let status = tunnel::instance(tunnel)?.status()?;
    if json {
        serde_json::to_writer_pretty(&mut stdout, &status)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{}", Text { status: &status, paint: Paint::for_stdout() })?;
    }
    Ok(())
}
