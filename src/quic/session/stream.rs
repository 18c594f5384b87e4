//! The control stream of a session: messages both ways.

use std::{convert::Infallible, io};

use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use quinn::{Connection, ReadError, RecvStream, SendStream, WriteError};
use tracing::debug;

use super::SessionError;
use crate::wire::{
    inbox::Inbox,
    message::{LONGEST, Message},
};

/// The messages of one session. It ends with its connection; the stream stays open until then.
#[derive(Debug)]
pub struct MessageStream {
    connection: Connection,
    sender: MessageSender,
    receiver: MessageReceiver,
}

impl MessageStream {
    pub(super) fn new(connection: &Connection, (send, receive): (SendStream, RecvStream)) -> Self {
        Self {
            connection: connection.clone(),
            sender: MessageSender { stream: send, waiting: BytesMut::new() },
            receiver: MessageReceiver { stream: receive, inbox: Inbox::default() },
        }
    }

    /// See [`MessageSender::send`].
    pub(super) fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        self.sender.send(message)
    }

    /// The next message, while what waits is sent. Cancel safe, as both halves are.
    pub(super) async fn next(&mut self) -> Result<Message, SessionError> {
        tokio::select! {
            message = self.receiver.next() => message,
            failed = self.sender.drain() => failed.map(|never| match never {}),
        }
    }

    /// Sends a message without waiting. What the other side does not take at once is sent while [`Self::received`]
    /// is polled; if the other side reads nothing for too long, this closes the connection with a reason.
    pub fn tell(&mut self, message: &Message) {
        if let Err(error) = self.send(message) {
            debug!(%error, "a message is not sent");
            error.close(&self.connection);
        }
    }

    /// The next message of an established session. A malformed message closes the connection with a reason. Then,
    /// and when the stream has ended, this waits for ever: a session ends with its connection. Cancel safe.
    pub(crate) async fn received(&mut self) -> Message {
        match self.next().await {
            Ok(message) => message,
            Err(error) => {
                debug!(%error, "no more messages");
                error.close(&self.connection);
                std::future::pending().await
            }
        }
    }

    /// Closes the connection because the received message is unexpected.
    pub(crate) fn refuse(&self) {
        SessionError::Unexpected.close(&self.connection);
    }
}

/// Writes messages.
#[derive(Debug)]
struct MessageSender {
    stream: SendStream,
    /// Whole messages, the first one without what was sent of it.
    waiting: BytesMut,
}

impl MessageSender {
    /// Sends as much as the other side takes at once and keeps the rest for [`Self::drain`], without waiting. An
    /// error if more than the longest message is already waiting.
    fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        if self.waiting.len() > LONGEST {
            return Err(SessionError::NoCredit(self.waiting.len()));
        }
        self.waiting.extend_from_slice(&message.encode()?);
        match self.drain().now_or_never() {
            Some(Err(error)) => Err(error),
            Some(Ok(never)) => match never {},
            None => Ok(()),
        }
    }

    /// Sends the waiting bytes, then waits for ever. Cancel safe: exactly the bytes that a write accepted (RFC 9000
    /// §2.2) leave `waiting` before the next point at which this can be cancelled.
    async fn drain(&mut self) -> Result<Infallible, SessionError> {
        while !self.waiting.is_empty() {
            let written = self.stream.write(&self.waiting).await.map_err(|error| match error {
                WriteError::ConnectionLost(error) => error.into(),
                other => SessionError::Stream(io::Error::other(other)),
            })?;
            self.waiting.advance(written);
        }
        std::future::pending().await
    }
}

/// Reads messages.
#[derive(Debug)]
struct MessageReceiver {
    stream: RecvStream,
    inbox: Inbox,
}

impl MessageReceiver {
    /// The next message of a known type. Cancel safe: the bytes read of a message are in the inbox before the next
    /// point at which this can be cancelled.
    async fn next(&mut self) -> Result<Message, SessionError> {
        loop {
            if let Some(message) = self.inbox.next()? {
                return Ok(message);
            }
            let chunk = self.stream.read_chunk(self.inbox.missing(), true).await;
            let chunk = chunk.map_err(|error| match error {
                ReadError::ConnectionLost(error) => error.into(),
                other => SessionError::Stream(io::Error::other(other)),
            })?;
            let ended = || SessionError::Stream(io::ErrorKind::UnexpectedEof.into());
            self.inbox.push(&chunk.ok_or_else(ended)?.bytes);
        }
    }
}
