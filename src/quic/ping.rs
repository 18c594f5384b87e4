//! Packets with nothing in them that ask the other side for a sign of life.

use bytes::Bytes;
use quinn::Connection;

use super::congestion::CongestionHandle;
use crate::wire::datagram::PADDING;

/// Padding that fits into every datagram and leaves no room for a second one (RFC 9000 §14).
static PADDING_PACKET: [u8; 1100] = [PADDING; 1100];

/// Bytes of padding in a ping.
const PING: usize = 64;

/// Asks the other side for a sign of life at once, however much is lost and waits to be repeated.
pub(crate) fn nudge(connection: &Connection, congestion: &CongestionHandle) {
    // What is in flight is lost, as far as we know, and must not fill the window.
    congestion.restart_cold();
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
