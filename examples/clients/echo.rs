//! What comes back from the server through the tunnel.

/// When an echo request was sent whose answer (RFC 792) the datagram carries, with a number or without: the first eight bytes
/// of its data.
pub(crate) fn echo(datagram: &[u8]) -> Option<u64> {
    const NUMBERED: u8 = 3;
    const HEADER: usize = 6;
    let packet = datagram.get(if datagram.first() == Some(&NUMBERED) { HEADER } else { 0 }..)?;
    let is_answer = packet.get(9) == Some(&1) && packet.get(20) == Some(&0);
    let sent = packet.get(28..)?.first_chunk()?;
    is_answer.then(|| u64::from_be_bytes(*sent))
}
