//! The real daemon as processes, in network namespaces, with real TUN devices, sockets and ssh.
//!
//! ```text
//!   client 0  eth0 10.77.0.2 fd77:0::2 ─────── c0 10.77.0.1 fd77::1   ┐
//!   client 1  eth0 10.77.1.2 fd77:1::2 ─────── c1 10.77.1.1 fd77:1::1 ┴ server, listens on 4433
//!
//!   inside the tunnel: server 10.66.0.1 fd66::1, client n 10.66.0.(2+n) fd66::(2+n)
//! ```
//! roaming.rs has a laptop between two networks instead, see `roamd_lab::scene`.
//!
//! Needs root, `ping` (iputils-ping), `ssh` and `sshd` (openssh-client, openssh-server); a test that
//! misses one of them fails and says so.

#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests in real time")]
#![expect(clippy::print_stderr, reason = "a failing test shows the logs of its daemons")]

#[cfg(feature = "etcd")]
mod bird;
mod budget;
mod counsel;
#[cfg(all(feature = "dbus", feature = "desktop"))]
mod desktop;
#[cfg(feature = "etcd")]
mod directory;
#[cfg(feature = "metrics")]
mod doors;
mod drill;
mod edges;
#[cfg(feature = "etcd")]
mod fleet;
#[path = "../../examples/forger.rs"]
mod forger;
mod forgery;
mod harness;
mod home;
mod hotel;
mod keystrokes;
mod lasting;
mod manager;
mod measured;
#[cfg(feature = "dbus")]
mod metered;
mod moving;
mod names;
mod narrow;
mod offload;
mod peer_routes;
mod ports;
mod proxy;
mod quality;
mod refusal;
mod relay;
mod reload;
mod repair;
mod rivals;
mod roaming;
mod rogue;
mod routing;
mod seal;
mod servers;
mod service;
mod ssh;
mod stop;
mod strict;
mod tcp_port;
mod tunnel;
