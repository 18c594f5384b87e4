//! The next server, asked now and then: whether it answers in case the one in use does not.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::servers::RemoteServer;
use crate::{
    clock,
    config::Paths,
    link::candidate::Candidate,
    path::{
        PathKey,
        manager::{Event, METERED_CHECK},
        probe::{Probe, Prober, Report},
    },
};

/// Answers of probes that wait to be read.
const ANSWERS: usize = 16;
/// From one question to the next while the server in use is silent.
const URGENT: Duration = Duration::from_millis(500);
/// A server whose names are being resolved, or that no link reaches, is looked at again so soon.
const RETRY: Duration = Duration::from_secs(5);
/// From one look at names that stand for nothing to the next.
const RESOLVE: Duration = Duration::from_secs(10);
/// An answer is fresh for so long.
const FRESH: Duration = Duration::from_secs(2);

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Over the best link that is not metered, now and then.
    Warm,
    /// Over each link and by each transport, at once: the server in use is silent.
    Urgent,
}

/// The probes of one server.
pub(super) struct Reserve {
    pub(super) server: Arc<RemoteServer>,
    prober: Prober,
    reports: mpsc::Receiver<Report>,
    probes: BTreeMap<PathKey, Probe>,
    /// The paths over which it could be asked, the best first.
    paths: Vec<PathKey>,
    /// Which of them has its turn: after a question that was not answered it is the next one.
    turn: usize,
    /// When the first and the last of the echoes came that nothing failed between.
    echoes: Option<(Instant, Instant)>,
    /// The last sign of the server, and the last round trip.
    answered: Option<(Instant, Option<Duration>)>,
    /// The last question was not answered.
    is_failing: bool,
    /// When its names are looked at again, if they stand for nothing.
    resolve_at: Option<Instant>,
    /// When it is asked again.
    pub(super) next: Option<Instant>,
}

impl Reserve {
    pub(super) fn new(server: Arc<RemoteServer>) -> Self {
        let (sender, reports) = mpsc::channel(ANSWERS);
        Self {
            prober: Prober::new(server.probes.clone(), sender, drop),
            server,
            reports,
            probes: BTreeMap::new(),
            paths: Vec::new(),
            turn: 0,
            echoes: None,
            answered: None,
            is_failing: false,
            resolve_at: None,
            next: Some(clock::now()),
        }
    }

    /// Asks the server over the links that `pinned` leaves, unless standbys are never asked and there is no hurry.
    pub(super) async fn ask(&mut self, pace: Pace, paths: &Paths, pinned: Option<&str>) {
        let now = clock::now();
        if pace != Pace::Urgent && paths.standby_check.is_none() {
            self.next = None;
            return;
        }
        let known = self.server.names.known();
        if known.is_empty() && self.resolve_at.is_none_or(|at| at <= now) {
            self.resolve_at = Some(now + RESOLVE);
            self.server.resolve_apart();
        }
        let mut found = self.server.find(&known, paths).await.unwrap_or_default();
        found.retain(|(candidate, _)| pinned.is_none_or(|link| link == candidate.link));
        found.sort_by_key(|(_, facts)| *facts);
        let is_urgent = pace == Pace::Urgent;
        found.retain(|(_, it)| !it.metered || is_urgent || paths.metered_reserve);
        self.next = match (found.first(), paths.standby_check) {
            (_, _) if is_urgent => Some(now + URGENT),
            (None, _) => Some(now + RETRY),
            (Some((_, facts)), Some(check)) if facts.metered => Some(now + METERED_CHECK * check),
            (Some(_), check) => check.map(|check| now + check),
        };
        let chosen: Vec<_> = if is_urgent {
            // A network may let only TCP out.
            let mut ways = HashSet::new();
            found.into_iter().filter(|(it, _)| ways.insert((it.index, it.transport))).collect()
        } else {
            let known = found.iter().map(|(it, _)| PathKey::from(it)).collect();
            if self.paths != known {
                (self.paths, self.turn) = (known, 0);
            }
            let turn = self.turn % found.len().max(1);
            found.into_iter().skip(turn).take(1).collect()
        };
        let keys: HashSet<_> = chosen.iter().map(|(it, _)| PathKey::from(it)).collect();
        self.probes
            .retain(|key, probe| keys.contains(key) || (is_urgent && probe.standing().is_some()));
        for (candidate, _) in chosen {
            self.probe(candidate, paths.probe_timeout).ask();
        }
    }

    fn probe(&mut self, candidate: Candidate, limit: Duration) -> &Probe {
        let (network, prober) = (self.server.network.clone(), self.prober.clone());
        let key = PathKey::from(&candidate);
        let start = || Probe::start(network, prober, candidate, key, limit);
        self.probes.entry(key).or_insert_with(start)
    }

    /// Asks at once over the paths that are warm.
    pub(super) fn hurry(&self) {
        self.probes.values().filter(|probe| probe.standing().is_some()).for_each(Probe::ask);
    }

    /// Takes in the next answer. Cancel safe.
    pub(super) async fn hear(&mut self) {
        let Some(report) = self.reports.recv().await else { return std::future::pending().await };
        let Some(event) = report.event() else { return };
        let now = clock::now();
        match event {
            Event::Answered(_, rtt) => {
                self.is_failing = false;
                self.answered = Some((now, rtt.or_else(|| self.rtt())));
                // A handshake alone is no proof that the server serves.
                if rtt.is_some() {
                    let first = self.echoes.map_or(now, |(first, _)| first);
                    self.echoes = Some((first, now));
                }
            }
            Event::Refused(key) | Event::TimedOut(key) => {
                self.probes.remove(&key);
                let is_unheard = self.answered.is_none_or(|(at, _)| at + URGENT < now);
                if is_unheard || self.probes.is_empty() {
                    self.begin_anew();
                    self.is_failing = true;
                    self.turn += 1;
                }
            }
            _ => {}
        }
    }

    /// Whether it answered at this moment or later.
    pub(super) fn has_answered_since(&self, at: Instant) -> bool {
        self.answered.is_some_and(|(answered, _)| answered >= at)
    }

    /// Whether it has just answered, and each question before for so long.
    pub(super) fn is_steady(&self, long: Duration) -> bool {
        self.echoes.is_some_and(|(first, last)| {
            last.duration_since(first) >= long && last + FRESH > clock::now()
        })
    }

    /// Whether the last question was not answered.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Forgets what it answered.
    pub(super) fn begin_anew(&mut self) {
        (self.echoes, self.answered) = (None, None);
    }

    /// When it answered last, unless it has failed since.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.answered.map(|(at, _)| at)
    }

    /// The last round trip.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.answered.and_then(|(_, rtt)| rtt)
    }
}
