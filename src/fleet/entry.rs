//! What etcd has and what changes there, as all of a fleet's servers see it.

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
