//! TCP's own congestion control below QUIC's.
//!
//! QUIC above looks at delay, and knows losses by chance. A controller below it that takes every loss for congestion keeps
//! it from what the path can carry: 3 instead of 20 Mbit/s of 50, at 40 ms and 1 % loss. So TCP gets BBR, which hardly
//! looks at losses.
//!
//! BBR for its part stops sending to see the round trip of an empty path: every ten seconds (five in its third version) it
//! lets four packets be under way for 200 ms (ProbeRTT of draft-ietf-ccwg-bbr). All that is sent meanwhile waits, up to
//! 290 ms. QUIC keeps the queue short and needs no such pause, and BBR that was just chosen has measured a moment ago. So it
//! is chosen anew before it stops.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::tcp::OwnedReadHalf,
};

use crate::clock;

/// The controller. Not every kernel has it; the default works, too.
const BBR: &[u8] = b"bbr";
/// A controller that every kernel has, for a moment: to choose again what is chosen does nothing.
const RENO: &[u8] = b"reno";
/// How soon it is chosen anew: before five seconds.
const RENEWED: Duration = Duration::from_secs(4);

/// Chooses the controller of a TCP socket.
pub(super) fn choose(socket: &SockRef<'_>) {
    let _ = socket.set_tcp_congestion(BBR);
}

/// What is read of a TCP connection. While something arrives, its controller is chosen anew now and then.
#[derive(Debug)]
pub(crate) struct Received {
    reader: OwnedReadHalf,
    renewal: Renewal,
}

impl Received {
    /// What is read of a connection that was settled before.
    pub(crate) fn of(reader: OwnedReadHalf) -> Self {
        let renewal = Renewal::of(reader.as_ref(), clock::now());
        Self { reader, renewal }
    }
}

impl AsyncRead for Received {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { reader, renewal } = self.get_mut();
        renewal.look(reader.as_ref(), clock::now());
        Pin::new(reader).poll_read(cx, buf)
    }
}

/// When the controller is chosen anew; `None` if it is not BBR.
#[derive(Debug)]
struct Renewal(Option<Instant>);

impl Renewal {
    fn of(socket: &impl AsFd, now: Instant) -> Self {
        // The kernel fills the name up with zeros.
        let is_bbr = SockRef::from(socket)
            .tcp_congestion()
            .is_ok_and(|name| name.split(|byte| *byte == 0).next() == Some(BBR));
        Self(is_bbr.then(|| now + RENEWED))
    }

    fn look(&mut self, socket: &impl AsFd, now: Instant) {
        if self.0.is_none_or(|due| now < due) {
            return;
        }
        let socket = SockRef::from(socket);
        let renewed = socket.set_tcp_congestion(RENO).and_then(|()| socket.set_tcp_congestion(BBR));
        self.0 = renewed.is_ok().then(|| now + RENEWED);
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn name(socket: &Socket) -> Vec<u8> {
        let name = socket.tcp_congestion().unwrap();
        name.into_iter().take_while(|byte| *byte != 0).collect()
    }

    #[test]
    fn the_controller_is_chosen_anew_every_four_seconds_where_it_is_bbr() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let now = clock::now();
        socket.set_tcp_congestion(RENO).unwrap();
        let mut none = Renewal::of(&socket, now);
        none.look(&socket, now + 2 * RENEWED);
        assert_eq!((none.0, &name(&socket)[..]), (None, RENO));
        choose(&SockRef::from(&socket));
        let mut renewal = Renewal::of(&socket, now);
        if name(&socket) != BBR {
            assert_eq!(renewal.0, None, "this kernel has no BBR");
            return;
        }
        // Whoever chose another one meanwhile shows when it is chosen anew.
        socket.set_tcp_congestion(RENO).unwrap();
        renewal.look(&socket, now + RENEWED / 2);
        assert_eq!(name(&socket), RENO, "too early");
        renewal.look(&socket, now + RENEWED);
        assert_eq!((&name(&socket)[..], renewal.0), (BBR, Some(now + 2 * RENEWED)));
    }
}
