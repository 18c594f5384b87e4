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
//! Among processes, and for a client that does not number its hellos, the claim that came last counts.

mod suspension;
#[cfg(test)]
mod tests;

use std::{
    cmp::Ordering,
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::suspension::{Suspension, UNHEARD};
use crate::{identity::PublicKey, wire::foreign::Foreign};

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

/// A session of this server, see [`quinn::Connection::stable_id`].
pub(crate) type SessionId = usize;

/// What a client said of itself in its hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its process.
    #[serde(default, rename = "instance")]
    pub(crate) process: Option<u64>,
    /// Which of the hellos of its process it is: a later one has a larger number.
    #[serde(default, rename = "hello")]
    pub(crate) number: Option<u64>,
}

/// The value at `sessions/KEY`: a server has the session of this peer. The key ends with the server's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The server's key.
    pub(crate) holder: PublicKey,
    /// What the server is called.
    pub(crate) name: Foreign,
    /// Grows with each claim on this peer's session, as far as the server that makes it knows.
    pub(crate) epoch: u64,
    /// What the client said.
    #[serde(flatten)]
    pub(crate) hello: Hello,
    /// Where the client was then.
    pub(crate) client: Option<IpAddr>,
}

/// A claim as etcd has it, and the lease that it ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) claim: Claim,
    pub(crate) lease: i64,
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A session begins here, and takes the place of the one before.
    Began { peer: PublicKey, session: SessionId, hello: Hello, client: Option<IpAddr> },
    /// It is over.
    Ended { peer: PublicKey, session: SessionId },
    /// Its client was heard.
    Heard { peer: PublicKey, session: SessionId },
    /// We have this lease, at least until then.
    Lease { id: i64, ends: Instant },
    /// etcd has these claims and no others, each put by a revision, and says what changes after `revision`.
    All { revision: i64, claims: Vec<(PublicKey, i64, Known)> },
    /// By this revision etcd has this claim on the peer's session, or none. They come in order.
    Changed { peer: PublicKey, revision: i64, known: Option<Known> },
    /// etcd does not say what changes any more.
    Away,
    /// etcd answered to a [`Request`].
    Answered(PublicKey, Answer),
    /// Some time has passed.
    Tick,
}

/// What became of a request to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done, with this revision.
    Done(i64),
    /// Somebody was faster.
    Beaten,
    /// There was no answer: it may have been done.
    Unclear,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// By etcd, which answers with [`Event::Answered`].
    Ask(Request),
    /// By this server.
    Do(Order),
}

/// What etcd is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Put the claim, if what is there was put by the revision `after`; 0: if nothing is.
    Claim { peer: PublicKey, claim: Claim, after: i64, lease: i64 },
    /// Delete our claim, if it is still the one of this revision.
    Release { peer: PublicKey, revision: i64 },
}

/// What this server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The session's routes go: another server has the peer.
    Withdraw { peer: PublicKey, session: SessionId },
    /// They go, since another server may have the peer: neither etcd nor the client is heard.
    Suspend { peer: PublicKey, session: SessionId },
    /// They come back.
    Restore { peer: PublicKey, session: SessionId },
    /// The session's connection is closed; it has no routes any more.
    Close { peer: PublicKey, session: SessionId, why: Why },
    /// Another server has the peer's session, or none has any more.
    Elsewhere { peer: PublicKey, holder: Option<Claim> },
}

impl Order {
    /// Whom it concerns.
    pub(crate) fn peer(&self) -> PublicKey {
        match self {
            Self::Withdraw { peer, .. }
            | Self::Suspend { peer, .. }
            | Self::Restore { peer, .. }
            | Self::Close { peer, .. }
            | Self::Elsewhere { peer, .. } => *peer,
        }
    }
}

/// Why a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The client has its session at another server.
    TakenOver,
    /// Another process with the client's key has, which is at this address.
    Displaced(Option<IpAddr>),
    /// Neither etcd nor the client is heard.
    CutOff,
}

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

/// A peer that has a session here, or a claim in etcd.
#[derive(Debug, Default)]
struct Tenant {
    known: Option<Known>,
    /// The revision that made it so.
    revision: i64,
    session: Option<Session>,
    asking: Asking,
}

/// A request to etcd. One for each peer is under way at most, and what it has done is known when etcd tells of the
/// change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asking {
    #[default]
    Nothing,
    /// Not answered. It depends on this revision.
    Asked { after: i64 },
    /// There will be news of this revision or a later one; after a while nobody waits for them.
    Answered { revision: i64, until: Instant },
    /// It failed, and is made again then.
    Again { at: Instant },
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    hello: Hello,
    client: Option<IpAddr>,
    heard: Instant,
    /// Whether its routes are gone until the client is heard.
    suspension: Suspension,
    /// Whether its claim was in etcd.
    is_claimed: bool,
    /// Another server has the client; it is served until then.
    leaves_at: Option<Instant>,
}

impl Known {
    /// The claim, if another server than this one holds it.
    fn elsewhere(&self, server: PublicKey) -> Option<&Claim> {
        Some(&self.claim).filter(|claim| claim.holder != server)
    }
}

impl Session {
    /// Whether its client was not heard for as long as a lease lasts.
    fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= LEASE
    }

    /// Whether its client was not heard although it was asked.
    fn is_unheard(&self, asked_since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(self.heard.max(asked_since)) >= UNHEARD
    }

    /// Its routes go. Those of a session that has left are gone.
    fn suspend(&mut self, peer: PublicKey, now: Instant, actions: &mut Vec<Action>) {
        if self.leaves_at.is_none() && self.suspension.begin(now) {
            actions.push(Action::Do(Order::Suspend { peer, session: self.id }));
        }
    }

    /// Its client is there, so its routes may come back; `etcd`: since when that is heard. That etcd knows of no other
    /// server which has the client does not suffice: that one may not have reached etcd yet.
    fn hear(
        &mut self,
        peer: PublicKey,
        etcd: Option<Instant>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.heard = now;
        if self.leaves_at.is_none() && self.suspension.hear(etcd, now) {
            actions.push(Action::Do(Order::Restore { peer, session: self.id }));
        }
    }
}

impl Hello {
    /// Which of the two is the later one, if they say.
    fn order(self, other: Self) -> Option<Ordering> {
        let is_same = self.process.is_some() && self.process == other.process;
        self.number.zip(other.number).filter(|_| is_same).map(|(own, other)| own.cmp(&other))
    }

    /// Whether both are known to be of different processes.
    fn is_of_another_process(self, other: Self) -> bool {
        matches!((self.process, other.process), (Some(own), Some(other)) if own != other)
    }
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
                known.claim.holder == self.server && known.claim.hello == session.hello;
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
            let (hello, client) = (session.hello, session.client);
            let (holder, name, after) =
                (self.server, self.name.clone(), tenant.revision_of_claim());
            let claim = Claim { holder, name, epoch, hello, client };
            tenant.asking = Asking::Asked { after: tenant.revision };
            actions.push(Action::Ask(Request::Claim { peer, claim, after, lease }));
        }
    }
}

/// How the session here stands to the claim in etcd.
enum Standing {
    /// The claim is that of this session.
    Ours { lease: i64 },
    /// There is no claim, or the session began after it.
    Later,
    /// Another server has the client.
    Earlier,
    /// Our own claim is under way, and what becomes of it decides.
    Unsettled,
}

impl Tenant {
    fn standing(&self, server: PublicKey, now: Instant) -> Standing {
        let (Some(session), Some(Known { claim, lease })) = (&self.session, &self.known) else {
            return Standing::Later;
        };
        if claim.holder == server {
            let is_ours = claim.hello == session.hello;
            return if is_ours { Standing::Ours { lease: *lease } } else { Standing::Later };
        }
        match session.hello.order(claim.hello) {
            Some(Ordering::Greater) => Standing::Later,
            Some(Ordering::Less) => Standing::Earlier,
            // One that left stays so.
            _ if session.is_claimed || session.leaves_at.is_some() => Standing::Earlier,
            _ if self.asking != Asking::Nothing => Standing::Unsettled,
            _ if session.suspension.is_on() && session.is_unheard(session.heard, now) => {
                Standing::Earlier
            }
            _ if session.is_silent(now) => Standing::Earlier,
            _ => Standing::Later,
        }
    }

    /// Another server has the client.
    fn yield_session(&mut self, peer: PublicKey, now: Instant, actions: &mut Vec<Action>) {
        let (Some(session), Some(known)) = (&mut self.session, &self.known) else { return };
        if session.leaves_at.is_some() {
            return;
        }
        let id = session.id;
        session.suspension.forgo();
        actions.push(Action::Do(Order::Withdraw { peer, session: id }));
        if session.hello.is_of_another_process(known.claim.hello) {
            let why = Why::Displaced(known.claim.client);
            actions.push(Action::Do(Order::Close { peer, session: id, why }));
            self.session = None;
        } else {
            session.leaves_at = Some(now + GRACE);
        }
    }

    /// The revision of the claim; 0 if there is none.
    fn revision_of_claim(&self) -> i64 {
        if self.known.is_some() { self.revision } else { 0 }
    }
}
