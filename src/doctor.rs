//! `roamd doctor`: looks for what keeps a tunnel from working on this host, and says what to do about it.

mod client;
mod firewall;
mod host;
mod links;
mod routes;
mod running;
mod server;

use std::{fmt, path::Path};

use self::running::Running;
use crate::config::{Config, Loaded};

/// How grave a finding is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Poor,
    /// It keeps the tunnel from working.
    Bad,
}

/// What was looked at and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
}

impl Finding {
    fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Good,
            subject: subject.into(),
            found: found.into(),
            advice: String::new(),
        }
    }

    fn poor(
        subject: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let good = Self::good(subject, found);
        Self { verdict: Verdict::Poor, advice: advice.into(), ..good }
    }

    fn bad(
        subject: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Bad, ..Self::poor(subject, found, advice) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "ok",
            Self::Poor => "poor",
            Self::Bad => "bad",
        })
    }
}

/// Looks at everything that this configuration, of this file, needs. Each finding is given to `tell` as soon
/// as it is there.
pub async fn examine(loaded: &Loaded, file: &Path, tell: &mut dyn FnMut(Finding)) {
    let running = Running::of(file);
    tell(running.finding());
    host::files(file, loaded.key_file(), tell);
    host::kernel(tell);
    host::capabilities(tell);
    host::clock(tell);
    match &loaded.config {
        Config::Client(config) => {
            host::device(&config.tun.name, config.tun.offload, &running, tell).await;
            client::examine(config, tell).await;
        }
        Config::Server(config) => {
            host::device(&config.tun.name, config.tun.offload, &running, tell).await;
            server::examine(config, &running, tell).await;
        }
    }
}
