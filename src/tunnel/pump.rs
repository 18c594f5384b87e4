//! The two pumps of a connection: queue to datagrams, and datagrams to packets.

mod alarm;
mod downlink;
mod uplink;

use std::sync::{Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use tokio::sync::Notify;

pub(crate) use self::{downlink::downlink, uplink::uplink};
use super::repair::{Moment, Receiver, Sender};
use crate::clock;

/// What both pumps of a session share: what was negotiated, and the state of the repair.
#[derive(Debug)]
pub(crate) struct Session {
    unchecked: bool,
    repair: Option<Repair>,
}

/// Before the greeting nothing is negotiated.
pub(crate) static UNGREETED: Session = Session { unchecked: false, repair: None };

#[derive(Debug, Default)]
struct Repair {
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
    /// Wakes the uplink: the other side misses something.
    wanted: Notify,
}

impl Session {
    /// A session with a peer that takes packets whose checksum it must complete if `unchecked`, and numbered packets
    /// if `repair`.
    pub(crate) fn new(unchecked: bool, repair: bool) -> Self {
        Self { unchecked, repair: repair.then(Repair::default) }
    }
}

impl Repair {
    fn sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn moment(connection: &Connection) -> Moment {
    Moment { now: clock::now(), rtt: connection.rtt() }
}
