//! Moves the session to another server, while the one in use is still there if it can be.
//!
//! ```text
//!  roamer ── unreachable ─┐
//!  server ── goes away ───┤                                    ┌─▶ the old connection goes on for a moment
//!  people ── orders ──────┼─▶ Mover ─▶ race of the others ─▶ session
//!  Reserve ─ answers ─────┘                                    └─▶ packets go there
//! ```
//! A session with another server that merely is preferred, was chosen, or takes the place of one that goes away is
//! opened beside the present one, whose packets under way still arrive. One that takes the place of a silent server gets
//! the packets that were held.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{debug, info};

use super::{
    Client,
    chance::fraction,
    dial::Loss,
    ended::Ended,
    greeting::Reached,
    reload::InForce,
    reserve::{Pace, Reserve},
    servers::{InOrder, RemoteServer},
};
use crate::{
    clock,
    daemon::{control::Reply, status::MoveReason},
    identity::PublicKey,
    path::manager::Dialing,
};

/// Wishes that wait.
const WISHES: usize = 4;
/// How long all paths to the server in use are asked, at least, before another one takes its place: three of its round trips
/// if that is longer.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a server that is preferred must have answered before the session returns to it, doubled with each return
/// that did not last, this often at most.
const STEADY: Duration = Duration::from_secs(30);
const MOST_DOUBLED: u32 = 6;
/// A session with a preferred server that lasted so long was no mistake.
const LASTING: Duration = Duration::from_secs(300);
/// From one attempt that failed to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// The clients of a server that goes away leave it within this time, or a quarter of what it leaves them.
const SPREAD: Duration = Duration::from_secs(2);

/// What stays from session to session.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// The server that a person chose, until it fails.
    pub(super) chosen: Option<PublicKey>,
    /// Returns to a preferred server in a row that did not last.
    failures: u32,
}

impl Course {
    /// A session with a server ended after so long; it was the most preferred one or not.
    pub(super) fn leave(&mut self, was_preferred: bool, lasted: Duration) {
        if was_preferred {
            let failures = (self.failures + 1).min(MOST_DOUBLED);
            self.failures = if lasted < LASTING { failures } else { 0 };
        }
    }

    /// A session with this server began.
    pub(super) fn begin(&mut self, server: PublicKey) {
        self.chosen.take_if(|chosen| *chosen != server);
    }

    /// How long a preferred server must have answered.
    fn steady(&self) -> Duration {
        STEADY * 2u32.pow(self.failures)
    }
}

/// What the roamer sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    /// Since when no path reaches the server, and how long its paths are asked before another one takes its place.
    unreachable: Option<(Instant, Duration)>,
    dialing: Dialing,
}

/// What somebody wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// The server will stop after so long.
    GoAway(Duration),
    /// A person chose the server of this name.
    Go { name: String, reply: oneshot::Sender<Reply> },
    /// A person leaves the choice to us.
    Auto,
}

/// The roamer's end.
#[derive(Debug)]
pub(super) struct Signals {
    signs: watch::Sender<Signs>,
    wishes: mpsc::Sender<Wish>,
}

impl Signals {
    pub(super) fn new() -> (Self, Heard) {
        let signs = watch::Sender::default();
        let (wishes, wanted) = mpsc::channel(WISHES);
        let heard = Heard { signs: signs.subscribe(), wishes: wanted };
        (Self { signs, wishes }, heard)
    }

    /// Tells whether the server `is_unreachable`, and how links are dialed.
    pub(super) fn tell(&self, is_unreachable: bool, rtt: Duration, dialing: &Dialing) {
        self.signs.send_if_modified(|signs| {
            let was_unreachable = signs.unreachable.is_some();
            if is_unreachable != was_unreachable {
                let patience = PATIENCE.max(3 * rtt);
                signs.unreachable = is_unreachable.then(|| (clock::now(), patience));
            }
            let is_other = signs.dialing != *dialing;
            if is_other {
                signs.dialing = dialing.clone();
            }
            is_other || is_unreachable != was_unreachable
        });
    }

    /// Tells what somebody wants. Beyond a few of them it is lost, and whoever asked hears so.
    pub(super) fn wish(&self, wish: Wish) {
        let _ = self.wishes.try_send(wish);
    }
}

/// The mover's end.
#[derive(Debug)]
pub(super) struct Heard {
    signs: watch::Receiver<Signs>,
    wishes: mpsc::Receiver<Wish>,
}

/// A session with another server.
pub(super) struct Moved {
    pub(super) reached: Reached,
    pub(super) why: MoveReason,
}

/// A move that is wanted.
struct Wanted {
    why: MoveReason,
    /// When it may begin.
    at: Instant,
    /// The server; without one any other.
    to: Option<Arc<RemoteServer>>,
    reply: Option<oneshot::Sender<Reply>>,
}

/// See the module's documentation.
pub(super) struct Mover<'a> {
    client: &'a Client,
    current: Arc<RemoteServer>,
    course: &'a mut Course,
    heard: Heard,
    servers: watch::Receiver<InOrder>,
    config: InForce,
    reserve: Option<Reserve>,
    wanted: Option<Wanted>,
    /// After an attempt that failed the next one comes no sooner.
    not_before: Instant,
}

/// A race for a session.
type Attempt<'a> = (MoveReason, BoxFuture<'a, Result<Reached, Ended>>);

impl<'a> Mover<'a> {
    pub(super) fn new(
        client: &'a Client,
        current: Arc<RemoteServer>,
        course: &'a mut Course,
        heard: Heard,
    ) -> Self {
        let (servers, config) = (client.servers.changes(), client.config.subscribe());
        let not_before = clock::now();
        Self {
            client,
            current,
            course,
            heard,
            servers,
            config,
            reserve: None,
            wanted: None,
            not_before,
        }
    }

    /// Runs until there is a session with another server.
    pub(super) async fn run(mut self) -> Moved {
        self.choose_reserve();
        let mut attempt: Option<Attempt<'a>> = None;
        loop {
            let (now, unreachable) = (clock::now(), self.unreachable());
            attempt.take_if(|(why, _)| self.is_void(*why));
            if attempt.is_none() {
                attempt = self.due(now).map(|why| (why, self.race(why)));
            }
            self.show();
            let deadline = self.next_deadline().filter(|_| attempt.is_none());
            let ask = self.reserve.as_ref().and_then(|reserve| reserve.next);
            tokio::select! {
                (why, ended) = finish(&mut attempt) => match ended {
                    Ok(reached) => return self.arrive(reached, why),
                    Err(ended) => self.fail(why, &ended),
                },
                Some(wish) = self.heard.wishes.recv() => self.take(wish),
                Ok(()) = self.heard.signs.changed() => {
                    if self.unreachable().is_some() && self.unreachable() != unreachable {
                        self.be_urgent();
                    }
                }
                Ok(()) = self.servers.changed() => self.choose_reserve(),
                Ok(()) = self.config.changed() => {}
                () = hear(&mut self.reserve) => {}
                () = sleep_until(ask) => self.ask().await,
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Whether an attempt for this reason is not wanted any more: the server in use answers again, or a person chose.
    fn is_void(&self, why: MoveReason) -> bool {
        let answers = why == MoveReason::Silent && self.unreachable().is_none();
        let is_chosen = self.wanted.as_ref().is_some_and(|it| it.why == MoveReason::Chosen);
        answers || (is_chosen && why != MoveReason::Chosen)
    }

    fn unreachable(&self) -> Option<(Instant, Duration)> {
        self.heard.signs.borrow().unreachable
    }

    /// The first of the other servers is the reserve.
    fn choose_reserve(&mut self) {
        let servers = self.servers.borrow_and_update().clone();
        let next = servers.iter().find(|server| server.key() != self.current.key());
        match (next, &mut self.reserve) {
            (Some(next), Some(reserve)) if reserve.server.key() == next.key() => {
                reserve.server = next.clone();
            }
            (next, reserve) => *reserve = next.cloned().map(Reserve::new),
        }
    }

    /// Whether the reserve is preferred to the server in use.
    fn returns(&self) -> bool {
        let Some(reserve) = &self.reserve else { return false };
        let servers = self.servers.borrow();
        let place = |key| servers.iter().position(|server| server.key() == key);
        let is_chosen = self.course.chosen == Some(self.current.key());
        !is_chosen && place(reserve.server.key()) < place(self.current.key())
    }

    /// The server in use is silent: the reserve is asked at once where that costs next to nothing, and over all links a moment
    /// later.
    fn be_urgent(&mut self) {
        if let Some(reserve) = &mut self.reserve {
            reserve.hurry();
            reserve.next = Some(clock::now() + PATIENCE);
        }
    }

    async fn ask(&mut self) {
        let returns = self.returns();
        let unreachable = self.unreachable();
        let config = self.config.borrow().clone();
        let pinned = self.heard.signs.borrow().dialing.pinned().map(str::to_owned);
        let Some(reserve) = &mut self.reserve else { return };
        let pace = match unreachable {
            Some((since, _)) if !reserve.has_answered_since(since) => Pace::Urgent,
            _ => Pace::Warm { returns },
        };
        reserve.ask(pace, &config.paths, pinned.as_deref()).await;
    }

    /// Why a session with another server is due.
    fn due(&self, now: Instant) -> Option<MoveReason> {
        let reserve = self.reserve.as_ref().filter(|_| self.not_before <= now)?;
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| wanted.at <= now) {
            return Some(wanted.why);
        }
        if let Some((since, patience)) = self.unreachable() {
            let is_due = since + patience <= now && reserve.has_answered_since(since);
            return is_due.then_some(MoveReason::Silent);
        }
        let is_steady = reserve.steady_for().is_some_and(|it| it >= self.course.steady());
        (is_steady && self.returns()).then_some(MoveReason::Preferred)
    }

    /// When something may be due.
    fn next_deadline(&self) -> Option<Instant> {
        let reserve = self.reserve.as_ref()?;
        let wanted = self.wanted.as_ref().map(|wanted| wanted.at);
        let silent = self.unreachable().filter(|(since, _)| reserve.has_answered_since(*since));
        let silent = silent.map(|(since, patience)| since + patience);
        let next = wanted.into_iter().chain(silent).min();
        next.map(|at| at.max(self.not_before))
    }

    /// Races the servers that a move leads to.
    fn race(&self, why: MoveReason) -> BoxFuture<'a, Result<Reached, Ended>> {
        let to = self.wanted.as_ref().and_then(|wanted| wanted.to.clone());
        let servers = match (why, to, &self.reserve) {
            (MoveReason::Chosen, Some(to), _) => vec![to],
            (MoveReason::Preferred, _, Some(reserve)) => vec![reserve.server.clone()],
            _ => {
                let all = self.servers.borrow().clone();
                all.iter().filter(|it| it.key() != self.current.key()).cloned().collect()
            }
        };
        let names: Vec<_> = servers.iter().map(|server| server.name()).collect();
        debug!(%why, ?names, "a session with another server is wanted");
        let (client, dialing) = (self.client, self.heard.signs.borrow().dialing.clone());
        Box::pin(async move {
            client.reach(servers, &dialing, &Loss::none(), why == MoveReason::Silent, &|_| ()).await
        })
    }

    /// A session with another server begins.
    fn arrive(mut self, reached: Reached, why: MoveReason) -> Moved {
        if let Some(Wanted { reply: Some(reply), .. }) = self.wanted.take() {
            let done = until_it_fails(reached.server.name());
            let _ = reply.send(Reply::Done(vec![done]));
        }
        if why == MoveReason::Chosen {
            self.course.chosen = Some(reached.server.key());
        }
        Moved { reached, why }
    }

    fn fail(&mut self, why: MoveReason, ended: &Ended) {
        debug!(%why, reason = %ended, "no session with another server");
        self.not_before = clock::now() + AGAIN;
        match why {
            MoveReason::Chosen => {
                if let Some(Wanted { reply: Some(reply), .. }) = self.wanted.take() {
                    let _ = reply.send(Reply::Error(ended.to_string()));
                }
            }
            MoveReason::Preferred => {
                self.course.leave(true, Duration::ZERO);
                // It has to answer for long again.
                if let Some(reserve) = &mut self.reserve {
                    *reserve = Reserve::new(reserve.server.clone());
                }
            }
            MoveReason::GoesAway | MoveReason::Silent | MoveReason::Ended => {}
        }
    }

    fn take(&mut self, wish: Wish) {
        let now = clock::now();
        match wish {
            Wish::GoAway(within) => {
                info!(server = self.current.name(), "the server will stop");
                let at = now + SPREAD.min(within / 4).mul_f32(fraction());
                let (why, to, reply) = (MoveReason::GoesAway, None, None);
                self.wanted.get_or_insert(Wanted { why, at, to, reply });
            }
            Wish::Go { name, reply } => {
                let servers = self.servers.borrow().clone();
                match servers.iter().find(|server| server.name() == name) {
                    Some(server) if server.key() == self.current.key() => {
                        self.course.chosen = Some(server.key());
                        let _ = reply.send(Reply::Done(vec![until_it_fails(&name)]));
                    }
                    Some(server) => {
                        let (why, to, reply) =
                            (MoveReason::Chosen, Some(server.clone()), Some(reply));
                        self.not_before = now;
                        self.wanted = Some(Wanted { why, at: now, to, reply });
                    }
                    None => {
                        let _ = reply.send(no_server(&name, &servers));
                    }
                }
            }
            Wish::Auto => self.course.chosen = None,
        }
    }

    /// Lets people see the state of the reserve.
    fn show(&self) {
        let reserve = self
            .reserve
            .as_ref()
            .map(|reserve| (reserve.server.key(), reserve.answered_at(), reserve.rtt()));
        self.client.shown.reserve(reserve);
    }
}

fn until_it_fails(name: &str) -> String {
    format!("{name}: in use, until it fails")
}

/// The answer to a person who chose a server that there is not.
pub(super) fn no_server(name: &str, servers: &[Arc<RemoteServer>]) -> Reply {
    let names: Vec<_> = servers.iter().map(|server| server.name()).collect();
    Reply::Error(format!("no server is named {name}; there are: {}", names.join(", ")))
}

/// Waits for the end of an attempt, which is taken out then; without one for ever. Cancel safe.
async fn finish(attempt: &mut Option<Attempt<'_>>) -> (MoveReason, Result<Reached, Ended>) {
    let Some((why, race)) = attempt else { return std::future::pending().await };
    let (why, ended) = (*why, race.await);
    *attempt = None;
    (why, ended)
}

async fn hear(reserve: &mut Option<Reserve>) {
    match reserve {
        Some(reserve) => reserve.hear().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
