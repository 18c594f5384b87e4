//! TLS 1.3 with raw public keys (RFC 7250): each side proves its Ed25519 key, and there are no certificates.
//!
//! The client accepts exactly the server key of its configuration, and of a fleet also what resumes another server's
//! session, see [`client`](mod@client). The server lets every key prove
//! itself and then decides in one place, [`crate::server`], for full and resumed handshakes alike:
//! rustls does not ask its verifier again on resumption.

mod client;
mod connection;
pub(crate) mod sealed;

use std::{sync::Arc, time::Duration};

use quinn::crypto::rustls::{HandshakeData, NoInitialCipherSuite, QuicServerConfig};
use rustls::{
    CipherSuite, DigitallySignedStruct, Error,
    client::danger::HandshakeSignatureValid,
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, ring,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer},
    sign::CertifiedKey,
};

pub use self::client::client;
pub(crate) use self::client::{ClientTls, Resuming, Servers};
use self::connection::{ConnectionTls, ServerTickets, TICKETS_A_SESSION};
use crate::{
    identity::{PrivateKey, PublicKey},
    mutex::Mutex,
};

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

/// How long tickets are used at most after the full handshake that they go back to. Without an end, whoever once has what
/// resumes a session could resume it for ever, without either private key (RFC 8446 §4.6.1).
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(24 * 3600);

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

    /// The keys of tickets that a fleet shares.
    #[cfg(any(test, feature = "etcd"))]
    pub(crate) fn ticket_keys(&self) -> &Arc<sealed::TicketKeys> {
        &self.tickets.keys
    }

    /// Deletes the tickets of unknown keys. Sealed ones are nowhere kept, and opened for known keys only.
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
        config.session_storage = connection.clone();
        config.ticketer = connection;
        config.send_tls13_tickets = TICKETS_A_SESSION;
        // The only other value that QUIC allows is zero (RFC 9001 §4.6.1).
        config.max_early_data_size = u32::MAX;
        Ok(config)
    }
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

#[cfg(test)]
mod tests;
