//! The two pumps of a connection: queue to datagrams, and datagrams to packets.

mod alarm;
mod downlink;
mod spacing;
mod standby;
mod uplink;

use std::{
    sync::{
        MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::Notify;

use self::standby::Standby;
pub(crate) use self::{
    downlink::downlink,
    standby::{KEPT, UNMETERED},
    uplink::uplink,
};
use super::{
    acks::Thinning,
    counters::Counters,
    pool::Share,
    queue::Queue,
    repair::{Exchanges, Moment, Receiver, Sender},
};
use crate::{
    clock,
    mutex::Mutex,
    quic::congestion::CongestionHandle,
    wire::datagram::{decode_offer, is_copy},
};

/// What both pumps of a session share: what was negotiated, and the state of the repair.
#[derive(Debug)]
pub(crate) struct Session {
    unchecked: bool,
    repair: Option<Repair>,
    /// Whether another session takes the packets of the queue.
    is_retired: AtomicBool,
    retired: Notify,
}

/// Before the greeting nothing is negotiated.
pub(crate) static UNGREETED: Session = Session {
    unchecked: false,
    repair: None,
    is_retired: AtomicBool::new(false),
    retired: Notify::const_new(),
};

#[derive(Debug)]
struct Repair {
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
    exchanges: Mutex<Exchanges>,
    /// Wakes the uplink: something is to be sent again, or asked.
    wanted: Notify,
    thinning: Mutex<Thinning>,
    /// Tells what arrived, and when a path began.
    congestion: CongestionHandle,
    /// If the other side takes copies.
    standby: Option<Standby>,
}

/// What was negotiated for a session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// The other side completes the checksums of packets that are left to it.
    pub(crate) unchecked: bool,
    /// It takes numbered packets.
    pub(crate) repair: bool,
    /// It takes copies of them over probe connections.
    pub(crate) copies: bool,
}

impl Session {
    /// A session on these terms. `congestion` observes its connection.
    pub(crate) fn new(terms: Terms, congestion: &CongestionHandle) -> Self {
        Self::sharing(Share::default, terms, congestion)
    }

    /// The same where `share` gives what is kept for repairs a part of the memory of all sessions.
    pub(crate) fn sharing(
        share: impl Fn() -> Share,
        terms: Terms,
        congestion: &CongestionHandle,
    ) -> Self {
        let Terms { unchecked, repair, copies } = terms;
        congestion.trust_requests(repair);
        let repair = repair.then(|| Repair::new(share, congestion.clone(), copies));
        let (is_retired, retired) = (AtomicBool::new(false), Notify::new());
        Self { unchecked, repair, is_retired, retired }
    }

    /// Another session takes the packets of the queue from here on. What this one has sent is still repaired.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Relaxed);
        self.retired.notify_one();
    }

    fn is_retired(&self) -> bool {
        self.is_retired.load(Relaxed)
    }

    /// Waits until the queue has packets for this session. Cancel safe.
    async fn supplied(&self, queue: &Queue) {
        while !self.is_retired() {
            // A waiter would be entered into a list for each batch.
            if queue.is_ready() {
                return;
            }
            tokio::select! {
                // First: the session that follows gets the wake-up that this one leaves behind.
                biased;
                () = self.retired.notified() => {}
                () = queue.ready() => return,
            }
        }
        std::future::pending().await
    }

    fn standby(&self) -> Option<&Standby> {
        self.repair.as_ref()?.standby.as_ref()
    }

    /// Sends copies over this probe connection from here on, and takes them from there: so many bytes a minute each way.
    /// The other side learns of it if that is something else than before, or `again`. Without a connection there are no
    /// copies.
    pub(crate) fn use_standby(&self, standby: Option<(&Connection, u32)>, again: bool) {
        let Some(repair) = &self.repair else { return };
        match (&repair.standby, standby) {
            (Some(known), Some((connection, per_minute))) => {
                if known.use_over(connection, per_minute) || again {
                    known.offer(clock::now());
                    // The uplink makes the offer again from here on.
                    repair.wanted.notify_one();
                }
            }
            (Some(known), None) => known.forget(),
            (None, _) => {}
        }
    }

    /// Whether copies can be sent now.
    pub(crate) fn has_standby(&self) -> bool {
        self.standby().is_some_and(|standby| standby.is_ready(clock::now()))
    }

    /// Takes a datagram that came over a probe connection if it is a copy.
    pub(crate) fn take_copy(&self, datagram: &Bytes) -> bool {
        let Some(standby) = self.standby().filter(|_| is_copy(datagram)) else { return false };
        standby.arrive(datagram.clone());
        true
    }

    /// The same on the server, which sends its own copies where it heard the client last.
    pub(crate) fn take_copy_over(&self, connection: &Connection, datagram: &Bytes) {
        let Some(standby) = self.standby() else { return };
        if let Some(per_minute) = decode_offer(datagram) {
            standby.use_over(connection, per_minute.min(UNMETERED));
        } else if self.take_copy(datagram) {
            standby.heard_over(connection);
        }
    }

    /// The other side of this connection is gone without a word: what it may not have got goes into the queue again, in
    /// front of what waits.
    pub(crate) fn give_back(&self, connection: &Connection, queue: &Queue, counters: &Counters) {
        let Some(repair) = &self.repair else { return };
        let moment = moment(connection);
        let packets = repair.sender(moment).take_unproven(moment.now);
        counters.repeated(packets.len() as u64);
        counters.resumed(packets.len() as u64);
        queue.put_back(packets.into());
    }

    /// The path was silent: what was lost with it is sent again, and the other side does the same.
    pub(crate) fn resume(&self) {
        if let Some(repair) = &self.repair {
            repair.resume();
        }
    }

    /// The same when it died and another one carries the connection.
    pub(crate) fn resume_elsewhere(&self) {
        if let Some(repair) = &self.repair {
            repair.exchanges().begin_anew(clock::now());
            repair.wanted.notify_one();
        }
    }
}

impl Repair {
    fn new(share: impl Fn() -> Share, congestion: CongestionHandle, copies: bool) -> Self {
        Self {
            sender: Mutex::new(Sender::sharing(share())),
            receiver: Mutex::new(Receiver::sharing(share())),
            exchanges: Mutex::default(),
            wanted: Notify::default(),
            thinning: Mutex::default(),
            congestion,
            standby: copies.then(Standby::default),
        }
    }

    fn resume(&self) {
        self.exchanges().begin(clock::now());
        self.wanted.notify_one();
    }

    fn exchanges(&self) -> MutexGuard<'_, Exchanges> {
        self.exchanges.lock()
    }

    /// The standby, if the path in use is late, or the other side takes it for that.
    fn late_standby(&self, now: Instant) -> Option<&Standby> {
        let standby = self.standby.as_ref()?;
        let is_late = || self.congestion.late_at().is_some_and(|at| at <= now);
        ((standby.is_needed() || is_late()) && standby.is_ready(now)).then_some(standby)
    }

    /// The sender; it knows what was acknowledged so far.
    fn sender(&self, moment: Moment) -> MutexGuard<'_, Sender> {
        let mut sender = self.sender.lock();
        let (newest, began) = (self.congestion.newest_acknowledged(), self.congestion.began());
        if sender.acknowledged(newest, began, moment) {
            self.resume();
        }
        sender
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock()
    }

    fn thinning(&self) -> MutexGuard<'_, Thinning> {
        self.thinning.lock()
    }
}

fn moment(connection: &Connection) -> Moment {
    Moment { now: clock::now(), rtt: connection.rtt() }
}
