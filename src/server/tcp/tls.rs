//! TLS of the TCP port: a certificate that nobody vouches for.
//!
//! The server's own key is Ed25519, which no web browser takes in a certificate, and QUIC proves that key inside. So
//! the certificate is made anew at each start, with a key of the kind that most web servers have, and as one that an
//! administrator made for himself: for ten years.

use std::{sync::Arc, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::NoServerSessionStorage,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    clock,
    path::tcp::{HTTP_1, HTTP_2},
    quic::tls::provider,
};

const HOST: &str = "localhost";
/// The clock of the host may be slow.
const BEFORE: Duration = Duration::from_secs(24 * 3600);
const VALID: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The TCP port cannot have TLS; a bug or a broken build.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("TLS set-up: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// TLS 1.3 for HTTP/1.1 and HTTP/2.
pub(super) fn acceptor() -> Result<TlsAcceptor, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![HOST.into()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, HOST);
    params.not_before = (clock::wall() - BEFORE).into();
    params.not_after = (clock::wall() + VALID).into();
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    // HTTP/1.1 first: behind its upgrade there is no second flow control, and nothing but capsules to parse.
    config.alpn_protocols = vec![HTTP_1.to_vec(), HTTP_2.to_vec()];
    // A client resumes nothing here: two tickets for each handshake would be for nobody.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config).into())
}
