//! The two pumps of a connection: queue to datagrams, and datagrams to packets.

mod alarm;
mod downlink;
mod uplink;

use std::sync::{Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use tokio::sync::Notify;

pub(crate) use self::{downlink::downlink, uplink::uplink};
use super::repair::{Exchanges, Moment, Receiver, Sender};
use crate::{clock, quic::congestion::CongestionHandle};

/// What both pumps of a session share: what was negotiated, and the state of the repair.
#[derive(Debug)]
pub(crate) struct Session {
    unchecked: bool,
    repair: Option<Repair>,
}

/// Before the greeting nothing is negotiated.
pub(crate) static UNGREETED: Session = Session { unchecked: false, repair: None };

#[derive(Debug)]
struct Repair {
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
    exchanges: Mutex<Exchanges>,
    /// Wakes the uplink: something is to be sent again, or asked.
    wanted: Notify,
    /// Tells what arrived, and when a path began.
    congestion: CongestionHandle,
}

impl Session {
    /// A session with a peer that takes packets whose checksum it must complete if `unchecked`, and numbered packets
    /// if `repair`. `congestion` observes its connection.
    pub(crate) fn new(unchecked: bool, repair: bool, congestion: &CongestionHandle) -> Self {
        Self { unchecked, repair: repair.then(|| Repair::new(congestion.clone())) }
    }

    /// The path died and another one carries the connection, or it was silent: what was lost with it is sent again, and
    /// the other side does the same.
    pub(crate) fn resume(&self) {
        if let Some(repair) = &self.repair {
            repair.exchanges().begin(clock::now());
            repair.wanted.notify_one();
        }
    }
}

impl Repair {
    fn new(congestion: CongestionHandle) -> Self {
        Self {
            sender: Mutex::default(),
            receiver: Mutex::default(),
            exchanges: Mutex::default(),
            wanted: Notify::default(),
            congestion,
        }
    }

    fn exchanges(&self) -> MutexGuard<'_, Exchanges> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sender; it knows what was acknowledged so far.
    fn sender(&self) -> MutexGuard<'_, Sender> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.acknowledged(self.congestion.newest_acknowledged(), self.congestion.began());
        sender
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn moment(connection: &Connection) -> Moment {
    Moment { now: clock::now(), rtt: connection.rtt() }
}
