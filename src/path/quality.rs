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

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use super::Reason;

/// From one look at the counters to the next.
const LOOK: Duration = Duration::from_millis(250);
/// Losses are counted over this time.
const WINDOW: Duration = Duration::from_secs(2);
/// A tunnel with no more packets than this in that time, each way, rests: keep-alives are such.
const FEW: u64 = 4;
/// Losses in this time after a switch may be those of the path before.
const SETTLE: Duration = Duration::from_secs(1);
/// The round trip is the shortest in so many looks with a sample, which are not older than this. Rarer ones show how
/// late a network that saves power answers, and not how slow it is.
const RTT_LOOKS: usize = 4;
const RTT_WINDOW: Duration = Duration::from_secs(2);
/// A queue that does not empty for so many looks means that more is asked than the path carries.
const RATE_LOOKS: usize = 5;
/// What is carried at the moment is counted between so many looks.
const MOMENT_LOOKS: usize = 3;
/// The queue stands if packets have always waited for so long.
const STANDING: Duration = Duration::from_millis(20);

/// A path with a lower rate than this, in bits per second, carries too little if it carried eight times as much before,
const NARROW: u64 = 1_000_000;
const FALL: u64 = 8;
/// What is left of the highest rate of the last seconds from one look to the next: an eighth after five seconds.
const FADING: f64 = 0.9;
/// and one with less than this in any case.
const VERY_NARROW: u64 = 300_000;
/// While the tunnel itself carries more than this, in bits per second, the queue on the path is likely its own: it
/// would form on any other path as well.
const BUSY: u64 = 2_000_000;
/// What such a queue may add to a round trip.
const OWN_QUEUE: Duration = Duration::from_millis(400);

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
/// Fewer echoes than this do not show that a path is good.
const ENOUGH: u32 = 8;
/// With one lost among fewer than these, a path with such symptoms is not shown to be good either.
const ENOUGH_WITH_SYMPTOMS: u32 = 40;
/// A path that loses this percentage in each direction is hardly of use.
const AWFUL: u8 = 20;

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

/// Whether a rate is less than what it was lately by a factor of [`FALL`].
fn has_fallen(rate: u64, lately: f64) -> bool {
    ((rate * FALL) as f64) < lately
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

/// Counters of the active path at one moment. All but the last two only grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) at: Instant,
    /// Packets that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Packets that QUIC takes for lost.
    pub(crate) lost: u64,
    /// Bytes that were acknowledged.
    pub(crate) sent_bytes: u64,
    /// Packets that arrived.
    pub(crate) received: u64,
    /// Packets from the other side that were missing.
    pub(crate) missing: u64,
    /// Bytes that arrived.
    pub(crate) received_bytes: u64,
    /// The shortest round trip since the last look.
    pub(crate) rtt: Option<Duration>,
    /// For how long packets have always waited to be sent.
    pub(crate) wait: Duration,
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
    /// To how many bits per second it fell within seconds, in either direction. If the round trip grew as well, a queue
    /// stands somewhere: more is asked.
    pub(crate) fell_to: Option<u64>,
    /// What it carries at the moment, in bits per second, if that is little and something waits, or little of what it
    /// carried. This is not enough to leave a path. One that is left then, for whatever reason, may only be full.
    pub(crate) starved: Option<u64>,
}

/// What people are shown of the active path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// The share of packets lost lately, up and down.
    pub(crate) loss: [Option<f64>; 2],
    /// Bits per second carried lately, up and down.
    pub(crate) rate: [u64; 2],
}

/// Watches the counters of the active path.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    looks: VecDeque<Look>,
    /// Round trips with the time of their look.
    rtts: VecDeque<(Instant, Duration)>,
    since: Option<Instant>,
    /// Nothing is looked at until something is sent.
    is_resting: bool,
    /// When something was, after a rest.
    woken: Option<Instant>,
    /// The highest rate of the path so far.
    best: u64,
    /// The highest rates of the last seconds, up and down.
    lately: [f64; 2],
}

impl Watch {
    /// The path is another.
    pub(crate) fn begin(&mut self, now: Instant) {
        *self = Self { since: Some(now), ..Self::default() };
    }

    /// When the next look is due.
    #[must_use]
    pub(crate) fn next_look(&self) -> Option<Instant> {
        if self.is_resting {
            return None;
        }
        Some(self.looks.back().map(|look| look.at).max(self.woken).or(self.since)? + LOOK)
    }

    /// Whether the tunnel is idle: the next look is due after [`Self::wake`] only.
    #[must_use]
    pub(crate) fn is_resting(&self) -> bool {
        self.is_resting
    }

    /// Something is sent.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.is_resting = false;
        self.woken = Some(now);
    }

    /// Takes in the counters; what they show.
    pub(crate) fn look(&mut self, look: Look) -> Symptoms {
        if self.since.is_some_and(|since| look.at < since + SETTLE) {
            // Counting begins with the last look of this time.
            self.looks.clear();
        }
        self.looks.push_back(look);
        while self.looks.get(1).is_some_and(|next| next.at + WINDOW <= look.at) {
            self.looks.pop_front();
        }
        self.rtts.extend(look.rtt.map(|rtt| (look.at, rtt)));
        while self.rtts.len() > RTT_LOOKS
            || self.rtts.front().is_some_and(|(at, _)| *at + RTT_WINDOW < look.at)
        {
            self.rtts.pop_front();
        }
        self.is_resting = self.is_quiet();
        let rate = self.rate();
        self.best = self.best.max(rate[0]);
        for (lately, rate) in self.lately.iter_mut().zip(rate) {
            *lately = (*lately * FADING).max(rate as f64);
        }
        Symptoms {
            loss: self.loss(),
            rtt: self.rtt(rate),
            rate: self.narrow(rate[0]),
            fell_to: self.fell_to(rate),
            starved: self.starved(),
        }
    }

    /// Whether hardly anything happened in the window.
    fn is_quiet(&self) -> bool {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else {
            return false;
        };
        self.looks.len() > 1
            && last.at >= first.at + WINDOW
            && last.acknowledged <= first.acknowledged + FEW
            && last.received <= first.received + FEW
            && (last.lost, last.missing) == (first.lost, first.missing)
    }

    /// What people are shown.
    #[must_use]
    pub(crate) fn figures(&self) -> Figures {
        let share = |(lost, all): (u64, u64)| (all > 0).then(|| lost as f64 / all as f64);
        Figures { loss: self.losses().map(share), rate: self.rate() }
    }

    /// Packets lost in the window, and all packets, up and down.
    fn losses(&self) -> [(u64, u64); 2] {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else {
            return [(0, 0); 2];
        };
        let up = last.lost.saturating_sub(first.lost);
        let down = last.missing.saturating_sub(first.missing);
        [
            (up, up + last.acknowledged.saturating_sub(first.acknowledged)),
            (down, down.max(last.received.saturating_sub(first.received))),
        ]
    }

    fn loss(&self) -> f64 {
        self.losses().into_iter().map(|(lost, all)| least_share(lost, all)).fold(0.0, f64::max)
    }

    /// Bits per second, up and down, of about a second.
    fn rate(&self) -> [u64; 2] {
        self.recent().map_or([0; 2], |first| self.rate_since(first))
    }

    fn rate_since(&self, first: &Look) -> [u64; 2] {
        let Some(last) = self.looks.back() else { return [0; 2] };
        let seconds = last.at.saturating_duration_since(first.at).as_secs_f64().max(1e-3);
        let rate =
            |after: u64, before: u64| (after.saturating_sub(before) as f64 * 8.0 / seconds) as u64;
        [rate(last.sent_bytes, first.sent_bytes), rate(last.received_bytes, first.received_bytes)]
    }

    /// The first of the looks of about a second.
    fn recent(&self) -> Option<&Look> {
        self.looks.iter().nth_back(RATE_LOOKS - 1)
    }

    fn rtt(&self, rate: [u64; 2]) -> Option<Duration> {
        let shortest = self.rtts.iter().map(|(_, rtt)| *rtt).min();
        let shortest = shortest.filter(|_| self.rtts.len() == RTT_LOOKS)?;
        let is_busy = rate.into_iter().any(|rate| rate > BUSY);
        Some(if is_busy { shortest.saturating_sub(OWN_QUEUE) } else { shortest })
    }

    /// The higher of the rates that fell, while none is high.
    fn fell_to(&self, rate: [u64; 2]) -> Option<u64> {
        self.recent()?;
        let is_busy = rate.into_iter().any(|rate| rate > BUSY);
        let fell = |(rate, lately): &(u64, f64)| !is_busy && has_fallen(*rate, *lately);
        let fallen = rate.into_iter().zip(self.lately).filter(fell);
        fallen.map(|(rate, _)| rate).max()
    }

    fn starved(&self) -> Option<u64> {
        let first = self.looks.iter().nth_back(MOMENT_LOOKS - 1)?;
        let rate = self.rate_since(first).into_iter().max()?;
        let waits = self.looks.iter().rev().take(MOMENT_LOOKS).any(|look| look.wait >= STANDING);
        // A keystroke now and then is no rate that could fall.
        let mut busy = self.lately.into_iter().filter(|lately| *lately > NARROW as f64);
        let fell = busy.any(|lately| has_fallen(rate, lately));
        (rate < NARROW && (waits || fell)).then_some(rate)
    }

    /// The rate if the queue stood all the time, and something arrived all the time but for one look: a path that is
    /// silent is another matter.
    fn narrow(&self, rate: u64) -> Option<u64> {
        self.recent()?;
        let looks = || self.looks.iter().rev().take(RATE_LOOKS);
        let stands = looks().all(|look| look.wait >= STANDING);
        let pauses =
            looks().zip(looks().skip(1)).filter(|(new, old)| new.sent_bytes == old.sent_bytes);
        let flows = pauses.count() <= 1;
        let fell = rate < NARROW && rate < self.best / FALL;
        (stands && flows && (fell || rate < VERY_NARROW)).then_some(rate)
    }
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

/// What bursts found out about a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Echoes whose answer should have come.
    pub(crate) sent: u32,
    /// Answers that came.
    pub(crate) answered: u32,
    /// Their median round trip.
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

    /// The burst that shows whether a standby is a cure for this fault of the active path.
    #[must_use]
    pub(crate) fn burst(self) -> Burst {
        match self {
            Self::Narrow(_) => Burst::Large,
            Self::Lossy(_) | Self::Slow { .. } => Burst::Small,
        }
    }

    /// The burst that shows whether a standby has this fault still. One that carries too little is only full, or loses
    /// packets as well: a few large echoes do not tell.
    #[must_use]
    pub(crate) fn burst_again(self) -> Burst {
        match self {
            Self::Narrow(_) => Burst::Both,
            Self::Lossy(_) | Self::Slow { .. } => Burst::Small,
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
    /// What a path is taken for that seemed dead with these symptoms.
    #[must_use]
    pub(crate) fn suspicion(&self) -> Option<Fault> {
        self.is_lossy().then_some(Fault::Lossy((self.loss * 100.0) as u8))
    }

    /// Whether the losses are worth a burst.
    #[must_use]
    pub(crate) fn is_lossy(&self) -> bool {
        self.loss > SUSPICIOUS
    }

    /// What is wrong, as far as it needs no burst, with a path whose shortest round trip was `floor`.
    #[must_use]
    pub(crate) fn fault(&self, floor: Option<Duration>) -> Option<Fault> {
        let narrow = self.rate.map(Fault::Narrow);
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
            let fault = self.suspicion().filter(|_| self.loss > BAD_WITHOUT_BURST);
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

/// Whether a path that was left for this fault may be used again, by a sample of it. `floor` is its shortest round
/// trip, and `active` that of the active path.
#[must_use]
pub(crate) fn is_over(
    fault: Fault,
    sample: &Sample,
    floor: Option<Duration>,
    active: Option<Duration>,
) -> bool {
    let Some(rtt) = sample.rtt else { return false };
    let limit = match fault {
        Fault::Slow { floor, .. } => Some(fast_again(floor)),
        Fault::Lossy(_) | Fault::Narrow(_) => floor.map(slow),
    };
    let is_fast = limit.is_none_or(|limit| rtt < limit.max(active.map_or(limit, comparable)));
    let is_wide = match fault {
        Fault::Narrow(before) => sample.rate.is_some_and(|rate| rate >= wide_again(before)),
        Fault::Lossy(_) | Fault::Slow { .. } => true,
    };
    is_fast && is_wide && Symptoms::default().finding(Some(sample)) == Finding::Clean
}

#[cfg(test)]
mod tests;
