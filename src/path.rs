//! Network paths, and which of them carries the tunnel.
//!
//! A *path* is a link, a local address, a server address and a transport. The one QUIC connection of a client
//! runs over whichever path is active; [`socket::PathSocket`] hides the change from quinn.
//!
//! ```text
//!  network (candidates) ─▶ manager (decisions) ─▶ probe, socket (effects)
//!                          ├─ rank (which path is better)
//!                          └─ quality (what is wrong with a path)
//! ```

mod burst;
pub(crate) mod cut;
mod dscp;
pub(crate) mod forgotten;
pub(crate) mod handshake;
pub(crate) mod manager;
pub(crate) mod meter;
pub(crate) mod network;
pub(crate) mod preference;
pub(crate) mod probe;
pub(crate) mod quality;
pub(crate) mod rank;
pub(crate) mod servers;
pub(crate) mod socket;
pub(crate) mod switch_meter;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::link::candidate::{Candidate, Transport};

/// Identifies a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PathKey {
    /// The link's index.
    pub(crate) link: u32,
    pub(crate) local: IpAddr,
    pub(crate) server: SocketAddr,
    pub(crate) transport: Transport,
}

impl From<&Candidate> for PathKey {
    fn from(candidate: &Candidate) -> Self {
        let Candidate { index: link, source: local, server, transport, .. } = *candidate;
        Self { link, local, server, transport }
    }
}

/// The state of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    /// It carries the tunnel.
    Active,
    /// It carries the tunnel and is silent.
    Suspect,
    /// It answered a probe and can carry the tunnel at once.
    Standby,
    /// It is being probed.
    Probing,
    /// Its probe failed; it is probed again later.
    Failed,
    /// It has not been probed yet.
    Waiting,
}

impl Condition {
    /// Whether the path carries the tunnel.
    pub(crate) fn is_in_use(self) -> bool {
        matches!(self, Self::Active | Self::Suspect)
    }

    /// Whether it carries the tunnel, or can at once.
    pub(crate) fn is_usable(self) -> bool {
        self.is_in_use() || self == Self::Standby
    }
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
    /// The old path lost packets, and the new one does not.
    Lossy,
    /// The old path's round trip grew, and the new one's is much shorter.
    Slow,
    /// The old path carried too little, and the new one carries more.
    Narrow,
    /// The user chose the new path's link.
    Chosen,
}

impl Reason {
    /// Whether the old path still works, so that packets in flight on it arrive.
    #[must_use]
    pub(crate) fn is_soft(self) -> bool {
        match self {
            Self::Gone | Self::Silent | Self::SendFailed => false,
            Self::Preferred
            | Self::Faster
            | Self::Chosen
            | Self::Lossy
            | Self::Slow
            | Self::Narrow => true,
        }
    }

    /// Whether much of what is in flight on the old path is likely lost.
    #[must_use]
    pub(crate) fn is_of_loss(self) -> bool {
        !self.is_soft() || matches!(self, Self::Lossy | Self::Narrow)
    }

    /// Whether the old path works, but badly.
    #[must_use]
    pub(crate) fn is_of_quality(self) -> bool {
        matches!(self, Self::Lossy | Self::Slow | Self::Narrow)
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
            Self::Lossy => "the old path loses packets",
            Self::Slow => "the old path became slow",
            Self::Narrow => "the old path carries too little",
            Self::Chosen => "somebody chose the new path",
        })
    }
}
