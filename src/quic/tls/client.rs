//! TLS of a client with its servers: whom it accepts, and the tickets that they gave.
//!
//! A ticket that its server keeps resumes a session there, with early data. A sealed one, which its server does not
//! keep and which carries no early data, is for the others: the servers of one client share the keys of such tickets
//! if they are a fleet.
//!
//! A session that is resumed proves no private key again. With a sealed ticket it proves that somebody has the keys of
//! the fleet's tickets, or is the server that gave it. So only servers that are trusted alike share tickets, and tickets
//! are used for a day at most after the full handshake that they go back to, however often sessions were resumed since.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, MutexGuard, Weak},
    time::{Duration, Instant},
};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, NamedGroup, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, ClientSessionStore, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{
    TICKET_LIFE, TlsError, WrongServerKey, certified_key, check_signature, provider, public_key,
};
use crate::{
    clock,
    identity::{PrivateKey, PublicKey},
    mutex::Mutex,
};

/// Tickets of one kind that a client keeps for one server. Each is used once, and a server hands out several.
const TICKETS: usize = 8;

/// TLS for a client that accepts only the server key `server`, with the ALPN `alpn`. rustls calls the server `roamd`.
pub fn client(key: &PrivateKey, server: PublicKey, alpn: &[u8]) -> Result<ClientTls, TlsError> {
    Servers::new(key)?.named("roamd".into(), server, alpn)
}

/// TLS of a client with the servers of a fleet. Each takes the sealed tickets of the others. Thereby each can be another
/// one, on the path to that: they are trusted alike.
pub(crate) struct Servers {
    key: Arc<AlwaysResolvesClientRawPublicKeys>,
    known: Arc<Known>,
}

impl Servers {
    /// TLS for a client with this `key`.
    pub(crate) fn new(key: &PrivateKey) -> Result<Self, TlsError> {
        let key = Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified_key(key)?));
        let known = Arc::new(Known::new(provider().signature_verification_algorithms));
        Ok(Self { key, known })
    }

    /// TLS that accepts only the server key `server`, with the ALPN `alpn`. The server's tickets, and those that go back
    /// to them, are forgotten once all that was made for it is dropped.
    pub(crate) fn with(&self, server: PublicKey, alpn: &[u8]) -> Result<ClientTls, TlsError> {
        self.named(name(server, alpn), server, alpn)
    }

    fn named(&self, name: String, server: PublicKey, alpn: &[u8]) -> Result<ClientTls, TlsError> {
        let wrong = self.known.expect(&name, server);
        let mut rustls = rustls::ClientConfig::builder_with_provider(provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.known.clone())
            .with_client_cert_resolver(self.key.clone());
        rustls.alpn_protocols = vec![alpn.to_vec()];
        rustls.enable_sni = false;
        let tickets = Tickets { of: None, _expected: wrong.clone() };
        rustls.resumption = Resumption::store(Arc::new(tickets));
        let fresh = QuicClientConfig::try_from(rustls.clone())?;
        let (known, expected) = (self.known.clone(), wrong.clone());
        let resuming = Resuming { rustls, known, server, expected };
        Ok(ClientTls { name, fresh, resuming, wrong })
    }
}

/// What rustls calls a server, in letters of a DNS name, of which no label has more than 63. It is not sent.
fn name(server: PublicKey, alpn: &[u8]) -> String {
    let (mut name, bytes) = (String::new(), server.as_bytes());
    for half in bytes.chunks(bytes.len() / 2) {
        for byte in half {
            let _ = write!(name, "{byte:02x}");
        }
        name.push('.');
    }
    name + &String::from_utf8_lossy(alpn)
}

/// TLS of a client with one server, for one purpose.
pub struct ClientTls {
    /// The name to connect to. The verifier knows the server's key by it.
    pub name: String,
    /// Uses no ticket.
    pub fresh: QuicClientConfig,
    /// Uses tickets.
    pub resuming: Resuming,
    /// Set when a server presents another key than the expected one.
    pub(crate) wrong: WrongServerKey,
}

/// Makes configurations that resume earlier sessions.
pub struct Resuming {
    rustls: rustls::ClientConfig,
    known: Arc<Known>,
    server: PublicKey,
    expected: WrongServerKey,
}

impl Resuming {
    /// For one connection: resumes an earlier session if there is a ticket, so that the first flight can carry data
    /// (0-RTT, RFC 8446 §2.3).
    pub fn once(&self) -> Result<QuicClientConfig, TlsError> {
        Ok(QuicClientConfig::try_from(self.rustls())?)
    }

    pub(super) fn rustls(&self) -> rustls::ClientConfig {
        let Self { known, server, .. } = self;
        let proof = Mutex::new(Proof { by: *server, at: now() });
        let session = Session { known: known.clone(), server: *server, proof };
        let tickets = Tickets { of: Some(session), _expected: self.expected.clone() };
        let mut rustls = self.rustls.clone();
        rustls.resumption = Resumption::store(Arc::new(tickets));
        rustls.enable_early_data = true;
        rustls
    }
}

/// The servers that a client accepts, and their tickets.
#[derive(Debug)]
struct Known {
    algorithms: WebPkiSupportedAlgorithms,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the name that rustls hands to the verifier; nobody else sees it.
    expected: HashMap<String, Expected>,
    /// The oldest first.
    tickets: Vec<Ticket>,
}

#[derive(Debug)]
struct Expected {
    key: PublicKey,
    /// Gone with the last configuration for this server.
    wrong: Weak<Mutex<Option<PublicKey>>>,
}

#[derive(Debug)]
struct Ticket {
    from: PublicKey,
    proof: Proof,
    is_sealed: bool,
    value: Tls13ClientSessionValue,
}

/// The full handshake that a session goes back to.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The server that proved its private key.
    by: PublicKey,
    /// When, by both clocks: the one stands still while the machine sleeps, the other may be set.
    at: (Instant, u64),
}

impl Proof {
    fn is_young(&self, (now, unix): (Instant, u64)) -> bool {
        let age = now.saturating_duration_since(self.at.0);
        age.max(Duration::from_secs(unix.saturating_sub(self.at.1))) < TICKET_LIFE
    }
}

fn now() -> (Instant, u64) {
    (clock::now(), clock::unix())
}

impl Known {
    fn new(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { algorithms, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Expects this `key` of the server that rustls calls `name`, until what this returns is dropped.
    fn expect(&self, name: &str, key: PublicKey) -> WrongServerKey {
        let mut state = self.state();
        let there = state.expected.get(name).and_then(|expected| expected.wrong.upgrade());
        let wrong = there.unwrap_or_default();
        let expected = Expected { key, wrong: Arc::downgrade(&wrong) };
        state.expected.insert(name.to_owned(), expected);
        wrong
    }
}

impl State {
    /// Forgets servers that the client has no more, all that goes back to them, and tickets that are too old.
    fn prune(&mut self, now: (Instant, u64)) {
        let Self { expected, tickets } = self;
        expected.retain(|_, expected| expected.wrong.strong_count() > 0);
        let is_expected = |key| expected.values().any(|expected| expected.key == key);
        tickets.retain(|Ticket { from, proof, .. }| {
            proof.is_young(now) && is_expected(*from) && is_expected(proof.by)
        });
    }

    fn put(&mut self, ticket: Ticket) {
        self.prune(now());
        let alike = |it: &Ticket| it.from == ticket.from && it.is_sealed == ticket.is_sealed;
        if self.tickets.iter().filter(|it| alike(it)).count() >= TICKETS
            && let Some(oldest) = self.tickets.iter().position(alike)
        {
            self.tickets.remove(oldest);
        }
        self.tickets.push(ticket);
    }

    /// The newest ticket for the server `at`: its own, else a sealed one of another server.
    fn take(&mut self, at: PublicKey) -> Option<Ticket> {
        self.prune(now());
        let own = |ticket: &Ticket| ticket.from == at && !ticket.is_sealed;
        let others = |ticket: &Ticket| ticket.from != at && ticket.is_sealed;
        let place = self.tickets.iter().rposition(own);
        let place = place.or_else(|| self.tickets.iter().rposition(others))?;
        Some(self.tickets.remove(place))
    }
}

/// The tickets as the connections of a configuration see them.
#[derive(Debug)]
struct Tickets {
    /// The one connection that has tickets; all others have none.
    of: Option<Session>,
    /// The server is expected as long as somebody has this.
    _expected: WrongServerKey,
}

#[derive(Debug)]
struct Session {
    known: Arc<Known>,
    server: PublicKey,
    /// What it goes back to: itself, unless it takes a ticket.
    proof: Mutex<Proof>,
}

impl ClientSessionStore for Tickets {
    /// A server of ours takes the first key exchange that is offered.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    /// QUIC has no TLS 1.2 (RFC 9001 §4.2).
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let Some(Session { known, server, proof }) = &self.of else { return };
        let (from, proof) = (*server, *proof.lock());
        let is_sealed = value.max_early_data_size() == 0;
        known.state().put(Ticket { from, proof, is_sealed, value });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let Session { known, server, proof } = self.of.as_ref()?;
        let ticket = known.state().take(*server)?;
        *proof.lock() = ticket.proof;
        Some(ticket.value)
    }
}

/// Checks that a server has the expected key and owns it.
impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let shown = public_key(end_entity)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let state = self.state();
        let Some(expected) = state.expected.get(&*name.to_str()) else {
            return Err(refused);
        };
        if shown == expected.key {
            return Ok(ServerCertVerified::assertion());
        }
        if let Some(wrong) = expected.wrong.upgrade() {
            *wrong.lock() = Some(shown);
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
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
