//! `roamd doctor`.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anstyle::{AnsiColor, Style};
use anyhow::bail;

use crate::{
    config::{Loaded, process_environment},
    doctor::{Finding, Verdict, examine},
    paint::Paint,
};

/// Looks for what keeps the tunnel of this file from working; an error if something does.
pub fn doctor(file: &Path) -> anyhow::Result<()> {
    let loaded = Loaded::new(file, process_environment())?;
    let paint = Paint::for_stdout();
    let mut stdout = io::stdout().lock();
    let mut worst = Verdict::Good;
    let mut broken = None;
    let mut tell = |finding: Finding| {
        worst = worst.max(finding.verdict);
        let Finding { verdict, subject, found, advice } = finding;
        let style = Style::new().fg_color(Some(match verdict {
            Verdict::Good => AnsiColor::Green.into(),
            Verdict::Poor => AnsiColor::Yellow.into(),
            Verdict::Bad => AnsiColor::Red.into(),
        }));
        let verdict = paint.paint(style, format!("{verdict:4}"));
        let mut said = writeln!(stdout, "{verdict}  {subject}: {found}");
        if !advice.is_empty() {
            said = said.and_then(|()| writeln!(stdout, "      -> {advice}"));
        }
        broken = broken.take().or(said.err());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(examine(&loaded, file, &mut tell));
    if let Some(error) = broken {
        return Err(error.into());
    }
    match worst {
        Verdict::Bad => bail!("fix the lines marked \"bad\", then run roamd doctor again"),
        Verdict::Good | Verdict::Poor => Ok(()),
    }
}
