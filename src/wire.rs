//! What crosses the network inside QUIC: datagrams with inner packets, and the control stream.
//!
//! Everything here is pure: bytes in, values out. `docs/protocol.md` is the specification.

pub mod checksum;
pub mod control;
pub mod datagram;
pub mod fragment;
pub mod packet;
pub mod transport;
