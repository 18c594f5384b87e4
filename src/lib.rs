//! roamd: a tunnel over one QUIC connection that migrates between networks.

pub mod cli;
pub mod config;
pub mod exit;
pub mod identity;
pub mod link;
pub mod logging;
pub mod netlink;
pub mod path;
pub mod tunnel;
pub mod wire;
