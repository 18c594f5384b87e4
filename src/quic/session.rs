//! How a session begins: the client says hello, the server tells it what it must know.

use std::io;

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, ReadExactError, RecvStream, SendStream, WriteError};

use super::close;
use crate::wire::{
    foreign::Foreign,
    message::{ControlError, Hello, LENGTH_SIZE, Message, VERSIONS, Welcome},
};

/// Name and version of this program, as told to the other side.
pub(crate) const SOFTWARE: &str = concat!("roamd ", env!("CARGO_PKG_VERSION"));

/// Why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection ended; its reason may be the server's refusal.
    #[error("{}", Foreign::of(.0))]
    Connection(#[from] ConnectionError),
    /// The control stream ended or was reset.
    #[error("control stream: {0}")]
    Stream(io::Error),
    /// A message can't be read or written.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A message came that makes no sense here.
    #[error("unexpected control message")]
    Unexpected,
    /// No version of the protocol in common.
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

/// The control stream. The session ends with its connection; the stream stays open until then.
#[derive(Debug)]
pub struct Control {
    send: SendStream,
    receive: RecvStream,
}

/// Begins a session as the client, who takes packets whose checksum is left to it if `unchecked`. `instance`
/// is the same for all sessions of a process.
pub async fn open(
    connection: &Connection,
    unchecked: bool,
    instance: u64,
) -> Result<(Control, Welcome), SessionError> {
    let (send, receive) = connection.open_bi().await?;
    let mut control = Control { send, receive };
    let hello = Hello {
        versions: VERSIONS.to_vec(),
        software: SOFTWARE.into(),
        unchecked,
        instance: Some(instance),
    };
    control.write(&Message::Hello(hello)).await?;
    let answer = control.read().await.inspect_err(|error| match error {
        SessionError::Control(_) => connection.close(close::PROTOCOL, b"malformed control message"),
        SessionError::Connection(_)
        | SessionError::Stream(_)
        | SessionError::Unexpected
        | SessionError::Displaced
        | SessionError::Version { .. } => {}
    })?;
    match answer {
        Message::Welcome(welcome) if VERSIONS.contains(&welcome.version) => Ok((control, welcome)),
        Message::Welcome(welcome) => Err(refuse_version(connection, vec![welcome.version])),
        Message::Hello(_) | Message::Repeat(_) => Err(unexpected(connection)),
    }
}

/// Begins a session as the server, for a client whose key is known. `welcome` gets the version that
/// both speak, and what the client said; without one the session does not begin, and the connection must be
/// closed with a reason.
pub async fn accept(
    connection: &Connection,
    welcome: impl FnOnce(u16, &Hello) -> Option<Welcome>,
) -> Result<(Control, Hello), SessionError> {
    let (send, receive) = connection.accept_bi().await?;
    let mut control = Control { send, receive };
    let Message::Hello(hello) = control.read().await? else {
        return Err(unexpected(connection));
    };
    let Some(version) = VERSIONS.into_iter().find(|version| hello.versions.contains(version))
    else {
        return Err(refuse_version(connection, hello.versions));
    };
    let Some(welcome) = welcome(version, &hello) else { return Err(SessionError::Displaced) };
    control.write(&Message::Welcome(welcome)).await?;
    Ok((control, hello))
}

fn refuse_version(connection: &Connection, theirs: Vec<u16>) -> SessionError {
    let error = SessionError::Version { theirs };
    connection.close(close::VERSION, error.to_string().as_bytes());
    error
}

fn unexpected(connection: &Connection) -> SessionError {
    connection.close(close::PROTOCOL, b"unexpected control message");
    SessionError::Unexpected
}

impl Control {
    /// The next message that we know. Not cancel safe.
    pub async fn read(&mut self) -> Result<Message, SessionError> {
        loop {
            let mut length = [0; LENGTH_SIZE];
            self.fill(&mut length).await?;
            let mut body = BytesMut::zeroed(usize::from(u16::from_be_bytes(length)));
            self.fill(&mut body).await?;
            if let Some(message) = Message::decode(&body)? {
                return Ok(message);
            }
        }
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), SessionError> {
        self.receive.read_exact(buffer).await.map_err(|error| match error {
            ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => error.into(),
            other => SessionError::Stream(io::Error::other(other)),
        })
    }

    /// Tells the other side. Not cancel safe.
    pub async fn write(&mut self, message: &Message) -> Result<(), SessionError> {
        self.send.write_all(&message.encode()?).await.map_err(|error| match error {
            WriteError::ConnectionLost(error) => error.into(),
            other => SessionError::Stream(io::Error::other(other)),
        })
    }
}
