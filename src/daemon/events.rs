//! Events of a tunnel, as `roamd events` prints them: one JSON object per line, for notifications and the
//! user's own logs.
//!
//! The schema has a version like that of the status, see [`crate::daemon::status`].

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::{
    status::{DirectoryState, DrainingStatus, HomeState, MoveReason, SCHEMA, Withdrawal},
    usage::{BudgetLevel, Bytes},
};
use crate::{
    clock, config::OverBudget, link::candidate::Transport, path::Condition, wire::foreign::Foreign,
};

/// Events that a slow listener may leave unread before it misses some.
const BACKLOG: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Event {
    /// The first line: what happens from here on is told.
    Listening,
    /// Events came faster than this listener read them, and some are not told: those between the one before and this one.
    Missed {
        /// How many.
        count: u64,
    },
    /// Client: the tunnel carries packets.
    Connected {
        /// The link.
        link: String,
        /// The server's address.
        server: SocketAddr,
        /// Round-trip time in milliseconds.
        rtt: f64,
    },
    /// Client: the connection is lost; the session waits for the next.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Client: a person paused the tunnel, or changed for how long.
    Paused {
        /// Seconds until it goes on; none if a person says when.
        seconds: Option<f64>,
    },
    /// Client: the pause is over.
    Resumed,
    /// Client: a path came, went, or changed its state.
    Path {
        /// The link.
        link: String,
        /// The server's address.
        server: SocketAddr,
        /// Its state; none if it is gone.
        state: Option<Condition>,
        /// Why, in words.
        why: String,
    },
    /// Client: a captive portal seems to answer in the server's place.
    Portal {
        /// The link.
        link: String,
    },
    /// Client: a link has used up most of its budget, or all of it.
    Budget {
        /// The link.
        link: String,
        /// How far.
        level: BudgetLevel,
        /// Bytes that it carried in this period.
        used: u64,
        /// Bytes that it may carry.
        of: u64,
        /// What happens when it is used up.
        over: OverBudget,
    },
    /// Client: it came home, left, or the tunnel stands aside there, or not any more.
    Home {
        /// The link whose network is home.
        link: String,
        /// What the tunnel does.
        state: HomeState,
    },
    /// Client: the path in use was late for a while, and small packets went over a standby, too.
    Copies {
        /// The link of the path in use.
        link: String,
        /// Packets that were also sent over a standby.
        sent: u64,
        /// Packets that came over a standby first.
        used: u64,
    },
    /// Client: a drill cuts a link.
    Cut {
        /// The link.
        link: String,
        /// For how long at most.
        seconds: u32,
    },
    /// Client: the cut of a link is over.
    CutEnded {
        /// The link.
        link: String,
    },
    /// Client: the tunnel moved.
    Switched {
        /// The old link; none if there was no path.
        from: Option<String>,
        /// How packets went over it.
        from_transport: Transport,
        /// The new one.
        to: String,
        /// How packets go over it.
        to_transport: Transport,
        /// Why.
        reason: String,
        /// Milliseconds without a sign of the server.
        gap: f64,
    },
    /// Client: the session moved to another server.
    ServerChanged {
        /// The name of the old server.
        from: String,
        /// That of the new one.
        to: String,
        /// Why.
        reason: MoveReason,
        /// Milliseconds without a sign of a server.
        gap: f64,
    },
    /// Server: a peer has a session.
    PeerConnected {
        /// Its name.
        peer: String,
        /// Where it is.
        remote: SocketAddr,
    },
    /// Server: a peer's session ended.
    PeerDisconnected {
        /// Its name.
        peer: String,
        /// Why, in words that the peer may have chosen.
        reason: Foreign,
    },
    /// Server: the directory is heard of, or not any more.
    Directory {
        /// What etcd says of itself.
        state: DirectoryState,
        /// Its peers that can be used.
        peers: usize,
        /// Why, unless it is current.
        reason: Option<Foreign>,
    },
    /// Server: it will stop, and waits for clients to go elsewhere.
    Draining(DrainingStatus),
    /// Server: it serves on after all.
    DrainCancelled,
    /// Server: a peer that had a session here has one at another server.
    PeerMoved {
        /// Its name.
        peer: String,
        /// What the other server is called.
        server: Foreign,
    },
    /// Server: the host's routes to a peer were withdrawn while its session goes on, or are back.
    PeerRoutes {
        /// Its name.
        peer: String,
        /// Why they were; none when they are back.
        withdrawn: Option<Withdrawal>,
    },
    /// The configuration was read again.
    Reloaded {
        /// Keys whose change takes a restart.
        restart_needed: Vec<String>,
    },
}

/// An event with what is said of each.
#[derive(Debug, Serialize)]
struct Line<'a> {
    schema: u32,
    /// RFC 3339, UTC.
    time: String,
    #[serde(flatten)]
    event: &'a Event,
    /// For people.
    summary: String,
}

impl Event {
    /// The event as one line of JSON.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        let time = humantime::format_rfc3339_millis(clock::wall()).to_string();
        let line = Line { schema: SCHEMA, time, event: self, summary: self.summary() };
        Ok(serde_json::to_string(&line)? + "\n")
    }

    /// What a notification would say.
    #[must_use]
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Listening => "listening".into(),
            Self::Missed { count } => {
                format!("{count} events are missing: they came faster than they were read")
            }
            Self::Connected { link, server, rtt } => {
                format!("connected to {server} over {link}, {rtt:.0} ms")
            }
            Self::Disconnected { reason } => format!("not connected: {reason}"),
            Self::Paused { seconds: None } => "paused".into(),
            Self::Paused { seconds: Some(seconds) } => {
                let lasts = Duration::from_secs_f64(seconds.max(0.0).round());
                format!("paused for {}", humantime::format_duration(lasts))
            }
            Self::Resumed => "resumed".into(),
            Self::Path { link, state: None, .. } => format!("{link} is gone"),
            Self::Path { link, state: Some(state), why, .. } => format!("{link} {state}: {why}"),
            Self::Portal { link } => format!("{link} wants a login: open a browser"),
            Self::Budget { link, level: BudgetLevel::Reached, of, over, .. } => {
                let then = match over {
                    OverBudget::HoldBulk => "large transfers wait",
                    OverBudget::Stop => "it is not used any more",
                    OverBudget::Warn => "it is used as before",
                };
                format!("{link} has used up its budget of {}: {then}", Bytes(*of))
            }
            Self::Budget { link, used, of, .. } => {
                format!("{link} has carried {} of its {}", Bytes(*used), Bytes(*of))
            }
            Self::Home { link, state: HomeState::Away } => {
                format!("left home, which was reached over {link}")
            }
            Self::Home { link, state } => format!("at home over {link}: {state}"),
            Self::Copies { link, sent, used } => format!(
                "{link} was late: {sent} packets also sent over a standby, {used} came over one first"
            ),
            Self::Cut { link, seconds } => format!("a drill cuts {link} for {seconds} s"),
            Self::CutEnded { link } => format!("{link} is not cut any more"),
            Self::ServerChanged { from, to, reason, gap } => {
                format!("moved from server {from} to {to} ({reason}), {gap:.0} ms without a sign")
            }
            Self::Switched { from, from_transport, to, to_transport, reason, gap } => {
                let to = to_transport.mark(to);
                match from.as_ref().map(|from| from_transport.mark(from)) {
                    Some(from) => {
                        format!("moved from {from} to {to} ({reason}), {gap:.0} ms without a sign")
                    }
                    None => format!("moved to {to} ({reason})"),
                }
            }
            Self::PeerConnected { peer, remote } => format!("{peer} connected from {remote}"),
            Self::PeerDisconnected { peer, reason } => format!("{peer} disconnected: {reason}"),
            Self::Directory { state, peers, reason } => {
                let said = match state {
                    DirectoryState::Unasked => "the directory was not asked yet",
                    DirectoryState::Current => "the directory is current",
                    DirectoryState::Away => "the directory is away, its peers stay",
                    DirectoryState::Old => "the directory is old, its peers stay as they were",
                };
                let reason = reason.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
                format!("{said} ({peers} peers){reason}")
            }
            Self::Draining(draining) => draining.to_string(),
            Self::DrainCancelled => "draining was cancelled".into(),
            Self::PeerMoved { peer, server } => format!("{peer} moved to the server {server}"),
            Self::PeerRoutes { peer, withdrawn: None } => format!("routes to {peer} are back"),
            Self::PeerRoutes { peer, withdrawn: Some(why) } => {
                let why = match why {
                    Withdrawal::Elsewhere => "another server has its session",
                    Withdrawal::Unheard => "neither etcd nor it was heard",
                };
                format!("routes to {peer} are withdrawn: {why}")
            }
            Self::Reloaded { restart_needed } if restart_needed.is_empty() => {
                "configuration reloaded".into()
            }
            Self::Reloaded { restart_needed } => {
                let keys = restart_needed.join(", ");
                format!("configuration reloaded; a change of {keys} needs a restart")
            }
        }
    }
}

/// Sends events to all listeners.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Sends an event to all listeners.
    pub(crate) fn tell(&self, event: Event) {
        // An error means that there is no listener.
        let _ = self.0.send(event);
    }

    /// Listens from here on.
    #[must_use]
    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
