//! How good a path is: what its own packets show, and what bursts of echoes find.
//!
//! ```text
//!  counters ─▶ Watch ─▶ symptoms ─▶ burst over the active path and its standbys ─▶ Finding: clean, unsure, bad
//! ```
//! The tunnel's own packets show *symptoms* at no cost. A round trip or a rate is a measurement, and is believed.
//! Losses are not: a network that reorders makes QUIC count packets as lost that arrive. So symptoms of loss cause a
//! *burst* of small echoes over the path, whose answers are counted. Standbys carry nothing, and are measured by a
//! burst in any case, so that paths are compared by the same measure.
//!
//! Few packets prove little: a share of lost packets is judged by the lower bound of its confidence interval.

mod watch;

use std::{fmt, time::Duration};

pub(crate) use self::watch::{Figures, Look, Watch};
use super::Reason;

/// A path with a lower rate than this, in bits per second, carries too little if it carried [`FALL`] times as much before.
const NARROW: u64 = 1_000_000;
/// A rate that is less than before by this factor has fallen: a transfer that goes on varies less while its network stays the same.
const FALL: u64 = 8;
/// A path with a lower rate than this, in bits per second, carries too little whatever it carried before.
pub(crate) const VERY_NARROW: u64 = 300_000;

/// The quantile of the normal distribution for a one-sided confidence of 95 %.
const Z: f64 = 1.64;
/// The least share of lost packets that causes a burst.
const SUSPICIOUS: f64 = 0.03;
/// The least share of echoes lost, in either direction, for which a path is bad: some 5 % in each.
const BAD: f64 = 0.08;
/// The same if QUIC counts as many losses.
const BAD_WITH_SYMPTOMS: f64 = 0.06;
/// The least share that QUIC must count if no burst could be made: even its handshake was lost.
const BAD_WITHOUT_BURST: f64 = 0.15;
/// Where more than this is lost of what is sent, and the rate fell, a queue overflows.
const MOST: f64 = 0.5;
/// Fewer echoes than this do not show that a path is good.
const ENOUGH: u32 = 8;
/// With one lost among fewer than these, a path with such symptoms is not shown to be good either.
const ENOUGH_WITH_SYMPTOMS: u32 = 40;
/// A path that loses this percentage in each direction is hardly of use.
const AWFUL: u8 = 20;

/// Echoes of a burst, the size in bytes of large ones, what is around an echo (QUIC, UDP and IP), and what is acknowledged.
const SMALL: usize = 24;
const LARGE: usize = 20;
pub(crate) const LARGE_SIZE: usize = 1100;
pub(crate) const OVERHEAD: usize = 64;
const ACKNOWLEDGEMENTS: usize = 800;

/// What a lost packet costs, and how many bits an exchange has: by these, paths with different faults are compared.
const LOST: Duration = Duration::from_secs(1);
const EXCHANGE: f64 = 200_000.0;
/// A path with a fault is left for one, with a fault or not, if it costs so many times as much as that, or more.
const WORSE: u32 = 2;

/// A lower bound of the share of lost packets, from the number of `lost` among `all` (Wilson's score interval).
fn least_share(lost: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    let (n, z2) = (all as f64, Z * Z);
    let share = (lost as f64 / n).min(1.0);
    let centre = share + z2 / (2.0 * n);
    let margin = Z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    ((centre - margin) / (1.0 + z2 / n)).max(0.0)
}

/// A path whose shortest round trip was `floor` is slow from here on.
fn slow(floor: Duration) -> Duration {
    3 * floor + Duration::from_millis(50)
}

/// A slow path is good again below this.
pub(crate) fn fast_again(floor: Duration) -> Duration {
    2 * floor + Duration::from_millis(30)
}

/// Whether a rate is less than what it was lately by a factor of [`FALL`]. A keystroke now and then is no rate that could fall.
fn has_fallen(rate: u64, lately: f64) -> bool {
    lately > NARROW as f64 && ((rate * FALL) as f64) < lately
}

/// A path that carried `before` bits per second carries enough again from this rate on: what undoes a fall by [`FALL`], but no
/// more than [`NARROW`], since many a good uplink has no more; twice what it carried in any case.
fn wide_again(before: u64) -> u64 {
    (FALL * before).clamp(VERY_NARROW, NARROW).max(2 * before)
}

/// A path with such a round trip is not left because of it for one with the round trip `other`.
fn comparable(other: Duration) -> Duration {
    other * 3 / 2 + Duration::from_millis(25)
}

/// What a round trip says of a standby, beside those of the active path.
#[must_use]
pub(crate) fn standby_fault(
    rtt: Duration,
    floor: Option<Duration>,
    active: Option<Duration>,
) -> Option<Fault> {
    let floor = floor?;
    (rtt > slow(floor) && rtt > comparable(active?)).then_some(Fault::Slow { rtt, floor })
}

/// What the tunnel's own packets show of the active path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Symptoms {
    /// A lower bound of the share of lost packets, in the worse direction.
    pub(crate) loss: f64,
    /// The round trip, without what the tunnel's own queue on the path explains.
    pub(crate) rtt: Option<Duration>,
    /// What the path carries, in bits per second, if more is asked of it.
    pub(crate) rate: Option<u64>,
    /// To how many bits per second it fell within seconds, in either direction. If the round trip grew as well, or most
    /// packets are lost, a queue stands somewhere: more is asked.
    pub(crate) fell_to: Option<u64>,
    /// What it carries at the moment, in bits per second, if that is little and something waits, or little of what it
    /// carried. This is not enough to leave a path. One that is left then, for whatever reason, may only be full.
    pub(crate) starved: Option<u64>,
}

/// What kind of burst is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Burst {
    /// Small echoes: loss and round trip.
    Small,
    /// A few large ones at once: how fast the path carries them.
    Large,
    /// Both, the large ones first.
    Both,
}

impl Burst {
    /// Large echoes, and small ones.
    #[must_use]
    pub(crate) fn echoes(self) -> [usize; 2] {
        match self {
            Self::Small => [0, SMALL],
            Self::Large => [LARGE, 0],
            Self::Both => [LARGE, SMALL],
        }
    }

    /// What it takes in each direction, about.
    #[must_use]
    pub(crate) fn bytes(self) -> usize {
        let [large, small] = self.echoes();
        large * (LARGE_SIZE + OVERHEAD) + small * (size_of::<u64>() + OVERHEAD) + ACKNOWLEDGEMENTS
    }
}

/// What bursts found out about a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Echoes whose answer should have come.
    pub(crate) sent: u32,
    /// Answers that came.
    pub(crate) answered: u32,
    /// Their median round trip; of large ones alone the shortest.
    pub(crate) rtt: Option<Duration>,
    /// What the path carried of large echoes, in bits per second.
    pub(crate) rate: Option<u64>,
}

impl Sample {
    /// Takes in a newer sample of the same path.
    pub(crate) fn add(&mut self, newer: Self) {
        let Self { sent, answered, rtt, rate } = newer;
        self.sent += sent;
        self.answered += answered;
        self.rtt = rtt.or(self.rtt);
        self.rate = rate.or(self.rate);
    }

    fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.answered)
    }

    /// How long an exchange takes over this standby, about, if it has such a fault. Beside an active path that carries too
    /// little its own rate counts as well. That no echo of a few is lost does not mean that none ever is.
    fn cost(&self, fault: Option<Fault>, needs_rate: bool) -> Option<Duration> {
        let rtt = self.rtt.filter(|_| self.sent >= ENOUGH)?;
        let lost = (f64::from(self.lost()) + 0.5) / (f64::from(self.sent) + 1.0);
        let rate = match fault {
            // What shows now may be a burst that a limit lets pass.
            Some(Fault::Narrow(rate)) => Some(rate),
            Some(Fault::Lossy(_) | Fault::Slow { .. }) | None if needs_rate => Some(self.rate?),
            Some(Fault::Lossy(_) | Fault::Slow { .. }) | None => None,
        };
        Some(rate.map_or(rtt, |rate| Fault::Narrow(rate).cost(rtt)) + LOST.mul_f64(lost))
    }

    /// The percentage lost in each direction, if both lose alike.
    fn percent(&self) -> u8 {
        let answered = f64::from(self.answered.min(self.sent)) / f64::from(self.sent.max(1));
        ((1.0 - answered.sqrt()) * 100.0).round() as u8
    }
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It loses this percentage of the packets.
    Lossy(u8),
    /// Its round trip was shorter before.
    Slow {
        /// The present one.
        rtt: Duration,
        /// The shortest one.
        floor: Duration,
    },
    /// It carries so many bits per second, and more is asked of it.
    Narrow(u64),
}

/// How bad a path is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grade {
    Clean,
    Bad,
    Awful,
}

impl Fault {
    /// How much it matters.
    #[must_use]
    pub(crate) fn grade(self) -> Grade {
        match self {
            Self::Lossy(percent) if percent >= AWFUL => Grade::Awful,
            Self::Lossy(_) | Self::Slow { .. } | Self::Narrow(_) => Grade::Bad,
        }
    }

    /// Why a path with this fault is left.
    #[must_use]
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Lossy(_) => Reason::Lossy,
            Self::Slow { .. } => Reason::Slow,
            Self::Narrow(_) => Reason::Narrow,
        }
    }

    /// The fault that is remembered of a path that is left with this one, whose packets showed these symptoms. A queue that
    /// overflows loses and delays packets, and is empty as soon as nothing is asked of it.
    #[must_use]
    pub(crate) fn under(self, symptoms: &Symptoms) -> Self {
        match (self, symptoms.starved) {
            (Self::Lossy(_) | Self::Slow { .. }, Some(rate)) => Self::Narrow(rate),
            (Self::Lossy(_) | Self::Slow { .. } | Self::Narrow(_), _) => self,
        }
    }

    /// How long an exchange takes on a path with this fault and this round trip, about.
    fn cost(self, rtt: Duration) -> Duration {
        match self {
            Self::Lossy(percent) => {
                let arrives = 1.0 - f64::from(percent.min(100)) / 100.0;
                rtt + LOST.mul_f64(1.0 - arrives * arrives)
            }
            Self::Slow { rtt, .. } => rtt,
            Self::Narrow(rate) => rtt + Duration::from_secs_f64(EXCHANGE / rate.max(1) as f64),
        }
    }

    /// Whether a path with this fault and the round trip `rtt` is much worse than a standby with this sample, which may be judged
    /// with a fault as well.
    #[must_use]
    pub(crate) fn is_worse_than(
        self,
        rtt: Duration,
        standby: &Sample,
        other: Option<Self>,
    ) -> bool {
        let cost = standby.cost(other, matches!(self, Self::Narrow(_)));
        cost.is_some_and(|cost| self.cost(rtt) >= WORSE * cost)
    }

    /// Whether a path with this fault is worth leaving for a standby with this sample.
    #[must_use]
    pub(crate) fn is_cured_by(self, standby: &Sample) -> bool {
        let Some(rtt) = standby.rtt.filter(|_| standby.sent >= ENOUGH) else { return false };
        let is_clean = Symptoms::default().finding(Some(standby)) == Finding::Clean;
        match self {
            Self::Lossy(percent) => {
                2 * standby.percent() <= percent && rtt < Duration::from_millis(500)
            }
            Self::Slow { rtt: present, .. } => {
                is_clean && 2 * rtt + Duration::from_millis(50) <= present
            }
            Self::Narrow(present) => {
                is_clean && standby.rate.is_some_and(|rate| rate >= NARROW.max(4 * present))
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lossy(percent) => write!(f, "loses {percent} %"),
            Self::Slow { rtt, floor } => {
                write!(f, "takes {} ms instead of {}", rtt.as_millis(), floor.as_millis())
            }
            Self::Narrow(rate) => {
                write!(f, "carries {:.1} Mbit/s, more is asked", *rate as f64 / 1e6)
            }
        }
    }
}

/// What a burst says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Clean,
    /// Another burst tells.
    Unsure,
    Bad(Fault),
}

impl Symptoms {
    /// What a path is taken for that seemed dead with these symptoms: over one that is dead nothing comes at all.
    #[must_use]
    pub(crate) fn suspicion(&self) -> Option<Fault> {
        let lossy = self.is_lossy().then_some(Fault::Lossy((self.loss * 100.0) as u8));
        lossy.or_else(|| self.starved.filter(|rate| *rate > 0).map(Fault::Narrow))
    }

    /// Whether the losses are worth a burst.
    #[must_use]
    pub(crate) fn is_lossy(&self) -> bool {
        self.loss > SUSPICIOUS
    }

    /// Whether so many are lost that no burst is needed to believe it.
    #[must_use]
    pub(crate) fn is_surely_lossy(&self) -> bool {
        self.loss > BAD_WITHOUT_BURST
    }

    /// What is wrong, as far as it needs no burst, with a path whose shortest round trip was `floor`.
    #[must_use]
    pub(crate) fn fault(&self, floor: Option<Duration>) -> Option<Fault> {
        // What is lost was asked, too, and no reordering looks like that.
        let overflowed = self.fell_to.filter(|_| self.loss > MOST);
        let narrow = self.rate.or(overflowed).map(Fault::Narrow);
        narrow.or_else(|| {
            let (rtt, floor) = (self.rtt?, floor?);
            let slow = self.fell_to.map_or(Fault::Slow { rtt, floor }, Fault::Narrow);
            (rtt > self::slow(floor)).then_some(slow)
        })
    }

    /// What losses mean together with a burst over the same path; without one it failed.
    #[must_use]
    pub(crate) fn finding(&self, sample: Option<&Sample>) -> Finding {
        let Some(sample) = sample else {
            let fault = self.suspicion().filter(|_| self.is_surely_lossy());
            return fault.map_or(Finding::Unsure, Finding::Bad);
        };
        let least = least_share(sample.lost().into(), sample.sent.into());
        let (limit, enough) = match self.loss > BAD {
            true => (BAD_WITH_SYMPTOMS, ENOUGH_WITH_SYMPTOMS),
            false => (BAD, ENOUGH),
        };
        match sample.lost() {
            _ if least > limit => Finding::Bad(Fault::Lossy(sample.percent())),
            0 if sample.sent >= ENOUGH => Finding::Clean,
            1 if sample.sent >= enough => Finding::Clean,
            _ => Finding::Unsure,
        }
    }
}

/// Whether a path that was left for this fault may be used again, by a sample of it; without one a clean sample suffices.
/// `floor` is its shortest round trip, and `active` that of the active path.
#[must_use]
pub(crate) fn is_over(
    fault: Option<Fault>,
    sample: &Sample,
    floor: Option<Duration>,
    active: Option<Duration>,
) -> bool {
    let Some(rtt) = sample.rtt else { return false };
    let limit = match fault {
        Some(Fault::Slow { floor, .. }) => Some(fast_again(floor)),
        Some(Fault::Lossy(_) | Fault::Narrow(_)) | None => floor.map(slow),
    };
    let is_fast = limit.is_none_or(|limit| rtt < limit.max(active.map_or(limit, comparable)));
    let is_wide = match fault {
        Some(Fault::Narrow(before)) => sample.rate.is_some_and(|rate| rate >= wide_again(before)),
        Some(Fault::Lossy(_) | Fault::Slow { .. }) | None => true,
    };
    is_fast && is_wide && Symptoms::default().finding(Some(sample)) == Finding::Clean
}

#[cfg(test)]
mod tests;
