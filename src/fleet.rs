//! What several servers of the same peers share, through etcd. See docs/fleet.md.
//!
//! ```text
//!  etcd ─▶ etcd::Store ─▶ Follow ─▶ belief ─▶ Directory ─▶ Known ─▶ the server's peers
//!             │                       └─▶ cache: a file, for a start without etcd
//!             ├──▶ admin: roamd peer --directory
//!             └──▶ tickets: the keys of tickets that every server opens
//!  sessions ─▶ keeper ─▶ tenure: who has whose session ─▶ routes, closing
//! ```
//!
//! Nothing here is on the datapath, and nothing waits for etcd that a client waits for.

#[cfg(feature = "etcd")]
pub(crate) mod admin;
#[cfg(feature = "etcd")]
mod belief;
#[cfg(feature = "etcd")]
mod cache;
#[cfg(feature = "etcd")]
pub(crate) mod directory;
#[cfg(feature = "etcd")]
mod entry;
#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(feature = "etcd")]
pub(crate) mod keeper;
#[cfg(feature = "etcd")]
pub(crate) mod record;
#[cfg(feature = "etcd")]
pub(crate) mod tenure;
#[cfg(test)]
#[cfg(feature = "etcd")]
mod tests;
#[cfg(feature = "etcd")]
pub(crate) mod tickets;
#[cfg(not(feature = "etcd"))]
mod without_etcd;

#[cfg(not(feature = "etcd"))]
pub(crate) use without_etcd::{admin, directory, tickets};

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    time::SystemTime,
};

use crate::{config::Peer, identity::PublicKey, wire::foreign::Foreign};

/// The peers of the directory, as far as this server knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Those that can be used. Names, keys and addresses are unique among them.
    pub(crate) peers: Vec<Peer>,
    /// The records that cannot.
    pub(crate) passed_over: Vec<PassedOver>,
    /// etcd's revision that they are of; 0 if etcd was never heard of.
    pub(crate) revision: i64,
    /// What etcd says of itself.
    pub(crate) standing: Standing,
    /// Since when that is so.
    pub(crate) since: Option<SystemTime>,
    /// Why the file that keeps all this cannot be written.
    pub(crate) unsaved: Option<Foreign>,
}

/// What etcd says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "nothing is ever asked"))]
pub(crate) enum Standing {
    /// It was not asked yet.
    #[default]
    Unasked,
    /// It answers, and what it tells is in force.
    Current,
    /// It does not answer: what was known before is in force.
    Away(Foreign),
    /// It answers, but it has lost changes that this server knows of: what was known before is in force, and what has
    /// changed since.
    Old(Foreign),
}

/// A record that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PassedOver {
    /// The peer's name, or the key of etcd.
    pub(crate) record: Foreign,
    /// Why.
    pub(crate) reason: Foreign,
}

impl PassedOver {
    pub(crate) fn new(record: &str, reason: impl fmt::Display) -> Self {
        Self { record: record.into(), reason: Foreign::of(reason) }
    }
}

/// What peers have already.
#[derive(Debug, Default)]
pub(crate) struct Taken<'a> {
    keys: HashSet<PublicKey>,
    names: HashSet<&'a str>,
    addresses: HashMap<IpAddr, &'a str>,
}

impl<'a> Taken<'a> {
    /// Notes what a peer has, or says what of it another one has already.
    pub(crate) fn claim(&mut self, peer: &'a Peer) -> Result<(), String> {
        let Peer { name, public_key, addresses } = peer;
        if self.keys.contains(public_key) {
            return Err("another peer has the same key".into());
        }
        if self.names.contains(name.as_str()) {
            return Err("another peer has the same name".into());
        }
        let double = addresses.iter().find_map(|it| Some((it, self.addresses.get(it)?)));
        if let Some((address, other)) = double {
            return Err(format!("has the address {address} of {other}"));
        }
        self.keys.insert(*public_key);
        self.names.insert(name);
        self.addresses.extend(addresses.iter().map(|address| (*address, name.as_str())));
        Ok(())
    }
}
