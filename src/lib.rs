//! roamd: a tunnel over one QUIC connection that migrates between networks.

pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod demo;
pub mod exit;
pub mod identity;
pub mod lab;
pub mod link;
pub mod logging;
pub mod netlink;
pub mod path;
pub mod quic;
pub mod server;
pub mod session;
pub mod shutdown;
pub mod status;
pub mod tls;
pub mod tunnel;
pub mod wire;
