//! The status of a daemon, as `roamd status --json` prints it.
//!
//! The schema has a version, which changes when a key loses its meaning or its place; new keys may
//! come at any time. Durations are in seconds, times of a round trip in milliseconds.

mod client;
mod server;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use quinn::Connection;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    client::{
        BulkState, ClientState, ClientStatus, Gaps, HomeState, HomeStatus, LinkStatus, MoveReason,
        MoveStatus, PathStatus, RecentStatus, RemoteState, RemoteStatus, SwitchStatus, UnusedLink,
    },
    server::{
        DirectoryState, DirectoryStatus, DrainingStatus, HolderStatus, LastSessionStatus,
        PassedOverStatus, PeerStatus, RoutesStatus, ServerStatus, TcpStatus, Withdrawal,
    },
};
use crate::wire::foreign::Foreign;

/// The version of the schema.
pub(crate) const SCHEMA: u32 = 1;

/// A daemon's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// What depends on the role.
    #[serde(flatten)]
    pub role: Role,
}

/// The daemon's role and what belongs to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub(crate) enum Role {
    /// A client.
    Client(Box<ClientStatus>),
    /// A server.
    Server(Box<ServerStatus>),
}

/// A session and the connection that carries it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SessionStatus {
    /// The other side's outer address.
    pub remote: SocketAddr,
    /// Seconds since it began.
    pub since: f64,
    /// The program on the other side.
    pub software: Foreign,
    /// The connection.
    #[serde(flatten)]
    pub quic: QuicStatus,
}

/// What quinn knows of a connection.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct QuicStatus {
    /// Smoothed round-trip time in milliseconds.
    pub rtt: f64,
    /// Congestion window in bytes.
    pub window: u64,
    /// The path's MTU as far as it is known: UDP payload in bytes.
    pub path_mtu: u16,
    /// Packets lost.
    pub lost_packets: u64,
}

impl Status {
    /// A client's answer.
    #[must_use]
    pub(crate) fn client(status: ClientStatus) -> Self {
        Self::new(Role::Client(Box::new(status)))
    }

    /// A server's answer.
    #[must_use]
    pub(crate) fn server(status: ServerStatus) -> Self {
        Self::new(Role::Server(Box::new(status)))
    }

    fn new(role: Role) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Self { schema: SCHEMA, version, pid: std::process::id(), role }
    }
}

impl QuicStatus {
    /// The present state of `connection`.
    #[must_use]
    pub(crate) fn of(connection: &Connection) -> Self {
        let path = connection.stats().path;
        Self {
            rtt: milliseconds(path.rtt),
            window: path.cwnd,
            path_mtu: path.current_mtu,
            lost_packets: path.lost_packets,
        }
    }
}

/// Seconds from `then` to now; zero if the clock was set back.
#[must_use]
pub(crate) fn seconds_ago(then: SystemTime) -> f64 {
    then.elapsed().map(rounded).unwrap_or_default()
}

/// Seconds with milliseconds.
#[must_use]
pub(crate) fn rounded(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// Milliseconds with microseconds.
#[must_use]
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
