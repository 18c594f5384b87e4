//! TLS for one connection of a client to the server, and the tickets of resumed sessions.
//!
//! ```text
//!  ClientHello ─ its ALPN ──────┐
//!  ticket ─ whose it is, or ────┼─▶ ConnectionTls ─▶ new tickets, if a known key wants a tunnel:
//!  Certificate ─ the key ───────┘                     four that are kept here and resume with early data, once,
//!                                                     two that are sealed and resume at any server of the fleet
//! ```
//!
//! rustls takes the ticket store from its configuration, before the client's key is known. Each connection
//! therefore has a configuration of its own that knows the key by the time tickets are stored: unknown keys store
//! none, and each known key has a limited share.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, MutexGuard},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ProducesTickets, ResolvesServerCert, StoresServerSessions,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::{
    TICKET_LIFE, TUNNEL, check_signature, public_key,
    sealed::{Client, TicketKeys},
};
use crate::{clock, identity::PublicKey, mutex::Mutex};

/// Tickets that a server keeps for one key: twice as many as a client keeps.
pub(super) const SHARE: usize = 16;
/// Tickets for one session that the server keeps. A client that races its links needs one for each.
const KEPT_A_SESSION: usize = 4;
/// Tickets for one session that are sealed for the other servers of a fleet.
const SEALED_A_SESSION: usize = 2;
/// All tickets for one session.
pub(super) const TICKETS_A_SESSION: usize = KEPT_A_SESSION + SEALED_A_SESSION;

/// Says whether a key is in the configuration.
pub(super) type Knows = dyn Fn(PublicKey) -> bool + Send + Sync;

/// The tickets of known keys. Those that are kept here are taken once: a first flight that somebody recorded and sends
/// again finds none (RFC 8446 §8.1).
pub(super) struct ServerTickets {
    knows: Box<Knows>,
    kept: Mutex<Kept>,
    /// What opens and seals the tickets of a fleet.
    pub(super) keys: Arc<TicketKeys>,
}

#[derive(Default)]
struct Kept {
    by_name: HashMap<Vec<u8>, (Client, Zeroizing<Vec<u8>>)>,
    /// Their names, oldest first.
    by_key: HashMap<PublicKey, VecDeque<Vec<u8>>>,
}

/// What a client's ticket turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kept,
    Sealed,
}

impl ServerTickets {
    pub(super) fn new(knows: Box<Knows>) -> Self {
        Self { knows, kept: Mutex::default(), keys: Arc::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    fn put(&self, client: Client, name: Vec<u8>, state: Vec<u8>) -> bool {
        if !(self.knows)(client.key) {
            return false;
        }
        let Kept { by_name, by_key } = &mut *self.kept();
        let names = by_key.entry(client.key).or_default();
        if names.len() >= SHARE
            && let Some(oldest) = names.pop_front()
        {
            by_name.remove(&oldest);
        }
        names.push_back(name.clone());
        by_name.insert(name, (client, state.into()));
        true
    }

    /// Takes a ticket that is kept here, else opens one that was sealed by any server of the fleet.
    fn take(&self, ticket: &[u8], now: u64) -> Option<(Kind, Client, Vec<u8>)> {
        let found = self.take_kept(ticket).map(|(client, state)| (Kind::Kept, client, state));
        let found = found.or_else(|| {
            let (client, state) = self.keys.open(ticket, now)?;
            Some((Kind::Sealed, client, state))
        });
        found.filter(|(_, client, _)| {
            let is_void = client.by.is_some_and(|key| !self.keys.has(&key));
            !is_void && client.is_proved(now) && (self.knows)(client.key)
        })
    }

    fn take_kept(&self, name: &[u8]) -> Option<(Client, Vec<u8>)> {
        let Kept { by_name, by_key } = &mut *self.kept();
        let (client, mut state) = by_name.remove(name)?;
        if let Some(names) = by_key.get_mut(&client.key) {
            names.retain(|other| other != name);
        }
        Some((client, std::mem::take(&mut *state)))
    }

    fn seal(&self, client: Client, state: &[u8], now: u64) -> Option<Vec<u8>> {
        (self.knows)(client.key).then(|| self.keys.seal(client, state, now)).flatten()
    }

    /// Deletes the tickets of keys that are not in the configuration.
    pub(super) fn forget_strangers(&self) {
        let Kept { by_name, by_key } = &mut *self.kept();
        by_key.retain(|key, _| (self.knows)(*key));
        by_name.retain(|_, (client, _)| by_key.contains_key(&client.key));
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
///
/// To rustls a server either keeps its tickets ([`StoresServerSessions`]) or seals them ([`ProducesTickets`]), and only
/// one that keeps them accepts early data. It asks which at each turn: when a ticket comes, when early data may be
/// accepted, and for each ticket that is given. The answers are those of the ticket at hand.
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
    client: Option<Client>,
    /// Whether the ticket at hand is a sealed one: the client's, until the first is given.
    is_sealed: bool,
    /// Tickets that rustls has asked for.
    kept: usize,
    sealed: usize,
}

impl Seen {
    /// The client whose tickets may be given to it. Probes do not resume sessions and need none.
    fn takes_tickets(&self) -> Option<Client> {
        self.client.filter(|_| self.wants_tunnel)
    }
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
        self.seen.lock()
    }

    /// rustls' state of the session that the client's `ticket` resumes.
    fn resumed(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (kind, client, state) = self.tickets.take(ticket, clock::unix())?;
        let mut seen = self.seen();
        seen.client = Some(client);
        seen.is_sealed = kind == Kind::Sealed;
        Some(state)
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
    fn put(&self, name: Vec<u8>, state: Vec<u8>) -> bool {
        let mut seen = self.seen();
        seen.kept += 1;
        seen.is_sealed = seen.kept == KEPT_A_SESSION;
        seen.takes_tickets().is_some_and(|client| self.tickets.put(client, name, state))
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.resumed(ticket)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl ProducesTickets for ConnectionTls {
    fn enabled(&self) -> bool {
        self.seen().is_sealed
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFE.as_secs() as u32
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        let mut seen = self.seen();
        seen.sealed += 1;
        seen.is_sealed = seen.sealed < SEALED_A_SESSION;
        self.tickets.seal(seen.takes_tickets()?, state, clock::unix())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.resumed(ticket)
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
        self.seen().client = Some(Client { key, proved: clock::unix(), by: None });
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
        let of = |key: u8| Client { key: PublicKey::from([key; 32]), proved: 1000, by: None };
        let (key, other) = (of(1), of(2));
        let tickets = ServerTickets::new(Box::new(|_| true));
        assert!(tickets.put(other, b"other".to_vec(), b"its ticket".to_vec()));
        for number in 0..=SHARE as u8 {
            assert!(tickets.put(key, vec![number], vec![number]));
        }
        assert_eq!(tickets.take(&[0], 1000), None, "the oldest made room");
        assert_eq!(tickets.take(&[1], 1000), Some((Kind::Kept, key, vec![1])));
        assert_eq!(tickets.take(&[1], 1000), None, "a second time");
        assert_eq!(tickets.take(b"other", 1000), Some((Kind::Kept, other, b"its ticket".to_vec())));
    }
}
