//! The machine's networks, as the client sees them: the kernel's, or simulated ones.

pub(crate) mod kernel;

use std::{fmt, io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;

use super::preference::Rank;
use crate::link::{
    candidate::{Candidate, Unusable},
    monitor::Monitor,
};

/// Links, routes and sockets.
pub trait Network: fmt::Debug + Send + Sync {
    /// What could carry a path to one of `servers`, best first.
    fn candidates<'a>(
        &'a self,
        servers: &'a [SocketAddr],
    ) -> BoxFuture<'a, Result<Vec<(Rank, Candidate)>, rtnetlink::Error>>;

    /// The links that carry no path to any of `servers`, with the reason.
    fn unusable<'a>(
        &'a self,
        _servers: &'a [SocketAddr],
    ) -> BoxFuture<'a, Result<Vec<(String, Unusable)>, rtnetlink::Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Whether a captive portal answers in the server's place.
    fn portal<'a>(&'a self, _candidate: &'a Candidate) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// A socket on the candidate's link and address alone.
    fn bind(&self, candidate: &Candidate) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Tells when it is time to look at [`Self::candidates`] again.
    fn monitor(&self) -> io::Result<Monitor>;
}
