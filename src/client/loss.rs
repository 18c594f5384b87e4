//! How the last connection was lost, which tells where to look for the next one.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use super::{course::Course, servers::RemoteServer};
use crate::{clock, identity::PublicKey, link::candidate::Candidate};

/// How the last connection was lost.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) at: Instant,
    /// The server.
    pub(super) server: Option<PublicKey>,
    /// The path over which the server answered that it does not know the connection: it is tried first.
    pub(super) answered: Option<Candidate>,
    /// The address at which the server said goodbye: it is tried last.
    pub(super) left: Option<SocketAddr>,
}

impl Loss {
    /// Nothing was lost.
    pub(super) fn none() -> Self {
        Self { at: clock::now(), server: None, answered: None, left: None }
    }

    /// The same as one server is concerned.
    pub(super) fn of(&self, server: &RemoteServer) -> Self {
        let is_it = self.server == Some(server.key());
        let (answered, left) = (self.answered.clone(), self.left);
        Self { answered: answered.filter(|_| is_it), left: left.filter(|_| is_it), ..*self }
    }

    /// Sorts servers into the order in which to try them: one that answered that it does not know the connection first, then
    /// the chosen one, and those last that said goodbye, will stop, or were of no use lately.
    pub(super) fn order(
        &self,
        servers: &[Arc<RemoteServer>],
        course: &Course,
    ) -> Vec<Arc<RemoteServer>> {
        let mut servers = servers.to_vec();
        servers.sort_by_key(|server| {
            let (Self { answered, left, .. }, key) = (self.of(server), server.key());
            let is_last = left.is_some() || course.is_last(key);
            (answered.is_none(), is_last, Some(key) != course.chosen)
        });
        servers
    }
}
