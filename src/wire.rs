//! What crosses the network inside QUIC: datagrams with inner packets, and the control stream.
//!
//! Everything here is pure: bytes in, values out. `docs/protocol.md` is the specification.

pub(crate) mod capsule;
pub(crate) mod checksum;
pub(crate) mod datagram;
pub(crate) mod foreign;
pub(crate) mod fragment;
pub(crate) mod inbox;
pub(crate) mod message;
pub(crate) mod numbered;
pub(crate) mod packet;
pub(crate) mod place;
pub(crate) mod question;
pub(crate) mod transport;
