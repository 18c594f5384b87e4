//! The process: parses the command line, dispatches, and ends with a status that says why.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser as _;

use super::{
    Cli, Command, ImportFrom, cancel_drain, check, doctor, drain, events, exit::Exit, genkey,
    is_broken_pipe, panic, peer, probe, pubkey, reload, status, switch, unseal, wireguard,
};
use crate::{
    client,
    config::{Config, ConfigErrors},
    daemon::{Daemon, logging, moderation, systemd},
    host::{instance::Instance, record},
    server, task,
};

/// Runs the `roamd` binary.
#[must_use]
pub fn main() -> ExitCode {
    panic::end_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return end_usage(&error),
    };
    let tunnel = match &cli.command {
        Command::Run { file } => Some(Instance::of_file(file)),
        _ => None,
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = end(&error);
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
        Command::Check { file } => check(&file),
        Command::Peer { command } => peer(command),
        Command::Import { from: ImportFrom::Wireguard { file } } => wireguard(&file),
        Command::Doctor { file } => doctor(&file),
        Command::Run { file } => run(file),
        Command::Status { name, json } => status(name.as_deref(), json),
        #[cfg(feature = "watch")]
        Command::Watch { name, once } => super::watch(name.as_deref(), once),
        Command::Reload { name } => reload(name.as_deref()),
        Command::Drain { name, within, cancel: false } => drain(name.as_deref(), within),
        Command::Drain { name, within: _, cancel: true } => cancel_drain(name.as_deref()),
        Command::Unseal { name } => unseal(name.as_deref()),
        Command::Events { name, follow } => events(name.as_deref(), follow),
        Command::Switch { link, server, pin, auto: _, tunnel } => {
            switch(tunnel.as_deref(), link, server, pin)
        }
        Command::Probe { link, tunnel } => probe(tunnel.as_deref(), link),
        #[cfg(feature = "demo")]
        Command::Demo { svg } => super::demo::run(svg),
    }
}

fn run(file: PathBuf) -> anyhow::Result<()> {
    let ended = run_daemon(file);
    if let Err(error) = &ended {
        // systemctl status shows it beside the exit status. The journal has all of it.
        systemd::report(format!("{error:#}").lines().next().unwrap_or_default());
    }
    ended
}

fn run_daemon(file: PathBuf) -> anyhow::Result<()> {
    let (daemon, config) = Daemon::load(file)?;
    // One thread: on two cores the datapath is faster on one than shared between threads, because
    // packets then never wait for another thread to wake.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = moderation::moderate(runtime.enable_all()).build()?;
    let ended = runtime.block_on(task::entire(async {
        match config {
            Config::Client(config) => client::run(config, daemon).await,
            Config::Server(config) => server::run(config, daemon).await,
        }
    }));
    // A question to the resolver runs on a thread of its own, and can hang there for long.
    runtime.shutdown_background();
    ended
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
