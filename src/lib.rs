//! roamd: a tunnel over one QUIC connection that migrates between networks.
//!
//! ```text
//!  uplink    TUN ─▶ tunnel::queue ─▶ tunnel::pump ─▶ wire ─▶ quinn ─▶ path::socket ─▶ active path
//!  downlink  TUN ◀──────────────────── tunnel::pump ◀─ wire ◀─ quinn ◀─ path::socket ◀─ every path
//!  control   link ─▶ client::dial ─▶ session (control stream) ─▶ tunnel::interface
//! ```
//!
//! In the order of that flow:
//! - [`tunnel`]: the TUN device and its interface, the queue, the pumps. Knows nothing of paths.
//! - [`wire`]: what crosses the network. Pure.
//! - [`foreign`]: text that others wrote, made harmless. Pure.
//! - [`quic`], [`tls`], [`identity`]: how quinn and rustls are set up, and whose key is whose.
//! - [`path`]: the sockets below quinn. Knows nothing of tunnels.
//! - [`link`], [`netlink`]: what the kernel tells of the machine's networks.
//! - [`host`]: what else of this machine belongs to a tunnel: rules, firewall, resolver.
//! - [`session`]: how a session begins.
//! - [`client`], [`server`]: the two composition roots.
//! - [`config`], [`cli`], [`control`], [`door`], [`status`], [`events`], [`metrics`], [`paint`], [`logging`],
//!   [`daemon`], [`service`], [`signals`], [`exit`], [`rights`]: the daemon's edges towards people and systemd.
//! - [`doctor`]: what keeps a tunnel from working on this host.
//! - [`lab`], [`demo`]: namespaces with links, for `roamd demo` and the end-to-end tests.

pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod door;
pub mod events;
pub mod exit;
pub mod foreign;
pub mod host;
pub mod identity;
pub mod lab;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod netlink;
pub mod paint;
pub mod path;
pub mod quic;
pub mod rights;
pub mod server;
pub mod service;
pub mod session;
pub mod signals;
pub mod status;
pub mod tls;
pub mod tunnel;
pub mod wire;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
