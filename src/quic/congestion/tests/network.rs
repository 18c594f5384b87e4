//! A network in virtual time, packet by packet: one slow link that several flows share.
//!
//! ```text
//!  flow ─┐                                                 ┌─ acknowledgement after `base`
//!  flow ─┼─▶ token bucket ─▶ drop-tail queue ─▶ link ─▶ loss ─▶ receiver
//!  flow ─┘
//! ```
//! A flow sends as quinn does: paced at 5/4 of its window a round trip, unless it has a rate of its own.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

pub(crate) const MTU: u16 = 1452;
const SIZE: u64 = MTU as u64;
pub(crate) const MS: Duration = Duration::from_millis(1);

/// What decides how much a flow sends.
pub(crate) trait Sender {
    fn window(&self) -> u64;
    /// Bytes per second; `None` is quinn's pace.
    fn rate(&self) -> Option<f64> {
        None
    }
    /// A packet is lost when one so many numbers later has arrived, or after so many round trips.
    fn patience(&self) -> (u64, f64) {
        (3, 1.125)
    }
    fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64);
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        in_flight: u64,
    );
    fn on_end_acks(&mut self, now: Instant, in_flight: u64);
    fn on_loss(&mut self, now: Instant, sent: Instant, persistent: bool, bytes: u64);
    /// The other side asks for so many bytes.
    fn on_asked(&mut self, _now: Instant, _bytes: u64) {}
}

/// What a flow has to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    Endless,
    /// Bytes per second, in bursts that come so long after each other.
    Bursts {
        rate: f64,
        every: Duration,
    },
}

struct Packet {
    number: u64,
    sent: Instant,
    delivered: u64,
    is_marked: bool,
    state: State,
}

#[derive(PartialEq)]
enum State {
    UnderWay,
    Gone,
}

struct Flow {
    sender: Box<dyn Sender>,
    source: Source,
    begins: Duration,
    ends: Duration,
    packets: VecDeque<Packet>,
    next: u64,
    in_flight: u64,
    backlog: f64,
    smoothed: Duration,
    /// The newest packet that has arrived, and its round trip: quinn measures no other.
    newest: u64,
    latest: Duration,
    tokens: f64,
    refilled: Instant,
    wakes: Option<Instant>,
    reaches: Instant,
    is_measured: bool,
    heard: Instant,
    app_limited: bool,
    delivered: u64,
    lost: u64,
    sent: u64,
}

impl Flow {
    fn packet(&mut self, number: u64) -> Option<&mut Packet> {
        let first = self.packets.front()?.number;
        self.packets.get_mut(number.checked_sub(first)? as usize)
    }

    fn time_out(&self) -> Duration {
        if self.is_measured { self.smoothed * 3 / 2 + 25 * MS } else { 3000 * MS }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Arrives(usize, u64),
    Departs,
    Acknowledged(usize, u64),
    Asked(usize),
}

/// The link and its flows.
pub(crate) struct Network {
    /// Bytes per second.
    pub(crate) rate: f64,
    pub(crate) base: Duration,
    /// How long the last packet that fits waits.
    pub(crate) buffer: Duration,
    pub(crate) loss: f64,
    /// Packets that wait for longer are marked (ECN).
    pub(crate) mark: Option<Duration>,
    /// How many packets are lost together on average (Gilbert and Elliott's model); 1 for each by itself.
    pub(crate) burst: f64,
    in_burst: bool,
    /// What the way to the receiver and back takes longer, at random for each packet: they overtake one another.
    pub(crate) jitter: Duration,
    /// How long after its successor the receiver asks for a lost packet; `None` if it never does.
    pub(crate) tolerance: Option<Duration>,
    /// Packets leave the air together, so often at the least; zero for a wire.
    pub(crate) aggregation: Duration,
    /// Tokens per second, and how many are kept.
    pub(crate) bucket: Option<(f64, f64)>,
    tokens: f64,
    refilled: Instant,
    random: fastrand::Rng,
    start: Instant,
    pub(crate) now: Instant,
    queue: VecDeque<(usize, u64)>,
    tick: Instant,
    flows: Vec<Flow>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    waits: Vec<Duration>,
    dropped: u64,
}

/// What happened in a while.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Megabits per second of each flow.
    pub(crate) mbit: Vec<f64>,
    /// The share of each flow's packets that was lost.
    pub(crate) lost: Vec<f64>,
    /// Waits in the queue.
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

impl Network {
    pub(crate) fn new(mbit: f64, base: Duration, buffer: Duration) -> Self {
        let now = Instant::now();
        Self {
            rate: mbit * 125_000.0,
            base,
            buffer,
            loss: 0.0,
            mark: None,
            burst: 1.0,
            in_burst: false,
            jitter: Duration::ZERO,
            tolerance: Some(2 * MS),
            aggregation: Duration::ZERO,
            bucket: None,
            tokens: 0.0,
            refilled: now,
            random: fastrand::Rng::with_seed(7),
            start: now,
            now,
            queue: VecDeque::new(),
            tick: now,
            flows: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            waits: Vec::new(),
            dropped: 0,
        }
    }

    /// Another course of chance.
    pub(crate) fn seed(&mut self, seed: u64) {
        self.random = fastrand::Rng::with_seed(seed);
    }

    /// A flow from now on.
    pub(crate) fn add(&mut self, sender: impl Sender + 'static, source: Source) {
        let now = self.now;
        self.flows.push(Flow {
            sender: Box::new(sender),
            source,
            begins: now - self.start,
            ends: Duration::MAX,
            packets: VecDeque::new(),
            next: 0,
            in_flight: 0,
            backlog: 0.0,
            smoothed: 100 * MS,
            newest: 0,
            latest: Duration::ZERO,
            tokens: 10.0 * SIZE as f64,
            refilled: now,
            wakes: None,
            reaches: now,
            is_measured: false,
            heard: now,
            app_limited: false,
            delivered: 0,
            lost: 0,
            sent: 0,
        });
        self.at(now, Event::Wake(self.flows.len() - 1));
    }

    pub(crate) fn window(&self, flow: usize) -> u64 {
        self.flows[flow].sender.window()
    }

    /// From now on a flow has as much to send as fits.
    pub(crate) fn fill(&mut self, flow: usize) {
        self.flows[flow].source = Source::Endless;
        self.wake(flow, self.now);
    }

    pub(crate) fn stop(&mut self, flow: usize) {
        self.flows[flow].ends = self.now - self.start;
    }

    fn is_lost(&mut self) -> bool {
        let again = if self.in_burst {
            1.0 - 1.0 / self.burst
        } else {
            self.loss / (1.0 - self.loss) / self.burst
        };
        let drawn = self.random.f64();
        if self.burst == 1.0 {
            return drawn < self.loss;
        }
        self.in_burst = drawn < again;
        self.in_burst
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, event)));
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) -> Report {
        let end = self.now + time;
        let before: Vec<_> = self.flows.iter().map(|it| (it.delivered, it.lost, it.sent)).collect();
        self.waits.clear();
        while let Some(Reverse((when, _, event))) = self.events.peek().copied() {
            if when > end {
                break;
            }
            self.events.pop();
            self.now = when;
            match event {
                Event::Wake(flow) => {
                    if self.flows[flow].wakes.is_some_and(|it| it <= when) {
                        self.flows[flow].wakes = None;
                    }
                    self.time_out(flow);
                    self.send(flow);
                }
                Event::Arrives(flow, number) => self.arrives(flow, number),
                Event::Departs => self.departs(),
                Event::Acknowledged(flow, number) => self.acknowledged(flow, number),
                Event::Asked(flow) => self.flows[flow].sender.on_asked(when, SIZE),
            }
        }
        self.now = end;
        let seconds = time.as_secs_f64();
        self.waits.sort_unstable();
        let part = |share: f64| {
            let at = (self.waits.len() as f64 * share) as usize;
            self.waits.get(at).copied().unwrap_or_default()
        };
        let flows = || self.flows.iter().zip(&before);
        Report {
            mbit: flows()
                .map(|(it, b)| (it.delivered - b.0) as f64 / seconds / 125_000.0)
                .collect(),
            lost: flows()
                .map(|(it, b)| (it.lost - b.1) as f64 / (it.sent - b.2).max(1) as f64)
                .collect(),
            median: part(0.5),
            p99: part(0.99),
        }
    }

    fn wake(&mut self, flow: usize, when: Instant) {
        if self.flows[flow].wakes.is_none_or(|it| when < it) {
            self.flows[flow].wakes = Some(when);
            self.at(when, Event::Wake(flow));
        }
    }

    fn send(&mut self, index: usize) {
        let now = self.now;
        let flow = &mut self.flows[index];
        if now - self.start >= flow.ends {
            return;
        }
        let elapsed = now.saturating_duration_since(flow.refilled).as_secs_f64();
        flow.refilled = now;
        let smoothed = flow.smoothed.as_secs_f64();
        let pace =
            flow.sender.rate().unwrap_or_else(|| 1.25 * flow.sender.window() as f64 / smoothed);
        let burst = if flow.sender.rate().is_some() { 2.0 } else { 10.0 };
        flow.tokens = (flow.tokens + pace * elapsed).min((pace * 0.002).max(burst * SIZE as f64));
        if let Source::Bursts { rate, every } = flow.source {
            // The clock of bursts is the whole network's.
            let since = (now - self.start).as_nanos() / every.as_nanos();
            let due = since as f64 * every.as_secs_f64() * rate;
            let offered = due - flow.begins.as_secs_f64() * rate;
            // An inner sender gives up what does not leave within a fifth of a second.
            flow.backlog = (offered - flow.sent as f64 * SIZE as f64).min(rate / 5.0);
            if offered - flow.sent as f64 * SIZE as f64 > rate / 5.0 {
                let dropped = (offered - flow.sent as f64 * SIZE as f64 - rate / 5.0) / SIZE as f64;
                flow.begins += Duration::from_secs_f64(dropped * SIZE as f64 / rate);
            }
        } else {
            flow.backlog = f64::INFINITY;
        }
        let mut again = None;
        loop {
            let flow = &mut self.flows[index];
            if flow.backlog < SIZE as f64 {
                flow.app_limited = true;
                if let Source::Bursts { every, .. } = flow.source {
                    let next = (now - self.start).as_nanos() / every.as_nanos() + 1;
                    again = Some(self.start + every * next as u32);
                }
                break;
            }
            if flow.in_flight + SIZE >= flow.sender.window() {
                flow.app_limited = false;
                break;
            }
            if flow.tokens < SIZE as f64 {
                flow.app_limited = false;
                let missing = (SIZE as f64 - flow.tokens) / pace.max(1.0);
                again = Some(now + Duration::from_secs_f64(missing.min(10.0)).max(MS / 4));
                break;
            }
            flow.tokens -= SIZE as f64;
            flow.backlog -= SIZE as f64;
            flow.in_flight += SIZE;
            flow.sent += 1;
            if flow.packets.is_empty() {
                flow.heard = now;
            }
            let (number, in_flight) = (flow.next, flow.in_flight);
            flow.next += 1;
            let delivered = flow.delivered;
            flow.packets.push_back(Packet {
                number,
                sent: now,
                delivered,
                is_marked: false,
                state: State::UnderWay,
            });
            flow.sender.on_sent(now, SIZE, in_flight);
            // Without chance, flows take turns in patterns that no real link has.
            let reaches =
                (now + MS.mul_f64(self.random.f64() / 2.0)).max(self.flows[index].reaches);
            self.flows[index].reaches = reaches;
            self.at(reaches, Event::Arrives(index, number));
        }
        let flow = &self.flows[index];
        let probe = (!flow.packets.is_empty())
            .then(|| flow.heard + flow.time_out())
            .map(|it| it.max(now + MS));
        if let Some(when) = [again, probe].into_iter().flatten().min() {
            self.wake(index, when);
        }
    }

    fn arrives(&mut self, flow: usize, number: u64) {
        if let Some((rate, most)) = self.bucket {
            let elapsed = self.now.saturating_duration_since(self.refilled).as_secs_f64();
            self.tokens = (self.tokens + rate * elapsed).min(most);
            self.refilled = self.now;
            if self.tokens < SIZE as f64 {
                return self.is_missed(flow);
            }
            self.tokens -= SIZE as f64;
        }
        let wait = self.queue.len() as f64 * SIZE as f64 / self.rate;
        if wait > self.buffer.as_secs_f64() {
            self.dropped += 1;
            return self.is_missed(flow);
        }
        let wait = Duration::from_secs_f64(wait);
        self.waits.push(wait);
        if self.mark.is_some_and(|mark| wait > mark)
            && let Some(packet) = self.flows[flow].packet(number)
        {
            packet.is_marked = true;
        }
        self.queue.push_back((flow, number));
        if self.queue.len() == 1 {
            self.serve();
        }
    }

    fn serve(&mut self) {
        let took = Duration::from_secs_f64(SIZE as f64 / self.rate);
        self.at(self.now + took, Event::Departs);
    }

    fn departs(&mut self) {
        let Some((flow, number)) = self.queue.pop_front() else { return };
        if !self.queue.is_empty() {
            self.serve();
        }
        if self.is_lost() {
            return self.is_missed(flow);
        }
        let mut leaves = self.now;
        if self.aggregation > Duration::ZERO {
            while self.tick < self.now {
                self.tick += self.aggregation.mul_f64(0.5 + self.random.f64());
            }
            leaves = self.tick;
        }
        let late = self.late();
        self.at(leaves + self.base + late, Event::Acknowledged(flow, number));
    }

    /// A packet is lost: its successor shows that. A request takes as long as an acknowledgement.
    fn is_missed(&mut self, flow: usize) {
        if let Some(tolerance) = self.tolerance {
            let waits = Duration::from_secs_f64(self.queue.len() as f64 * SIZE as f64 / self.rate);
            let late = self.late();
            self.at(self.now + waits + self.base + late + tolerance, Event::Asked(flow));
        }
    }

    /// What jitter adds to a round trip.
    fn late(&mut self) -> Duration {
        if self.jitter == Duration::ZERO {
            return Duration::ZERO;
        }
        self.jitter.mul_f64(self.random.f64() + self.random.f64())
    }

    fn acknowledged(&mut self, index: usize, number: u64) {
        let now = self.now;
        let flow = &mut self.flows[index];
        let (later, round_trips) = flow.sender.patience();
        flow.heard = now;
        let Some(packet) = flow.packet(number).filter(|it| it.state != State::Gone) else { return };
        packet.state = State::Gone;
        let Packet { sent, delivered: then, is_marked, .. } = *packet;
        flow.in_flight -= SIZE;
        flow.delivered += SIZE;
        let rtt = now - sent;
        if number >= flow.newest {
            flow.smoothed = if flow.is_measured { (flow.smoothed * 7 + rtt) / 8 } else { rtt };
            (flow.is_measured, flow.newest, flow.latest) = (true, number, rtt);
        }
        let rate_bytes = flow.delivered - then;
        flow.sender.on_ack(now, sent, SIZE, flow.app_limited, rate_bytes);
        flow.sender.on_end_acks(now, flow.in_flight);
        if is_marked {
            flow.sender.on_loss(now, sent, false, 0);
        }
        if self.tolerance.is_some() {
            flow.sender.on_asked(now, 0);
        }
        let newest = flow.newest;
        let delay = flow.smoothed.max(flow.latest).mul_f64(round_trips);
        self.lose(
            index,
            |packet| {
                packet.number + later <= newest
                    || packet.number < newest && now - packet.sent >= delay
            },
            false,
        );
        self.send(index);
    }

    /// Nothing came for long: what is under way is lost, as in a probe timeout whose probe arrives.
    fn time_out(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        let silent = self.now.saturating_duration_since(flow.heard);
        if flow.packets.is_empty() || silent < flow.time_out() {
            return;
        }
        let now = self.now;
        flow.heard = now;
        let oldest = flow.packets.front().map_or(now, |it| it.sent);
        let persistent = now - oldest > 3 * flow.time_out() + flow.smoothed;
        let age = flow.smoothed.mul_f64(flow.sender.patience().1);
        self.lose(index, |packet| now - packet.sent >= age, persistent);
    }

    fn lose(&mut self, index: usize, is_lost: impl Fn(&Packet) -> bool, persistent: bool) {
        let flow = &mut self.flows[index];
        let (mut bytes, mut newest) = (0, None);
        for packet in &mut flow.packets {
            if packet.state == State::UnderWay {
                if !is_lost(packet) {
                    break;
                }
                packet.state = State::Gone;
                flow.in_flight -= SIZE;
                flow.lost += 1;
                bytes += SIZE;
                newest = Some(packet.sent);
            }
        }
        while flow.packets.front().is_some_and(|it| it.state == State::Gone) {
            flow.packets.pop_front();
        }
        if let Some(sent) = newest {
            flow.sender.on_loss(self.now, sent, persistent, bytes);
        }
    }
}
