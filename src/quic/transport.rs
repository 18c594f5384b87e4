//! Transport parameters of the tunnel on both sides, and of a probe.

use std::{sync::Arc, time::Duration};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion::{
    Bbr, CongestionHandle, Cubic, Factory, PACKET_THRESHOLD, Steady, TIME_THRESHOLD,
};
use crate::config::{Congestion, Quic};

/// Largest datagram that is read: the whole of UDP, since loopback and data centres go beyond 1500.
pub(crate) const MAX_UDP_PAYLOAD: u16 = 9200;
/// The smallest limit of a datagram that QUIC allows (RFC 9000 §18.2).
pub(crate) const SMALLEST_UDP_PAYLOAD: u16 = 1200;
/// Size of quinn's buffer for received datagrams in bytes: about 30 ms at 1 Gbit/s. Beyond it, quinn drops the
/// oldest ones without a report.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Size of quinn's buffer for datagrams to send in bytes: large enough to fill the driver's batches, and small, so
/// that packets wait in the tunnel's queue, which schedules flows.
pub(crate) const SEND_BUFFER: usize = 128 * 1024;
/// Bytes around an inner packet in a QUIC packet: short header with an 8-byte connection id and a
/// 4-byte packet number, the frame's type, and the AEAD's tag (RFC 9000 §17.3, RFC 9221 §4), rounded
/// up.
const OVERHEAD: u16 = 48;

/// The round trip that is assumed before the first measurement. A lost first packet is repeated after three times
/// this; the default of RFC 9002 §6.2.2 means 1 s, too long for a user who waits.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Receive window of the control stream in bytes: more than its longest message.
const CONTROL_BUFFER: u32 = 128 * 1024;
/// A probe finds out once what a path carries, since it only shows that: to try again every ten minutes would cost a
/// metered link more than all else.
const PROBE_DISCOVERY: Duration = Duration::from_secs(24 * 3600);
/// quinn takes a few bursts of losses for a link that carries small packets only from here on, and by default looks after a
/// minute what it does carry. Mostly it was just losses, and meanwhile each packet of a transfer leaves in two pieces. A
/// search takes a packet in each of some round trips, and had better not begin while so much is lost: it takes a size for
/// impossible after three losses.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);
/// From one search to the next: one that losses have ended early is made up for. Where the largest size is known already, a
/// search sends nothing.
const SEARCH_INTERVAL: Duration = Duration::from_secs(300);
/// How long a probe's connection stays open without a question.
pub(crate) const PROBE_IDLE: Duration = Duration::from_secs(60);

/// How long a client waits for one handshake: longer than a bad mobile link needs (three round trips
/// of 600 ms and a lost packet), shorter than a person's patience.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The transport parameters of both sides, for inner packets of up to `mtu` bytes. `congestion` observes and
/// restarts the connection's congestion controllers.
#[must_use]
pub fn transport(quic: &Quic, mtu: u16, congestion: CongestionHandle) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(quic.idle_timeout).ok();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(MAX_UDP_PAYLOAD.min(mtu.saturating_add(OVERHEAD).max(1452)))
        .black_hole_cooldown(SEARCH_AGAIN)
        .interval(SEARCH_INTERVAL);
    transport
        .max_idle_timeout(idle)
        .initial_rtt(INITIAL_RTT)
        .packet_threshold(PACKET_THRESHOLD)
        .time_threshold(TIME_THRESHOLD)
        .keep_alive_interval(Some(quic.keep_alive))
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .datagram_send_buffer_size(SEND_BUFFER)
        .stream_receive_window(VarInt::from_u32(CONTROL_BUFFER))
        // There is one stream, the control stream, and the client opens it.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    match quic.congestion {
        Congestion::Cubic => {
            transport.congestion_controller_factory(Arc::new(Factory::<Cubic>::new(congestion)))
        }
        Congestion::Bbr => {
            transport.congestion_controller_factory(Arc::new(Factory::<Bbr>::new(congestion)))
        }
    };
    transport
}

/// The parameters of a probe's connection. Its questions keep it alive.
#[must_use]
pub fn probe_transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.interval(PROBE_DISCOVERY);
    transport
        // A train of echoes leaves at once, whatever was lost before: its spread is the rate.
        .congestion_controller_factory(Arc::new(Steady))
        .max_idle_timeout(IdleTimeout::try_from(PROBE_IDLE).ok())
        .mtu_discovery_config(Some(discovery))
        .initial_rtt(INITIAL_RTT)
        .packet_threshold(PACKET_THRESHOLD)
        .time_threshold(TIME_THRESHOLD)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}
