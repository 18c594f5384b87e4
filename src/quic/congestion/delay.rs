//! Keeps the queue of the slowest link on the way short.
//!
//! A router at home keeps hundreds of milliseconds of packets before it drops one. A controller that waits for
//! a loss fills that queue, and a keystroke waits behind an upload however fairly we send. So the window is
//! limited from above by delay: at most what is under way when packets wait for a target time, judged once a round
//! trip (the rule is that of FAST TCP, IEEE/ACM Transactions on Networking 14(6), 2006). A round is judged by
//! the packet that was delivered fastest: the most bytes under way when it was sent for each moment of its own
//! round trip. Jitter does not make a packet faster, and the packets of a burst are judged as a burst.
//!
//! The round trip without a queue is the shortest of the last [`BASE_AGE`]. It is measured anew when it is that
//! old, by a moment of sending less. When sending less does not shorten the delay, then the way has changed, or
//! somebody else fills the queue: [`Competition`] finds out which.

mod jitter;

use std::time::{Duration, Instant};

use self::jitter::Jitter;
use super::compete::{Competition, Finding, VISIBLE};

/// A shortest round trip that is older may be that of another way (BBR has the same, draft-ietf-ccwg-bbr
/// §2.13).
const BASE_AGE: Duration = Duration::from_secs(10);
/// A round is judged after so long at least: links share the air in turns of several milliseconds.
const SHORTEST_ROUND: Duration = Duration::from_millis(20);
/// Packets that may always be under way.
const LEAST: u64 = 4;
/// A sender with less than so many times that under way cannot fill a queue.
const FEW: u64 = 4;
/// Rounds of sending less, after each of which the delay is about as long as before, until it is not our doing.
const STUBBORN: u8 = 4;
/// Round trips without a queue differ by less.
const JITTER: Duration = Duration::from_millis(3);
/// Rounds in a drain.
const DRAIN: u8 = 3;
/// What is left of the remembered rate after each round.
const FADING: f64 = 0.998;
/// Packets may wait on the way for a fifth of the round trip without a queue, within these bounds: enough that the link is
/// never idle.
const WAIT: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(8));
/// The same for a slow link, in bytes: quinn's pacer sends ten packets at one moment, and in the middle one waits for five.
const HALF_A_BURST: f64 = 5.0 * 1452.0;
/// A slower link than this is not thought of, in bytes per second.
const SLOWEST: f64 = 10_000.0;
/// A sender with this share of its best rate does not starve.
const ENOUGH: f64 = 0.6;
/// A sender with less than this share does.
const LITTLE: f64 = 0.3;

/// The limit. Time and sizes come from its caller.
#[derive(Clone, Debug, Default)]
pub(super) struct DelayLimit {
    limit: Option<u64>,
    /// What was sent before that tells of another limit.
    changed: Option<Instant>,
    base: Option<Base>,
    round: Option<Round>,
    stubborn: Stubborn,
    drains: Option<Drain>,
    competition: Option<Competition>,
    /// The fastest delivery of late, in bytes per second.
    capacity: f64,
    /// The present one.
    rate: f64,
    jitter: Jitter,
    /// What [`DelayLimit::target`] is raised by for it.
    allowance: Duration,
}

/// The round trip without a queue.
#[derive(Clone, Copy, Debug)]
struct Base {
    rtt: Duration,
    measured: Instant,
}

/// A round trip's worth of acknowledgements.
#[derive(Clone, Copy, Debug)]
struct Round {
    ends: Instant,
    shortest: Duration,
    /// The packet that was delivered fastest, and the fastest of those that filled the window.
    fastest: Sample,
    full: Option<Sample>,
    /// There never was more to send.
    app_limited: bool,
}

/// A packet: what was under way when it was sent, and how long it took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    in_flight: u64,
    rtt: Duration,
}

impl Sample {
    /// Bytes per second at the slowest link, at least.
    fn rate(self) -> f64 {
        self.in_flight as f64 / self.rtt.as_secs_f64().max(1e-6)
    }
}

/// A delay that stays, whatever we do.
#[derive(Clone, Copy, Debug, Default)]
struct Stubborn {
    rounds: u8,
    wait: Duration,
    /// Rounds in a row, the last included, whose shortest round trip was about that of the first of them.
    steady: u8,
    rtt: Duration,
}

/// A moment of sending less.
#[derive(Clone, Copy, Debug)]
struct Drain {
    rounds: u8,
    /// The limit afterwards.
    after: u64,
    /// The rate of the link, if nobody else has packets in its queue: then what remains of the wait is the way.
    alone: Option<f64>,
}

/// What an acknowledged packet tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub(super) sent: Instant,
    /// Bytes that were under way when it was sent, itself included.
    pub(super) in_flight: u64,
    /// There was nothing more to send.
    pub(super) app_limited: bool,
}

/// Whose queue it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody else's: losses rule from here on, beginning with a window of so many bytes.
    Compete(u64),
    /// Ours alone: delay rules.
    Alone,
}

impl DelayLimit {
    /// The window with this limit.
    pub(super) fn apply(&self, window: u64) -> u64 {
        self.limit.map_or(window, |limit| limit.min(window))
    }

    /// Whether `window` is limited.
    pub(super) fn holds_back(&self, window: u64) -> bool {
        self.limit.is_some_and(|limit| limit < window)
    }

    /// Whether others left us little of what we had.
    pub(super) fn starves(&self) -> bool {
        self.rate < LITTLE * self.capacity
    }

    /// The present rate and the best of late, in bytes per second.
    pub(super) fn rates(&self) -> (f64, f64) {
        (self.rate, self.capacity)
    }

    /// The round trip without a queue.
    pub(super) fn base(&self) -> Option<Duration> {
        self.base.map(|base| base.rtt)
    }

    /// The newest of the packets that one acknowledgement tells of was sent at `sent`.
    pub(super) fn on_round_trip(&mut self, now: Instant, sent: Instant, mtu: u16) {
        self.jitter.on_round_trip(sent, now.saturating_duration_since(sent));
        self.allowance = self.jitter.allowance(f64::from(mtu) / self.rate.max(1.0));
    }

    /// For how long packets may wait, where the round trip without a queue is `base`.
    fn target(&self, base: Duration) -> Duration {
        let burst = Duration::from_secs_f64(HALF_A_BURST / self.capacity.max(SLOWEST));
        (base / 5).clamp(WAIT.0, WAIT.1.max(burst)) + self.allowance
    }

    pub(super) fn competes(&self) -> bool {
        self.competition.is_some()
    }

    /// Takes note of an acknowledged packet of a connection that may have `window` bytes under way.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        acked: Acked,
        window: u64,
        mtu: u16,
    ) -> Option<Turn> {
        let Acked { sent, in_flight, app_limited } = acked;
        if self.changed.is_some_and(|changed| sent < changed) {
            return None;
        }
        let rtt = now.saturating_duration_since(sent);
        let sample = Sample { in_flight, rtt };
        let ends = now + rtt.max(SHORTEST_ROUND);
        let new = Round { ends, shortest: rtt, fastest: sample, full: None, app_limited };
        // quinn sends the last packet only if the window is larger than what is under way with it.
        let fills = (in_flight + u64::from(mtu)) / 7 >= self.apply(window) / 8;
        let round = self.round.get_or_insert(new);
        round.shortest = round.shortest.min(rtt);
        if sample.rate() > round.fastest.rate() {
            round.fastest = sample;
        }
        if fills && round.full.is_none_or(|full| sample.rate() > full.rate()) {
            round.full = Some(sample);
        }
        round.app_limited &= app_limited;
        if now < round.ends {
            return None;
        }
        let round = *round;
        self.round = None;
        self.judge(now, round, window, LEAST * u64::from(mtu))
    }

    fn judge(&mut self, now: Instant, round: Round, window: u64, least: u64) -> Option<Turn> {
        let Round { shortest, fastest, full, app_limited, .. } = round;
        let known = self.base.map_or(shortest, |base| base.rtt);
        if shortest <= known || self.base.is_none() {
            self.base = Some(Base { rtt: shortest, measured: now });
        }
        let base = self.base?;
        let sample = full.unwrap_or(fastest);
        self.rate = fastest.rate();
        let allowed = self.apply(window);
        // A sender with little to send tells nothing about how large the window should be.
        let is_small = app_limited && sample.in_flight < (allowed / 2).min(FEW * least);
        if self.competition.is_some() {
            if is_small {
                (self.competition, self.limit) = (None, None);
                return Some(Turn::Alone);
            }
            return self.compete(now, round, sample, window, least);
        }
        if let Some(Drain { rounds, after, alone }) = self.drains {
            let is_shorter = shortest + self.target(known) / 4 < known;
            let is_queued = shortest > known + self.target(known);
            if (is_shorter || is_queued) && rounds < DRAIN {
                // There still was a queue: base or rate are not what they were.
                self.drain(now, shortest.min(known), sample, alone, least);
                return None;
            }
            self.drains = None;
            if is_queued && alone.is_none() {
                return self.begin(now, sample);
            }
            self.base = Some(Base { rtt: shortest, measured: now });
            let holds = |rate| (rate * shortest.as_secs_f64()) as u64;
            self.set(now, Some(alone.map_or(after, holds)), least);
            return None;
        }
        let (wait, target) = (sample.rtt.saturating_sub(base.rtt), self.target(base.rtt));
        if is_small {
            self.stubborn = Stubborn::default();
            return None;
        }
        self.capacity = (self.capacity * FADING).max(sample.rate());
        let space = (base.rtt + target).as_secs_f64();
        let fitting = (sample.rate() * space) as u64;
        if wait > target {
            if wait > target + self.stubborn.wait.saturating_sub(target) / 2 {
                self.stubborn.rounds += 1;
            }
            self.stubborn.wait = wait;
            // So few packets make no queue that stays as it is.
            let few = sample.in_flight <= FEW * least;
            let near = (shortest / 16).clamp(target / 4, JITTER.max(target / 4));
            if few && shortest.abs_diff(self.stubborn.rtt) < near {
                self.stubborn.steady = self.stubborn.steady.saturating_add(1);
            } else {
                (self.stubborn.steady, self.stubborn.rtt) = (0, shortest);
            }
            if self.stubborn.steady >= STUBBORN && shortest > base.rtt + target {
                // Less and less was under way, and nothing changed: there is no queue, but a longer way.
                self.stubborn = Stubborn::default();
                self.base = Some(Base { rtt: shortest, measured: now });
                let before = (self.capacity / 2.0 * shortest.as_secs_f64()) as u64;
                self.set(now, Some(before), least);
                return None;
            }
            let has_little = sample.rate() < ENOUGH * self.capacity;
            if self.stubborn.rounds > if has_little { STUBBORN } else { 2 * STUBBORN } {
                return self.begin(now, sample);
            }
            // One slow round may be a burst's.
            let first = self.stubborn.rounds == 1;
            let limit = if first { (self.capacity * space) as u64 } else { fitting };
            self.set(now, Some(limit.min(allowed)), least);
        } else {
            self.stubborn.rounds = self.stubborn.rounds.saturating_sub(1);
            self.stubborn.wait = Duration::ZERO;
            if let Some(limit) = self.limit.filter(|_| full.is_some()) {
                // Where nothing waits it may be much too small; at most doubled, as in slow start.
                let fast = if wait < target / 4 { limit + limit / 4 } else { limit };
                let grown = fitting.max(fast).min(2 * limit);
                self.set(now, Some(grown).filter(|limit| *limit < 2 * window), least);
            }
        }
        if let Some(limit) = self.limit
            && now.duration_since(base.measured) > BASE_AGE
        {
            self.drain(now, base.rtt, Sample { in_flight: limit, rtt: shortest }, None, least);
        }
        None
    }

    /// Sends so little for a round that no queue is left, and afterwards just what the way holds: as
    /// far as we know from `sample`, where `base` is possible.
    fn drain(
        &mut self,
        now: Instant,
        base: Duration,
        sample: Sample,
        alone: Option<f64>,
        least: u64,
    ) {
        let empty = (sample.rate() * base.as_secs_f64()) as u64;
        let rounds = self.drains.map_or(1, |drain| drain.rounds + 1);
        self.drains = Some(Drain { rounds, after: empty, alone });
        self.set(now, Some(empty * 3 / 4), least);
    }

    /// Gives the queue up to whoever fills it, and takes a part of it: at half of the best rate, as beside one
    /// equal.
    fn begin(&mut self, now: Instant, sample: Sample) -> Option<Turn> {
        self.stubborn = Stubborn::default();
        self.drains = None;
        self.competition = Some(Competition::new(now, sample.rtt));
        (self.limit, self.changed, self.round) = (None, Some(now), None);
        let half = (self.capacity / 2.0 * sample.rtt.as_secs_f64()) as u64;
        // If it is a link that has become slower after all, the queue must not overflow.
        Some(Turn::Compete(half.clamp(sample.in_flight, 4 * sample.in_flight)))
    }

    fn compete(
        &mut self,
        now: Instant,
        Round { shortest, app_limited, .. }: Round,
        sample: Sample,
        window: u64,
        least: u64,
    ) -> Option<Turn> {
        let base = self.base?;
        let target = self.target(base.rtt);
        let competition = self.competition.as_mut()?;
        let wait = shortest.saturating_sub(base.rtt);
        let Sample { in_flight, rtt } = sample;
        // A program that sends no more has nothing to raise.
        let enough = if app_limited { 0.0 } else { VISIBLE * self.capacity };
        let finding = competition.judge(now, wait, target, in_flight, rtt, enough);
        match finding {
            Finding::Foreign { limit, window: raised } => {
                let limit = limit.map(|limit| limit.max(least));
                if self.limit != limit {
                    (self.limit, self.changed, self.round) = (limit, Some(now), None);
                }
                return raised.map(|raised| Turn::Compete(raised.max(window)));
            }
            Finding::Longer => {
                self.base = Some(Base { rtt: shortest, measured: now });
                self.set(now, Some(sample.in_flight), least);
            }
            Finding::Ours { rate, is_left: true } => {
                // What remains of it where next to nothing is under way is the way.
                self.competition = None;
                let in_flight = (rate * base.rtt.as_secs_f64()) as u64;
                self.drain(now, base.rtt, Sample { in_flight, rtt: base.rtt }, Some(rate), least);
                return Some(Turn::Alone);
            }
            Finding::Ours { rate, is_left: false } => {
                let space = base.rtt + target;
                self.set(now, Some((rate * space.as_secs_f64()) as u64), least);
            }
        }
        self.competition = None;
        Some(Turn::Alone)
    }

    fn set(&mut self, now: Instant, limit: Option<u64>, least: u64) {
        let limit = limit.map(|limit| limit.max(least));
        if self.limit == limit {
            return;
        }
        // A larger window shows only when it has filled the way.
        let grows = limit.is_none_or(|new| self.limit.is_some_and(|old| old < new));
        let settles = self.base.filter(|_| grows).map_or(Duration::ZERO, |base| base.rtt);
        (self.limit, self.changed, self.round) = (limit, Some(now + settles), None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MTU: u16 = 1452;
    const MS: Duration = Duration::from_millis(1);

    proptest! {
        #[test]
        fn there_is_always_room_for_some_packets(
            steps in proptest::collection::vec((1u64..400, 1u64..400, 1u64..200_000, any::<bool>()), 1..500),
            window in 10_000u64..10_000_000,
        ) {
            let (mut limit, mut now) = (DelayLimit::default(), Instant::now() + BASE_AGE);
            for (pause, rtt, in_flight, app_limited) in steps {
                now += Duration::from_millis(pause);
                let acked = Acked { sent: now - Duration::from_millis(rtt), in_flight, app_limited };
                limit.on_ack(now, acked, window, MTU);
                prop_assert!(limit.apply(window) >= LEAST * u64::from(MTU));
                prop_assert!(limit.apply(window) <= window);
            }
        }
    }

    #[test]
    fn keystrokes_are_not_held_against_a_link() {
        let (mut limit, start) = (DelayLimit::default(), Instant::now());
        let window = 46_464;
        for at in 0..1000_u32 {
            // A link that sleeps: 20 ms or 200.
            let rtt = if at % 7 == 0 { 20 * MS } else { 200 * MS };
            let sent = start + at * 250 * MS;
            let acked = Acked { sent, in_flight: 100, app_limited: true };
            limit.on_ack(sent + rtt, acked, window, MTU);
            assert_eq!(limit.apply(window), window);
        }
    }
}
