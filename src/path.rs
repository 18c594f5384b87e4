//! Network paths, and which of them carries the tunnel.
//!
//! A *path* is a link, a local address and a server address. The one QUIC connection of a client
//! runs over whichever path is active; [`socket::PathSocket`] hides the change from quinn.
//!
//! ```text
//!  network (what there is) ─▶ manager (what to do) ─▶ probe, socket (how)
//!                               └─ rank (which is better)
//! ```

mod burst;
mod dscp;
pub(crate) mod forgotten;
pub(crate) mod handshake;
pub(crate) mod manager;
pub(crate) mod network;
pub(crate) mod preference;
pub(crate) mod probe;
pub(crate) mod rank;
pub(crate) mod servers;
pub(crate) mod socket;
pub(crate) mod switch_meter;
pub(crate) mod udp;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::link::candidate::Candidate;

/// A path: where it leaves and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PathKey {
    /// The link's index.
    pub(crate) link: u32,
    pub(crate) local: IpAddr,
    pub(crate) server: SocketAddr,
}

impl From<&Candidate> for PathKey {
    fn from(candidate: &Candidate) -> Self {
        Self { link: candidate.index, local: candidate.source, server: candidate.server }
    }
}

/// The state of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    /// It carries the tunnel.
    Active,
    /// It carries the tunnel, and is silent.
    Suspect,
    /// It answered and could carry the tunnel at once.
    Standby,
    /// It is being asked.
    Probing,
    /// It is asked again later.
    Failed,
    /// It was not asked yet.
    Waiting,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Suspect => "active but silent",
            Self::Standby => "standby",
            Self::Probing => "being probed",
            Self::Failed => "failed, tried again later",
            Self::Waiting => "waiting to be probed",
        })
    }
}

/// Why the active path changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// The old path's link, address or route is gone.
    Gone,
    /// The old path was silent and the new one answered.
    Silent,
    /// The kernel refused to send on the old path.
    SendFailed,
    /// The new path is preferred.
    Preferred,
    /// The new path's round trip is shorter.
    Faster,
    /// A person chose the new path's link.
    Chosen,
}

impl Reason {
    /// Whether the old path still carries, so that what is in flight on it can be waited for.
    #[must_use]
    pub(crate) fn is_soft(self) -> bool {
        matches!(self, Self::Preferred | Self::Faster | Self::Chosen)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "the old path is gone",
            Self::Silent => "the old path was silent",
            Self::SendFailed => "the old path refused to send",
            Self::Preferred => "the new path is preferred",
            Self::Faster => "the new path is faster",
            Self::Chosen => "somebody chose the new path",
        })
    }
}
