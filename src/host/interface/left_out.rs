//! What is wanted and cannot be had.

use std::{collections::HashSet, fmt};

use serde::{Deserialize, Serialize};

/// A part of a tunnel that is left out; the tunnel does without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    let known: HashSet<_> = before.iter().collect();
    for LeftOut { what, why } in now.iter().filter(|item| !known.contains(item)) {
        tracing::warn!(what, why, "left out of the tunnel");
    }
    let left_out: HashSet<_> = now.iter().map(|item| &item.what).collect();
    for LeftOut { what, .. } in before.iter().filter(|item| !left_out.contains(&item.what)) {
        tracing::info!(what, "no longer left out of the tunnel");
    }
}
