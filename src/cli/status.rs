//! `roamd status`

use std::io::{self, Write as _};

use crate::{control::Instance, paint::Paint, status::text::Text};

/// Prints what the daemon `name` does, or the only one that runs.
pub fn status(name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let status = Instance::find(name)?.status()?;
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut stdout, &status)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{}", Text { status: &status, paint: Paint::for_stdout() })?;
    }
    Ok(())
}
