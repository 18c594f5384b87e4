//! Finds the paths that fail because of a captive portal.

use std::{collections::HashSet, sync::Arc};

use tokio::task::JoinSet;

use crate::{
    link::candidate::Candidate,
    path::{Condition, PathKey, network::Network},
};

/// Asks about each path that fails, once until it works again or is gone.
#[derive(Debug, Default)]
pub(super) struct Portals {
    asking: JoinSet<(PathKey, bool)>,
    asked: HashSet<PathKey>,
}

impl Portals {
    /// Asks if the path failed.
    pub(super) fn heed(
        &mut self,
        key: PathKey,
        condition: Condition,
        candidate: &Candidate,
        network: &Arc<dyn Network>,
    ) {
        match condition {
            Condition::Active | Condition::Standby => {
                self.asked.remove(&key);
            }
            Condition::Failed if self.asked.insert(key) => {
                let (network, candidate) = (network.clone(), candidate.clone());
                self.asking.spawn(async move { (key, network.portal(&candidate).await) });
            }
            Condition::Failed | Condition::Suspect | Condition::Probing | Condition::Waiting => {}
        }
    }

    /// Forgets all paths but these.
    pub(super) fn retain(&mut self, is_there: impl Fn(&PathKey) -> bool) {
        self.asked.retain(is_there);
    }

    /// Waits for the next path that leads into a portal. Cancel safe.
    pub(super) async fn found(&mut self) -> PathKey {
        loop {
            match self.asking.join_next().await {
                Some(Ok((key, true))) if self.asked.contains(&key) => return key,
                Some(Ok(_) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
