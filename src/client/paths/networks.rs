//! What is found out about the networks to which paths lead: which machine a router is, and whether a captive portal
//! answers.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tracing::debug;

use crate::{
    link::{
        candidate::Candidate,
        neighbour::Hardware,
        router::{Router, Routers},
    },
    path::{
        Condition, PathKey,
        manager::Event,
        network::{Network, NetworkError},
    },
};

/// From one question which machine a router is to the next: nobody says that a link got into a network that looks alike.
pub(super) const ROUTER_CHECK: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(super) struct Networks {
    network: Arc<dyn Network>,
    routers: Routers,
    /// The questions whether a captive portal answers: each path that fails is asked about once, until it works again, is
    /// gone or is in another network.
    portal_questions: BTreeMap<PathKey, Arc<()>>,
    /// The questions which machine a router is: one for each router of a link, as soon as a path has answered over it, and when
    /// it was asked.
    router_questions: BTreeMap<(u32, IpAddr), (Arc<()>, Instant)>,
    /// An answer counts for as long as its question is kept.
    asking: JoinSet<(Weak<()>, Answer)>,
}

/// What is found out about a network.
#[derive(Debug)]
enum Answer {
    /// Whether a captive portal seems to answer on this path.
    Portal(PathKey, bool),
    /// The hardware address of the router at this address of a link, if it has one.
    Router(u32, IpAddr, Result<Option<Hardware>, NetworkError>),
}

impl Networks {
    pub(super) fn new(network: Arc<dyn Network>) -> Self {
        Self {
            network,
            routers: Routers::default(),
            portal_questions: BTreeMap::new(),
            router_questions: BTreeMap::new(),
            asking: JoinSet::new(),
        }
    }

    /// The router of a candidate, as far as it is known.
    pub(super) fn router(&self, candidate: &Candidate) -> Router {
        self.routers.of(candidate.index, candidate.router)
    }

    /// Forgets the paths that are not known, and the routers to which no path leads.
    pub(super) fn retain(
        &mut self,
        is_known: impl Fn(PathKey) -> bool,
        is_in_use: impl Fn(u32, IpAddr) -> bool,
    ) {
        self.portal_questions.retain(|key, _| is_known(*key));
        self.routers.retain(&is_in_use);
        self.router_questions.retain(|(link, address), _| is_in_use(*link, *address));
    }

    /// The path's network is another one: whether a captive portal is in it is not known.
    pub(super) fn renew(&mut self, key: PathKey) {
        self.portal_questions.remove(&key);
    }

    /// Asks about the network of a path in this condition and with this round trip: if it failed, whether a captive portal
    /// answers; if it has answered, which machine its router is, which the kernel knows by then.
    pub(super) fn ask(
        &mut self,
        key: PathKey,
        candidate: &Candidate,
        condition: Condition,
        rtt: Option<Duration>,
        now: Instant,
    ) {
        match condition {
            Condition::Active | Condition::Standby => {
                self.portal_questions.remove(&key);
            }
            Condition::Failed if !self.portal_questions.contains_key(&key) => {
                let question = Arc::default();
                let asked = Arc::downgrade(&question);
                self.portal_questions.insert(key, question);
                let (network, candidate) = (self.network.clone(), candidate.clone());
                self.asking.spawn(async move {
                    (asked, Answer::Portal(key, network.portal(&candidate).await))
                });
            }
            Condition::Failed | Condition::Suspect | Condition::Probing | Condition::Waiting => {}
        }
        let Some(address) = candidate.router.filter(|_| rtt.is_some()) else { return };
        let of_router = (key.link, address);
        let asked = self.router_questions.get(&of_router);
        if asked.is_none_or(|(_, at)| *at + ROUTER_CHECK <= now) {
            let question = Arc::default();
            let asked = Arc::downgrade(&question);
            self.router_questions.insert(of_router, (question, now));
            let (network, link) = (self.network.clone(), key.link);
            self.asking.spawn(async move {
                let found = network.router(link, address).await;
                (asked, Answer::Router(link, address, found))
            });
        }
    }

    /// Routers may be other machines by now.
    pub(super) fn ask_routers_again(&mut self) {
        self.router_questions.clear();
    }

    /// Waits for the next answer that tells something. Cancel safe.
    pub(super) async fn answered(&mut self) -> Event {
        loop {
            match self.asking.join_next().await {
                Some(Ok((question, answer))) if question.strong_count() > 0 => {
                    if let Some(event) = self.take(answer) {
                        return event;
                    }
                }
                Some(Ok(_) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Option<Event> {
        match answer {
            Answer::Portal(key, is_portal) => is_portal.then_some(Event::Portal(key)),
            Answer::Router(link, address, Ok(found)) => {
                let hardware = found?;
                self.routers.learn(link, address, hardware);
                Some(Event::Router { link, address, hardware })
            }
            // The next look at the paths asks again.
            Answer::Router(link, address, Err(error)) => {
                debug!(link, router = %address, %error, "the router is not known");
                self.router_questions.remove(&(link, address));
                None
            }
        }
    }
}
