//! Keeps the queue of the slowest link on the way short.
//!
//! A router at home keeps hundreds of milliseconds of packets before it drops one. A controller that
//! waits for a loss fills that queue, and a keystroke waits behind an upload however fairly we send.
//! So the window is limited from above by delay: at most what is under way when packets wait for
//! [`target`], judged once a round trip by the quickest packet of the round, so that jitter does not
//! count (the rule is that of FAST TCP, IEEE/ACM Transactions on Networking 14(6), 2006).
//!
//! The round trip without a queue is the shortest of the last [`BASE_AGE`]. It is measured anew when it
//! is that old, by a moment of sending less, and when sending less does not shorten the delay: then
//! the way has changed, or somebody else fills the queue, with whom we then compete as everybody does.

use std::time::{Duration, Instant};

/// A shortest round trip that is older may be that of another way (BBR has the same, draft-ietf-ccwg-bbr
/// §2.13).
const BASE_AGE: Duration = Duration::from_secs(10);
/// A round is judged after so long at least: links share the air in turns of several milliseconds.
const SHORTEST_ROUND: Duration = Duration::from_millis(20);
/// Packets that may always be under way.
const LEAST: u64 = 4;
/// The same as a multiple: who has no more under way cannot fill a queue.
const FEW: u64 = 4;
/// Rounds with far too much delay, each after sending less, after which it is not our doing.
const STUBBORN: u8 = 3;

/// For how long packets may wait on the way: enough that the link is never idle.
fn target(base: Duration) -> Duration {
    (base / 5).clamp(Duration::from_millis(4), Duration::from_millis(8))
}

/// The limit. Time and sizes come from its caller.
#[derive(Clone, Debug, Default)]
pub(super) struct DelayLimit {
    limit: Option<u64>,
    /// What was sent before that tells of another limit.
    changed: Option<Instant>,
    base: Option<Base>,
    round: Option<Round>,
    stubborn: Option<Stubborn>,
    drains: Option<Drain>,
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
    /// The most bytes that were under way.
    peak: u64,
    /// There never was more to send.
    app_limited: bool,
}

/// A delay that stays, whatever we do.
#[derive(Clone, Copy, Debug)]
struct Stubborn {
    rounds: u8,
    limit_before: u64,
}

/// A moment of sending less.
#[derive(Clone, Copy, Debug)]
struct Drain {
    rounds: u8,
    /// The limit afterwards.
    after: u64,
}

/// What an acknowledged packet tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub(super) sent: Instant,
    /// Bytes that were under way, this packet included.
    pub(super) in_flight: u64,
    /// There was nothing more to send.
    pub(super) app_limited: bool,
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

    /// Takes note of an acknowledged packet of a connection that may have `window` bytes under way.
    pub(super) fn on_ack(&mut self, now: Instant, acked: Acked, window: u64, mtu: u16) {
        let Acked { sent, in_flight, app_limited } = acked;
        if self.changed.is_some_and(|changed| sent < changed) {
            return;
        }
        let rtt = now.saturating_duration_since(sent);
        let ends = now + rtt.max(SHORTEST_ROUND);
        let new = Round { ends, shortest: rtt, peak: in_flight, app_limited };
        let round = self.round.get_or_insert(new);
        round.shortest = round.shortest.min(rtt);
        round.peak = round.peak.max(in_flight);
        round.app_limited &= app_limited;
        if now >= round.ends {
            let round = *round;
            self.round = None;
            self.judge(now, round, window, LEAST * u64::from(mtu));
        }
    }

    fn judge(&mut self, now: Instant, round: Round, window: u64, least: u64) {
        let Round { shortest, peak, app_limited, .. } = round;
        let known = self.base.map_or(shortest, |base| base.rtt);
        if shortest <= known || self.base.is_none() {
            self.base = Some(Base { rtt: shortest, measured: now });
        }
        if let Some(Drain { rounds, after }) = self.drains {
            let queued = shortest < known || shortest > known + target(known);
            if queued && rounds < STUBBORN {
                // There still was a queue: base or rate are not what they were.
                return self.drain(now, shortest.min(known), shortest, peak, least);
            }
            self.base = Some(Base { rtt: shortest, measured: now });
            self.drains = None;
            return self.set(now, Some(after), least);
        }
        let Some(base) = self.base else { return };
        let (wait, target) = (shortest - base.rtt, target(base.rtt));
        let allowed = self.apply(window);
        if app_limited && peak < (allowed / 2).min(FEW * least) {
            // Who has little to send tells nothing about how large the window should be.
            self.stubborn = None;
            return;
        }
        if wait <= 4 * target {
            self.stubborn = None;
        } else if let Some(stubborn) = &mut self.stubborn
            && stubborn.rounds < STUBBORN
        {
            stubborn.rounds += 1;
        } else if let Some(Stubborn { limit_before, .. }) = self.stubborn.take() {
            self.base = Some(Base { rtt: shortest, measured: now });
            return self.set(now, Some(limit_before), least);
        } else {
            self.stubborn = Some(Stubborn { rounds: 1, limit_before: peak.min(allowed) });
        }
        let fitting = scale(peak, base.rtt + target, shortest);
        if wait > target {
            self.set(now, Some(fitting), least);
        } else if let Some(limit) = self.limit {
            // Where nothing waits it may be much too small; at most doubled, as in slow start.
            let fast = if wait < target / 4 { limit + limit / 4 } else { limit };
            let grown = fitting.max(fast).min(2 * limit);
            self.set(now, Some(grown).filter(|limit| *limit < 2 * window), least);
        }
        if let Some(limit) = self.limit
            && now.duration_since(base.measured) > BASE_AGE
        {
            self.drain(now, base.rtt, shortest, limit, least);
        }
    }

    /// Sends so little for a round that no queue is left, and afterwards just what the way holds: as
    /// far as we know from this round, that took `rtt` where `base` is possible.
    fn drain(&mut self, now: Instant, base: Duration, rtt: Duration, peak: u64, least: u64) {
        let empty = scale(peak, base, rtt);
        let rounds = self.drains.map_or(1, |drain| drain.rounds + 1);
        self.drains = Some(Drain { rounds, after: empty });
        self.set(now, Some(empty * 3 / 4), least);
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

/// `bytes` times `numerator` by `denominator`.
fn scale(bytes: u64, numerator: Duration, denominator: Duration) -> u64 {
    let ratio = numerator.as_secs_f64() / denominator.as_secs_f64().max(1e-6);
    (bytes as f64 * ratio) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MTU: u16 = 1452;
    const MS: Duration = Duration::from_millis(1);

    /// A sender that always has more to send, and a link with a long queue, packet by packet.
    struct Link {
        /// Bytes per millisecond.
        rate: f64,
        base: Duration,
        /// What somebody else keeps in the queue.
        foreign: Duration,
        window: u64,
        limit: DelayLimit,
        now: Instant,
        free_at: Instant,
        under_way: VecDeque<(Instant, Instant)>,
        delivered: u64,
    }

    impl Link {
        fn new(mbit: f64, base: Duration) -> Self {
            let now = Instant::now();
            Self {
                rate: mbit * 125.0,
                base,
                foreign: Duration::ZERO,
                window: 32 * u64::from(MTU),
                limit: DelayLimit::default(),
                now,
                free_at: now,
                under_way: VecDeque::new(),
                delivered: 0,
            }
        }

        /// Lets time pass; gives how full the link was and the longest wait in its queue.
        fn run(&mut self, time: Duration) -> (f64, Duration) {
            let (end, before) = (self.now + time, self.delivered);
            let mut longest = Duration::ZERO;
            while self.now < end {
                while self.in_flight() < self.limit.apply(self.window) {
                    let took = Duration::from_secs_f64(f64::from(MTU) / self.rate / 1000.0);
                    let starts = self.free_at.max(self.now);
                    self.free_at = starts + took;
                    longest = longest.max(starts - self.now + self.foreign);
                    let back = self.free_at + self.base + self.foreign;
                    self.under_way.push_back((self.now, back));
                }
                let in_flight = self.in_flight();
                let (sent, back) = self.under_way.pop_front().unwrap();
                self.now = back;
                self.delivered += u64::from(MTU);
                let acked = Acked { sent, in_flight, app_limited: false };
                if !self.limit.holds_back(self.window) {
                    // Slow start, as nothing is ever lost.
                    self.window += u64::from(MTU);
                }
                self.limit.on_ack(self.now, acked, self.window, MTU);
            }
            let full = (self.delivered - before) as f64 / (self.rate * time.as_secs_f64() * 1000.0);
            (full, longest)
        }

        fn in_flight(&self) -> u64 {
            self.under_way.len() as u64 * u64::from(MTU)
        }
    }

    #[test]
    fn links_of_all_kinds_are_full_and_their_queues_short() {
        for (mbit, base) in
            [(1.0, 60 * MS), (10.0, 40 * MS), (100.0, 10 * MS), (50.0, 150 * MS), (500.0, 5 * MS)]
        {
            let mut link = Link::new(mbit, base);
            link.run(Duration::from_secs(5));
            let (full, longest) = link.run(Duration::from_secs(60));
            assert!(full > 0.95, "{mbit} Mbit/s, {base:?}: {full}");
            // At 1 Mbit/s four packets take 46 ms, and there are never fewer.
            let bound = if mbit < 2.0 { 50 * MS } else { (target(base) * 9 / 4).max(base / 3) };
            assert!(longest < bound, "{mbit} Mbit/s, {base:?}: {longest:?}");
        }
    }

    #[test]
    fn a_link_that_becomes_slower_or_faster_is_followed() {
        let mut link = Link::new(50.0, 30 * MS);
        link.run(Duration::from_secs(10));
        link.rate /= 10.0;
        link.run(Duration::from_secs(2));
        let (full, longest) = link.run(Duration::from_secs(20));
        assert!(full > 0.95 && longest < 20 * MS, "slower: {full}, {longest:?}");
        link.rate *= 20.0;
        link.run(Duration::from_secs(5));
        let (full, longest) = link.run(Duration::from_secs(20));
        assert!(full > 0.9 && longest < 20 * MS, "faster: {full}, {longest:?}");
    }

    #[test]
    fn a_longer_round_trip_is_learnt() {
        let mut link = Link::new(20.0, 20 * MS);
        link.run(Duration::from_secs(5));
        link.base = 120 * MS;
        link.run(Duration::from_secs(8));
        let (full, longest) = link.run(Duration::from_secs(20));
        assert!(full > 0.95 && longest < 45 * MS, "{full}, {longest:?}");
    }

    #[test]
    fn a_competing_flow_does_not_starve_us() {
        let mut link = Link::new(20.0, 20 * MS);
        link.run(Duration::from_secs(5));
        let before = link.limit.apply(link.window);
        link.foreign = 150 * MS;
        link.run(Duration::from_secs(5));
        let after = link.limit.apply(link.window);
        assert!(after >= before, "{before} bytes before, {after} beside somebody else");
    }

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
