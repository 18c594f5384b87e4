//! The D-Bus interface that NetworkManager wants of a VPN's service
//! (introspection/org.freedesktop.NetworkManager.VPN.Plugin.xml of its sources).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::sync::{Notify, oneshot};
use tracing::info;
use zbus::{DBusError, OwnedVariant, interface, object_server::SignalEmitter};

use super::{
    handover::Entries,
    profile::{Profile, Settings},
};
use crate::config::ClientConfig;

/// `NMVpnServiceState`
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum State {
    Init = 1,
    Starting = 3,
    Started = 4,
    Stopped = 6,
}

/// `NMVpnPluginFailure`
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Failure {
    Login = 0,
    Connect = 1,
}

/// What a method refuses.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop.NetworkManager.VPN.Error")]
pub(super) enum Refused {
    #[zbus(error)]
    Bus(zbus::Error),
    AlreadyStarted(String),
    BadArguments(String),
}

/// A tunnel to begin.
#[derive(Debug)]
pub(super) struct ConnectRequest {
    pub(super) profile: Profile,
    pub(super) config: ClientConfig,
}

/// The object that NetworkManager talks to.
pub(super) struct Plugin {
    /// Where the one tunnel of this process is asked for.
    pub(super) connect: Mutex<Option<oneshot::Sender<ConnectRequest>>>,
    pub(super) disconnect: Arc<Notify>,
    pub(super) state: Arc<AtomicU32>,
}

impl Plugin {
    fn begin(&self, settings: Settings) -> Result<(), Refused> {
        let profile = Profile::read(settings).map_err(Refused::BadArguments)?;
        let config = profile.config().map_err(Refused::BadArguments)?;
        let mut connect = self.connect.lock().unwrap_or_else(PoisonError::into_inner);
        let begins =
            |connect: oneshot::Sender<_>| connect.send(ConnectRequest { profile, config }).is_ok();
        match connect.take().is_some_and(begins) {
            true => Ok(()),
            false => Err(Refused::AlreadyStarted("this process has a connection".into())),
        }
    }
}

#[interface(name = "org.freedesktop.NetworkManager.VPN.Plugin")]
impl Plugin {
    fn connect(&self, connection: Settings) -> Result<(), Refused> {
        self.begin(connection)
    }

    /// No secret is asked for while the tunnel begins.
    fn connect_interactive(
        &self,
        connection: Settings,
        _details: HashMap<String, OwnedVariant>,
    ) -> Result<(), Refused> {
        self.begin(connection)
    }

    /// The setting that lacks a secret, if one does.
    fn need_secrets(&self, settings: Settings) -> Result<&str, Refused> {
        let profile = Profile::read(settings).map_err(Refused::BadArguments)?;
        Ok(if profile.lacks_a_secret() { "vpn" } else { "" })
    }

    fn new_secrets(&self, _connection: Settings) -> Result<(), Refused> {
        Err(Refused::BadArguments("no secret was asked for".into()))
    }

    fn disconnect(&self) {
        info!("NetworkManager ends the connection");
        self.disconnect.notify_one();
    }

    /// For helpers of other plugins, as are the next three: this one knows by itself what it says.
    fn set_config(&self, _config: HashMap<String, OwnedVariant>) {}

    #[zbus(name = "SetIp4Config")]
    fn set_ip4_config(&self, _config: HashMap<String, OwnedVariant>) {}

    #[zbus(name = "SetIp6Config")]
    fn set_ip6_config(&self, _config: HashMap<String, OwnedVariant>) {}

    fn set_failure(&self, _reason: &str) {}

    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> u32 {
        self.state.load(Relaxed)
    }

    #[zbus(signal)]
    pub(super) async fn state_changed(emitter: &SignalEmitter<'_>, state: u32) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn secrets_required(
        emitter: &SignalEmitter<'_>,
        message: &str,
        secrets: &[&str],
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn config(emitter: &SignalEmitter<'_>, config: Entries) -> zbus::Result<()>;

    #[zbus(signal, name = "Ip4Config")]
    pub(super) async fn ip4_config(
        emitter: &SignalEmitter<'_>,
        config: Entries,
    ) -> zbus::Result<()>;

    #[zbus(signal, name = "Ip6Config")]
    pub(super) async fn ip6_config(
        emitter: &SignalEmitter<'_>,
        config: Entries,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn login_banner(emitter: &SignalEmitter<'_>, banner: &str) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn failure(emitter: &SignalEmitter<'_>, reason: u32) -> zbus::Result<()>;
}
