//! Network paths and the sockets that carry them.
//!
//! A *path* is a link, a local address and a server address. The one QUIC connection of a client
//! runs over whichever path is active; [`socket::PathSocket`] hides the change from quinn.

mod burst;
mod dscp;
pub mod forgotten;
pub mod handshake;
pub mod manager;
pub mod network;
pub mod preference;
pub mod probe;
pub mod servers;
pub mod socket;
pub mod udp;
