//! Keeps a connection on the best path: the event loop between the policy ([`Manager`]) on one side and netlink,
//! probes and the connection's socket on the other.
//!
//! ```text
//!  netlink, resolver ──▶ candidates ─┐
//!  probes, portals ────▶ answers ────┤                       ┌─▶ PathTable: probe, open, switch, close
//!  socket, controller ─▶ Liveness ───┼─▶ Manager ─▶ actions ─┼─▶ MigratingConnection: ask, window, rotate
//!  people ─────────────▶ orders ─────┘                       └─▶ SwitchMeter: gap
//! ```

mod actions;
mod candidates;
mod orders;
mod silence;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time,
};
use tracing::{debug, info};

use super::{
    command::{Inquiries, Order},
    greeting::Reached,
    home::Home,
    migration::MigratingConnection,
    paths::PathTable,
    reload::InForce,
    servers::{RemoteServer, Servers},
    signs::Signals,
    usage::Overdrawn,
    view::{Said, Shown, milliseconds},
};
use crate::{
    clock,
    daemon::{status::BulkState, systemd::Heart},
    link::{
        candidate::Candidate,
        monitor,
        suspend::{ClockJump, SuspendDetector},
    },
    path::{
        PathKey,
        forgotten::Forgotten,
        handshake::{Connected, Underlay},
        manager::{Event, Manager, Settings},
        network::Network,
        probe::{Prober, Report},
        quality::Watch,
        servers::Known,
        switch_meter::SwitchMeter,
    },
    quic::{
        liveness::{Liveness, WATCH},
        session::MessageStream,
    },
    tunnel::{counters::Counters, pump, queue::Queue},
    wire::message::{Bulk, GoAway, Message},
};

/// From one look at links and routes to the next, at least.
const SETTLE: Duration = Duration::from_millis(20);
/// So long after a switch the best standby is asked if it has no connection, as a path that was left for a better one: it
/// takes copies as soon as it is warm, and its next check is far away. While somebody switches to and fro, nothing is asked.
const WARM_AGAIN: Duration = Duration::from_millis(500);
/// Answers of probes that wait to be read.
const ANSWERS: usize = 32;

/// What stays from connection to connection.
pub(super) struct Roaming {
    pub(super) network: Arc<dyn Network>,
    pub(super) heart: Heart,
    /// Notified for as long as the server is silent: it may have moved.
    pub(super) silence: Notify,
    /// Which links have used up their budgets.
    pub(super) overdrawn: watch::Sender<Overdrawn>,
}

/// What carries the packets of a session, whatever its path.
pub(super) struct Datapath<'a> {
    pub(super) counters: &'a Counters,
    pub(super) queue: &'a Queue,
    pub(super) session: Arc<pump::Session>,
}

/// One connection on its way from path to path.
pub(super) struct Roamer<'a> {
    roaming: &'a Roaming,
    shown: &'a Shown,
    known: &'a Servers,
    server: Arc<RemoteServer>,
    datapath: Datapath<'a>,
    messages: MessageStream,
    orders: &'a mut mpsc::Receiver<Order>,
    config: InForce,
    signals: Signals,
    home: Home,
    inquiries: Inquiries,
    /// Those of the server's names, and the one in use for as long as it works.
    addresses: Vec<SocketAddr>,
    /// Notifies of other addresses of the names.
    renamed: watch::Receiver<Vec<SocketAddr>>,
    /// Notifies of other addresses of those who lead to the server.
    moved: watch::Receiver<Vec<Known>>,
    connection: MigratingConnection,
    underlay: Underlay,
    manager: &'a mut Manager,
    paths: PathTable,
    reports: mpsc::Receiver<Report>,
    liveness: Liveness,
    forgotten: Forgotten,
    meter: SwitchMeter,
    quality: Watch,
    /// The manager knows the active path's round trip.
    is_measured: bool,
    /// Nobody answered since the machine or the process slept: the standby may be as dead as the path in use.
    is_waking: bool,
    /// The path over which the connection was made.
    first: PathKey,
    /// The path over which a server answered that does not know the connection.
    answered: Option<Candidate>,
    /// When the best standby is asked, after a switch.
    warm_at: Option<Instant>,
    /// Notifies of budgets that are used up, or not any more.
    overdrawn: watch::Receiver<Overdrawn>,
    /// Whether the server holds bulk back when it is told to, and what it was told last.
    holds_bulk: bool,
    is_bulk_held: Option<bool>,
}

impl<'a> Roamer<'a> {
    pub(super) fn new(
        (roaming, shown, known): (&'a Roaming, &'a Shown, &'a Servers),
        datapath: Datapath<'a>,
        manager: &'a mut Manager,
        orders: &'a mut mpsc::Receiver<Order>,
        (config, signals): (InForce, Signals),
        home: Home,
        Reached { server, connected, messages, welcome }: Reached,
    ) -> Self {
        let Connected { connection, underlay, path, candidate, .. } = connected;
        let (sender, reports) = mpsc::channel(ANSWERS);
        let (network, socket) = (server.network.clone(), underlay.socket().clone());
        let congestion = server.congestion.clone();
        let first = PathKey::from(&candidate);
        let session = datapath.session.clone();
        manager.set_settings(Settings::new(&config.borrow().paths));
        shown.bulk(BulkState::Flows);
        Self {
            roaming,
            shown,
            datapath,
            messages,
            orders,
            config,
            signals,
            home,
            inquiries: Inquiries::default(),
            known,
            addresses: server.names.known(),
            renamed: server.names.changes(),
            moved: server.detours.changes(),
            connection: MigratingConnection::new(connection, &underlay, congestion),
            underlay,
            manager,
            paths: PathTable::new(
                socket,
                network,
                Prober::new(server.probes.clone(), sender, move |datagram| {
                    session.take_copy(&datagram);
                }),
                (candidate, path),
            ),
            server,
            reports,
            liveness: Liveness::default(),
            forgotten: Forgotten::default(),
            meter: SwitchMeter::default(),
            quality: Watch::default(),
            is_measured: false,
            is_waking: false,
            first,
            answered: None,
            warm_at: None,
            overdrawn: roaming.overdrawn.subscribe(),
            holds_bulk: welcome.holds_bulk,
            is_bulk_held: None,
        }
    }

    /// Watches, asks and switches, for as long as it is polled and the server knows the connection. Returns the path
    /// over which the server answered that it does not.
    pub(super) async fn run(&mut self) -> anyhow::Result<Candidate> {
        let mut hints = self.roaming.network.hints();
        self.refresh_candidates().await;
        self.handle_event(Event::Connected(self.first));
        self.quality.begin(clock::now());
        let mut suspend = SuspendDetector::new(monitor::POLL);
        let jump = ClockJump::watch()?;
        let answered = loop {
            if let Some(answered) = self.answered.take() {
                break answered;
            }
            self.roaming.heart.beat();
            if suspend.was_suspended() {
                info!("woke up");
                self.is_waking = true;
                self.paths.ask_routers_again();
                self.handle_event(Event::Woke);
                // The network may have forgotten it, and TCP retransmits at doubling intervals.
                self.reconnect(Duration::ZERO);
            }
            let active = self.manager.active();
            let is_suspected = self.liveness.is_suspected();
            self.use_standby(false);
            self.look_for_home();
            let is_silent = is_suspected && !self.datapath.session.has_standby();
            self.datapath.queue.hold(is_silent || active.is_none());
            self.hold_bulk_if_overdrawn();
            let is_unreachable = is_suspected || active.is_none() || self.manager.is_in_doubt();
            self.signals.tell(is_unreachable, self.connection.rtt(), self.manager.dialing());
            let (deadline, look) = (self.manager.next_deadline(), self.quality.next_look());
            let warm = self.warm_at;
            tokio::select! {
                () = hints.changed() => {
                    self.refresh_candidates().await;
                    time::sleep(SETTLE).await;
                }
                Ok(()) = self.renamed.changed() => self.find_servers().await,
                Ok(()) = self.moved.changed() => self.refresh_candidates().await,
                silent = self.home.heard() => {
                    // The tunnel carries nothing there that would show it.
                    if let Some(key) = silent.filter(|key| Some(*key) == active) {
                        self.look_for_home();
                        self.handle_event(Event::Silent(key));
                    }
                }
                Some(report) = self.reports.recv() => self.hear(report),
                event = self.paths.answered() => {
                    if let Event::Portal(key) = event
                        && let Some(candidate) = self.paths.candidate(key)
                    {
                        self.shown.portal(&candidate.link);
                    }
                    self.handle_event(event);
                }
                Some(order) = self.orders.recv() => self.obey(order),
                message = self.messages.received() => self.heed(message),
                Ok(()) = self.config.changed() => self.renew().await,
                // The links that may not be used any more are no candidates.
                Ok(()) = self.overdrawn.changed() => self.refresh_candidates().await,
                () = self.roaming.heart.asked() => {}
                // Whether it was a suspend is seen at the next turn of the loop.
                jumped = jump.occurs() => jumped?,
                Some(error) = self.underlay.errors.recv() => {
                    debug!(path = %error.path, error = %error.error, "path error");
                    if let Some(key) = self.paths.with_socket(error.path) {
                        self.fail(key);
                    }
                }
                () = self.connection.overdue(), if !is_suspected && active.is_some() => self.judge(),
                () = time::sleep(WATCH), if self.is_watching() => self.watch(),
                () = self.connection.stirs(), if self.quality.is_resting() => {
                    self.quality.wake(clock::now());
                }
                () = clock::sleep_until(look) => self.look(),
                () = clock::sleep_until(warm) => self.warm(),
                () = clock::sleep_until(deadline) => self.handle_event(None),
            }
        };
        // To say goodbye to a server that knows us after all would end what the next connection takes over.
        self.underlay.socket().close_all();
        Ok(answered)
    }

    /// The connection's endpoint with its sockets as they are, and since when nothing was heard of the server although it was
    /// sent to.
    pub(super) fn end(self) -> (Underlay, Option<Instant>) {
        let unheard_since = self.underlay.socket().unheard_since();
        (self.underlay, unheard_since)
    }

    /// An answer of a probe came, or it failed.
    fn hear(&mut self, report: Report) {
        let Some(event) = report.event() else { return };
        self.inquiries.hear(&event);
        match event {
            Event::Answered(key, _) => {
                self.is_waking = false;
                self.forgotten.answered(key);
                if self.manager.active() == Some(key) {
                    self.reconnect_stalled();
                }
            }
            Event::Refused(key) => self.forgotten.refused(key),
            Event::HasSession(key, false) if self.is_unheard(key) => self.begin_anew(key),
            _ => {}
        }
        let measured = match event {
            Event::Answered(key, Some(_)) | Event::Sampled(key, _) => Some(key),
            _ => None,
        };
        self.handle_event(event);
        // Its connection would only cost keep-alives.
        if let Some(key) = measured.filter(|key| !self.is_asked_again(*key)) {
            self.paths.stop_asking(key);
        }
        self.use_standby(measured.is_some());
    }

    /// Lets copies go over the best standby; the server is told `again` if it may not have heard.
    fn use_standby(&self, again: bool) {
        let standby = self.manager.backup().filter(|_| !self.is_waking);
        let standby = standby.and_then(|(key, is_metered)| {
            let metered = self.config.borrow().paths.metered_copies;
            let per_minute = if is_metered { metered } else { pump::UNMETERED };
            Some((self.paths.standing(key)?, per_minute))
        });
        let standby = standby.as_ref().map(|(connection, per_minute)| (connection, *per_minute));
        self.datapath.session.use_standby(standby, again);
    }

    /// Stands aside, or returns, as the path in use is one at home or not.
    fn look_for_home(&mut self) {
        let active = self.manager.active().filter(|key| self.manager.is_at_home(*key));
        let candidate = active.and_then(|key| self.paths.candidate(key));
        let is_doubted =
            self.is_waking || self.liveness.is_suspected() || self.manager.is_in_doubt();
        let mode = self.config.borrow().home;
        let ask = || (self.server.network.clone(), self.server.probes.clone());
        self.home.look(candidate.filter(|_| !is_doubted), mode, ask);
        self.shown.home(candidate.map(|it| it.link.as_str()));
    }

    /// What the server says after its welcome.
    fn heed(&self, message: Message) {
        match message {
            Message::GoAway(GoAway { within }) => {
                self.signals.goes_away(Duration::from_millis(within.into()));
            }
            Message::Hello(_) | Message::Welcome(_) | Message::Bulk(_) => self.messages.refuse(),
        }
    }

    /// Holds bulk back, here and at the server, while the link in use has used up its budget.
    fn hold_bulk_if_overdrawn(&mut self) {
        let active = self.manager.active();
        let in_use = active.and_then(|active| Some((active, self.paths.candidate(active)?)));
        let Some((active, Candidate { link, .. })) = in_use else { return };
        // What crosses the network of home costs nothing.
        let is_charged = !self.manager.is_at_home(active);
        let held = is_charged && self.roaming.overdrawn.borrow().held.contains(link);
        // The queue, and what the server knows, may be of the session before.
        if self.is_bulk_held.replace(held) == Some(held) {
            return;
        }
        self.datapath.queue.hold_bulk(held);
        self.shown.bulk(match (held, self.holds_bulk) {
            (false, _) => BulkState::Flows,
            (true, true) => BulkState::Held,
            (true, false) => BulkState::HeldHere,
        });
        if self.holds_bulk {
            self.messages.tell(&Message::Bulk(Bulk { held }));
        } else if held {
            info!(link, "the server is of a version that does not hold back what it sends");
        }
    }

    /// Tells the manager, or with `None` that its deadline passed, and does what it wants.
    fn handle_event(&mut self, event: impl Into<Option<Event>>) {
        let event = event.into();
        let measured = self.manager.active().zip(self.connection.shortest_rtt());
        let mut actions = Vec::new();
        if let Some((active, rtt)) = measured {
            self.is_measured = true;
            actions = self.manager.handle(Event::Measured(active, rtt), clock::now());
        }
        actions.extend(self.manager.handle(event, clock::now()));
        for action in actions {
            self.perform(action);
        }
        let now = clock::now();
        if !self.manager.is_in_doubt() {
            self.liveness.trust();
        } else if self.liveness.suspect(now) {
            self.ask_again(now);
        }
        self.show(now);
    }

    /// Looks at what the tunnel's own packets show of the path in use.
    fn look(&mut self) {
        let (counters, now) = (self.datapath.counters, clock::now());
        let look = self.connection.look(counters, self.datapath.queue, now);
        let symptoms = self.quality.look(look, self.manager.floor());
        self.shown.figures(self.quality.figures());
        self.shown.copies(counters.copies(), now);
        let Some(active) = self.manager.active() else { return };
        if self.manager.minds(&symptoms) {
            debug!(?symptoms, "what the path in use shows");
            self.handle_event(Event::Symptoms(active, symptoms));
        }
        // Bursts over it are not wanted any more.
        if !self.is_asked_again(active) {
            self.paths.stop_asking(active);
        }
    }

    fn show(&mut self, now: Instant) {
        self.paths.ask_networks(self.manager.paths(), now);
        let (manager, paths) = (&*self.manager, &self.paths);
        let shown = manager.paths().filter_map(|(key, condition, rtt)| {
            let (portal, why) = (manager.is_behind_portal(key), manager.why(key, now));
            let (metered, choice) = (manager.is_metered(key), manager.choice());
            let said = Said { condition, rtt, portal, metered, why, choice: choice.cloned() };
            paths.shown(key, said)
        });
        self.shown.paths(shown.collect());
    }

    /// Whether something is found out only by looking; see [`Self::watch`].
    fn is_watching(&self) -> bool {
        self.liveness.is_suspected()
            || self.meter.awaited().is_some()
            || self.paths.is_draining()
            || !self.is_measured
    }

    /// Looks for what nobody tells: an answer that ends a suspicion, a round trip, the end of a grace period or of a
    /// switch.
    fn watch(&mut self) {
        if self.liveness.is_suspected() {
            self.judge();
        }
        if !self.is_measured && self.connection.shortest_rtt().is_some() {
            self.handle_event(None);
        }
        let now = clock::now();
        self.paths.close_old(self.manager.active(), now);
        if !self.paths.is_draining() {
            self.connection.drained();
        }
        self.measure_switch();
    }

    /// Asks over the best standby if it has no connection.
    fn warm(&mut self) {
        self.warm_at = None;
        if let Some((standby, _)) = self.manager.backup()
            && self.paths.standing(standby).is_none()
            && self.manager.is_asked_again(standby)
        {
            self.ask(standby);
        }
    }

    fn measure_switch(&mut self) {
        let heard = self.meter.awaited().and_then(|to| self.paths.heard_on(PathKey::from(to)));
        let Some(switched) = heard.and_then(|heard| self.meter.heard(heard)) else { return };
        info!(
            from = %switched.from.as_ref().map_or_else(|| "none".into(), shown),
            to = %shown(&switched.to),
            server = %switched.to.server,
            reason = switched.words,
            gap = %milliseconds(switched.gap),
            "switched"
        );
        self.shown.switched(&switched);
    }

    /// Whether a question over this path is due, now or later.
    fn is_asked_again(&self, key: PathKey) -> bool {
        let is_silent = self.liveness.is_suspected() && self.manager.active() == Some(key);
        is_silent || self.manager.is_asked_again(key)
    }
}

fn shown(Candidate { link, transport, .. }: &Candidate) -> String {
    transport.mark(link)
}

#[cfg(test)]
mod tests;
