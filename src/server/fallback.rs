//! Sends a packet when quinn has returned to an earlier path.
//!
//! A server's connection follows its client to a new address, and returns to the one before when the new one
//! does not answer a challenge (RFC 9000 §9.3.2). quinn then leaves its loss timer as it was, although
//! possibly no packet is in flight. The next packet sets the timer anew.
//! docs/development/quinn-migrate-loss-timer.md describes the failure without such a packet.

use std::convert::Infallible;

use quinn::Connection;

use crate::quic::{self, congestion::CongestionHandle};

/// Sends a packet at once whenever the connection has left a path for good.
pub(crate) async fn watch(connection: &Connection, congestion: &CongestionHandle) -> Infallible {
    loop {
        congestion.path_left().await;
        quic::pad(connection, 1);
    }
}
