//! How a link behaves, in numbers.

use std::time::Duration;

/// What one direction of a link does to the frames on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkShape {
    /// How long a frame takes, once it is its turn.
    pub delay: Duration,
    /// By how much more a frame may be late, evenly spread from nothing to this. A frame never
    /// overtakes another.
    pub jitter: Duration,
    /// How many of all frames are lost, from 0.0 to 1.0. Address resolution and whatever else goes
    /// to a group is spared: its one-second retries would hide what is to be measured, and it comes
    /// when the kernel likes, so that the same seed would lose other packets.
    pub loss: f64,
    /// Bits per second, `None` for as fast as this machine can.
    pub rate: Option<u64>,
    /// The longest wait for its turn that `rate` may cause; a frame that would wait longer is
    /// dropped.
    pub queue: Duration,
    /// The longest packet in bytes, Ethernet header not counted; a longer one vanishes.
    pub mtu: usize,
}

impl Default for LinkShape {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
            queue: Duration::from_millis(100),
            mtu: 1500,
        }
    }
}

impl LinkShape {
    /// A perfect link with this one-way delay.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// One end of an emulated link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end named first.
    Left,
    /// The end named second.
    Right,
}

/// A direction across an emulated link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the end named first; in a [`Scene`](crate::Scene) the uplink.
    LeftToRight,
    /// From the end named second; in a [`Scene`](crate::Scene) the downlink.
    RightToLeft,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::LeftToRight, Self::RightToLeft];
}
