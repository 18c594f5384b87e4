//! The links that could carry a path, in the user's order.

use std::net::SocketAddr;

use crate::{
    link::candidate::{Candidate, candidates},
    netlink::Netlink,
    path::preference::{Preferences, Rank},
};

/// Finds and ranks candidates.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
    own: u32,
    preferences: Preferences,
}

impl Links {
    /// All links but `own`, the tunnel itself.
    #[must_use]
    pub fn new(netlink: Netlink, own: u32, preferences: Preferences) -> Self {
        Self { netlink, own, preferences }
    }

    /// What could carry a path to one of `servers`, best first.
    pub async fn candidates(
        &self,
        servers: &[SocketAddr],
    ) -> Result<Vec<(Rank, Candidate)>, rtnetlink::Error> {
        let mut ranked = Vec::new();
        for server in servers {
            for candidate in candidates(&self.netlink, *server, self.own).await? {
                if let Some(rank) = self.preferences.rank(&candidate.link, candidate.metric) {
                    ranked.push((rank, candidate));
                }
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Ok(ranked)
    }
}
