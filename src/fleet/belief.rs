//! What a server believes of the directory. Pure.
//!
//! etcd may come back with old data: from a backup, or from a copy of its disk. A peer that was removed since would be
//! let in again, and one that was added since would be cut off. So a server remembers how far it has seen, and which
//! peers are gone; what contradicts that is not believed until a person says that it is right (a new
//! [`generation`](Mark::generation)). Three things tell:
//! - etcd's revision is lower than one that was seen;
//! - it is not, but where this server saw a [`Mark`], etcd's history has another one;
//! - a record is there whose key was made before its removal.

use std::collections::{BTreeMap, HashSet};

use super::{
    PassedOver, Taken,
    entry::{Change, Entry, Snapshot},
    record::{self, MARK, MOST_BYTES, Mark, Unusable},
};
use crate::{config::Peer, wire::foreign::Foreign};

/// Removed peers that are remembered. Those that were removed first are forgotten first.
const MOST_REMOVED: usize = 10_000;

/// What is believed.
#[derive(Debug, Default)]
pub(super) struct Belief {
    /// How far this server has seen; 0 if it has seen nothing.
    revision: i64,
    mark: Option<Entry>,
    held: BTreeMap<String, Held>,
    /// The revisions at which removed peers were gone at the latest, by their key.
    removed: BTreeMap<String, i64>,
    /// Records of removed peers that are there all the same.
    back: BTreeMap<String, i64>,
    old: Option<Foreign>,
    removals: u64,
}

#[derive(Debug)]
struct Held {
    entry: Entry,
    peer: Result<Peer, Unusable>,
}

/// What etcd's history has at [`Belief::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// The same mark, or there is none to look for.
    Same,
    /// Another mark.
    Other,
    /// It does not reach back so far.
    Forgotten,
}

/// What is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) revision: i64,
    /// The mark among them.
    pub(super) entries: Vec<Entry>,
    pub(super) removed: BTreeMap<String, i64>,
}

impl Belief {
    pub(super) fn from_saved(saved: Saved) -> Self {
        let mut belief =
            Self { revision: saved.revision, removed: saved.removed, ..Self::default() };
        for entry in saved.entries {
            belief.hold(entry);
        }
        belief
    }

    pub(super) fn to_save(&self) -> Saved {
        let entries = self.held.values().map(|held| &held.entry).chain(&self.mark);
        Saved {
            revision: self.revision,
            entries: entries.cloned().collect(),
            removed: self.removed.clone(),
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// How many peers were removed before this server's eyes.
    pub(super) fn removals(&self) -> u64 {
        self.removals
    }

    /// Why etcd is not believed.
    pub(super) fn old(&self) -> Option<&Foreign> {
        self.old.as_ref()
    }

    /// The mark that etcd's history must have at its revision, if one was seen.
    pub(super) fn mark(&self) -> Option<&Entry> {
        self.mark.as_ref()
    }

    /// Hears of everything that is there.
    pub(super) fn hear(&mut self, snapshot: Snapshot, past: Past) {
        let mark = snapshot.entries.iter().find(|entry| entry.key == MARK);
        let confirmed = generation(mark) > generation(self.mark.as_ref());
        self.old = self.doubt(&snapshot, mark, past).filter(|_| !confirmed).map(Foreign::from);
        if self.old.is_some() {
            return;
        }
        let there: HashSet<_> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone_at = snapshot.revision.max(self.revision);
        let gone: Vec<_> =
            self.held.keys().filter(|key| !there.contains(key.as_str())).cloned().collect();
        for key in gone {
            self.remove(&key, gone_at);
        }
        self.mark = None;
        self.back.clear();
        self.revision = snapshot.revision;
        for entry in snapshot.entries {
            let removed = self.removed.get(&entry.key).copied();
            match removed.filter(|at| entry.created <= *at && !confirmed) {
                Some(at) => _ = self.back.insert(entry.key, at),
                None => self.hold(entry),
            }
        }
    }

    /// Why what is there cannot be all that was ever done.
    fn doubt(&self, snapshot: &Snapshot, mark: Option<&Entry>, past: Past) -> Option<String> {
        let (seen, now) = (self.revision, snapshot.revision);
        if now < seen {
            return Some(format!("its revision is {now}, and this server has seen {seen}"));
        }
        if self.mark.is_some() && mark.is_none() {
            return Some(format!("{MARK} is gone: was all of the prefix deleted?"));
        }
        (past == Past::Other)
            .then(|| format!("it has another history than this server has seen up to {seen}"))
    }

    /// Hears of a change. Returns whether everything must be heard again, since it is believed from here on.
    pub(super) fn change(&mut self, change: Change) -> bool {
        let revision = match &change {
            Change::Put(entry) => entry.modified,
            Change::Deleted { revision, .. } => *revision,
        };
        match change {
            Change::Put(entry) if entry.key == MARK && self.old.is_some() => {
                return generation(Some(&entry)) > generation(self.mark.as_ref());
            }
            // The mark stays to be missed.
            Change::Deleted { key, .. } if key == MARK => {}
            Change::Put(entry) => {
                // One that was made at this moment is new, whatever was removed before.
                let is_new = entry.created == entry.modified;
                match self.removed.get(&entry.key).filter(|at| !is_new && entry.created <= **at) {
                    Some(at) => _ = self.back.insert(entry.key, *at),
                    None => {
                        self.back.remove(&entry.key);
                        self.hold(entry);
                    }
                }
            }
            Change::Deleted { key, revision } => {
                self.back.remove(&key);
                self.remove(&key, revision.max(self.revision));
            }
        }
        if self.old.is_none() {
            self.revision = self.revision.max(revision);
        }
        false
    }

    fn hold(&mut self, mut entry: Entry) {
        if entry.key == MARK {
            self.mark = Some(entry);
            return;
        }
        let peer = record::peer(&entry.key, &entry.value);
        if entry.value.len() > MOST_BYTES {
            entry.value = Vec::new();
        }
        self.removed.remove(&entry.key);
        self.held.insert(entry.key.clone(), Held { entry, peer });
    }

    fn remove(&mut self, key: &str, at: i64) {
        if self.held.remove(key).is_none() {
            return;
        }
        self.removals += 1;
        self.removed.insert(key.to_owned(), at);
        if self.removed.len() > MOST_REMOVED
            && let Some(first) = self.removed.iter().min_by_key(|(_, at)| **at)
        {
            let first = first.0.clone();
            self.removed.remove(&first);
        }
    }

    /// The peers that can be used, those that came first first, and the records that cannot.
    pub(super) fn peers(&self) -> (Vec<Peer>, Vec<PassedOver>) {
        let mut passed_over: Vec<_> = self
            .back
            .iter()
            .map(|(key, at)| {
                let reason =
                    format!("was removed at revision {at}, and is back with its old record");
                PassedOver::new(key, reason)
            })
            .collect();
        let mark = self.mark.as_ref().map(|entry| record::read::<Mark>(&entry.value));
        if let Some(Err(reason)) = mark {
            passed_over.push(PassedOver::new(MARK, reason));
        }
        let mut in_order: Vec<_> = self.held.values().collect();
        in_order
            .sort_by(|a, b| (a.entry.created, &a.entry.key).cmp(&(b.entry.created, &b.entry.key)));
        let mut taken = Taken::default();
        let mut peers = Vec::new();
        for Held { entry, peer } in in_order {
            match peer {
                Err(reason) => passed_over.push(PassedOver::new(&entry.key, reason)),
                Ok(peer) => match taken.claim(peer) {
                    Ok(()) => peers.push(peer.clone()),
                    Err(reason) => passed_over.push(PassedOver::new(&peer.name, reason)),
                },
            }
        }
        (peers, passed_over)
    }
}

fn generation(mark: Option<&Entry>) -> u64 {
    let mark: Option<Mark> = mark.and_then(|entry| record::read(&entry.value).ok());
    mark.unwrap_or_default().generation
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::PublicKey;

    fn named(n: u8) -> Peer {
        let address = format!("10.66.0.{n}").parse().unwrap();
        let public_key = PublicKey::from([n; 32]);
        Peer { name: format!("p{n}"), public_key, addresses: vec![address] }
    }

    fn entry(peer: &Peer, created: i64) -> Entry {
        let (key, value) = record::of_peer(peer);
        Entry { key, value, created, modified: created, lease: 0 }
    }

    fn mark(generation: u64, change: &str, modified: i64) -> Entry {
        let value = record::write(&Mark { generation, change: change.into() });
        Entry { key: MARK.into(), value, created: 1, modified, lease: 0 }
    }

    fn snapshot(revision: i64, entries: &[Entry]) -> Snapshot {
        Snapshot { cluster: 1, revision, entries: entries.to_vec() }
    }

    fn names(belief: &Belief) -> Vec<String> {
        belief.peers().0.into_iter().map(|peer| peer.name).collect()
    }

    fn passed_over(belief: &Belief) -> Vec<String> {
        let show = |it: PassedOver| format!("{}: {}", it.record, it.reason);
        belief.peers().1.into_iter().map(show).collect()
    }

    #[test]
    fn of_two_records_that_contradict_each_other_the_first_one_counts() {
        let double = |n: u8, name: &str, address: &str| Peer {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            ..named(n)
        };
        let mut broken = entry(&named(9), 9);
        broken.value = b"{}".to_vec();
        let entries = [
            entry(&double(2, "p1", "10.66.0.2"), 6),
            entry(&double(3, "p3", "10.66.0.1"), 7),
            entry(&named(1), 5),
            broken,
            entry(&named(4), 8),
        ];
        let mut belief = Belief::default();
        belief.hear(snapshot(9, &entries), Past::Same);
        assert_eq!(names(&belief), ["p1", "p4"]);
        let passed_over = passed_over(&belief);
        assert_eq!(passed_over[0], "p1: another peer has the same name");
        assert_eq!(passed_over[1], "p3: has the address 10.66.0.1 of p1");
        assert!(passed_over[2].starts_with("peers/CQkJ"), "{passed_over:?}");
        assert!(passed_over[2].contains("missing field `version`"), "{passed_over:?}");
        belief.change(Change::Deleted { key: entry(&named(1), 5).key, revision: 10 });
        assert_eq!(names(&belief), ["p1", "p3", "p4"], "the others have their turn");
    }

    #[test]
    fn old_data_is_not_believed_until_a_person_confirms_it() {
        let [a, b, c] = [1, 2, 3].map(|n| entry(&named(n), i64::from(n)));
        let mut belief = Belief::default();
        belief.hear(snapshot(3, &[a.clone(), b.clone(), mark(0, "x", 2)]), Past::Same);
        assert!(!belief.change(Change::Deleted { key: a.key.clone(), revision: 4 }));
        belief.change(Change::Put(mark(0, "y", 4)));
        belief.change(Change::Put(Entry { created: 5, modified: 5, ..c.clone() }));
        assert_eq!(names(&belief), ["p2", "p3"]);
        let mut belief = Belief::from_saved(belief.to_save());
        assert_eq!((names(&belief), belief.revision()), (vec!["p2".into(), "p3".into()], 5));

        // A backup of the third revision: a is back, c is lost.
        let backup = [a.clone(), b.clone(), mark(0, "x", 2)];
        belief.hear(snapshot(3, &backup), Past::Forgotten);
        let why = belief.old().unwrap().to_string();
        assert_eq!(why, "its revision is 3, and this server has seen 5");
        assert_eq!(names(&belief), ["p2", "p3"]);
        // With other changes it comes farther than what was seen.
        belief.hear(snapshot(9, &backup), Past::Other);
        assert!(belief.old().unwrap().as_str().contains("another history"));
        assert_eq!(names(&belief), ["p2", "p3"]);
        // What is changed now counts.
        belief.change(Change::Deleted { key: b.key.clone(), revision: 10 });
        belief.change(Change::Put(entry(&named(7), 11)));
        assert_eq!(names(&belief), ["p3", "p7"]);
        assert!(belief.change(Change::Put(mark(1, "z", 12))), "hear everything again");
        let now = [a.clone(), entry(&named(7), 11), mark(1, "z", 12)];
        belief.hear(snapshot(12, &now), Past::Other);
        assert_eq!((belief.old(), names(&belief)), (None, vec!["p1".into(), "p7".into()]));
    }

    #[test]
    fn a_prefix_that_was_deleted_leaves_all_peers_in_force() {
        let mut belief = Belief::default();
        belief.hear(snapshot(3, &[entry(&named(1), 2), mark(0, "x", 2)]), Past::Same);
        belief.hear(snapshot(4, &[]), Past::Same);
        assert!(belief.old().unwrap().as_str().contains("peers/directory is gone"));
        assert_eq!(names(&belief), ["p1"]);
    }

    #[test]
    fn a_record_from_before_its_removal_is_named_and_a_new_one_is_taken() {
        let (old, new) = (entry(&named(1), 2), entry(&named(1), 20));
        let mut belief = Belief::default();
        belief.hear(snapshot(3, std::slice::from_ref(&old)), Past::Same);
        belief.hear(snapshot(7, &[]), Past::Same);
        belief.hear(snapshot(19, &[old]), Past::Forgotten);
        assert_eq!(names(&belief), Vec::<String>::new());
        assert!(
            passed_over(&belief)[0]
                .ends_with("was removed at revision 7, and is back with its old record")
        );
        let changed = Entry { modified: 20, ..entry(&named(1), 2) };
        belief.change(Change::Put(changed));
        assert_eq!(names(&belief), Vec::<String>::new(), "a change makes it no new one");
        belief.hear(snapshot(20, &[new]), Past::Same);
        assert_eq!((names(&belief), passed_over(&belief)), (vec!["p1".into()], Vec::new()));
    }

    /// etcd, of which somebody keeps backups.
    #[derive(Clone, Default)]
    struct Etcd {
        revision: i64,
        entries: BTreeMap<String, Entry>,
        /// What the mark was from each of these revisions on.
        marks: BTreeMap<i64, Entry>,
    }

    impl Etcd {
        /// A transaction of `roamd peer`; gives what is told of it.
        fn change(
            &mut self,
            put: Option<&Peer>,
            delete: Option<String>,
            change: u32,
        ) -> Vec<Change> {
            self.revision += 1;
            let revision = self.revision;
            let mark = mark(0, &change.to_string(), revision);
            self.marks.insert(revision, mark.clone());
            self.entries.insert(MARK.into(), mark.clone());
            let mut told = vec![Change::Put(mark)];
            if let Some(entry) = put.map(|peer| entry(peer, revision)) {
                self.entries.insert(entry.key.clone(), entry.clone());
                told.push(Change::Put(entry));
            }
            if let Some(key) = delete {
                self.entries.remove(&key);
                told.push(Change::Deleted { key, revision });
            }
            told
        }

        fn past(&self, belief: &Belief) -> Past {
            let Some(seen) = belief.mark() else { return Past::Same };
            let at = belief.revision();
            if at > self.revision {
                return Past::Forgotten;
            }
            let found = self.marks.range(..=at).next_back().map(|(_, mark)| mark);
            if found == Some(seen) { Past::Same } else { Past::Other }
        }
    }

    proptest! {
        /// Whatever is restored when, nobody who was removed comes back, and nobody is lost.
        #[test]
        fn nothing_is_lost_and_nothing_comes_back(steps in prop::collection::vec((0u8..7, 1u8..5), 0..60)) {
            let (mut etcd, mut backup, mut belief) = (Etcd::default(), Etcd::default(), Belief::default());
            let mut hears = false;
            let (mut gone, mut there) = (HashSet::new(), HashSet::new());
            for (number, (what, who)) in steps.into_iter().enumerate() {
                let peer = named(who);
                let key = record::of_peer(&peer).0;
                let told = match what {
                    0 | 1 if !etcd.entries.contains_key(&key) => {
                        gone.remove(&key);
                        etcd.change(Some(&peer), None, number as u32)
                    }
                    2 if etcd.entries.contains_key(&key) => {
                        there.remove(&key);
                        etcd.change(None, Some(key.clone()), number as u32)
                    }
                    3 => {
                        backup = etcd.clone();
                        Vec::new()
                    }
                    4 => {
                        // Nobody is told of that.
                        etcd = backup.clone();
                        hears = false;
                        Vec::new()
                    }
                    5 => {
                        hears = false;
                        Vec::new()
                    }
                    6 => {
                        let entries: Vec<_> = etcd.entries.values().cloned().collect();
                        let past = etcd.past(&belief);
                        let before: HashSet<_> = belief.held.keys().cloned().collect();
                        belief.hear(snapshot(etcd.revision, &entries), past);
                        hears = true;
                        if belief.old().is_none() {
                            gone.extend(before.iter().filter(|key| !belief.held.contains_key(*key)).cloned());
                        }
                        there.extend(belief.held.keys().cloned());
                        Vec::new()
                    }
                    _ => Vec::new(),
                };
                for change in told.into_iter().filter(|_| hears) {
                    if let Change::Deleted { key, .. } = &change {
                        gone.insert(key.clone());
                    }
                    belief.change(change);
                }
                if hears {
                    there.extend(belief.held.keys().filter(|key| !gone.contains(*key)).cloned());
                }
                if what == 5 {
                    belief = Belief::from_saved(belief.to_save());
                }
                for key in &gone {
                    prop_assert!(!belief.held.contains_key(key), "{} is back", key);
                }
                for key in &there {
                    prop_assert!(belief.held.contains_key(key), "{} is lost", key);
                }
            }
        }
    }
}
