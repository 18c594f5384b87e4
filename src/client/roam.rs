//! Keeps a connection on the best path: between the policy ([`Manager`]) on one side and netlink,
//! probes and the connection's socket on the other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use quinn::Connection;
use tokio::{
    sync::{Notify, mpsc, watch},
    time,
};
use tracing::{debug, info, warn};

use super::{
    command::{Inquiry, Order, What, no_way},
    milliseconds,
    portals::Portals,
    view::{Shown, ShownPath},
};
use crate::{
    clock,
    daemon::{control::Reply, systemd::Heart},
    link::{
        candidate::Candidate,
        monitor,
        wake::{Alarm, Wake},
    },
    path::{
        PathKey as Key, Reason,
        forgotten::{Advice, Forgotten},
        handshake::{Connected, Handshake, Underlay},
        manager::{Action, Choice, Event, Manager, Settings},
        network::Network,
        probe::Probe,
        servers::Names,
        socket::{PathId, PathSocket},
        switch_meter::{SwitchMeter, Switched},
    },
    quic::{
        self,
        congestion::CongestionHandle,
        liveness::{Liveness, Signs, Verdict, WATCH, silence_limit},
        session::MessageStream,
    },
    task,
    tunnel::queue::Queue,
    wire::message::{Message, Repeat},
};

/// How long the old path's socket is still read after a switch: longer than a packet is under way.
const GRACE: Duration = Duration::from_secs(3);
/// How many packets introduce a path: enough that the server may answer with ten.
const INTRODUCTION: usize = 4;
/// A path's window is remembered for so long: other people use the network, too.
const WINDOW_MEMORY: Duration = Duration::from_secs(600);
/// From one look at links and routes to the next, at least.
const SETTLE: Duration = Duration::from_millis(20);
/// Answers of probes that wait to be read.
const ANSWERS: usize = 32;

/// What stays from connection to connection.
pub(super) struct Roaming {
    pub(super) network: Arc<dyn Network>,
    pub(super) names: Arc<Names>,
    pub(super) probes: Handshake,
    pub(super) heart: Heart,
    pub(super) settings: ArcSwap<Settings>,
    pub(super) congestion: CongestionHandle,
    /// The configuration has changed.
    pub(super) changed: Notify,
}

/// One connection on its way from path to path.
pub(super) struct Roamer<'a> {
    roaming: &'a Roaming,
    shown: &'a Shown,
    queue: &'a Queue,
    messages: MessageStream,
    orders: &'a mut mpsc::Receiver<Order>,
    inquiries: Vec<Inquiry>,
    servers: Vec<SocketAddr>,
    renamed: watch::Receiver<Vec<SocketAddr>>,
    connection: Connection,
    underlay: Underlay,
    manager: &'a mut Manager,
    candidates: BTreeMap<Key, Candidate>,
    open: HashMap<Key, PathId>,
    /// Old paths that are still read, until when.
    closing: Vec<(Instant, Key, PathId)>,
    /// How much could be in flight on paths that were left, and when that was.
    windows: HashMap<Key, (Instant, u64)>,
    /// The connection id is still the one of an old path.
    linkable: bool,
    /// The manager knows the active path's round trip.
    is_measured: bool,
    portals: Portals,
    probes: HashMap<Key, Probe>,
    answers: mpsc::Receiver<Event>,
    answered: mpsc::Sender<Event>,
    liveness: Liveness,
    forgotten: Forgotten,
    meter: SwitchMeter,
    /// When the server was last heard on an active path that is gone.
    heard: Option<Instant>,
    /// Since when the server's packets may not have arrived; it is not told yet.
    unheard: Option<Instant>,
}

impl<'a> Roamer<'a> {
    pub(super) fn new(
        roaming: &'a Roaming,
        shown: &'a Shown,
        queue: &'a Queue,
        manager: &'a mut Manager,
        messages: MessageStream,
        orders: &'a mut mpsc::Receiver<Order>,
        connected: Connected,
    ) -> Self {
        let Connected { connection, underlay, path, candidate, .. } = connected;
        let (answered, answers) = mpsc::channel(ANSWERS);
        let first = Key::from(&candidate);
        manager.set_settings(**roaming.settings.load());
        Self {
            roaming,
            shown,
            queue,
            messages,
            orders,
            inquiries: Vec::new(),
            servers: roaming.names.known(),
            renamed: roaming.names.changes(),
            connection,
            underlay,
            manager,
            candidates: [(first, candidate)].into(),
            open: [(first, path)].into(),
            closing: Vec::new(),
            windows: HashMap::new(),
            linkable: false,
            is_measured: false,
            portals: Portals::default(),
            probes: HashMap::new(),
            answers,
            answered,
            liveness: Liveness::default(),
            forgotten: Forgotten::default(),
            meter: SwitchMeter::default(),
            heard: None,
            unheard: None,
        }
    }

    /// Watches, asks and switches, for as long as it is polled and the server knows the connection.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut hints = self.roaming.network.hints();
        let first = self.open.keys().next().copied();
        self.look().await;
        if let Some(first) = first {
            self.tell(Event::Connected(first));
        }
        let socket = self.underlay.socket().clone();
        let mut wake = Wake::new(monitor::POLL);
        let alarm = Alarm::set()?;
        while !self.forgotten.is_certain() {
            self.roaming.heart.beat();
            if wake.slept() {
                info!("woke up");
                self.tell(Event::Woke);
            }
            self.queue.hold(self.liveness.is_suspected() || self.manager.active().is_none());
            if let Some(since) = self.unheard.take() {
                self.repeat(since);
            }
            let deadline = self.manager.next_deadline().map(time::Instant::from_std);
            let active = self.manager.active();
            let (connection, congestion) = (&self.connection, &self.roaming.congestion);
            let watching = self.liveness.is_suspected()
                || self.meter.awaited().is_some()
                || !self.closing.is_empty()
                || !self.is_measured;
            tokio::select! {
                () = hints.changed() => {
                    self.look().await;
                    time::sleep(SETTLE).await;
                }
                Ok(()) = self.renamed.changed() => self.find_servers().await,
                Some(event) = self.answers.recv() => {
                    self.pass_on(&event);
                    if let Event::Answered(key, _) = event {
                        self.forgotten.answered(key);
                    }
                    let measured = match event {
                        Event::Answered(key, Some(_)) => Some(key),
                        _ => None,
                    };
                    self.tell(event);
                    // Its connection would only cost keep-alives.
                    if let Some(key) = measured.filter(|key| !self.is_asked_again(*key)) {
                        self.probes.remove(&key);
                    }
                }
                key = self.portals.found() => {
                    if let Some(candidate) = self.candidates.get(&key) {
                        self.shown.portal(&candidate.link);
                    }
                    self.tell(Event::Portal(key));
                }
                Some(order) = self.orders.recv() => self.obey(order),
                message = self.messages.received() => self.heed(message),
                () = self.roaming.changed.notified() => self.renew().await,
                () = self.roaming.heart.asked() => {}
                // Whether it slept is seen when the loop comes round.
                rings = alarm.rings() => rings?,
                Some(error) = self.underlay.errors.recv() => {
                    debug!(path = %error.path, error = %error.error, "path error");
                    if let Some(key) = self.key_of(error.path) {
                        self.tell(Event::SendFailed(key));
                    }
                }
                () = overdue(connection, &socket, congestion),
                    if active.is_some() && !self.liveness.is_suspected() => self.judge(),
                () = time::sleep(WATCH), if watching => self.watch(),
                () = sleep_until(deadline) => self.tell(None),
            }
        }
        // To say goodbye to a server that knows us after all would end what the next connection takes over.
        self.underlay.socket().close_all();
        Ok(())
    }

    /// Lets those who asked by hand hear an answer.
    fn pass_on(&mut self, answer: &Event) {
        self.inquiries.retain_mut(|inquiry| {
            inquiry.hear(answer);
            !inquiry.finish()
        });
    }

    /// What the server says after its welcome: nothing so far.
    fn heed(&self, message: Message) {
        match message {
            Message::Hello(_) | Message::Welcome(_) | Message::Repeat(_) => self.messages.refuse(),
        }
    }

    /// The configuration changed.
    async fn renew(&mut self) {
        self.manager.set_settings(**self.roaming.settings.load());
        // A resolver may take seconds, and paths can fail meanwhile; `renamed` tells when it has answered.
        let names = self.roaming.names.clone();
        task::detached("names", async move {
            if let Err(error) = names.resolve().await {
                warn!(%error, "the server's addresses stay as they were");
            }
        });
        self.look().await;
    }

    /// The server's names stand for other addresses. The one in use stays for as long as it works: the
    /// resolver may be a captive portal's.
    async fn find_servers(&mut self) {
        let mut servers = self.renamed.borrow_and_update().clone();
        let in_use = self.manager.active().map(|active| active.server);
        if let Some(in_use) = in_use
            && !servers.contains(&in_use)
        {
            servers.insert(0, in_use);
        }
        info!(?servers, "the server's addresses changed");
        self.servers = servers;
        self.look().await;
    }

    fn obey(&mut self, Order { what, reply }: Order) {
        // Whoever asked may not wait for the answer any more.
        let _ = match what {
            What::Auto => {
                self.tell(Event::Choose(None));
                reply.send(Reply::Done(vec!["the best path is chosen again".into()]))
            }
            What::Switch { link, pin } => match self.link(&link) {
                Ok(index) => {
                    let choice = Choice { link: link.clone(), pinned: pin };
                    self.tell(Event::Choose(Some(choice)));
                    let active = self.manager.active().is_some_and(|key| key.link == index);
                    let when = if active { "in use" } else { "used as soon as it answers" };
                    let until = if pin { "whatever happens" } else { "until it fails" };
                    reply.send(Reply::Done(vec![format!("{link}: {when}, {until}")]))
                }
                Err(error) => reply.send(error),
            },
            What::Probe { link } => {
                let index = match link.as_deref().map(|link| self.link(link)).transpose() {
                    Ok(index) => index,
                    Err(error) => {
                        let _ = reply.send(error);
                        return;
                    }
                };
                let mut inquiry = Inquiry::new(reply);
                for (key, ..) in self.manager.paths() {
                    if index.is_none_or(|index| index == key.link)
                        && let Some(candidate) = self.candidates.get(&key)
                    {
                        let known = self.manager.active() == Some(key);
                        let rtt = self.connection.rtt();
                        let rtt = self.roaming.congestion.round_trip(rtt).unwrap_or(rtt);
                        inquiry.about(key, candidate, known.then_some(rtt));
                    }
                }
                self.tell(Event::Check(link));
                if !inquiry.finish() {
                    self.inquiries.push(inquiry);
                }
                return;
            }
        };
    }

    /// The index of a link that could carry the tunnel.
    fn link(&self, name: &str) -> Result<u32, Reply> {
        let links: Vec<_> =
            self.manager.paths().filter_map(|(key, ..)| self.candidates.get(&key)).collect();
        if let Some(found) = links.iter().find(|candidate| candidate.link == name) {
            return Ok(found.index);
        }
        Err(no_way(name, links.iter().map(|candidate| candidate.link.as_str())))
    }

    /// Finds out which candidates there are.
    async fn look(&mut self) {
        let found = match self.roaming.network.candidates(&self.servers).await {
            Ok(found) => found,
            Err(error) => return warn!(%error, "the candidates stay as they were"),
        };
        self.candidates.extend(found.iter().map(|(it, _)| (Key::from(it), it.clone())));
        self.tell(Event::Candidates(found));
        let open = &self.open;
        let known: HashSet<_> = self.manager.paths().map(|(key, ..)| key).collect();
        self.candidates.retain(|key, _| known.contains(key) || open.contains_key(key));
        self.portals.retain(|key| known.contains(key));
        self.windows.retain(|_, (at, _)| clock::now().duration_since(*at) < WINDOW_MEMORY);
    }

    fn tell(&mut self, event: impl Into<Option<Event>>) {
        let event = event.into();
        let measured = self.manager.active().zip(self.roaming.congestion.shortest_round_trip());
        let mut actions = Vec::new();
        if let Some((active, rtt)) = measured {
            self.is_measured = true;
            actions = self.manager.handle(Event::Measured(active, rtt), clock::now());
        }
        actions.extend(self.manager.handle(event, clock::now()));
        for action in actions {
            match action {
                Action::Ask(key) => self.ask(key),
                Action::Forget(key) => {
                    self.probes.remove(&key);
                    self.pass_on(&Event::Refused(key));
                    if self.manager.active() != Some(key) {
                        self.heard = self.last_heard().or(self.heard);
                        self.close_later(key);
                    }
                }
                Action::Switch(key, reason) => self.switch(key, reason),
            }
        }
        let now = clock::now();
        if !self.manager.is_in_doubt() {
            self.liveness.trust();
        } else if self.liveness.suspect(self.last_heard().unwrap_or(now), now) {
            self.ask_again(now);
        }
        let paths = self.manager.paths().filter_map(|(key, condition, rtt)| {
            let candidate = self.candidates.get(&key)?.clone();
            self.portals.heed(key, condition, &candidate, &self.roaming.network);
            Some(ShownPath {
                candidate,
                condition,
                rtt,
                socket: self.open.get(&key).copied(),
                measured: self.probes.get(&key).and_then(Probe::measured),
                portal: self.manager.is_behind_portal(key),
                why: self.manager.why(key, clock::now()),
            })
        });
        self.shown.paths(paths.collect());
    }

    fn ask(&mut self, key: Key) {
        if self.manager.active() == Some(key) {
            return quic::ask(&self.connection);
        }
        self.probe(key);
    }

    fn probe(&mut self, key: Key) {
        let Some(candidate) = self.candidates.get(&key) else { return };
        let probe = self.probes.entry(key).or_insert_with(|| {
            Probe::start(
                self.roaming.network.clone(),
                self.roaming.probes.clone(),
                candidate.clone(),
                key,
                self.roaming.settings.load().probe_timeout,
                self.answered.clone(),
            )
        });
        probe.ask();
    }

    /// Lets the server follow to another path. Until it has validated that one it sends at most three
    /// times what came over it, in packets of 1200 bytes (RFC 9000 §8.1, §8.2.1): a lone small packet
    /// would keep it quiet for a round trip.
    fn introduce(&self) {
        quic::pad(&self.connection, INTRODUCTION);
    }

    fn switch(&mut self, to: Key, reason: Reason) {
        let socket = self.underlay.socket().clone();
        let old = socket.active();
        let heard = self.last_heard().or(self.heard.take());
        let unheard_since = socket.unheard_since();
        let from = old.and_then(|old| self.key_of(old));
        self.roaming.congestion.measure_from(clock::now());
        self.is_measured = false;
        let Some(id) = self.path(to) else { return };
        debug!(local = %to.local, server = %to.server, %reason, "switching");
        socket.switch(id);
        self.closing.retain(|(_, key, _)| *key != to);
        // What is in flight on the old path must neither fill the new one's window nor shrink it.
        if let Some(from) = from {
            let window = self.connection.stats().path.cwnd;
            self.windows.insert(from, (clock::now(), window));
        }
        match self.windows.get(&to) {
            Some((at, window)) if clock::now().duration_since(*at) < WINDOW_MEMORY => {
                self.roaming.congestion.restart_warm(*window);
            }
            _ => self.roaming.congestion.restart_cold(),
        }
        self.roaming.congestion.expect_from(clock::now());
        self.linkable = reason.is_soft();
        if !reason.is_soft() {
            self.unheard = heard;
            self.rotate();
        }
        self.introduce();
        self.probes.remove(&to);
        if let Some(from) = from.filter(|from| *from != to) {
            self.close_later(from);
        }
        let from = from.and_then(|from| self.candidates.get(&from).cloned());
        if let Some(to) = self.candidates.get(&to).cloned() {
            self.meter.begin(from, to, reason, unheard_since, clock::now());
        }
    }

    /// Says again what may not have arrived since the server was last heard, and lets the server do the
    /// same.
    fn repeat(&mut self, heard: Instant) {
        let active = self.manager.active();
        let new = self.manager.paths().find(|(key, ..)| Some(*key) == active).and_then(|it| it.2);
        let rtt = self.connection.rtt().max(new.unwrap_or_default());
        // What was on its way when the server was last heard may be lost, too.
        let since = heard.checked_sub(rtt).unwrap_or(heard);
        let packets = self.queue.repeat(since);
        let ago = clock::now().duration_since(since) + rtt / 2;
        debug!(packets, ago = %milliseconds(ago), "repeating");
        let milliseconds = u32::try_from(ago.as_millis()).unwrap_or(u32::MAX);
        self.messages.tell(&Message::Repeat(Repeat { milliseconds }));
    }

    /// Goes on under another connection id, so that networks can't tell that both paths belong together:
    /// one id must not be used from two local addresses (RFC 9000 §9.5). A soft switch breaks that rule
    /// until the old path has drained, since what the server still sends to the old id would be lost.
    fn rotate(&mut self) {
        self.linkable = false;
        let socket = self.underlay.socket().clone();
        if let Err(error) = self.underlay.endpoint().rebind_abstract(socket) {
            debug!(%error, "rebind");
        }
    }

    /// When the server was last heard on the path that sends go by.
    fn last_heard(&self) -> Option<Instant> {
        let socket = self.underlay.socket();
        socket.stats(socket.active()?)?.last_heard
    }

    /// The socket of a path, opened if need be.
    fn path(&mut self, key: Key) -> Option<PathId> {
        if let Some(id) = self.open.get(&key) {
            return Some(*id);
        }
        let candidate = self.candidates.get(&key)?;
        match self.roaming.network.bind(candidate) {
            Ok(udp) => {
                let id = self.underlay.socket().open(udp, candidate.server);
                self.open.insert(key, id);
                Some(id)
            }
            Err(error) => {
                debug!(link = candidate.link, %error, "can't open a socket");
                // Full means that other news of paths comes first, and this is found out again.
                let _ = self.answered.try_send(Event::SendFailed(key));
                None
            }
        }
    }

    fn close_later(&mut self, key: Key) {
        if let Some(id) = self.open.get(&key) {
            self.closing.push((clock::now() + GRACE, key, *id));
        }
    }

    /// What is seen only by looking: doubt that ends, a switch that is over, a grace period.
    fn watch(&mut self) {
        let socket: Arc<_> = self.underlay.socket().clone();
        let now = clock::now();
        if self.liveness.is_suspected() {
            self.judge();
        }
        if !self.is_measured && self.roaming.congestion.shortest_round_trip().is_some() {
            self.tell(None);
        }
        let active = self.manager.active();
        for (_, key, id) in self.closing.extract_if(.., |(at, ..)| *at <= now) {
            if active != Some(key) && self.open.get(&key) == Some(&id) {
                self.open.remove(&key);
                socket.close(id);
            }
        }
        if self.linkable && self.closing.is_empty() {
            self.rotate();
        }
        self.measure_switch();
    }

    fn measure_switch(&mut self) {
        let to = self.meter.awaited().and_then(|to| self.open.get(&Key::from(to)));
        let stats = to.and_then(|id| self.underlay.socket().stats(*id));
        let heard = stats.and_then(|stats| stats.last_heard);
        let Some(switched) = heard.and_then(|heard| self.meter.heard(heard)) else { return };
        info!(
            from = switched.from.as_ref().map_or("none", |from| from.link.as_str()),
            to = switched.to.link,
            server = %switched.to.server,
            reason = %switched.reason,
            gap = %milliseconds(switched.gap),
            "switched"
        );
        let Switched { from, to, reason, gap } = &switched;
        self.shown.switched(from.as_ref(), to, *reason, *gap);
    }

    /// Does what follows from the silence of the active path, or from its end.
    fn judge(&mut self) {
        let Some(active) = self.manager.active() else { return };
        let socket = self.underlay.socket().clone();
        let (signs, now) = (signs(&socket, &self.roaming.congestion), clock::now());
        let limit = silence_limit(self.connection.rtt());
        match self.liveness.verdict(&signs, limit, now) {
            Some(Verdict::Idle) => socket.expect_nothing(),
            Some(Verdict::Ping) => {
                socket.expect_nothing();
                quic::ping(&self.connection);
            }
            Some(Verdict::Suspect) => self.tell(Event::Silent(active)),
            Some(Verdict::Nudge) => {
                quic::nudge(&self.connection, &self.roaming.congestion);
                self.probes.values().for_each(Probe::hurry);
                self.ask_again(now);
            }
            Some(Verdict::Trust) => self.trust(active),
            Some(Verdict::LostSince(heard)) => {
                self.roaming.congestion.restart_cold();
                self.unheard = Some(heard);
                self.trust(active);
            }
            None => {}
        }
    }

    fn trust(&mut self, active: Key) {
        self.probes.remove(&active);
        self.tell(Event::Heard(active));
    }

    /// Asks over the silent path what the connection and a probe are to ask.
    fn ask_again(&mut self, now: Instant) {
        let Some(active) = self.manager.active() else { return };
        match self.forgotten.ask(active, self.roaming.congestion.newest_acknowledged(), now) {
            Advice::Nudge => {}
            Advice::AskBoth => {
                self.introduce();
                self.probe(active);
            }
            Advice::GiveUp => debug!("the server does not know the connection any more"),
        }
    }

    /// Whether a question over this path is due, now or later.
    fn is_asked_again(&self, key: Key) -> bool {
        let is_silent = self.liveness.is_suspected() && self.manager.active() == Some(key);
        is_silent || self.manager.is_asked_again(key)
    }

    fn key_of(&self, id: PathId) -> Option<Key> {
        self.open.iter().find(|(_, open)| **open == id).map(|(key, _)| *key)
    }
}

/// What is known of the server's silence.
fn signs(socket: &PathSocket, congestion: &CongestionHandle) -> Signs {
    Signs {
        unheard_since: socket.unheard_since(),
        unacknowledged_since: congestion.unacknowledged_since(),
        owed: congestion.owed(),
        proven_at: congestion.newest_acknowledged(),
    }
}

/// Waits until the server is silent for longer than it should be. Cancel safe.
async fn overdue(connection: &Connection, socket: &PathSocket, congestion: &CongestionHandle) {
    let limit = || silence_limit(connection.rtt());
    loop {
        let Some(at) = signs(socket, congestion).overdue_at(limit()) else {
            socket.went_unheard().await;
            continue;
        };
        let now = clock::now();
        if at <= now {
            return;
        }
        // What is sent meanwhile is not overdue before that.
        time::sleep_until(at.min(now + limit()).into()).await;
    }
}

async fn sleep_until(deadline: Option<time::Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
