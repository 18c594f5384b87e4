//! The connection to etcd. All that must agree between servers goes through a [`Store`].
//!
//! A store keeps to one member for as long as that answers, and then asks the next one. Keys are given and told
//! without the prefix of the configuration: `peers/…` is the key `/roamd/home/peers/…` in etcd.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, EventType, GetOptions, Identity, PutOptions,
    TlsOptions, Txn, TxnOp, WatchOptions, WatchResponse,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::debug;
use zeroize::Zeroizing;

use crate::{clock, config::Etcd, task::Task, wire::foreign::Foreign};

/// How long one member may take to answer, the handshake of TCP and TLS included.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a call may take with all members that it asks.
const CALL: Duration = Duration::from_secs(3);
/// How often a follower asks whether etcd still answers.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// From the first failed attempt of a follower to the next, doubled up to the longest, with jitter.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// Keys that are asked for at once.
const PAGE: usize = 2000;
/// The size of an answer in bytes at most.
const MOST_ANSWER: usize = 64 << 20;
/// The size of a file with certificates or a key, in bytes, at most.
const MOST_MATERIAL: u64 = 1 << 20;
/// News that wait for a slow follower. Then etcd waits, too.
const NEWS: usize = 16;

/// Why etcd did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// No member answered, and nothing was changed.
    #[error("etcd does not answer: {0}")]
    Away(Foreign),
    /// The member did not answer to a transaction, which may have been done all the same: read, and look.
    #[error("etcd did not say whether it made the change: {0}")]
    Unclear(Foreign),
    /// It answered with an error.
    #[error("etcd refuses: {0}")]
    Refused(Foreign),
    /// A certificate or a key cannot be used.
    #[error("{}: {reason}", path.display())]
    Material {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What is below some prefix at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Which etcd.
    pub(crate) cluster: u64,
    /// The moment. It counts all changes of etcd, whoever made them.
    pub(crate) revision: i64,
    /// In the order of the keys.
    pub(crate) entries: Vec<Entry>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Without the prefix of the configuration.
    pub(crate) key: String,
    /// Anybody with access to etcd has written it.
    pub(crate) value: Vec<u8>,
    /// The revision that made the key; another one if it was deleted and made again.
    pub(crate) created: i64,
    /// The revision of the last change.
    pub(crate) modified: i64,
    /// The lease that the key ends with; 0 for none.
    pub(crate) lease: i64,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has this value now.
    Put(Entry),
    /// It is gone since `revision`.
    Deleted {
        /// Without the prefix of the configuration.
        key: String,
        /// The revision that deleted it.
        revision: i64,
    },
}

/// What a follower hears, in this order: `All`, then `Changes`, until `Away`, after which `All` comes again.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// Everything, at the beginning and after each interruption: what is not there was deleted.
    All(Snapshot),
    /// What changed since; in order, each once.
    Changes(Vec<Change>),
    /// etcd cannot be asked any more; said once, and again when the reason changes.
    Away(StoreError),
}

/// A condition of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Compare {
    /// The key was last changed by this revision; 0: there is no such key.
    Modified(String, i64),
}

/// What a transaction does.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Sets a key.
    Put {
        /// Without the prefix of the configuration.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease that it ends with, [`Lease::id`]; 0 for none.
        lease: i64,
    },
    /// Deletes a key, which may be absent.
    Delete(String),
}

/// etcd, as the configuration says. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    access: Etcd,
    /// The prefix with a slash at its end.
    root: String,
    place: Mutex<Place>,
}

/// The member that is asked.
#[derive(Default)]
struct Place {
    /// How many were left before, and thereby which of the endpoints it is.
    number: usize,
    client: Option<Client>,
}

/// The connection to a member.
struct Member {
    number: usize,
    client: Client,
}

impl Store {
    /// Nothing is connected yet, and no file read.
    pub(crate) fn new(access: &Etcd) -> Self {
        let root = format!("{}/", access.prefix.trim_end_matches('/'));
        let access = access.clone();
        Self { shared: Arc::new(Shared { access, root, place: Mutex::default() }) }
    }

    /// What there is below `prefix`, such as `peers/`; a name without a slash at its end is that of one key.
    pub(crate) async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.read_from(prefix, 0).await
    }

    /// What a key was at a revision. etcd refuses one that it does not have any more, or not yet.
    pub(crate) async fn read_at(
        &self,
        key: &str,
        revision: i64,
    ) -> Result<Option<Entry>, StoreError> {
        Ok(self.read_from(key, revision).await?.entries.pop())
    }

    /// Revision 0 is the present one.
    async fn read_from(&self, prefix: &str, revision: i64) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot { cluster: 0, revision, entries: Vec::new() };
        let (mut from, end) = (self.key(prefix), end_of(&self.key(prefix)));
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE as i64)
                .with_revision(snapshot.revision);
            let asked = self.ask(|client| {
                let mut kv = client.kv_client().max_decoding_message_size(MOST_ANSWER);
                let (from, options) = (from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            });
            let mut answer = asked.await?;
            let header = answer.header().ok_or_else(no_header)?;
            snapshot.cluster = header.cluster_id();
            if snapshot.revision == 0 {
                snapshot.revision = header.revision();
            }
            let more = answer.more();
            let entries = answer.take_kvs();
            if let Some(last) = entries.last() {
                from = [last.key(), b"\0"].concat();
            }
            snapshot.entries.extend(entries.iter().filter_map(|it| self.entry(it)));
            if !more || entries.is_empty() {
                return Ok(snapshot);
            }
        }
    }

    /// Does all of `writes` if all of `conditions` hold, or nothing; gives the revision of the change, or none.
    pub(crate) async fn transact(
        &self,
        conditions: impl IntoIterator<Item = Compare>,
        writes: impl IntoIterator<Item = Write>,
    ) -> Result<Option<i64>, StoreError> {
        let compares = conditions.into_iter().map(|it| match it {
            Compare::Modified(key, revision) => {
                etcd_client::Compare::mod_revision(self.key(&key), CompareOp::Equal, revision)
            }
        });
        let operations = writes.into_iter().map(|it| match it {
            Write::Put { key, value, lease } => {
                TxnOp::put(self.key(&key), value, Some(PutOptions::new().with_lease(lease)))
            }
            Write::Delete(key) => TxnOp::delete(self.key(&key), None),
        });
        let transaction =
            Txn::new().when(compares.collect::<Vec<_>>()).and_then(operations.collect::<Vec<_>>());
        let asked = self.call(false, |mut client| {
            let transaction = transaction.clone();
            async move { client.txn(transaction).await }
        });
        let answer = asked.await?;
        let revision = answer.header().ok_or_else(no_header)?.revision();
        Ok(answer.succeeded().then_some(revision))
    }

    /// A lease that is renewed until it is dropped. Keys that were put with it end with it.
    pub(crate) async fn lease(&self, lasts: Duration) -> Result<Lease, StoreError> {
        let seconds = lasts.as_secs().max(1);
        let asked = clock::now();
        let granted =
            self.ask(|mut client| async move { client.lease_grant(seconds as i64, None).await });
        let granted = granted.await?;
        let (id, lasts) = (granted.id(), Duration::from_secs(granted.ttl().max(0) as u64));
        let (renewed, ends) = watch::channel(asked + lasts);
        let renew = renew(self.clone(), id, lasts, renewed);
        Ok(Lease { id, ends, _renewing: Task::spawn("lease", renew) })
    }

    /// Ends a lease that nobody renews any more, and deletes the keys that were put with it.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        self.ask(|mut client| async move { client.lease_revoke(lease).await }).await.map(|_| ())
    }

    /// Hears of all that is below `prefix`, for as long as what this returns is kept.
    pub(crate) fn follow(&self, prefix: &str) -> Follow {
        let (sender, news) = mpsc::channel(NEWS);
        let follow = follow(self.clone(), prefix.to_owned(), sender);
        Follow { news, _task: Task::spawn("etcd", follow) }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.shared.root).into_bytes()
    }

    /// Without the prefix; none for a key that is no text, which nobody of us has written.
    fn entry(&self, pair: &etcd_client::KeyValue) -> Option<Entry> {
        let key = std::str::from_utf8(pair.key()).ok()?.strip_prefix(&self.shared.root)?;
        Some(Entry {
            key: key.to_owned(),
            value: pair.value().to_vec(),
            created: pair.create_revision(),
            modified: pair.mod_revision(),
            lease: pair.lease(),
        })
    }

    /// Asks something that may be asked twice.
    async fn ask<T, F>(&self, question: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call(true, question).await
    }

    /// Asks one member after the other. What may not be repeated goes to the next one only if the one before takes no
    /// connections.
    async fn call<T, F>(
        &self,
        may_repeat: bool,
        question: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let end = clock::now() + CALL;
        // The connection at hand may be one to a member that was restarted.
        let mut left = self.shared.access.endpoints.len() + 1;
        loop {
            let member = self.member().await?;
            let (why, was_sent) = match within(end, question(member.client)).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(why)) => return Err(StoreError::Refused(why)),
                Err(Failure::NotSent(why)) => (why, false),
                Err(Failure::Silent(why)) => (why, true),
            };
            self.leave(member.number);
            if was_sent && !may_repeat {
                return Err(StoreError::Unclear(why));
            }
            left -= 1;
            if left == 0 || clock::now() >= end {
                return Err(StoreError::Away(why));
            }
        }
    }

    async fn member(&self) -> Result<Member, StoreError> {
        let number = {
            let place = self.place();
            if let Some(client) = &place.client {
                return Ok(Member { number: place.number, client: client.clone() });
            }
            place.number
        };
        let access = &self.shared.access;
        let endpoint = &access.endpoints[number % access.endpoints.len()];
        let options = ConnectOptions::new()
            .with_connect_timeout(ANSWER)
            // A member without a leader says so.
            .with_require_leader(true);
        let options = match tls(access)? {
            Some(tls) => options.with_tls(tls),
            None => options,
        };
        // It connects with the first call.
        let client = Client::connect([endpoint], Some(options)).await;
        let client = client.map_err(|error| StoreError::Refused(words(&error)))?;
        let mut place = self.place();
        if place.number == number {
            place.client.get_or_insert_with(|| client.clone());
        }
        Ok(Member { number, client })
    }

    /// The member with this number has failed: the next call has a new connection, to the next endpoint. One that
    /// fell silent may stay so for minutes.
    fn leave(&self, number: usize) {
        let mut place = self.place();
        if place.number == number {
            *place = Place { number: number + 1, client: None };
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.shared.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The news of what is below a prefix, see [`Store::follow`].
pub(crate) struct Follow {
    news: mpsc::Receiver<News>,
    _task: Task,
}

impl Follow {
    /// One that waits already.
    pub(crate) fn try_next(&mut self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// The next. It may be dropped before there is one, and none is lost.
    pub(crate) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // Its task lasts as long as this.
            None => std::future::pending().await,
        }
    }
}

/// Tells `news` of what is below `prefix` until nobody listens.
async fn follow(store: Store, prefix: String, news: mpsc::Sender<News>) {
    let mut pauses = pauses();
    let mut told = None;
    loop {
        let begun = clock::now();
        match store.read(&prefix).await {
            Ok(snapshot) => {
                told = None;
                match store.watch(&prefix, snapshot, &news).await {
                    Ok(()) => return,
                    Err(why) => debug!(%why, prefix, "the watch has ended"),
                }
                if clock::now() - begun > LONGEST {
                    pauses = self::pauses();
                }
            }
            Err(error) => {
                let words = error.to_string();
                if told.as_ref() != Some(&words) {
                    told = Some(words);
                    if news.send(News::Away(error)).await.is_err() {
                        return;
                    }
                }
            }
        }
        sleep(pauses.next().unwrap_or(LONGEST)).await;
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}

impl Store {
    /// Tells `news` of `snapshot` and of all changes after it. Ends well when nobody listens any more.
    async fn watch(
        &self,
        prefix: &str,
        snapshot: Snapshot,
        news: &mpsc::Sender<News>,
    ) -> Result<(), Foreign> {
        let Member { number, client } = self.member().await.map_err(Foreign::of)?;
        let key = self.key(prefix);
        let options =
            WatchOptions::new().with_range(end_of(&key)).with_start_revision(snapshot.revision + 1);
        if news.send(News::All(snapshot)).await.is_err() {
            return Ok(());
        }
        let mut watch = client.watch_client().max_decoding_message_size(MOST_ANSWER);
        let watching = within(clock::now() + CALL, watch.watch(key.clone(), Some(options)));
        let watched = async {
            let mut stream = watching.await?;
            loop {
                let answer = stream.message().await.map_err(|error| Failure::of(&error))?;
                let answer =
                    answer.ok_or_else(|| Failure::Silent("it has ended the watch".into()))?;
                if answer.canceled() {
                    // Too old a revision is none of the member's faults.
                    return Err(match answer.compact_revision() {
                        0 => Failure::Silent(answer.cancel_reason().into()),
                        _ => Failure::Refused("the revision is compacted".into()),
                    });
                }
                let changes = self.changes(&answer);
                if !changes.is_empty() && news.send(News::Changes(changes)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let ended = tokio::select! {
            ended = watched => ended,
            why = heart(&client, &key) => Err(why),
            () = news.closed() => Ok(()),
        };
        ended.map_err(|failure| match failure {
            Failure::Refused(why) => why,
            Failure::NotSent(why) | Failure::Silent(why) => {
                self.leave(number);
                why
            }
        })
    }

    fn changes(&self, answer: &WatchResponse) -> Vec<Change> {
        let change = |event: &etcd_client::Event| {
            let entry = self.entry(event.kv()?)?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(entry),
                EventType::Delete => Change::Deleted { key: entry.key, revision: entry.modified },
            })
        };
        answer.events().iter().filter_map(change).collect()
    }
}

/// Asks the member, again and again, whether it is there and one of a majority; a silent watch cannot tell.
async fn heart(client: &Client, key: &[u8]) -> Failure {
    let mut kv = client.kv_client();
    loop {
        sleep(HEARTBEAT).await;
        let asked = kv.get(key, Some(GetOptions::new().with_count_only()));
        if let Err(failure) = within(clock::now() + ANSWER, asked).await {
            return failure;
        }
    }
}

/// A lease, renewed for as long as this is kept. It lapses when it is dropped.
pub(crate) struct Lease {
    id: i64,
    ends: watch::Receiver<Instant>,
    _renewing: Task,
}

impl Lease {
    /// Its number, for [`Write::Put`].
    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// Until when etcd keeps it at least, by this machine's clock, whatever happens to the network.
    pub(crate) fn ends(&self) -> Instant {
        *self.ends.borrow()
    }

    /// Waits until it has ended: it was not renewed in time, or etcd does not know it.
    pub(crate) async fn lost(&self) {
        let mut ends = self.ends.clone();
        while ends.changed().await.is_ok() {}
    }
}

/// Renews the lease three times in the time that it lasts. Returns when it has ended.
async fn renew(store: Store, id: i64, lasts: Duration, ends: watch::Sender<Instant>) {
    let mut pause = lasts / 3;
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
                lasts / 3
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

/// Why a member did not do as it was asked.
#[derive(Debug)]
enum Failure {
    /// It takes no connections.
    NotSent(Foreign),
    /// It did not answer, or not as one of a majority.
    Silent(Foreign),
    /// It answered with an error that another member would answer with, too.
    Refused(Foreign),
}

impl Failure {
    fn of(error: &etcd_client::Error) -> Self {
        let why = words(error);
        let etcd_client::Error::GRpcStatus(status) = error else { return Self::Refused(why) };
        // gRPC: cancelled, unknown, deadline exceeded, internal, unavailable.
        if ![1, 2, 4, 13, 14].contains(&i32::from(status.code())) {
            return Self::Refused(why);
        }
        let not_sent = causes(status).any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| {
                use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
                matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
            })
        });
        if not_sent { Self::NotSent(why) } else { Self::Silent(why) }
    }
}

/// The answer, if there is one before `end` and within the time for one member.
async fn within<T>(
    end: Instant,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    let limit = end.saturating_duration_since(clock::now()).min(ANSWER);
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| Failure::of(&error)),
        Err(_) => Err(Failure::Silent(Foreign::of(format_args!("nothing for {limit:.1?}")))),
    }
}

/// What a member says, or what the network says of it.
fn words(error: &etcd_client::Error) -> Foreign {
    let etcd_client::Error::GRpcStatus(status) = error else { return Foreign::of(error) };
    match causes(status).last() {
        Some(cause) => Foreign::of(cause),
        None => status.message().into(),
    }
}

fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

fn no_header() -> StoreError {
    StoreError::Refused("an answer without a header".into())
}

/// The first key after all that begin with `key`; after that one alone unless it ends with a slash.
fn end_of(key: &[u8]) -> Vec<u8> {
    match key {
        [before @ .., b'/'] => [before, b"0"].concat(),
        key => [key, b"\0"].concat(),
    }
}

/// What the endpoints are reached with, unless it is plain TCP.
fn tls(access: &Etcd) -> Result<Option<TlsOptions>, StoreError> {
    let Some(ca) = &access.ca else { return Ok(None) };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&*material(ca)?));
    if let (Some(cert), Some(key)) = (&access.cert, &access.key) {
        check_mode(key)?;
        tls = tls.identity(Identity::from_pem(&*material(cert)?, &*material(key)?));
    }
    Ok(Some(tls))
}

fn material(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let read = || {
        let file = File::open(path)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(file.metadata()?.len() as usize));
        file.take(MOST_MATERIAL).read_to_end(&mut bytes).map(|_| bytes)
    };
    read().map_err(|error| unusable(path, format!("cannot read it: {error}")))
}

fn unusable(path: &Path, reason: String) -> StoreError {
    StoreError::Material { path: path.to_owned(), reason }
}

/// A key that others can read is refused, as the configuration does.
fn check_mode(path: &Path) -> Result<(), StoreError> {
    match fs::metadata(path).map(|found| found.permissions().mode() & 0o7777) {
        Ok(mode) if mode & 0o077 != 0 => {
            Err(unusable(path, format!("has mode {mode:04o}, so others can use the key")))
        }
        _ => Ok(()),
    }
}
