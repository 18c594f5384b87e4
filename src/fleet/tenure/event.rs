//! What a [`Tenure`](super::Tenure) is told, and what it wants done.

use std::{cmp::Ordering, net::IpAddr, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{identity::PublicKey, wire::foreign::Foreign};

/// A session of this server, see [`quinn::Connection::stable_id`].
pub(crate) type SessionId = usize;

/// What a client said of itself in its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its process.
    #[serde(rename = "instance")]
    pub(crate) process: u64,
    /// Which of the hellos of its process it is: a later one has a larger number.
    #[serde(rename = "hello")]
    pub(crate) number: u64,
}

/// The value at `sessions/KEY`: a server has the session of this peer. The key ends with the server's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The server's key.
    pub(crate) holder: PublicKey,
    /// What the server is called.
    pub(crate) name: Foreign,
    /// Grows with each claim on this peer's session, as far as the server that makes it knows.
    pub(crate) epoch: u64,
    /// What the client said; none in a claim that does not say both parts, or cannot be read.
    #[serde(flatten)]
    pub(crate) hello: Option<Hello>,
    /// Where the client was then.
    pub(crate) client: Option<IpAddr>,
}

/// A claim as etcd has it, and the lease that it ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) claim: Claim,
    pub(crate) lease: i64,
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A session begins here, and takes the place of the one before.
    Began { peer: PublicKey, session: SessionId, hello: Hello, client: Option<IpAddr> },
    /// It is over.
    Ended { peer: PublicKey, session: SessionId },
    /// Its client was heard.
    Heard { peer: PublicKey, session: SessionId },
    /// We have this lease, at least until then.
    Lease { id: i64, ends: Instant },
    /// etcd has these claims and no others, each put by a revision, and says what changes after `revision`.
    All { revision: i64, claims: Vec<(PublicKey, i64, Known)> },
    /// By this revision etcd has this claim on the peer's session, or none. They come in order.
    Changed { peer: PublicKey, revision: i64, known: Option<Known> },
    /// etcd does not say what changes any more.
    Away,
    /// etcd answered to a [`Request`].
    Answered(PublicKey, Answer),
    /// Some time has passed.
    Tick,
}

/// What became of a request to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done, with this revision.
    Done(i64),
    /// Somebody was faster.
    Beaten,
    /// There was no answer: it may have been done.
    Unclear,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// By etcd, which answers with [`Event::Answered`].
    Ask(Request),
    /// By this server.
    Do(Order),
}

/// What etcd is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Put the claim, if what is there was put by the revision `after`; 0: if nothing is.
    Claim { peer: PublicKey, claim: Claim, after: i64, lease: i64 },
    /// Delete our claim, if it is still the one of this revision.
    Release { peer: PublicKey, revision: i64 },
}

/// What this server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The session's routes go: another server has the peer.
    Withdraw { peer: PublicKey, session: SessionId },
    /// They go, since another server may have the peer: neither etcd nor the client is heard.
    Suspend { peer: PublicKey, session: SessionId },
    /// They come back.
    Restore { peer: PublicKey, session: SessionId },
    /// The session's connection is closed; it has no routes any more.
    Close { peer: PublicKey, session: SessionId, why: Why },
    /// Another server has the peer's session, or none has any more.
    Elsewhere { peer: PublicKey, holder: Option<Claim> },
}

impl Order {
    /// Whom it concerns.
    pub(crate) fn peer(&self) -> PublicKey {
        match self {
            Self::Withdraw { peer, .. }
            | Self::Suspend { peer, .. }
            | Self::Restore { peer, .. }
            | Self::Close { peer, .. }
            | Self::Elsewhere { peer, .. } => *peer,
        }
    }
}

/// Why a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The client has its session at another server.
    TakenOver,
    /// Another process with the client's key has, which is at this address.
    Displaced(Option<IpAddr>),
    /// Neither etcd nor the client is heard.
    CutOff,
}

impl Known {
    /// The claim, if another server than this one holds it.
    pub(super) fn elsewhere(&self, server: PublicKey) -> Option<&Claim> {
        Some(&self.claim).filter(|claim| claim.holder != server)
    }
}

impl Hello {
    /// Whether it is the later one of two hellos of one process.
    pub(super) fn order(self, other: Self) -> Option<Ordering> {
        (self.process == other.process).then(|| self.number.cmp(&other.number))
    }
}
