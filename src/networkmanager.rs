//! A connection of NetworkManager's: the same client, started and stopped over D-Bus, whose addresses, routes and
//! resolvers NetworkManager sets.
//!
//! ```text
//!  NetworkManager ── Connect(profile) ──▶ Plugin ─▶ Profile ─▶ client::run_until ─▶ Host
//!                 ── Disconnect ────────▶                                            │ Delegate
//!                 ◀─ Config, Ip4Config, Ip6Config, StateChanged ── handover ◀────────┘
//!                 ◀─ SecretsRequired ◀── a secret that a person gave is wrong
//!                 ── NewSecrets(profile) ─▶ the same again
//! ```
//!
//! A person's secrets come from an agent (nmcli, the desktop), which runs [`dialog`] to know what to ask for.
//!
//! NetworkManager starts one process for each connection, with a bus name of its own (nm-roamd-service.name). What stays
//! roamd's: the device, paths and their sockets, routing rules and table of a tunnel that takes everything, the kill
//! switch.

pub(crate) mod dialog;
mod handover;
mod plugin;
mod profile;
mod secrets;

use std::{
    error::Error,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use nix::{
    net::if_::if_nametoindex,
    unistd::{Group, setegid},
};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};
use zbus::{connection::Builder, fdo::DBusProxy, object_server::SignalEmitter};

use self::{
    handover::{Handover, News},
    plugin::{ConnectRequest, Failure, Plugin, Requests, State},
    profile::{Profile, Unusable},
};
use crate::{
    client::{self, Stop, ended::Refusal},
    config::{ClientConfig, Items, Log},
    daemon::{
        self, Daemon,
        logging::{self, LogHandle},
        signals,
    },
    host::{Layout, Seal, delegate::Delegate, instance::Instance, record},
};

const NETWORK_MANAGER: &str = "org.freedesktop.NetworkManager";
/// Where NetworkManager expects the plugin.
const PATH: &str = "/org/freedesktop/NetworkManager/VPN/Plugin";
/// The group that may ask the daemon over its control socket.
const GROUP: &str = "roamd";
/// How long a process waits to be told to connect: as long as a person takes for a secret.
const IDLE: Duration = Duration::from_secs(300);
/// How often a connection may come with secrets that are wrong.
const TRIES: u32 = 3;
/// How long the process that had the same connection before may take to end, and its device to go, and from one look to
/// the next.
const BEFORE: Duration = Duration::from_secs(5);
const DEVICE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(50);

/// Serves one connection under this bus name, until it ends.
pub(crate) fn serve(name: String) -> anyhow::Result<()> {
    daemon::guard_memory()?;
    // A key that is refused has a reason, before there is a configuration to say what is logged.
    let log = logging::init(&Log::default())?;
    // Members of the group may ask this daemon, as they may ask the units'.
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(error) = setegid(group.gid)
    {
        debug!(%error, "only root may ask this daemon");
    }
    daemon::block_on(run(name, log))
}

async fn run(name: String, log: LogHandle) -> anyhow::Result<()> {
    let mut stops = signals::Stops::listen()?;
    let (requests, disconnect) = (Requests::default(), Arc::new(Notify::new()));
    let state = Arc::new(AtomicU32::new(State::Init as u32));
    let connection = Arc::new(OnceLock::new());
    let plugin = Plugin {
        requests: requests.clone(),
        disconnect: disconnect.clone(),
        state: state.clone(),
        connection: connection.clone(),
    };
    let mut asked = requests.open();
    let bus =
        Builder::system().serve_at(PATH, plugin).name(name.as_str()).build().await.with_context(
            || format!("cannot be {name} on the system bus; NetworkManager starts this"),
        )?;
    let emitter = SignalEmitter::new(&bus, PATH)?;
    let mut owners = DBusProxy::new(&bus)
        .await?
        .receive_name_owner_changed_with_args(&[(0, NETWORK_MANAGER), (2, "")])
        .await?;
    let stop = async {
        tokio::select! {
            () = disconnect.notified() => Stop { why: NETWORK_MANAGER, seal: Seal::Lifted },
            // Nobody has said that the traffic may go out.
            _ = owners.next() => Stop { why: "the end of NetworkManager", seal: Seal::Kept },
            why = stops.next() => Stop { why, seal: Seal::Kept },
        }
    };
    let mut stop = Box::pin(stop);
    let signals = Signals { emitter: &emitter, state: &state };
    let mut tries = TRIES;
    let ended = loop {
        let ConnectRequest { profile, config, is_interactive, answered } = tokio::select! {
            asked = asked => asked?,
            Stop { seal, .. } = &mut stop => {
                if let (Seal::Lifted, Some(instance)) = (seal, connection.get()) {
                    lift(instance).await;
                }
                return Ok(());
            }
            () = tokio::time::sleep(IDLE) => {
                warn!("NetworkManager has asked for nothing in {} s", IDLE.as_secs());
                return Ok(());
            }
        };
        answered.await;
        signals.state(State::Starting).await?;
        let ended = match config {
            Ok(config) => tunnel(&profile, config, &mut stop, &signals, &log).await,
            Err(wrong) => Err(wrong.into()),
        };
        tries -= 1;
        let wrong = ended.as_ref().err().and_then(|error| wrong_secrets(error, &profile));
        match wrong.filter(|_| is_interactive && tries > 0) {
            Some(Unusable { why, secrets }) => {
                info!(why, "NetworkManager is asked for other secrets");
                asked = requests.open();
                Plugin::secrets_required(&emitter, &why, &secrets).await?;
            }
            None => break ended,
        }
    };
    if let Err(error) = &ended {
        let is_login =
            |cause: &(dyn Error + 'static)| cause.is::<Refusal>() || cause.is::<Unusable>();
        let why = if error.chain().any(is_login) { Failure::Login } else { Failure::Connect };
        Plugin::failure(&emitter, why as u32).await?;
    }
    signals.state(State::Stopped).await?;
    ended
}

/// Undoes what a killed process of this connection left. NetworkManager may end the connection while it waits for a secret, when
/// no tunnel runs that would do it.
async fn lift(instance: &Instance) {
    match record::unseal(instance).await {
        Ok(true) => info!("what an earlier run held back goes out"),
        Ok(false) => {}
        Err(error) => warn!(%error, "cannot undo everything"),
    }
}

/// What a person could mend with another answer, if that is why a tunnel did not begin.
fn wrong_secrets(error: &anyhow::Error, profile: &Profile) -> Option<Unusable> {
    let personal = profile.personal();
    error.chain().find_map(|cause| {
        let found = if let Some(Unusable { why, secrets }) = cause.downcast_ref() {
            Unusable { why: why.replace('\n', "; "), secrets: secrets.clone() }
        } else {
            let refusal = cause.downcast_ref::<Refusal>()?;
            let is_key =
                |name: &&str| *name == Items::KEY && matches!(refusal, Refusal::UnknownKey(_));
            let secrets = personal.iter().copied().filter(is_key).collect();
            Unusable { why: refusal.in_short(), secrets }
        };
        (!found.secrets.is_empty()).then_some(found)
    })
}

/// Runs the tunnel until it is to stop.
async fn tunnel(
    profile: &Profile,
    config: ClientConfig,
    stop: impl Future<Output = Stop>,
    signals: &Signals<'_>,
    log: &LogHandle,
) -> anyhow::Result<()> {
    let (instance, interface) = (profile.instance(), config.tun.name.clone());
    within(BEFORE, || !record::is_held(&instance)).await;
    within(DEVICE, || !exists(&interface)).await;
    free(&interface, &instance)?;
    if let Err(error) = instance.set_label(profile.label()) {
        warn!(%error, "roamd status knows this connection by its UUID only");
    }
    let fixed = "NetworkManager has it; nmcli connection up takes a change over";
    let daemon = Daemon::of(profile.source(), instance, &config, fixed, log.clone())?;
    let (delegate, wishes) = Delegate::new();
    let handover = Handover::new(&interface);
    let stop = async {
        tokio::select! {
            stop = stop => stop,
            error = signals.send_changes(wishes, handover) => {
                warn!(%error, "NetworkManager cannot be told what the interface is to have");
                Stop { why: "the end of the system bus", seal: Seal::Kept }
            }
        }
    };
    let record = daemon.record.clone();
    let was_sealed = record.changes().sealed;
    let ended = client::run_until(stop, Some(delegate), config, daemon).await;
    // What has never been up holds nothing back. What an earlier run holds back is no matter of a second try.
    if !was_sealed
        && !signals.have_started()
        && let Err(error) = record.undo().await
    {
        warn!(%error, "cannot undo everything");
    }
    ended
}

/// Waits until `is_done`, not for longer than this.
async fn within(limit: Duration, is_done: impl Fn() -> bool) {
    let done = async {
        while !is_done() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(limit, done).await;
}

fn exists(interface: &str) -> bool {
    if_nametoindex(interface).is_ok()
}

/// Refuses an interface that is there: a user's connection is not to have an admin's, nor what is meant for it.
fn free(interface: &str, instance: &Instance) -> anyhow::Result<()> {
    if exists(interface) {
        let holder = record::who_has(interface, instance);
        let holder = holder.map_or("another program".into(), |title| format!("tunnel {title}"));
        bail!(
            "{holder} has the interface {interface}: stop it, or give this connection another tun.name"
        );
    }
    Ok(())
}

/// What NetworkManager is told.
struct Signals<'a> {
    emitter: &'a SignalEmitter<'a>,
    state: &'a AtomicU32,
}

impl Signals<'_> {
    async fn state(&self, state: State) -> zbus::Result<()> {
        if self.state.swap(state as u32, Relaxed) != state as u32 {
            Plugin::state_changed(self.emitter, state as u32).await?;
        }
        Ok(())
    }

    /// Whether NetworkManager was told that the tunnel is up.
    fn have_started(&self) -> bool {
        self.state.load(Relaxed) == State::Started as u32
    }

    /// Sends what is wanted of the interface, as it changes, until that fails.
    async fn send_changes(
        &self,
        mut wishes: watch::Receiver<Option<Layout>>,
        mut handover: Handover,
    ) -> zbus::Error {
        loop {
            if wishes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let wish = wishes.borrow_and_update().clone();
            let Some(news) = wish.and_then(|layout| handover.news(&layout)) else { continue };
            info!(
                interface = handover.interface(),
                "NetworkManager is told what the interface is to have"
            );
            if let Err(error) = self.send(news).await {
                return error;
            }
        }
    }

    async fn send(&self, News { general, v4, v6 }: News) -> zbus::Result<()> {
        Plugin::config(self.emitter, general).await?;
        if let Some(v4) = v4 {
            Plugin::ip4_config(self.emitter, v4).await?;
        }
        if let Some(v6) = v6 {
            Plugin::ip6_config(self.emitter, v6).await?;
        }
        self.state(State::Started).await
    }
}
