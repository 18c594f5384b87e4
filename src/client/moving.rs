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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{oneshot, watch},
    time,
};
use tracing::{debug, info};

use super::{
    Client,
    chance::fraction,
    course::Course,
    ended::Ended,
    greeting::Reached,
    loss::Loss,
    reload::InForce,
    reserve::{Pace, Reserve},
    servers::{InOrder, RemoteServer},
    signs::{Heard, PATIENCE, Wish},
};
use crate::{
    clock,
    daemon::{control::Reply, status::MoveReason},
};

/// The clients of a server that goes away leave it within this time, or a quarter of what it leaves them.
const SPREAD: Duration = Duration::from_secs(2);
/// How long a session that is on its way is waited for when the present one ended.
const CONCLUDE: Duration = Duration::from_secs(3);

/// A session with another server.
pub(super) struct Moved {
    pub(super) reached: Reached,
    pub(super) why: MoveReason,
}

/// A move that is wanted, now or later.
struct Due {
    why: MoveReason,
    to: Vec<Arc<RemoteServer>>,
    at: Instant,
}

/// A race for a session.
struct Attempt<'a> {
    why: MoveReason,
    to: Vec<Arc<RemoteServer>>,
    /// Whether one of them is asked for a session.
    is_heard: Arc<AtomicBool>,
    race: BoxFuture<'a, Result<Reached, Ended>>,
}

/// What a person chose, until there is an answer.
struct Asked {
    to: Arc<RemoteServer>,
    reply: oneshot::Sender<Reply>,
}

/// See the module's documentation.
pub(super) struct Mover<'a> {
    client: &'a Client,
    current: Arc<RemoteServer>,
    pub(super) course: &'a mut Course,
    heard: Heard,
    servers: watch::Receiver<InOrder>,
    config: InForce,
    /// All servers but the one in use, in order.
    reserves: Vec<Reserve>,
    /// When the server in use is left, which said that it will stop.
    leave_at: Option<Instant>,
    asked: Option<Asked>,
    attempt: Option<Attempt<'a>>,
}

/// How urgent a reason is. A move for a more urgent one does not wait for an attempt at another server.
fn rank(why: MoveReason) -> u8 {
    match why {
        MoveReason::Silent | MoveReason::Removed | MoveReason::Ended => 0,
        MoveReason::Chosen => 1,
        MoveReason::GoesAway => 2,
        MoveReason::Preferred => 3,
    }
}

impl<'a> Mover<'a> {
    pub(super) fn new(
        client: &'a Client,
        current: Arc<RemoteServer>,
        course: &'a mut Course,
        heard: Heard,
    ) -> Self {
        let (servers, config) = (client.servers.changes(), client.config.subscribe());
        Self {
            client,
            current,
            course,
            heard,
            servers,
            config,
            reserves: Vec::new(),
            leave_at: None,
            asked: None,
            attempt: None,
        }
    }

    /// Runs until there is a session with another server.
    pub(super) async fn run(&mut self) -> Moved {
        self.choose_reserves();
        loop {
            let (unreachable, now) = (self.unreachable(), clock::now());
            self.begin_attempt(now);
            self.show();
            let later = self.due(now).into_iter().map(|due| due.at).filter(|at| *at > now).min();
            let ask = self.next_question();
            tokio::select! {
                (attempt, ended) = finish(&mut self.attempt) => match ended {
                    Ok(reached) => return self.arrive(reached, attempt.why),
                    Err(ended) => self.fail(&attempt, &ended),
                },
                Some(wish) = self.heard.wishes.recv() => self.take(wish),
                Ok(()) = self.heard.signs.changed() => {
                    if self.unreachable().is_some() && self.unreachable() != unreachable {
                        self.be_urgent();
                    }
                    self.heed_going_away();
                }
                Ok(()) = self.servers.changed() => self.choose_reserves(),
                Ok(()) = self.config.changed() => self.renew(),
                () = hear(&mut self.reserves) => {}
                () = clock::sleep_until(ask.map(|(_, at)| at)) => self.ask(ask).await,
                () = clock::sleep_until(later) => {}
            }
        }
    }

    /// The session with another server that is on its way, now that the present one ended.
    pub(super) async fn conclude(&mut self) -> Option<Moved> {
        self.attempt.as_ref()?;
        let ended = tokio::select! {
            ended = time::timeout(CONCLUDE, finish(&mut self.attempt)) => ended,
            never = self.client.roaming.heart.keep() => match never {},
        };
        match ended {
            Ok((attempt, Ok(reached))) => Some(self.arrive(reached, attempt.why)),
            Ok((attempt, Err(ended))) => {
                self.fail(&attempt, &ended);
                None
            }
            Err(_elapsed) => None,
        }
    }

    /// The configuration changed: reserves that were never asked may be asked from here on.
    fn renew(&mut self) {
        for reserve in &mut self.reserves {
            reserve.next.get_or_insert_with(clock::now);
        }
    }

    fn unreachable(&self) -> Option<(Instant, Duration)> {
        self.heard.signs.borrow().unreachable
    }

    fn choose_reserves(&mut self) {
        let servers = self.servers.borrow_and_update().clone();
        let mut before = std::mem::take(&mut self.reserves);
        for server in servers.iter().filter(|server| server.key() != self.current.key()) {
            let known = before.iter().position(|it| it.server.key() == server.key());
            let mut reserve = match known {
                Some(place) => before.swap_remove(place),
                None => Reserve::new(server.clone()),
            };
            // A resolver beyond the tunnel may not be there any more when the server is needed.
            if known.is_none() && server.names.known().is_empty() {
                server.resolve_apart();
            }
            reserve.server = server.clone();
            self.reserves.push(reserve);
        }
    }

    /// The reserve that is asked next, and when: in order, one more for each that does not answer; all of them while the server
    /// in use is silent.
    fn next_question(&self) -> Option<(usize, Instant)> {
        let is_urgent = self.unreachable().is_some();
        let asked = self.reserves.iter().position(|it| !it.is_failing());
        let count =
            if is_urgent { self.reserves.len() } else { asked.map_or(usize::MAX, |it| it + 1) };
        let next = self.reserves.iter().enumerate().take(count);
        next.filter_map(|(place, it)| Some((place, it.next?))).min_by_key(|(_, at)| *at)
    }

    /// The server in use is silent: the others are asked at once where that costs next to nothing, and over all links a moment
    /// later.
    fn be_urgent(&mut self) {
        for reserve in &mut self.reserves {
            reserve.hurry();
            reserve.next = Some(clock::now() + PATIENCE);
        }
    }

    async fn ask(&mut self, question: Option<(usize, Instant)>) {
        let unreachable = self.unreachable();
        let config = self.config.borrow().clone();
        let pinned = self.heard.signs.borrow().dialing.pinned().map(str::to_owned);
        let Some(reserve) = question.and_then(|(place, _)| self.reserves.get_mut(place)) else {
            return;
        };
        let pace = match unreachable {
            Some((since, _)) if !reserve.has_answered_since(since) => Pace::Urgent,
            _ => Pace::Warm,
        };
        reserve.ask(pace, &config.paths, pinned.as_deref()).await;
    }

    /// The server in use said that it will stop.
    fn heed_going_away(&mut self) {
        let goes_away = self.heard.signs.borrow().goes_away;
        if let Some(within) = goes_away.filter(|_| self.leave_at.is_none()) {
            info!(server = self.current.name(), "the server will stop");
            self.course.goes_away(self.current.key(), within);
            let spread = SPREAD.min(within / 4).mul_f32(fraction());
            self.leave_at = Some(clock::now() + spread);
        }
    }

    /// All moves that are wanted, now or later, the most urgent one first.
    fn due(&self, now: Instant) -> Vec<Due> {
        let others = || self.reserves.iter();
        let server = |reserve: &Reserve| reserve.server.clone();
        let silent = self.unreachable().and_then(|(since, patience)| {
            let to = others().filter(|it| it.has_answered_since(since)).map(server).collect();
            self.due_at(MoveReason::Silent, to, since + patience)
        });
        let asked = self.asked.as_ref();
        let asked =
            asked.map(|it| Due { why: MoveReason::Chosen, to: vec![it.to.clone()], at: now });
        let stays = |it: &&Reserve| !self.course.is_leaving(it.server.key());
        let goes_away = self.leave_at.and_then(|at| {
            self.due_at(MoveReason::GoesAway, others().filter(stays).map(server).collect(), at)
        });
        let is_there = self.servers.borrow().iter().any(|it| it.key() == self.current.key());
        let removed = (!is_there).then(|| others().map(server).collect());
        let removed = removed.and_then(|to| self.due_at(MoveReason::Removed, to, now));
        // One that still drains closes the reserve's connection, so one that answers steadily was started again.
        let back = others().find(|it| self.is_preferred(it));
        let back = back.and_then(|it| self.due_at(MoveReason::Preferred, vec![server(it)], now));
        [silent, removed, asked, goes_away, back].into_iter().flatten().collect()
    }

    /// A move to those of these servers that are not left alone, at this moment or when one is not.
    fn due_at(&self, why: MoveReason, to: Vec<Arc<RemoteServer>>, at: Instant) -> Option<Due> {
        let from =
            |it: &RemoteServer| self.course.left_alone_until(it.key()).map_or(at, |it| it.max(at));
        let at = to.iter().map(|it| from(it)).min()?;
        let mut to: Vec<_> = to.iter().filter(|it| from(it) <= at).cloned().collect();
        to.sort_by_key(|it| self.course.is_leaving(it.key()));
        Some(Due { why, to, at })
    }

    /// Whether the session is to return to this server: it is preferred, and has just answered for long.
    fn is_preferred(&self, reserve: &Reserve) -> bool {
        let servers = self.servers.borrow();
        let place = |key| servers.iter().position(|server| server.key() == key);
        let is_chosen = self.course.chosen == Some(self.current.key());
        let is_before = place(reserve.server.key()) < place(self.current.key());
        !is_chosen
            && is_before
            && self.unreachable().is_none()
            && reserve.is_steady(self.course.steady())
    }

    /// Begins the move that is due, unless one that is as urgent, or leads to the same server, is under way.
    fn begin_attempt(&mut self, now: Instant) {
        if let Some(attempt) = &self.attempt
            && attempt.why == MoveReason::Silent
            && self.unreachable().is_none()
            && !attempt.is_heard.load(Relaxed)
        {
            // The server in use answers again.
            self.attempt = None;
        }
        let Some(Due { why, to, .. }) = self.due(now).into_iter().find(|due| due.at <= now) else {
            return;
        };
        if let Some(attempt) = &self.attempt {
            let leads_there = to.iter().any(|it| attempt.to.iter().any(|at| at.key() == it.key()));
            let leads_there = leads_there && (why != MoveReason::Chosen || attempt.to.len() == 1);
            if rank(attempt.why) <= rank(why) || leads_there {
                return;
            }
        }
        let is_for_all = why == MoveReason::Chosen
            || self.asked.as_ref().is_none_or(|it| to.iter().any(|to| to.key() == it.to.key()));
        if !is_for_all {
            self.answer(Err("the server in use is silent: another one takes its place".into()));
        }
        let names: Vec<_> = to.iter().map(|server| server.name()).collect();
        debug!(%why, ?names, "a session with another server is wanted");
        let (client, dialing) = (self.client, self.heard.signs.borrow().dialing.clone());
        let (servers, is_heard) = (to.clone(), Arc::<AtomicBool>::default());
        let heard = is_heard.clone();
        let race = Box::pin(async move {
            let (loss, hurries) = (Loss::none(), why == MoveReason::Silent);
            let reached = client.reach(servers, &dialing, &loss, hurries, heard, &|_| ()).await?;
            client.check(&reached).await?;
            Ok(reached)
        });
        self.attempt = Some(Attempt { why, to, is_heard, race });
    }

    /// Answers the person who asked for a server.
    fn answer(&mut self, done: Result<String, String>) {
        if let Some(Asked { reply, .. }) = self.asked.take() {
            let _ = reply.send(done.map_or_else(Reply::Error, |line| Reply::Done(vec![line])));
        }
    }

    /// A session with another server begins.
    fn arrive(&mut self, reached: Reached, mut why: MoveReason) -> Moved {
        let server = reached.server.clone();
        self.course.succeed(server.key());
        match &self.asked {
            Some(asked) if asked.to.key() == server.key() => {
                why = MoveReason::Chosen;
                self.course.chosen = Some(server.key());
                self.answer(Ok(until_it_fails(server.name())));
            }
            Some(_) => self.answer(Err(format!("{} took the session meanwhile", server.name()))),
            None => {}
        }
        Moved { reached, why }
    }

    fn fail(&mut self, Attempt { why, to, .. }: &Attempt<'_>, ended: &Ended) {
        debug!(%why, reason = %ended, "no session with another server");
        for server in to {
            self.course.fail(server.key(), ended.is_refusal());
        }
        if let Some(asked) = &self.asked
            && to.iter().any(|server| server.key() == asked.to.key())
        {
            self.answer(Err(ended.to_string()));
        }
        if *why == MoveReason::Preferred {
            self.course.leave(Duration::ZERO);
            // They have to answer for long again.
            for reserve in &mut self.reserves {
                reserve.begin_anew();
            }
        }
    }

    fn take(&mut self, wish: Wish) {
        // What somebody chose before is not wanted any more.
        self.answer(Err("somebody chose something else meanwhile".into()));
        self.attempt.take_if(|attempt| rank(attempt.why) >= rank(MoveReason::Chosen));
        match wish {
            Wish::Go { name, reply } => {
                let servers = self.servers.borrow().clone();
                match servers.iter().find(|server| server.name() == name) {
                    Some(server) if server.key() == self.current.key() => {
                        self.course.chosen = Some(server.key());
                        let _ = reply.send(Reply::Done(vec![until_it_fails(&name)]));
                    }
                    Some(server) => self.asked = Some(Asked { to: server.clone(), reply }),
                    None => {
                        let _ = reply.send(no_server(&name, &servers));
                    }
                }
            }
            Wish::Auto => self.course.chosen = None,
        }
    }

    /// Lets people see the state of the reserves.
    fn show(&self) {
        let is_asked = |place: usize| self.reserves[..place].iter().all(Reserve::is_failing);
        let reserves = self.reserves.iter().enumerate().filter(|(place, _)| is_asked(*place));
        let shown = reserves.map(|(_, it)| (it.server.key(), it.answered_at(), it.rtt()));
        self.client.shown.reserves(shown.collect());
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
async fn finish<'a>(attempt: &mut Option<Attempt<'a>>) -> (Attempt<'a>, Result<Reached, Ended>) {
    let ended = match attempt {
        Some(attempt) => (&mut attempt.race).await,
        None => std::future::pending().await,
    };
    match attempt.take() {
        Some(attempt) => (attempt, ended),
        None => std::future::pending().await,
    }
}

/// Takes in the next answer of any of them; without any it waits for ever. Cancel safe.
async fn hear(reserves: &mut [Reserve]) {
    if reserves.is_empty() {
        return std::future::pending().await;
    }
    let answers = reserves.iter_mut().map(|reserve| Box::pin(reserve.hear()));
    futures_util::future::select_all(answers).await;
}

#[cfg(test)]
mod tests;
