//! What the client answers to `roamd status`, made of what is shown.

use std::time::{Duration, Instant, SystemTime};

use tracing::debug;

use super::{Line, Said, Shown, ShownPath};
use crate::{
    client::{Client, servers::RemoteServer},
    clock,
    daemon::status::{
        self, ClientState, ClientStatus, MoveStatus, PathStatus, QuicStatus, RecentStatus,
        RemoteState, RemoteStatus, SessionStatus, Status, SwitchStatus, UnusedLink,
    },
    link::candidate::Unusable,
    path::quality::Figures,
    tunnel::counters::Snapshot,
};

impl Client {
    pub(crate) fn status(&self) -> ClientStatus {
        let (queued, traffic) = (self.queue.bytes(), self.counters.snapshot());
        let delay = self.queue.delay();
        let mut status = self.shown.status(&self.interface, self.started, queued, delay, traffic);
        status.left_out.extend_from_slice(&self.reports.left_out.borrow());
        status.links = self.links();
        let servers = self.servers.all();
        let in_use = self.shown.server();
        let server = servers.iter().find(|it| Some(it.key()) == in_use).or(servers.first());
        let addresses = server.iter().flat_map(|it| &it.peer.addresses);
        status.server = addresses.map(ToString::to_string).collect();
        status.servers = servers.iter().map(|it| self.shown.remote_status(it)).collect();
        if status.state != ClientState::Connected {
            let now = clock::now();
            status.paths = servers.iter().flat_map(|it| it.attempts.status(now)).collect();
        }
        status
    }

    /// The status with what the kernel says of links that carry no path.
    pub(crate) async fn whole_status(&self) -> Status {
        let mut status = self.status();
        let (mut servers, config) = (self.servers.addresses(), self.config.borrow().clone());
        // A link to a proxy is of use although nobody knows where the server is.
        for server in &*self.servers.all() {
            let detours = server.detours.known(&server.peer);
            servers.extend(detours.into_iter().map(|(_, at)| at));
        }
        match self.roaming.network.unusable(&servers, &config.paths).await {
            Ok(links) => {
                status.unused_links = unused(links, &status.paths);
            }
            Err(error) => debug!(%error, "cannot read links"),
        }
        Status::client(status)
    }
}

impl Shown {
    /// The whole status, with what others know: the interface's name, when the daemon started, the
    /// bytes in the queue, how long they wait, and the datapath's counters.
    pub(super) fn status(
        &self,
        interface: &str,
        started: SystemTime,
        queued_bytes: usize,
        queue_delay: Duration,
        traffic: Snapshot,
    ) -> ClientStatus {
        self.with(|state| ClientStatus {
            state: state.state,
            server: Vec::new(),
            interface: interface.into(),
            addresses: state.addresses.clone(),
            routes: state.routes.clone(),
            left_out: state.declined.clone(),
            mtu: state.mtu,
            uptime: status::seconds_ago(started),
            sessions: state.sessions,
            last_error: state.last_error.clone(),
            refused_since: state.refused.map(status::seconds_ago),
            next_attempt: state
                .next_attempt
                .map(|at| status::rounded(at.saturating_duration_since(clock::now()))),
            portal: state.portal.clone(),
            home: state.home_status(),
            session: state.line.as_ref().and_then(|line| line.session(&state.paths)),
            paths: state
                .paths
                .iter()
                .map(|path| path.status(state.line.as_ref(), state.figures))
                .collect(),
            unused_links: Vec::new(),
            links: Vec::new(),
            bulk: state.bulk,
            servers: Vec::new(),
            moves: state.moves.last(|ago, it| MoveStatus { ago, ..it }),
            moves_by_reason: state.moves.by_reason(),
            switches: state.switches.last(|ago, it| SwitchStatus { ago, ..it }),
            switches_by_reason: state.switches.by_reason(),
            gaps: state.gaps.clone(),
            queued_bytes,
            queue_delay: status::milliseconds(queue_delay),
            traffic,
        })
    }

    /// What this server is to the client.
    fn remote_status(&self, server: &RemoteServer) -> RemoteStatus {
        let key = server.key();
        let (in_use, reserve) = self.with(|state| {
            let reserve = state.reserves.iter().find(|(reserve, ..)| *reserve == key).copied();
            (state.line.as_ref().map(|line| line.server.0), reserve)
        });
        let reserve = reserve.filter(|_| in_use.is_some());
        let (answered, rtt) = reserve.map_or((None, None), |(_, at, rtt)| (at, rtt));
        RemoteStatus {
            name: server.name().into(),
            public_key: key.to_string(),
            addresses: server.peer.addresses.iter().map(ToString::to_string).collect(),
            state: match reserve {
                _ if in_use == Some(key) => RemoteState::InUse,
                Some(_) => RemoteState::Reserve,
                None => RemoteState::Unused,
            },
            answered: answered.map(since),
            rtt: rtt.map(status::milliseconds),
        }
    }
}

impl Line {
    fn session(&self, paths: &[ShownPath]) -> Option<SessionStatus> {
        let rtt = status::milliseconds(self.rtt().unwrap_or_else(|| self.connection.rtt()));
        Some(SessionStatus {
            remote: paths.iter().find(|path| path.is_in_use())?.candidate.server,
            since: status::seconds_ago(self.since),
            software: self.software.clone(),
            quic: QuicStatus { rtt, ..QuicStatus::of(&self.connection) },
        })
    }
}

impl ShownPath {
    pub(super) fn status(&self, line: Option<&Line>, figures: Figures) -> PathStatus {
        let stats = self.socket.and_then(|id| line?.socket.stats(id)).unwrap_or_default();
        let Said { condition, rtt, portal, metered, ref choice, ref why } = self.said;
        let in_use = self.is_in_use();
        let choice = choice.as_ref().filter(|choice| choice.link == self.candidate.link);
        let rtt = line.filter(|_| in_use).map_or(rtt, Line::rtt);
        let (mtu, loss) = match line.filter(|_| in_use) {
            Some(line) => {
                let path = line.connection.stats().path;
                (Some(path.current_mtu), share(path.lost_packets, path.sent_packets))
            }
            None => {
                self.measured.map_or((None, None), |it| (Some(it.mtu), share(it.lost, it.sent)))
            }
        };
        PathStatus {
            link: self.candidate.link.clone(),
            local: self.candidate.source,
            server: self.candidate.server,
            transport: self.candidate.transport,
            state: condition,
            rtt: rtt.map(status::milliseconds),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            errors: stats.errors,
            mtu,
            loss,
            recent: line.filter(|_| in_use).map(|_| recent(figures)),
            portal,
            metered,
            chosen: choice.is_some(),
            pinned: choice.is_some_and(|choice| choice.pinned),
            why: why.clone(),
            last_heard: stats.last_heard.map(|at| status::rounded(clock::now() - at)),
        }
    }
}

fn recent(Figures { loss, rate: [rate_up, rate_down] }: Figures) -> RecentStatus {
    let [loss_up, loss_down] = loss.map(|loss| Some((loss? * 1e4).round() / 1e4));
    RecentStatus { loss_up, loss_down, rate_up, rate_down }
}

/// The share of packets that were lost.
fn share(lost: u64, sent: u64) -> Option<f64> {
    (sent > 0).then(|| (lost as f64 / sent as f64 * 1e4).round() / 1e4)
}

/// Those of these links that carry no path. One at home may have no other way to the server than the path there.
pub(super) fn unused(links: Vec<(String, Unusable)>, paths: &[PathStatus]) -> Vec<UnusedLink> {
    let unused = links.into_iter().filter(|(link, _)| paths.iter().all(|path| path.link != *link));
    unused.map(|(link, why)| UnusedLink { link, why: why.to_string() }).collect()
}

pub(super) fn since(at: Instant) -> f64 {
    status::rounded(clock::now().duration_since(at))
}
