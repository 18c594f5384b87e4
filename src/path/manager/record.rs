//! What is remembered of paths that are gone, for when they return.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    quality::Kept,
    state::{Failures, Path, Recalled},
};
use crate::{
    link::{
        candidate::{Candidate, Transport},
        router::{MEMORY, MOST, Router},
    },
    path::{PathKey, rank::LinkFacts},
};

/// A way through a network to a server, whatever our address there: a lease that is renewed or a privacy address (RFC 8981)
/// changes nothing of how good it is. Another router is another network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    link: String,
    router: Router,
    server: SocketAddr,
    transport: Transport,
}

impl Way {
    fn of(key: PathKey, path: &Path, router: Router) -> Self {
        let PathKey { server, transport, .. } = key;
        Self { link: path.link.clone(), router, server, transport }
    }

    /// Whether both may be one way.
    fn may_be(&self, other: &Self) -> bool {
        let Self { link, router, server, transport } = other;
        self.router.may_be(*router)
            && (&self.link, self.server, self.transport) == (link, *server, *transport)
    }
}

/// A path that is over, or whose network is.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub(super) key: PathKey,
    pub(super) path: &'a Path,
    /// The router of that network.
    pub(super) router: Router,
    /// Whether it was the active path, and silent.
    pub(super) is_doubted: bool,
}

impl Ended<'_> {
    fn way(&self) -> Way {
        Way::of(self.key, self.path, self.router)
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
    pub(super) fn keep(&mut self, ended: &Ended<'_>, is_gone: bool, now: Instant) {
        self.keep_verdict(ended, now);
        let mut failures = ended.path.failures;
        if is_gone {
            failures.add(now);
        }
        self.failures.insert(ended.key, failures);
    }

    /// Keeps what was found of the network of this path. A verdict that was recalled and that nothing has confirmed counts for
    /// as long as it did.
    pub(super) fn keep_verdict(&mut self, ended: &Ended<'_>, now: Instant) {
        let Ended { path, router, is_doubted, .. } = *ended;
        let (way, kept) = (ended.way(), path.quality.kept(now));
        if kept.is_none() && (is_doubted || !path.is_good(now)) {
            return;
        }
        self.verdicts.remove(&way);
        // It was found before the hardware address was known.
        let router = Router { hardware: None, ..router };
        self.verdicts.remove(&Way { router, ..way.clone() });
        let Some(kept) = kept else { return };
        if self.verdicts.len() >= MOST
            && let Some((oldest, _)) = self.verdicts.iter().min_by_key(|(_, it)| it.until)
        {
            let oldest = oldest.clone();
            self.verdicts.remove(&oldest);
        }
        let verdict = Verdict { kept, failures: path.failures, until: now + MEMORY };
        self.verdicts.insert(way, verdict);
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Instant) {
        self.failures.retain(|_, failures| failures.count(now) > 0);
        self.verdicts.retain(|_, verdict| now < verdict.until);
    }

    /// A path through this router with what is remembered of it.
    pub(super) fn recall(
        &mut self,
        candidate: Candidate,
        facts: LinkFacts,
        router: Router,
    ) -> Path {
        let key = PathKey::from(&candidate);
        let failures = self.failures.remove(&key);
        let mut path = Path::new(candidate, facts, failures.unwrap_or_default());
        self.recall_verdict(key, &mut path, router);
        path
    }

    /// Recalls the verdict on this path's network, or the newest on one that looks like it. It stays here, for when the network
    /// is another one for a moment.
    pub(super) fn recall_verdict(&self, key: PathKey, path: &mut Path, router: Router) {
        let way = Way::of(key, path, router);
        let alike = self.verdicts.iter().filter(|(it, _)| it.may_be(&way));
        let newest = alike.max_by_key(|(it, verdict)| (**it == way, verdict.until));
        if let Some((Way { router, .. }, verdict)) = newest {
            let Verdict { kept, failures, .. } = *verdict;
            path.quality.recall(kept);
            // Those of the path itself tell more.
            let failures = (path.failures == Failures::default()).then_some(failures);
            path.failures = failures.unwrap_or(path.failures);
            path.recalled = Some(Recalled { router: *router, failures });
        }
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
        let is_near =
            |way: &Way| way.link == candidate.link && routers.contains(&way.router.address);
        failures.is_some_and(|failures| failures.are_recent(now))
            || self.verdicts.iter().any(|(way, verdict)| is_near(way) && now < verdict.until)
    }
}
