//! What several servers of the same peers share, through etcd. See docs/fleet.md.
//!
//! ```text
//!  etcd ─▶ etcd::Store ─▶ Follow ─▶ what somebody keeps of the keys below one prefix
//!                    └──▶ read, transact, lease
//! ```
//!
//! Nothing here is on the datapath, and nothing waits for etcd that a client waits for.

#![cfg_attr(not(test), expect(dead_code, reason = "what uses it comes with the next change"))]

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
pub(crate) mod record;
#[cfg(all(test, feature = "etcd"))]
mod tests;
