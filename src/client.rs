//! The client: one TUN device that stays, and the connection of the day.
//!
//! ```text
//!  TUN ─▶ queue ─▶ pump::uplink ─▶ connection        dial: servers, links, race ─▶ session
//!  TUN ◀────────── pump::downlink ◀─ connection      Ended: temporary or fatal?
//! ```

pub(crate) mod attempts;
mod chance;
pub(crate) mod command;
mod connect;
mod course;
mod cut;
mod desired;
pub(crate) mod dial;
mod early;
pub(crate) mod ended;
mod greeting;
mod home;
mod loss;
mod migration;
mod moving;
mod names;
mod offer;
pub(crate) mod pace;
mod paths;
mod paused;
mod pauses;
mod plan;
mod portals;
mod reload;
mod reserve;
mod rival;
mod roam;
mod servers;
mod session;
mod signs;
mod upkeep;
pub(crate) mod usage;
mod view;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

use self::{
    command::Order,
    desired::{ApplyError, Desired},
    greeting::{Terms, instance},
    paused::Paused,
    roam::Roaming,
    servers::Servers,
    usage::{Overdrawn, Store, Usages},
    view::Shown,
};
use crate::{
    clock,
    config::ClientConfig,
    daemon::{
        Daemon, control,
        events::Events,
        signals,
        systemd::{self, Heart},
    },
    host::{
        Host, Reports, Seal, Setup,
        delegate::Delegate,
        device::TunDevice,
        interface::{self, Interface},
        metered,
    },
    identity::PublicKey,
    link::{monitor::Monitor, netlink::Netlink},
    path::network::{Network, kernel::KernelNetwork},
    task::apart,
    tunnel::{
        counters::Counters,
        device::{PacketSink, PacketSource},
        ingress,
        inside::Inside,
        queue::Queue,
    },
};

/// Bytes that wait for the connection, or for a path, at most.
const QUEUE: usize = 1024 * 1024;
/// Orders from the control socket that wait.
const ORDERS: usize = 4;
/// How long `systemctl start` waits for the first session. There may be no network for hours, and then it
/// would hang, and with it what waits for it at boot.
const START: Duration = Duration::from_secs(5);
/// How long the server has to hear our goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The client, apart from this machine's device, links and signals.
pub(crate) struct Client {
    key: PublicKey,
    servers: Servers,
    roaming: Roaming,
    /// What a hello says beside which servers there are.
    terms: Terms,
    tun: Box<dyn PacketSink>,
    queue: Queue,
    counters: Counters,
    /// The configuration in force, see [`reload`].
    pub(crate) config: watch::Sender<Arc<ClientConfig>>,
    /// What may come out of the tunnel.
    inside: ArcSwap<Inside>,
    /// What the host has, and refuses.
    reports: Reports,
    /// What the host is made like. Whoever changes the host holds this lock.
    desired: tokio::sync::Mutex<Desired>,
    /// What the links carried.
    usages: Arc<Usages>,
    pub(crate) events: Events,
    /// The pause that a person wants, if any.
    paused: watch::Sender<Option<Paused>>,
    interface: String,
    started: SystemTime,
    shown: Shown,
}

/// Why a client is to stop, and what becomes of its kill switch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub why: &'static str,
    pub seal: Seal,
}

/// Runs the client until the process is told to stop.
pub(crate) async fn run(config: ClientConfig, daemon: Daemon) -> anyhow::Result<()> {
    let signal = signals::stop()?;
    let stop = async { Stop { why: signal.await, seal: Seal::Lifted } };
    run_until(stop, None, config, daemon).await
}

/// Runs the client until it is to `stop`. A `delegate` sets what it can of the host.
pub(crate) async fn run_until(
    stop: impl Future<Output = Stop>,
    delegate: Option<Delegate>,
    config: ClientConfig,
    daemon: Daemon,
) -> anyhow::Result<()> {
    let monitor = Monitor::open().context("cannot hear of network changes")?;
    let config = Arc::new(config);
    let tun = &config.tun;
    let TunDevice { tun: device, inherited } = daemon.tun(&tun.name, tun.mtu, tun.offload)?;
    let interface = Interface::up(Netlink::open_strict()?, &tun.name, tun.mtu).await?;
    let index = interface.index();
    let is_delegated = delegate.is_some();
    let (host, wish) = Host::new(interface, inherited, daemon.record.clone(), monitor.hints())?;
    let mut host = host.delegated(delegate);
    host.survey().await;
    let links = KernelNetwork::new(Netlink::open()?, index, config.quic.dscp, monitor.hints());
    let links = Arc::new(links);
    let (writer, reports) = (Box::new(device.writer()), host.reports());
    let client = Client::new(config.clone(), links.clone(), writer, reports)?;
    // Without its kill switch a tunnel that has one does not run.
    client.apply(&mut host, |_| ()).await.map_err(ApplyError::cause)?;
    let (client, daemon) = (Arc::new(client), Arc::new(daemon));
    let (orders, mut ordered) = mpsc::channel(ORDERS);
    let _control = control::serve(&daemon.instance, client.events.clone(), {
        let (client, daemon, orders) = (client.clone(), daemon.clone(), orders.clone());
        let wish = wish.clone();
        move |request| client.clone().answer(request, orders.clone(), wish.clone(), daemon.clone())
    })?;
    #[cfg(feature = "metrics")]
    let _metrics = crate::daemon::metrics::serve(config.metrics.as_ref(), {
        let client = client.clone();
        move || crate::daemon::status::Status::client(client.status())
    })?;
    let (requests, admissions) = mpsc::channel(1);
    client.servers.admit_through(requests);
    let mut host_of_sessions = wish.clone();
    let stop_links = |stopped| links.stop(stopped);
    client.begin_usage(Store::at(daemon.instance.state_file(usage::SUFFIX)), stop_links).await;
    let ended = tokio::select! {
        ended = apart(client.carry(device.reader(), &mut host_of_sessions, &mut ordered)) => ended.map(|()| Seal::Lifted),
        never = apart(host.run()) => match never {},
        failed = apart(daemon.hangups(|| client.reload(&daemon, wish.clone()))) => failed.map(|never| match never {}),
        never = apart(client.keep_names()) => match never {},
        never = apart(client.admit(wish.clone(), admissions)) => match never {},
        never = apart(metered::watch(|found| links.meter(found))) => match never {},
        never = apart(client.keep_usage(links.meters(), stop_links)) => match never {},
        never = apart(client.end_start()) => match never {},
        never = apart(systemd::watchdog(&client.roaming.heart)) => match never {},
        deleted = apart(interface::deleted(index, monitor.hints())) => {
            deleted?;
            Err(anyhow::anyhow!("TUN device {} is gone: somebody deleted it", client.interface))
        }
        Stop { why, seal } = apart(stop) => {
            info!(signal = why, "stopping");
            systemd::stopping();
            client.part(b"the client stops").await;
            Ok(seal)
        }
    };
    // A tunnel that failed is no reason to let its traffic out, nor is one that is about to be back.
    match &ended {
        Ok(_) if !is_delegated && systemd::is_restarting().await => {
            info!("leaving everything for the next run");
        }
        Ok(seal) => host.undo(*seal).await,
        Err(_) => host.undo(Seal::Kept).await,
    }
    client.end_usage(links.meters()).await;
    ended.map(|_seal| ())
}

impl Client {
    pub(crate) fn new(
        config: Arc<ClientConfig>,
        network: Arc<dyn Network>,
        device: Box<dyn PacketSink>,
        reports: Reports,
    ) -> anyhow::Result<Self> {
        let ClientConfig { private_key, tun, .. } = &*config;
        let in_force = watch::Sender::new(config.clone());
        let (events, instance) = (Events::default(), instance()?);
        let unchecked = device.completes_checksums();
        Ok(Self {
            key: private_key.public_key(),
            servers: Servers::new(&config, network.clone(), instance)?,
            roaming: Roaming {
                network,
                heart: Heart::default(),
                silence: Notify::new(),
                overdrawn: watch::Sender::new(Overdrawn::default()),
            },
            terms: Terms { unchecked, instance, moves: false },
            tun: device,
            queue: Queue::new(QUEUE),
            counters: Counters::default(),
            paused: watch::Sender::default(),
            interface: tun.name.clone(),
            started: clock::wall(),
            shown: Shown::new(tun.mtu, events.clone()),
            events,
            inside: ArcSwap::default(),
            reports,
            desired: tokio::sync::Mutex::new(Desired::new(config.clone())),
            usages: Arc::default(),
            config: in_force,
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
            ended = apart(self.stay_connected(host, orders)) => ended,
            never = apart(self.beat()) => match never {},
            error = apart(read) => {
                Err(error).with_context(|| format!("TUN device {} is gone", self.interface))
            }
        }
    }

    /// Beats while there is no connection; when there is one, the [`Roamer`](roam::Roamer) does.
    async fn beat(&self) -> Infallible {
        loop {
            self.roaming.heart.asked().await;
            if !self.shown.is_connected() {
                self.roaming.heart.beat();
            }
        }
    }

    /// Tells the service manager after a while that the daemon has started, connected or not.
    async fn end_start(&self) -> Infallible {
        tokio::time::sleep(START).await;
        self.shown.end_start();
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
