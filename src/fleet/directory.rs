//! The peers of the directory as they are now: from etcd, or from the cache for as long as that does not answer.

use std::{mem, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Known, Standing,
    belief::{Belief, Past},
    cache::Cache,
    entry::{Change, Entry, Snapshot},
    etcd::{Compare, Store, StoreError, Write, follow::News},
    record::{self, MARK, PEERS, SERVERS, ServerRecord},
};
use crate::{
    clock, config, host::instance::Instance, identity::PublicKey, task::Task,
    wire::foreign::Foreign,
};

/// How long the start waits for etcd: a server that knows a peer too late refuses it, and a refused client waits long
/// before it asks again.
const START: Duration = Duration::from_secs(2);
/// From one attempt to write the file to the next.
const SAVE_AGAIN: Duration = Duration::from_secs(30);
const SUFFIX: &str = "directory";

/// Follows the directory for as long as it is kept.
pub(crate) struct Directory {
    known: watch::Receiver<Arc<Known>>,
    _task: Task,
}

impl Directory {
    /// Reads the cache and waits a moment for etcd. The server's key and addresses are what the others hear of it.
    pub(crate) async fn open(
        config: Option<&config::Directory>,
        instance: &Instance,
        key: PublicKey,
        addresses: &[IpNet],
    ) -> Option<Self> {
        let config = config?;
        let cache = Cache::at(instance.state_file(SUFFIX), &config.etcd.prefix);
        let record = ServerRecord { name: config.name.clone(), addresses: addresses.to_vec() };
        Some(Self::with(Store::new(&config.etcd), cache, key, record).await)
    }

    pub(super) async fn with(
        store: Store,
        cache: Cache,
        key: PublicKey,
        record: ServerRecord,
    ) -> Self {
        let saved = cache.read().unwrap_or_else(|error| {
            let path = cache.path().display();
            warn!(%path, %error, "cannot read what was known of the directory");
            Default::default()
        });
        let mut keeper = Keeper {
            record,
            record_key: format!("{SERVERS}{}", record::name_of(key)),
            store,
            cache,
            belief: Belief::from_saved(saved),
            saved_removals: 0,
            known: Known { since: Some(clock::wall()), ..Known::default() },
        };
        keeper.tell();
        let (sender, mut known) = watch::channel(Arc::new(keeper.known.clone()));
        let task = Task::spawn("directory", keeper.keep(sender));
        let asked = known.wait_for(|known| known.standing != Standing::Unasked);
        let _ = timeout(START, asked).await;
        Self { known, _task: task }
    }

    /// What is known, now and from here on.
    pub(crate) fn known(&self) -> watch::Receiver<Arc<Known>> {
        self.known.clone()
    }
}

struct Keeper {
    store: Store,
    cache: Cache,
    belief: Belief,
    known: Known,
    /// The removals that the file knows of, see [`Belief::removals`].
    saved_removals: u64,
    record_key: String,
    record: ServerRecord,
}

impl Keeper {
    async fn keep(mut self, sender: watch::Sender<Arc<Known>>) {
        let mut follow = self.store.follow(PEERS);
        loop {
            let is_unsaved = self.known.unsaved.is_some();
            let mut next = tokio::select! {
                news = follow.next() => Some(news),
                () = sleep(SAVE_AGAIN), if is_unsaved => None,
            };
            let mut changed = next.is_none();
            while let Some(news) = next {
                match news {
                    // Whether etcd is away is known when it was asked.
                    News::Lost => {}
                    News::Away(why) => self.note(Standing::Away(Foreign::of(why))),
                    News::All(snapshot) => changed |= self.all(snapshot).await,
                    News::Changes(changes) => {
                        changed = true;
                        if self.changes(changes) {
                            follow = self.store.follow(PEERS);
                        }
                    }
                }
                next = follow.try_next();
            }
            if changed {
                self.tell();
            }
            sender.send_replace(Arc::new(self.known.clone()));
            if changed && self.save().await {
                sender.send_replace(Arc::new(self.known.clone()));
            }
        }
    }

    /// Hears of everything. Returns whether anything may have changed.
    async fn all(&mut self, snapshot: Snapshot) -> bool {
        let past = match self.past().await {
            Ok(past) => past,
            Err(why) => {
                // The follower will notice, too.
                self.note(Standing::Away(Foreign::of(why)));
                return false;
            }
        };
        self.belief.hear(snapshot, past);
        match self.belief.old() {
            Some(why) => self.note(Standing::Old(why.clone())),
            None => {
                self.note(Standing::Current);
                if let Err(why) = self.announce().await {
                    debug!(%why, "cannot tell the others of this server");
                }
            }
        }
        true
    }

    /// Returns whether everything must be heard again.
    fn changes(&mut self, changes: Vec<Change>) -> bool {
        changes.into_iter().fold(false, |again, change| again | self.belief.change(change))
    }

    /// Whether etcd's history has the mark that this server has seen.
    async fn past(&self) -> Result<Past, StoreError> {
        let Some(mark) = self.belief.mark() else { return Ok(Past::Same) };
        match self.store.read_at(MARK, self.belief.revision()).await {
            Ok(Some(Entry { value, modified, .. })) => {
                let is_same = (&value, modified) == (&mark.value, mark.modified);
                Ok(if is_same { Past::Same } else { Past::Other })
            }
            Ok(None) => Ok(Past::Other),
            // Compacted, or it has not come so far, which its revision tells.
            Err(StoreError::Refused(_)) => Ok(Past::Forgotten),
            Err(away) => Err(away),
        }
    }

    /// Tells the others of this server, unless they know.
    async fn announce(&self) -> Result<(), StoreError> {
        let value = record::write(&self.record);
        let found = self.store.read(&self.record_key).await?.entries.pop();
        if found.as_ref().is_some_and(|found| found.value == value) {
            return Ok(());
        }
        let key = self.record_key.clone();
        let unchanged = Compare::Modified(key.clone(), found.map_or(0, |found| found.modified));
        self.store.transact([unchanged], [Write::put(key, value)]).await.map(|_| ())
    }

    /// Puts what is believed where it can be seen.
    fn tell(&mut self) {
        (self.known.peers, self.known.passed_over) = self.belief.peers();
        self.known.revision = self.belief.revision();
    }

    fn note(&mut self, standing: Standing) {
        let (peers, revision) = (self.known.peers.len(), self.belief.revision());
        if self.known.standing == standing {
            return;
        }
        // Another reason is no other time.
        if mem::discriminant(&self.known.standing) != mem::discriminant(&standing) {
            self.known.since = Some(clock::wall());
        }
        match &standing {
            Standing::Unasked => {}
            Standing::Current => info!(revision, "the directory is heard of"),
            Standing::Away(why) => {
                warn!(peers, revision, %why, "going on with the directory as it was")
            }
            Standing::Old(why) => warn!(
                peers,
                revision,
                %why,
                "etcd has lost changes, going on with the directory as it was; if etcd is right, run roamd peer confirm"
            ),
        }
        self.known.standing = standing;
    }

    /// Returns whether there is anything new to say about it. No file is better than one with peers that were removed.
    async fn save(&mut self) -> bool {
        let (cache, saved) = (self.cache.clone(), self.belief.to_save());
        let removals = self.belief.removals();
        let is_outdated = removals != self.saved_removals;
        let written = spawn_blocking(move || {
            let Err(error) = cache.write(saved) else { return Ok(()) };
            if !is_outdated {
                return Err(error.to_string());
            }
            match cache.delete() {
                Ok(()) => Err(format!("{error}; the old file is deleted, for a peer was removed")),
                Err(_) => Err(format!("{error}; the old file still has a peer that was removed")),
            }
        });
        let unsaved = written.await.unwrap_or_else(|error| Err(error.to_string())).err();
        let unsaved = unsaved.map(Foreign::from);
        if unsaved.is_none() {
            self.saved_removals = removals;
        }
        let is_new = unsaved != self.known.unsaved;
        if let Some(why) = unsaved.as_ref().filter(|_| is_new) {
            let path = self.cache.path().display();
            warn!(%path, %why, "cannot keep the directory on disk");
        }
        self.known.unsaved = unsaved;
        is_new
    }
}
