//! How a session, or the attempt at one, ended, and whether the server refused us. All is tried again for
//! ever: only a person who starts a client by hand is better served by an error.

use quinn::ConnectionError;

use super::{dial::DialError, offer::OfferError, rival::Rival};
use crate::{
    identity::PublicKey,
    link::candidate::Candidate,
    path::handshake::HandshakeError,
    quic::{close, session::SessionError},
    wire::foreign::Foreign,
};

/// The server will not have us, or what answers is another one: until somebody changes something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The server does not know our key.
    #[error(
        "the server refused this client's key. Add this to the server's configuration:\n\n\
         [[peer]]\nname = \"a name of your choice\"\npublic-key = \"{0}\"\n\
         addresses = [\"an unused address of the tunnel's network\"]\n"
    )]
    UnknownKey(PublicKey),
    /// The server speaks another version of the protocol.
    #[error("{0}; upgrade the older side")]
    Version(Foreign),
    /// The server is not the one that we want.
    #[error("{0}")]
    WrongServer(String),
}

impl Refusal {
    /// Whether the server said so after it proved its key. Anything else can come from anybody on the way.
    #[must_use]
    pub(crate) fn is_proven(&self) -> bool {
        match self {
            Self::UnknownKey(_) | Self::Version(_) => true,
            Self::WrongServer(_) => false,
        }
    }

    /// The refusal in one line.
    #[must_use]
    pub(crate) fn in_short(&self) -> String {
        match self {
            Self::UnknownKey(key) => {
                format!("no [[peer]] of the server has this client's key {key}")
            }
            Self::Version(_) | Self::WrongServer(_) => self.to_string(),
        }
    }
}

/// Why a session, or the attempt at one, ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// No server was reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The session did not begin.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server took the connection and then said nothing.
    #[error("the server sent no welcome")]
    NoGreeting,
    /// The session is of no use.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// This host could not be made as the session needs it.
    #[error("{0}")]
    Host(String),
    /// The session's connection ended.
    #[error("connection lost: {}", Foreign::of(.0))]
    Lost(ConnectionError),
    /// The configuration does not have the session's server any more.
    #[error("the configuration does not have this server any more")]
    Removed,
    /// A person pauses the tunnel.
    #[error("somebody paused the tunnel")]
    Paused,
    /// The server answers, but nothing that the session's connection asks.
    #[error("the server does not know this connection any more")]
    Forgotten(Candidate),
}

impl Ended {
    /// The path over which the server answered that it does not know the connection, if it did; `in_use` carried it.
    #[must_use]
    pub(crate) fn answered(&self, in_use: Option<Candidate>) -> Option<Candidate> {
        match self {
            Self::Forgotten(answered) => Some(answered.clone()),
            Self::Lost(ConnectionError::Reset) => in_use,
            _ => None,
        }
    }

    /// Whether the server stopped, and said so.
    #[must_use]
    pub(crate) fn is_goodbye(&self) -> bool {
        matches!(
            self,
            Self::Lost(ConnectionError::ApplicationClosed(closed)) if closed.error_code == close::GOODBYE
        )
    }

    /// Whether the server will not have us before somebody changes something.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        let refusal = self.refusal(PublicKey::from([0; 32]));
        refusal.is_some_and(|refusal| refusal.is_proven()) || Rival::of(self).is_some()
    }

    /// The refusal, if it was one. What is refused is asked again, though more rarely.
    #[must_use]
    pub(crate) fn refusal(&self, own_key: PublicKey) -> Option<Refusal> {
        match self {
            Self::Dial(DialError::Handshake(
                error @ (HandshakeError::WrongServerKey { .. } | HandshakeError::NotRoamd { .. }),
            )) => Some(Refusal::WrongServer(error.to_string())),
            Self::Session(error @ SessionError::Version { .. }) => {
                Some(Refusal::Version(Foreign::of(error)))
            }
            Self::Session(SessionError::Connection(ConnectionError::ApplicationClosed(closed)))
            | Self::Lost(ConnectionError::ApplicationClosed(closed)) => match closed.error_code {
                close::UNKNOWN_KEY => Some(Refusal::UnknownKey(own_key)),
                close::VERSION => Some(Refusal::Version(Foreign::from(&closed.reason[..]))),
                _ => None,
            },
            Self::Dial(_)
            | Self::Session(_)
            | Self::NoGreeting
            | Self::Offer(_)
            | Self::Host(_)
            | Self::Lost(_)
            | Self::Removed
            | Self::Paused
            | Self::Forgotten(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::candidate;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from([byte; 32])
    }

    fn closed(code: quinn::VarInt) -> ConnectionError {
        let reason = bytes::Bytes::from_static(b"why");
        ConnectionError::ApplicationClosed(quinn::ApplicationClose { error_code: code, reason })
    }

    fn wrong_key() -> Ended {
        let server = ([192, 0, 2, 1], 4433).into();
        let (shown, expected) = (key(1), key(2));
        let error = HandshakeError::WrongServerKey { server, shown, expected };
        Ended::Dial(error.into())
    }

    #[test]
    fn a_close_after_the_handshake_is_a_proven_refusal() {
        for ended in [
            Ended::Lost(closed(close::UNKNOWN_KEY)),
            Ended::Session(closed(close::UNKNOWN_KEY).into()),
        ] {
            let refusal = ended.refusal(key(9)).unwrap();
            assert!(refusal.is_proven());
            assert!(refusal.to_string().contains(&key(9).to_string()), "{refusal}");
            assert!(!refusal.in_short().contains('\n'));
        }
        for ended in [
            Ended::Lost(closed(close::VERSION)),
            Ended::Session(SessionError::Version { theirs: vec![7] }),
        ] {
            assert!(matches!(ended.refusal(key(9)), Some(Refusal::Version(_))));
        }
    }

    #[test]
    fn a_wrong_server_key_is_an_unproven_refusal() {
        assert!(!wrong_key().refusal(key(9)).unwrap().is_proven());
    }

    #[test]
    fn everything_else_is_no_refusal() {
        for ended in [
            Ended::Lost(ConnectionError::TimedOut),
            Ended::Lost(ConnectionError::Reset),
            Ended::Lost(closed(close::GOODBYE)),
            Ended::Lost(closed(close::TAKEN_OVER)),
            Ended::Session(closed(close::GOODBYE).into()),
            Ended::NoGreeting,
            Ended::Forgotten(candidate("eth0", 1)),
            Ended::Dial(DialError::NoRoute(Vec::new())),
        ] {
            assert!(ended.refusal(key(9)).is_none());
        }
    }
}
