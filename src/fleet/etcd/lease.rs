//! Leases: what keys end with when their server is not heard any more.

use std::time::{Duration, Instant};

use tokio::{sync::watch, time::sleep};
use tracing::debug;

use super::{Store, StoreError, follow::SHORTEST};
use crate::{clock, fleet::tenure::RENEWALS, task::Task};

impl Store {
    /// A lease that is renewed until it is dropped. Keys that were put with it end with it.
    pub(crate) async fn lease(&self, lasts: Duration) -> Result<Lease, StoreError> {
        let seconds = lasts.as_secs().max(1) as i64;
        let asked = clock::now();
        let granted = self.ask(|mut client| async move { client.lease_grant(seconds, None).await });
        let granted = granted.await?;
        let (id, lasts) = (granted.id(), counted(seconds, granted.ttl()));
        let (renewed, ends) = watch::channel(asked + lasts);
        let renew = renew(self.clone(), id, lasts, renewed);
        Ok(Lease { id, ends, _renewing: Task::spawn("lease", renew) })
    }

    /// Ends a lease that nobody renews any more, and deletes the keys that were put with it.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        self.ask(|mut client| async move { client.lease_revoke(lease).await }).await.map(|_| ())
    }
}

/// A lease, renewed for as long as this is kept. It lapses when it is dropped.
pub(crate) struct Lease {
    id: i64,
    ends: watch::Receiver<Instant>,
    _renewing: Task,
}

impl Lease {
    /// Its number, for [`Write::Put`](super::Write::Put).
    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// Until when etcd keeps it at least, by this machine's clock, whatever happens to the network.
    pub(crate) fn ends(&self) -> Instant {
        *self.ends.borrow()
    }

    /// Waits until it was renewed; false if it has ended: it was not renewed in time, or etcd does not know it.
    pub(crate) async fn renewed(&mut self) -> bool {
        self.ends.changed().await.is_ok()
    }
}

/// How long a lease is counted on. etcd grants a longer one than it was asked for if its elections take long
/// (--election-timeout), and whoever goes by the lease must not be cut off later for that.
fn counted(asked: i64, granted: i64) -> Duration {
    Duration::from_secs(granted.clamp(0, asked).unsigned_abs())
}

/// Renews the lease [`RENEWALS`] times in the time that it lasts, since its holder tells by that whether etcd is there. Returns
/// when it has ended.
async fn renew(store: Store, id: i64, lasts: Duration, ends: watch::Sender<Instant>) {
    let mut pause = lasts / RENEWALS;
    loop {
        let end = *ends.borrow();
        sleep(pause.min(end.saturating_duration_since(clock::now()))).await;
        if clock::now() >= end {
            return;
        }
        let asked = clock::now();
        let renewed = store.ask(|mut client| async move { client.lease_keep_alive(id).await });
        pause = match renewed.await {
            Ok(_) => {
                ends.send_replace(asked + lasts);
                lasts / RENEWALS
            }
            Err(StoreError::Away(_) | StoreError::Unclear(_) | StoreError::Material { .. }) => {
                SHORTEST
            }
            Err(StoreError::Refused(why)) => {
                debug!(%why, "the lease is gone");
                return;
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_not_counted_on_for_longer_than_it_was_asked_for() {
        for (granted, seconds) in [(10, 10), (75, 10), (7, 7), (0, 0), (-1, 0), (i64::MAX, 10)] {
            assert_eq!(counted(10, granted).as_secs(), seconds, "{granted}");
        }
    }
}
