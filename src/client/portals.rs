//! Which paths lead into a captive portal, as far as we suspect.

use std::{collections::HashMap, sync::Arc};

use tokio::task::JoinSet;

use crate::{
    link::candidate::Candidate,
    path::{
        manager::{Condition, Key},
        network::Network,
    },
};

/// Asks about each path that fails, once until it works again or is gone.
#[derive(Debug, Default)]
pub(super) struct Portals {
    asking: JoinSet<(Key, bool)>,
    /// What is known of the paths that were asked about.
    suspected: HashMap<Key, bool>,
}

impl Portals {
    /// Whether this path leads into one.
    pub(super) fn is_suspected(&self, key: Key) -> bool {
        self.suspected.get(&key).copied().unwrap_or(false)
    }

    /// Heeds what the path is at, and asks where it failed.
    pub(super) fn heed(
        &mut self,
        key: Key,
        condition: Condition,
        candidate: &Candidate,
        network: &Arc<dyn Network>,
    ) {
        match condition {
            Condition::Active | Condition::Standby => {
                self.suspected.remove(&key);
            }
            Condition::Failed if !self.suspected.contains_key(&key) => {
                self.suspected.insert(key, false);
                let (network, candidate) = (network.clone(), candidate.clone());
                self.asking.spawn(async move { (key, network.portal(&candidate).await) });
            }
            Condition::Failed | Condition::Suspect | Condition::Probing | Condition::Waiting => {}
        }
    }

    /// Forgets all paths but these.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Key) -> bool) {
        self.suspected.retain(|key, _| is_there(key));
    }

    /// Waits for the next path that leads into a portal. Cancel safe.
    pub(super) async fn found(&mut self) -> Key {
        loop {
            match self.asking.join_next().await {
                Some(Ok((key, true))) => {
                    if let Some(suspected) = self.suspected.get_mut(&key) {
                        *suspected = true;
                        return key;
                    }
                }
                Some(Ok(_) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
