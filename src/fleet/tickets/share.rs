//! Keeps the keys of tickets as they are in etcd.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::{Wrapping, renewed};
use crate::{
    clock, config,
    fleet::{
        entry::Change,
        etcd::{Compare, Store, Write, follow::News},
        record::Unusable,
    },
    identity::PrivateKey,
    quic::tls::{ServerTls, sealed::TicketKeys},
    task::Task,
};

/// The key in etcd.
const TICKETS: &str = "tickets";
/// How often a server looks whether the next key is missing. That is there twelve hours before it is needed.
const LOOK: Duration = Duration::from_secs(600);

/// Shares the ticket keys of `tls`, if the configuration has a key for that, for as long as what this returns is kept.
pub(crate) fn open(config: Option<&config::Directory>, tls: &ServerTls) -> Option<Task> {
    let config::Directory { etcd, ticket_key_file, .. } = config?;
    let key = PrivateKey::load(ticket_key_file.as_ref()?);
    let key = key.inspect_err(|error| warn!(%error, "the keys of tickets are not shared")).ok()?;
    Some(spawn(Store::new(etcd), &key, tls))
}

fn spawn(store: Store, fleet: &PrivateKey, tls: &ServerTls) -> Task {
    Task::spawn("tickets", run(store, Wrapping::new(fleet), tls.ticket_keys().clone()))
}

/// Keeps `keys` as they are in etcd, and draws those that are missing there. While etcd is away those that are
/// known go on until they are too old.
async fn run(store: Store, wrapping: Wrapping, keys: Arc<TicketKeys>) -> Infallible {
    let mut follow = store.follow(TICKETS);
    let mut shared = Shared { store, wrapping, keys, told: None, modified: None };
    let mut look = clock::now();
    loop {
        let is_new = tokio::select! {
            news = follow.next() => shared.hear(news),
            () = sleep_until(Instant::from_std(look)) => true,
        };
        if is_new {
            look = clock::now() + LOOK;
            shared.renew().await;
        }
    }
}

struct Shared {
    store: Store,
    wrapping: Wrapping,
    keys: Arc<TicketKeys>,
    /// What was said of a value that cannot be read.
    told: Option<Unusable>,
    /// The revision of what etcd has, 0 for nothing; none if that is not known or cannot be read.
    modified: Option<i64>,
}

impl Shared {
    /// Takes over what etcd has; whether a key may be missing there.
    fn hear(&mut self, news: News) -> bool {
        match news {
            News::All(snapshot) => {
                let found = snapshot.entries.first();
                self.take(found.map(|entry| (entry.modified, entry.value.as_slice())));
                true
            }
            News::Changes(changes) => match changes.last() {
                Some(Change::Put(entry)) => {
                    self.take(Some((entry.modified, &entry.value)));
                    false
                }
                Some(Change::Deleted { .. }) => {
                    self.take(None);
                    true
                }
                None => false,
            },
            News::Lost | News::Away(_) => {
                self.modified = None;
                false
            }
        }
    }

    fn take(&mut self, found: Option<(i64, &[u8])>) {
        let (modified, keys, told) = match found {
            None => (Some(0), Vec::new(), None),
            Some((modified, value)) => match self.wrapping.read(value) {
                Ok(keys) => (Some(modified), keys, None),
                // Somebody else may be able to read it: it stays, as do the keys that are known.
                Err(why) => (None, self.keys.get().to_vec(), Some(why)),
            },
        };
        if let Some(why) = &told
            && self.told != told
        {
            warn!(%why, "cannot read the keys of tickets in etcd");
        }
        self.told = told;
        self.modified = modified;
        self.keys.set(keys);
    }

    /// Draws the keys that are missing in etcd, unless somebody else does.
    async fn renew(&mut self) {
        let Some(modified) = self.modified else { return };
        let Some(keys) = renewed(&self.keys.get(), clock::unix()) else { return };
        let Some(value) = self.wrapping.write(&keys) else { return };
        let before = self.keys.get();
        if !before.is_empty() && !before.iter().any(|old| keys.iter().any(|key| key.id == old.id)) {
            warn!("the keys of tickets in etcd are of another time: is a server's clock wrong?");
        }
        let key = TICKETS.to_owned();
        let condition = Compare::Modified(key.clone(), modified);
        match self.store.transact([condition], [Write::put(key, value)]).await {
            Ok(Some(revision)) => {
                self.modified = Some(revision);
                self.keys.set(keys);
            }
            // The follower hears of what there is instead, if there is something.
            Ok(None) => {}
            Err(why) => debug!(%why, "drew no key for tickets"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        fleet::tests::{Cluster, put},
        quic::tls::sealed::ID,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Server {
        tls: ServerTls,
        _sharing: Task,
    }

    impl Server {
        fn new(store: Store, fleet: &PrivateKey) -> Self {
            let tls = ServerTls::new(&PrivateKey::generate().unwrap(), |_| true).unwrap();
            let _sharing = spawn(store, fleet, &tls);
            Self { tls, _sharing }
        }

        fn ids(&self) -> Vec<[u8; ID]> {
            self.tls.ticket_keys().get().iter().map(|key| key.id).collect()
        }

        async fn has_other_keys_than(&self, before: &[[u8; ID]]) -> Vec<[u8; ID]> {
            let has = async {
                while self.ids().is_empty() || self.ids() == before {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, has).await.expect("other keys");
            self.ids()
        }
    }

    #[tokio::test]
    async fn servers_that_begin_at_once_have_the_same_keys() {
        let cluster = Cluster::of(1).await;
        let fleet = PrivateKey::generate().unwrap();
        let servers: Vec<_> = (0..10).map(|_| Server::new(cluster.store(), &fleet)).collect();
        let keys = servers[0].has_other_keys_than(&[]).await;
        for server in &servers {
            let same = async {
                while server.ids() != keys {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, same).await.expect("the same keys");
        }
        sleep(Duration::from_millis(300)).await;
        assert!(servers.iter().all(|server| server.ids() == keys), "they were drawn once");
    }

    #[tokio::test]
    async fn known_keys_go_on_without_etcd_and_an_administrator_replaces_them_by_deleting_them() {
        let mut cluster = Cluster::of(1).await;
        let (store, fleet) = (cluster.store(), PrivateKey::generate().unwrap());
        let server = Server::new(cluster.store(), &fleet);
        let first = server.has_other_keys_than(&[]).await;
        cluster.kill(0);
        sleep(Duration::from_millis(500)).await;
        assert_eq!(server.ids(), first);
        cluster.start(0);
        while store.transact([], [Write::Delete(TICKETS.into())]).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        let second = server.has_other_keys_than(&first).await;
        assert!(second.iter().all(|id| !first.contains(id)));
    }

    #[tokio::test]
    async fn keys_that_cannot_be_read_are_left_alone() {
        let cluster = Cluster::of(1).await;
        let (store, fleet) = (cluster.store(), PrivateKey::generate().unwrap());
        let server = Server::new(cluster.store(), &fleet);
        let first = server.has_other_keys_than(&[]).await;
        let stranger = Server::new(cluster.store(), &PrivateKey::generate().unwrap());
        sleep(Duration::from_millis(500)).await;
        assert_eq!((stranger.ids(), server.ids()), (Vec::new(), first.clone()));
        store.transact([], [put(TICKETS, r#"{"version":2}"#)]).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(server.ids(), first, "what is known goes on");
        let there = store.read(TICKETS).await.unwrap();
        assert_eq!(there.entries[0].value, br#"{"version":2}"#);
    }
}
