//! The receiving side: gaps, requests, and what is held until a gap is closed.
//!
//! ```text
//!             a number above it arrives
//!  not sent ──────────────────────────▶ missing ── arrives ──▶ delivered
//!                                          │                        ▲
//!                                          └── too late ─▶ given up ┘ arrives all the same
//! ```
//! A packet whose predecessor is missing or held is held.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Moment, gaps::Gaps};
use crate::{
    tunnel::pool::Share,
    wire::{
        numbered::{Exchange, MAX_RANGES, Missing, Numbered, Range, Resume, Short},
        packet::Packet,
    },
};

/// Numbers that are missing at once.
const MOST_MISSING: u64 = 4096;
/// Ranges of numbers that were given up and may still come.
const MOST_GIVEN_UP: usize = 1024;
/// Bytes of memory that held packets may take, if they share none with others.
pub(crate) const MEMORY: usize = 8 << 20;
/// Bytes of memory that a held packet takes beside its own.
const OVERHEAD: usize = 160;
/// How much later than its successor a packet may arrive without being asked for: networks reorder. It grows to what
/// is seen, within the second bound, and falls with each repair (as in RACK, RFC 8985 §6.2).
const TOLERANCE: Duration = Duration::from_millis(2);
const MOST_TOLERANCE: Duration = Duration::from_millis(60);
/// Before a repair was measured it is expected after 9/8 round trips and this.
const FIRST_WAIT: Duration = Duration::from_millis(15);
/// Timers are late by up to this.
const GRANULARITY: Duration = Duration::from_millis(2);
/// A packet is given up after three and a half round trips and this, but not after more than the latter; yet one
/// repair has time in any case.
const GIVEN_UP: Duration = Duration::from_millis(30);
const LATEST: Duration = Duration::from_millis(400);
/// After a switch, packets may come from the old path and the new one, and what the old one lost takes a while.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is silent again and again, or late all the time, has no more than this.
const LONGEST: Duration = Duration::from_secs(3);
/// What was given up so lately is told of at a switch: the path was dying already.
const LATELY: Duration = Duration::from_secs(3);
/// Packets that arrived after one request, of which a second arrival would say that the first was the original.
const MOST_ANSWERED: usize = 512;
/// Late packets teach if there are two within so long, and half of what they taught is forgotten after as long without
/// one.
const MEMORY_OF_LATE: Duration = Duration::from_secs(2);
/// From one request to the next when there is more to ask for than one has room for.
const PACE: Duration = Duration::from_millis(1);

/// What happened, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// Packets that arrived after they had been asked for.
    pub(crate) repaired: u64,
    /// Packets that did not arrive in time.
    pub(crate) given_up: u64,
    /// Those of them that others waited for: what nothing waits for may not be sent again at all.
    pub(crate) awaited: u64,
    /// Packets that came once more.
    pub(crate) duplicates: u64,
}

/// Finds gaps, and keeps flows in order until they are closed.
///
/// Every held packet waits for a missing one, directly or through other held ones. So where nothing is missing
/// nothing is held.
#[derive(Debug, Default)]
pub struct Receiver {
    /// The number that comes next.
    next: u64,
    missing: Gaps<Gap>,
    /// What was given up, and when: it is delivered if it comes all the same.
    given_up: Gaps<Instant>,
    /// When packets arrived that had been asked for once, and how late they were.
    answered: BTreeMap<u64, (Instant, Duration)>,
    /// Held packets, each by the number that it waits for.
    held: BTreeMap<u64, Held>,
    held_numbers: BTreeSet<u64>,
    held_bytes: usize,
    share: Share,
    timing: Timing,
    /// No later than the moment at which a packet is to be asked for, or given up.
    deadline: Option<Instant>,
    /// Nothing is asked for before: it may still be under way on the old path.
    quiet_until: Option<Instant>,
    /// Nothing is given up before.
    patient_until: Option<Instant>,
    events: Events,
}

/// Packets that follow one another and are missing.
#[derive(Clone, Copy, Debug)]
struct Gap {
    since: Instant,
    /// When it showed, or when its path changed or was silent for the first time after that.
    born: Instant,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    first: Instant,
    last: Instant,
    times: u8,
}

#[derive(Debug)]
struct Held {
    number: u64,
    packet: Packet,
}

impl Held {
    fn cost(&self) -> usize {
        self.packet.datagram().len() + OVERHEAD
    }
}

impl Receiver {
    /// One that holds packets in a part of a pool's memory only.
    pub(crate) fn sharing(share: Share) -> Self {
        Self { share, ..Self::default() }
    }

    /// Takes a packet; `batch` gets what can be delivered now.
    pub fn receive(&mut self, numbered: Numbered, moment: Moment, batch: &mut Vec<Packet>) {
        let Numbered { number, back, packet } = numbered;
        let number = number.near(self.next);
        if let Some(number) = number
            && number >= self.next
        {
            self.expect(number, moment, batch);
            self.next = number + 1;
        } else if let Some(number) = number
            && let Some(gap) = self.missing.remove(number)
        {
            self.arrived(number, gap, moment);
        } else if number.and_then(|number| self.given_up.remove(number)).is_some() {
            // One range may have become two.
            self.bound_given_up();
            return batch.push(packet);
        } else {
            self.events.duplicates += 1;
            if let Some((before, late)) = number.and_then(|number| self.answered.remove(&number))
                && (before + TOLERANCE..before + PATIENCE).contains(&moment.now)
            {
                // The original has come, and what was sent again as well. A network repeats packets at once.
                self.timing.reordered(late, moment.now);
            }
            return;
        }
        let Some(number) = number else { return };
        match number.checked_sub(back.into()) {
            Some(before) if back > 0 && self.is_awaited(before) => {
                let held = Held { number, packet: packet.detached() };
                self.hold(before, held, moment.now, batch);
            }
            Some(_) | None => {
                batch.push(packet);
                self.release(number, batch);
            }
        }
    }

    /// The other side says which number comes next; `batch` gets what can be delivered now.
    pub(crate) fn next_is(&mut self, next: Short, moment: Moment, batch: &mut Vec<Packet>) {
        if let Some(next) = next.near(self.next)
            && next > self.next
        {
            self.expect(next, moment, batch);
            self.next = next;
        }
    }

    /// Gives up what is too late, so that `batch` gets what was held for it. Returns a request for what is missing and
    /// due.
    pub(crate) fn expire(&mut self, moment: Moment, batch: &mut Vec<Packet>) -> Option<Bytes> {
        let now = moment.now;
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        let rtt = self.timing.round_trip(moment.rtt);
        let (limit, patience) = (limit(rtt), self.timing.patience(rtt));
        let (mut too_late, mut ranges) = (Vec::new(), Vec::new());
        let (tolerance, mut deadline) = (self.timing.tolerance, None::<Instant>);
        let (quiet_until, patient_until) = (self.quiet_until, self.patient_until);
        let ends = |gap: &Gap| {
            let end = patient_until.max(Some(gap.since + limit)).unwrap_or(now);
            end.min(gap.born + LONGEST.max(limit))
        };
        self.missing.retain(&mut too_late, |first, end, gap| {
            if ends(gap) <= now {
                return false;
            }
            let due = gap.asked.map_or(gap.since + tolerance, |asked| asked.last + patience);
            let due = quiet_until.map_or(due, |at| at.max(due));
            let mut wake = due;
            if due <= now {
                if ranges.len() + (end - first).div_ceil(255) as usize > MAX_RANGES {
                    wake = now + PACE;
                } else {
                    let asked = gap.asked.unwrap_or(Asked { first: now, last: now, times: 0 });
                    let attempt = asked.times.saturating_add(1);
                    gap.asked = Some(Asked { last: now, times: attempt, ..asked });
                    wake = now + patience;
                    ranges.extend((first..end).step_by(255).map(|at| Range {
                        first: Short::of(at),
                        count: (end - at).min(255) as u8,
                        attempt,
                    }));
                }
            }
            let wake = wake.min(ends(gap));
            deadline = Some(deadline.map_or(wake, |deadline| deadline.min(wake)));
            true
        });
        // A look at everything is worth a pause.
        self.deadline = deadline.map(|deadline| deadline.max(now + PACE));
        for (first, end) in too_late {
            self.give_up(first, end, now, batch);
        }
        (!ranges.is_empty()).then(|| Missing::encode(&ranges))
    }

    /// Packets come over another path from here on, or over the same one again. What is missing may still be under way
    /// on the one before, with its round trip, and has time to come over the new one.
    pub(crate) fn path_changed(&mut self, Moment { now, rtt }: Moment) {
        self.patient_until = None;
        self.be_patient(now, self.timing.round_trip(rtt));
        self.timing.path_changed();
    }

    /// What is here, for the other side: it sends the rest again, and that takes a round trip.
    pub(crate) fn resume(&mut self, exchange: Exchange, Moment { now, rtt }: Moment) -> Bytes {
        self.be_patient(now, rtt * 3 / 2);
        let is_recent = |at: Instant| now.saturating_duration_since(at) < LATELY;
        let given_up = self.given_up.iter().rev().filter(|(.., at)| is_recent(*at));
        let given_up = given_up.map(|(first, end, _)| (first, end));
        let missing = self.missing.iter().rev().map(|(first, end, _)| (first, end));
        Resume::encode(exchange, self.next, missing.chain(given_up))
    }

    /// Asks for nothing for so long, and gives nothing up for a while. A path that is silent for a moment again and again does
    /// not make that longer: a packet that the other side no longer has would hold up its flow for good.
    fn be_patient(&mut self, now: Instant, quiet: Duration) {
        let quiet_until = now + quiet.min(PATIENCE);
        // What was sent again over the path before may be sent once more.
        self.answered.clear();
        let is_patient = self.patient_until.is_some_and(|until| now < until);
        (self.quiet_until, self.patient_until) = (Some(quiet_until), Some(now + PATIENCE));
        self.missing.change(|gap| {
            let born = if is_patient { gap.born } else { now };
            *gap = Gap { since: now, born, asked: None };
        });
        self.deadline = self.deadline.map(|_| quiet_until);
    }

    /// Packets come over a standby while the path in use is late: what is missing may be under way there, and would be
    /// sent again into the same queue, or may have to wait for a switch.
    pub(crate) fn wait_for_switch(&mut self, Moment { now, rtt }: Moment) {
        self.quiet_until = self.quiet_until.max(Some(now + rtt.min(PATIENCE)));
        self.patient_until = Some(now + PATIENCE);
    }

    /// Packets that came once more, since they were counted last.
    pub(crate) fn duplicates(&self) -> u64 {
        self.events.duplicates
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }

    /// All numbers before `number` that did not come are missing.
    fn expect(&mut self, number: u64, moment: Moment, batch: &mut Vec<Packet>) {
        if number == self.next {
            return;
        }
        let first = self.next.max(number.saturating_sub(MOST_MISSING));
        self.give_up(self.next, first, moment.now, batch);
        self.missing.insert(
            first,
            number,
            Gap { since: moment.now, born: moment.now, asked: None },
        );
        while let Some(excess) = self.missing.numbers().checked_sub(MOST_MISSING + 1)
            && let Some((first, end)) = self.missing.remove_first(excess + 1)
        {
            self.give_up(first, end, moment.now, batch);
        }
        self.timing.forget(moment.now);
        let due = moment.now + self.timing.tolerance;
        self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
    }

    /// A missing packet has arrived.
    fn arrived(&mut self, number: u64, gap: Gap, moment: Moment) {
        if self.missing.is_empty() {
            self.deadline = None;
        }
        let late = moment.now.saturating_duration_since(gap.since);
        // Over two paths any packet is late.
        let teaches = self.quiet_until.is_none_or(|until| until <= gap.since);
        // What comes much less than a round trip after it was first asked for is no answer.
        let is_answer =
            |asked: &Asked| moment.now.saturating_duration_since(asked.first) >= moment.rtt / 3;
        let Some(asked) = gap.asked.filter(is_answer) else {
            if teaches {
                self.timing.reordered(late, moment.now);
            }
            return;
        };
        self.events.repaired += 1;
        self.timing.repaired(asked, moment);
        // Several requests, or the second of them, have several packets sent.
        if teaches && asked.times == 1 {
            self.answered.insert(number, (moment.now, late));
            if self.answered.len() > MOST_ANSWERED {
                self.answered.pop_first();
            }
        }
    }

    /// Whether a packet must wait for this number.
    fn is_awaited(&self, number: u64) -> bool {
        !self.missing.is_empty()
            && (self.missing.contains(number) || self.held_numbers.contains(&number))
    }

    fn hold(&mut self, before: u64, held: Held, now: Instant, batch: &mut Vec<Packet>) {
        let memory = MEMORY.min(self.share.limit(false));
        while self.held_bytes + held.cost() > memory
            && let Some((first, end)) = self.missing.remove_first(1)
        {
            self.give_up(first, end, now, batch);
        }
        if self.is_awaited(before)
            && let Entry::Vacant(place) = self.held.entry(before)
        {
            self.held_bytes += held.cost();
            self.share.take(self.held_bytes);
            self.held_numbers.insert(held.number);
            place.insert(held);
        } else {
            batch.push(held.packet);
            self.release(held.number, batch);
        }
    }

    /// Delivers what waits for this number, and what waits for that.
    fn release(&mut self, mut number: u64, batch: &mut Vec<Packet>) {
        while let Some(held) = self.held.remove(&number) {
            self.held_bytes -= held.cost();
            self.share.take(self.held_bytes);
            self.held_numbers.remove(&held.number);
            number = held.number;
            batch.push(held.packet);
        }
    }

    /// Takes note that numbers that are not missing any more will not come in time.
    fn give_up(&mut self, first: u64, end: u64, now: Instant, batch: &mut Vec<Packet>) {
        self.events.given_up += end - first;
        self.given_up.insert(first, end, now);
        self.bound_given_up();
        if self.missing.is_empty() {
            self.deadline = None;
        }
        while let Some((waits_for, _)) = self.held.range(first..end).next() {
            self.events.awaited += 1;
            self.release(*waits_for, batch);
        }
    }

    fn bound_given_up(&mut self) {
        while self.given_up.ranges() > MOST_GIVEN_UP {
            self.given_up.remove_first(u64::MAX);
        }
    }

    /// Ranges of numbers that were given up.
    #[cfg(test)]
    pub(super) fn given_up_ranges(&self) -> usize {
        self.given_up.ranges()
    }

    /// Bytes of memory of what is held.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn kept(&self) -> usize {
        self.held_bytes
    }
}

/// How long a repair takes, and by how much the network reorders.
#[derive(Debug)]
struct Timing {
    /// Mean and deviation.
    repair: Option<(Duration, Duration)>,
    tolerance: Duration,
    /// When a packet was late last, by not much less than is waited, and by how much.
    late: Option<(Instant, Duration)>,
}

impl Default for Timing {
    fn default() -> Self {
        Self { repair: None, tolerance: TOLERANCE, late: None }
    }
}

impl Timing {
    /// How long to wait for the answer to a request.
    fn patience(&self, rtt: Duration) -> Duration {
        let measured = self.repair.map(|(mean, deviation)| mean + 4 * deviation + GRANULARITY);
        measured.unwrap_or(rtt * 9 / 8 + FIRST_WAIT).clamp(rtt, rtt * 3 / 2 + GIVEN_UP)
    }

    /// The round trip of the slowest packets: quinn measures it by those that overtake others.
    fn round_trip(&self, rtt: Duration) -> Duration {
        rtt + (self.tolerance - TOLERANCE)
    }

    /// What was learnt of the path before is of no use.
    fn path_changed(&mut self) {
        (self.tolerance, self.late) = (TOLERANCE, None);
    }

    /// A packet arrived so much later than its successor, although nobody sent it again. One such packet may be an
    /// accident.
    fn reordered(&mut self, late: Duration, now: Instant) {
        if late < self.tolerance / 2 {
            return;
        }
        if let Some((_, before)) = self.late.replace((now, late)) {
            self.tolerance = self.tolerance.max(late.min(before) * 5 / 4).min(MOST_TOLERANCE);
        }
    }

    /// Forgets what no late packet has confirmed.
    fn forget(&mut self, now: Instant) {
        if self.late.take_if(|(at, _)| *at + MEMORY_OF_LATE <= now).is_some() {
            self.tolerance -= (self.tolerance - TOLERANCE) / 2;
            if self.tolerance > TOLERANCE * 5 / 4 {
                self.late = Some((now, Duration::ZERO));
            }
        }
    }

    /// A packet was asked for and sent again.
    fn repaired(&mut self, asked: Asked, Moment { now, rtt }: Moment) {
        self.tolerance -= (self.tolerance - TOLERANCE) / 16;
        // Which of several requests was answered? The last one, unless it was made too late for that.
        let since_last = now.saturating_duration_since(asked.last);
        let took = match asked.times {
            1 => since_last,
            2 if since_last < rtt / 2 => now.saturating_duration_since(asked.first),
            _ => return,
        };
        self.repair = Some(match self.repair {
            // As a round trip is smoothed (RFC 6298 §2.3).
            Some((mean, deviation)) => {
                ((mean * 7 + took) / 8, (deviation * 3 + mean.abs_diff(took)) / 4)
            }
            None => (took, took / 8),
        });
    }
}

/// How long a packet may be missing.
fn limit(rtt: Duration) -> Duration {
    (rtt * 7 / 2 + GIVEN_UP).min(LATEST.max(rtt * 3 / 2 + 2 * GIVEN_UP))
}
