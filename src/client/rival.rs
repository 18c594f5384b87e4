//! Another machine with this client's key, which has the session.

use std::{fmt, net::IpAddr, str::FromStr as _, time::Duration};

use quinn::ConnectionError;

use super::{chance::fraction, ended::Ended};
use crate::quic::{close, session::SessionError};

/// From one question whether the other machine is gone to the next, and up to half of it more, at random.
const PAUSE: Duration = Duration::from_secs(180);
/// The first question comes sooner: it tells the server that two machines live, and not one that was started
/// again.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Then longer than the usual `quic.idle-timeout`: the other one may be an earlier run here, whose last hello came
/// late, and has a session without a process.
const SECOND_PAUSE: Duration = Duration::from_secs(45);

/// What the server said of the other machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rival {
    address: Option<IpAddr>,
    /// It took a session, and was not found to have it.
    is_new: bool,
}

impl Rival {
    /// The machine because of which a session ended, or did not begin.
    pub(super) fn of(ended: &Ended) -> Option<Self> {
        match ended {
            Ended::Lost(ConnectionError::ApplicationClosed(closed))
            | Ended::Session(SessionError::Connection(ConnectionError::ApplicationClosed(
                closed,
            ))) if closed.error_code == close::DISPLACED => {
                // An address and nothing else: the text is not ours.
                let address = std::str::from_utf8(&closed.reason).ok();
                Some(Self {
                    address: address.and_then(|it| IpAddr::from_str(it).ok()),
                    is_new: matches!(ended, Ended::Lost(_)),
                })
            }
            _ => None,
        }
    }

    /// How long the other machine is left alone, when the server has told of it so many times `before`.
    pub(super) fn pause(self, before: u32) -> Duration {
        match before {
            _ if self.is_new => FIRST_PAUSE,
            0 | 1 => SECOND_PAUSE,
            _ => PAUSE + PAUSE.mul_f32(fraction() / 2.0),
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another machine uses this key")?;
        if let Some(address) = self.address {
            write!(f, ", from {address}")?;
        }
        write!(
            f,
            ": it keeps the tunnel, and this one asks again every few minutes; a restart here takes it over. \
             Give each machine a key of its own"
        )
    }
}

#[cfg(test)]
mod tests {
    use quinn::ApplicationClose;

    use super::*;

    fn displaced(reason: &'static str) -> Ended {
        let reason = bytes::Bytes::from_static(reason.as_bytes());
        let closed = ApplicationClose { error_code: close::DISPLACED, reason };
        Ended::Lost(ConnectionError::ApplicationClosed(closed))
    }

    #[test]
    fn the_other_machine_is_named_by_its_address_alone() {
        let rival = Rival::of(&displaced("192.0.2.7")).unwrap();
        assert!(rival.to_string().starts_with("another machine uses this key, from 192.0.2.7: "));
        let rival = Rival::of(&displaced("x\nSTOPPING=1")).unwrap();
        assert!(rival.to_string().starts_with("another machine uses this key: "), "{rival}");
    }

    #[test]
    fn other_ends_of_a_session_name_no_other_machine() {
        assert_eq!(Rival::of(&Ended::NoGreeting), None);
        assert_eq!(Rival::of(&Ended::Lost(ConnectionError::TimedOut)), None);
    }

    #[test]
    fn a_displaced_client_waits_for_minutes() {
        let rival = Rival { address: None, is_new: false };
        assert!(rival.pause(2) >= PAUSE && rival.pause(2) <= PAUSE + PAUSE / 2);
    }
}
