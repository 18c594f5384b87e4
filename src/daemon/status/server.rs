//! What a server answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::SessionStatus;
use crate::{host::interface::LeftOut, tunnel::counters::Snapshot, wire::foreign::Foreign};

/// A server's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ServerStatus {
    /// The address that it listens on, the first one if there are several.
    pub listen: SocketAddr,
    /// The others.
    #[serde(default)]
    pub listen_also: Vec<SocketAddr>,
    /// The TUN device.
    pub interface: String,
    /// What the tunnel does without, since the kernel refuses it.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Seconds since the daemon started.
    pub uptime: f64,
    /// Every peer of the configuration.
    pub peers: Vec<PeerStatus>,
    /// What concerns no single peer.
    pub traffic: Snapshot,
    /// Sends that the kernel refused.
    pub send_errors: u64,
    /// Receives that failed.
    pub receive_errors: u64,
    /// Connections refused for an unknown key.
    pub refused_keys: u64,
    /// Connections refused since they offered another protocol, such as HTTP/3.
    #[serde(default)]
    pub refused_protocols: u64,
    /// The TCP port, if it has one.
    #[serde(default)]
    pub tcp: Option<TcpStatus>,
    /// The directory, if it has one.
    #[serde(default)]
    pub directory: Option<DirectoryStatus>,
    /// Whom the server waits for before it stops; none while it serves on.
    #[serde(default)]
    pub draining: Option<DrainingStatus>,
}

impl ServerStatus {
    /// All addresses that it listens on.
    pub(crate) fn listens_on(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.listen).chain(self.listen_also.iter().copied())
    }

    /// The same for people.
    pub(crate) fn listening(&self) -> String {
        self.listens_on().map(|it| it.to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// What a server knows of the directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DirectoryStatus {
    /// What etcd says of itself.
    pub state: DirectoryState,
    /// Seconds since that is so.
    pub since: f64,
    /// Why, unless it is current.
    pub reason: Option<Foreign>,
    /// Where it is in etcd.
    pub prefix: String,
    /// etcd's revision of what is in force; 0 if etcd was never heard of.
    pub revision: i64,
    /// Its peers that can be used.
    pub peers: usize,
    /// Its records that are not used.
    pub passed_over: Vec<PassedOverStatus>,
    /// Why what is known is not on disk.
    pub unsaved: Option<Foreign>,
}

/// What etcd says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DirectoryState {
    /// It was not heard of since the daemon started.
    Unasked,
    /// What it tells is in force.
    Current,
    /// It does not answer; what was known before is in force.
    Away,
    /// It has lost changes; what was known before is in force.
    Old,
}

/// A record of the directory that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PassedOverStatus {
    /// The peer's name, or the key of etcd.
    pub record: Foreign,
    /// Why.
    pub reason: Foreign,
}

/// A server that will stop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DrainingStatus {
    /// Sessions of clients with another server that were told to go away.
    pub clients: usize,
    /// Those of them that are still here.
    pub here: usize,
    /// Seconds until the server stops at the latest.
    pub left: f64,
}

/// A server's TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TcpStatus {
    /// The address that it listens on.
    pub listen: SocketAddr,
    /// Connections that carry datagrams.
    pub connections: usize,
    /// Connections refused at once: too many.
    pub refused: u64,
    /// Connections closed for silence, garbage or want of a known key.
    pub dismissed: u64,
    /// Datagrams to clients that were dropped: the connection was slow, or had ended.
    pub dropped: u64,
}

/// One peer of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PeerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its key.
    pub public_key: String,
    /// Its inner addresses.
    pub addresses: Vec<IpAddr>,
    /// Its session; none while not connected.
    pub session: Option<SessionStatus>,
    /// Its last session here, which has ended; none while it has one, and before the first one since the daemon started.
    #[serde(default)]
    pub last_session: Option<LastSessionStatus>,
    /// Where another machine with its key was seen lately; it has no session because a newer one does.
    #[serde(default)]
    pub rival: Option<IpAddr>,
    /// Which of several servers has its session; none if that is not known, or nobody has it.
    #[serde(default)]
    pub holder: Option<HolderStatus>,
    /// The host's routes to it; none where the server sets none, and without a session.
    #[serde(default)]
    pub routes: Option<RoutesStatus>,
    /// How often its session went on without routes, by reason.
    #[serde(default)]
    pub routes_withdrawn: BTreeMap<Withdrawal, u64>,
    /// Bytes that wait to be sent to it.
    pub queued_bytes: usize,
    /// How long the last packet that was sent had waited, in milliseconds.
    pub queue_delay: f64,
    /// Its datapath, as seen from the server.
    pub traffic: Snapshot,
}

/// A session that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LastSessionStatus {
    /// Seconds since it ended.
    pub ended: f64,
    /// Where the peer was.
    pub remote: SocketAddr,
}

/// Which of several servers has a peer's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct HolderStatus {
    /// What the server is called.
    pub server: Foreign,
    /// Grows from server to server.
    pub epoch: u64,
    /// Whether it is this one.
    pub here: bool,
}

/// The host's routes to a peer whose session is here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RoutesStatus {
    /// Why they were withdrawn, while the session goes on without them.
    pub withdrawn: Option<Withdrawal>,
    /// Seconds since they came or went.
    pub since: f64,
}

/// Why a session goes on without routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Withdrawal {
    /// Another server has the peer's session.
    Elsewhere,
    /// Another server may have it: neither etcd nor the peer was heard, or the peer not without a pause since.
    Unheard,
}
