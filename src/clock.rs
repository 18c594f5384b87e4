//! The one clock: tokio's, which tests and simulations can stop and turn (`tokio::time::pause`).

use std::time::Instant;

/// The present moment.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
