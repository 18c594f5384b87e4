//! What is in etcd: the keys below the configuration's prefix, and their values: JSON objects that carry the
//! version of their schema. Anybody with access to etcd has written them. Pure. See docs/fleet.md.
//!
//! Fields that are not known are ignored, so that a newer program can add some; what older ones must not misread
//! gets a new version, which they skip.

use std::{collections::HashSet, fmt, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::{Peer, is_name},
    identity::PublicKey,
    wire::foreign::Foreign,
};

/// The version of all schemas.
const VERSION: u64 = 1;
/// The size of a value in bytes at most.
pub(crate) const MOST_BYTES: usize = 4096;
/// The addresses of one peer at most.
const MOST_ADDRESSES: usize = 16;

/// Where the peers are: `peers/`, and the public key in base64 that is safe in URLs, without padding.
pub(crate) const PEERS: &str = "peers/";
/// What changes with each change of a peer that roamd makes: a [`Mark`].
pub(crate) const MARK: &str = "peers/directory";
/// Where servers say who they are: `servers/`, and the public key as for peers.
pub(crate) const SERVERS: &str = "servers/";

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(Foreign);

impl Unusable {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        Self(Foreign::of(reason))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u64,
    #[serde(flatten)]
    record: &'a T,
}

/// The record in a value.
pub(crate) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Unusable> {
    if value.len() > MOST_BYTES {
        let reason = format_args!("{} bytes, more than {MOST_BYTES}", value.len()).to_string();
        return Err(Unusable::new(reason));
    }
    let Version { version } = serde_json::from_slice(value).map_err(Unusable::new)?;
    if version != VERSION {
        return Err(Unusable::new(format_args!(
            "version {version} of the schema, and this roamd knows version {VERSION}"
        )));
    }
    serde_json::from_slice(value).map_err(Unusable::new)
}

/// The value that holds a record.
pub(crate) fn write<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { version: VERSION, record }).unwrap_or_default()
}

/// How a public key is written in a key of etcd.
pub(crate) fn name_of(key: PublicKey) -> String {
    URL_SAFE_NO_PAD.encode(key.as_bytes())
}

/// The public key that is written so.
pub(crate) fn public_key(name: &str) -> Result<PublicKey, Unusable> {
    let bytes =
        URL_SAFE_NO_PAD.decode(name).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let reason = "the key's name is no public key: 43 characters of base64 that is safe in URLs";
    bytes.map(PublicKey::from).ok_or_else(|| Unusable::new(reason))
}

/// The value at [`MARK`]: which of its histories this directory has. Two that once were one differ here from the first
/// change on that only one of them has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Larger than before when a person says that all of the directory is right as it is.
    pub(crate) generation: u64,
    /// Random, another one for each change.
    pub(crate) change: String,
}

impl Mark {
    /// The mark of the next change, of which `random` is another one each time.
    pub(crate) fn next(&self, random: [u8; 12]) -> Self {
        Self { generation: self.generation, change: URL_SAFE_NO_PAD.encode(random) }
    }
}

/// The value at `servers/KEY`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    /// For people.
    pub(crate) name: String,
    /// Its own addresses inside the tunnel, which no peer can have.
    pub(crate) addresses: Vec<IpNet>,
}

/// The value at `peers/KEY`.
#[derive(Serialize, Deserialize)]
struct PeerRecord {
    name: String,
    addresses: Vec<IpAddr>,
}

/// The key and the value of a peer.
pub(crate) fn of_peer(peer: &Peer) -> (String, Vec<u8>) {
    let record = PeerRecord { name: peer.name.clone(), addresses: peer.addresses.clone() };
    (format!("{PEERS}{}", name_of(peer.public_key)), write(&record))
}

/// The peer with this key and value.
pub(crate) fn peer(key: &str, value: &[u8]) -> Result<Peer, Unusable> {
    let public_key = public_key(key.strip_prefix(PEERS).unwrap_or(key))?;
    let PeerRecord { name, addresses } = read(value)?;
    if !is_name(&name) {
        return Err(Unusable::new("the name must have 1 to 64 characters, none of control"));
    }
    let count = addresses.len();
    if !(1..=MOST_ADDRESSES).contains(&count) {
        return Err(Unusable::new(format_args!("{count} addresses, not 1 to {MOST_ADDRESSES}")));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = addresses.iter().find(|address| !seen.insert(**address)) {
        return Err(Unusable::new(format_args!("{twice} stands there twice")));
    }
    Ok(Peer { name, public_key, addresses })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn laptop() -> Peer {
        Peer {
            name: "laptop".into(),
            public_key: PublicKey::from([0xfb; 32]),
            addresses: vec!["10.66.0.2".parse().unwrap(), "fd66::2".parse().unwrap()],
        }
    }

    #[test]
    fn a_peer_is_written_as_documented_and_read_again() {
        let (key, value) = of_peer(&laptop());
        assert_eq!(key, "peers/-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s");
        let text = r#"{"version":1,"name":"laptop","addresses":["10.66.0.2","fd66::2"]}"#;
        assert_eq!(String::from_utf8(value.clone()).unwrap(), text);
        assert_eq!(peer(&key, &value).unwrap(), laptop());
        let newer = text.replace("}", r#","since":"2026"}"#);
        assert_eq!(peer(&key, newer.as_bytes()).unwrap(), laptop(), "a field that is not known");
    }

    #[test]
    fn what_is_no_record_says_why() {
        let (key, _) = of_peer(&laptop());
        for (value, reason) in [
            ("", "EOF"),
            ("laptop", "expected value"),
            ("{}", "missing field `version`"),
            (
                r#"{"version":2,"people":[]}"#,
                "version 2 of the schema, and this roamd knows version 1",
            ),
            (r#"{"version":1,"name":"laptop"}"#, "missing field `addresses`"),
            (r#"{"version":1,"name":"laptop","addresses":["10.66.0"]}"#, "invalid IP address"),
            (r#"{"version":1,"name":"laptop","addresses":[]}"#, "0 addresses, not 1 to 16"),
            (r#"{"version":1,"name":"","addresses":["10.66.0.2"]}"#, "1 to 64 characters"),
            (r#"{"version":1,"name":"a\u001bb","addresses":["10.66.0.2"]}"#, "none of control"),
            (
                r#"{"version":1,"name":"a","addresses":["10.66.0.2","10.66.0.2"]}"#,
                "10.66.0.2 stands there twice",
            ),
        ] {
            let why = peer(&key, value.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(reason), "{value}: {why}");
        }
        let long = vec![b' '; MOST_BYTES + 1];
        assert!(peer(&key, &long).unwrap_err().to_string().contains("more than 4096"));
        for name in ["", "laptop", "-_v7=", &format!("{key}=")] {
            let why = peer(&format!("{PEERS}{name}"), b"{}").unwrap_err().to_string();
            assert!(why.contains("no public key"), "{name}: {why}");
        }
    }

    proptest! {
        #[test]
        fn a_public_key_has_one_name(bytes: [u8; 32]) {
            let key = PublicKey::from(bytes);
            prop_assert_eq!(public_key(&name_of(key)).unwrap(), key);
        }

        #[test]
        fn no_value_makes_reading_panic(key in "[ -~]{0,60}", value: Vec<u8>) {
            prop_assert!(peer(&key, &value).is_err());
        }
    }
}
