//! Holds the packets for a silent peer until it is heard again.
//!
//! A peer whose path died moves to another path or comes back on the same one. Packets that are sent meanwhile are
//! lost, and TCP doubles its retransmission timeout each time (RFC 6298 §5.5). Held packets arrive as soon as the
//! peer is back.

use std::{convert::Infallible, time::Duration};

use quinn::Connection;
use tokio::time;
use tracing::debug;

use crate::{
    clock,
    quic::{
        congestion::CongestionHandle,
        liveness::{Liveness, Signs, Verdict, WATCH, silence_limit},
        nudge, touch,
    },
    tunnel::{pump, queue::Queue},
};

/// Holds `queue` whenever the peer behind `connection` was sent to and is silent for too long, unless `session` has a
/// standby for what cannot wait. Costs nothing while nothing is sent.
pub(crate) async fn watch(
    connection: &Connection,
    queue: &Queue,
    session: &pump::Session,
    congestion: &CongestionHandle,
) -> Infallible {
    let mut liveness = Liveness::default();
    loop {
        queue.taken().await;
        let (sent, heard) = (clock::now(), heard(connection));
        let limit = silence_limit(connection.rtt());
        // A connection that has ended owes no answer.
        let is_silent = || self::heard(connection) == heard && connection.close_reason().is_none();
        let verdict = |liveness: &mut Liveness| {
            let (is_silent, now) = (is_silent(), clock::now());
            let signs = Signs {
                unheard_since: is_silent.then_some(sent),
                unacknowledged_since: None,
                owed: congestion.owed(),
                proven_at: (!is_silent).then_some(now),
            };
            liveness.verdict(&signs, limit, now)
        };
        time::sleep(limit).await;
        if verdict(&mut liveness) != Some(Verdict::Suspect) {
            continue;
        }
        debug!("silent");
        liveness.suspect(clock::now());
        nudge(connection, congestion);
        while liveness.is_suspected() {
            queue.hold(!session.has_standby());
            time::sleep(WATCH).await;
            if verdict(&mut liveness) == Some(Verdict::Nudge) {
                nudge(connection, congestion);
            }
        }
        if connection.close_reason().is_none() {
            congestion.restart_cold();
            queue.hold(false);
        }
    }
}

/// Keeps a session alive whose client sends nothing. quinn would do the same for probe connections too, whose
/// transport parameters are sent before the server knows what the client wants.
pub(crate) async fn keep_alive(connection: &Connection, interval: Duration) -> Infallible {
    loop {
        let heard = heard(connection);
        time::sleep(interval).await;
        if self::heard(connection) == heard {
            touch(connection);
        }
    }
}

/// Datagrams that came from the peer.
fn heard(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
