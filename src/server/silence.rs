//! Holds what is meant for a peer that fell silent, until it is heard again.
//!
//! A peer whose path died moves to another one or comes back on the same. What is sent meanwhile is
//! lost, and TCP waits ever longer before it tries again; held back, it goes on at once.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use quinn::Connection;
use tokio::time;
use tracing::debug;

use crate::{
    clock,
    quic::{
        congestion::CongestionHandle,
        liveness::{NUDGE, silence_limit},
        nudge,
    },
    tunnel::queue::Queue,
    wire::datagram::PADDING,
};

/// How often it is looked at whether it answered.
const WATCH: Duration = Duration::from_millis(10);

/// Holds `queue` whenever the peer behind `connection` was sent to and is silent for too long.
/// Costs nothing while nothing is sent.
pub(crate) async fn watch(
    connection: &Connection,
    queue: &Queue,
    congestion: &CongestionHandle,
) -> Infallible {
    loop {
        queue.taken().await;
        let heard = heard(connection);
        time::sleep(silence_limit(connection.rtt())).await;
        let silent = || self::heard(connection) == heard && connection.close_reason().is_none();
        if !silent() || !congestion.awaits_answer() {
            continue;
        }
        debug!("silent: holding its packets");
        queue.hold(true);
        while silent() {
            nudge(connection, congestion);
            let asked = clock::now();
            while silent() && clock::now().duration_since(asked) < NUDGE {
                time::sleep(WATCH).await;
            }
        }
        if connection.close_reason().is_none() {
            congestion.restart_cold();
            queue.hold(false);
        }
    }
}

/// Keeps a session alive whose client keeps still. quinn would do the same for probe connections too, whose
/// transport parameters are sent before the server knows what the client wants.
pub(crate) async fn keep_alive(connection: &Connection, interval: Duration) -> Infallible {
    loop {
        let heard = heard(connection);
        time::sleep(interval).await;
        if self::heard(connection) == heard {
            let _ = connection.send_datagram(Bytes::from_static(&[PADDING]));
        }
    }
}

/// Datagrams that came from the peer.
fn heard(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
