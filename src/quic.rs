//! How both ends set up quinn, and whether the other end is there.

pub(crate) mod close;
pub(crate) mod congestion;
mod endpoint;
pub(crate) mod lateness;
pub(crate) mod liveness;
mod ping;
mod reordering;
pub(crate) mod session;
pub(crate) mod tls;
mod transport;

pub(crate) use self::{
    endpoint::probe_endpoint,
    ping::{ask, nudge, pad, ping, touch},
    transport::{
        HANDSHAKE_TIMEOUT, MAX_UDP_PAYLOAD, PROBE_IDLE, SEND_BUFFER, SMALLEST_UDP_PAYLOAD,
    },
};
pub use self::{
    endpoint::{client_endpoint, server_endpoint, token_key},
    transport::{probe_transport, transport},
};
