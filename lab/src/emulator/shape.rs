//! How a link behaves, in numbers.

use std::time::Duration;

/// What one direction of a link does to the frames on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkShape {
    /// One-way delay after the queue.
    pub delay: Duration,
    /// Maximum of additional delay, uniformly distributed from zero to this. A frame never overtakes another.
    pub jitter: Duration,
    /// The fraction of frames that are lost, from 0.0 to 1.0. Address resolution and multicast are exempt: their
    /// retries after 1 s would hide what is measured, and their irregular timing would change which other packets
    /// a seed loses.
    pub loss: f64,
    /// Rate in bits per second; `None` for no limit.
    pub rate: Option<u64>,
    /// Maximum of queueing delay that `rate` may cause; a frame that would wait longer is dropped.
    pub queue: Duration,
    /// The longest packet in bytes without its Ethernet header; a longer one is dropped.
    pub mtu: usize,
    /// Whether UDP is dropped and everything else passes, as in networks that let only web pages through.
    pub blocks_udp: bool,
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
            blocks_udp: false,
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
