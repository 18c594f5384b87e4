//! A QUIC connection that moves from path to path.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint};
use tokio::time;
use tracing::debug;

use crate::{
    clock,
    path::{handshake::Underlay, quality::Look, socket::PathSocket},
    quic::{
        self,
        congestion::{CongestionHandle, Remembered},
        liveness::{Signs, silence_limit},
    },
    tunnel::{counters::Counters, queue::Queue},
};

/// How many packets introduce a path: enough that the server may answer with ten.
const INTRODUCTION: usize = 4;

/// The connection, with what of it depends on its path.
#[derive(Debug)]
pub(super) struct MigratingConnection {
    pub(super) quinn: Connection,
    endpoint: Endpoint,
    socket: Arc<PathSocket>,
    congestion: CongestionHandle,
    /// The connection id is still the one of an old path.
    is_linkable: bool,
}

impl MigratingConnection {
    pub(super) fn new(
        quinn: Connection,
        underlay: &Underlay,
        congestion: CongestionHandle,
    ) -> Self {
        let (endpoint, socket) = (underlay.endpoint().clone(), underlay.socket().clone());
        Self { quinn, endpoint, socket, congestion, is_linkable: false }
    }

    pub(super) fn signs(&self) -> Signs {
        Signs {
            unheard_since: self.socket.unheard_since(),
            unacknowledged_since: self.congestion.unacknowledged_since(),
            owed: self.congestion.owed(),
            proven_at: self.congestion.newest_acknowledged(),
        }
    }

    pub(super) fn silence_limit(&self) -> Duration {
        silence_limit(self.quinn.rtt())
    }

    /// Waits until the server is silent for longer than it should be. Cancel safe.
    pub(super) async fn overdue(&self) {
        loop {
            let Some(at) = self.signs().overdue_at(self.silence_limit()) else {
                self.socket.went_unheard().await;
                continue;
            };
            let now = clock::now();
            if at <= now {
                return;
            }
            // What is sent meanwhile is not overdue before that.
            time::sleep_until(at.min(now + self.silence_limit()).into()).await;
        }
    }

    /// Waits until something is sent after a rest. Cancel safe.
    pub(super) async fn stirs(&self) {
        self.socket.stirs().await;
    }

    /// When the newest packet that was acknowledged was sent.
    pub(super) fn newest_acknowledged(&self) -> Option<Instant> {
        self.congestion.newest_acknowledged()
    }

    /// The path's own round trip, or quinn's estimate before there is one.
    pub(super) fn rtt(&self) -> Duration {
        let rtt = self.quinn.rtt();
        self.congestion.round_trip(rtt).unwrap_or(rtt)
    }

    /// The shortest round trip since the last switch.
    pub(super) fn shortest_rtt(&self) -> Option<Duration> {
        self.congestion.shortest_round_trip()
    }

    /// What is counted of the path in use.
    pub(super) fn look(&self, counters: &Counters, queue: &Queue, at: Instant) -> Look {
        let (acknowledged, sent_bytes) = self.congestion.delivered();
        let [received, received_bytes, missing] = counters.arrivals();
        let lost = self.quinn.stats().path.lost_packets;
        let (rtt, wait) = (self.congestion.take_recent_round_trip(), queue.stands());
        Look { at, acknowledged, lost, sent_bytes, received, missing, received_bytes, rtt, wait }
    }

    /// What is to be remembered of the path.
    pub(super) fn remembered(&self) -> Option<Remembered> {
        self.congestion.known()
    }

    /// Asks the server for a sign of life.
    pub(super) fn ask(&self) {
        quic::ask(&self.quinn);
    }

    /// Asks again, in a window of its own.
    pub(super) fn nudge(&self) {
        quic::nudge(&self.quinn, &self.congestion);
    }

    /// Nothing that was sent so far needs an answer; with `ping`, something is sent that does.
    pub(super) fn expect_nothing(&self, ping: bool) {
        self.socket.expect_nothing();
        if ping {
            quic::ping(&self.quinn);
        }
    }

    /// Lets the server follow to another path. Until it has validated that one it sends at most three
    /// times what came over it, in packets of 1200 bytes (RFC 9000 §8.1, §8.2.1): a lone small packet
    /// would keep it quiet for a round trip.
    pub(super) fn introduce(&self) {
        quic::pad(&self.quinn, INTRODUCTION);
    }

    /// Forgets the round trip of the path before.
    pub(super) fn measure_anew(&self) {
        self.congestion.measure_from(clock::now());
    }

    /// What was in flight is lost.
    pub(super) fn restart(&self) {
        self.congestion.restart_cold();
    }

    /// Goes on over a path of which `memory` is known from not long ago, if anything: what is in flight on the
    /// old path must neither fill the new one's window nor shrink it. The old path still works after a soft
    /// switch.
    pub(super) fn moved(&mut self, memory: Option<Remembered>, is_soft: bool) {
        match memory {
            Some(memory) => self.congestion.restart_warm(memory),
            None => self.congestion.restart_cold(),
        }
        self.congestion.expect_from(clock::now());
        self.is_linkable = true;
        if !is_soft {
            self.rotate();
        }
        self.introduce();
    }

    /// The old path of a soft switch is not read any more.
    pub(super) fn drained(&mut self) {
        if self.is_linkable {
            self.rotate();
        }
    }

    /// Goes on under another connection id, so that networks cannot tell that both paths belong together:
    /// one id must not be used from two local addresses (RFC 9000 §9.5). A soft switch breaks that rule
    /// until the old path has drained, since what the server still sends to the old id would be lost.
    fn rotate(&mut self) {
        self.is_linkable = false;
        if let Err(error) = self.endpoint.rebind_abstract(self.socket.clone()) {
            debug!(%error, "rebind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::session::{LTE, Tunnel, WIFI};

    /// A session that moves from wifi to lte; when it did.
    async fn moved(tunnel: &Tunnel, leave: impl AsyncFnOnce()) -> Instant {
        let begun = clock::now();
        leave().await;
        tunnel.after(2).await;
        assert_eq!(tunnel.states().last().map(String::as_str), Some("lte0 Active"));
        begun
    }

    /// Lets packets go to the server.
    async fn say(tunnel: &Tunnel) {
        for _ in 0..5 {
            tunnel.client.queue.push(&mut vec![vec![0x45; 100].into()]);
            tunnel.after(1).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_that_takes_over_from_a_dead_one_has_another_connection_id() {
        let tunnel = Tunnel::connected().await;
        let begun = moved(&tunnel, async || tunnel.world.change(WIFI, |it| it.up = false)).await;
        say(&tunnel).await;
        let (wifi, lte) = (begun - Duration::from_secs(60), begun);
        let (wifi, lte) =
            (tunnel.world.connection_ids(WIFI, wifi), tunnel.world.connection_ids(LTE, lte));
        assert!(!wifi.is_empty() && !lte.is_empty());
        assert!(wifi.is_disjoint(&lte), "{wifi:?} {lte:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_soft_switch_the_connection_id_changes_when_the_old_path_has_drained() {
        let tunnel = Tunnel::connected().await;
        say(&tunnel).await;
        let before = tunnel.world.connection_ids(WIFI, clock::now() - Duration::from_secs(5));
        let switch = async || drop(tunnel.switch("lte0", false).await.unwrap());
        let begun = moved(&tunnel, switch).await;
        let during = tunnel.world.connection_ids(LTE, begun);
        assert!(!during.is_disjoint(&before), "what is sent to the old id would be lost");
        tunnel.after(2).await;
        let drained = clock::now();
        say(&tunnel).await;
        let after = tunnel.world.connection_ids(LTE, drained);
        assert!(!after.is_empty() && after.is_disjoint(&before), "{before:?} {after:?}");
    }
}
