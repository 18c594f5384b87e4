//! How a session begins, and the control stream that both sides keep while it lasts.
//!
//! ```text
//!  client  open ── hello ──▶ accept  server
//!               ◀─ welcome ─
//!          MessageStream ◀── messages, both ways, at any time ──▶ MessageStream
//! ```
//! A violation of the protocol closes the connection with a reason.

mod stream;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use quinn::{Connection, ConnectionError};
use tracing::info;

pub use self::stream::MessageStream;
use super::close;
use crate::wire::{
    foreign::Foreign,
    message::{Hello, Message, MessageError, VERSIONS, Welcome},
};

/// Name and version of this program, as sent to the other side.
pub(crate) const SOFTWARE: &str = concat!("roamd ", env!("CARGO_PKG_VERSION"));

/// Hellos of this process, to whichever server.
static HELLOS: AtomicU64 = AtomicU64::new(1);

/// Why a session did not begin, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection ended; its reason may be the server's refusal.
    #[error("{}", Foreign::of(.0))]
    Connection(#[from] ConnectionError),
    /// The control stream ended or was reset.
    #[error("control stream: {0}")]
    Stream(io::Error),
    /// A message cannot be read or written.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An unexpected message arrived.
    #[error("unexpected control message")]
    Unexpected,
    /// The other side reads no messages.
    #[error("no flow control credit for {0} bytes of control messages")]
    NoCredit(usize),
    /// The two sides have no common version of the protocol.
    #[error(
        "no common protocol version: we speak {VERSIONS:?}, the other side {}",
        Foreign::of(format_args!("{theirs:?}"))
    )]
    Version {
        /// The versions of the other side.
        theirs: Vec<u16>,
    },
    /// Another machine with the client's key keeps the session.
    #[error("another machine with this key has the session")]
    Displaced,
}

impl SessionError {
    /// Closes the connection with a reason, if the other side broke the protocol.
    fn close(&self, connection: &Connection) {
        let (code, reason) = match self {
            Self::Message(_) => (close::PROTOCOL, "malformed control message".into()),
            Self::Unexpected => (close::PROTOCOL, "unexpected control message".into()),
            Self::NoCredit(_) => (close::PROTOCOL, "no credit for a control message".into()),
            Self::Version { .. } => (close::VERSION, self.to_string()),
            Self::Connection(_) | Self::Stream(_) | Self::Displaced => return,
        };
        info!(error = %self, "closing the connection");
        connection.close(code, reason.as_bytes());
    }
}

/// Begins a session as the client, who takes packets whose checksum is left to it if `unchecked`. `instance`
/// is the same for all sessions of a process. The client `moves` if it has another server to go to.
pub(crate) async fn open_as(
    connection: &Connection,
    unchecked: bool,
    instance: u64,
    moves: bool,
) -> Result<(MessageStream, Welcome), SessionError> {
    let hello = Hello {
        versions: VERSIONS.to_vec(),
        software: SOFTWARE.into(),
        unchecked,
        instance,
        repair: true,
        copies: true,
        moves,
        number: HELLOS.fetch_add(1, Relaxed),
    };
    let opened = say_hello(connection, hello).await;
    opened.inspect_err(|error| error.close(connection))
}

/// The same for a client that has no other server.
pub async fn open(
    connection: &Connection,
    unchecked: bool,
    instance: u64,
) -> Result<(MessageStream, Welcome), SessionError> {
    open_as(connection, unchecked, instance, false).await
}

async fn say_hello(
    connection: &Connection,
    hello: Hello,
) -> Result<(MessageStream, Welcome), SessionError> {
    let mut messages = MessageStream::new(connection, connection.open_bi().await?);
    messages.send(&Message::Hello(hello))?;
    match messages.next().await? {
        Message::Welcome(welcome) if VERSIONS.contains(&welcome.version) => Ok((messages, welcome)),
        Message::Welcome(welcome) => Err(SessionError::Version { theirs: vec![welcome.version] }),
        Message::Hello(_) | Message::GoAway(_) | Message::Bulk(_) => Err(SessionError::Unexpected),
    }
}

/// Begins a session as the server, for a client whose key is known. `welcome` gets the version that
/// both speak, and what the client said; without one the session does not begin, and the connection must be
/// closed with a reason.
pub async fn accept(
    connection: &Connection,
    welcome: impl FnOnce(u16, &Hello) -> Option<Welcome>,
) -> Result<(MessageStream, Hello), SessionError> {
    let accepted = answer_hello(connection, welcome).await;
    accepted.inspect_err(|error| error.close(connection))
}

async fn answer_hello(
    connection: &Connection,
    welcome: impl FnOnce(u16, &Hello) -> Option<Welcome>,
) -> Result<(MessageStream, Hello), SessionError> {
    let mut messages = MessageStream::new(connection, connection.accept_bi().await?);
    let hello = match messages.next().await? {
        Message::Hello(hello) => hello,
        Message::Welcome(_) | Message::GoAway(_) | Message::Bulk(_) => {
            return Err(SessionError::Unexpected);
        }
    };
    let Some(version) = VERSIONS.into_iter().find(|version| hello.versions.contains(version))
    else {
        return Err(SessionError::Version { theirs: hello.versions });
    };
    let Some(welcome) = welcome(version, &hello) else { return Err(SessionError::Displaced) };
    messages.send(&Message::Welcome(welcome))?;
    Ok((messages, hello))
}
