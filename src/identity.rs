//! The identity of a host: one Ed25519 key, used raw (RFC 7250).
//!
//! Both halves are written as one line of standard, padded base64: 44 characters
//! for 32 bytes, as WireGuard's are.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const TEXT_BYTES: usize = 44;

/// Maximum size in bytes of a file or pipe with a key; more cannot be a key.
const MAX_INPUT_BYTES: u64 = 1024;

/// A text that is not a key. Never carries the text, which may be half a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// Not 44 characters long.
    #[error("a key is {TEXT_BYTES} characters of base64, not {0}")]
    Length(usize),
    /// Not standard, padded base64.
    #[error("a key is {TEXT_BYTES} characters of base64, and some here are not")]
    Encoding,
}

/// Why a private key could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be opened or read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is open to its group or to everybody.
    #[error(
        "{path} has mode {mode:04o}, so others can use the key: run chmod 600 {path}",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{path} does not hold a private key: {error}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ParseKeyError,
    },
    /// The system had no random bytes to give.
    #[error("the system's random number generator failed")]
    Random,
}

/// An Ed25519 seed. Wiped from memory on drop; never printed by `Debug`.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

impl PrivateKey {
    /// A new key from the system's random number generator.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(seed.as_mut_slice()).map_err(|_| KeyError::Random)?;
        Ok(Self(seed))
    }

    /// Reads one line of base64 from `path`, which only its owner may access.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::load_unless(path, 0o077)
    }

    /// Like [`PrivateKey::load`], but ignores the group's permission bits: systemd grants access to
    /// a credential by an ACL, which shows as group permissions.
    pub fn load_credential(path: &Path) -> Result<Self, KeyError> {
        Self::load_unless(path, 0o007)
    }

    fn load_unless(path: &Path, open: u32) -> Result<Self, KeyError> {
        let unreadable = |error| KeyError::Read { path: path.into(), error };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
        let text = read_text(file).map_err(unreadable)?;
        let key = Self::from_base64(&text)
            .map_err(|error| KeyError::Content { path: path.into(), error })?;
        // Last: the mode of a folder or a device is right as it is, whatever it would be for a key.
        if mode & open != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        Ok(key)
    }

    /// Reads one line of base64, as standard input gives it.
    pub fn read(input: impl Read) -> io::Result<Result<Self, ParseKeyError>> {
        Ok(Self::from_base64(&read_text(input)?))
    }

    /// Parses base64; white space around it is ignored.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        decode(text).map(Self)
    }

    /// The one line of base64 that [`PrivateKey::from_base64`] reads.
    pub fn to_base64(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES));
        STANDARD.encode_string(self.seed(), &mut text);
        text
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(self.seed()).expect("a seed is 32 bytes");
        let mut bytes = [0; KEY_BYTES];
        bytes.copy_from_slice(pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The secret itself (RFC 8032 §5.1.5).
    pub fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl FromStr for PrivateKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        Self::from_base64(text)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}

/// An Ed25519 public key, by which hosts know each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// The 32 bytes of RFC 8032 §5.1.5, as a certificate's key would carry them.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl From<[u8; KEY_BYTES]> for PublicKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = ParseKeyError;

    fn try_from(text: String) -> Result<Self, ParseKeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, ParseKeyError> {
    let text = text.trim();
    if text.len() != TEXT_BYTES {
        return Err(ParseKeyError::Length(text.chars().count()));
    }
    // 44 characters may be 33 bytes when nothing is padding.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    match STANDARD.decode_slice(text, bytes.as_mut_slice()) {
        Ok(KEY_BYTES) => {
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            key.copy_from_slice(&bytes[..KEY_BYTES]);
            Ok(key)
        }
        _ => Err(ParseKeyError::Encoding),
    }
}

fn read_text(input: impl Read) -> io::Result<Zeroizing<String>> {
    // Room for all of it at once: a growing string leaves copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_INPUT_BYTES as usize));
    input.take(MAX_INPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    // RFC 8032 §7.1, test 1.
    const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    fn key_file(content: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn the_public_key_is_that_of_rfc_8032() {
        let key: PrivateKey = SEED.parse().unwrap();
        assert_eq!(key.public_key().to_string(), PUBLIC);
        assert_eq!(*key.to_base64(), SEED);
    }

    #[test]
    fn generated_keys_differ() {
        let [a, b] = [(); 2].map(|()| PrivateKey::generate().unwrap());
        assert_ne!(a.seed(), b.seed());
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let key: PrivateKey = SEED.parse().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey([redacted])");
    }

    #[test]
    fn a_file_of_its_owner_loads_with_and_without_a_newline() {
        for content in [SEED.to_owned(), format!("{SEED}\n"), format!("{SEED}\r\n")] {
            for mode in [0o600, 0o400] {
                PrivateKey::load(key_file(&content, mode).path()).unwrap();
            }
        }
    }

    #[test]
    fn a_file_that_others_can_access_is_refused() {
        for mode in [0o604, 0o640, 0o620, 0o601, 0o777] {
            let file = key_file(SEED, mode);
            let path = file.path().display();
            assert_eq!(
                PrivateKey::load(file.path()).unwrap_err().to_string(),
                format!(
                    "{path} has mode 0{mode:o}, so others can use the key: run chmod 600 {path}"
                )
            );
        }
    }

    #[test]
    fn an_invalid_key_is_refused_and_not_printed() {
        let not_base64 = SEED.replace('/', "*");
        let unpadded = format!("{}A", &SEED[..43]);
        for content in ["", "secret", &not_base64, &unpadded, &"x".repeat(5000), &"é".repeat(22)] {
            let error = PrivateKey::load(key_file(content, 0o600).path()).unwrap_err().to_string();
            assert!(error.contains("does not hold a private key: a key is 44"), "{error}");
            assert!(content.len() < 6 || !error.contains(&content[..6]), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = PrivateKey::load(Path::new("/nonexistent/key")).unwrap_err().to_string();
        assert_eq!(error, "cannot read /nonexistent/key: No such file or directory (os error 2)");
    }

    proptest! {
        #[test]
        fn a_public_key_is_the_same_after_a_round_trip(bytes: [u8; 32]) {
            let key = PublicKey::from(bytes);
            let text = key.to_string();
            prop_assert_eq!(text.len(), 44);
            prop_assert_eq!(text.parse::<PublicKey>().unwrap(), key);
            let json = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        }

        #[test]
        fn no_text_makes_parsing_panic(text in any::<String>()) {
            let _ = text.parse::<PublicKey>();
        }
    }
}
