//! Which server has the session of a peer, as one server sees it. Pure: it is handed the time.
//!
//! The client decides: it has its session where it said hello last. That server claims the session in etcd, and the
//! one that had it hears of the claim. A claim keeps nobody out, and no session waits for it. What it settles is who
//! has routes to the peer, and who closes a session that the client has left.
//!
//! ```text
//!                    ┌────── nobody else claims it any more ──────┐
//!                    ▼                                            │
//!  hello ─▶ the session is here ─▶ another server claims it ─▶ no routes, ─▶ 3 s later: closed (TakenOver)
//!           it has routes           for a later hello           │
//!                    │                                          └▶ another process: closed at once (Displaced)
//!                    └▶ etcd is away and so is the client: 4 to 6 s later no routes, until the client is heard (see
//!                                                           Suspension); 10 to 12 s later: closed (CutOff)
//! ```
//! Claims carry the order of a process's hellos, so it does not matter which of two claims comes to etcd first.
//! Among processes the claim that came last counts.

mod event;
mod suspension;
mod tenant;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use self::{
    suspension::Suspension,
    tenant::{Asking, Session, Standing, Tenant},
};
use crate::{identity::PublicKey, wire::foreign::Foreign};
pub(crate) use event::{
    Action, Answer, Claim, Event, Hello, Known, Order, Request, SessionId, Why,
};

/// How long a claim outlives the contact of its server with etcd, and a session that with its client while etcd is
/// away.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// How long a session that the client has left is served on: packets that routers still send here reach it.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// Renewals of a lease in the time that it lasts.
pub(crate) const RENEWALS: u32 = 10;
/// How long etcd may say nothing before clients are asked whether they are there: two renewals of a lease.
const UNSURE: Duration = Duration::from_secs(2);
/// How long this server has to run, since it began or stood still, before it gives up a session that is not heard:
/// what the client has sent meanwhile, and its answer, count.
const AWAKE: Duration = Duration::from_secs(2);
/// How often [`Event::Tick`] comes, and the wait before a request to etcd that failed is made again.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// All peers' sessions, as one server sees them.
#[derive(Debug)]
pub(crate) struct Tenure {
    server: PublicKey,
    name: Foreign,
    peers: HashMap<PublicKey, Tenant>,
    lease: Option<i64>,
    /// When our last lease ended or will end, by our own clock.
    lease_ends: Instant,
    /// Whether etcd says what changes.
    is_in_step: bool,
    /// Since when it does not.
    away_since: Instant,
    /// When the last tick came, and since when they come one by one.
    ticked: Instant,
    awake_since: Instant,
    /// Whether clients are asked whether they are there, as etcd is not heard, and since when that is so.
    is_asking: bool,
    turned: Instant,
    /// The last revision that was heard of.
    revision: i64,
    /// The largest epoch of claims that have ended, of all peers.
    last_epoch: u64,
}

impl Tenure {
    /// A server that has neither sessions nor a lease.
    pub(crate) fn new(server: PublicKey, name: Foreign, now: Instant) -> Self {
        let peers = HashMap::new();
        Self {
            server,
            name,
            peers,
            lease: None,
            lease_ends: now,
            is_in_step: false,
            away_since: now,
            ticked: now,
            awake_since: now,
            is_asking: false,
            turned: now,
            revision: 0,
            last_epoch: 0,
        }
    }

    /// Whether clients are to be asked whether they are there, and [`Event::Heard`] tells: etcd is not heard, or a
    /// session waits for a sign to have its routes back.
    pub(crate) fn wants_signs(&self, now: Instant) -> bool {
        let mut sessions = self.peers.values().filter_map(|tenant| tenant.session.as_ref());
        self.is_unsure(now) || sessions.any(|session| session.suspension.is_on())
    }

    /// Whether etcd has said nothing for some time.
    fn is_unsure(&self, now: Instant) -> bool {
        self.trusted_until().saturating_duration_since(now) < LEASE - UNSURE
    }

    /// The claims that are known, and whether each is ours.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (PublicKey, &Claim, bool)> {
        self.peers.iter().filter_map(|(peer, tenant)| {
            let claim = &tenant.known.as_ref()?.claim;
            Some((*peer, claim, claim.holder == self.server))
        })
    }

    /// Our last lease.
    pub(crate) fn lease(&self) -> Option<i64> {
        self.lease
    }

    /// The claim of another server on the peer's session.
    pub(crate) fn elsewhere(&self, peer: PublicKey) -> Option<&Claim> {
        self.peers.get(&peer)?.known.as_ref()?.elsewhere(self.server)
    }

    /// Whether our lease lasts and etcd says what changes.
    pub(crate) fn is_in_step(&self, now: Instant) -> bool {
        self.is_in_step && self.has_lease(now)
    }

    /// The only door.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Began { peer, session, hello, client } => {
                let began = Session {
                    id: session,
                    hello,
                    client,
                    heard: now,
                    suspension: Suspension::default(),
                    is_claimed: false,
                    leaves_at: None,
                };
                self.peers.entry(peer).or_default().session = Some(began);
                self.consider(peer, now, &mut actions);
            }
            Event::Ended { peer, session } => {
                if let Some(tenant) = self.peers.get_mut(&peer)
                    && tenant.session.take_if(|it| it.id == session).is_some()
                {
                    self.consider(peer, now, &mut actions);
                }
            }
            Event::Heard { peer, session } => {
                let etcd = (!self.is_asking).then_some(self.turned);
                let tenant = self.peers.get_mut(&peer);
                if let Some(session) =
                    tenant.and_then(|it| it.session.as_mut()).filter(|it| it.id == session)
                {
                    session.hear(peer, etcd, now, &mut actions);
                }
            }
            Event::Lease { id, ends } => {
                self.lease_ends = ends;
                // What was claimed with another lease is claimed again.
                if self.lease.replace(id) != Some(id) {
                    self.consider_all(now, &mut actions);
                }
            }
            Event::All { revision, claims } => {
                let has_lost = revision < self.revision;
                for tenant in self.peers.values_mut() {
                    tenant.revision = tenant.revision.min(revision);
                    // A claim that comes back is older than our own, which is lost: all sessions are claimed anew.
                    if let Some(session) = tenant.session.as_mut().filter(|_| has_lost) {
                        (session.is_claimed, session.heard) = (false, now);
                    }
                }
                self.revision = revision;
                let claims: HashMap<_, _> =
                    claims.into_iter().map(|(peer, put, known)| (peer, (put, known))).collect();
                let without = self.peers.keys().filter(|peer| !claims.contains_key(peer));
                for peer in without.copied().collect::<Vec<_>>() {
                    self.learn(peer, revision, None, &mut actions);
                }
                for (peer, (put, known)) in claims {
                    self.learn(peer, put, Some(known), &mut actions);
                }
                self.is_in_step = true;
                self.consider_all(now, &mut actions);
            }
            Event::Changed { peer, revision, known } => {
                self.revision = revision;
                self.learn(peer, revision, known, &mut actions);
                self.consider(peer, now, &mut actions);
            }
            Event::Away => {
                // It may be said again.
                if std::mem::take(&mut self.is_in_step) {
                    self.away_since = now;
                }
            }
            Event::Answered(peer, answer) => self.answered(peer, answer, now, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn has_lease(&self, now: Instant) -> bool {
        self.lease.is_some() && now < self.lease_ends
    }

    /// Until when what is known is what etcd has, or was lately. A lease that is well does not help a server that is
    /// not told of claims.
    fn trusted_until(&self) -> Instant {
        match self.is_in_step {
            true => self.lease_ends,
            false => self.lease_ends.min(self.away_since + LEASE),
        }
    }

    /// Notes what etcd has since this revision.
    fn learn(
        &mut self,
        peer: PublicKey,
        revision: i64,
        known: Option<Known>,
        actions: &mut Vec<Action>,
    ) {
        let tenant = self.peers.entry(peer).or_default();
        let elsewhere = |known: &Option<Known>| known.as_ref()?.elsewhere(self.server).cloned();
        let (before, holder) = (elsewhere(&tenant.known), elsewhere(&known));
        if before != holder {
            actions.push(Action::Do(Order::Elsewhere { peer, holder }));
        }
        if let Some(before) = &tenant.known
            && known.as_ref().is_none_or(|known| known.claim.epoch < before.claim.epoch)
        {
            self.last_epoch = self.last_epoch.max(before.claim.epoch);
        }
        (tenant.known, tenant.revision) = (known, revision);
        if matches!(tenant.asking, Asking::Answered { revision: awaited, .. } if awaited <= revision)
        {
            tenant.asking = Asking::Nothing;
        }
        if let (Some(session), Some(known)) = (&mut tenant.session, &tenant.known) {
            session.is_claimed |=
                known.claim.holder == self.server && known.claim.hello == Some(session.hello);
        }
    }

    fn answered(
        &mut self,
        peer: PublicKey,
        answer: Answer,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(tenant) = self.peers.get_mut(&peer) else { return };
        let Asking::Asked { after } = tenant.asking else { return };
        let until = now + LEASE;
        tenant.asking = match answer {
            Answer::Done(revision) => Asking::Answered { revision, until },
            Answer::Beaten => Asking::Answered { revision: after.saturating_add(1), until },
            Answer::Unclear => Asking::Again { at: now + TICK },
        };
        if matches!(tenant.asking, Asking::Answered { revision, .. } if revision <= tenant.revision)
        {
            tenant.asking = Asking::Nothing;
            self.consider(peer, now, actions);
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // This process or the whole machine stood still: no client was asked, and none was heard.
        let has_stood = now.saturating_duration_since(self.ticked) > 2 * TICK;
        if has_stood {
            self.awake_since = now;
        }
        self.ticked = now;
        let is_asking = self.is_unsure(now);
        if has_stood || is_asking != self.is_asking {
            self.turned = now;
        }
        self.is_asking = is_asking;
        let is_awake = now.saturating_duration_since(self.awake_since) >= AWAKE;
        let (is_cut_off, mut again) = (is_awake && now >= self.trusted_until(), Vec::new());
        for (&peer, tenant) in &mut self.peers {
            if let Asking::Answered { until: at, .. } | Asking::Again { at } = tenant.asking
                && at <= now
            {
                tenant.asking = Asking::Nothing;
                again.push(peer);
            }
            let Some(session) = &mut tenant.session else { continue };
            let is_cut_off = is_cut_off && session.is_silent(now);
            if is_cut_off || self.is_asking && session.is_unheard(self.turned, now) {
                session.suspend(peer, now, actions);
            }
            let why = match session.leaves_at {
                Some(at) if at <= now => Why::TakenOver,
                None if is_cut_off => Why::CutOff,
                _ => continue,
            };
            actions.push(Action::Do(Order::Close { peer, session: session.id, why }));
            tenant.session = None;
            again.push(peer);
        }
        for peer in again {
            self.consider(peer, now, actions);
        }
    }

    fn consider_all(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.consider(peer, now, actions);
        }
    }

    /// Does what follows from what is here and what etcd has.
    fn consider(&mut self, peer: PublicKey, now: Instant, actions: &mut Vec<Action>) {
        let lease = self.lease.filter(|_| self.is_in_step(now));
        let Some(tenant) = self.peers.get_mut(&peer) else { return };
        // One request at a time.
        let lease = lease.filter(|_| tenant.asking == Asking::Nothing);
        if tenant.session.is_none() {
            return match (&tenant.known, lease) {
                (Some(known), Some(lease)) if known.lease == lease => {
                    let revision = tenant.revision;
                    tenant.asking = Asking::Asked { after: revision };
                    actions.push(Action::Ask(Request::Release { peer, revision }));
                }
                (None, _) if tenant.asking == Asking::Nothing => drop(self.peers.remove(&peer)),
                _ => {}
            };
        }
        let claims = match tenant.standing(self.server, now) {
            Standing::Ours { lease: put_with } => Some(put_with) != self.lease,
            Standing::Later => true,
            Standing::Unsettled => return,
            Standing::Earlier => return tenant.yield_session(peer, now, actions),
        };
        let Some(session) = &mut tenant.session else { return };
        if session.leaves_at.take().is_some() {
            actions.push(Action::Do(Order::Restore { peer, session: session.id }));
        }
        if let Some(lease) = lease.filter(|_| claims) {
            let before = tenant.known.as_ref().map_or(0, |known| known.claim.epoch);
            let epoch = before.max(self.last_epoch).saturating_add(1);
            let (hello, client) = (Some(session.hello), session.client);
            let (holder, name, after) =
                (self.server, self.name.clone(), tenant.revision_of_claim());
            let claim = Claim { holder, name, epoch, hello, client };
            tenant.asking = Asking::Asked { after: tenant.revision };
            actions.push(Action::Ask(Request::Claim { peer, claim, after, lease }));
        }
    }
}
