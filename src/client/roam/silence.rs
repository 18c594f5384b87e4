//! What the connection does while the server is silent: it asks, takes another TCP connection, or gives the session up.

use std::time::{Duration, Instant};

use tracing::debug;

use super::Roamer;
use crate::{
    clock,
    path::{PathKey, forgotten::Advice, manager::Event},
    quic::liveness::Verdict,
};

/// How long a TCP connection is waited for at least, and at most, before another one takes its place.
const STALLED: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(4)];
/// A TCP connection that is younger stays where the network becomes another one: two routers may take turns, and if it is
/// dead the silence tells.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

impl Roamer<'_> {
    /// Does what follows from the silence of the active path, or from its end.
    pub(super) fn judge(&mut self) {
        let Some(active) = self.manager.active() else { return };
        let (signs, now) = (self.connection.signs(), clock::now());
        let limit = self.connection.silence_limit();
        match self.liveness.verdict(&signs, limit, now) {
            Some(Verdict::Idle) => self.connection.expect_nothing(false),
            Some(Verdict::Ping) => self.connection.expect_nothing(true),
            Some(Verdict::Suspect) => {
                // If it is left for that, it must be known whether anything still comes.
                self.look();
                self.handle_event(Event::Silent(active));
            }
            Some(Verdict::Nudge) => {
                self.connection.nudge();
                self.paths.hurry();
                self.ask_again(now);
            }
            Some(Verdict::Trust) => self.trust(active),
            Some(Verdict::LostAll) => {
                self.connection.restart();
                self.trust(active);
            }
            None => {}
        }
    }

    /// The active path answers again. What was sent into the silence may be lost.
    fn trust(&mut self, active: PathKey) {
        self.is_waking = false;
        self.datapath.session.resume();
        if !self.manager.is_asked_again(active) {
            self.paths.stop_asking(active);
        }
        self.handle_event(Event::Heard(active));
    }

    /// Asks over the silent path what the connection and a probe are to ask.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.roaming.silence.notify_one();
        let Some(active) = self.manager.active() else { return };
        match self.forgotten.ask(active, self.connection.newest_acknowledged(), now) {
            Advice::Nudge => {}
            Advice::AskBoth => {
                self.connection.introduce();
                self.ask(active);
            }
            // The probe's TCP connection may stand before the tunnel's does. The probe tells whether the server has the
            // session.
            Advice::GiveUp if active.transport.is_stream() => {
                self.connection.introduce();
                self.reconnect_stalled();
            }
            Advice::GiveUp => self.begin_anew(active),
        }
    }

    /// The server at the end of this path does not know the connection.
    pub(super) fn begin_anew(&mut self, key: PathKey) {
        debug!(local = %key.local, server = %key.server, "the server does not have this session");
        self.answered = self.paths.candidate(key).cloned();
    }

    /// Whether this is the path in use, and nothing is heard on it.
    pub(super) fn is_unheard(&self, key: PathKey) -> bool {
        let is_unheard = self.liveness.is_suspected() || self.meter.awaited().is_some();
        is_unheard && self.manager.active() == Some(key)
    }

    /// The socket of a path failed.
    pub(super) fn fail(&mut self, key: PathKey) {
        if !key.transport.is_stream() {
            return self.handle_event(Event::SendFailed(key));
        }
        if self.manager.active() != Some(key) {
            // Whether its path works is up to the probe, which has a connection of its own.
            return self.paths.close(key);
        }
        let has_worked = self.paths.heard_on(key).is_some();
        self.handle_event(Event::SendFailed(key));
        // A further one after one that never worked is left to the probe's answer.
        if has_worked {
            self.reconnect(Duration::ZERO);
        }
    }

    /// Makes another TCP connection for the path in use, if it has one that is older than `age`.
    pub(super) fn reconnect(&mut self, age: Duration) {
        if let Some(active) = self.manager.active() {
            self.reconnect_over(active, age);
        }
    }

    /// The same for this path.
    pub(super) fn reconnect_over(&mut self, key: PathKey, age: Duration) {
        if key.transport.is_stream() && self.paths.reopen(key, age, clock::now()) {
            debug!(local = %key.local, server = %key.server, "another TCP connection");
            self.connection.introduce();
        }
    }

    /// The same for a connection that is silent for so long that a new one would have answered.
    pub(super) fn reconnect_stalled(&mut self) {
        let [shortest, longest] = STALLED;
        let age = (4 * self.connection.rtt()).clamp(shortest, longest);
        let unheard = self.underlay.socket().unheard_since();
        if self.liveness.is_suspected() && unheard.is_some_and(|at| clock::now() >= at + age) {
            self.reconnect(age);
        }
    }
}
