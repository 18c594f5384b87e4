//! The signals that tell the daemon what to do.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal as listen};

/// Waits for SIGINT or SIGTERM; gives its name. The handlers are in place when this returns.
pub(crate) fn stop() -> io::Result<impl Future<Output = &'static str>> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    })
}

/// SIGHUP, which asks for the configuration to be read again.
pub(crate) fn hangups() -> io::Result<Signal> {
    listen(SignalKind::hangup())
}
