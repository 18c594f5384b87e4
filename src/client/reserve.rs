//! The next server, asked now and then: whether it answers in case the one in use does not.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::debug;

use super::servers::RemoteServer;
use crate::{
    clock,
    config::Paths,
    link::candidate::Candidate,
    path::{
        PathKey,
        manager::{Event, METERED},
        probe::{Probe, Prober},
    },
    task,
};

/// Answers of probes that wait to be read.
const ANSWERS: usize = 16;
/// From one question to the next while the server in use is silent.
const URGENT: Duration = Duration::from_millis(500);
/// A server whose names are being resolved, or that no link reaches, is looked at again so soon.
const RETRY: Duration = Duration::from_secs(5);

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Over the best link, now and then.
    Warm {
        /// Whether the server is to be used again once it answers steadily: then it is also asked over a metered link.
        returns: bool,
    },
    /// Over each link and by each transport, at once: the server in use is silent.
    Urgent,
}

/// The probes of one server.
pub(super) struct Reserve {
    pub(super) server: Arc<RemoteServer>,
    prober: Prober,
    events: mpsc::Receiver<Event>,
    probes: BTreeMap<PathKey, Probe>,
    /// The paths over which it could be asked, the best first.
    paths: Vec<PathKey>,
    /// Which of them has its turn: after a question that was not answered it is the next one.
    turn: usize,
    /// Since when each question was answered.
    steady_since: Option<Instant>,
    /// The last answer, and its round trip.
    answered: Option<(Instant, Option<Duration>)>,
    /// When it is asked again.
    pub(super) next: Option<Instant>,
}

impl Reserve {
    pub(super) fn new(server: Arc<RemoteServer>) -> Self {
        let (events, answers) = mpsc::channel(ANSWERS);
        Self {
            prober: Prober::new(server.probes.clone(), events, drop),
            server,
            events: answers,
            probes: BTreeMap::new(),
            paths: Vec::new(),
            turn: 0,
            steady_since: None,
            answered: None,
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
        if known.is_empty() {
            let server = self.server.clone();
            task::detached("names", async move {
                if let Err(error) = server.resolve().await {
                    debug!(%error, "the next server's addresses are not known");
                }
            });
        }
        let mut found = self.server.find(&known, paths).await.unwrap_or_default();
        found.retain(|(candidate, _)| pinned.is_none_or(|link| link == candidate.link));
        found.sort_by_key(|(_, facts)| *facts);
        let is_urgent = pace == Pace::Urgent;
        let returns = pace == Pace::Warm { returns: true };
        found.retain(|(_, it)| !it.metered || is_urgent || returns || paths.metered_reserve);
        self.next = match (found.first(), paths.standby_check) {
            (_, _) if is_urgent => Some(now + URGENT),
            (None, _) => Some(now + RETRY),
            (Some((_, facts)), Some(check)) if facts.metered => Some(now + METERED * check),
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
        let event = match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        };
        let now = clock::now();
        match event {
            Event::Answered(_, rtt) => {
                self.steady_since.get_or_insert(now);
                self.answered = Some((now, rtt.or_else(|| self.rtt())));
            }
            Event::Refused(key) | Event::TimedOut(key) => {
                self.probes.remove(&key);
                let is_unheard = self.answered.is_none_or(|(at, _)| at + URGENT < now);
                if is_unheard || self.probes.is_empty() {
                    (self.steady_since, self.answered) = (None, None);
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

    /// How long it had answered each question when it last did.
    pub(super) fn steady_for(&self) -> Option<Duration> {
        self.answered.zip(self.steady_since).map(|((at, _), since)| at.duration_since(since))
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
