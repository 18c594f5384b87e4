//! A connection that asks the server for a session.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use quinn::Connection;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time;

use super::{ended::Ended, servers::RemoteServer};
use crate::{
    clock,
    path::handshake::Connected,
    quic::{
        self,
        congestion::CongestionHandle,
        liveness::{NUDGE, silence_limit},
        session::{self, MessageStream, SessionError},
    },
    wire::message::Welcome,
};

/// How much later a handshake must begin to overtake each further greeting: a server that is slow to greet would
/// otherwise never come to it.
const LEAD: Duration = Duration::from_millis(250);

/// A connection with a session.
pub(super) struct Reached {
    pub(super) server: Arc<RemoteServer>,
    pub(super) connected: Connected,
    pub(super) messages: MessageStream,
    pub(super) welcome: Welcome,
}

/// What a client says to any server, and how it listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Whether packets whose checksum is left to us are welcome.
    pub(super) unchecked: bool,
    /// Which process of this key's owner asks.
    pub(super) instance: u64,
    /// Whether there is another server to go to.
    pub(super) moves: bool,
}

/// A connection that waits for the server's welcome.
pub(super) struct Greeting {
    server: Arc<RemoteServer>,
    connected: Connected,
    welcome: BoxFuture<'static, Result<(MessageStream, Welcome), SessionError>>,
    /// A handshake over the same path that begins from then on overtakes this greeting.
    overtaken_from: Instant,
    due: Instant,
}

impl Greeting {
    /// Says hello, and measures the path's round trip from here on. It is the next one after `before` others.
    pub(super) fn begin(
        server: Arc<RemoteServer>,
        connected: Connected,
        terms: Terms,
        before: u32,
    ) -> Self {
        let connection = connected.connection.clone();
        let (Terms { unchecked, instance, moves }, congestion) = (terms, server.congestion.clone());
        let now = clock::now();
        let due = now + patience(&connection);
        congestion.measure_from(now);
        quic::ask(&connection);
        let welcome = async move {
            tokio::select! {
                welcome = session::open_as(&connection, unchecked, instance, moves) => welcome,
                never = insist(&connection, &congestion) => match never {},
            }
        };
        let overtaken_from = now + before * LEAD;
        Self { server, connected, welcome: Box::pin(welcome), overtaken_from, due }
    }

    /// When the welcome should have come.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether another handshake, which is complete, takes its place: this greeting is overdue, or lost. A server
    /// that does not have the end of a handshake cannot acknowledge anything, and QUIC repeats that end only after
    /// three round trips. So a handshake that began later on the same path and is answered first tells of the loss,
    /// as a packet does in RFC 9002 §6.1.
    pub(super) fn gives_way_to(&self, server: &RemoteServer, other: &Connected) -> bool {
        let is_same =
            server.key() == self.server.key() && other.candidate == self.connected.candidate;
        self.due <= clock::now() || (is_same && other.begun >= self.overtaken_from)
    }

    /// The server that is asked.
    pub(super) fn server(&self) -> &RemoteServer {
        &self.server
    }

    /// Waits for the end of a greeting, which is taken out then; without a greeting for ever. Gives the server, too. Cancel
    /// safe.
    pub(super) async fn end(
        greeting: &mut Option<Self>,
    ) -> (Arc<RemoteServer>, Result<Reached, Ended>) {
        let ended = match greeting {
            Some(waiting) => (&mut waiting.welcome).await,
            None => std::future::pending().await,
        };
        let Some(Self { server, connected, .. }) = greeting.take() else {
            return std::future::pending().await;
        };
        let reached = ended.map(|(messages, welcome)| Reached {
            server: server.clone(),
            connected,
            messages,
            welcome,
        });
        (server, reached.map_err(Ended::from))
    }
}

/// As long as the path of an established session may be silent. On the slowest links that is less than a
/// round trip, and a greeting that gives way too soon would never come.
fn patience(connection: &Connection) -> Duration {
    silence_limit(connection.rtt()).max(2 * connection.rtt())
}

/// Makes QUIC repeat what it said at a steady pace, not ever more rarely: somebody waits.
async fn insist(connection: &Connection, congestion: &CongestionHandle) -> Infallible {
    loop {
        time::sleep(NUDGE).await;
        quic::nudge(connection, congestion);
    }
}

pub(super) fn instance() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no randomness"))?;
    Ok(u64::from_be_bytes(bytes))
}
