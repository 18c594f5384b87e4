//! What crosses the network inside QUIC: datagrams with inner packets, and the control stream.
//!
//! Everything here is pure: bytes in, values out. `docs/protocol.md` is the specification.

pub mod checksum;
pub mod datagram;
pub mod foreign;
pub mod fragment;
pub mod message;
pub mod packet;
pub mod transport;
