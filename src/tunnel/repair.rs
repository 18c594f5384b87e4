//! Repair: packets that a network loses are sent once more, and the receiver keeps their flow in order meanwhile.
//!
//! ```text
//!  Sender     number ─▶ ring ─┐   request ─▶ repeat      silence ─▶ the last packet once more, or its number
//!                             ▼      ▲                      ▼
//!  Receiver               gap? ──▶ ask    hold what follows in the flow ─▶ deliver in order, or give up
//!
//!  a path dies                 client "I have all below n but ..." ─▶ server repeats, "I have ..." ─▶ client repeats
//! ```
//!
//! One number space serves all flows, so that the next packet of any flow shows a gap. `back` in front of each
//! packet names the packet that must be delivered before it, the last one of the same flow, so that no flow waits
//! for another one. A packet that waits for none is delivered at once.
//!
//! Both sides are pure: they are handed the time and the round trip (`Moment`). Their state belongs to a session,
//! not to a connection. All of it is bounded, whatever the other side says.

mod exchange;
mod gaps;
mod proof;
mod receiver;
mod sender;

use std::time::{Duration, Instant};

#[cfg(any(test, fuzzing))]
pub(crate) use self::receiver::MEMORY;
pub(crate) use self::{
    exchange::{Exchanges, Question},
    receiver::Events,
};
pub use self::{receiver::Receiver, sender::Sender};

/// The time, and how long a packet and its acknowledgement take at present.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The present.
    pub now: Instant,
    /// The round trip.
    pub rtt: Duration,
}

#[cfg(test)]
mod tests;
