//! What is wanted and cannot be had.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a tunnel that is left out; the tunnel does without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LeftOut {
    /// What it is, such as `route 192.168.1.0/24`.
    pub what: String,
    /// Why, in words.
    pub why: String,
}

impl LeftOut {
    /// `what` is left out because of `why`.
    pub(crate) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// Logs what has changed between two looks.
pub(crate) fn log(before: &[LeftOut], now: &[LeftOut]) {
    for LeftOut { what, why } in now.iter().filter(|item| !before.contains(item)) {
        tracing::warn!(what, why, "left out of the tunnel");
    }
    let is_gone = |item: &&LeftOut| now.iter().all(|other| other.what != item.what);
    for LeftOut { what, .. } in before.iter().filter(is_gone) {
        tracing::info!(what, "no longer left out of the tunnel");
    }
}
