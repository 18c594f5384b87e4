//! What is found on the links: paths come and go, and lead into other networks.

use std::{net::IpAddr, time::Instant};

use super::{Action, Manager, record::Ended, state::Path};
use crate::{
    link::{candidate::Candidate, neighbour::Hardware},
    path::{PathKey, rank::LinkFacts},
};

impl Manager {
    /// Takes in the complete list of candidates.
    pub(super) fn update(
        &mut self,
        found: Vec<(Candidate, LinkFacts)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_found =
            |key: &PathKey| found.iter().any(|(candidate, _)| PathKey::from(candidate) == *key);
        let gone: Vec<_> = self.paths.keys().filter(|key| !is_found(key)).copied().collect();
        for key in gone {
            if let Some(path) = self.paths.remove(&key) {
                let ended = self.ended(key, &path);
                self.dialing.record.keep(&ended, true, now);
                if self.active.take_if(|active| active.key == key).is_some() {
                    self.end_choice(&path.link);
                }
            }
            actions.push(Action::Forget(key));
        }
        self.dialing.record.expire(now);
        for (candidate, facts) in found {
            let key = PathKey::from(&candidate);
            match self.paths.remove(&key) {
                Some(path) if path.router == candidate.router => {
                    self.paths.insert(key, Path { facts, ..path });
                }
                before => self.enter(candidate, facts, before.as_ref(), now, actions),
            }
        }
        let paths = &self.paths;
        self.routers.retain(|link, address| {
            paths.iter().any(|(key, it)| (key.link, it.router) == (link, Some(address)))
        });
    }

    /// Adds a path, that was there `before` if it led into another network: that behind another router.
    fn enter(
        &mut self,
        candidate: Candidate,
        facts: LinkFacts,
        before: Option<&Path>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let key = PathKey::from(&candidate);
        if let Some(before) = before {
            let ended = self.ended(key, before);
            self.dialing.record.keep_verdict(&ended, now);
            actions.push(Action::Renew(key));
        }
        let router = self.routers.of(key.link, candidate.router);
        let mut path = self.dialing.record.recall(candidate, facts, router);
        if let Some(active) = self.active.as_mut().filter(|active| active.key == key) {
            path.begin(now);
            // The silence was that of the network before, unless that was left before it had answered at all.
            if before.is_none_or(|before| before.rtt.is_some()) {
                active.doubt = None;
            }
        }
        self.paths.insert(key, path);
    }

    /// The router at this address of a link has this hardware address. From its paths it drops what was found of a network
    /// whose router has another one, and recalls what was found of theirs. A path in use goes on, and is judged by its packets.
    pub(super) fn identify(
        &mut self,
        link: u32,
        address: IpAddr,
        hardware: Hardware,
        now: Instant,
    ) {
        let before = self.routers.of(link, Some(address));
        self.routers.learn(link, address, hardware);
        let router = self.routers.of(link, Some(address));
        for (key, path) in &mut self.paths {
            if key.link != link || path.router != Some(address) {
                continue;
            }
            let active = self.active.filter(|active| active.key == *key);
            let is_another = if before.may_be(router) {
                path.recalled.is_some_and(|it| !it.router.may_be(router)) && path.disown()
            } else {
                let is_doubted = active.is_some_and(|active| active.doubt.is_some());
                let ended = Ended { key: *key, path, router: before, is_doubted };
                self.dialing.record.keep_verdict(&ended, now);
                path.forget();
                true
            };
            if is_another && active.is_none() {
                self.dialing.record.recall_verdict(*key, path, router);
            }
        }
    }

    /// A path that is over, or whose network is.
    pub(super) fn ended<'a>(&self, key: PathKey, path: &'a Path) -> Ended<'a> {
        let is_doubted = self.active.is_some_and(|it| it.key == key && it.doubt.is_some());
        Ended { key, path, router: self.routers.of(key.link, path.router), is_doubted }
    }
}
