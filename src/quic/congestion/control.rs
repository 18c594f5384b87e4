//! The control of one path: how the window grows, what limits it, and which losses count.

use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use tracing::debug;

use super::{
    confirm::{Confirmation, Declared},
    delay::{Acked, DelayLimit, Turn},
    flight::Flight,
    loss::{LossJudge, Lost, Outcome, Verdict},
    resume::{CarefulResume, Delivery, Remembered, Step},
    stand::{Heard, Stand},
};

/// Packets that the window has room for in any case.
const LEAST: u64 = 2;
/// No trial goes below so many: with fewer, chance decides what is lost.
const TELLING: u64 = 4;
/// A sender with at most so many packets under way congests nothing.
const LITTLE: u64 = 4;
/// Less than this part of the window is as good as none: slow start keeps the window at twice what is used.
const UNUSED: u64 = 4;
/// What is left of a window after congestion (RFC 9438 §4.6).
pub(super) const LEFT: f64 = 0.7;

/// The second slow start of a path is over after so many round trips: with a quarter more in each, any window is open.
const SECOND_START: u32 = 20;

/// How a window may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It was not used, or growing is of no use.
    Hold,
    /// With care: losses are more than usual.
    Careful,
    Free,
}

/// What tells of congestion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Congestion {
    /// When the last of the packets that show it was sent.
    pub(crate) sent: Instant,
    pub(crate) persistent: bool,
    pub(crate) lost_bytes: u64,
    /// What was too much, and the part of it that is left.
    pub(crate) window: u64,
    pub(crate) left: f64,
}

/// How a window grows, and what congestion does to it.
pub(crate) trait Growth: Clone + Send + Sync + 'static {
    fn begin(now: Instant, window: u64, mtu: u16) -> Self;
    fn window(&self) -> u64;
    /// Whether it grows as fast as it can, as nothing is known yet.
    fn is_starting(&self) -> bool;
    fn on_sent(&mut self, _now: Instant, _bytes: u64, _last_packet_number: u64) {}
    /// quinn's own estimate of the round trip, before each acknowledged packet.
    fn estimate(&mut self, _estimate: &RttEstimator) {}
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, pace: Pace);
    fn on_end_acks(
        &mut self,
        _now: Instant,
        _in_flight: u64,
        _app_limited: bool,
        _largest: Option<u64>,
    ) {
    }
    fn on_congestion(&mut self, now: Instant, congestion: Congestion);
    fn set_mtu(&mut self, mtu: u16);
    /// Goes on at `window` at least after a cut that went deeper than it had to.
    fn recover(&mut self, now: Instant, window: u64);
    /// Goes on at `window` beside somebody else.
    fn compete(&mut self, now: Instant, window: u64);
    /// Slow start goes up to `window`.
    fn resettle(&mut self, window: u64);
    /// Goes on at `window`, or at the present one, as if nothing had been lost so far.
    fn reopen(&mut self, now: Instant, window: Option<u64>);
}

/// The most bytes that were under way in this round trip and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    this: u64,
    before: u64,
    /// When this round trip began.
    begun: Option<Instant>,
}

impl Peak {
    fn sent(&mut self, in_flight: u64) {
        self.this = self.this.max(in_flight);
    }

    /// A packet of `sent` was acknowledged.
    fn arrived(&mut self, now: Instant, sent: Instant) {
        if self.begun.is_none_or(|begun| sent >= begun) {
            *self = Self { this: 0, before: self.this, begun: Some(now) };
        }
    }

    fn most(&self) -> u64 {
        self.this.max(self.before)
    }
}

/// A cut that ends slow start may follow from a few packets that a radio has lost together, and from there CUBIC takes
/// 10 s. So slow start goes on once more, with care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    First,
    /// Until then.
    Second(Instant),
    Over,
}

/// The window of one path.
#[derive(Clone, Debug)]
pub(super) struct PathControl<G> {
    growth: G,
    /// `growth` before the cut that is on trial.
    before_cut: Option<G>,
    /// What an ordinary cut would have left.
    after_cut: u64,
    start: Start,
    flight: Flight,
    peak: Peak,
    /// Whether there was less to send than fits, of late.
    app_limited: bool,
    delay: DelayLimit,
    /// If the other side tells what it misses.
    confirmation: Option<Confirmation>,
    losses: LossJudge,
    stand: Stand,
    mtu: u16,
    /// When the newest packet that the present acknowledgement tells of was sent.
    newest: Option<Instant>,
    /// A path that is remembered, until it has proved to be what it was.
    resume: Option<CarefulResume>,
    delivery: Delivery,
}

impl<G: Growth> PathControl<G> {
    /// Begins with a window of `window` bytes.
    pub(super) fn new(now: Instant, window: u64, mtu: u16) -> Self {
        Self {
            growth: G::begin(now, window, mtu),
            before_cut: None,
            after_cut: 0,
            start: Start::First,
            flight: Flight::default(),
            peak: Peak::default(),
            app_limited: false,
            delay: DelayLimit::default(),
            confirmation: None,
            losses: LossJudge::default(),
            stand: Stand::default(),
            mtu,
            newest: None,
            resume: None,
            delivery: Delivery::default(),
        }
    }

    pub(super) fn window(&self) -> u64 {
        // A window below one packet would be closed for ever.
        self.delay.apply(self.growth.window()).max(LEAST * u64::from(self.mtu))
    }

    /// Whether the cut that ended the first slow start is on trial, after which slow start goes on: how much the path carries
    /// is not known meanwhile.
    pub(super) fn is_start_on_trial(&self) -> bool {
        self.start == Start::First && self.before_cut.is_some() && self.losses.is_start_on_trial()
    }

    /// Goes on with what is remembered of the path, as soon as it has proved to be the same.
    pub(super) fn resume(&mut self, path: Remembered) {
        self.resume = Some(CarefulResume::new(path));
    }

    /// Bytes that the path delivered of late in `rtt`, its shortest round trip; zero where that is not known.
    pub(super) fn delivered_in(&self, rtt: Duration) -> u64 {
        self.delivery.in_round_trip(rtt)
    }

    fn go_on_resuming(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let Some(resume) = &mut self.resume else { return };
        match resume.on_ack(now, sent, bytes, self.growth.window()) {
            Step::Wait => return,
            Step::Window(window) => {
                debug!(window, "resuming");
                self.growth.reopen(now, Some(window));
                return;
            }
            Step::Resettle(window) => self.growth.resettle(window),
            Step::Done => {}
        }
        self.resume = None;
    }

    pub(super) fn estimate(&mut self, estimate: &RttEstimator) {
        self.growth.estimate(estimate);
    }

    /// `bytes` were sent; with them `in_flight` bytes are under way.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64, last: u64) {
        self.flight.sent(now, in_flight);
        if let Some(resume) = &mut self.resume {
            resume.on_sent(now, in_flight, self.growth.window(), self.mtu);
        }
        self.peak.sent(in_flight);
        self.growth.on_sent(now, bytes, last);
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        self.newest = self.newest.max(Some(sent));
        self.app_limited = app_limited;
        self.delivery.on_ack(now, sent, bytes);
        let rtt = self.delay.base().unwrap_or_default();
        if let Some(confirmation) = &mut self.confirmation {
            confirmation.acknowledge(now, bytes, rtt);
        }
        self.go_on_resuming(now, sent, bytes);
        self.flight.arrived(now, sent);
        self.peak.arrived(now, sent);
        let in_flight = self.flight.at(sent);
        if let Some(in_flight) = in_flight {
            let acked = Acked { sent, in_flight, app_limited };
            match self.delay.on_ack(now, acked, self.growth.window(), self.mtu) {
                // Whoever keeps a part keeps just that: nobody answers to a larger one.
                Some(Turn::Compete(_)) if self.stand.stands() => {}
                Some(Turn::Compete(window)) => {
                    debug!(window, base = ?self.delay.base(), "somebody else fills the queue");
                    self.before_cut = None;
                    self.growth.compete(now, window);
                }
                Some(Turn::Alone) => {
                    debug!(base = ?self.delay.base(), window = self.window(), "the queue is ours");
                    self.growth.reopen(now, None);
                }
                None => {}
            }
        }
        if let Some(outcome) = self.losses.on_ack(now, sent, bytes, self.mtu)
            && let Some(before) = self.before_cut.take()
        {
            debug!(window = before.window(), ?outcome, "the trial is over");
            match outcome {
                Outcome::InVain | Outcome::Needless => {
                    if before.window() > self.growth.window() {
                        self.growth = before;
                    }
                }
                Outcome::Helped => {
                    self.growth.recover(now, self.after_cut);
                    if before.is_starting() && self.start == Start::First {
                        let lasts = SECOND_START * self.delay.base().unwrap_or_default();
                        self.start = Start::Second(now + lasts);
                        self.growth.reopen(now, None);
                    }
                }
            }
        }
        let share = self.losses.overflow();
        let round_trip = self.delay.base().unwrap_or_default();
        let heard = Heard { now, bytes, share, round_trip, mtu: self.mtu };
        if let Some(window) = self.stand.on_ack(heard, self.delay.rates()) {
            debug!(window, share, "somebody ignores losses");
            self.before_cut = None;
            self.losses.end_trial();
            self.growth.compete(now, window);
        }
        let window = self.growth.window();
        let is_unused = if app_limited {
            // Slow start keeps a window of twice what is used, as Linux does (tcp_is_cwnd_limited): inner connections
            // double what they send each round trip, and take the wait in front of a smaller window for a queue.
            !self.growth.is_starting() || self.peak.most() < window / 2
        } else {
            // More waits than the window lets out. Only what has arrived says that there is room: what is still under way
            // may be too much already.
            in_flight.is_some_and(|in_flight| in_flight < window / 2)
        };
        // What the limit keeps back is no reason to grow.
        let unused = is_unused
            || in_flight.is_none()
            || self.delay.holds_back(window)
            || self.losses.is_on_trial()
            || self.stand.stands()
            || self.resume.is_some_and(|resume| resume.holds_window());
        if let Start::Second(until) = self.start
            && (now >= until || !self.growth.is_starting())
        {
            self.start = Start::Over;
        }
        let pace = if unused {
            Pace::Hold
        } else if matches!(self.start, Start::Second(_)) || self.losses.holds_growth(self.mtu) {
            Pace::Careful
        } else {
            Pace::Free
        };
        self.growth.on_ack(now, sent, bytes, pace);
    }

    pub(super) fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest: Option<u64>,
    ) {
        if let Some(sent) = self.newest.take() {
            self.losses.on_round_trip(now, now.saturating_duration_since(sent));
            self.delay.on_round_trip(now, sent, self.mtu);
        }
        self.growth.on_end_acks(now, in_flight, app_limited, largest);
    }

    /// quinn declares packets of `bytes` lost, or none but a mark came back; the last of them was sent at `sent`.
    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, persistent: bool, bytes: u64) {
        let loss = Declared { sent, in_flight: self.flight.at(sent), bytes };
        // Where little is sent, one burst of losses lasts for three probe timeouts. To close the window for that would slow
        // down what is sent next.
        let is_little = |in_flight| in_flight <= LITTLE * u64::from(self.mtu);
        let is_unused = self.is_unused(loss.in_flight);
        let persistent = persistent && !is_unused && !loss.in_flight.is_some_and(is_little);
        match &mut self.confirmation {
            Some(confirmation) if bytes > 0 && !persistent => {
                match confirmation.declare(now, loss) {
                    Some(loss) => self.lose(now, loss, false),
                    None => self.on_asked(now, 0),
                }
            }
            _ => self.lose(now, loss, persistent),
        }
    }

    /// The other side, which asks for what it misses, asked for so many bytes more.
    pub(super) fn on_asked(&mut self, now: Instant, bytes: u64) {
        let rtt = self.delay.base().unwrap_or_default();
        self.confirmation.get_or_insert_default().ask(now, bytes, rtt);
        while let Some(loss) = self.confirmation.as_mut().and_then(|it| it.next(now)) {
            self.lose(now, loss, false);
        }
    }

    /// Whether less than a quarter of the window was in use when a packet was lost with which `then` bytes were under way,
    /// because there was no more to send. Who acknowledges a transfer the other way is such a sender. A cut would not change what
    /// it sends: a trial could show nothing, and the next transfer would begin with what it left.
    fn is_unused(&self, then: Option<u64>) -> bool {
        let most = self.peak.most().max(then.unwrap_or_default());
        self.app_limited && most < self.window() / UNUSED
    }

    fn lose(&mut self, now: Instant, loss: Declared, persistent: bool) {
        let Declared { sent, in_flight: then, bytes } = loss;
        let is_mark = bytes == 0;
        let is_answered = match then {
            Some(then) => self.window() <= (LEFT * then as f64) as u64,
            // A loss that is found out so late is of another window.
            None => !is_mark,
        };
        let lost = Lost {
            sent,
            bytes,
            rate: self.delay.rates().0,
            base: self.delay.base().unwrap_or_default(),
            competes: self.delay.competes(),
            delayed: self.delay.holds_back(self.growth.window()),
            app_limited: self.app_limited,
            starves: self.delay.starves(),
            starts: self.growth.is_starting(),
            is_answered,
            is_unused: self.is_unused(then),
        };
        let verdict = self.losses.on_loss(now, lost, self.mtu);
        self.stand.on_loss(bytes);
        if self.stand.stands() && !is_mark && !persistent {
            self.losses.end_trial();
            return;
        }
        let left = if is_mark && is_answered {
            return;
        } else if is_mark || persistent {
            self.before_cut = None;
            self.losses.end_trial();
            self.stand.give_up(now);
            LEFT
        } else if let Verdict::Congestion { left } = verdict {
            if self.losses.is_on_trial() {
                self.before_cut.get_or_insert_with(|| self.growth.clone());
            } else {
                self.before_cut = None;
            }
            left
        } else {
            return;
        };
        // What was under way when the packet was sent was too much. The window may be smaller by now.
        let window = self.window().max(then.unwrap_or_default());
        let left = left.max((TELLING * u64::from(self.mtu)) as f64 / window as f64).min(LEFT);
        debug!(window, left, persistent, bytes, "congestion");
        self.after_cut = self.window().min((window as f64 * LEFT) as u64);
        self.growth
            .on_congestion(now, Congestion { sent, persistent, lost_bytes: bytes, window, left });
        self.resume.take_if(|resume| resume.ends_at_congestion());
        if let Some(window) = self.resume.as_mut().and_then(|resume| resume.retreat(now)) {
            debug!(window, "the path is not what it was");
            self.before_cut = None;
            self.losses.end_trial();
            self.growth.compete(now, window.min(self.after_cut));
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.growth.set_mtu(mtu);
    }
}
