//! How both ends set up quinn.

pub(crate) mod congestion;
pub(crate) mod session;
pub(crate) mod tls;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{
    Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
};
use ring::hkdf;

use self::congestion::{Factory, Handle};
use crate::{
    config::{Congestion, Quic},
    identity::PrivateKey,
    wire::datagram::PADDING,
};

/// Largest datagram that is read: the whole of UDP, since loopback and data centres go beyond 1500.
pub(crate) const MAX_UDP_PAYLOAD: u16 = 9200;
/// Bytes of datagrams that quinn holds for us to read; it drops the oldest beyond that without a
/// word. At 1 Gbit/s this is some 30 ms.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Bytes of datagrams that wait in quinn to be sent: enough for the driver to fill its batches,
/// short enough that the queue in front of it, which can choose, is where packets wait.
pub(crate) const SEND_BUFFER: usize = 128 * 1024;
/// Bytes around an inner packet in a QUIC packet: short header with an 8-byte connection id and a
/// 4-byte packet number, the frame's type, and the AEAD's tag (RFC 9000 §17.3, RFC 9221 §4), rounded
/// up.
const OVERHEAD: u16 = 48;

/// Padding that fits into every datagram and leaves no room for a second one (RFC 9000 §14).
static PADDING_PACKET: [u8; 1100] = [PADDING; 1100];

/// Bytes of padding in a ping.
const PING: usize = 64;

/// The round trip that is assumed before the first measurement; a lost first packet is repeated after
/// three times this (RFC 9002 §6.2.2 would have a second, too long for somebody who is waiting).
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Shorter silences are common on wireless links. No link that is of use takes longer, while an
/// acknowledgement that comes after an outage can make the measured round trip any length.
const SHORTEST_SILENCE: Duration = Duration::from_millis(250);
const LONGEST_SILENCE: Duration = Duration::from_secs(2);
/// Bytes of the control stream that wait to be read: more than its longest message.
const CONTROL_BUFFER: u32 = 128 * 1024;
/// How long a probe's connection stays without a question.
pub(crate) const PROBE_IDLE: Duration = Duration::from_secs(60);

/// Application error codes with which a connection is closed (RFC 9000 §20.2).
pub(crate) mod close {
    use super::VarInt;

    /// The daemon stops.
    pub const GOODBYE: VarInt = VarInt::from_u32(0);
    /// Another connection of the same key took the session over.
    pub(crate) const TAKEN_OVER: VarInt = VarInt::from_u32(1);
    /// The server does not know the client's key.
    pub(crate) const UNKNOWN_KEY: VarInt = VarInt::from_u32(2);
    /// No common version of the protocol.
    pub(crate) const VERSION: VarInt = VarInt::from_u32(3);
    /// The other side broke the protocol.
    pub const PROTOCOL: VarInt = VarInt::from_u32(4);
    /// This connection lost the race against another one of the same client.
    pub(crate) const NOT_NEEDED: VarInt = VarInt::from_u32(5);
    /// Another machine with the same key has the session. The reason is its address.
    pub(crate) const DISPLACED: VarInt = VarInt::from_u32(6);
}

/// The transport parameters of both sides, for inner packets of up to `mtu` bytes. Through `renewal`
/// the connection's congestion controller can be told to start afresh.
#[must_use]
pub fn transport(quic: &Quic, mtu: u16, renewal: Handle) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(quic.idle_timeout).ok();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_UDP_PAYLOAD.min(mtu.saturating_add(OVERHEAD).max(1452)));
    transport
        .max_idle_timeout(idle)
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(quic.keep_alive))
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .datagram_send_buffer_size(SEND_BUFFER)
        .stream_receive_window(VarInt::from_u32(CONTROL_BUFFER))
        // The control stream is all there is, and the client opens it.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    match quic.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(Factory::new(
            &CubicConfig::default(),
            renewal,
        ))),
        Congestion::Bbr => transport
            .congestion_controller_factory(Arc::new(Factory::new(&BbrConfig::default(), renewal))),
    };
    transport
}

/// The settings of a client's endpoint: connection ids of no length, so that a datagram that the
/// server sent before it noticed a switch still finds its connection.
#[must_use]
pub fn client_endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::new(0)));
    accept_jumbo(&mut config);
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
    // A reset is sent only for connection ids that could be ours, which their hash tells.
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
    // Only refused below 1200.
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

/// The parameters of a probe's connection. The manager's questions keep it alive.
#[must_use]
pub fn probe_transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(PROBE_IDLE).ok())
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

/// A path that was sent to is suspect when nothing is heard on it for twice what QUIC would wait before
/// it probes (RFC 9002 §6.2.1), and for a quarter of a second. quinn does not tell the variance
/// of the round trip: three halves of it and the other side's 25 ms for an acknowledgement are above
/// the probe timeout on all but the worst links.
#[must_use]
pub(crate) fn silence_limit(connection: &Connection) -> Duration {
    let pto = connection.rtt() * 3 / 2 + Duration::from_millis(25);
    (2 * pto).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}

/// How often somebody who should answer is asked.
pub(crate) const NUDGE: Duration = Duration::from_millis(250);

/// Asks the other side for a sign of life at once, however much is lost and waits to be repeated.
pub(crate) fn nudge(connection: &Connection, renewal: &Handle) {
    // What is in flight is lost, as far as we know, and must not fill the window.
    renewal.fresh_start();
    // Without success the connection has worse troubles, which show elsewhere.
    let _ = connection.send_datagram(Bytes::from_static(&[PADDING]));
}

/// Asks for a sign of life with a packet that nobody takes for a bare acknowledgement. It costs little, and
/// the answer may take 25 ms.
pub(crate) fn ping(connection: &Connection) {
    let _ = connection.send_datagram(Bytes::from_static(&PADDING_PACKET[..PING]));
}

/// Asks the other side for a sign of life. QUIC must acknowledge any datagram, but may take 25 ms for it;
/// of two packets in a row it acknowledges the second at once (RFC 9000 §13.2.2).
pub(crate) fn ask(connection: &Connection) {
    pad(connection, 2);
}

/// Sends as many packets with nothing in them.
pub(crate) fn pad(connection: &Connection, packets: usize) {
    for _ in 0..packets {
        let _ = connection.send_datagram(Bytes::from_static(&PADDING_PACKET));
    }
}

/// How long a client waits for one handshake: longer than a bad mobile link needs (three round trips
/// of 600 ms and a lost packet), shorter than a person's patience.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
