//! What a daemon is apart from its role: its file, its name, its log.

use std::{convert::Infallible, path::PathBuf};

use anyhow::Context as _;
use nix::sys::prctl;
use tracing::{error, info};

use crate::{
    config::{self, Config, ConfigErrors, Log},
    control::Instance,
    logging::{self, LogHandle},
    service,
    session::SOFTWARE,
    signals,
};

/// A daemon that is about to run.
#[derive(Debug)]
pub struct Daemon {
    file: PathBuf,
    log: LogHandle,
    /// Its name and where it is asked.
    pub instance: Instance,
}

impl Daemon {
    /// Loads the file and starts to log.
    pub fn load(file: PathBuf) -> anyhow::Result<(Self, Config)> {
        // Neither a dump nor a debugger of the same user may have the key.
        prctl::set_dumpable(false).context("cannot switch core dumps off")?;
        let config = config::load(&file)?;
        let log = logging::init(config.log())?;
        info!(
            file = %file.display(),
            interface = config.interface(),
            key = %config.private_key().public_key(),
            "{SOFTWARE} starting"
        );
        let instance = Instance::of_file(&file);
        Ok((Self { file, log, instance }, config))
    }

    /// The configuration as the file has it now.
    pub fn read_again(&self) -> Result<Config, ConfigErrors> {
        config::load(&self.file)
    }

    /// Logs what the configuration says from here on. The form of a line stays.
    pub fn log(&self, log: &Log) {
        self.log.set(&log.level);
    }

    /// What to say about a reload that went well, if these keys of it take a restart.
    #[must_use]
    pub fn reloaded(&self, stays: &[&str]) -> Vec<String> {
        let mut lines = vec![format!("{} is in effect", self.file.display())];
        lines.extend(stays.iter().map(|key| format!("{key} changes with a restart only")));
        lines
    }

    /// Reloads at each SIGHUP, for ever.
    pub async fn hangups<R>(&self, reload: impl Fn() -> R) -> anyhow::Result<Infallible>
    where
        R: Future<Output = Result<Vec<String>, String>>,
    {
        let mut hangups = signals::hangups()?;
        loop {
            hangups.recv().await;
            service::reloading();
            match reload().await {
                Ok(lines) => lines.iter().for_each(|line| info!("{line}")),
                Err(reason) => error!(reason, "the configuration stays as it was"),
            }
            service::reloaded();
        }
    }
}
