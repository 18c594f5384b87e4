//! HTTP/2 of the TCP port. A connection has one request, and every other thing that a client may have done is bounded:
//!
//! | of a client | bound |
//! |---|---|
//! | streams at a time | 1 |
//! | bytes of a header list, in HEADERS and CONTINUATION | [`HEADER`] |
//! | streams that it reset and that wait to be accepted | 1; with more the connection ends |
//! | streams that were refused for its mistakes | 8; with more the connection ends |
//! | bytes that are received and not read | [`WINDOW`] |
//! | bytes that wait to be written | [`UNWRITTEN`] |
//! | bytes in all, and time | those of any stranger |

use std::io;

use bytes::Bytes;
use h2::{Reason, ext::Protocol, server};
use hyper::{Method, Request, Response, StatusCode};

use super::{CONNECT_UDP, HEADER, asks_for_us};
use crate::{
    path::tcp::{
        AnyIo, Stream,
        http2::{UNWRITTEN, WINDOW, ended},
    },
    task::Task,
};

/// Answers one request; `None` if it does not ask for datagrams.
pub(super) async fn upgrade(stream: AnyIo) -> io::Result<Option<Stream>> {
    let mut connection = server::Builder::new()
        .enable_connect_protocol()
        .max_concurrent_streams(1)
        .max_header_list_size(HEADER as u32)
        .max_pending_accept_reset_streams(1)
        .max_local_error_reset_streams(Some(8))
        .max_concurrent_reset_streams(1)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buffer_size(UNWRITTEN)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(ended)?;
    let Some(asked) = connection.accept().await else { return Ok(None) };
    let (request, mut respond) = asked.map_err(ended)?;
    let mut response = Response::new(());
    if !asks_for_datagrams(&request) {
        *response.status_mut() = StatusCode::NOT_FOUND;
        respond.send_response(response, true).map_err(ended)?;
        drop(request);
        connection.graceful_shutdown();
        refuse_all(connection).await;
        return Ok(None);
    }
    response
        .headers_mut()
        .insert("capsule-protocol", hyper::header::HeaderValue::from_static("?1"));
    let sent = respond.send_response(response, false).map_err(ended)?;
    let connection = Task::spawn("HTTP/2", refuse_all(connection));
    Ok(Some(Stream::of_http2(sent, request.into_body(), connection)))
}

/// Drives a connection that has had its request, until it ends.
async fn refuse_all(mut connection: server::Connection<AnyIo, Bytes>) {
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        respond.send_reset(Reason::REFUSED_STREAM);
    }
}

/// Whether a request is what RFC 9298 §3.4 says, for this server itself.
fn asks_for_datagrams<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str() == CONNECT_UDP)
        && asks_for_us(request)
}
