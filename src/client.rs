//! The client: one TUN device that stays, and the connection of the day.
//!
//! ```text
//!  TUN ─▶ queue ─▶ pump::uplink ─▶ connection        Dialer: names, links, race ─▶ session
//!  TUN ◀────────── pump::downlink ◀─ connection      Ended: temporary or fatal?
//! ```

pub(crate) mod attempts;
mod chance;
pub(crate) mod command;
mod desired;
pub(crate) mod dial;
pub(crate) mod ended;
mod greeting;
mod migration;
mod offer;
mod paths;
mod pauses;
mod plan;
mod rival;
mod roam;
mod view;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, info, warn};

use self::{
    command::{Order, What, next_choice, no_way},
    desired::{ApplyError, Desired},
    dial::{Dialer, Loss},
    ended::{Ended, Refusal},
    greeting::{Reached, Terms},
    pauses::{Pause, Pauses},
    rival::Rival,
    roam::{Roamer, Roaming},
    view::{Line, Shown},
};
use crate::{
    clock,
    config::{self, ClientConfig, ClientTun, Config},
    daemon::{
        Daemon,
        control::{self, Reply, Request},
        events::{Event, Events},
        signals,
        status::{ClientState, ClientStatus, Status, UnusedLink},
        systemd::{self, Handed, Heart},
    },
    host::{
        Host, Layout, Reports, Seal, Setup, Wish,
        interface::{self, Interface},
        metered,
    },
    identity::PublicKey,
    link::{candidate::Unusable, monitor::Monitor, netlink::Netlink},
    path::{
        handshake::{Handshake, HandshakeError},
        manager::{self, Choice, Manager, Settings},
        network::{Network, kernel::KernelNetwork},
        preference::Preferences,
        servers::ServerAddresses,
    },
    quic::{self, close, congestion::CongestionHandle, tls},
    tunnel::{
        counters::Counters,
        device::{PacketSink, PacketSource},
        egress, ingress,
        inside::Inside,
        pump,
        queue::Queue,
    },
    wire::{message::Welcome, packet::Packet},
};

/// Bytes that wait for the connection, or for a path, at most.
const QUEUE: usize = 1024 * 1024;
/// Bytes of packets that go with the first flight of a handshake: less than a fresh window holds.
const EARLY: usize = 8 * 1024;
/// After a session that lasted so long, the pauses begin anew.
const STABLE: Duration = Duration::from_secs(10);
/// How much more rarely a standby is asked where traffic costs money.
const METERED: u32 = 20;
/// Orders from the control socket that wait.
const ORDERS: usize = 4;
/// From one look for captive portals to the next, while there is no connection. Before the first one a good
/// network has answered.
const PORTAL_PACE: Duration = Duration::from_secs(3);
/// From one look at the server's names to the next, while there is a connection.
const NAMES_PACE: Duration = Duration::from_secs(600);
/// From a change of networks to a look at the names: DHCP and the resolver come after the link.
const NAMES_SETTLE: Duration = Duration::from_secs(5);
/// How long `systemctl start` waits for the first session. There may be no network for hours, and then it
/// would hang, and with it what waits for it at boot.
const START: Duration = Duration::from_secs(5);
/// How long the server has to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The client, apart from this machine's device, links and signals.
pub(crate) struct Client {
    key: PublicKey,
    dialer: Dialer,
    roaming: Roaming,
    tun: Box<dyn PacketSink>,
    queue: Queue,
    counters: Counters,
    links: Option<Arc<KernelNetwork>>,
    config: Mutex<ClientConfig>,
    /// What may come out of the tunnel.
    inside: ArcSwap<Inside>,
    /// What the host has, and refuses.
    reports: Reports,
    /// What the host is made like. Whoever changes the host holds this lock.
    desired: tokio::sync::Mutex<Desired>,
    events: Events,
    interface: String,
    started: SystemTime,
    shown: Shown,
}

/// Runs the client until the process is told to stop.
pub(crate) async fn run(config: ClientConfig, daemon: Daemon) -> anyhow::Result<()> {
    let stop = signals::stop()?;
    let monitor = Monitor::open().context("cannot hear of network changes")?;
    let tun = &config.tun;
    let Handed { tun: device, over } = daemon.tun(&tun.name, tun.mtu, tun.offload)?;
    let interface = Interface::up(Netlink::open_strict()?, &tun.name, tun.mtu).await?;
    let index = interface.index();
    let (mut host, wish) = Host::new(interface, over, daemon.record.clone(), monitor.hints())?;
    host.survey().await;
    // Without its kill switch a tunnel that has one does not run.
    host.lay_out(Desired::new(&config).plan()?.layout).await?;
    let preferences = Preferences::new(&config.paths);
    let links = Arc::new(KernelNetwork::new(
        Netlink::open()?,
        index,
        preferences,
        config.quic.dscp,
        monitor.hints(),
    ));
    #[cfg(feature = "metrics")]
    let metrics = config.metrics.clone();
    let mut client = Client::new(config, links.clone(), Box::new(device.writer()))?;
    client.links = Some(links.clone());
    client.reports = host.reports();
    let (client, daemon) = (Arc::new(client), Arc::new(daemon));
    let (orders, mut ordered) = mpsc::channel(ORDERS);
    let _control = control::serve(&daemon.instance, client.events.clone(), {
        let (client, daemon, orders) = (client.clone(), daemon.clone(), orders.clone());
        let wish = wish.clone();
        move |request| client.clone().answer(request, orders.clone(), wish.clone(), daemon.clone())
    })?;
    #[cfg(feature = "metrics")]
    let _metrics = crate::daemon::metrics::serve(metrics.as_ref(), {
        let client = client.clone();
        move || Status::client(client.status())
    })?;
    let (admission, admissions) = mpsc::channel(1);
    client.roaming.names.admit_through(admission);
    let mut host_of_sessions = wish.clone();
    let ended = tokio::select! {
        ended = client.carry(device.reader(), &mut host_of_sessions, &mut ordered) => ended,
        never = host.run() => match never {},
        failed = daemon.hangups(|| client.reload(&daemon, wish.clone())) => failed.map(|never| match never {}),
        never = client.keep_names() => match never {},
        never = client.admit(wish.clone(), admissions) => match never {},
        never = metered::watch(|found| links.meter(found)) => match never {},
        never = client.end_start() => match never {},
        never = systemd::watchdog(&client.roaming.heart) => match never {},
        deleted = interface::deleted(index, monitor.hints()) => {
            deleted?;
            Err(anyhow::anyhow!("TUN device {} is gone: somebody deleted it", client.interface))
        }
        signal = stop => {
            info!(signal, "stopping");
            systemd::stopping();
            client.goodbye().await;
            Ok(())
        }
    };
    // A tunnel that failed is no reason to let its traffic out, nor is one that is about to be back.
    match &ended {
        Ok(()) if systemd::is_restarting().await => info!("leaving everything for the next run"),
        Ok(()) => host.undo(Seal::Lifted).await,
        Err(_) => host.undo(Seal::Kept).await,
    }
    ended
}

impl Client {
    pub(crate) fn new(
        config: ClientConfig,
        network: Arc<dyn Network>,
        device: Box<dyn PacketSink>,
    ) -> anyhow::Result<Self> {
        let ClientConfig { private_key, server, tun, quic, .. } = &config;
        let events = Events::default();
        let names = Arc::new(ServerAddresses::new(server.addresses.clone()));
        let congestion = CongestionHandle::default();
        let handshake =
            |alpn, transport| Handshake::new(private_key, server.public_key, alpn, transport);
        let tunnel = handshake(tls::TUNNEL, quic::transport(quic, tun.mtu, congestion.clone()))?;
        let roaming = Roaming {
            network: network.clone(),
            names: names.clone(),
            probes: handshake(tls::PROBE, quic::probe_transport())?,
            heart: Heart::default(),
            settings: ArcSwap::from_pointee(settings(&config.paths)),
            congestion,
            changed: Notify::new(),
        };
        let terms = Terms {
            congestion: roaming.congestion.clone(),
            unchecked: device.completes_checksums(),
            instance: instance()?,
        };
        Ok(Self {
            key: private_key.public_key(),
            dialer: Dialer::new(names, tunnel, network, terms),
            roaming,
            tun: device,
            queue: Queue::new(QUEUE),
            counters: Counters::default(),
            links: None,
            interface: tun.name.clone(),
            started: clock::wall(),
            shown: Shown::new(tun.mtu, events.clone()),
            events,
            inside: ArcSwap::default(),
            reports: Reports::default(),
            desired: tokio::sync::Mutex::new(Desired::new(&config)),
            config: Mutex::new(config),
        })
    }

    /// Carries packets from `source` to the server and back, for ever. Returns only what trying again
    /// would not change.
    pub(crate) async fn carry(
        &self,
        source: impl PacketSource,
        host: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        let read = ingress::run(source, &self.counters, |batch| {
            self.counters.dropped_by_queue(self.queue.push(batch));
        });
        tokio::select! {
            ended = self.stay_connected(host, orders) => ended,
            never = self.beat() => match never {},
            error = read => {
                Err(error).with_context(|| format!("TUN device {} is gone", self.interface))
            }
        }
    }

    /// Beats while there is no connection; when there is one, the [`Roamer`] does.
    async fn beat(&self) -> Infallible {
        loop {
            self.roaming.heart.asked().await;
            if !self.shown.is_connected() {
                self.roaming.heart.beat();
            }
        }
    }

    /// Connects, for ever. Returns only errors of this machine and, to whoever started the client by hand, a
    /// refusal before the first session.
    async fn stay_connected(
        &self,
        host: &mut impl Setup,
        orders: &mut mpsc::Receiver<Order>,
    ) -> anyhow::Result<()> {
        let mut pauses = Pauses::default();
        let mut loss = Loss { at: clock::now(), answered: None };
        let mut manager = Manager::new(**self.roaming.settings.load());
        loop {
            let begun = clock::now();
            let sessions = self.shown.sessions();
            self.shown.connecting();
            let ended = self.connect(host, &mut manager, orders, loss.clone()).await?;
            // What its actions would close was the roamer's, and is closed.
            let _ = manager.handle(manager::Event::Disconnected, clock::now());
            self.queue.hold(true);
            self.desired.lock().await.in_session = false;
            let refusal = ended.refusal(self.key);
            let rival = Rival::of(&ended);
            if self.shown.sessions() > sessions {
                let answered = self.shown.in_use().filter(|_| ended.is_answer());
                loss = Loss { at: clock::now(), answered };
            }
            if clock::now().duration_since(begun) >= STABLE {
                pauses = Pauses::default();
            }
            let pause = pauses.after(&ended, refusal.as_ref());
            let reason = match (&refusal, rival) {
                (_, Some(rival)) => rival.to_string(),
                (Some(refusal), None) => refusal.in_short(),
                (None, None) => ended.to_string(),
            };
            let refused = refusal.as_ref().is_some_and(Refusal::is_proven);
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
                self.sleep_or_change(pause, &mut manager, orders).await;
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

    /// Tells the service manager after a while that the daemon has started, connected or not.
    async fn end_start(&self) -> Infallible {
        tokio::time::sleep(START).await;
        self.shown.end_start();
        std::future::pending().await
    }

    /// Waits for the longest of the pause, or less if a network changes or a person chooses a link, but for the
    /// shortest at least.
    async fn sleep_or_change(
        &self,
        Pause { shortest, longest }: Pause,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
    ) {
        let mut hints = self.roaming.network.hints();
        let chosen = Notify::new();
        let pause = async {
            tokio::time::sleep(shortest).await;
            tokio::select! {
                () = tokio::time::sleep(longest.saturating_sub(shortest)) => {}
                () = hints.hint() => debug!("a network changed: trying at once"),
                () = chosen.notified() => debug!("a person chose a link: trying at once"),
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let _ = reply.send(self.choose(choice, manager).await);
                    chosen.notify_one();
                }
            }
        }
    }

    /// Remembers a person's choice for the connection to come.
    async fn choose(&self, choice: Option<Choice>, manager: &mut Manager) -> Reply {
        let done = match &choice {
            Some(Choice { link, pinned }) => {
                let servers = self.roaming.names.known();
                let found = self.roaming.network.candidates(&servers).await.unwrap_or_default();
                let links = || found.iter().map(|(candidate, _)| candidate.link.as_str());
                if !links().any(|other| other == link) {
                    return no_way(link, links());
                }
                let how = match pinned {
                    true => "dialed alone, whatever happens",
                    false => "dialed first, until it fails",
                };
                format!("{link}: {how}")
            }
            None => "the best path is chosen again".into(),
        };
        // Without a connection there is nothing to do about it yet.
        let _ = manager.handle(manager::Event::Choose(choice), clock::now());
        Reply::Done(vec![done])
    }

    fn why_not_connected(&self) -> String {
        let why = self.shown.last_error().unwrap_or_else(|| "still connecting".into());
        format!("not connected ({why}): the links are tried as it is")
    }

    /// Begins a session, and lets what waits go with the first packet.
    async fn dial(
        &self,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
        loss: Loss,
    ) -> Result<Reached, Ended> {
        let (taken, dropped) = self.queue.take_early(EARLY);
        self.counters.dropped_by_queue(dropped);
        let early = taken.datagrams();
        let silent = |error: &HandshakeError| {
            let reason = error.to_string();
            self.shown.silent(&reason);
            self.not_connected(&reason);
        };
        let dialed = loop {
            tokio::select! {
                dialed = self.dialer.dial(manager, early.clone(), loss.clone(), silent) => break dialed,
                (choice, reply) = next_choice(orders, || self.why_not_connected()) => {
                    let _ = reply.send(self.choose(choice, manager).await);
                }
            }
        };
        if dialed.as_ref().is_ok_and(|reached| reached.connected.early_arrived) {
            let bytes = early.iter().map(|packet| packet.len() as u64).sum();
            self.counters.sent.add(early.len() as u64, bytes);
        } else {
            self.queue.put_back(taken);
        }
        dialed
    }

    /// One session, from the first attempt to its end. An error is one of this machine's.
    async fn connect(
        &self,
        host: &mut impl Setup,
        manager: &mut Manager,
        orders: &mut mpsc::Receiver<Order>,
        loss: Loss,
    ) -> anyhow::Result<Ended> {
        let dialed = tokio::select! {
            dialed = self.dial(manager, orders, loss) => dialed,
            never = self.look_for_portals(host) => match never {},
        };
        let Reached { connected, messages, welcome } = match dialed {
            Ok(reached) => reached,
            Err(ended) => return Ok(ended),
        };
        let (connection, candidate) = (connected.connection.clone(), connected.candidate.clone());
        let line = Line {
            connection: connection.clone(),
            endpoint: connected.underlay.endpoint().clone(),
            socket: connected.underlay.socket().clone(),
            congestion: self.roaming.congestion.clone(),
            software: welcome.software.clone(),
            since: clock::wall(),
        };
        let resumed = connected.early_arrived;
        // From here on the path is watched: the host may take its time.
        let Self { roaming, shown, queue, .. } = self;
        let roamer = Roamer::new(roaming, shown, queue, manager, messages, orders, connected);
        let carry = async {
            if let Err(error) = self.greeted(host, &welcome).await {
                return error.end(&connection);
            }
            let rtt = self.roaming.congestion.shortest_round_trip();
            info!(
                link = candidate.link,
                local = %candidate.source,
                server = %candidate.server,
                rtt = %milliseconds(rtt.unwrap_or_else(|| connection.rtt())),
                resumed,
                name = %welcome.name,
                addresses = ?welcome.addresses.iter().map(|net| net.0).collect::<Vec<_>>(),
                "connected"
            );
            self.shown.connected(line, &candidate);
            self.dialer.attempts.clear();
            tokio::select! {
                lost = pump::uplink(&connection, &self.queue, &self.counters, welcome.unchecked) => {
                    Ended::Lost(lost)
                }
                lost = pump::downlink(&connection, &self.counters, |batch| self.deliver(batch)) => {
                    Ended::Lost(lost)
                }
                ended = self.follow_host(host) => ended.end(&connection),
            }
        };
        tokio::select! {
            ended = carry => Ok(ended),
            forgotten = roamer.run() => forgotten.map(|()| Ended::Forgotten),
        }
    }

    /// Tells of captive portals that keep us from connecting, and lets a browser reach them, if it may.
    async fn look_for_portals(&self, host: &mut impl Setup) -> Infallible {
        loop {
            tokio::time::sleep(PORTAL_PACE).await;
            let servers = self.roaming.names.known();
            let found = self.roaming.network.candidates(&servers).await.unwrap_or_default();
            let mut suspected = false;
            for (candidate, _) in found {
                if self.roaming.network.portal(&candidate).await {
                    self.shown.portal(&candidate.link);
                    suspected = true;
                }
            }
            let may_pass = self.config().tun.exclude.portal;
            self.give_way(suspected && may_pass, host).await;
        }
    }

    /// Lets everything leave outside of the tunnel, or not any more.
    async fn give_way(&self, gives_way: bool, host: &mut impl Setup) {
        let desired = self.desired.lock().await;
        if desired.is_applied && desired.portal == gives_way {
            return;
        }
        drop(desired);
        info!(gives_way, "captive portal: everything outside of the tunnel");
        if let Err(error) = self.apply(host, |desired| desired.portal = gives_way).await {
            warn!(%error, "the host stays as it was");
        }
    }

    /// Gives the host what is taken of the server's offer.
    async fn greeted(&self, host: &mut impl Setup, welcome: &Welcome) -> Result<(), ApplyError> {
        self.apply(host, |desired| {
            desired.welcome = Some(welcome.clone());
            desired.in_session = true;
            desired.portal = false;
        })
        .await
    }

    /// Takes the offer again whenever the host's networks have changed; returns when the session cannot be kept.
    async fn follow_host(&self, host: &mut impl Setup) -> ApplyError {
        let mut reports = self.reports.clone();
        loop {
            reports.changed().await;
            match self.apply(host, |_| ()).await {
                Err(error @ ApplyError::Offer(_)) => return error,
                Err(ApplyError::Host(error)) => {
                    warn!(%error, "the host stays as it was");
                }
                Ok(()) => {}
            }
        }
    }

    /// Lets packets to the server's addresses pass the kill switch, as they are found.
    async fn admit(
        &self,
        mut host: Wish,
        mut admissions: mpsc::Receiver<(Vec<SocketAddr>, oneshot::Sender<()>)>,
    ) -> Infallible {
        while let Some((mut found, done)) = admissions.recv().await {
            found.extend(self.shown.remote());
            if let Err(error) = self.apply(&mut host, |desired| desired.found = found).await {
                warn!(%error, "the host does not know the server's addresses");
            }
            let _ = done.send(());
        }
        std::future::pending().await
    }

    /// Changes what is wanted of the host, and makes the host like that before it returns. On failure nothing
    /// has changed.
    async fn apply(
        &self,
        host: &mut impl Setup,
        change: impl FnOnce(&mut Desired),
    ) -> Result<(), ApplyError> {
        let mut desired = self.desired.lock().await;
        let (before, mut changed) = (desired.plan()?.layout, desired.clone());
        changed.facts = self.reports.facts.borrow().clone();
        change(&mut changed);
        let plan = changed.plan()?;
        let layout = &plan.layout;
        // Whoever waits for the host may not wait any more.
        desired.is_applied = false;
        if let Err(error) = host.set(layout.clone()).await {
            match host.set(before).await {
                Ok(()) => desired.is_applied = true,
                Err(error) => {
                    warn!(%error, "the host cannot be made as it was");
                }
            }
            return Err(ApplyError::Host(error));
        }
        for route in layout.blocked.iter().filter(|route| !before.blocked.contains(route)) {
            warn!(%route, "the server gave this client no address of that family");
        }
        changed.take(&plan);
        *desired = changed;
        if desired.welcome.is_some() {
            let declined = plan.declined();
            self.inside.store(Arc::new(plan.inside));
            let Layout { mtu, addresses, networks, routes, .. } = plan.layout;
            self.shown.set_up(mtu, addresses, [networks, routes].concat(), declined);
        }
        Ok(())
    }

    /// Resolves the server's names now and then, and when a network changes: what they stand for may have
    /// moved, or be something else in another network.
    async fn keep_names(&self) -> Infallible {
        let mut hints = self.roaming.network.hints();
        loop {
            // Until there is a connection, dialing does.
            let _ = tokio::time::timeout(NAMES_PACE, hints.hint()).await;
            tokio::time::sleep(NAMES_SETTLE).await;
            if self.shown.is_connected()
                && self.roaming.names.can_change()
                && let Err(error) = self.roaming.names.resolve().await
            {
                debug!(%error, "the server's addresses stay as they were");
            }
        }
    }

    fn config(&self) -> MutexGuard<'_, ClientConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a changed configuration; what takes a restart stays as it was and is named. If the host cannot
    /// be made as it says, nothing changes.
    async fn renew(
        &self,
        new: ClientConfig,
        host: &mut impl Setup,
    ) -> anyhow::Result<Vec<&'static str>> {
        let tun = {
            let config = self.config();
            let (name, mtu, offload) =
                (config.tun.name.clone(), config.tun.mtu, config.tun.offload);
            ClientTun { name, mtu, offload, ..new.tun.clone() }
        };
        let (wanted, servers) = (tun.clone(), new.server.addresses.clone());
        self.apply(host, |desired| desired.configure(wanted, servers)).await?;
        let stays = {
            let mut config = self.config();
            let stays = config.takes_restart(&new);
            self.roaming.names.replace(new.server.addresses.clone());
            self.roaming.settings.store(Arc::new(settings(&new.paths)));
            if let Some(links) = &self.links {
                links.prefer(Preferences::new(&new.paths));
            }
            config.server.addresses = new.server.addresses;
            config.paths = new.paths;
            config.log = new.log;
            config.tun = tun;
            stays
        };
        self.roaming.changed.notify_one();
        Ok(stays)
    }

    fn deliver(&self, batch: &mut Vec<Packet>) {
        egress::deliver(batch, &*self.tun, &self.counters, self.inside.load().judge());
    }

    /// Answers a request on the control socket.
    async fn answer(
        self: Arc<Self>,
        request: Request,
        orders: mpsc::Sender<Order>,
        host: Wish,
        daemon: Arc<Daemon>,
    ) -> Reply {
        let what = match request {
            Request::Status => return Reply::Ok(Box::new(self.whole_status().await)),
            Request::Reload => {
                let done = self.reload(&daemon, host).await;
                return done.map_or_else(Reply::Error, Reply::Done);
            }
            Request::Events => return Reply::Error("events come without end".into()),
            Request::Switch { link, pin } => What::Switch { link, pin },
            Request::Auto => What::Auto,
            Request::Probe { link } => What::Probe { link },
        };
        let (reply, answer) = oneshot::channel();
        let sent = orders.send(Order { what, reply }).await;
        match answer.await {
            Ok(reply) if sent.is_ok() => reply,
            _ => Reply::Error("the connection was lost meanwhile".into()),
        }
    }

    /// Reads the configuration again; what to say about it.
    async fn reload(&self, daemon: &Daemon, mut host: Wish) -> Result<Vec<String>, String> {
        let config = match daemon.read_again().map_err(|errors| errors.to_string())? {
            Config::Client(config) => config,
            Config::Server(_) => {
                return Err("role: a client becomes a server with a restart".into());
            }
        };
        let log = config.log.clone();
        let stays = match self.renew(config, &mut host).await {
            Ok(stays) => stays,
            Err(error) => return Err(daemon.refused(&error)),
        };
        daemon.log(&log);
        let restart_needed = stays.iter().map(ToString::to_string).collect();
        self.events.tell(Event::Reloaded { restart_needed });
        Ok(daemon.reloaded(&stays))
    }

    async fn goodbye(&self) {
        if let Some(line) = self.shown.take_line() {
            line.connection.close(close::GOODBYE, b"the client stops");
            let _ = tokio::time::timeout(GOODBYE, line.endpoint.wait_idle()).await;
        }
    }

    pub(crate) fn status(&self) -> ClientStatus {
        let (queued, traffic) = (self.queue.bytes(), self.counters.snapshot());
        let delay = self.queue.delay();
        let mut status = self.shown.status(&self.interface, self.started, queued, delay, traffic);
        let servers = &self.config().server.addresses;
        status.left_out.extend_from_slice(&self.reports.left_out.borrow());
        status.server = servers.iter().map(ToString::to_string).collect();
        if status.state != ClientState::Connected {
            status.paths = self.dialer.attempts.status(clock::now());
        }
        status
    }

    /// The status with what the kernel says of links that carry no path.
    async fn whole_status(&self) -> Status {
        let mut status = self.status();
        let servers = self.roaming.names.known();
        match self.roaming.network.unusable(&servers).await {
            Ok(links) => {
                let unused =
                    |(link, why): (String, Unusable)| UnusedLink { link, why: why.to_string() };
                status.unused_links = links.into_iter().map(unused).collect();
            }
            Err(error) => debug!(%error, "cannot read links"),
        }
        Status::client(status)
    }
}

fn instance() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no randomness"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn settings(paths: &config::Paths) -> Settings {
    Settings {
        probe_timeout: paths.probe_timeout,
        standby_check: paths.standby_check,
        metered_check: paths.standby_check.map(|check| METERED * check),
    }
}

/// A duration as people read it, without micro- and nanoseconds.
fn milliseconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(duration.as_millis() as u64))
}
