//! The connection to etcd. All that must agree between servers goes through a [`Store`].
//!
//! A store keeps to one member for as long as that answers, and then asks the next one. Keys are given and told
//! without the prefix of the configuration: `peers/…` is the key `/roamd/home/peers/…` in etcd.

pub(super) mod follow;
mod lease;
mod tls;

use std::{
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use etcd_client::{Client, CompareOp, ConnectOptions, GetOptions, PutOptions, Txn, TxnOp};
use tokio::time::timeout;

use self::tls::tls;
use super::entry::{Entry, Snapshot};
use crate::{clock, config::Etcd, mutex::Mutex, wire::foreign::Foreign};

/// How long one member may take to answer, the handshake of TCP and TLS included.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a call may take with all members that it asks.
const CALL: Duration = Duration::from_secs(3);
/// Keys that are asked for at once.
const PAGE: usize = 2000;
/// The size of an answer in bytes at most.
const MOST_ANSWER: usize = 64 << 20;

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
        /// The lease that it ends with, [`Lease::id`](lease::Lease::id); 0 for none.
        lease: i64,
    },
    /// Deletes a key, which may be absent.
    Delete(String),
}

impl Write {
    /// Sets a key that ends with no lease.
    pub(crate) fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0 }
    }
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
        self.shared.place.lock()
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

/// From one attempt to the next, for ever: from `first`, doubled up to `longest`, with jitter.
pub(super) fn pauses(first: Duration, longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The first key after all that begin with `key`; after that one alone unless it ends with a slash.
fn end_of(key: &[u8]) -> Vec<u8> {
    match key {
        [before @ .., b'/'] => [before, b"0"].concat(),
        key => [key, b"\0"].concat(),
    }
}
