//! The command line.

mod advice;
mod check;
mod complete;
#[cfg(feature = "demo")]
mod demo;
mod dispatch;
mod doctor;
mod drill;
mod exit;
mod import;
mod interrupt;
mod keys;
#[cfg(feature = "networkmanager")]
mod network_manager;
pub(crate) mod paint;
mod panic;
mod peer;
mod picture;
mod record;
mod report;
mod service;
mod status;
mod tally;
mod tell;
mod text;
mod tunnel;
mod unseal;
mod usage;
#[cfg(feature = "watch")]
mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use dispatch::main;

use check::check;
use complete::{configured, links, running, servers};
use doctor::doctor;
use drill::drill;
use import::wireguard;
use keys::{genkey, pubkey};
use peer::{PeerCommand, peer};
use report::report;
use service::{down, up};
use status::status;
use tell::{cancel_drain, drain, events, pause, probe, reload, resume, switch, whole_seconds};
use tunnel::Tunnel;
use unseal::unseal;
use usage::usage;
#[cfg(feature = "watch")]
use watch::watch;

/// The arguments of the `roamd` binary.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  roamd genkey --output /etc/roamd/home.key    Make this host's key
  roamd pubkey /etc/roamd/home.key             Show the half that the other side needs
  roamd check home                             Check /etc/roamd/home.toml before using it
  roamd up home                                Start it, now and at every boot
  roamd status                                 Show what it does

A tunnel is named by NAME, for /etc/roamd/NAME.toml, or by the path of its FILE. Where there is only one it need not be \
named.

The environment overrides the file: ROAMD_QUIC__IDLE_TIMEOUT=45s sets quic.idle-timeout.

Exit status: 0 success, 1 any other failure, 64 wrong usage, 65 not a key, 66 no input, \
69 the server refused a client started by hand, 70 a bug, 73 the output cannot be created, \
75 somebody uses the tunnel that a drill would disturb, 77 permission denied, 78 wrong configuration, 130 interrupted.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a private key
    #[command(after_help = "\
Examples:
  roamd genkey --output /etc/roamd/home.key
  roamd genkey | systemd-creds encrypt - home.key")]
    Genkey {
        /// Write the key to a new file of mode 0600 instead of standard output ("-")
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show the public key of a private key
    #[command(after_help = "\
Examples:
  roamd pubkey /etc/roamd/home.key
  roamd pubkey < /etc/roamd/home.key")]
    Pubkey {
        /// The private key's file [default: standard input]
        file: Option<PathBuf>,
    },
    /// Check a configuration: show it with every default filled in, or else every problem
    #[command(after_help = "\
Examples:
  roamd check home
  ROAMD_PRIVATE_KEY_FILE=test.key roamd check ./home.toml")]
    Check {
        /// The tunnel [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Add, list and remove the clients of a server
    Peer {
        /// What to do.
        #[command(subcommand)]
        command: PeerCommand,
    },
    /// Convert another program's configuration
    Import {
        /// Which program's.
        #[command(subcommand)]
        from: ImportFrom,
    },
    /// Find out what keeps a tunnel from working here, and what to do about it
    #[command(after_help = "\
Looks at kernel, permission, TUN device, names, links, filters and MTU, and asks the server over each link. \
Needs what the tunnel needs, so best as root. Fails if the tunnel cannot work.

Examples:
  roamd doctor
  roamd doctor home")]
    Doctor {
        /// The tunnel [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Start a tunnel's service, now and at every boot
    #[command(after_help = "\
The same as systemctl enable --now roamd@NAME, which shows the outcome as well; systemctl start does it once.

Examples:
  roamd up
  roamd up home")]
    Up {
        /// The tunnel [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Stop a tunnel's service, now and at every boot
    #[command(after_help = "\
The same as systemctl disable --now roamd@NAME; systemctl stop does it once.

Examples:
  roamd down
  roamd down home")]
    Down {
        /// The tunnel [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Run a tunnel until it is told to stop
    #[command(after_help = "\
Examples:
  roamd run home
  ROAMD_LOG__LEVEL=debug roamd run ./home.toml")]
    Run {
        /// The tunnel [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Show what a running tunnel does
    #[command(after_help = "\
Examples:
  roamd status
  roamd status home --json")]
    Status {
        /// The tunnel [default: all that run; with --json the only one]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Show what a client's links carried, by month and day
    #[command(after_help = "\
Counts IP packets of roamd on each link, as a provider does; STANDBY is the part that kept them warm. \
Asks the client, or reads what it wrote down if it does not run.

Examples:
  roamd usage
  roamd usage home --days
  roamd usage home --json")]
    Usage {
        /// The tunnel [default: the only one]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Show every day [default: the last fourteen]
        #[arg(long, conflicts_with = "months")]
        days: bool,
        /// Show months only
        #[arg(long)]
        months: bool,
    },
    /// Watch a running tunnel live: paths, throughput, queue, switches
    #[cfg(feature = "watch")]
    #[command(after_help = "\
Examples:
  roamd watch
  roamd watch home --once")]
    Watch {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// Print one picture instead
        #[arg(long)]
        once: bool,
    },
    /// Make a running tunnel read its configuration again
    #[command(after_help = "\
What cannot be used changes nothing, and is named.

Examples:
  roamd reload
  roamd reload home")]
    Reload {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
    },
    /// Send a server's clients to another server, and stop it when they have gone
    #[command(after_help = "\
Only clients with another [[server]] are told and waited for; the server stops at once where there is none. The others \
hear the goodbye then. Waits until the server has ended; systemd does not start it again.

Examples:
  roamd drain
  roamd drain --for 30s home && systemctl start roamd@home
  roamd drain --cancel home")]
    Drain {
        /// The server [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// How long clients may take
        #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
        within: Duration,
        /// Do not stop after all
        #[arg(long, conflicts_with = "within")]
        cancel: bool,
    },
    /// Lift the kill switch of a tunnel that no longer runs
    #[command(after_help = "\
A tunnel with tun.kill-switch that fails or is killed leaves its traffic held back. This removes its firewall table, \
its routing rules and routes, and gives kernel parameters their former values. A tunnel that runs is left alone:
stop it instead. Needs root.

Examples:
  roamd unseal
  roamd unseal home")]
    Unseal {
        /// The tunnel [default: all that do not run]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
    /// Print what happens to a running tunnel, one JSON object a line
    #[command(after_help = "\
Examples:
  roamd events
  roamd events --follow home | jq --unbuffered -r .summary | xargs -I{} notify-send roamd {}")]
    Events {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// Go on when the daemon is started again
        #[arg(short, long)]
        follow: bool,
    },
    /// Move a client's tunnel to a link, or to another of its servers
    #[command(
        override_usage = "\
roamd switch [--pin] <LINK> [NAME|FILE]
       roamd switch --server <SERVER> [NAME|FILE]
       roamd switch --auto [NAME|FILE]",
        after_help = "\
Without --pin the choice of a link holds until the link fails; that of a server does so in any case.

Examples:
  roamd switch wwan0
  roamd switch wwan0 home
  roamd switch --server berlin
  roamd switch --auto"
    )]
    Switch {
        /// The link, such as wlan0
        #[arg(required_unless_present_any = ["auto", "server"], add = links())]
        link: Option<String>,
        /// The server, by its name in the configuration
        #[arg(long, value_name = "SERVER", conflicts_with = "auto", add = servers())]
        server: Option<String>,
        /// Use this link alone, even when it fails
        #[arg(long, conflicts_with_all = ["auto", "server"])]
        pin: bool,
        /// Let roamd choose again
        #[arg(long)]
        auto: bool,
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
    },
    /// Show notifications and a tray icon on your desktop
    #[cfg(feature = "desktop")]
    #[command(after_help = "\
Runs as you, in your desktop session: systemctl --user enable --now roamd-notify. You must be in the group roamd:
sudo usermod -aG roamd $USER, and log in again.

Examples:
  roamd notify
  roamd notify --no-tray home")]
    Notify {
        /// The tunnel [default: all]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// Show no tray icon
        #[arg(long)]
        no_tray: bool,
    },
    /// Pause a client: it sends nothing, and traffic goes as if there were no tunnel
    #[command(after_help = "\
The session ends, routes and resolvers of the tunnel are withdrawn. Connections inside the tunnel's own network wait. \
With tun.kill-switch nothing that belongs in the tunnel leaves. A restart of the daemon ends the pause.

Examples:
  roamd pause
  roamd pause --for 10m home
  roamd resume")]
    Pause {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// How long [default: until roamd resume]
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        lasts: Option<Duration>,
    },
    /// End the pause of a client
    #[command(after_help = "\
Examples:
  roamd resume
  roamd resume home")]
    Resume {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
    },
    /// Probe the server over a client's links now
    #[command(
        override_usage = "\
roamd probe
       roamd probe <LINK> [NAME|FILE]
       roamd probe --all [NAME|FILE]",
        after_help = "\
Examples:
  roamd probe
  roamd probe wwan0
  roamd probe --all home"
    )]
    Probe {
        /// The link, such as wlan0 [default: all]
        #[arg(add = links())]
        link: Option<String>,
        /// All links
        #[arg(long)]
        all: bool,
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
    },
    /// Run as a connection of NetworkManager, which starts this
    #[cfg(feature = "networkmanager")]
    #[command(
        hide = true,
        after_help = "\
People use nmcli or the desktop's settings instead:
  nmcli connection import type roamd file home.toml
  nmcli connection up home"
    )]
    NetworkManager {
        /// The name on the system's D-Bus
        #[arg(long, value_name = "NAME", default_value = "org.freedesktop.NetworkManager.roamd")]
        bus_name: String,
        /// Print what a connection keeps of this file, for NetworkManager's import
        #[arg(long, value_name = "FILE", conflicts_with = "export")]
        import: Option<PathBuf>,
        /// Print the file that is the same as what a connection keeps, which is read from standard input
        #[arg(long)]
        export: bool,
    },
    /// Tell an agent of NetworkManager, which starts this, which secrets of a connection to ask for
    #[cfg(feature = "networkmanager")]
    #[command(
        hide = true,
        after_help = "\
People use nmcli or the desktop's switch instead:
  nmcli --ask connection up home"
    )]
    NetworkManagerDialog(network_manager::Dialog),
    /// Cut each link of a running client for some seconds, and measure what one would feel
    #[command(after_help = "\
Types a keystroke every 100 ms through the tunnel, moves it to each link in turn, and cuts that link as the tunnel alone \
sees it: nothing else of this machine is touched. A cut ends by itself, and with this command. Fails with status 75 \
while a TCP connection goes through the tunnel, unless --yes. The tunnel chooses its link as before afterwards. Ctrl-C \
ends the drill and lists what happened, a second one leaves at once.

Examples:
  roamd drill
  roamd drill home --for 5s --svg drill.svg")]
    Drill {
        /// The tunnel [default: the only one that runs]
        #[arg(value_name = "NAME|FILE", add = running())]
        tunnel: Option<Tunnel>,
        /// How long each link is cut, up to 10 s
        #[arg(long = "for", value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
        within: Duration,
        /// Also while others use the tunnel
        #[arg(short, long)]
        yes: bool,
        /// Cut metered links, too
        #[arg(long)]
        metered: bool,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Draw it into a file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Sum up recorded events: time per link, changes of path with their gaps, outages
    #[command(after_help = "\
The events are those of roamd events, recorded for as long as one likes.

Examples:
  roamd events --follow home > day.jsonl
  roamd report day.jsonl --svg day.svg
  roamd report day.jsonl --since 8h")]
    Report {
        /// The recorded events [default: standard input]
        file: Option<PathBuf>,
        /// Only events that are no older, such as 8h
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// Draw it into a file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Watch a tunnel survive on this machine alone
    #[cfg(feature = "demo")]
    Demo {
        /// Draw the show into a file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
}

/// Programs whose files can be read.
#[derive(Debug, Subcommand)]
pub enum ImportFrom {
    /// A client's file for wg-quick(8)
    #[command(after_help = "\
Keys are of another kind and are not taken over; the comments say what is to be done by hand.

Examples:
  roamd import wireguard /etc/wireguard/wg0.conf > /etc/roamd/wg0.toml")]
    Wireguard {
        /// The file
        file: PathBuf,
    },
}

/// Whether the error only says that the reader of standard output is gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let json = || error.downcast_ref::<serde_json::Error>()?.io_error_kind();
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind).or_else(json);
    kind == Some(io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::daemon::control::ControlError;

    #[test]
    fn a_closed_output_is_no_error_and_a_closed_control_socket_is_one() {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&gone().into()));
        assert!(is_broken_pipe(&Err::<(), _>(gone()).context("events").unwrap_err()));
        assert!(is_broken_pipe(&serde_json::Error::io(gone()).into()));
        let daemon = ControlError::Io { path: "/run/roamd/home.sock".into(), source: gone() };
        assert!(!is_broken_pipe(&daemon.into()));
    }
}
