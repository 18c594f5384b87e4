//! The machine's networks, as the client sees them: the kernel's, or simulated ones.

pub(crate) mod kernel;

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;

use super::rank::LinkFacts;
use crate::{
    config::Paths,
    link::{
        candidate::{Candidate, Unusable},
        monitor::Hints,
    },
};

/// Links and routes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read links and routes: {0}")]
pub struct NetworkError(pub Box<dyn Error + Send + Sync>);

/// Links, routes and sockets.
pub trait Network: fmt::Debug + Send + Sync {
    /// What could carry a path to one of `servers`, and what decides between them, as `paths` says.
    fn candidates<'a>(
        &'a self,
        servers: &'a [SocketAddr],
        paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(Candidate, LinkFacts)>, NetworkError>>;

    /// The links that carry no path to any of `servers`, with the reason.
    fn unusable<'a>(
        &'a self,
        _servers: &'a [SocketAddr],
        _paths: &'a Paths,
    ) -> BoxFuture<'a, Result<Vec<(String, Unusable)>, NetworkError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Whether a captive portal answers in the server's place.
    fn portal<'a>(&'a self, _candidate: &'a Candidate) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// A socket on the candidate's link and address alone.
    fn bind(&self, candidate: &Candidate) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Hints of changes after which [`Self::candidates`] is to be read again.
    fn hints(&self) -> Hints;
}
