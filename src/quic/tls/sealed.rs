//! Sealed tickets: what one server of a fleet gives, another one opens, with keys that they share.
//!
//! ```text
//!  id of the key (16) │ nonce (12) │ client's key (32) │ when it proved it (8) │ rustls' state │ tag (16)
//!  └ authenticated ─┘              └ encrypted ──────────────────────────────────────────────┘
//! ```
//!
//! Nobody remembers which of them were used. They resume a session and never carry early data, which somebody could
//! record and send again: that is for the tickets that a server keeps (RFC 8446 §8.1).

use std::fmt;
#[cfg(any(test, feature = "etcd"))]
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use super::TICKET_LIFE;
use crate::identity::PublicKey;

/// Length of a key's id, in bytes.
pub(crate) const ID: usize = 16;
/// Length of a key, in bytes.
pub(crate) const KEY: usize = 32;
/// How long a key seals tickets, in seconds. It opens them for [`TICKET_LIFE`] longer.
pub(crate) const SEALS: u64 = 12 * 3600;
/// How far ahead another server's clock may be, in seconds.
const SKEW: u64 = 600;
/// Length of the longest ticket, in bytes: four times as long as ours are.
const LONGEST: usize = 1024;
/// Length of a client's key and of the time, in bytes.
const HEAD: usize = 32 + 8;

/// A client as a ticket remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) key: PublicKey,
    /// When it last proved that it has this key, in seconds since 1970. A session that is resumed inherits this time.
    pub(super) proved: u64,
    /// The key of the sealed ticket that the session goes back to, if any.
    pub(super) by: Option<[u8; ID]>,
}

impl Client {
    /// Whether tickets still stand for the proof. Nobody proved anything in the future, also not who has stolen a key of
    /// tickets and says so.
    pub(super) fn is_proved(&self, now: u64) -> bool {
        let is_past = self.proved <= now.saturating_add(SKEW);
        is_past && now.saturating_sub(self.proved) < TICKET_LIFE.as_secs()
    }
}

/// A key that seals tickets.
#[derive(Clone)]
pub(crate) struct TicketKey {
    pub(crate) id: [u8; ID],
    pub(crate) secret: Zeroizing<[u8; KEY]>,
    /// From when on it seals, in seconds since 1970.
    pub(crate) from: u64,
}

/// Without the secret.
impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("from", &self.from).finish_non_exhaustive()
    }
}

impl TicketKey {
    /// A new key; `None` if the system has no random bytes to give.
    #[cfg(any(test, feature = "etcd"))]
    pub(crate) fn generate(from: u64) -> Option<Self> {
        let (mut id, mut secret) = ([0; ID], Zeroizing::new([0; KEY]));
        SystemRandom::new().fill(&mut id).ok()?;
        SystemRandom::new().fill(secret.as_mut_slice()).ok()?;
        Some(Self { id, secret, from })
    }

    pub(crate) fn seals(&self, now: u64) -> bool {
        (self.from..self.from.saturating_add(SEALS)).contains(&now)
    }

    /// Whether it opens tickets. It does so before it seals any here: another server's clock may be ahead.
    pub(crate) fn opens(&self, now: u64) -> bool {
        now < self.from.saturating_add(SEALS + TICKET_LIFE.as_secs())
    }
}

/// The keys in force; none without a fleet.
#[derive(Default)]
pub(crate) struct TicketKeys(ArcSwap<Vec<TicketKey>>);

/// Without the keys.
impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("keys", &self.0.load().len()).finish()
    }
}

impl TicketKeys {
    /// The keys in force.
    #[cfg(feature = "etcd")]
    pub(crate) fn get(&self) -> Arc<Vec<TicketKey>> {
        self.0.load_full()
    }

    /// Puts other keys in force.
    #[cfg(any(test, feature = "etcd"))]
    pub(crate) fn set(&self, keys: Vec<TicketKey>) {
        self.0.store(Arc::new(keys));
    }

    /// A ticket that resumes the session of `client` from rustls' `state` of it; `None` if no key seals now.
    pub(super) fn seal(&self, client: Client, state: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.0.load();
        let key = keys.iter().filter(|key| key.seals(now)).max_by_key(|key| key.from)?;
        let proved = client.proved.to_be_bytes();
        let text = Zeroizing::new([client.key.as_bytes().as_slice(), &proved, state].concat());
        let ticket = [&key.id, seal(&key.secret, &bound(&key.id), &text)?.as_slice()].concat();
        (ticket.len() <= LONGEST).then_some(ticket)
    }

    /// Whether this key is in force.
    pub(super) fn has(&self, id: &[u8; ID]) -> bool {
        self.0.load().iter().any(|key| key.id == *id)
    }

    /// The client that `ticket` was sealed for, and rustls' state; `None` if it is none of ours, or too old.
    pub(super) fn open(&self, ticket: &[u8], now: u64) -> Option<(Client, Vec<u8>)> {
        if ticket.len() > LONGEST {
            return None;
        }
        let (id, sealed) = ticket.split_first_chunk::<ID>()?;
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.id == *id && key.opens(now))?;
        let text = open(&key.secret, &bound(id), sealed)?;
        let (head, state) = text.split_first_chunk::<HEAD>()?;
        let (client, proved) = head.split_first_chunk::<32>()?;
        let proved = u64::from_be_bytes(proved.try_into().ok()?);
        let client = Client { key: PublicKey::from(*client), proved, by: Some(*id) };
        // A key seals for no proof that comes after it has ceased to.
        let is_of_its_time = proved < key.from.saturating_add(SEALS + SKEW);
        (is_of_its_time && client.is_proved(now)).then(|| (client, state.to_vec()))
    }
}

/// What a ticket's encryption vouches for beside it.
fn bound(id: &[u8; ID]) -> Vec<u8> {
    [b"roamd ticket 1".as_slice(), id].concat()
}

/// Encrypts `text`, and authenticates it together with `also`, under a nonce of its own, which comes first.
pub(crate) fn seal(secret: &[u8; KEY], also: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).ok()?;
    let mut text = Zeroizing::new(text.to_vec());
    let (also, unique) = (Aad::from(also), Nonce::assume_unique_for_key(nonce));
    let tag = cipher(secret)?.seal_in_place_separate_tag(unique, also, &mut text).ok()?;
    Some([nonce.as_slice(), &text, tag.as_ref()].concat())
}

/// Undoes [`seal`]; `None` for what it did not make.
pub(crate) fn open(secret: &[u8; KEY], also: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut text = Zeroizing::new(sealed.to_vec());
    let (also, nonce) = (Aad::from(also), Nonce::assume_unique_for_key(*nonce));
    let length = cipher(secret)?.open_in_place(nonce, also, &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

fn cipher(secret: &[u8; KEY]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, secret).map(LessSafeKey::new).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const STATE: &[u8] = b"what rustls knows";

    fn keys(from: &[u64]) -> TicketKeys {
        let keys = TicketKeys::default();
        keys.set(from.iter().map(|from| TicketKey::generate(*from).unwrap()).collect());
        keys
    }

    fn client() -> Client {
        Client { key: PublicKey::from([7; 32]), proved: NOW, by: None }
    }

    fn opened(client: Client, ticket: &[u8]) -> Option<(Client, Vec<u8>)> {
        let by = ticket.first_chunk().copied();
        Some((Client { by, ..client }, STATE.to_vec()))
    }

    #[test]
    fn a_sealed_ticket_is_opened_until_a_day_after_the_clients_proof() {
        let keys = keys(&[NOW]);
        let ticket = keys.seal(client(), STATE, NOW + 3600).unwrap();
        let day = TICKET_LIFE.as_secs();
        for now in [NOW + 3600, NOW + day - 1, NOW - SKEW] {
            assert_eq!(keys.open(&ticket, now), opened(client(), &ticket), "{now}");
        }
        for now in [NOW + day, NOW - SKEW - 1] {
            assert_eq!(keys.open(&ticket, now), None, "{now}");
        }
        let forged = Client { proved: u64::MAX, ..client() };
        let ticket = keys.seal(forged, STATE, NOW).unwrap();
        assert_eq!(keys.open(&ticket, NOW), None);
    }

    #[test]
    fn the_newest_key_that_has_begun_seals_and_all_others_open_until_their_last_ticket_is_old() {
        let keys = keys(&[NOW, NOW - SEALS, NOW + SEALS]);
        let id = |now| keys.seal(client(), STATE, now).map(|ticket| ticket[..ID].to_vec());
        let of = |place: usize| Some(keys.0.load()[place].id.to_vec());
        let times = [NOW - SEALS - 1, NOW - 1, NOW, NOW + SEALS - 1, NOW + SEALS, NOW + 2 * SEALS];
        assert_eq!(times.map(id), [None, of(1), of(0), of(0), of(2), None]);
        // Whenever the client claims to have proved its key.
        let end = NOW + SEALS + TICKET_LIFE.as_secs();
        for (proved, is_good) in [(NOW + SEALS + SKEW - 1, true), (NOW + SEALS + SKEW, false)] {
            let late = Client { proved, ..client() };
            let ticket = keys.seal(late, STATE, NOW).unwrap();
            assert_eq!(keys.open(&ticket, end - 1).is_some(), is_good);
            assert_eq!(keys.open(&ticket, end), None, "the key is too old");
        }
    }

    #[test]
    fn a_ticket_that_is_damaged_cut_longer_or_somebody_elses_is_none() {
        let ours = keys(&[NOW]);
        let ticket = ours.seal(client(), STATE, NOW).unwrap();
        for place in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[place] ^= 1;
            assert_eq!(ours.open(&damaged, NOW), None, "byte {place}");
            assert_eq!(ours.open(&ticket[..place], NOW), None, "the first {place}");
        }
        assert_eq!(ours.open(&[&ticket[..], &[0]].concat(), NOW), None);
        assert_eq!(keys(&[NOW]).open(&ticket, NOW), None);
        assert_eq!(ours.seal(client(), &[0; LONGEST], NOW), None);
        assert!(ours.open(&ticket, NOW).is_some());
    }

    proptest! {
        /// Also of one with the id of a key, which alone is in the clear.
        #[test]
        fn nonsense_is_no_ticket(nonsense in proptest::collection::vec(any::<u8>(), 0..2 * LONGEST)) {
            let keys = keys(&[NOW]);
            let id = keys.0.load()[0].id;
            prop_assert_eq!(keys.open(&nonsense, NOW), None);
            prop_assert_eq!(keys.open(&[&id, &nonsense[..]].concat(), NOW), None);
        }
    }
}
