//! The life of a TCP connection that carries capsules, on either side.

use std::{convert::Infallible, io, net::SocketAddr};

use bytes::BytesMut;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::mpsc,
};

use super::{Arrival, outbox::Outbox};
use crate::{
    quic::MAX_UDP_PAYLOAD,
    wire::capsule::{Decoder, Malformed},
};

/// Room in bytes for one read: what a TLS record holds (RFC 8446 §5.1).
const READ: usize = 16 * 1024;

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// A stream behind an HTTP upgrade, and what of it was read with the header.
pub(crate) struct Stream {
    pub(super) io: AnyIo,
    pub(super) begun: BytesMut,
}

/// TCP, and what is around it.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for S {}

pub(crate) type AnyIo = Box<dyn Io>;

impl Stream {
    /// The stream that hyper was given, as a [`TokioIo`] of an [`AnyIo`].
    pub(crate) fn of(upgraded: Upgraded) -> io::Result<Self> {
        let parts =
            upgraded.downcast::<TokioIo<AnyIo>>().map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(Self { io: parts.io.into_inner(), begun: parts.read_buf.into() })
    }
}

/// Where datagrams that arrive are taken.
pub(crate) trait Taker {
    /// Waits until there is room; an error if nobody takes them any more.
    async fn take(&self, arrival: Arrival) -> io::Result<()>;
}

impl Taker for mpsc::Sender<Arrival> {
    async fn take(&self, arrival: Arrival) -> io::Result<()> {
        self.send(arrival).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes what comes into `outbox`, and gives `taker` what arrives as if it came from `from`, until the connection ends.
pub(crate) async fn carry(
    Stream { io, begun }: Stream,
    outbox: &Outbox,
    from: SocketAddr,
    taker: &impl Taker,
) -> io::Result<Infallible> {
    let (reader, writer) = tokio::io::split(io);
    let ended = tokio::select! {
        ended = read(reader, begun, from, taker) => ended,
        ended = write(writer, outbox) => ended,
    };
    outbox.clear();
    ended
}

async fn read<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    begun: BytesMut,
    from: SocketAddr,
    taker: &impl Taker,
) -> io::Result<Infallible> {
    let mut decoder = Decoder::new(MAX_UDP_PAYLOAD);
    decoder.buffer().unsplit(begun);
    loop {
        while let Some(payload) = decoder.next()? {
            taker.take(Arrival { from, payload }).await?;
        }
        decoder.buffer().reserve(READ);
        if reader.read_buf(decoder.buffer()).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn write<S: AsyncWrite>(mut writer: WriteHalf<S>, outbox: &Outbox) -> io::Result<Infallible> {
    let mut batch = BytesMut::new();
    loop {
        outbox.take(&mut batch).await;
        writer.write_all(&batch).await?;
        writer.flush().await?;
    }
}
