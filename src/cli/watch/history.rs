//! What was seen lately: the figures behind the curves.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use crate::{
    daemon::status::{Role, Status},
    tunnel::counters::Snapshot,
};

/// Points of a curve that are kept.
const POINTS: usize = 240;

/// The last points of a curve.
pub(super) type Curve = VecDeque<u64>;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) status: Option<Status>,
    at: Option<Instant>,
    /// Bits per second.
    pub(super) sent: Curve,
    pub(super) received: Curve,
    /// Microseconds, by path or peer.
    pub(super) rtt: BTreeMap<String, Curve>,
    /// Packets lost of a thousand, by path.
    pub(super) loss: BTreeMap<String, Curve>,
}

impl History {
    pub(super) fn is_empty(&self) -> bool {
        self.status.is_none()
    }

    /// Takes in what the daemon said at `now`.
    pub(super) fn add(&mut self, status: Status, now: Instant) {
        if let (Some(before), Some(at)) = (&self.status, self.at) {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            let (old, new) = (total(before), total(&status));
            let rate = |old: u64, new: u64| (new.saturating_sub(old) as f64 * 8.0 / seconds) as u64;
            let (sent, received) = (rate(old.0, new.0), rate(old.1, new.1));
            push(&mut self.sent, sent);
            push(&mut self.received, received);
        }
        let micros = |milliseconds: f64| (milliseconds * 1000.0) as u64;
        match &status.role {
            Role::Client(client) => {
                for path in &client.paths {
                    let name = format!("{} {}", path.link, path.transport.mark(path.server));
                    if let Some(rtt) = path.rtt {
                        push(self.rtt.entry(name.clone()).or_default(), micros(rtt));
                    }
                    let loss = path.recent.map_or(path.loss, |it| it.loss()).unwrap_or_default();
                    push(self.loss.entry(name).or_default(), (loss * 1000.0) as u64);
                }
            }
            Role::Server(server) => {
                for peer in &server.peers {
                    if let Some(session) = &peer.session {
                        let curve = self.rtt.entry(peer.name.clone()).or_default();
                        push(curve, micros(session.quic.rtt));
                    }
                }
            }
        }
        self.at = Some(now);
        self.status = Some(status);
    }
}

fn push(curve: &mut Curve, value: u64) {
    if curve.len() == POINTS {
        curve.pop_front();
    }
    curve.push_back(value);
}

/// Bytes sent and received.
fn total(status: &Status) -> (u64, u64) {
    let of = |it: &Snapshot| (it.sent_bytes, it.received_bytes);
    match &status.role {
        Role::Client(client) => of(&client.traffic),
        Role::Server(server) => server
            .peers
            .iter()
            .map(|peer| of(&peer.traffic))
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1)),
    }
}
