//! The daemon of this configuration, if it runs: what it says of itself, and what is therefore its own.

use std::path::Path;

use super::finding::Finding;
use crate::{
    daemon::{
        control::ControlError,
        status::{ClientState, Role, Status},
    },
    host::instance::Instance,
    link::candidate::Transport,
};

/// What the daemon of this file says.
#[derive(Debug)]
pub(super) struct Running(Result<Box<Status>, ControlError>);

impl Running {
    /// Asks it.
    pub(super) fn of(file: &Path) -> Self {
        Self(Instance::of_file(file).status().map(Box::new))
    }

    /// Whether it runs and has this TUN device.
    pub(super) fn has_device(&self, name: &str) -> bool {
        self.0.as_ref().is_ok_and(|status| match &status.role {
            Role::Client(client) => client.interface == name,
            Role::Server(server) => server.interface == name,
        })
    }

    /// Whether it runs and listens on this port.
    pub(super) fn has_port(&self, transport: Transport, port: u16) -> bool {
        self.0.as_ref().is_ok_and(|status| match &status.role {
            Role::Client(_) => false,
            Role::Server(server) if transport.is_stream() => {
                server.tcp.is_some_and(|tcp| tcp.listen.port() == port)
            }
            Role::Server(server) => server.listens_on().any(|it| it.port() == port),
        })
    }

    /// Whether it runs, as a server.
    pub(super) fn is_server(&self) -> bool {
        self.0.as_ref().is_ok_and(|status| matches!(status.role, Role::Server(_)))
    }

    /// Whether no daemon runs, as far as can be told.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.0, Err(ControlError::NotRunning { .. }))
    }

    /// The first line for people.
    pub(super) fn finding(&self) -> Finding {
        let subject = "daemon";
        let status = match &self.0 {
            Ok(status) => status,
            Err(ControlError::NotRunning { .. }) => return Finding::good(subject, "not running"),
            Err(error) => {
                let advice = "run roamd doctor as root, or as a member of the daemon's group";
                return Finding::poor(subject, format!("does not say how it is: {error}"), advice);
            }
        };
        let pid = status.pid;
        match &status.role {
            Role::Server(server) => {
                let connected = server.peers.iter().filter(|peer| peer.session.is_some()).count();
                let peers = server.peers.len();
                let listen = server.listening();
                Finding::good(
                    subject,
                    format!(
                        "runs (pid {pid}), listens on {listen}, {connected} of {peers} peers connected"
                    ),
                )
            }
            Role::Client(client) if client.state == ClientState::Connected => {
                match client.paths.iter().find(|path| path.state.is_in_use()) {
                    Some(path) => Finding::good(
                        subject,
                        format!("runs (pid {pid}), connected over {}", path.link),
                    ),
                    None => Finding::poor(
                        subject,
                        format!("runs (pid {pid}), and no path works at the moment"),
                        "it goes on by itself when one does",
                    ),
                }
            }
            Role::Client(client) => {
                let reason =
                    client.last_error.as_deref().unwrap_or("its first attempt is under way");
                Finding::bad(
                    subject,
                    format!("runs (pid {pid}), not connected: {reason}"),
                    "what follows tells why, and roamd status when it tries again",
                )
            }
        }
    }
}
