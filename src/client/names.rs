//! The server's addresses: those that are written down, and what its names stand for at the moment.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::watch, time};

use crate::config::HostPort;

/// How long the resolver may take; libc's own default is two tries of five seconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("can't resolve {name}: {reason}")]
pub struct ResolveError {
    name: String,
    reason: String,
}

/// Names and addresses of one server.
#[derive(Debug)]
pub struct Names {
    servers: Mutex<Vec<HostPort>>,
    known: watch::Sender<Vec<SocketAddr>>,
}

impl Names {
    /// Resolves nothing yet.
    #[must_use]
    pub fn new(servers: Vec<HostPort>) -> Self {
        Self { servers: Mutex::new(servers), known: watch::Sender::default() }
    }

    /// Takes other names from here on.
    pub fn replace(&self, servers: Vec<HostPort>) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    /// What was found last. The resolver is the first to fail when a network does.
    #[must_use]
    pub fn known(&self) -> Vec<SocketAddr> {
        self.known.borrow().clone()
    }

    /// Tells when other addresses are found.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.known.subscribe()
    }

    /// Whether there is a name among them, which may stand for something else one day.
    #[must_use]
    pub fn can_change(&self) -> bool {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.iter().any(|server| server.host.parse::<IpAddr>().is_err())
    }

    /// The addresses behind all names; an error only if there is none at all.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, ResolveError> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answers = join_all(servers.iter().map(resolve)).await;
        let mut addresses = Vec::new();
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(found) => addresses.extend(found),
                Err(error) => failure = Some(error),
            }
        }
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        match failure {
            Some(error) if addresses.is_empty() => Err(error),
            _ => {
                self.known.send_if_modified(|known| {
                    let differ = *known != addresses;
                    known.clone_from(&addresses);
                    differ
                });
                Ok(addresses)
            }
        }
    }
}

async fn resolve(server: &HostPort) -> Result<Vec<SocketAddr>, ResolveError> {
    let failed = |reason| ResolveError { name: server.host.clone(), reason };
    let lookup = tokio::net::lookup_host((server.host.as_str(), server.port));
    match time::timeout(TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_elapsed) => Err(failed("the resolver did not answer".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(servers: &[(&str, u16)]) -> Names {
        let servers =
            servers.iter().map(|(host, port)| HostPort { host: (*host).into(), port: *port });
        Names::new(servers.collect())
    }

    #[tokio::test]
    async fn one_name_that_fails_does_not_hide_the_others() {
        let names = names(&[("no-such-host.invalid", 1), ("192.0.2.1", 2), ("192.0.2.1", 2)]);
        assert_eq!(names.known(), []);
        let found = names.resolve().await.unwrap();
        assert_eq!(found, ["192.0.2.1:2".parse().unwrap()]);
        assert_eq!(names.known(), found);
    }

    #[tokio::test]
    async fn a_name_alone_that_fails_is_named() {
        let error = names(&[("no-such-host.invalid", 1)]).resolve().await.unwrap_err();
        assert!(error.to_string().starts_with("can't resolve no-such-host.invalid: "), "{error}");
    }
}
