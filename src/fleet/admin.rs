//! How a person changes the directory: each change is a transaction upon the [`Mark`], so that of two at once one
//! begins again, and sees what the other has done.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::sleep;

use super::{
    PassedOver,
    belief::{Belief, Past},
    entry::Entry,
    etcd::{Compare, Store, StoreError, Write, pauses},
    record::{self, MARK, Mark, PEERS, SERVERS, ServerRecord, Unusable},
};
use crate::{
    clock,
    config::{Etcd, Peer},
    identity::{KeyError, PublicKey},
};

/// How long others may be faster.
const CONTEST: Duration = Duration::from_secs(30);
/// From one attempt to the next, with jitter.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(500);

/// The directory, to be changed.
pub(crate) struct Directory {
    store: Store,
    prefix: String,
}

/// What is there at one moment.
struct Listing {
    mark: Option<Entry>,
    records: Vec<(Entry, Result<Peer, Unusable>)>,
    servers: Vec<ServerRecord>,
}

/// What becomes of a change that somebody wants to make.
enum Attempt<T> {
    Made(T),
    /// Somebody else was faster.
    Again,
    /// etcd did not say.
    Unclear,
}

impl Directory {
    pub(crate) fn new(etcd: &Etcd) -> Self {
        Self { store: Store::new(etcd), prefix: etcd.prefix.clone() }
    }

    /// The peers that can be used, and the records that cannot.
    pub(crate) async fn list(&self) -> anyhow::Result<(Vec<Peer>, Vec<PassedOver>)> {
        let mut belief = Belief::default();
        belief.hear(self.store.read(PEERS).await?, Past::Same);
        Ok(belief.peers())
    }

    /// Adds a peer with this key and name. `addresses` chooses among those that nobody has, of which it is told.
    pub(crate) async fn add(
        &self,
        name: &str,
        key: PublicKey,
        addresses: impl Fn(&HashSet<IpAddr>) -> anyhow::Result<Vec<IpAddr>>,
    ) -> anyhow::Result<Peer> {
        self.contest(async |listing: Listing, unclear| {
            let prefix = &self.prefix;
            if let Some(ours) = listing.peers().find(|peer| peer.public_key == key) {
                ensure!(unclear, "{prefix} has this key already, as {}", ours.name);
                return Ok(Attempt::Made(ours.clone()));
            }
            let is_free = listing.peers().all(|peer| peer.name != name);
            ensure!(is_free, "{prefix} has a peer called {name} already");
            let taken = listing.taken();
            let peer =
                Peer { name: name.to_owned(), public_key: key, addresses: addresses(&taken)? };
            if let Some(address) = peer.addresses.iter().find(|it| taken.contains(it)) {
                bail!("{prefix} has {address} already");
            }
            let (key, value) = record::of_peer(&peer);
            record::peer(&key, &value).map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
            // A record that cannot be read may be there all the same.
            let before = listing.records.iter().find(|(entry, _)| entry.key == key);
            let before = before.map_or(0, |(entry, _)| entry.modified);
            let write = Write::put(key.clone(), value);
            self.attempt(&listing, Compare::Modified(key, before), write, peer).await
        })
        .await
    }

    /// Removes the peer with this name or key, also if its record cannot be used. Returns what it was called.
    pub(crate) async fn remove(&self, name: &str) -> anyhow::Result<String> {
        let prefix = &self.prefix;
        self.contest(async |listing: Listing, unclear| {
            let mut found = listing.records.iter().filter(|(_, peer)| {
                peer.as_ref().is_ok_and(|it| it.name == name || it.public_key.to_string() == name)
            });
            let unusable = |it: &&(Entry, _)| it.0.key.strip_prefix(PEERS) == Some(name);
            let first = found.next().or_else(|| listing.records.iter().find(unusable));
            let Some((entry, peer)) = first else {
                if unclear {
                    return Ok(Attempt::Made(name.to_owned()));
                }
                let names: Vec<_> = listing.peers().map(|peer| peer.name.as_str()).collect();
                let names = if names.is_empty() { "nobody".into() } else { names.join(", ") };
                bail!("{prefix} has no peer called {name}, but {names}");
            };
            ensure!(
                found.next().is_none(),
                "{prefix} has several called {name}: say the key instead"
            );
            let called = peer.as_ref().map_or(name, |peer| peer.name.as_str()).to_owned();
            let unchanged = Compare::Modified(entry.key.clone(), entry.modified);
            self.attempt(&listing, unchanged, Write::Delete(entry.key.clone()), called).await
        })
        .await
    }

    /// Says that everything is right as it is, whatever the servers remember. Returns how many peers there are.
    pub(crate) async fn confirm(&self) -> anyhow::Result<usize> {
        self.contest(async |listing: Listing, _| {
            let count = listing.peers().count();
            // Servers may remember a generation that etcd has lost.
            let now = clock::wall().duration_since(std::time::UNIX_EPOCH)?.as_secs();
            let mut mark = listing.mark()?;
            mark.generation = now.max(mark.generation + 1);
            let write = Write::put(MARK, record::write(&mark));
            outcome(self.store.transact([listing.unchanged()], [write]).await, count)
        })
        .await
    }

    /// Tries until nobody else is faster. The attempt is told whether one before may have been made.
    async fn contest<T>(
        &self,
        attempt: impl AsyncFn(Listing, bool) -> anyhow::Result<Attempt<T>>,
    ) -> anyhow::Result<T> {
        let end = clock::now() + CONTEST;
        let mut unclear = false;
        for pause in pauses(SHORTEST, LONGEST) {
            match attempt(self.listing().await?, unclear).await? {
                Attempt::Made(made) => return Ok(made),
                Attempt::Again => {}
                Attempt::Unclear => unclear = true,
            }
            if clock::now() > end {
                break;
            }
            sleep(pause).await;
        }
        bail!("others have changed {} for too long", self.prefix)
    }

    async fn attempt<T>(
        &self,
        listing: &Listing,
        unchanged: Compare,
        write: Write,
        made: T,
    ) -> anyhow::Result<Attempt<T>> {
        let mut random = [0; 12];
        SystemRandom::new().fill(&mut random).map_err(|_| KeyError::Random)?;
        let mark = Write::put(MARK, record::write(&listing.mark()?.next(random)));
        let done = self.store.transact([listing.unchanged(), unchanged], [write, mark]).await;
        outcome(done, made)
    }

    async fn listing(&self) -> anyhow::Result<Listing> {
        let servers = self.store.read(SERVERS).await?.entries;
        let mut listing = Listing {
            mark: None,
            records: Vec::new(),
            servers: servers.iter().filter_map(|it| record::read(&it.value).ok()).collect(),
        };
        for entry in self.store.read(PEERS).await?.entries {
            if entry.key == MARK {
                listing.mark = Some(entry);
            } else {
                let peer = record::peer(&entry.key, &entry.value);
                listing.records.push((entry, peer));
            }
        }
        Ok(listing)
    }
}

fn outcome<T>(done: Result<Option<i64>, StoreError>, made: T) -> anyhow::Result<Attempt<T>> {
    match done {
        Ok(Some(_)) => Ok(Attempt::Made(made)),
        Ok(None) => Ok(Attempt::Again),
        Err(StoreError::Unclear(_)) => Ok(Attempt::Unclear),
        Err(error) => Err(error.into()),
    }
}

impl Listing {
    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.records.iter().filter_map(|(_, peer)| peer.as_ref().ok())
    }

    /// All addresses that somebody has.
    fn taken(&self) -> HashSet<IpAddr> {
        let servers = self.servers.iter().flat_map(|server| &server.addresses);
        let peers = self.peers().flat_map(|peer| peer.addresses.iter().copied());
        peers.chain(servers.map(ipnet::IpNet::addr)).collect()
    }

    fn mark(&self) -> anyhow::Result<Mark> {
        match &self.mark {
            None => Ok(Mark::default()),
            Some(entry) => record::read(&entry.value)
                .map_err(|why| anyhow::anyhow!("{why}"))
                .with_context(|| format!("cannot read {MARK}")),
        }
    }

    /// Nobody has changed the directory since.
    fn unchanged(&self) -> Compare {
        Compare::Modified(MARK.into(), self.mark.as_ref().map_or(0, |entry| entry.modified))
    }
}
