//! What a shell offers when somebody presses tab: tunnels, links, servers and peers of this host.
//!
//! The shell runs roamd for each press, with the words so far. Only the tunnels' daemons are asked, so a user who may not
//! ask them is offered nothing; and none of them is waited for longer than [`PATIENCE`].

use std::{ffi::OsStr, sync::mpsc, thread, time::Duration};

use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _},
};

use super::tunnel;
use crate::{
    clock,
    daemon::status::{Role, Status},
    host::instance::{Instance, configurations},
};

/// The variable by which a shell asks; its value is the shell's name.
const VARIABLE: &str = "_ROAMD_COMPLETE";
/// How long all daemons together may take to answer. A hand that has pressed tab notices 100 ms.
const PATIENCE: Duration = Duration::from_millis(40);

/// Answers the shell and ends the process, if it is a shell that asks.
pub(super) fn answer(command: fn() -> clap::Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Tunnels that are configured.
pub(super) fn configured() -> ArgValueCompleter {
    tunnels(|| {
        let files = tunnel::in_folder(&configurations()).unwrap_or_default();
        files.iter().map(|file| Instance::of_file(file).name().to_owned()).collect()
    })
}

/// Tunnels that run.
pub(super) fn running() -> ArgValueCompleter {
    tunnels(|| daemons().into_iter().map(|(instance, _)| instance.title()).collect())
}

/// Links of the clients that run.
pub(super) fn links() -> ArgValueCompleter {
    words(|status| match status.role {
        Role::Client(client) => {
            let paths = client.paths.into_iter().map(|path| path.link);
            paths.chain(client.unused_links.into_iter().map(|unused| unused.link)).collect()
        }
        Role::Server(_) => Vec::new(),
    })
}

/// Servers of the clients that run.
pub(super) fn servers() -> ArgValueCompleter {
    words(|status| match status.role {
        Role::Client(client) => client.servers.into_iter().map(|server| server.name).collect(),
        Role::Server(_) => Vec::new(),
    })
}

/// Peers of the servers that run.
pub(super) fn peers() -> ArgValueCompleter {
    words(|status| match status.role {
        Role::Server(server) => server.peers.into_iter().map(|peer| peer.name).collect(),
        Role::Client(_) => Vec::new(),
    })
}

/// Names of tunnels, and where none of them fits the paths of files.
fn tunnels(names: fn() -> Vec<String>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let found = fitting(names(), current);
        if found.is_empty() && !current.is_empty() {
            let is_configuration = tunnel::is_configuration;
            return PathCompleter::file().filter(is_configuration).complete(current);
        }
        found
    })
}

fn words(of: fn(Status) -> Vec<String>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let said = daemons().into_iter().filter_map(|(_, status)| status);
        fitting(said.flat_map(of).collect(), current)
    })
}

/// What begins like `current`. What a shell would have to quote is left out.
fn fitting(mut names: Vec<String>, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_str().unwrap_or_default();
    let is_plain =
        |name: &str| name.chars().all(|it| it.is_alphanumeric() || "-_.:@%+".contains(it));
    names.retain(|name| name.starts_with(current) && is_plain(name));
    names.sort();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The daemons that answer, by name, with what they say; those that are busy say nothing.
fn daemons() -> Vec<(Instance, Option<Status>)> {
    let asked = Instance::candidates().unwrap_or_default();
    let (tell, told) = mpsc::channel();
    for (number, instance) in asked.iter().cloned().enumerate() {
        let tell = tell.clone();
        // It ends with the process, whether the daemon has answered or not.
        thread::spawn(move || tell.send((number, instance.status())));
    }
    drop(tell);
    let end = clock::now() + PATIENCE;
    let mut answers: Vec<_> = asked.iter().map(|_| None).collect();
    while let Ok((number, answer)) = told.recv_timeout(end.saturating_duration_since(clock::now()))
    {
        answers[number] = Some(answer.ok());
    }
    let daemons = asked.into_iter().zip(answers);
    let daemons = daemons.filter_map(|(instance, answer)| match answer {
        None => Some((instance, None)),
        Some(Some(status)) => Some((instance, Some(status))),
        Some(None) => None,
    });
    daemons.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(names: &[&str], current: &str) -> Vec<String> {
        let names = names.iter().copied().map(str::to_owned).collect();
        let fit = fitting(names, OsStr::new(current));
        fit.iter().map(|it| it.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn names_that_fit_are_offered_once_and_in_order() {
        assert_eq!(offered(&["wlan0", "wwan0", "wlan0", "eth0"], "w"), ["wlan0", "wwan0"]);
        assert_eq!(offered(&["office", "home"], ""), ["home", "office"]);
    }

    #[test]
    fn a_name_that_a_shell_would_expand_is_not_offered() {
        assert_eq!(
            offered(&["a b", "$(reboot)", "x;y", "`z`", "*", "dad's", "a\nb", "good"], ""),
            ["good"]
        );
    }
}
