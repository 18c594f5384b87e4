//! A connection of NetworkManager's: the same client, started and stopped over D-Bus, whose addresses, routes and
//! resolvers NetworkManager sets.
//!
//! ```text
//!  NetworkManager ── Connect(profile) ──▶ Plugin ─▶ Profile ─▶ client::run_until ─▶ Host
//!                 ── Disconnect ────────▶                                            │ Delegate
//!                 ◀─ Config, Ip4Config, Ip6Config, StateChanged ── handover ◀────────┘
//! ```
//!
//! NetworkManager starts one process for each connection, with a bus name of its own (nm-roamd-service.name). What stays
//! roamd's: the device, paths and their sockets, routing rules and table of a tunnel that takes everything, the kill
//! switch.

mod handover;
mod plugin;
mod profile;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use nix::unistd::{Group, setegid};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{debug, info};
use zbus::{connection::Builder, fdo::DBusProxy, object_server::SignalEmitter};

use self::{
    handover::Handover,
    plugin::{Asked, Failure, Plugin, State},
};
use crate::{
    client::{self, ended::Refusal},
    daemon::{self, Daemon, moderation, signals},
    host::{Layout, delegate::Delegate, record},
    task,
};

const NETWORK_MANAGER: &str = "org.freedesktop.NetworkManager";
/// Where NetworkManager expects the plugin.
const PATH: &str = "/org/freedesktop/NetworkManager/VPN/Plugin";
/// The group that may ask the daemon over its control socket.
const GROUP: &str = "roamd";
/// How long a process waits to be told to connect: as long as a person takes for a secret.
const IDLE: Duration = Duration::from_secs(300);
/// How long the process of the connection before, of the same name, may take to end, and from one look to the next.
const BEFORE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// Serves one connection under this bus name, until it ends.
pub(crate) fn serve(name: String) -> anyhow::Result<()> {
    daemon::guard_memory()?;
    // Members of the group may ask this daemon, as they may ask the units'.
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(error) = setegid(group.gid)
    {
        debug!(%error, "only root may ask this daemon");
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = moderation::moderate(runtime.enable_all()).build()?;
    let ended = runtime.block_on(task::entire(run(name)));
    runtime.shutdown_background();
    ended
}

async fn run(name: String) -> anyhow::Result<()> {
    let mut stops = signals::Stops::listen()?;
    let (connect, asked) = oneshot::channel();
    let (disconnect, state) =
        (Arc::new(Notify::new()), Arc::new(AtomicU32::new(State::Init as u32)));
    let plugin = Plugin {
        connect: Mutex::new(Some(connect)),
        disconnect: disconnect.clone(),
        state: state.clone(),
    };
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
            () = disconnect.notified() => NETWORK_MANAGER,
            _ = owners.next() => "the end of NetworkManager",
            signal = stops.next() => signal,
        }
    };
    let mut stop = Box::pin(stop);
    let asked = tokio::select! {
        asked = asked => asked?,
        _ = &mut stop => return Ok(()),
        () = tokio::time::sleep(IDLE) => return Ok(()),
    };
    let told = Told { emitter: &emitter, state: &state };
    told.state(State::Starting).await?;
    let ended = tunnel(asked, stop, &told).await;
    if let Err(error) = &ended {
        let is_refusal = error.chain().any(|cause| cause.is::<Refusal>());
        let why = if is_refusal { Failure::Login } else { Failure::Connect };
        Plugin::failure(&emitter, why as u32).await?;
    }
    told.state(State::Stopped).await?;
    ended
}

/// Runs the tunnel until it is to stop.
async fn tunnel(
    Asked { profile, config }: Asked,
    stop: impl Future<Output = &'static str>,
    told: &Told<'_>,
) -> anyhow::Result<()> {
    let instance = profile.instance();
    let is_free = async {
        while record::is_held(&instance) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Whoever else has the name is told of below.
    let _ = tokio::time::timeout(BEFORE, is_free).await;
    let fixed = "NetworkManager has it; nmcli connection up takes a change over";
    let daemon = Daemon::of(profile.source(), instance, &config, fixed)?;
    let (delegate, wishes) = Delegate::new();
    let handover = Handover::new(&config.tun.name);
    tokio::select! {
        ended = client::run_until(stop, Some(delegate), config, daemon) => ended,
        lost = told.of_all(wishes, handover) => match lost? {},
    }
}

/// What NetworkManager is told.
struct Told<'a> {
    emitter: &'a SignalEmitter<'a>,
    state: &'a AtomicU32,
}

impl Told<'_> {
    async fn state(&self, state: State) -> zbus::Result<()> {
        if self.state.swap(state as u32, Relaxed) != state as u32 {
            Plugin::went(self.emitter, state as u32).await?;
        }
        Ok(())
    }

    /// Hands over what is wanted of the interface, as it changes.
    async fn of_all(
        &self,
        mut wishes: watch::Receiver<Option<Layout>>,
        mut handover: Handover,
    ) -> zbus::Result<Infallible> {
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
            Plugin::config(self.emitter, news.general).await?;
            if let Some(v4) = news.v4 {
                Plugin::ip4_config(self.emitter, v4).await?;
            }
            if let Some(v6) = news.v6 {
                Plugin::ip6_config(self.emitter, v6).await?;
            }
            self.state(State::Started).await?;
        }
    }
}
