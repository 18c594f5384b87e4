//! Which paths there are: through which links, and to which addresses of the server.

use std::collections::HashSet;

use tracing::{info, warn};

use super::Roamer;
use crate::{
    clock,
    path::{
        manager::{Event, Settings},
        servers::choose_paths,
    },
};

impl Roamer<'_> {
    /// The configuration changed.
    pub(super) async fn renew(&mut self) {
        let config = self.config.borrow_and_update().clone();
        self.manager.set_settings(Settings::new(&config.paths));
        if let Some(server) = self.known.of(self.server.key()) {
            self.server = server;
        }
        // A resolver may take seconds, and paths can fail meanwhile; `renamed` tells when it has answered.
        self.server.resolve_apart();
        self.refresh_candidates().await;
    }

    /// The server's names stand for other addresses. The one in use stays for as long as it works: the
    /// resolver may be a captive portal's.
    pub(super) async fn find_servers(&mut self) {
        let mut addresses = self.renamed.borrow_and_update().clone();
        let in_use = self.manager.active().filter(|active| !active.transport.is_detour());
        let in_use = in_use.map(|active| active.server);
        if let Some(in_use) = in_use
            && !addresses.contains(&in_use)
        {
            addresses.insert(0, in_use);
        }
        info!(servers = ?addresses, "the server's addresses changed");
        self.addresses = addresses;
        self.refresh_candidates().await;
    }

    /// Finds out which candidates there are.
    pub(super) async fn refresh_candidates(&mut self) {
        let config = self.config.borrow().clone();
        let active = self.manager.active().or(Some(self.first));
        let found = match self.server.find(&self.addresses, &config.paths).await {
            Ok(found) => choose_paths(found, active),
            Err(error) => return warn!(%error, "the candidates stay as they were"),
        };
        let candidates = found.iter().map(|(candidate, _)| candidate);
        self.paths.update(candidates, self.connection.remembered(), clock::now());
        self.handle_event(Event::Candidates(found));
        // The routes return first of all.
        self.look_for_home();
        let known: HashSet<_> = self.manager.paths().map(|(key, ..)| key).collect();
        self.paths.retain(&known);
    }
}
