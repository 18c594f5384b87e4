//! TLS 1.3 with raw public keys (RFC 7250): each side proves its Ed25519 key, and there are no certificates.
//!
//! The client accepts exactly the server key of its configuration. The server lets every key prove
//! itself and then decides in one place, [`crate::server`], for full and resumed handshakes alike:
//! rustls does not ask its verifier again on resumption.

mod connection;

use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::{
    HandshakeData, NoInitialCipherSuite, QuicClientConfig, QuicServerConfig,
};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, Error, NamedGroup, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, ClientSessionMemoryCache, ClientSessionStore,
        Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, ring,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
    },
    sign::CertifiedKey,
};

use self::connection::{ConnectionTls, ServerTickets};
use crate::identity::{PrivateKey, PublicKey};

/// The ALPN (RFC 7301) of a tunnel's connection.
pub const TUNNEL: &[u8] = b"roamd";
/// The ALPN of a probe's connection.
pub(crate) const PROBE: &[u8] = b"roamd-probe";

/// no_application_protocol (RFC 7301 §3.2), by which TLS refuses a client that offers neither of them, one of HTTP/3 for
/// example.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// PKCS #8 (RFC 5958) around a 32-byte Ed25519 seed (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// SubjectPublicKeyInfo around a 32-byte Ed25519 public key (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// Why TLS cannot be set up; all of these are bugs or a broken build.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses the configuration.
    #[error("TLS set-up: {0}")]
    Rustls(#[from] Error),
    /// The provider has no cipher suite for QUIC's Initial packets.
    #[error("TLS set-up: {0}")]
    Initial(#[from] NoInitialCipherSuite),
}

/// The key that a server presented, if it was not the expected one.
pub(crate) type WrongServerKey = Arc<Mutex<Option<PublicKey>>>;

/// Tickets of past sessions that a client keeps. Each is used once, and a server hands out several.
const CLIENT_TICKETS: usize = 8;
/// Tickets for one session. A client that races its links needs one for each.
const TICKETS_A_SESSION: usize = 4;

/// TLS for a client.
pub struct ClientTls {
    /// Resumes an earlier session if it has a ticket, so that the first flight can carry data (0-RTT, RFC 8446
    /// §2.3).
    pub resuming: QuicClientConfig,
    /// Uses no ticket.
    pub fresh: QuicClientConfig,
    /// Set when a server presents another key than the expected one.
    pub wrong: WrongServerKey,
}

/// TLS for a client that accepts only the server key `server`, with the ALPN `alpn`.
pub fn client(key: &PrivateKey, server: PublicKey, alpn: &[u8]) -> Result<ClientTls, TlsError> {
    let (mut config, wrong) = rustls_client(key, server, alpn)?;
    let tickets = Arc::new(ClientSessionMemoryCache::new(CLIENT_TICKETS));
    let resumption = |gives| Resumption::store(Arc::new(Tickets { store: tickets.clone(), gives }));
    config.resumption = resumption(false);
    let fresh = QuicClientConfig::try_from(config.clone())?;
    config.resumption = resumption(true);
    config.enable_early_data = true;
    Ok(ClientTls { resuming: QuicClientConfig::try_from(config)?, fresh, wrong })
}

/// A store that always keeps tickets, and gives them out only if `gives` is set.
#[derive(Debug)]
struct Tickets {
    store: Arc<ClientSessionMemoryCache>,
    gives: bool,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.store.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.kx_hint(server)
    }

    /// QUIC has no TLS 1.2 (RFC 9001 §4.2).
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.store.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.gives.then(|| self.store.take_tls13_ticket(server)).flatten()
    }
}

/// TLS for a server; any client that proves its key completes the handshake.
#[derive(Debug)]
pub struct ServerTls {
    provider: Arc<CryptoProvider>,
    own: Arc<CertifiedKey>,
    tickets: Arc<ServerTickets>,
}

impl ServerTls {
    /// TLS for the server with this `key`, which keeps tickets for the keys that it `knows`.
    pub fn new(
        key: &PrivateKey,
        knows: impl Fn(PublicKey) -> bool + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            provider: provider().into(),
            own: certified_key(key)?,
            tickets: Arc::new(ServerTickets::new(Box::new(knows))),
        })
    }

    /// The configuration for one connection.
    pub fn for_connection(&self) -> Result<QuicServerConfig, TlsError> {
        Ok(QuicServerConfig::try_from(self.rustls()?)?)
    }

    /// Deletes the tickets of unknown keys.
    pub fn forget_strangers(&self) {
        self.tickets.forget_strangers();
    }

    fn rustls(&self) -> Result<rustls::ServerConfig, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        let connection =
            Arc::new(ConnectionTls::new(self.tickets.clone(), self.own.clone(), algorithms));
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(connection.clone())
            .with_cert_resolver(connection.clone());
        config.alpn_protocols = vec![TUNNEL.to_vec(), PROBE.to_vec()];
        config.session_storage = connection;
        config.send_tls13_tickets = TICKETS_A_SESSION;
        // The only other value that QUIC allows is zero (RFC 9001 §4.6.1).
        config.max_early_data_size = u32::MAX;
        Ok(config)
    }
}

fn rustls_client(
    key: &PrivateKey,
    server: PublicKey,
    alpn: &[u8],
) -> Result<(rustls::ClientConfig, WrongServerKey), Error> {
    let provider = provider();
    let wrong = WrongServerKey::default();
    let verifier = Verifier {
        expected: server,
        wrong: wrong.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            certified_key(key)?,
        )));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    Ok((config, wrong))
}

/// The key that the peer of an established connection proved.
#[must_use]
pub(crate) fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    public_key(identity.first()?)
}

/// Whether a handshake ended since the client offered other protocols only: "the server MUST treat the inability to select
/// a compatible application protocol as a connection error of type 0x0178" (RFC 9001 §8.1).
#[must_use]
pub(crate) fn is_other_protocol(code: quinn_proto::TransportErrorCode) -> bool {
    code == quinn_proto::TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL)
}

/// The ALPN of an established connection.
#[must_use]
pub fn purpose(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// Cipher suites of ring, key exchange of aws-lc-rs.
///
/// Only aws-lc-rs has X25519MLKEM768, which keeps recorded traffic safe from a later quantum
/// computer. ring seals a packet faster: 0.25 against 0.29 µs for 1200 bytes and 0.10 against
/// 0.16 µs for 64 with AES-128-GCM on a Xeon. AES comes first where the CPU has it, else ChaCha20.
pub(crate) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    let preference = if has_aes() {
        [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ]
    } else {
        [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ]
    };
    let suites = std::mem::take(&mut provider.cipher_suites);
    provider.cipher_suites = preference
        .iter()
        .filter_map(|wanted| suites.iter().find(|suite| suite.suite() == *wanted).copied())
        .collect();
    provider
}

fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// A raw public key in place of a certificate chain.
fn certified_key(key: &PrivateKey) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = zeroize::Zeroizing::new([&PKCS8_PREFIX[..], key.seed()].concat());
    let signer = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
    let spki = [&SPKI_PREFIX[..], key.public_key().as_bytes()].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signer)))
}

fn public_key(spki: &CertificateDer<'_>) -> Option<PublicKey> {
    let bytes: [u8; 32] = spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?;
    Some(PublicKey::from(bytes))
}

fn check_signature(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
}

/// Checks that a server has the expected key and owns it.
#[derive(Debug)]
struct Verifier {
    expected: PublicKey,
    wrong: WrongServerKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = public_key(end_entity)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if shown != self.expected {
            *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(ServerCertVerified::assertion())
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

#[cfg(test)]
mod tests {
    use super::connection::SHARE;
    use super::*;

    /// Both ends of one connection, without QUIC; the client reads its tickets.
    fn meet(
        client: rustls::ClientConfig,
        server: &ServerTls,
    ) -> (rustls::ClientConnection, rustls::ServerConnection) {
        let name = ServerName::try_from("roamd").unwrap();
        let mut client = rustls::ClientConnection::new(client.into(), name).unwrap();
        let mut server = rustls::ServerConnection::new(server.rustls().unwrap().into()).unwrap();
        let mut is_done = false;
        while !is_done {
            is_done = !client.is_handshaking() && !server.is_handshaking();
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                server.read_tls(&mut unread).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                client.read_tls(&mut unread).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        (client, server)
    }

    fn keys() -> (PrivateKey, PrivateKey) {
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap())
    }

    #[test]
    fn the_key_exchange_is_post_quantum() {
        let (here, there) = keys();
        let (config, _) = rustls_client(&here, there.public_key(), TUNNEL).unwrap();
        let (client, server) = meet(config, &ServerTls::new(&there, |_| true).unwrap());
        let group = client.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(
            server.peer_certificates().and_then(|keys| public_key(&keys[0])),
            Some(here.public_key())
        );
    }

    fn resumes(client: &rustls::ClientConfig, server: &ServerTls) -> bool {
        let (client, _) = meet(client.clone(), server);
        client.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    #[test]
    fn strangers_and_probes_do_not_cost_a_known_client_its_tickets() {
        let (here, there) = keys();
        let known = here.public_key();
        let server = ServerTls::new(&there, move |key| key == known).unwrap();
        let client =
            |key: &PrivateKey, alpn| rustls_client(key, there.public_key(), alpn).unwrap().0;
        let returning = client(&here, TUNNEL);
        assert!(!resumes(&returning, &server));
        let stranger = PrivateKey::generate().unwrap();
        for _ in 0..1100 {
            meet(client(&stranger, TUNNEL), &server);
        }
        for _ in 0..SHARE {
            meet(client(&here, PROBE), &server);
        }
        let returning_stranger = client(&stranger, TUNNEL);
        assert!(!resumes(&returning_stranger, &server));
        assert!(!resumes(&returning_stranger, &server), "a stranger has no ticket");
        assert!(resumes(&returning, &server));
    }

    #[test]
    fn a_ticket_dies_with_its_key() {
        let (here, there) = keys();
        let is_known = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let server = ServerTls::new(&there, {
            let is_known = is_known.clone();
            move |_| is_known.load(std::sync::atomic::Ordering::Relaxed)
        })
        .unwrap();
        let (returning, _) = rustls_client(&here, there.public_key(), TUNNEL).unwrap();
        assert!(!resumes(&returning, &server));
        assert!(resumes(&returning, &server));
        is_known.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(!resumes(&returning, &server));
        server.forget_strangers();
        is_known.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(!resumes(&returning, &server), "forgotten");
        assert!(resumes(&returning, &server));
    }
}
