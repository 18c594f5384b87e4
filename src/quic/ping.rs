//! Packets without content that the other side must acknowledge.

use bytes::Bytes;
use quinn::Connection;

use super::congestion::CongestionHandle;
use crate::wire::datagram::PADDING;

/// Padding that fits into every datagram and leaves no room for a second one (RFC 9000 §14).
static PADDING_PACKET: [u8; 1100] = [PADDING; 1100];

/// Bytes of padding in a ping.
const PING: usize = 64;

/// Sends a packet that must be acknowledged, at once even if lost packets fill the congestion window.
pub(crate) fn nudge(connection: &Connection, congestion: &CongestionHandle) {
    // Packets in flight are taken for lost and must not fill the window.
    congestion.restart_cold();
    touch(connection);
}

/// Sends the smallest packet that must be acknowledged.
pub(crate) fn touch(connection: &Connection) {
    // This fails only on a connection that has ended, which is noticed elsewhere.
    let _ = connection.send_datagram(Bytes::from_static(&PADDING_PACKET[..1]));
}

/// Asks for an acknowledgement with a packet that is too long to be taken for a bare acknowledgement. It is small,
/// and the answer may be delayed by 25 ms.
pub(crate) fn ping(connection: &Connection) {
    let _ = connection.send_datagram(Bytes::from_static(&PADDING_PACKET[..PING]));
}

/// Asks for an acknowledgement without delay. A receiver may delay the acknowledgement of one packet by 25 ms; of
/// two packets in a row it acknowledges the second at once (RFC 9000 §13.2.2).
pub(crate) fn ask(connection: &Connection) {
    pad(connection, 2);
}

/// Sends this number of packets without content.
pub(crate) fn pad(connection: &Connection, packets: usize) {
    for _ in 0..packets {
        let _ = connection.send_datagram(Bytes::from_static(&PADDING_PACKET));
    }
}
