//! One peer: its session here, and how that stands to the claim in etcd.

use std::{cmp::Ordering, net::IpAddr, time::Instant};

use super::{
    Action, GRACE, Hello, Known, LEASE, Order, SessionId, Why,
    suspension::{Suspension, UNHEARD},
};
use crate::identity::PublicKey;

/// A peer that has a session here, or a claim in etcd.
#[derive(Debug, Default)]
pub(super) struct Tenant {
    pub(super) known: Option<Known>,
    /// The revision that made it so.
    pub(super) revision: i64,
    pub(super) session: Option<Session>,
    pub(super) asking: Asking,
}

/// A request to etcd. One for each peer is under way at most, and what it has done is known when etcd tells of the
/// change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asking {
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
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) hello: Hello,
    pub(super) client: Option<IpAddr>,
    pub(super) heard: Instant,
    /// Whether its routes are gone until the client is heard.
    pub(super) suspension: Suspension,
    /// Whether its claim was in etcd.
    pub(super) is_claimed: bool,
    /// Another server has the client; it is served until then.
    pub(super) leaves_at: Option<Instant>,
}

impl Session {
    /// Whether its client was not heard for as long as a lease lasts.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= LEASE
    }

    /// Whether its client was not heard although it was asked.
    pub(super) fn is_unheard(&self, asked_since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(self.heard.max(asked_since)) >= UNHEARD
    }

    /// Its routes go. Those of a session that has left are gone.
    pub(super) fn suspend(&mut self, peer: PublicKey, now: Instant, actions: &mut Vec<Action>) {
        if self.leaves_at.is_none() && self.suspension.begin(now) {
            actions.push(Action::Do(Order::Suspend { peer, session: self.id }));
        }
    }

    /// Its client is there, so its routes may come back; `etcd`: since when that is heard. That etcd knows of no other
    /// server which has the client does not suffice: that one may not have reached etcd yet.
    pub(super) fn hear(
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

/// How the session here stands to the claim in etcd.
pub(super) enum Standing {
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
    pub(super) fn standing(&self, server: PublicKey, now: Instant) -> Standing {
        let (Some(session), Some(Known { claim, lease })) = (&self.session, &self.known) else {
            return Standing::Later;
        };
        if claim.holder == server {
            let is_ours = claim.hello == Some(session.hello);
            return if is_ours { Standing::Ours { lease: *lease } } else { Standing::Later };
        }
        match claim.hello.and_then(|hello| session.hello.order(hello)) {
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
    pub(super) fn yield_session(
        &mut self,
        peer: PublicKey,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (Some(session), Some(known)) = (&mut self.session, &self.known) else { return };
        if session.leaves_at.is_some() {
            return;
        }
        let id = session.id;
        session.suspension.forgo();
        actions.push(Action::Do(Order::Withdraw { peer, session: id }));
        if known.claim.hello.is_some_and(|hello| hello.process != session.hello.process) {
            let why = Why::Displaced(known.claim.client);
            actions.push(Action::Do(Order::Close { peer, session: id, why }));
            self.session = None;
        } else {
            session.leaves_at = Some(now + GRACE);
        }
    }

    /// The revision of the claim; 0 if there is none.
    pub(super) fn revision_of_claim(&self) -> i64 {
        if self.known.is_some() { self.revision } else { 0 }
    }
}
