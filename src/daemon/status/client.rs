//! What a client answers.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::SessionStatus;
use crate::{
    daemon::usage::{Amount, BudgetStatus},
    host::interface::LeftOut,
    link::candidate::{Candidate, Transport},
    path::{Condition, Reason},
    tunnel::counters::Snapshot,
};

/// A client's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ClientStatus {
    /// `connecting`, `connected`, `waiting` (for the next attempt) or `paused`.
    pub state: ClientState,
    /// The server's names and addresses, as they are configured.
    #[serde(default)]
    pub server: Vec<String>,
    /// The TUN device.
    pub interface: String,
    /// Inner addresses; empty before the first session.
    pub addresses: Vec<IpNet>,
    /// Routes into the tunnel.
    pub routes: Vec<IpNet>,
    /// What the tunnel does without, since the client does not take it from the server or the kernel refuses it.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// The TUN device's MTU in bytes.
    pub mtu: u16,
    /// Seconds since the daemon started.
    pub uptime: f64,
    /// Sessions begun since then.
    pub sessions: u64,
    /// Why the last attempt or session ended.
    pub last_error: Option<String>,
    /// Seconds since the server first refused this client, which no session has followed; none if it did not.
    pub refused_since: Option<f64>,
    /// Seconds until the server is asked again; none while it is being asked or connected, or paused for a time that
    /// nobody said.
    pub next_attempt: Option<f64>,
    /// The link on which a captive portal was suspected since the last session began.
    pub portal: Option<String>,
    /// Where home is, while the path in use is one there.
    #[serde(default)]
    pub home: Option<HomeStatus>,
    /// The session; none while not connected.
    pub session: Option<SessionStatus>,
    /// The paths that there are; while not connected, those over which the server is asked.
    pub paths: Vec<PathStatus>,
    /// The links that carry no path.
    #[serde(default)]
    pub unused_links: Vec<UnusedLink>,
    /// What links carried, and may carry.
    #[serde(default)]
    pub links: Vec<LinkStatus>,
    /// Whether bulk waits, since the link in use has used up its budget.
    #[serde(default)]
    pub bulk: BulkState,
    /// The servers of the configuration, the preferred one first.
    #[serde(default)]
    pub servers: Vec<RemoteStatus>,
    /// The last changes of server, oldest first.
    #[serde(default)]
    pub moves: Vec<MoveStatus>,
    /// How often the server changed since the daemon started, by reason.
    #[serde(default)]
    pub moves_by_reason: BTreeMap<MoveReason, u64>,
    /// The last changes of path, oldest first.
    pub switches: Vec<SwitchStatus>,
    /// How often the path changed since the daemon started, by reason.
    pub switches_by_reason: BTreeMap<Reason, u64>,
    /// How long these changes took.
    pub gaps: Gaps,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
    /// How long the last packet that was sent had waited, in milliseconds.
    pub queue_delay: f64,
    /// The datapath.
    pub traffic: Snapshot,
}

/// Where a client is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClientState {
    /// Trying the server's addresses.
    Connecting,
    /// The tunnel carries packets.
    Connected,
    /// Between two attempts.
    Waiting,
    /// A person paused the tunnel.
    Paused,
}

/// A client at home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct HomeStatus {
    /// The link whose network is home.
    pub link: String,
    /// What the tunnel does there.
    pub state: HomeState,
}

/// Where a client is, as seen from home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HomeState {
    /// Elsewhere.
    Away,
    /// At home, and the tunnel carries on there.
    Direct,
    /// At home, and traffic goes outside of the tunnel.
    Aside,
}

impl fmt::Display for HomeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away => "away",
            Self::Direct => "the tunnel carries on",
            Self::Aside => "the tunnel stands aside",
        })
    }
}

/// A path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PathStatus {
    /// The link, such as `wlan0`.
    pub link: String,
    /// The local address.
    pub local: IpAddr,
    /// The server's address.
    pub server: SocketAddr,
    /// How packets get there.
    #[serde(default)]
    pub transport: Transport,
    /// Its state.
    pub state: Condition,
    /// Round-trip time in milliseconds, when last measured.
    pub rtt: Option<f64>,
    /// UDP payload sent by the tunnel, in bytes.
    pub sent_bytes: u64,
    /// UDP payload received by the tunnel, in bytes.
    pub received_bytes: u64,
    /// Sends and receives that the kernel refused.
    pub errors: u64,
    /// Seconds since the tunnel heard the server on it.
    pub last_heard: Option<f64>,
    /// Its MTU as far as it is known: UDP payload in bytes.
    pub mtu: Option<u16>,
    /// The share of packets lost, from 0 to 1: on the active path since the session began, on a
    /// standby of the questions asked over it.
    pub loss: Option<f64>,
    /// What it carries and loses at present; none unless it carries the tunnel.
    #[serde(default)]
    pub recent: Option<RecentStatus>,
    /// Whether a captive portal seems to answer in the server's place.
    pub portal: bool,
    /// Whether its link is metered.
    #[serde(default)]
    pub metered: bool,
    /// Whether a person chose its link, and whether others are never used then.
    #[serde(default)]
    pub chosen: bool,
    #[serde(default)]
    pub pinned: bool,
    /// Why it is used or is not, in words.
    pub why: String,
}

/// What the path in use did in the last second or two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RecentStatus {
    /// The share of packets lost on the way to the server, from 0 to 1.
    pub loss_up: Option<f64>,
    /// The share of packets that were missing on the way back.
    pub loss_down: Option<f64>,
    /// Bits per second to the server that it acknowledged.
    pub rate_up: u64,
    /// Bits per second from the server.
    pub rate_down: u64,
}

impl RecentStatus {
    /// The share of packets lost in the worse direction.
    #[must_use]
    pub(crate) fn loss(&self) -> Option<f64> {
        [self.loss_up, self.loss_down].into_iter().flatten().reduce(f64::max)
    }
}

impl PathStatus {
    /// A path that carries nothing of the tunnel yet.
    #[must_use]
    pub(crate) fn unused(candidate: &Candidate, state: Condition, why: String) -> Self {
        Self {
            link: candidate.link.clone(),
            local: candidate.source,
            server: candidate.server,
            transport: candidate.transport,
            state,
            rtt: None,
            sent_bytes: 0,
            received_bytes: 0,
            errors: 0,
            last_heard: None,
            mtu: None,
            loss: None,
            recent: None,
            portal: false,
            metered: false,
            chosen: false,
            pinned: false,
            why,
        }
    }
}

/// A link that carries no path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct UnusedLink {
    /// Its name.
    pub link: String,
    /// Why, in words.
    pub why: String,
}

/// What a link carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LinkStatus {
    /// Its name.
    pub link: String,
    /// Since the daemon started.
    #[serde(flatten)]
    pub amount: Amount,
    /// What it may carry, if the configuration says so.
    pub budget: Option<BudgetStatus>,
}

/// What becomes of flows that take much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BulkState {
    /// They go on.
    #[default]
    Flows,
    /// They wait, at both ends.
    Held,
    /// They wait at this end; the server does not know how to hold them.
    HeldHere,
}

/// A server as a client knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RemoteStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its key.
    pub public_key: String,
    /// Its names and addresses, as they are configured.
    pub addresses: Vec<String>,
    /// What it is to this client.
    pub state: RemoteState,
    /// Seconds since it last answered as the reserve; none if it did not, or has failed since.
    pub answered: Option<f64>,
    /// The round-trip time of that answer, in milliseconds.
    pub rtt: Option<f64>,
}

/// What a server is to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RemoteState {
    /// It has the session.
    InUse,
    /// It is asked now and then, and used when the one in use fails.
    Reserve,
    /// It is used when those before it fail.
    Unused,
}

/// A change of server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MoveStatus {
    /// Seconds since it was over.
    pub ago: f64,
    /// The name of the old server.
    pub from: String,
    /// That of the new one.
    pub to: String,
    /// Why.
    pub reason: MoveReason,
    /// Milliseconds from the last sign of the old server, if it was silent, to the first of the new one.
    pub gap: f64,
}

/// Why a session moved to another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MoveReason {
    /// A person chose the server.
    Chosen,
    /// The old server said that it will stop.
    GoesAway,
    /// No path reached the old server, and the new one answered.
    Silent,
    /// The new server is preferred, and answers again.
    Preferred,
    /// The configuration does not have the old server any more.
    Removed,
    /// The session with the old server ended.
    Ended,
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chosen => "somebody chose it",
            Self::GoesAway => "the old one will stop",
            Self::Silent => "the old one is silent",
            Self::Preferred => "it is preferred",
            Self::Removed => "the old one is not in the configuration any more",
            Self::Ended => "the session with the old one ended",
        })
    }
}

/// A change of path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SwitchStatus {
    /// Seconds since it was over.
    pub ago: f64,
    /// The old link; none if there was no path.
    pub from: Option<String>,
    /// How packets went over the old path.
    #[serde(default)]
    pub from_transport: Transport,
    /// The new link.
    pub to: String,
    /// How packets go over the new path.
    #[serde(default)]
    pub to_transport: Transport,
    /// The server's address on the new path.
    pub server: SocketAddr,
    /// Why.
    pub reason: String,
    /// Milliseconds from the last sign of the server on the old path to the first on the new one.
    pub gap: f64,
}

impl SwitchStatus {
    /// The old path and the new one, for people.
    pub(crate) fn ways(&self) -> (String, String) {
        let from = self.from.as_ref().map(|from| self.from_transport.mark(from));
        (from.unwrap_or_else(|| "no path".into()), self.to_transport.mark(&self.to))
    }

    /// The switch in one line, for people; `when` follows the paths.
    pub(crate) fn line(&self, when: impl fmt::Display) -> String {
        let ((from, to), Self { reason, gap, .. }) = (self.ways(), self);
        format!("{from} -> {to}{when}: {reason}, gap {gap:.0} ms")
    }
}

/// A histogram of gaps, see [`SwitchStatus::gap`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Gaps {
    /// Changes that took at most [`Self::BOUNDS`] milliseconds, each counted once; the last is what took longer.
    pub counts: [u64; BOUNDS.len() + 1],
    /// All gaps together, in milliseconds.
    pub sum: f64,
}

const BOUNDS: [f64; 9] = [1.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 5000.0, 30_000.0];

impl Gaps {
    /// The upper bounds of [`Self::counts`] in milliseconds.
    pub(crate) const BOUNDS: [f64; BOUNDS.len()] = BOUNDS;

    /// Counts a gap.
    pub(crate) fn add(&mut self, milliseconds: f64) {
        let at = Self::BOUNDS.iter().position(|bound| milliseconds <= *bound);
        self.counts[at.unwrap_or(Self::BOUNDS.len())] += 1;
        self.sum += milliseconds;
    }
}
