//! Whether lost packets tell of congestion.
//!
//! Radio links lose packets for other reasons, and a controller that slows down for those gets a thirtieth of
//! the link. The delay limit deals with queues, so a loss counts only where it says what delay does not:
//!
//! - **Too much is lost for chance.** A buffer overflows, or a policer drops (BBRv3 has 2 %, draft-ietf-ccwg-bbr
//!   §5.5.10). How much is usual is learnt: each cut is a trial, and if about as much is lost afterwards, then
//!   the loss does not come from our rate, and the cut is undone. What was lost becomes the floor, in steps of
//!   a fifth: behind a bottleneck that several of our flows share, each of them tries alone and changes little. For
//!   the same reason a trial cuts the deeper the more is lost. A high floor is tried again from time to time, as it
//!   may have been learnt from an overflow that lasted.
//! - **Losses come where the queue is full.** In a buffer of a few milliseconds that a competing flow shares,
//!   losses are few and the delay stays below its limit. But what overflows a buffer has neighbours that waited as long
//!   as any, while a radio link loses any packet.
//!
//! Packets that a radio loses come in bursts, which chance alone would not explain. So the mean length of bursts is
//! measured, and all counts are judged by the larger variance that it means; the first few may be of any length, and end
//! no slow start. What overflows is lost together, too, but where the queue is full, and that is no burst.
//!
//! A cut follows from the worst of many moments: on a link that loses by chance less is lost afterwards whatever we do, and
//! that less is no proof that the cut has helped. So what is to be expected is what was lost over a longer time.
//!
//! A loss is found out up to two round trips after the packet was sent, since packets may overtake one another. Its
//! neighbours are those that were sent at about the same time.
//!
//! Where there is less to send than fits, places say nothing: the acknowledgements of a transfer wait in the queue that it
//! fills the other way, so that each of them seems to meet a full one.
//!
//! Who sends so little that a cut would change nothing, such as the one who acknowledges a transfer the other way,
//! congests nothing: what is lost then counts only if it is much, for long. It says what is usual instead.
//!
//! Meanwhile the window does not grow while more is lost than is usual, so that a full bottleneck stays at a few
//! per cent, whoever shares it; slow start goes on at a quarter of its pace.

mod bursts;
mod places;

use std::time::{Duration, Instant};

pub(super) use self::bursts::Count;
use self::{
    bursts::{Bursts, variance},
    places::Places,
};
use super::control::LEFT;

/// The share of packets that may be lost by chance.
const CHANCE: f64 = 0.02;
/// The same beside a known floor: so many times that, and so much more.
const ABOVE_FLOOR: (f64, f64) = (1.5, 0.01);
/// One trial in vain makes so much the floor, and so many times a known one.
const FIRST_FLOOR: f64 = 0.03;
const RISE: f64 = 1.2;
/// The floor falls by the same factor where less than this part of it is lost over a while.
const FALLS: f64 = 0.7;
/// No link that is of use loses more by chance.
const HIGHEST_FLOOR: f64 = 0.15;
/// A floor above this is tried again, first after [`PAUSE`], and twice as long after each trial in vain.
const HIGH_FLOOR: f64 = 0.03;
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A trial asks whether as much is lost as before, or this part of it (Wald's sequential test).
const HELPED: f64 = 0.25;
/// What is to be expected after a cut in vain is the share over once to twice so many packets, but this part of the share
/// that made the cut at the least, and [`CHANCE`].
const LASTING: f64 = 1000.0;
const REGRESSION: f64 = 0.5;
/// The logarithm of how much likelier one of both must be.
const CERTAIN: f64 = 4.0;
/// A trial with so many packets for each that would have been lost before ends in any case.
const LONGEST_TRIAL: f64 = 30.0;
/// So does one of this length: where a few packets are under way, so many would take minutes.
const LONGEST_TIME: Duration = Duration::from_secs(5);
/// What helped must have helped for so many round trips: others send now more and now less (BBR in a cycle of
/// eight).
const CYCLE: u32 = 10;
/// A trial in slow start is over after so many in any case: meanwhile inner connections take the wait for a full link.
const CYCLE_IN_START: u32 = 8;
/// Fewer packets say nothing.
const SHORTEST_TRIAL: f64 = 60.0;
/// A cut takes so many times the share that was lost, within these bounds: where so many of our flows share a
/// bottleneck, one trial shows.
const DEPTH: f64 = 6.0;
const CUT: (f64, f64) = (1.0 - LEFT, 0.75);
/// The share over a while is counted over once to twice so many packets.
const WHILE: f64 = 200.0;
/// The same in time.
const LONG_WHILE: Duration = Duration::from_secs(2);
/// What is lost for so many times that in a row is no accident.
const LONG_HIGH: u8 = 3;
/// Losses are counted over two rounds of so long at least.
const SHORTEST_ROUND: Duration = Duration::from_millis(20);
/// Rounds have so many packets more for each by which bursts are longer than one: one of them is too much for few packets.
const FEW_PACKETS: f64 = 40.0;
/// Where more than this share is lost, their place does not matter.
const FEW_LOSSES: f64 = 0.03;
/// Packets of one burst are sent within so many packets' time, and within a millisecond at the least: quinn sends
/// several at one moment.
const GAP: f64 = 2.0;
const SHORTEST_GAP: Duration = Duration::from_millis(1);

/// The judge. Sizes are in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct LossJudge {
    this: Count,
    last: Count,
    round_ends: Option<Instant>,
    /// The same over some hundred packets.
    long: Count,
    /// And over some thousand.
    lasting: Count,
    /// When `long` was halved.
    aged: Option<Instant>,
    /// For how many times [`WHILE`] in a row more was lost than is usual.
    high: u8,
    /// What was sent meanwhile.
    run: Count,
    /// The share that is lost whatever we do.
    floor: f64,
    /// What arrived and what did not since the last loss while the window was used; none if that was the last loss.
    unused: Option<Count>,
    next_trial: Option<Instant>,
    pause: Duration,
    trial: Option<Trial>,
    /// Losses of packets that were sent before are not judged: they belong to the last cut.
    cut: Option<Instant>,
    places: Places,
    bursts: Bursts,
}

/// What happens to the packets that are sent after a cut.
#[derive(Clone, Copy, Debug)]
struct Trial {
    since: Instant,
    share_before: f64,
    /// The same over a longer time.
    lasting: f64,
    is_repeated: bool,
    /// Losses were few, but where the queue was full.
    is_of_few: bool,
    /// The cut ended slow start.
    is_of_start: bool,
    count: Count,
}

impl Trial {
    /// The share that is lost after a cut that was in vain. What made the cut was the worst moment of many: less is lost
    /// afterwards without any help.
    fn share_by_chance(&self) -> f64 {
        let ordinary = CHANCE.max(self.share_before * REGRESSION).max(self.lasting);
        self.share_before.min(ordinary)
    }
}

/// Lost packets, and the circumstances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    /// When the last of them was sent.
    pub(super) sent: Instant,
    pub(super) bytes: u64,
    /// Bytes per second that are delivered at present.
    pub(super) rate: f64,
    /// The round trip without a queue.
    pub(super) base: Duration,
    /// Somebody else fills the queue.
    pub(super) competes: bool,
    /// Delay limits the window: then the queue is ours, and says nothing.
    pub(super) delayed: bool,
    /// There was less to send than fits: then a queue need not be ours, nor on this way.
    pub(super) app_limited: bool,
    /// Others left little of the former rate.
    pub(super) starves: bool,
    /// The window grows as fast as it can.
    pub(super) starts: bool,
    /// The window has become smaller since then, by as much as a cut takes.
    pub(super) is_answered: bool,
    /// As much would have been sent in a smaller window.
    pub(super) is_unused: bool,
}

/// A judgement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Chance,
    /// Such a part of the window is left.
    Congestion {
        left: f64,
    },
}

/// What a cut was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Helped,
    /// As much is lost as before: it must be undone.
    InVain,
    /// Less is lost, but what was lost before does no harm.
    Needless,
}

impl LossJudge {
    /// Takes note of an acknowledged packet; it may end the trial of the last cut.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        mtu: u16,
    ) -> Option<Outcome> {
        let rtt = now.saturating_duration_since(sent);
        let is_enough = self.this.packets(mtu) >= FEW_PACKETS * (self.burst() - 1.0);
        let is_over = |ends| now >= ends && (is_enough || now >= ends + LONG_WHILE);
        if self.round_ends.is_none_or(is_over) {
            self.round_ends = Some(now + rtt.max(SHORTEST_ROUND));
            (self.last, self.this) = (self.this, Count::default());
        }
        let aged = *self.aged.get_or_insert(now);
        if self.long.packets(mtu) > 2.0 * self.long_enough() || now >= aged + LONG_WHILE {
            self.aged = Some(now);
            if self.long.share() < FALLS * self.floor {
                self.floor /= RISE;
            }
            let is_high = self.is_high(self.long, self.long_enough(), mtu);
            (self.high, self.run) = if is_high {
                (self.high.saturating_add(1), self.run)
            } else {
                (0, Count::default())
            };
            self.long = self.long.half();
        }
        if self.is_after_cut(sent) {
            self.this.arrived += bytes;
        }
        self.long.arrived += bytes;
        self.lasting.arrived += bytes;
        if self.lasting.packets(mtu) > 2.0 * LASTING {
            self.lasting = self.lasting.half();
        }
        self.run.arrived += bytes;
        if let Some(unused) = &mut self.unused {
            unused.arrived += bytes;
            if unused.packets(mtu) >= WHILE {
                // It is not lost because too much is sent: a trial would show no more.
                if unused.share() > CHANCE {
                    self.floor = self.floor.max(unused.share().min(FIRST_FLOOR));
                }
                *unused = Count::default();
            }
        }
        if let Some(trial) = self.trial.as_mut().filter(|trial| sent > trial.since) {
            trial.count.arrived += bytes;
        }
        self.ends_trial(now, rtt, mtu)
    }

    /// The newest of the packets that one acknowledgement tells of took `rtt`.
    pub(super) fn on_round_trip(&mut self, now: Instant, rtt: Duration) {
        self.places.sample(now, rtt);
    }

    pub(super) fn on_loss(&mut self, now: Instant, lost: Lost, mtu: u16) -> Verdict {
        let Lost { sent, bytes, rate, base, competes, delayed, starves, starts, .. } = lost;
        self.long.lost += bytes;
        self.lasting.lost += bytes;
        self.run.lost += bytes;
        if let Some(trial) = self.trial.as_mut().filter(|trial| sent > trial.since) {
            trial.count.lost += bytes;
        }
        let is_full = !delayed && !lost.app_limited && self.places.judge(sent, base);
        let gap = Duration::from_secs_f64(GAP * f64::from(mtu) / rate.max(1e4));
        let gap = gap.min(base / 8).max(SHORTEST_GAP);
        if !is_full {
            // What overflows is also lost together, and must not pass for that.
            self.bursts.on_loss(sent, bytes as f64 / f64::from(mtu), gap);
        }
        let burst = self.burst();
        if lost.is_unused {
            self.unused.get_or_insert_default().lost += bytes;
        } else {
            self.unused = None;
        }
        let is_bearable = self.long.packets(mtu) < WHILE || self.long.share() < HIGHEST_FLOOR;
        let is_excused = lost.is_answered || lost.is_unused && is_bearable;
        if is_excused || !self.is_after_cut(sent) {
            return Verdict::Chance;
        }
        self.this.lost += bytes;
        let both = self.of_late();
        let usual = CHANCE.max(ABOVE_FLOOR.0 * self.floor + ABOVE_FLOOR.1);
        // No burst explains so much.
        let far_too_much = both.exceeds(HIGHEST_FLOOR, 1.0, mtu);
        let too_much = far_too_much || both.exceeds(usual, burst, mtu);
        let overflows = !starves
            && self.places.verdict(competes)
            && (is_full || competes)
            && (ABOVE_FLOOR.0 * self.floor..FEW_LOSSES).contains(&self.long.share());
        let is_repeated = !too_much && !overflows;
        let is_due = (self.floor > HIGH_FLOOR || self.is_long_high(mtu))
            && !starts
            && self.next_trial.is_none_or(|at| now >= at);
        if is_repeated && (delayed || !is_due) {
            return Verdict::Chance;
        }
        if self.trial.is_some() && (is_repeated || !far_too_much) {
            // The trial goes on.
            return Verdict::Chance;
        }
        self.cut = Some(now);
        if competes && overflows && !too_much {
            // There is somebody to share with, and nothing to try.
            return Verdict::Congestion { left: LEFT };
        }
        (self.this, self.last) = (Count::default(), Count::default());
        let share = self.share(mtu);
        let share_before = self.trial.map_or(share, |trial| share.max(trial.share_before));
        let count = Count::default();
        let is_of_few = overflows && !too_much;
        self.trial = Some(Trial {
            since: now,
            share_before,
            lasting: self.lasting.share(),
            is_repeated,
            is_of_few,
            is_of_start: starts && !delayed,
            count,
        });
        Verdict::Congestion { left: 1.0 - (DEPTH * share_before).clamp(CUT.0, CUT.1) }
    }

    /// Whether for long more is lost than is usual, and than chance explains.
    fn is_long_high(&self, mtu: u16) -> bool {
        self.high >= LONG_HIGH && self.run.exceeds(CHANCE.max(RISE * self.floor), self.burst(), mtu)
    }

    /// Whether the last cut is on trial: until that is over, the window stays.
    pub(super) fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Whether that cut ended slow start, and not where a queue was full.
    pub(super) fn is_start_on_trial(&self) -> bool {
        self.trial.is_some_and(|trial| trial.is_of_start && !trial.is_of_few)
    }

    /// The share that is lost of late; an underestimate where there are few packets.
    fn share(&self, mtu: u16) -> f64 {
        self.long.lost as f64 / f64::from(mtu) / self.long.packets(mtu).max(self.long_enough())
    }

    /// The mean length of bursts. What overflows is lost together, too, and must not pass for chance.
    fn burst(&self) -> f64 {
        let overflows = self.places.are_known() && self.places.verdict(true);
        if overflows { 1.0 } else { self.bursts.mean() }
    }

    /// So many packets tell what share is lost.
    fn long_enough(&self) -> f64 {
        WHILE * variance(self.burst())
    }

    /// The share that is lost where a queue is full; a policer has none.
    pub(super) fn overflow(&self) -> f64 {
        let is_queue = self.places.are_known() && self.places.verdict(true);
        if is_queue { self.long.share() } else { 0.0 }
    }

    fn is_after_cut(&self, sent: Instant) -> bool {
        self.cut.is_none_or(|cut| sent > cut)
    }

    /// Whether so much is lost that the window should not grow.
    pub(super) fn holds_growth(&self, mtu: u16) -> bool {
        self.is_high(self.long, WHILE, mtu) || self.is_high(self.of_late(), 0.0, mtu)
    }

    /// Whether more than the usual share of `count` is lost, where `least` packets say something.
    fn is_high(&self, count: Count, least: f64, mtu: u16) -> bool {
        let usual = CHANCE.max(RISE * self.floor) * count.packets(mtu).max(least);
        // One burst is no reason to stop.
        let more = 2.0 * usual.sqrt() * (variance(self.burst()).sqrt() - 1.0);
        count.lost as f64 > (usual + more) * f64::from(mtu)
    }

    /// The present round and the last.
    fn of_late(&self) -> Count {
        Count {
            arrived: self.this.arrived + self.last.arrived,
            lost: self.this.lost + self.last.lost,
        }
    }

    /// There is nothing to try any more: the window is small for another reason, and must grow.
    pub(super) fn end_trial(&mut self) {
        self.trial = None;
    }

    fn ends_trial(&mut self, now: Instant, rtt: Duration, mtu: u16) -> Option<Outcome> {
        let trial = self.trial?;
        let (packets, lost) = (trial.count.packets(mtu), trial.count.lost as f64 / f64::from(mtu));
        let expected = packets * trial.share_by_chance();
        // The logarithm of how much likelier it is that nothing has changed.
        let evidence = (1.0 - HELPED).mul_add(-expected, lost * (1.0 / HELPED).ln());
        let spread = variance(self.burst());
        let is_certain = packets >= SHORTEST_TRIAL && evidence.abs() >= CERTAIN * spread;
        let lasted = now.saturating_duration_since(trial.since);
        let longest = if trial.is_of_few {
            packets >= WHILE
        } else if trial.is_of_start {
            lasted >= CYCLE_IN_START * rtt
        } else {
            expected >= LONGEST_TRIAL * spread
                || (lasted >= LONGEST_TIME && packets >= SHORTEST_TRIAL)
        };
        if !is_certain && !longest {
            return None;
        }
        let shortest = if trial.is_of_start { CYCLE_IN_START } else { CYCLE };
        if evidence < 0.0 && !trial.is_of_few && lasted < shortest * rtt {
            return None;
        }
        self.trial = None;
        let share = trial.count.share();
        let highest = packets * HIGHEST_FLOOR;
        let outcome = if evidence > 0.0 && lost < highest + highest.sqrt() {
            Outcome::InVain
        } else if trial.is_repeated && trial.share_before < FIRST_FLOOR {
            Outcome::Needless
        } else {
            Outcome::Helped
        };
        let longer = (2 * self.pause).clamp(PAUSE, LONGEST_PAUSE);
        self.pause = PAUSE;
        match outcome {
            Outcome::InVain => {
                let before = self.floor;
                self.floor = self.floor.max(share.min((RISE * self.floor).max(FIRST_FLOOR)));
                if share > RISE * self.floor {
                    self.pause = Duration::ZERO;
                } else if trial.is_repeated && self.floor == before {
                    self.pause = longer;
                }
            }
            Outcome::Needless => self.pause = longer,
            // That no burst came in a short trial says little.
            Outcome::Helped => self.floor = self.floor.min(share + (spread - 1.0) / packets),
        }
        self.next_trial = Some(now + self.pause);
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_a_cut_is_not_what_is_expected_after_it() {
        let expected = |share_before, lasting| {
            let trial = Trial {
                since: Instant::now(),
                share_before,
                lasting,
                is_repeated: false,
                is_of_few: false,
                is_of_start: false,
                count: Count::default(),
            };
            trial.share_by_chance()
        };
        assert_eq!(expected(0.06, 0.035), 0.035, "a radio at a bad moment");
        assert_eq!(expected(0.06, 0.001), 0.03, "little was lost for long");
        assert_eq!(expected(0.06, 0.08), 0.06);
        assert_eq!(expected(0.03, 0.001), CHANCE);
        assert_eq!(expected(0.015, 0.001), 0.015);
    }
}
