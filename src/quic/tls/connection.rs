//! TLS for one connection of a client to the server, and the tickets of resumed sessions.
//!
//! ```text
//!  ClientHello ─ its ALPN ──────┐
//!  ticket ─ whose it is, or ────┼─▶ ConnectionTls ─▶ new tickets, if a known key wants a tunnel
//!  Certificate ─ the key ───────┘
//! ```
//!
//! rustls takes the ticket store from its configuration, before the client's key is known. Each connection
//! therefore has a configuration of its own that knows the key by the time tickets are stored: unknown keys store
//! none, and each known key has a limited share.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, StoresServerSessions,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{TUNNEL, check_signature, public_key};
use crate::identity::PublicKey;

/// Tickets that a server keeps for one key: twice as many as a client keeps.
pub(super) const SHARE: usize = 16;

/// Says whether a key is in the configuration.
pub(super) type Knows = dyn Fn(PublicKey) -> bool + Send + Sync;

/// The tickets of known keys. Each is taken once: a first flight that somebody recorded and sends again
/// finds none (RFC 8446 §8.1).
pub(super) struct ServerTickets {
    knows: Box<Knows>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_name: HashMap<Vec<u8>, (PublicKey, Vec<u8>)>,
    /// Their names, oldest first.
    by_key: HashMap<PublicKey, VecDeque<Vec<u8>>>,
}

impl ServerTickets {
    pub(super) fn new(knows: Box<Knows>) -> Self {
        Self { knows, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: PublicKey, name: Vec<u8>, ticket: Vec<u8>) -> bool {
        if !(self.knows)(key) {
            return false;
        }
        let Kept { by_name, by_key } = &mut *self.kept();
        let names = by_key.entry(key).or_default();
        if names.len() >= SHARE
            && let Some(oldest) = names.pop_front()
        {
            by_name.remove(&oldest);
        }
        names.push_back(name.clone());
        by_name.insert(name, (key, ticket));
        true
    }

    fn take(&self, name: &[u8]) -> Option<(PublicKey, Vec<u8>)> {
        let Kept { by_name, by_key } = &mut *self.kept();
        let (key, ticket) = by_name.remove(name)?;
        if let Some(names) = by_key.get_mut(&key) {
            names.retain(|other| other != name);
        }
        (self.knows)(key).then_some((key, ticket))
    }

    /// Deletes the tickets of keys that are not in the configuration.
    pub(super) fn forget_strangers(&self) {
        let Kept { by_name, by_key } = &mut *self.kept();
        by_key.retain(|key, _| (self.knows)(*key));
        by_name.retain(|_, (key, _)| by_key.contains_key(key));
    }
}

impl fmt::Debug for ServerTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTickets")
            .field("kept", &self.kept().by_name.len())
            .finish_non_exhaustive()
    }
}

/// TLS for one connection: answers all that rustls asks the server about one client.
#[derive(Debug)]
pub(super) struct ConnectionTls {
    tickets: Arc<ServerTickets>,
    own: Arc<CertifiedKey>,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    wants_tunnel: bool,
    key: Option<PublicKey>,
}

impl ConnectionTls {
    pub(super) fn new(
        tickets: Arc<ServerTickets>,
        own: Arc<CertifiedKey>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { tickets, own, algorithms, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for ConnectionTls {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered = hello.alpn().into_iter().flatten();
        self.seen().wants_tunnel = offered.any(|offered| offered == TUNNEL);
        Some(self.own.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

impl StoresServerSessions for ConnectionTls {
    /// Probes do not resume sessions and need no ticket.
    fn put(&self, name: Vec<u8>, ticket: Vec<u8>) -> bool {
        match *self.seen() {
            Seen { wants_tunnel: true, key: Some(key) } => self.tickets.put(key, name, ticket),
            Seen { .. } => false,
        }
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, name: &[u8]) -> Option<Vec<u8>> {
        let (key, ticket) = self.tickets.take(name)?;
        self.seen().key = Some(key);
        Some(ticket)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Every key may prove itself; [`crate::server`] decides about it afterwards.
impl ClientCertVerifier for ConnectionTls {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = public_key(end_entity)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        self.seen().key = Some(key);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_taken_once_and_each_key_has_a_share() {
        let (key, other) = (PublicKey::from([1; 32]), PublicKey::from([2; 32]));
        let tickets = ServerTickets::new(Box::new(|_| true));
        assert!(tickets.put(other, b"other".to_vec(), b"its ticket".to_vec()));
        for number in 0..=SHARE as u8 {
            assert!(tickets.put(key, vec![number], vec![number]));
        }
        assert_eq!(tickets.take(&[0]), None, "the oldest made room");
        assert_eq!(tickets.take(&[1]), Some((key, vec![1])));
        assert_eq!(tickets.take(&[1]), None, "a second time");
        assert_eq!(tickets.take(b"other"), Some((other, b"its ticket".to_vec())));
    }
}
