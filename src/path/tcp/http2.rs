//! Capsules on a stream of HTTP/2 (RFC 9113), begun by an extended CONNECT (RFC 8441, RFC 9298 §3.4).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{Ping, RecvStream, SendStream, client, ext::Protocol};
use hyper::{Method, Request, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::{
    connect::{CAPSULES, HEADER, UPGRADE, refused},
    stream::{AnyIo, Stream},
};
use crate::task::Task;

/// Bytes that may be under way to us and unread (SETTINGS_INITIAL_WINDOW_SIZE): 80 Mbit/s at a round trip of 100 ms.
pub(crate) const WINDOW: u32 = 1024 * 1024;
/// Bytes that wait in h2 to be written: a frame. What waits here is not in the tunnel's queue.
pub(crate) const UNWRITTEN: usize = 16 * 1024;

/// A stream, and the connection that it is the only one of.
struct Http2 {
    sent: SendStream<Bytes>,
    received: RecvStream,
    /// What is received and not read yet.
    rest: Bytes,
    _connection: Task,
}

impl Stream {
    /// The stream of an extended CONNECT that was agreed to; `connection` is what drives it.
    pub(crate) fn of_http2(
        sent: SendStream<Bytes>,
        received: RecvStream,
        connection: Task,
    ) -> Self {
        let io = Http2 { sent, received, rest: Bytes::new(), _connection: connection };
        Self { io: Box::new(io), begun: BytesMut::new() }
    }
}

impl AsyncRead for Http2 {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            let Some(bytes) = ready!(self.received.poll_data(cx)) else {
                return Poll::Ready(Ok(()));
            };
            let bytes = bytes.map_err(ended)?;
            self.received.flow_control().release_capacity(bytes.len()).map_err(ended)?;
            self.rest = bytes;
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2 {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = bytes.len().min(UNWRITTEN);
        self.sent.reserve_capacity(most);
        while self.sent.capacity() == 0 {
            match ready!(self.sent.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(ended)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = self.sent.capacity().min(most);
        self.sent.send_data(Bytes::copy_from_slice(&bytes[..count]), false).map_err(ended)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(self.sent.send_data(Bytes::new(), true).map_err(ended))
    }
}

/// The connection or its stream ended, or what came was not HTTP.
pub(crate) fn ended(error: h2::Error) -> io::Error {
    let is_end = error.is_io() || error.is_go_away() || error.is_reset();
    if error.is_io()
        && let Some(below) = error.get_io()
    {
        return io::Error::new(below.kind(), below.to_string());
    }
    let is_ours = error.is_library();
    let kind =
        if is_end && !is_ours { io::ErrorKind::ConnectionAborted } else { io::ErrorKind::Other };
    io::Error::new(kind, error)
}

/// Asks `whom` for datagrams to the target that the URI names.
pub(super) async fn ask(stream: AnyIo, whom: &str, uri: Uri) -> io::Result<Stream> {
    let (sender, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(HEADER as u32)
        .max_send_buffer_size(UNWRITTEN)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(ended)?;
    let pings = connection.ping_pong();
    let connection = Task::spawn("HTTP/2", async move {
        if let Err(error) = connection.await {
            debug!(%error, "HTTP/2 connection ended");
        }
    });
    // Its settings come before the answer to a ping.
    if let Some(mut pings) = pings {
        pings.ping(Ping::opaque()).await.map_err(ended)?;
    }
    let mut sender = sender.ready().await.map_err(ended)?;
    if !sender.is_extended_connect_protocol_enabled() {
        return Err(io::Error::other(format!("{whom} has no extended CONNECT (RFC 8441)")));
    }
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .version(Version::HTTP_2)
        .header(CAPSULES, "?1")
        .body(())
        .map_err(io::Error::other)?;
    request.extensions_mut().insert(Protocol::from_static(UPGRADE));
    let (response, sent) = sender.send_request(request, false).map_err(ended)?;
    let response = response.await.map_err(ended)?;
    if !response.status().is_success() {
        return Err(refused(whom, &response));
    }
    Ok(Stream::of_http2(sent, response.into_body(), connection))
}
