//! The keys of sealed tickets, which the servers of a fleet share: see [`sealed`].
//!
//! ```text
//!  0 h                  12 h               24 h                                48 h
//!  ├ known everywhere ───┼ seals and opens ──┼ opens ─────────────────────────────┤ gone
//! ```
//!
//! Who sees that the next key is missing draws it; of several servers that do so at once etcd lets one win. The keys
//! are encrypted under one that the servers' administrators gave to each and that is not in etcd: somebody who reads
//! etcd, or a copy of it, learns none. They are written nowhere else.

mod share;

use std::cmp::Reverse;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use self::share::open;
use super::record::{self, Unusable};
use crate::{
    identity::PrivateKey,
    quic::tls::sealed::{self, ID, KEY, SEALS, TicketKey},
};

/// Keys in the record at most. There are five of them if all clocks agree.
const MOST_KEYS: usize = 8;

/// The value in etcd.
#[derive(Serialize, Deserialize)]
struct Record {
    keys: Vec<Wrapped>,
}

#[derive(Serialize, Deserialize)]
struct Wrapped {
    /// Base64, as `secret` is.
    id: String,
    from: u64,
    /// Encrypted.
    secret: String,
}

/// What the keys are encrypted under in etcd.
pub(crate) struct Wrapping(Zeroizing<[u8; KEY]>);

impl Wrapping {
    /// From the key that the administrators gave to all servers of the fleet. That is used for nothing else than this.
    pub(crate) fn new(fleet: &PrivateKey) -> Self {
        let secret = Salt::new(HKDF_SHA256, b"").extract(fleet.seed());
        let mut key = Zeroizing::new([0; KEY]);
        secret
            .expand(&[b"roamd: keys of tickets in etcd"], HKDF_SHA256)
            .and_then(|expanded| expanded.fill(key.as_mut_slice()))
            .expect("the hash is as long as the key");
        Self(key)
    }

    /// The value that holds `keys`.
    fn write(&self, keys: &[TicketKey]) -> Option<Vec<u8>> {
        let wrapped = |key: &TicketKey| {
            let secret = sealed::seal(&self.0, &bound(&key.id, key.from), key.secret.as_slice())?;
            let (id, secret) = (STANDARD.encode(key.id), STANDARD.encode(secret));
            Some(Wrapped { id, from: key.from, secret })
        };
        Some(record::write(&Record { keys: keys.iter().map(wrapped).collect::<Option<_>>()? }))
    }

    /// The keys in a value.
    fn read(&self, value: &[u8]) -> Result<Vec<TicketKey>, Unusable> {
        let Record { keys } = record::read(value)?;
        if keys.len() > MOST_KEYS {
            return Err(Unusable::new(format_args!("more than {MOST_KEYS} keys of tickets")));
        }
        let reason = "the keys of tickets are encrypted under another key than this server's";
        let unwrapped = |key: &Wrapped| self.unwrap(key).ok_or_else(|| Unusable::new(reason));
        keys.iter().map(unwrapped).collect()
    }

    fn unwrap(&self, Wrapped { id, from, secret }: &Wrapped) -> Option<TicketKey> {
        let id: [u8; ID] = STANDARD.decode(id).ok()?.try_into().ok()?;
        let text = sealed::open(&self.0, &bound(&id, *from), &STANDARD.decode(secret).ok()?)?;
        let mut secret = Zeroizing::new([0; KEY]);
        if text.len() != KEY {
            return None;
        }
        secret.copy_from_slice(&text);
        Some(TicketKey { id, secret, from: *from })
    }
}

/// What a key's encryption vouches for beside it.
fn bound(id: &[u8; ID], from: u64) -> Vec<u8> {
    [id.as_slice(), &from.to_be_bytes()].concat()
}

/// The keys that take the place of `keys`, if one is missing: the one that seals now, or the next. Of the old ones
/// those stay whose tickets somebody may still have.
fn renewed(keys: &[TicketKey], now: u64) -> Option<Vec<TicketKey>> {
    let has_next = keys.iter().any(|key| key.from > now && key.from <= now + SEALS);
    let sealing = keys.iter().filter(|key| key.seals(now)).map(|key| key.from).max();
    if has_next && sealing.is_some() {
        return None;
    }
    // What is farther ahead is of a server whose clock is.
    let stays = |key: &&TicketKey| key.opens(now) && key.from <= now + 2 * SEALS;
    let mut new: Vec<_> = keys.iter().filter(stays).cloned().collect();
    if sealing.is_none() {
        new.push(TicketKey::generate(now)?);
    }
    if !has_next {
        new.push(TicketKey::generate(sealing.unwrap_or(now) + SEALS)?);
    }
    new.sort_by_key(|key| Reverse(key.from));
    new.truncate(MOST_KEYS);
    Some(new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quic::tls::TICKET_LIFE;

    const NOW: u64 = 1_800_000_000;

    fn wrapping() -> Wrapping {
        Wrapping::new(&PrivateKey::generate().unwrap())
    }

    fn begin(keys: &[TicketKey]) -> Vec<u64> {
        keys.iter().map(|key| key.from).collect()
    }

    #[test]
    fn there_is_always_a_key_that_seals_and_the_next_one_is_known_hours_before() {
        let mut keys = renewed(&[], NOW).unwrap();
        assert_eq!(begin(&keys), [NOW + SEALS, NOW]);
        assert!(renewed(&keys, NOW + SEALS - 1).is_none());
        let looks = (NOW..NOW + 10 * SEALS).step_by(600);
        let mut drawn = 0;
        for now in looks {
            let before = keys.clone();
            if let Some(new) = renewed(&keys, now) {
                drawn += 1;
                keys = new;
            }
            let sealing = before.iter().find(|key| key.seals(now)).expect("none is drawn late");
            assert!(keys.iter().any(|key| key.from == sealing.from + SEALS), "{now}");
            assert!(keys.len() <= 5, "{}", keys.len());
            let missed = before.iter().filter(|old| keys.iter().all(|key| key.id != old.id));
            for missed in missed {
                assert!(now >= missed.from + SEALS + TICKET_LIFE.as_secs(), "{now}");
            }
        }
        assert_eq!(drawn, 9);
    }

    #[test]
    fn after_a_long_time_without_etcd_there_are_new_keys() {
        let keys = renewed(&[], NOW).unwrap();
        let later = NOW + 100 * SEALS;
        assert_eq!(begin(&renewed(&keys, later).unwrap()), [later + SEALS, later]);
        let next = NOW + 2 * SEALS;
        assert_eq!(begin(&renewed(&keys, next).unwrap()), [next + SEALS, next, NOW + SEALS, NOW]);
    }

    #[test]
    fn a_server_with_a_wrong_clock_does_not_fill_the_record() {
        for ahead in [60, SEALS / 2, SEALS + 1, 3 * SEALS, 100 * SEALS] {
            let mut keys = Vec::new();
            for now in (NOW..NOW + 20 * SEALS).step_by(600) {
                for now in [now, now + ahead] {
                    keys = renewed(&keys, now).unwrap_or(keys);
                    assert!(keys.iter().any(|key| key.seals(now)), "{ahead}");
                }
                assert!(keys.len() <= MOST_KEYS);
            }
        }
    }

    #[test]
    fn keys_are_read_again_with_the_administrators_key_alone() {
        let wrapping = wrapping();
        let keys = renewed(&[], NOW).unwrap();
        let value = wrapping.write(&keys).unwrap();
        let parts = |keys: &[TicketKey]| {
            keys.iter().map(|key| (key.id, key.secret.clone(), key.from)).collect::<Vec<_>>()
        };
        assert_eq!(parts(&wrapping.read(&value).unwrap()), parts(&keys));
        let why = self::wrapping().read(&value).map(|keys| keys.len()).unwrap_err();
        assert!(why.to_string().contains("another key"), "{why}");
        let text = String::from_utf8(value).unwrap();
        for key in &keys {
            assert!(!text.contains(&STANDARD.encode(key.secret.as_slice())));
        }
        // No key lives longer than it was made for.
        let longer = text.replace(&NOW.to_string(), &(NOW + 1).to_string());
        assert_ne!(longer, text);
        assert!(wrapping.read(longer.as_bytes()).is_err());
    }

    #[test]
    fn the_longest_record_can_be_read() {
        let (wrapping, keys) =
            (wrapping(), vec![TicketKey::generate(u64::MAX).unwrap(); MOST_KEYS]);
        let value = wrapping.write(&keys).unwrap();
        assert_eq!(wrapping.read(&value).unwrap().len(), MOST_KEYS);
        let more = wrapping.write(&[&keys[..], &keys[..1]].concat()).unwrap();
        assert!(wrapping.read(&more).unwrap_err().to_string().contains("more than 8"));
    }

    proptest! {
        #[test]
        fn no_value_makes_reading_panic(
            value: Vec<u8>,
            id in "[ -~]{0,30}",
            from: u64,
            secret in "[A-Za-z0-9+/=]{0,90}",
        ) {
            let wrapping = wrapping();
            prop_assert!(wrapping.read(&value).is_err());
            let key = serde_json::json!({ "id": id, "from": from, "secret": secret });
            let record = serde_json::json!({ "version": 1, "keys": [key] }).to_string();
            prop_assert!(wrapping.read(record.as_bytes()).is_err());
        }
    }
}
