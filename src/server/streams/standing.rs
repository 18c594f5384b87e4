//! How long a TCP connection may stay.
//!
//! ```text
//!      ┌──────────────── it left ────────────────┐
//!      ▼                                         │
//!  Stranger ─ a peer's QUIC connection came ─▶ Seen ─ it stayed for MOVED ─▶ Known ─ none for UNUSED ─▶ Unused
//!      ├───────────── a peer's handshake ended over it ───────────────────────▲
//!      └─ PROOF is over ─▶ Dismissed
//! ```
//! QUIC takes a connection's first packet from a new address for a move, and validates the address afterwards (RFC 9000
//! §9.3). Whoever is on the way can pass such a packet on. So a connection that is merely seen gets what a peer's
//! needs, but no lasting place.

use std::time::{Duration, Instant};

use crate::identity::PublicKey;

/// How long a client may take from the upgrade to a known key.
const PROOF: Duration = Duration::from_secs(15);
/// After this time quinn has validated the address or returned to the one before: three probe timeouts (RFC 9000
/// §8.2.4), which are a second on a new path, and more only where the path before had a round trip of a second.
pub(super) const MOVED: Duration = Duration::from_secs(8);
/// How long a TCP connection stays over which no known peer's QUIC connection runs any more.
const UNUSED: Duration = Duration::from_secs(30);

/// What is thought of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No known peer's QUIC connection runs over it.
    Stranger,
    /// One has come to it from another address.
    Seen,
    /// One runs over it, or did so lately.
    Known,
    /// None runs over it any more: it is closed.
    Unused,
    /// It is closed for this reason.
    Dismissed(&'static str),
}

/// The standing of one TCP connection.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) standing: Standing,
    /// The peer whose QUIC connection runs over it, or did.
    pub(super) peer: Option<PublicKey>,
    begun: Instant,
    /// When the peer came, or was there for the last time.
    since: Instant,
}

impl Tenure {
    /// That of a connection which begins.
    pub(super) fn new(now: Instant) -> Self {
        Self { standing: Standing::Stranger, peer: None, begun: now, since: now }
    }

    /// A handshake of `peer` ended over it.
    pub(super) fn proven(&mut self, peer: PublicKey, now: Instant) {
        if !self.is_over() {
            (self.standing, self.peer, self.since) = (Standing::Known, Some(peer), now);
        }
    }

    /// A QUIC connection of `there` runs over it, or none of a known peer.
    pub(super) fn look(&mut self, there: Option<PublicKey>, now: Instant) {
        let age = |since| now.saturating_duration_since(since);
        match (self.standing, there) {
            (Standing::Stranger | Standing::Seen, None) if age(self.begun) >= PROOF => {
                self.standing = Standing::Dismissed("no known key");
            }
            (Standing::Seen, None) => self.standing = Standing::Stranger,
            (Standing::Seen, Some(_)) if there == self.peer => {
                if age(self.since) >= MOVED {
                    (self.standing, self.since) = (Standing::Known, now);
                }
            }
            (Standing::Stranger | Standing::Seen, Some(_)) => {
                (self.standing, self.peer, self.since) = (Standing::Seen, there, now);
            }
            (Standing::Known, Some(_)) => self.since = now,
            (Standing::Known, None) if age(self.since) >= UNUSED => {
                self.standing = Standing::Unused
            }
            (Standing::Stranger | Standing::Known, None)
            | (Standing::Unused | Standing::Dismissed(_), _) => {}
        }
    }

    pub(super) fn dismiss(&mut self, why: &'static str) {
        if !self.is_over() {
            self.standing = Standing::Dismissed(why);
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.standing, Standing::Unused | Standing::Dismissed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LAPTOP: [u8; 32] = [1; 32];

    /// Looks once a second, at these seconds with the laptop there; the standing after each look.
    fn looks(is_there: impl Fn(u32) -> bool, seconds: u32) -> Vec<Standing> {
        let begun = Instant::now();
        let mut tenure = Tenure::new(begun);
        let look = |second| {
            tenure.look(is_there(second).then(|| LAPTOP.into()), begun + second * SECOND);
            tenure.standing
        };
        (0..seconds).map(look).collect()
    }

    #[test]
    fn a_stranger_is_dismissed_after_its_time() {
        let standings = looks(|_| false, 17);
        assert_eq!(standings[14], Standing::Stranger);
        assert_eq!(standings[15], Standing::Dismissed("no known key"));
        assert_eq!(standings[16], Standing::Dismissed("no known key"));
    }

    #[test]
    fn a_connection_to_which_a_peer_moved_is_known_only_when_it_stayed() {
        let standings = looks(|second| second >= 2, 60);
        assert_eq!(standings[2], Standing::Seen);
        assert_eq!(standings[9], Standing::Seen);
        assert!(standings[10..].iter().all(|it| *it == Standing::Known));
    }

    #[test]
    fn packets_passed_on_again_and_again_earn_no_place_and_no_time() {
        let standings = looks(|second| second % 4 != 3, 20);
        assert!(!standings.contains(&Standing::Known));
        assert_eq!(standings[14], Standing::Seen);
        assert_eq!(standings[15], Standing::Dismissed("no known key"));
    }

    #[test]
    fn a_connection_that_a_peer_left_stays_for_a_while() {
        let begun = Instant::now();
        let mut tenure = Tenure::new(begun);
        tenure.proven(LAPTOP.into(), begun);
        for second in 1..30 {
            tenure.look(None, begun + second * SECOND);
            assert_eq!(tenure.standing, Standing::Known);
        }
        tenure.look(Some(LAPTOP.into()), begun + 29 * SECOND);
        tenure.look(None, begun + 58 * SECOND);
        assert_eq!(tenure.standing, Standing::Known, "it came back");
        tenure.look(None, begun + 59 * SECOND);
        assert_eq!(tenure.standing, Standing::Unused);
        tenure.proven(LAPTOP.into(), begun + 60 * SECOND);
        assert_eq!(tenure.standing, Standing::Unused, "too late");
    }
}
