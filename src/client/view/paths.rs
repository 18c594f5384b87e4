//! Paths as they are shown: what the path manager says of each, what of that is news, and all of them in a line.

use std::{collections::HashSet, time::Duration};

use crate::{
    daemon::{events::Event, status},
    link::candidate::Candidate,
    path::{Condition, manager::Choice, probe::Measured, socket::PathId},
};

/// A path of the connection of the day.
#[derive(Debug)]
pub(in crate::client) struct ShownPath {
    pub(in crate::client) candidate: Candidate,
    pub(in crate::client) socket: Option<PathId>,
    pub(in crate::client) measured: Option<Measured>,
    pub(in crate::client) said: Said,
}

/// What the path manager says of a path.
#[derive(Debug)]
pub(in crate::client) struct Said {
    pub(in crate::client) condition: Condition,
    pub(in crate::client) rtt: Option<Duration>,
    /// Whether a captive portal is suspected.
    pub(in crate::client) portal: bool,
    pub(in crate::client) metered: bool,
    /// The user's choice, of this link or another.
    pub(in crate::client) choice: Option<Choice>,
    pub(in crate::client) why: String,
}

impl ShownPath {
    pub(super) fn is_in_use(&self) -> bool {
        self.said.condition.is_in_use()
    }
}

/// What changed between two looks at the paths.
pub(super) fn changes(before: &[ShownPath], now: &[ShownPath]) -> Vec<Event> {
    let event = |path: &ShownPath, state: Option<Condition>| Event::Path {
        link: path.candidate.link.clone(),
        server: path.candidate.server,
        state,
        why: path.said.why.clone(),
    };
    let same = |a: &ShownPath, b: &ShownPath| a.candidate == b.candidate;
    let gone = before.iter().filter(|path| !now.iter().any(|other| same(path, other)));
    let changed = now.iter().filter(|path| {
        !before.iter().any(|other| same(path, other) && path.said.condition == other.said.condition)
    });
    gone.map(|path| event(path, None))
        .chain(changed.map(|path| event(path, Some(path.said.condition))))
        .collect()
}

/// The paths as the service manager shows them: "active on wlan0, 12 ms; standby wwan0".
pub(super) fn in_words(paths: &[ShownPath]) -> String {
    let mut words = String::new();
    let mut told = HashSet::new();
    let mut paths: Vec<_> = paths.iter().collect();
    paths.sort_by_key(|path| path.said.condition);
    for ShownPath { candidate, said: Said { condition, rtt, .. }, .. } in paths {
        let part = match condition {
            Condition::Active => "active on ",
            Condition::Suspect => "silent on ",
            Condition::Standby => "standby ",
            Condition::Probing | Condition::Failed | Condition::Waiting => continue,
        };
        if !told.insert((part, &candidate.link)) {
            continue;
        }
        let separator = if words.is_empty() { "" } else { "; " };
        words.extend([separator, part, &candidate.link]);
        if let (Condition::Active, Some(rtt)) = (condition, rtt) {
            words.push_str(&format!(", {:.0} ms", status::milliseconds(*rtt)));
        }
    }
    if words.is_empty() { "no path works, waiting for one".into() } else { words }
}
