//! At home: the server answers with its key at one of its addresses in its own network.
//!
//! ```text
//!                      the path in use is one at home          mode "off": the server confirms
//!          Away ────────────────────────────────────▶ Direct ──────────────────────────────▶ Aside
//!            ▲                                        │   ▲                                    │
//!            └──── another path is in use, or none ───┘   └── silence, a doubt, a denial ──────┘
//! ```
//! A path at home is one like all others, and the best: the tunnel is used at once when it answers. To let traffic go outside of
//! the tunnel takes more. A network that somebody else runs can have the addresses of home, and forward what comes there to
//! the server, whose key answers then. So a [`Guard`] asks the server on a connection of its own whether it sees this host
//! as a neighbour (`server::vicinity`), again and again, and the routes return as soon as it does not say so.

use std::{
    convert::Infallible,
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::Connection;
use tokio::{
    sync::watch,
    time::{self, sleep},
};
use tracing::{debug, info};

use crate::{
    clock,
    config::HomeMode,
    link::{candidate::Candidate, neighbour::Hardware},
    path::{PathKey, network::Network, probe::Probes},
    task::Task,
    wire::place::{PlaceAnswer, PlaceQuestion},
};

/// From one question to the next. A link that goes away is heard of; one that falls silent is found after this time and
/// [`PATIENCE`] at the latest.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take. A wifi that saves power holds a packet back for some 100 ms or 300.
const PATIENCE: Duration = Duration::from_millis(400);
/// A question is repeated so often while it is not answered.
const REPEAT: Duration = Duration::from_millis(100);
/// A handshake on a link without a router takes some milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// From one attempt of a guard to the next when the server does not confirm, doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long the server must confirm before the tunnel stands aside again where it had to return although the path is the same,
/// doubled each time up to the longest.
const SHORTEST_CALM: Duration = Duration::from_secs(1);
const LONGEST_CALM: Duration = Duration::from_secs(120);
/// After so long without a return it is as if there had been none.
const FORGIVENESS: Duration = Duration::from_secs(600);

/// Whether the tunnel stands aside.
pub(super) struct Home {
    /// The link over which traffic goes directly, while it does.
    aside: watch::Sender<Option<String>>,
    guarded: Option<Guarded>,
    /// The path at home that the tunnel had to return from last, when it did, and how long the server must confirm there.
    calm: Option<(PathKey, Instant, Duration)>,
}

/// A path at home over which the server is asked.
struct Guarded {
    key: PathKey,
    link: String,
    said: watch::Receiver<Said>,
    _guard: Task,
    /// Since when the server confirms.
    confirmed_since: Option<Instant>,
    is_denied: bool,
}

/// What the server said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It sees this host where this host sees itself.
    Neighbour,
    /// It does not.
    Stranger,
    /// Nothing in time.
    Nothing,
    /// There is no connection to ask it on, or it has ended.
    Unasked,
}

impl Home {
    /// With the link over which the tunnel stands aside, as it changes.
    pub(super) fn new() -> (Self, watch::Receiver<Option<String>>) {
        let (aside, stands_aside) = watch::channel(None);
        (Self { aside, guarded: None, calm: None }, stands_aside)
    }

    /// Looks at the path in use: a candidate at home that works without a doubt, or none.
    pub(super) fn look(
        &mut self,
        at_home: Option<&Candidate>,
        mode: HomeMode,
        ask: impl FnOnce() -> (Arc<dyn Network>, Probes),
    ) {
        let now = clock::now();
        match at_home.filter(|_| mode == HomeMode::Off) {
            Some(candidate) => {
                let key = PathKey::from(candidate);
                if self.guarded.as_ref().is_none_or(|it| it.key != key) {
                    let (network, probes) = ask();
                    self.guarded = Some(Guarded::new(candidate.clone(), network, probes));
                }
            }
            None => {
                self.unsettle(now);
                // What it was told before says nothing of later.
                self.guarded = None;
            }
        }
        let link = self.guarded.as_ref().filter(|it| self.is_calm(it, now)).map(|it| &it.link);
        self.aside.send_if_modified(|before| {
            let differs = before.as_ref() != link;
            if differs {
                *before = link.cloned();
            }
            differs
        });
    }

    /// Waits until the server says something more, or nothing any more. Returns the path that is silent although it
    /// answered before. Cancel safe.
    pub(super) async fn heard(&mut self) -> Option<PathKey> {
        let Some(guarded) = &mut self.guarded else { return future::pending().await };
        if guarded.said.changed().await.is_err() {
            return future::pending().await;
        }
        let (said, now) = (*guarded.said.borrow_and_update(), clock::now());
        match said {
            Said::Neighbour => {
                guarded.confirmed_since.get_or_insert(now);
                guarded.is_denied = false;
                return None;
            }
            Said::Stranger if !guarded.is_denied => {
                guarded.is_denied = true;
                let link = &guarded.link;
                info!(link, "the server does not see this host in its own network: not at home");
            }
            Said::Stranger | Said::Nothing | Said::Unasked => {}
        }
        let (key, did_confirm) = (guarded.key, guarded.confirmed_since.is_some());
        self.unsettle(now);
        (did_confirm && said == Said::Nothing).then_some(key)
    }

    fn is_calm(&self, guarded: &Guarded, now: Instant) -> bool {
        guarded.confirmed_since.is_some_and(|since| now >= since + self.calm(guarded.key, now))
    }

    /// How long the server must confirm on this path.
    fn calm(&self, key: PathKey, now: Instant) -> Duration {
        let last = self.calm.filter(|(path, at, _)| *path == key && now < *at + FORGIVENESS);
        last.map_or(Duration::ZERO, |(.., calm)| calm)
    }

    /// Whether the server confirms is to be found out again. If the tunnel stood aside, that takes longer the next time.
    fn unsettle(&mut self, now: Instant) {
        let Some(guarded) = &self.guarded else { return };
        if self.is_calm(guarded, now) {
            let calm = 2 * self.calm(guarded.key, now);
            self.calm = Some((guarded.key, now, calm.clamp(SHORTEST_CALM, LONGEST_CALM)));
        }
        if let Some(guarded) = &mut self.guarded {
            guarded.confirmed_since = None;
        }
    }
}

impl Guarded {
    fn new(candidate: Candidate, network: Arc<dyn Network>, probes: Probes) -> Self {
        let (tell, said) = watch::channel(Said::Unasked);
        let (key, link) = (PathKey::from(&candidate), candidate.link.clone());
        let guard = Guard { candidate, network, probes, tell, epoch: clock::now() };
        let _guard = Task::spawn("home", guard.run());
        Self { key, link, said, _guard, confirmed_since: None, is_denied: false }
    }
}

/// Asks the server, for as long as it is polled.
struct Guard {
    candidate: Candidate,
    network: Arc<dyn Network>,
    probes: Probes,
    tell: watch::Sender<Said>,
    epoch: Instant,
}

impl Guard {
    async fn run(self) -> Infallible {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let said = self.watch(&mut pause).await;
            self.tell.send_replace(said);
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Asks on one connection, until the server does not confirm.
    async fn watch(&self, pause: &mut Duration) -> Said {
        let Self { network, probes, candidate, .. } = self;
        let connected = probes.handshake.run(&**network, candidate.clone(), HANDSHAKE, None).await;
        let connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                debug!(%error, "the guard of home has no connection");
                return Said::Unasked;
            }
        };
        loop {
            // A wifi may have another one from one network to the next.
            let Some(hardware) = network.hardware(candidate).await else { return Said::Unasked };
            let asked = time::timeout(PATIENCE, self.ask(&connected.connection, hardware));
            match asked.await {
                Ok(Some(true)) => {
                    *pause = SHORTEST_PAUSE;
                    self.tell.send_replace(Said::Neighbour);
                }
                Ok(Some(false)) => return Said::Stranger,
                Ok(None) => return Said::Unasked,
                Err(_elapsed) => return Said::Nothing,
            }
            // Whatever ends the connection ends the wait.
            let _ = time::timeout(EVERY, connected.connection.closed()).await;
        }
    }

    /// Whether the server sees this host as a neighbour; none if the connection ends.
    async fn ask(&self, connection: &Connection, hardware: Hardware) -> Option<bool> {
        let Candidate { source: client, server, .. } = self.candidate;
        let elapsed = || clock::now().duration_since(self.epoch).as_micros() as u64;
        let begun = elapsed();
        loop {
            let asked = elapsed();
            let process = self.probes.process;
            let question = PlaceQuestion { asked, process, hardware, client, server: server.ip() };
            connection.send_datagram(question.encode()).ok()?;
            let again = time::Instant::from(clock::now()) + REPEAT;
            while let Ok(reply) = time::timeout_at(again, connection.read_datagram()).await {
                // A late answer says nothing about the present.
                if let Some(PlaceAnswer { asked, is_neighbour }) = PlaceAnswer::decode(&reply.ok()?)
                    && asked >= begun
                {
                    return Some(is_neighbour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
