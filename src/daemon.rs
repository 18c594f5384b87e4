//! What a daemon is apart from its role: its file, its name, its log.

pub(crate) mod control;
pub(crate) mod door;
pub(crate) mod events;
pub(crate) mod logging;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod moderation;
pub(crate) mod signals;
pub(crate) mod status;
pub(crate) mod systemd;
pub(crate) mod usage;

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::sys::prctl;
use tracing::{error, info, warn};

use self::logging::LogHandle;
use crate::{
    config::{self, Config, ConfigErrors, Log},
    host::{device::TunDevice, instance::Instance, record::Record},
    identity::PublicKey,
    quic::session::SOFTWARE,
    task,
};

/// Runs a daemon on one thread, until it ends: on two cores the datapath is faster on one than shared between threads,
/// because packets then never wait for another thread to wake.
pub(crate) fn block_on(
    daemon: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = moderation::moderate(runtime.enable_all()).build()?;
    let ended = runtime.block_on(task::entire(daemon));
    // A question to the resolver runs on a thread of its own, and can hang there for long.
    runtime.shutdown_background();
    ended
}

/// Keeps keys in this process: neither a dump nor a debugger of the same user may have them.
pub(crate) fn guard_memory() -> anyhow::Result<()> {
    prctl::set_dumpable(false).context("cannot switch core dumps off")
}

/// Logs what starts.
fn log_start(file: &Path, interface: &str, key: PublicKey) {
    info!(file = %file.display(), interface, %key, "{SOFTWARE} starting");
}

/// A daemon that is about to run.
#[derive(Debug)]
pub(crate) struct Daemon {
    file: PathBuf,
    /// Why the configuration cannot be read again, if that is so.
    is_fixed: Option<&'static str>,
    log: LogHandle,
    /// Its name and where it is asked.
    pub instance: Instance,
    /// What it changes on its host.
    pub record: Record,
}

impl Daemon {
    /// Loads the file and starts to log.
    pub(crate) fn load(file: PathBuf) -> anyhow::Result<(Self, Config)> {
        guard_memory()?;
        let config = config::load(&file)?;
        let (key, instance) = (config.private_key().public_key(), Instance::of_file(&file));
        let log = logging::init(config.log())?;
        log_start(&file, config.interface(), key);
        if let Some(said) = config.unusable_proxy() {
            warn!("{said}");
        }
        let record = Record::open(&instance)?;
        Ok((Self { file, is_fixed: None, log, instance, record }, config))
    }

    /// A client's daemon whose configuration comes from somebody else and is called `source`; `is_fixed` says how another
    /// one takes its place. `log` is this process's.
    #[cfg(feature = "networkmanager")]
    pub(crate) fn of(
        source: PathBuf,
        instance: Instance,
        config: &config::ClientConfig,
        is_fixed: &'static str,
        log: LogHandle,
    ) -> anyhow::Result<Self> {
        log.set(&config.log.level);
        log_start(&source, &config.tun.name, config.private_key.public_key());
        let record = Record::open(&instance)?;
        Ok(Self { file: source, is_fixed: Some(is_fixed), log, instance, record })
    }

    /// The TUN device, see [`TunDevice::open`]. A new one is left with systemd for the next run.
    pub(crate) fn tun(&self, name: &str, mtu: u16, offload: bool) -> io::Result<TunDevice> {
        let left = systemd::left_devices()?;
        let device = TunDevice::open(name, mtu, offload, left, &self.instance, &self.record)?;
        if !device.inherited {
            systemd::leave_device(&device.tun);
        }
        Ok(device)
    }

    /// The configuration as the file has it now.
    pub(crate) fn read_again(&self) -> Result<Config, ConfigErrors> {
        match self.is_fixed {
            Some(why) => Err(ConfigErrors::Unreadable {
                path: self.file.clone(),
                error: io::Error::other(why),
            }),
            None => config::load(&self.file),
        }
    }

    /// Logs what the configuration says from here on. The form of a line stays.
    pub(crate) fn log(&self, log: &Log) {
        self.log.set(&log.level);
    }

    /// What to say about a reload that went well, if these keys of it take a restart.
    #[must_use]
    pub(crate) fn reloaded(&self, stays: &[&str]) -> Vec<String> {
        let mut lines = vec![format!("{} is in effect", self.file.display())];
        lines.extend(stays.iter().map(|key| format!("{key} changes with a restart only")));
        systemd::note(&lines[1..].join(", "));
        lines
    }

    /// What to say about a reload that this host does not let happen.
    #[must_use]
    pub(crate) fn refused(&self, error: &anyhow::Error) -> String {
        format!("{} is not in effect, everything stays as it was: {error:#}", self.file.display())
    }

    /// Reloads at each SIGHUP, for ever.
    pub(crate) async fn hangups<R>(&self, reload: impl Fn() -> R) -> anyhow::Result<Infallible>
    where
        R: Future<Output = Result<Vec<String>, String>>,
    {
        let mut hangups = signals::hangups()?;
        loop {
            hangups.recv().await;
            systemd::reloading();
            match reload().await {
                Ok(lines) => lines.iter().for_each(|line| info!("{line}")),
                Err(reason) => error!(reason, "the configuration stays as it was"),
            }
            systemd::reloaded();
        }
    }
}
