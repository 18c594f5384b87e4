//! The datapath: inner packets between the TUN device and one QUIC connection.
//!
//! ```text
//!  uplink    PacketSource (split) ─▶ ingress ─▶ Queue ─▶ pump::uplink ─▶ DATAGRAM ─▶ quinn
//!  downlink  PacketSink (merge) ◀─ egress ◀─ pump::downlink ◀─ DATAGRAM ◀─ quinn
//! ```
//!
//! It knows nothing of paths: which network carries a datagram is decided below quinn, by the
//! socket. Nothing here is fatal but the loss of the device; a packet that cannot go on is counted
//! by its reason ([`counters::DropReason`]) and dropped.

mod acks;
pub(crate) mod chunks;
pub(crate) mod counters;
pub(crate) mod device;
pub(crate) mod ecn;
pub(crate) mod egress;
pub(crate) mod flow;
pub(crate) mod ingress;
pub(crate) mod inside;
pub(crate) mod merge;
pub(crate) mod pool;
pub(crate) mod pump;
pub(crate) mod queue;
pub(crate) mod repair;
pub(crate) mod split;
pub(crate) mod vnet;

#[cfg(test)]
mod tests;
