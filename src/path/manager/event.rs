//! What the manager is told, and what it wants done.

use std::{net::IpAddr, time::Duration};

use crate::{
    config::Paths,
    link::{candidate::Candidate, neighbour::Hardware},
    path::{
        PathKey, Reason,
        quality::{Burst, Sample, Symptoms},
        rank::LinkFacts,
    },
};

/// How much more rarely a standby is asked where traffic costs money.
pub(crate) const METERED_CHECK: u32 = 20;

/// What bursts may take there where copies may take less: without any, a path that works badly would never be used again.
const LEAST_BURSTS: u32 = 16 << 10;

/// Input of the manager.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The complete list of candidates. A path that is not in it is gone.
    Candidates(Vec<(Candidate, LinkFacts)>),
    /// The tunnel's connection was established on this path.
    Connected(PathKey),
    /// The server that answers on this path said whether it has our session: another machine has not, nor has a
    /// server that was started again.
    HasSession(PathKey, bool),
    /// The tunnel's connection is lost, and the probes of all paths are closed.
    Disconnected,
    /// A probe of this path was answered, with the round-trip time if it was measured.
    Answered(PathKey, Option<Duration>),
    /// The round-trip time of the tunnel's own packets on the active path.
    Measured(PathKey, Duration),
    /// What the tunnel's own packets show of the active path; see [`Manager::minds`](super::Manager::minds).
    Symptoms(PathKey, Symptoms),
    /// The result of a burst over this path, which is empty if it was cut short; `None` if nothing came back.
    Sampled(PathKey, Option<Sample>),
    /// A probe of this path failed before its timeout: it was refused, or its socket failed.
    Refused(PathKey),
    /// A probe of this path was not answered in time.
    TimedOut(PathKey),
    /// Packets were sent on the active path, and an answer is overdue.
    Silent(PathKey),
    /// The server was heard again on the active path.
    Heard(PathKey),
    /// The kernel refused to send on this path.
    SendFailed(PathKey),
    /// A captive portal seems to answer on this path, which failed.
    Portal(PathKey),
    /// The router at this address of a link has this hardware address, which tells networks apart whose routers have one
    /// address.
    Router { link: u32, address: IpAddr, hardware: Hardware },
    /// The machine was suspended or this process was stopped: the state of every path is unknown.
    Woke,
    /// The user chose a link, or with `None` cancelled the choice.
    Choose(Option<Choice>),
    /// The user asks whether the paths over this link work, or with `None` all paths.
    Check(Option<String>),
}

/// The user's choice of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The link's name. The index of a modem changes when it is unplugged and plugged in again.
    pub link: String,
    /// Whether other links are never used. Otherwise the choice ends when the link fails.
    pub pinned: bool,
}

/// Output of the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Probe this path; [`Event::Answered`], [`Event::Refused`] or [`Event::TimedOut`] follows. It replaces an
    /// earlier probe of the same path.
    Ask(PathKey),
    /// Make a burst of echoes over this path; [`Event::Sampled`] should follow.
    Sample(PathKey, Burst),
    /// Stop probing this path, and close its sockets; what was asked before is not told any more. The active path keeps its
    /// sockets.
    Forget(PathKey),
    /// The same, since this path leads into another network. If it is the active path, what its packets showed is of the network
    /// before, and the window begins anew, or as it was when this network was left.
    Renew(PathKey),
    /// Make this path the active one.
    Switch(PathKey, Reason),
    /// Begin a new session over this path: its server does not have the present one.
    BeginAnew(PathKey),
}

/// The settings of a [`Manager`](super::Manager).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Timeout of a probe.
    pub probe_timeout: Duration,
    /// Interval between probes of a standby; `None` for none.
    pub standby_check: Option<Duration>,
    /// The same on a metered link.
    pub metered_check: Option<Duration>,
    /// Bytes a minute, in each direction, that bursts over a standby on a metered link take at most.
    pub metered_bursts: u32,
}

impl Settings {
    /// The settings that the configuration asks for.
    pub(crate) fn new(paths: &Paths) -> Self {
        Self {
            probe_timeout: paths.probe_timeout,
            standby_check: paths.standby_check,
            metered_check: paths.standby_check.map(|check| METERED_CHECK * check),
            metered_bursts: paths.metered_copies.max(LEAST_BURSTS),
        }
    }
}
