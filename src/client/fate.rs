//! Whether to try again: every end of a session, or of the attempt at one, is either temporary and
//! retried for ever, or fatal and reported.

use quinn::{ApplicationClose, ConnectionError};

use super::dial::DialError;
use crate::{
    identity::PublicKey, path::handshake::HandshakeError, quic::close, session::SessionError,
};

/// An end that trying again would not change.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The server does not know our key.
    #[error(
        "the server refused this client's key. Add this to the server's configuration:\n\n\
         [[peer]]\nname = \"a name of your choice\"\npublic-key = \"{0}\"\n\
         addresses = [\"an unused address of the tunnel's network\"]\n"
    )]
    UnknownKey(PublicKey),
    /// The server speaks another version of the protocol.
    #[error("{0}; upgrade the older side")]
    Version(String),
    /// The server is not the one that we want.
    #[error("{0}")]
    WrongServer(HandshakeError),
}

/// Why a session, or the attempt at one, ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// No server was reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The session did not begin.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server took the connection and then said nothing.
    #[error("the server did not greet")]
    NoGreeting,
    /// The session's connection ended.
    #[error("connection lost: {0}")]
    Lost(ConnectionError),
}

impl Ended {
    /// Tells ends for which trying again is worth while from those for which it is not.
    ///
    /// Only what the server said after it proved its key can be believed: its refusals. A wrong key
    /// or protocol can come from anybody on the way, so it is fatal only for a client that
    /// `never_met` its server, which is most likely misconfigured.
    pub fn unless_fatal(self, own_key: PublicKey, never_met: bool) -> Result<Self, Fatal> {
        match self {
            Self::Dial(DialError::Handshake(
                error @ (HandshakeError::WrongServerKey { .. } | HandshakeError::NotRoamd { .. }),
            )) if never_met => Err(Fatal::WrongServer(error)),
            Self::Session(error @ SessionError::Version { .. }) => {
                Err(Fatal::Version(error.to_string()))
            }
            Self::Session(SessionError::Connection(ConnectionError::ApplicationClosed(
                ref closed,
            )))
            | Self::Lost(ConnectionError::ApplicationClosed(ref closed)) => {
                match refusal(closed, own_key) {
                    Some(fatal) => Err(fatal),
                    None => Ok(self),
                }
            }
            _ => Ok(self),
        }
    }
}

fn refusal(closed: &ApplicationClose, own_key: PublicKey) -> Option<Fatal> {
    match closed.error_code {
        close::UNKNOWN_KEY => Some(Fatal::UnknownKey(own_key)),
        close::VERSION => {
            Some(Fatal::Version(String::from_utf8_lossy(&closed.reason).into_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from([byte; 32])
    }

    fn closed(code: quinn::VarInt) -> ConnectionError {
        let reason = bytes::Bytes::from_static(b"why");
        ConnectionError::ApplicationClosed(ApplicationClose { error_code: code, reason })
    }

    fn wrong_key() -> Ended {
        let server = ([192, 0, 2, 1], 4433).into();
        let (shown, expected) = (key(1), key(2));
        let error = HandshakeError::WrongServerKey { server, shown, expected };
        Ended::Dial(error.into())
    }

    #[test]
    fn what_the_server_refuses_is_fatal_whenever_it_says_so() {
        for ended in [
            Ended::Lost(closed(close::UNKNOWN_KEY)),
            Ended::Session(closed(close::UNKNOWN_KEY).into()),
        ] {
            let fatal = ended.unless_fatal(key(9), false).unwrap_err();
            assert!(fatal.to_string().contains(&key(9).to_string()), "{fatal}");
        }
        for ended in [
            Ended::Lost(closed(close::VERSION)),
            Ended::Session(SessionError::Version { theirs: vec![7] }),
        ] {
            assert!(matches!(ended.unless_fatal(key(9), false), Err(Fatal::Version(_))));
        }
    }

    #[test]
    fn a_wrong_server_key_is_fatal_only_before_the_first_session() {
        assert!(matches!(wrong_key().unless_fatal(key(9), true), Err(Fatal::WrongServer(_))));
        assert!(wrong_key().unless_fatal(key(9), false).is_ok());
    }

    #[test]
    fn everything_else_is_tried_again() {
        for ended in [
            Ended::Lost(ConnectionError::TimedOut),
            Ended::Lost(ConnectionError::Reset),
            Ended::Lost(closed(close::GOODBYE)),
            Ended::Lost(closed(close::TAKEN_OVER)),
            Ended::Session(closed(close::GOODBYE).into()),
            Ended::NoGreeting,
            Ended::Dial(DialError::NoRoute(Vec::new())),
        ] {
            assert!(ended.unless_fatal(key(9), true).is_ok());
        }
    }
}
