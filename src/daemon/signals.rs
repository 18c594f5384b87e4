//! The signals that tell the daemon what to do.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal as listen};

/// SIGINT and SIGTERM.
#[derive(Debug)]
pub(crate) struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    /// The handlers are in place when this returns.
    pub(crate) fn listen() -> io::Result<Self> {
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: listen(interrupt)?, terminate: listen(terminate)? })
    }

    /// Waits for the next one; gives its name. Cancel safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Waits for the first of them.
pub(crate) fn stop() -> io::Result<impl Future<Output = &'static str>> {
    let mut stops = Stops::listen()?;
    Ok(async move { stops.next().await })
}

/// SIGHUP, which asks for the configuration to be read again.
pub(crate) fn hangups() -> io::Result<Signal> {
    listen(SignalKind::hangup())
}
