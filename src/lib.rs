//! roamd: a tunnel over one QUIC connection that migrates between networks.
//!
//! ```text
//!  uplink    TUN ─▶ tunnel::queue ─▶ tunnel::pump ─▶ wire ─▶ quinn ─▶ path::socket ─▶ active path
//!  downlink  TUN ◀──────────────────── tunnel::pump ◀─ wire ◀─ quinn ◀─ path::socket ◀─ every path
//!  roaming   link::monitor ─▶ client::roam ─▶ path::manager ─▶ client::paths ─▶ path::socket
//!  control   client::dial ─▶ quic::session (control stream) ─▶ client::upkeep ─▶ host
//! ```
//!
//! From the data outwards:
//! - [`tunnel`]: the TUN device, the queue, the pumps. Knows nothing of paths.
//! - [`wire`]: what crosses the network, and text that others wrote. Pure.
//! - [`quic`], [`identity`]: how quinn and rustls are set up, how a session begins, and whose key is whose.
//! - [`path`]: which network path carries the tunnel, and the sockets below quinn. Knows nothing of tunnels.
//! - [`link`]: what the kernel tells of the machine's networks.
//! - [`host`]: what of this machine belongs to a tunnel: device, interface, rules, firewall, resolver.
//! - [`client`], [`server`]: the two roles.
//! - [`networkmanager`]: a client as a connection of NetworkManager's.
//! - [`fleet`]: what several servers of the same peers share.
//! - [`daemon`]: the process as its host sees it: control socket, status, metrics, log, systemd.
//! - `desktop`: notifications and a tray icon, beside the daemons.
//! - [`config`], [`cli`]: what people write and type.
//! - [`clock`], [`task`], [`mutex`]: the one clock, background tasks, and a lock without poison.

#![cfg_attr(
    test,
    expect(clippy::disallowed_methods, reason = "tests make up the time that they hand on")
)]

mod cli;
mod client;
mod clock;
// Where the enums are roamd's own, a match names every variant; those of the kernel and of libraries are too many.
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod config;
mod daemon;
#[cfg(feature = "desktop")]
mod desktop;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod fleet;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod host;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod identity;
mod link;
mod mutex;
#[cfg(feature = "networkmanager")]
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod networkmanager;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod path;
mod quic;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod server;
mod task;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod tunnel;
#[cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]
mod wire;

#[doc(hidden)]
pub mod internals;

pub use cli::main;

#[cfg(test)]
mod tests;
