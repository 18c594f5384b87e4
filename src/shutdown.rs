//! The signals that ask the daemon to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal as listen};

/// Waits for SIGINT or SIGTERM; gives its name. The handlers are in place when this returns.
pub fn signal() -> io::Result<impl Future<Output = &'static str>> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    })
}
