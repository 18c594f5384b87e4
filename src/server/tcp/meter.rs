//! What is read of a stranger: a burst, and a trickle after it. Below TLS, so that whatever the bytes are they count. With
//! more of them the kernel's buffer is full, and TCP makes the stranger wait.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, Join, ReadBuf, join},
    net::{TcpStream, tcp::OwnedWriteHalf},
    time::{Sleep, sleep},
};

use crate::{clock, path::tcp::Received};

/// Bytes that are read at once: TLS, a request, and QUIC's handshake several times over.
const BURST: f64 = 32.0 * 1024.0;
/// Bytes per second after that.
const RATE: f64 = 8.0 * 1024.0;
/// How long a reader waits before it looks again whether it may read.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether a client is a stranger, as those that read from it see it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    is_lifted: AtomicBool,
}

impl Meter {
    /// Whether the client is read without a limit.
    pub(crate) fn is_lifted(&self) -> bool {
        self.is_lifted.load(Relaxed)
    }

    pub(crate) fn lift(&self, is_lifted: bool) {
        self.is_lifted.store(is_lifted, Relaxed);
    }
}

/// What is read of a client under a [`Meter`].
#[derive(Debug)]
pub(super) struct Metered {
    reader: Received,
    meter: Arc<Meter>,
    /// Bytes that may be read; negative after more were.
    level: f64,
    at: Instant,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    /// A TCP connection that is read in this way.
    pub(super) fn of(stream: TcpStream, meter: Arc<Meter>) -> Join<Self, OwnedWriteHalf> {
        let (reader, writer) = stream.into_split();
        let reader = Received::of(reader);
        join(Self { reader, meter, level: BURST, at: clock::now(), pause: None }, writer)
    }

    fn may_read(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = BURST.min(self.level + passed * RATE);
        self.at = now;
        self.level > 0.0
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_lifted() {
            return Pin::new(&mut self.reader).poll_read(cx, buf);
        }
        while !self.meter.is_lifted() && !self.may_read(clock::now()) {
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        self.level -= (buf.filled().len() - before) as f64;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn a_stranger_is_read_slowly_until_it_is_known() {
        const ALL: usize = 1 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let meter = Arc::<Meter>::default();
        let mut reader = Metered::of(stream, meter.clone());
        let writing = tokio::spawn(async move { sender.write_all(&vec![7; ALL]).await });
        let (mut buffer, mut count) = (vec![0; 4096], 0);
        let begun = clock::now();
        while let Ok(read) = timeout(4 * PAUSE, reader.read(&mut buffer)).await {
            count += read.unwrap();
            if count as f64 > BURST + 8192.0 {
                break;
            }
        }
        let allowed = BURST + RATE * begun.elapsed().as_secs_f64() + buffer.len() as f64;
        assert!(count as f64 <= allowed && count as f64 >= BURST, "{count} of {allowed}");
        meter.lift(true);
        let rest = async {
            while count < ALL {
                count += reader.read(&mut buffer).await.unwrap();
            }
        };
        timeout(Duration::from_secs(20), rest).await.expect("it is still slow");
        writing.await.unwrap().unwrap();
    }
}
