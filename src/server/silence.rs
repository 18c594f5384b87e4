//! Holds what is meant for a peer that fell silent, until it is heard again.
//!
//! A peer whose path died moves to another one or comes back on the same. What is sent meanwhile is
//! lost, and TCP waits ever longer before it tries again; held back, it goes on at once.

use std::{convert::Infallible, time::Duration};

use quinn::Connection;
use tokio::time;
use tracing::debug;

use crate::{
    quic::{NUDGE, congestion::Handle, nudge, silence_limit},
    tunnel::queue::Queue,
};

/// How often it is looked at whether it answered.
const WATCH: Duration = Duration::from_millis(10);

/// Holds `queue` whenever the peer behind `connection` was sent to and is silent for too long.
/// Costs nothing while nothing is sent.
pub async fn watch(connection: &Connection, queue: &Queue, renewal: &Handle) -> Infallible {
    loop {
        queue.taken().await;
        let heard = heard(connection);
        time::sleep(silence_limit(connection)).await;
        let silent = || self::heard(connection) == heard && connection.close_reason().is_none();
        if !silent() || !renewal.awaits_answer() {
            continue;
        }
        debug!("silent: holding its packets");
        queue.hold(true);
        while silent() {
            nudge(connection, renewal);
            let asked = time::Instant::now();
            while silent() && asked.elapsed() < NUDGE {
                time::sleep(WATCH).await;
            }
        }
        if connection.close_reason().is_none() {
            renewal.fresh_start();
            queue.hold(false);
        }
    }
}

/// Datagrams that came from the peer.
fn heard(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
