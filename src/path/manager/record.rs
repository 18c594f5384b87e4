//! What is remembered of paths that are gone, for when they return.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    quality::Kept,
    state::{Failures, Path},
};
use crate::{
    link::candidate::{Candidate, Transport},
    path::{PathKey, rank::LinkFacts},
};

/// A verdict counts for so long after the path is gone.
const MEMORY: Duration = Duration::from_secs(600);

/// A way through a network to a server, whatever our address there: a lease that is renewed or a privacy address (RFC 8981)
/// changes nothing of how good it is. Another router is another network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    link: String,
    router: Option<IpAddr>,
    server: SocketAddr,
    transport: Transport,
}

impl Way {
    fn of(key: PathKey, Path { link, router, .. }: &Path) -> Self {
        let PathKey { server, transport, .. } = key;
        Self { link: link.clone(), router: *router, server, transport }
    }
}

/// What was found of a path that works badly.
#[derive(Clone, Debug, PartialEq)]
struct Verdict {
    kept: Kept,
    failures: Failures,
    until: Instant,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record {
    failures: BTreeMap<PathKey, Failures>,
    verdicts: BTreeMap<Way, Verdict>,
}

impl Record {
    /// The connection over this path, or `is_gone` with its link or address, is over.
    pub(super) fn keep(&mut self, key: PathKey, path: Path, is_gone: bool, now: Instant) {
        let mut failures = path.failures;
        self.keep_verdict(key, &path, now);
        if is_gone {
            failures.add(now);
        }
        self.failures.insert(key, failures);
    }

    /// This path is over, or its network is another. A verdict that was recalled and that nothing has confirmed counts for as
    /// long as it did.
    pub(super) fn keep_verdict(&mut self, key: PathKey, path: &Path, now: Instant) {
        let way = Way::of(key, path);
        if path.is_good(now) {
            self.verdicts.remove(&way);
        } else if let Some(kept) = path.quality.kept(now) {
            let verdict = Verdict { kept, failures: path.failures, until: now + MEMORY };
            self.verdicts.insert(way, verdict);
        }
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Instant) {
        self.failures.retain(|_, failures| failures.count(now) > 0);
        self.verdicts.retain(|_, verdict| now < verdict.until);
    }

    /// A path with what is remembered of it. A verdict stays, for when the network is another one for a moment.
    pub(super) fn recall(&mut self, candidate: Candidate, facts: LinkFacts) -> Path {
        let key = PathKey::from(&candidate);
        let failures = self.failures.remove(&key);
        let mut path = Path::new(candidate, facts, failures.unwrap_or_default());
        if let Some(Verdict { kept, failures: before, .. }) = self.verdicts.get(&Way::of(key, &path)) {
            path.quality.recall(*kept);
            path.failures = failures.unwrap_or(*before);
        }
        path
    }

    /// Whether a path over this candidate failed a moment ago, or works badly as far as is known, if these are the `routers` of
    /// its link.
    pub(super) fn is_bad(
        &self,
        candidate: &Candidate,
        routers: &[Option<IpAddr>],
        now: Instant,
    ) -> bool {
        let failures = self.failures.get(&PathKey::from(candidate));
        // What is wrong is mostly the link's, whichever server is asked. IPv4 and IPv6 have routers of their own.
        let is_near = |way: &Way| way.link == candidate.link && routers.contains(&way.router);
        failures.is_some_and(|failures| failures.are_recent(now))
            || self.verdicts.iter().any(|(way, verdict)| is_near(way) && now < verdict.until)
    }
}
