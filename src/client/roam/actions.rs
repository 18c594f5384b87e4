//! What the policy wants done with the paths of a connection.

use tracing::debug;

use super::{Roamer, WARM_AGAIN, silence::SETTLED};
use crate::{
    client::{
        command::{NO_ANSWER, OTHER_NETWORK},
        paths::Departure,
    },
    clock,
    path::{PathKey, Reason, manager::Action},
};

impl Roamer<'_> {
    /// Does what the manager wants.
    pub(super) fn perform(&mut self, action: Action) {
        let active = self.manager.active();
        match action {
            Action::Ask(key) if active == Some(key) => self.connection.ask(),
            Action::Ask(key) => self.ask(key),
            Action::Sample(key, burst) => {
                let limit = self.config.borrow().paths.probe_timeout;
                self.paths.sample(key, burst, self.manager.is_metered(key), limit);
            }
            Action::Forget(key) => {
                self.inquiries.end(key, NO_ANSWER);
                self.forget(key);
            }
            Action::Renew(key) => {
                self.inquiries.end(key, OTHER_NETWORK);
                self.paths.renew(key);
                // A switch may follow, to the path that the manager calls active by now.
                if self.paths.in_use() == Some(key) {
                    self.paths.stop_asking(key);
                    self.go_on_elsewhere(key);
                } else {
                    self.forget(key);
                }
            }
            Action::Switch(key, reason) => self.switch(key, reason),
            Action::BeginAnew(key) => self.begin_anew(key),
        }
    }

    /// Ends what was asked over a path, and leaves it unless it is the active one.
    fn forget(&mut self, key: PathKey) {
        if self.manager.active() == Some(key) {
            self.paths.stop_asking(key);
        } else {
            self.paths.leave(key, self.connection.remembered(), clock::now());
        }
    }

    /// Asks the server over a path.
    pub(super) fn ask(&mut self, key: PathKey) {
        // While the path in use is in doubt, the connection itself may need it in a moment.
        if key.transport.is_stream() && self.manager.is_in_doubt() {
            self.paths.prepare(key, clock::now());
        }
        self.paths.ask(key, self.config.borrow().paths.probe_timeout);
    }

    /// The path in use leads into another network. What is in flight may be lost there.
    fn go_on_elsewhere(&mut self, key: PathKey) {
        let now = clock::now();
        // The silence was that of the network before, unless that was left before it had answered at all.
        if self.is_measured {
            self.connection.expect_nothing(false);
        }
        self.measure_anew();
        self.quality.begin(now);
        self.connection.moved(self.paths.memory(key, now), false);
        self.datapath.session.resume_elsewhere();
        self.reconnect_over(key, SETTLED);
    }

    /// The round trip that was measured is of another network.
    fn measure_anew(&mut self) {
        self.connection.measure_anew();
        self.is_measured = false;
    }

    /// Goes on over another path.
    fn switch(&mut self, to: PathKey, reason: Reason) {
        let now = clock::now();
        let memory = self.connection.remembered();
        self.measure_anew();
        self.shown.copies(self.datapath.counters.copies(), now);
        let Some(departure) = self.paths.switch(to, memory, now) else { return };
        // What a server that just answered says of our session is still to come.
        if reason != Reason::Silent {
            self.paths.stop_asking(to);
            self.inquiries.end(to, "in use now");
        }
        debug!(local = %to.local, server = %to.server, %reason, "switching");
        let Departure { from, to, memory, unheard_since } = departure;
        self.quality.begin(now);
        self.connection.moved(memory, reason.is_soft());
        if reason.is_of_loss() {
            self.datapath.session.resume_elsewhere();
        }
        self.warm_at = Some(now + WARM_AGAIN);
        let fault = from.as_ref().and_then(|from| self.manager.fault(from.into()));
        let words = match fault.filter(|_| reason.is_of_quality()) {
            Some(fault) => format!("the old path {fault}"),
            None => reason.to_string(),
        };
        self.meter.begin(from, to, (reason, words), unheard_since, now);
    }
}
