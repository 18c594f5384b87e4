//! Endpoints, and the secrets that a server's endpoint derives from its long-term key.

use std::sync::Arc;

use quinn::EndpointConfig;
use ring::hkdf;

use super::transport::{MAX_UDP_PAYLOAD, SMALLEST_UDP_PAYLOAD};
use crate::identity::PrivateKey;

/// The settings of a client's endpoint: connection ids of length zero, so that a datagram that the server sent
/// before it noticed a switch still belongs to its connection.
#[must_use]
pub fn client_endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::new(0)));
    accept_jumbo(&mut config);
    config
}

/// The same for a probe's connection, whose packets are never larger than QUIC's smallest: the server need not find out
/// again and again how large they could be.
#[must_use]
pub(crate) fn probe_endpoint() -> EndpointConfig {
    let mut config = client_endpoint();
    // It fails only below 1200.
    let _ = config.max_udp_payload_size(SMALLEST_UDP_PAYLOAD);
    config
}

/// The settings of a server's endpoint. Its reset key follows from the server's own key, so that
/// after a restart a stateless reset (RFC 9000 §10.3) tells clients at once that their connection
/// is gone, instead of leaving them to the idle timeout.
#[must_use]
pub fn server_endpoint(key: &PrivateKey) -> EndpointConfig {
    let secret = derive(key, b"roamd stateless reset");
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &*secret);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    // A reset is sent only for connection ids whose hash shows that this server issued them.
    let [a, b, c, d, e, f, g, h, ..] = *derive(key, b"roamd connection ids");
    let cid_key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    config.cid_generator(move || {
        Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(cid_key))
    });
    accept_jumbo(&mut config);
    config
}

/// The key that protects Retry tokens, the same after a restart.
#[must_use]
pub fn token_key(key: &PrivateKey) -> Arc<dyn quinn_proto::crypto::HandshakeTokenKey> {
    let secret = derive(key, b"roamd retry token");
    Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&*secret))
}

fn accept_jumbo(config: &mut EndpointConfig) {
    // It fails only below 1200.
    let _ = config.max_udp_payload_size(MAX_UDP_PAYLOAD);
}

/// A secret for one purpose from the long-term key (HKDF, RFC 5869).
fn derive(key: &PrivateKey, purpose: &[u8]) -> zeroize::Zeroizing<[u8; 32]> {
    let mut secret = zeroize::Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"roamd")
        .extract(key.seed())
        .expand(&[purpose], hkdf::HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut *secret))
        .expect("32 bytes are one block of HKDF-SHA256");
    secret
}
