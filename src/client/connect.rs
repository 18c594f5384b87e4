//! Connects, for ever: one session after the other, and the pauses between them.

use std::{
    mem,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};

use super::{
    Client,
    command::{Chosen, Order, next_choice, no_way},
    course::Course,
    dial::{Round, dial},
    early::Early,
    ended::{Ended, Refusal},
    greeting::{Reached, Terms},
    loss::Loss,
    moving::no_server,
    pauses::{Pause, Pauses},
    rival::Rival,
    servers::RemoteServer,
    session::{Before, Left},
};
use crate::{
    clock,
    daemon::{control::Reply, systemd},
    host::Setup,
    path::{
        handshake::HandshakeError,
        manager::{self, Choice, Dialing, Manager, Settings},
    },
};

/// After a session that lasted so long, the pauses begin anew.
pub(super) const STABLE: Duration = Duration::from_secs(10);

impl Client {
    /// Connects, for ever. Returns only errors of this machine and, to whoever started the client by hand, a
    /// refusal before the first session.
    pub(super) async fn stay_connected(
        &self,
        host: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        let mut manager = Manager::new(Settings::new(&self.config.borrow().paths));
        let mut course = Course::default();
        let mut minds = Minds { manager: &mut manager, course: &mut course, orders };
        let (mut loss, mut before, mut is_goodbye) = (Loss::none(), Before::default(), false);
        let mut pauses = Pauses::default();
        loop {
            self.rest(host, &mut minds).await;
            let begun = clock::now();
            let sessions = self.shown.sessions();
            let ended = self.connect(host, &mut minds, &loss, &mut before).await?;
            self.queue.hold(true);
            if matches!(ended, Ended::Paused) {
                (loss, is_goodbye) = (Loss::none(), false);
                before.forget();
                continue;
            }
            let refusal = ended.refusal(self.key);
            let rival = Rival::of(&ended);
            let has_session = self.shown.sessions() > sessions;
            if has_session {
                let in_use = self.shown.in_use();
                let left = in_use.as_ref().filter(|_| ended.is_goodbye()).map(|it| it.server);
                let (answered, server) = (ended.answered(in_use), before.server());
                loss = Loss { at: clock::now(), server, answered, left };
            }
            if clock::now().duration_since(begun) >= STABLE {
                pauses = Pauses::default();
            }
            let mut pause = pauses.after(&ended, refusal.as_ref());
            let was_goodbye = mem::replace(&mut is_goodbye, ended.is_goodbye());
            let is_sudden = before.lasted() < STABLE && (was_goodbye || !is_goodbye);
            let is_alone = self.servers.all().len() == 1 || rival.is_some();
            if has_session && !is_sudden && !is_alone {
                // The others are not known to be gone.
                pause = None;
            }
            let reason = match (&refusal, rival) {
                (_, Some(rival)) => rival.to_string(),
                (Some(refusal), None) => refusal.in_short(),
                (None, None) => ended.to_string(),
            };
            let refused = pause.is_some() && refusal.as_ref().is_some_and(Refusal::is_proven);
            self.shown.waiting(&reason, refused, pause.map_or(Duration::ZERO, |it| it.longest));
            match refusal {
                // Whoever started it by hand reads this, and mends it at once.
                Some(refusal) if self.shown.sessions() == 0 && !systemd::is_managed() => {
                    return Err(refusal.into());
                }
                Some(_) | None => {}
            }
            self.not_connected(&reason);
            if refused {
                // A server that answers is behind no portal, and the pause may be long.
                self.give_way(false, host).await;
            }
            if let Some(pause) = pause {
                self.sleep_or_change(pause, &mut minds).await;
            }
        }
    }

    /// Logs why there is no connection, once.
    fn not_connected(&self, reason: &str) {
        if self.shown.is_news(reason) {
            warn!(reason, "not connected");
        } else {
            debug!(reason, "not connected");
        }
    }

    /// Waits for the longest of the pause, or less if a network changes or a person chooses a link, but for the
    /// shortest at least.
    async fn sleep_or_change(
        &self,
        Pause { shortest, longest }: Pause,
        Minds { manager, course, orders }: &mut Minds<'_>,
    ) {
        let (mut hints, mut config) = (self.roaming.network.hints(), self.config.subscribe());
        let mut overdrawn = self.roaming.overdrawn.subscribe();
        let chosen = Notify::new();
        let pause = async {
            tokio::time::sleep(shortest).await;
            tokio::select! {
                () = tokio::time::sleep(longest.saturating_sub(shortest)) => {}
                () = hints.hint() => debug!("a network changed: trying at once"),
                () = chosen.notified() => debug!("a person chose: trying at once"),
                _ = config.changed() => debug!("the configuration changed: trying at once"),
                _ = overdrawn.changed() => debug!("a budget changed: trying at once"),
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = self.until_paused() => return,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let answer = self.choose(choice, manager, course).await;
                    if matches!(answer, Reply::Done(_)) {
                        chosen.notify_one();
                    }
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Remembers a person's choice for the connection to come.
    pub(super) async fn choose(
        &self,
        choice: Chosen,
        manager: &mut Manager,
        course: &mut Course,
    ) -> Reply {
        let (choice, done) = match choice {
            Chosen::Server(name) => {
                let servers = self.servers.all();
                let Some(server) = servers.iter().find(|server| server.name() == name) else {
                    return no_server(&name, &servers);
                };
                course.chosen = Some(server.key());
                return Reply::Done(vec![format!("{name}: dialed first, until it fails")]);
            }
            Chosen::Link(Choice { link, pinned }) => {
                let config = self.config.borrow().clone();
                let mut found = Vec::new();
                for server in &*self.servers.all() {
                    let there = server.find(&server.names.known(), &config.paths).await;
                    found.extend(there.unwrap_or_default());
                }
                let links = || found.iter().map(|(candidate, _)| candidate.link.as_str());
                if !links().any(|other| other == link) {
                    return no_way(&link, links());
                }
                let how = match pinned {
                    true => "dialed alone, whatever happens",
                    false => "dialed first, until it fails",
                };
                let done = format!("{link}: {how}");
                (Some(Choice { link, pinned }), done)
            }
            Chosen::Auto => {
                course.chosen = None;
                (None, "the best path is chosen again".into())
            }
            Chosen::AutoLink => (None, "the best path is chosen again".into()),
        };
        // Without a connection there is nothing to do about it yet.
        let _ = manager.handle(manager::Event::Choose(choice), clock::now());
        Reply::Done(vec![done])
    }

    fn why_not_connected(&self) -> String {
        let why = self.shown.last_error().unwrap_or_else(|| "still connecting".into());
        format!("not connected ({why}): the links are tried as it is")
    }

    /// Begins a session with one of the servers.
    async fn dial(
        &self,
        Minds { manager, course, orders }: &mut Minds<'_>,
        loss: &Loss,
    ) -> Result<Reached, Ended> {
        let silent = |error: &HandshakeError| {
            let reason = error.to_string();
            self.shown.silent(&reason);
            self.not_connected(&reason);
        };
        let mut changes = self.servers.changes();
        loop {
            let servers = loss.order(&self.servers.all(), course);
            tokio::select! {
                reached = self.reach(
                    servers,
                    manager.dialing(),
                    loss,
                    true,
                    Arc::default(),
                    &silent,
                ) => return reached,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let _ = reply.send(self.choose(choice, manager, course).await);
                }
                Ok(()) = changes.changed() => debug!("the servers changed: trying anew"),
            }
        }
    }

    /// Races these servers for a session. What waits goes with the first packet, if it `hurries`. While a server is asked for
    /// the session, `is_heard` is set.
    ///
    /// Cancel safe.
    pub(super) async fn reach(
        &self,
        servers: Vec<Arc<RemoteServer>>,
        dialing: &Dialing,
        loss: &Loss,
        hurries: bool,
        is_heard: Arc<AtomicBool>,
        silent: &(dyn Fn(&HandshakeError) + Sync),
    ) -> Result<Reached, Ended> {
        let early = Early::take(self, hurries);
        let round = Round {
            servers,
            dialing: dialing.clone(),
            early: early.datagrams(),
            loss: loss.clone(),
            terms: Terms { moves: self.servers.all().len() > 1, ..self.terms },
            is_heard,
            silent,
        };
        let reached = dial(round, self.config.subscribe()).await?;
        if reached.connected.early_arrived {
            early.arrived();
        }
        Ok(reached)
    }

    /// Sessions, one taking the place of the other, from the first attempt to an end that none follows. An error is one of
    /// this machine's.
    async fn connect<'a>(
        &'a self,
        host: &mut impl Setup,
        minds: &mut Minds<'_>,
        loss: &Loss,
        before: &mut Before<'a>,
    ) -> anyhow::Result<Ended> {
        self.shown.connecting();
        // A change during the dialing is news to the roamer.
        let config = self.config.subscribe();
        let dialed = tokio::select! {
            dialed = self.dial(minds, loss) => dialed,
            never = self.look_for_portals(host) => match never {},
            never = before.remains.run() => match never {},
            () = self.until_paused() => return Ok(Ended::Paused),
        };
        let mut reached = match dialed {
            Ok(reached) => reached,
            Err(ended) => return Ok(ended),
        };
        loop {
            let session = self.session(host, minds, config.clone(), reached, before);
            match session.await? {
                Left::Ended(ended) => return Ok(ended),
                Left::Moved(moved) => reached = moved.reached,
            }
        }
    }
}

/// What stays from session to session and decides what is done, and who may have a say.
pub(super) struct Minds<'a> {
    pub(super) manager: &'a mut Manager,
    pub(super) course: &'a mut Course,
    pub(super) orders: &'a mut mpsc::Receiver<Order>,
}

#[cfg(test)]
mod tests;
