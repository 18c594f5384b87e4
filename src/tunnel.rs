//! The datapath: inner packets between the TUN device and one QUIC connection.
//!
//! ```text
//!  uplink    PacketSource (split) ─▶ Queue ─▶ pump::uplink ─▶ DATAGRAM ─▶ quinn
//!  downlink  PacketSink (merge) ◀─ source check ◀─ pump::downlink ◀─ DATAGRAM ◀─ quinn
//! ```
//!
//! It knows nothing of paths: which network carries a datagram is decided below quinn, by the
//! socket. Nothing here is fatal but the loss of the device; a packet that can't go on is counted
//! by its reason ([`counters::Drop`]) and dropped.

pub mod counters;
pub mod device;
pub mod ecn;
pub mod flow;
pub mod inside;
pub mod merge;
pub mod pump;
pub mod queue;
pub mod split;
pub mod vnet;

#[cfg(test)]
mod offload_tests;
