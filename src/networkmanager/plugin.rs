//! The D-Bus interface that NetworkManager wants of a VPN's service
//! (introspection/org.freedesktop.NetworkManager.VPN.Plugin.xml of its sources).

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::sync::{Notify, oneshot};
use tracing::info;
use zbus::{
    DBusError, OwnedVariant, interface,
    object_server::{ResponseDispatchListener, ResponseDispatchNotifier, SignalEmitter},
};

use super::{
    handover::Entries,
    profile::{Profile, Settings, Unusable},
};
use crate::{config::ClientConfig, host::instance::Instance, mutex::Mutex};

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
    /// A person can be asked for what makes it unusable.
    pub(super) config: Result<ClientConfig, Unusable>,
    /// Whether secrets may be asked for while the tunnel begins.
    pub(super) is_interactive: bool,
    /// Resolves when the reply to this call is sent. Signals wait for it: with the reply NetworkManager cancels its request for
    /// secrets.
    pub(super) answered: ResponseDispatchListener,
}

/// The reply of a method that reports when it was sent.
type Answer = ResponseDispatchNotifier<()>;

/// Where the next tunnel of this process is asked for, while it is waited for.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<Option<oneshot::Sender<ConnectRequest>>>>);

impl Requests {
    /// Lets one come.
    pub(super) fn open(&self) -> oneshot::Receiver<ConnectRequest> {
        let (sender, request) = oneshot::channel();
        *self.0.lock() = Some(sender);
        request
    }

    fn hand_over(&self, request: ConnectRequest) -> bool {
        let sender = self.0.lock().take();
        sender.is_some_and(|sender| sender.send(request).is_ok())
    }
}

/// The object that NetworkManager talks to.
pub(super) struct Plugin {
    pub(super) requests: Requests,
    pub(super) disconnect: Arc<Notify>,
    pub(super) state: Arc<AtomicU32>,
    /// The tunnel of this process; set by the first call that names a connection.
    pub(super) connection: Arc<OnceLock<Instance>>,
}

impl Plugin {
    fn profile(&self, settings: Settings) -> Result<Profile, Refused> {
        let profile = Profile::read(settings).map_err(Refused::BadArguments)?;
        self.connection.get_or_init(|| profile.instance());
        Ok(profile)
    }

    fn begin(&self, settings: Settings, is_interactive: bool) -> Result<Answer, Refused> {
        let profile = self.profile(settings)?;
        let config = match profile.config() {
            Err(Unusable { why, secrets }) if !is_interactive || secrets.is_empty() => {
                return Err(Refused::BadArguments(why));
            }
            config => config,
        };
        let (answer, answered) = Answer::new(());
        let request = ConnectRequest { profile, config, is_interactive, answered };
        match self.requests.hand_over(request) {
            true => Ok(answer),
            false => Err(Refused::AlreadyStarted("this process has a connection".into())),
        }
    }
}

#[interface(name = "org.freedesktop.NetworkManager.VPN.Plugin")]
impl Plugin {
    fn connect(&self, connection: Settings) -> Result<Answer, Refused> {
        self.begin(connection, false)
    }

    /// Secrets may be asked for while the tunnel begins.
    fn connect_interactive(
        &self,
        connection: Settings,
        _details: HashMap<String, OwnedVariant>,
    ) -> Result<Answer, Refused> {
        self.begin(connection, true)
    }

    /// The setting that lacks a secret, if one does.
    fn need_secrets(&self, settings: Settings) -> Result<&str, Refused> {
        let profile = self.profile(settings)?;
        Ok(if profile.lacks_a_secret() { "vpn" } else { "" })
    }

    /// What was asked for while the tunnel began.
    fn new_secrets(&self, connection: Settings) -> Result<Answer, Refused> {
        self.begin(connection, true)
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
    pub(super) async fn secrets_required(
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
