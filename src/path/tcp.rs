//! A socket for quinn whose datagrams cross the network inside a TCP connection.
//!
//! ```text
//!  quinn ─ try_send ─▶ Outbox ─▶ capsules ─▶ TLS ─▶ TCP ─▶ the server's TCP port
//!  quinn ◀─ poll_recv ◀─ channel ◀─ capsules ◀─ TLS ◀─┘
//! ```
//! For networks that let no UDP out: CONNECT-UDP (RFC 9298) over HTTP/1.1 or HTTP/2. TLS and HTTP
//! are a wrapping that the server need not prove anything for: whoever unwraps it finds the QUIC packets that a UDP path
//! shows to everybody on the way.
//!
//! The connection is made in the background; until it stands, a few packets wait for it. Its end is an error of the
//! socket, which carries nothing from then on: whoever uses it knows whether and when another one is worth a try.

mod congestion;
mod connect;
pub(crate) mod http2;
mod limited;
mod outbox;
mod patience;
mod stream;
mod way;

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{net, sync::mpsc, time};
use tracing::debug;

#[cfg(test)]
pub(crate) use self::connect::{client, wrap};
pub(crate) use self::{
    congestion::Received,
    connect::{HTTP_1, HTTP_2, PATH, UPGRADE, is_answer, settle},
    outbox::Outbox,
    stream::{AnyIo, Stream, Taker, carry},
    way::{Way, Ways},
};
use crate::{mutex::Mutex, task::Task};

/// Bytes that wait to be written; with more of them quinn waits. What waits is not in the tunnel's queue, which lets
/// small packets overtake.
const UNWRITTEN: usize = 16 * 1024;
/// Datagrams that wait to be read. With more of them TCP waits.
const UNREAD: usize = 256;
/// How long it may take to connect. A lost SYN is repeated after one second and after three (RFC 6298 §2.1).
const PATIENCE: Duration = Duration::from_secs(5);
/// Datagrams of one transmit; quinn makes no more than ten.
const SEGMENTS: usize = 10;

/// A datagram that arrived on a TCP connection.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Where it came from, as quinn is to see it.
    pub(crate) from: SocketAddr,
    pub(crate) payload: Bytes,
}

/// Moves what arrived into quinn's buffers. Whoever tells of arrivals lives as long as whoever receives them.
pub(crate) fn receive(
    arrivals: &mut mpsc::Receiver<Arrival>,
    cx: &mut Context,
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
) -> Poll<usize> {
    let Some(first) = ready!(arrivals.poll_recv(cx)) else { return Poll::Pending };
    let more = std::iter::from_fn(|| arrivals.try_recv().ok());
    let places = bufs.iter_mut().zip(meta);
    let mut count = 0;
    // The places come first, so that nothing is taken that has none.
    for ((buf, meta), Arrival { from, payload }) in places.zip(std::iter::once(first).chain(more)) {
        let len = payload.len().min(buf.len());
        buf[..len].copy_from_slice(&payload[..len]);
        *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
        count += 1;
    }
    Poll::Ready(count)
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct TcpSocket {
    local: SocketAddr,
    outbox: Arc<Outbox>,
    arrivals: Mutex<mpsc::Receiver<Arrival>>,
    failure: Arc<Failure>,
    _connection: Task,
}

/// Why the connection ended, until it is reported.
#[derive(Debug, Default)]
struct Failure {
    error: Mutex<Option<io::Error>>,
    receiver: AtomicWaker,
}

impl TcpSocket {
    /// Connects to `to` from `local`, and over `link` alone if one is named; `way` says who is there. Packets carry the
    /// class `dscp` and the firewall mark `mark`, as those of [`UdpSocket`](super::udp::UdpSocket::bind).
    pub(crate) fn open(
        local: SocketAddr,
        to: SocketAddr,
        way: Way,
        link: Option<&str>,
        dscp: u8,
        mark: Option<u32>,
    ) -> io::Result<Arc<Self>> {
        let socket = connect::bind(local, link, dscp, mark)?;
        let outbox = Arc::new(Outbox::new(UNWRITTEN));
        let (arrived, arrivals) = mpsc::channel(UNREAD);
        let failure = Arc::<Failure>::default();
        let life = Life { to, way, outbox: outbox.clone(), arrived, failure: failure.clone() };
        let connection = Task::spawn("TCP path", life.run(socket));
        let arrivals = Mutex::new(arrivals);
        Ok(Arc::new(Self { local, outbox, arrivals, failure, _connection: connection }))
    }
}

/// The life of a socket's connection.
struct Life {
    to: SocketAddr,
    way: Way,
    outbox: Arc<Outbox>,
    arrived: mpsc::Sender<Arrival>,
    failure: Arc<Failure>,
}

impl Life {
    async fn run(self, socket: net::TcpSocket) {
        let Self { to, way, outbox, arrived, failure } = self;
        let carried = async {
            way.check()?;
            let connected = time::timeout(PATIENCE, connect::connect(socket, to, &way)).await;
            way.tried(to, matches!(connected, Ok(Ok(_))));
            carry(connected??, &outbox, to, &arrived).await
        };
        let Err(error) = carried.await;
        debug!(server = %to, %error, "TCP connection ended");
        outbox.close();
        *failure.error.lock() = Some(error);
        failure.receiver.wake();
    }
}

impl AsyncUdpSocket for TcpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(self.outbox.clone()))
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.outbox.push(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.failure.receiver.register(cx.waker());
        if let Poll::Ready(count) = receive(&mut self.arrivals.lock(), cx, bufs, meta) {
            return Poll::Ready(Ok(count));
        }
        self.failure.error.lock().take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    /// TCP cuts and joins without regard to datagrams, so that each one arrives whole.
    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Poller(Arc<Outbox>);

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.0.poll_room(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests;
