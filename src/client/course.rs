//! Which server is preferred at the moment, and which ones are left alone, from session to session.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::chance::fraction;
use crate::{clock, identity::PublicKey};

/// How long a server that is preferred must have answered before the session returns to it, doubled with each return
/// that did not last, this often at most.
const STEADY: Duration = Duration::from_secs(30);
const MOST_DOUBLED: u32 = 6;
/// A session with a preferred server that lasted so long was no mistake.
const LASTING: Duration = Duration::from_secs(300);
/// How long a server is left alone after an attempt that came to nothing, doubled with each further one; at least so long if it
/// refused. Of that by chance a half to all.
const AGAIN: Duration = Duration::from_secs(1);
const REFUSED: Duration = Duration::from_secs(60);
/// How long a server is believed that says that it will stop.
const LONGEST_LEAVE: Duration = Duration::from_secs(3600);

/// What stays from session to session.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// The server that a person chose, until it fails.
    pub(super) chosen: Option<PublicKey>,
    /// Returns to a preferred server in a row that did not last.
    failures: u32,
    /// Servers that said that they will stop, and until when they are believed.
    leaving: BTreeMap<PublicKey, Instant>,
    /// How often in a row an attempt at a server came to nothing, and until when it is left alone.
    failed: BTreeMap<PublicKey, (u32, Instant)>,
}

impl Course {
    /// A session ended after so long that began as a return to the most preferred server.
    pub(super) fn leave(&mut self, lasted: Duration) {
        let failures = (self.failures + 1).min(MOST_DOUBLED);
        self.failures = if lasted < LASTING { failures } else { 0 };
    }

    /// A session with this server began.
    pub(super) fn begin(&mut self, server: PublicKey) {
        self.chosen.take_if(|chosen| *chosen != server);
    }

    /// This server will stop after so long.
    pub(super) fn goes_away(&mut self, server: PublicKey, within: Duration) {
        self.leaving.insert(server, clock::now() + within.clamp(STEADY, LONGEST_LEAVE));
    }

    /// There was no session with this server, or none of use. One that `refused` is left alone for longer.
    pub(super) fn fail(&mut self, server: PublicKey, refused: bool) {
        let (count, until) = self.failed.entry(server).or_insert((0, clock::now()));
        let pause = AGAIN * 2u32.pow((*count).min(MOST_DOUBLED));
        let pause = if refused { pause.max(REFUSED) } else { pause };
        *until = clock::now() + pause.mul_f32(0.5 + fraction() / 2.0);
        *count += 1;
    }

    /// A session with this server was of use.
    pub(super) fn succeed(&mut self, server: PublicKey) {
        self.failed.remove(&server);
    }

    /// Whether a server is tried after all others.
    pub(super) fn is_last(&self, server: PublicKey) -> bool {
        self.is_leaving(server) || self.left_alone_until(server).is_some()
    }

    pub(super) fn is_leaving(&self, server: PublicKey) -> bool {
        self.leaving.get(&server).is_some_and(|until| *until > clock::now())
    }

    pub(super) fn left_alone_until(&self, server: PublicKey) -> Option<Instant> {
        let (_, until) = self.failed.get(&server)?;
        (*until > clock::now()).then_some(*until)
    }

    /// How long a preferred server must have answered.
    pub(super) fn steady(&self) -> Duration {
        STEADY * 2u32.pow(self.failures)
    }
}
