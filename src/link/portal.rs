//! Detects a captive portal in front of the server.
//!
//! A portal accepts every connection to port 80 and redirects the browser to its own page. The client
//! therefore requests a page from the server's own address over the link in question, so that no third party
//! learns of it. An answer that redirects to another host, or has status 511 (RFC 6585), comes from a portal.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time,
};

use super::candidate::Candidate;

/// Timeout of the request. A portal is near and answers at once.
const LIMIT: Duration = Duration::from_secs(3);
const HTTP: u16 = 80;
/// Maximum of bytes that are read of an answer.
const ANSWER: u64 = 4096;
/// A host name that no real answer contains (RFC 6761 §6.4).
pub(crate) const HOST: &str = "roamd.invalid";

/// Sends the request over the candidate's link; the firewall mark `mark` keeps it out of tunnels.
pub(crate) async fn is_suspected(candidate: &Candidate, mark: u32) -> bool {
    let answer = time::timeout(LIMIT, ask(candidate, mark)).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| is_portal(&answer)))
}

async fn ask(candidate: &Candidate, mark: u32) -> io::Result<Vec<u8>> {
    let local = SocketAddr::new(candidate.source, 0);
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(candidate.link.as_bytes()))?;
    socket.set_mark(mark)?;
    socket.bind(&local.into())?;
    let server = SocketAddr::new(candidate.server.ip(), HTTP);
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
    let question = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Whether the answer comes from a portal and not from a web server on the tunnel server's host.
pub(crate) fn is_portal(answer: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    if response.parse(answer).is_err() {
        return false;
    }
    let location = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case("location"));
    let location = location.map(|it| String::from_utf8_lossy(it.value));
    match (response.code, location) {
        (Some(511), _) => true,
        (Some(302 | 303 | 307), Some(to)) => to.starts_with("http") && !to.contains(HOST),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_to_another_host_is_a_captive_portal() {
        for (answer, expected) in [
            ("HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\n\r\n", true),
            ("HTTP/1.1 307 Temporary Redirect\r\nlocation: https://wifi.example/\r\n\r\n", true),
            ("HTTP/1.1 511 Network Authentication Required\r\n\r\n", true),
            ("HTTP/1.1 302 Found\r\nLocation: https://roamd.invalid/\r\n\r\n", false),
            ("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", false),
            ("HTTP/1.1 301 Moved Permanently\r\nLocation: https://vpn.example/\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\nhello", false),
            ("SSH-2.0-OpenSSH_10\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_portal(answer.as_bytes()), expected, "{answer}");
        }
    }
}
