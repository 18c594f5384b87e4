//! The process: parses the command line, dispatches, and ends with a status that says why.

use std::{ffi::OsString, path::Path, process::ExitCode};

use anyhow::anyhow;
use clap::{CommandFactory as _, Parser as _};

use super::{
    Cli, Command, ImportFrom, Tunnel, cancel_drain, check, complete, doctor, down, drain, drill,
    drill::Wanted, events, exit::Exit, genkey, is_broken_pipe, panic, pause, peer, probe, pubkey,
    reload, report, resume, status, switch, tunnel, unseal, up, usage, usage::Days, whole_seconds,
    wireguard,
};
#[cfg(feature = "desktop")]
use crate::config::Log;
use crate::{
    client,
    config::{Config, ConfigErrors},
    daemon::{self, Daemon, logging, systemd},
    host::{instance::Instance, record},
    server,
};

/// Runs the `roamd` binary.
#[must_use]
pub fn main() -> ExitCode {
    panic::end_process();
    complete::answer(Cli::command);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return end_usage(&error),
    };
    let tunnel = match &cli.command {
        Command::Run { tunnel } => tunnel::file(tunnel.as_ref()).ok(),
        _ => None,
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = end(&error);
            let tunnel = tunnel.map(|file| Instance::of_file(&file));
            if let Some(tunnel) = tunnel.filter(record::is_sealed) {
                let name = tunnel.name();
                let _ = logging::complain(&format!(
                    "roamd: the traffic of tunnel {name} stays held back; roamd unseal {name} lets it out"
                ));
            }
            code
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Genkey { output } => genkey(output.as_deref()),
        Command::Pubkey { file } => pubkey(file.as_deref()),
        Command::Check { tunnel } => check(&tunnel::file(tunnel.as_ref())?),
        Command::Peer { command } => peer(command),
        Command::Import { from: ImportFrom::Wireguard { file } } => wireguard(&file),
        Command::Doctor { tunnel } => doctor(&tunnel::file(tunnel.as_ref())?),
        Command::Up { tunnel } => up(tunnel.as_ref()),
        Command::Down { tunnel } => down(tunnel.as_ref()),
        Command::Run { tunnel } => run(&tunnel::file(tunnel.as_ref())?),
        Command::Status { tunnel, json } => status(tunnel.as_ref(), json),
        Command::Usage { tunnel, json, days, months } => {
            usage(tunnel.as_ref(), json, Days::of(days, months))
        }
        #[cfg(feature = "watch")]
        Command::Watch { tunnel, once } => super::watch(tunnel.as_ref(), once),
        Command::Reload { tunnel } => reload(tunnel.as_ref()),
        Command::Drain { tunnel, within, cancel: false } => drain(tunnel.as_ref(), within),
        Command::Drain { tunnel, within: _, cancel: true } => cancel_drain(tunnel.as_ref()),
        Command::Unseal { tunnel } => unseal(tunnel.as_ref()),
        Command::Events { tunnel, follow } => events(tunnel.as_ref(), follow),
        Command::Switch { link, server, pin, auto, tunnel } => {
            let (link, tunnel) = words(!auto && server.is_none(), link, tunnel)?;
            switch(tunnel.as_ref(), link, server, pin)
        }
        Command::Probe { link, all, tunnel } => {
            let (link, tunnel) = words(!all, link, tunnel)?;
            probe(tunnel.as_ref(), link)
        }
        Command::Pause { tunnel, lasts } => pause(tunnel.as_ref(), lasts),
        Command::Resume { tunnel } => resume(tunnel.as_ref()),
        #[cfg(feature = "desktop")]
        Command::Notify { tunnel, no_tray } => notify(tunnel.as_ref(), !no_tray),
        #[cfg(feature = "networkmanager")]
        Command::NetworkManager { bus_name, import, export } => {
            super::network_manager::run(bus_name, import.as_deref(), export)
        }
        #[cfg(feature = "networkmanager")]
        Command::NetworkManagerDialog(dialog) => super::network_manager::answer(dialog),
        Command::Drill { tunnel, within, yes, metered, json, svg } => {
            let seconds = whole_seconds(within);
            drill(&Wanted { tunnel, yes, metered, seconds, json, svg })
        }
        Command::Report { file, since, svg } => report(file.as_deref(), since, svg.as_deref()),
        #[cfg(feature = "demo")]
        Command::Demo { svg } => super::demo::run(svg),
    }
}

/// The link and the tunnel that one or two words name. The tunnel is the last of them; where an option says which
/// links, it is the only one.
fn words(
    has_link: bool,
    first: Option<String>,
    second: Option<Tunnel>,
) -> anyhow::Result<(Option<String>, Option<Tunnel>)> {
    match (has_link, first, second) {
        (true, link, tunnel) => Ok((link, tunnel)),
        (false, tunnel, None) => Ok((None, tunnel.map(named).transpose()?)),
        (false, Some(link), Some(_)) => Err(Exit::Usage.because(anyhow!(
            "{link} is one word too many: only a tunnel goes with these options"
        ))),
        (false, None, Some(tunnel)) => Ok((None, Some(tunnel))),
    }
}

/// The tunnel that a word names which could have been a link.
fn named(word: String) -> anyhow::Result<Tunnel> {
    let tunnel = Tunnel::try_from(OsString::from(&word));
    tunnel.map_err(|error| Exit::Usage.because(anyhow!("{word:?} is no tunnel: {error}")))
}

fn run(file: &Path) -> anyhow::Result<()> {
    let ended = run_daemon(file);
    if let Err(error) = &ended {
        // systemctl status shows it beside the exit status. The journal has all of it.
        systemd::report(format!("{error:#}").lines().next().unwrap_or_default());
    }
    ended
}

/// Runs on one thread, without a configuration.
#[cfg(feature = "desktop")]
fn notify(tunnel: Option<&Tunnel>, has_tray: bool) -> anyhow::Result<()> {
    let name = tunnel
        .map(|tunnel| Ok::<_, anyhow::Error>(tunnel::instance(Some(tunnel))?.name().to_owned()));
    let name = name.transpose()?;
    let _log = logging::init(&Log::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(crate::desktop::run(name, has_tray));
    // A daemon may take its time to answer.
    runtime.shutdown_background();
    ended
}

fn run_daemon(file: &Path) -> anyhow::Result<()> {
    let (daemon, config) = Daemon::load(file.to_owned())?;
    daemon::block_on(async move {
        match config {
            Config::Client(config) => client::run(config, daemon).await,
            Config::Server(config) => server::run(config, daemon).await,
        }
    })
}

/// Help and version are successes to clap as well.
fn end_usage(error: &clap::Error) -> ExitCode {
    // With nowhere left to complain, the status has to say it.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.code().into() } else { ExitCode::SUCCESS }
}

fn end(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    // Each line about a configuration names its own file.
    let _ = match error.downcast_ref::<ConfigErrors>() {
        Some(errors @ (ConfigErrors::Problems { .. } | ConfigErrors::Syntax { .. })) => {
            logging::complain(&errors.to_string())
        }
        Some(ConfigErrors::Unreadable { .. }) | None => {
            logging::complain(&format!("roamd: {error:#}"))
        }
    };
    Exit::of(error).map_or(ExitCode::FAILURE, |exit| exit.code().into())
}
