//! What was looked at, what was found, and what to do about it.

use std::fmt;

/// How grave a finding is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Poor,
    /// It keeps the tunnel from working.
    Bad,
}

/// What was looked at and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
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
    pub(super) fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Good,
            subject: subject.into(),
            found: found.into(),
            advice: String::new(),
        }
    }

    pub(super) fn poor(
        subject: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let good = Self::good(subject, found);
        Self { verdict: Verdict::Poor, advice: advice.into(), ..good }
    }

    pub(super) fn bad(
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
