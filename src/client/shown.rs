//! What the client shows of itself through `roamd status`, beyond its counters.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use ipnet::IpNet;
use quinn::{Connection, Endpoint};

use crate::{
    link::candidate::Candidate,
    path::socket::{PathId, PathSocket},
    status::{self, ClientState, ClientStatus, PathStatus, QuicStatus, SessionStatus},
    tunnel::{counters::Snapshot, interface::Interface},
};

/// The state of the client, written by its one task and read by whoever asks.
#[derive(Debug)]
pub(super) struct Shown(Mutex<State>);

#[derive(Debug)]
struct State {
    state: ClientState,
    last_error: Option<String>,
    mtu: u16,
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    sessions: u64,
    line: Option<Line>,
}

/// The connection of the day.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    pub(super) socket: Arc<PathSocket>,
    pub(super) path: PathId,
    pub(super) candidate: Candidate,
    pub(super) software: String,
    pub(super) since: SystemTime,
}

impl Shown {
    pub(super) fn new(mtu: u16) -> Self {
        Self(Mutex::new(State {
            state: ClientState::Connecting,
            last_error: None,
            mtu,
            addresses: Vec::new(),
            routes: Vec::new(),
            sessions: 0,
            line: None,
        }))
    }

    pub(super) fn connecting(&self) {
        self.with(|state| state.state = ClientState::Connecting);
    }

    pub(super) fn set_up(&self, interface: &Interface, mtu: u16) {
        self.with(|state| {
            state.mtu = mtu;
            state.addresses = interface.addresses().to_vec();
            state.routes = interface.routes().to_vec();
        });
    }

    pub(super) fn connected(&self, line: Line) {
        self.with(|state| {
            state.state = ClientState::Connected;
            state.sessions += 1;
            state.line = Some(line);
        });
    }

    pub(super) fn waiting(&self, reason: String) {
        self.with(|state| {
            state.state = ClientState::Waiting;
            state.last_error = Some(reason);
            state.line = None;
        });
    }

    /// Sessions begun so far.
    pub(super) fn sessions(&self) -> u64 {
        self.with(|state| state.sessions)
    }

    /// The connection of the day, which is not shown any more.
    pub(super) fn take_line(&self) -> Option<Line> {
        self.with(|state| state.line.take())
    }

    /// The whole status, with what others know: the interface's name, when the daemon started, the
    /// bytes in the queue and the datapath's counters.
    pub(super) fn status(
        &self,
        interface: &str,
        started: SystemTime,
        queued_bytes: usize,
        traffic: Snapshot,
    ) -> ClientStatus {
        self.with(|state| ClientStatus {
            state: state.state,
            interface: interface.into(),
            addresses: state.addresses.clone(),
            routes: state.routes.clone(),
            mtu: state.mtu,
            uptime: status::seconds_ago(started),
            sessions: state.sessions,
            last_error: state.last_error.clone(),
            session: state.line.as_ref().map(Line::session),
            paths: state.line.iter().filter_map(Line::path).collect(),
            queued_bytes,
            traffic,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Line {
    fn session(&self) -> SessionStatus {
        SessionStatus {
            remote: self.candidate.server,
            since: status::seconds_ago(self.since),
            software: self.software.clone(),
            quic: QuicStatus::of(&self.connection),
        }
    }

    fn path(&self) -> Option<PathStatus> {
        let stats = self.socket.stats(self.path)?;
        Some(PathStatus {
            link: self.candidate.link.clone(),
            local: self.candidate.source,
            server: self.candidate.server,
            active: self.socket.active() == Some(self.path),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            errors: stats.errors,
            last_heard: stats.last_heard.map(status::rounded),
        })
    }
}
