//! What the tunnel's own packets show of the active path.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{FALL, NARROW, Symptoms, VERY_NARROW, has_fallen, least_share, slow};

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
/// What is carried at the moment is counted between so many looks: a path may be left as silent half a second after its
/// rate fell. A silence has a look of its own, so that nothing is left of what came before.
const MOMENT_LOOKS: usize = 2;
/// The queue stands if packets have always waited for so long.
const STANDING: Duration = Duration::from_millis(20);

/// What is left of the highest rate of the last seconds from one look to the next: an eighth after five seconds.
const FADING: f64 = 0.9;
/// The packets of a download have more bytes than this on average, those of somebody who types or speaks have fewer.
const TYPED: u64 = 300;
/// While the tunnel itself carries more than this, in bits per second, the queue on the path is likely its own: it
/// would form on any other path as well.
const BUSY: u64 = 2_000_000;
/// What such a queue may add to a round trip.
const OWN_QUEUE: Duration = Duration::from_millis(400);

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
    /// The highest rates of the last seconds, up and down, over whatever path: so much may still be asked. While nothing is
    /// wrong, what is asked is carried.
    lately: [f64; 2],
}

impl Watch {
    /// The path is another.
    pub(crate) fn begin(&mut self, now: Instant) {
        let lately = if self.is_resting { [0.0; 2] } else { self.lately };
        *self = Self { since: Some(now), lately, ..Self::default() };
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

    /// Something is sent. What was asked before the rest is over.
    pub(crate) fn wake(&mut self, now: Instant) {
        (self.is_resting, self.woken, self.lately) = (false, Some(now), [0.0; 2]);
    }

    /// Takes in the counters of a path whose shortest round trip was `floor`; what they show.
    pub(crate) fn look(&mut self, look: Look, floor: Option<Duration>) -> Symptoms {
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
        let fading = if self.is_fine(floor) { 0.0 } else { FADING };
        for (lately, rate) in self.lately.iter_mut().zip(rate) {
            *lately = (*lately * fading).max(rate as f64);
        }
        Symptoms {
            loss: self.loss(),
            rtt: self.rtt(rate),
            rate: self.narrow(rate[0]),
            fell_to: self.fell_to(rate),
            // Of what rests nothing is asked, and it may rest for hours.
            starved: self.starved().filter(|_| !self.is_resting),
        }
    }

    /// The ends of the window, once it is as long as it gets.
    fn window(&self) -> Option<(&Look, &Look)> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        (last.at >= first.at + WINDOW).then_some((first, last))
    }

    /// Whether something crossed the path, and nothing in the window was lost, late or kept waiting, here or, as far as can be
    /// told, at the other end.
    fn is_fine(&self, floor: Option<Duration>) -> bool {
        let (Some((first, last)), Some(floor)) = (self.window(), floor) else { return false };
        let packets = last.received.saturating_sub(first.received);
        let has_download = last.received_bytes > first.received_bytes + TYPED * packets;
        last.rtt.is_some()
            && !has_download
            && self.losses().into_iter().all(|(lost, _)| lost == 0)
            && self.rtts.iter().all(|(_, rtt)| *rtt < slow(floor))
            && self.looks.iter().all(|look| look.wait < STANDING)
    }

    /// Whether hardly anything happened in the window.
    fn is_quiet(&self) -> bool {
        let Some((first, last)) = self.window() else { return false };
        last.acknowledged <= first.acknowledged + FEW
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

    /// The rate from this look on, or since a rest that came between.
    fn rate_since(&self, first: &Look) -> [u64; 2] {
        let Some(last) = self.looks.back() else { return [0; 2] };
        let since = self.woken.map_or(first.at, |woken| woken.max(first.at));
        let seconds = last.at.saturating_duration_since(since).as_secs_f64().max(1e-3);
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
        let fell = self.lately.into_iter().any(|lately| has_fallen(rate, lately));
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

#[cfg(test)]
mod tests;
