//! `roamd doctor`: looks for what keeps a tunnel from working on this host, and says what to do about it.

mod client;
mod directory;
mod finding;
mod firewall;
mod fleet;
mod links;
mod machine;
mod routes;
mod running;
mod server;
mod ways;

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::bail;

use self::{
    finding::{Finding, Verdict},
    running::Running,
};
use super::paint::{GREEN, Paint, RED, YELLOW};
use crate::config::{Config, Loaded, process_environment};

/// Looks for what keeps the tunnel of this file from working; an error if something does.
pub(crate) fn doctor(file: &Path) -> anyhow::Result<()> {
    let loaded = Loaded::new(file, process_environment())?;
    let paint = Paint::for_stdout();
    let mut stdout = io::stdout().lock();
    let mut worst = Verdict::Good;
    let mut broken = None;
    let mut tell = |finding: Finding| {
        worst = worst.max(finding.verdict);
        let Finding { verdict, subject, found, advice } = finding;
        let style = match verdict {
            Verdict::Good => GREEN,
            Verdict::Poor => YELLOW,
            Verdict::Bad => RED,
        };
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

/// Looks at everything that this configuration, of this file, needs. Each finding is given to `tell` as soon
/// as it is there.
async fn examine(loaded: &Loaded, file: &Path, tell: &mut dyn FnMut(Finding)) {
    let running = Running::of(file);
    tell(running.finding());
    machine::files(file, loaded.key_file(), tell);
    machine::kernel(tell);
    machine::capabilities(tell);
    machine::clock(tell);
    match &loaded.config {
        Config::Client(config) => {
            machine::device(&config.tun.name, config.tun.offload, &running, tell).await;
            client::examine(config, tell).await;
        }
        Config::Server(config) => {
            machine::device(&config.tun.name, config.tun.offload, &running, tell).await;
            server::examine(config, &running, tell).await;
        }
    }
}
