//! Network paths and the sockets that carry them.
//!
//! A *path* is a link, a local address and a server address. The one QUIC connection of a client
//! runs over whichever path is active; [`socket::PathSocket`] hides the change from quinn.

mod burst;
mod dscp;
pub(crate) mod forgotten;
pub(crate) mod handshake;
pub(crate) mod manager;
pub(crate) mod network;
pub(crate) mod preference;
pub(crate) mod probe;
pub(crate) mod servers;
pub(crate) mod socket;
pub(crate) mod udp;
