//! What is read of somebody who has not agreed yet to carry datagrams: so many bytes, whatever they are. That bounds
//! endless headers, interim answers (RFC 9110 §15.2) and records of TLS alike.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, Join, ReadBuf, join},
    net::{TcpStream, tcp::OwnedWriteHalf},
};

use super::congestion::Received;

/// Bytes until the answer: two certificate chains and two headers, several times over.
const MOST: usize = 64 * 1024;

/// A TCP connection that is read through [`Limited`].
pub(super) type LimitedStream = Join<Limited, OwnedWriteHalf>;

/// What is read of a TCP connection: it ends after [`MOST`] bytes, unless the limit is lifted.
#[derive(Debug)]
pub(super) struct Limited {
    reader: Received,
    left: usize,
    is_lifted: Arc<AtomicBool>,
}

/// The limit of one connection.
#[derive(Debug)]
pub(super) struct Limit(Arc<AtomicBool>);

impl Limit {
    pub(super) fn lift(self) {
        self.0.store(true, Relaxed);
    }
}

impl Limited {
    pub(super) fn of(stream: TcpStream) -> (LimitedStream, Limit) {
        let is_lifted = Arc::<AtomicBool>::default();
        let (reader, writer) = stream.into_split();
        let reader = Received::of(reader);
        let limited = Self { reader, left: MOST, is_lifted: is_lifted.clone() };
        (join(limited, writer), Limit(is_lifted))
    }
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_lifted.load(Relaxed) {
            return Pin::new(&mut self.reader).poll_read(cx, buf);
        }
        if self.left == 0 {
            let error = format!("it sent {MOST} bytes and no answer");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        self.left = self.left.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}
