//! Networks that become bad and good again.

use super::{
    quality::{LOOK, SECOND},
    *,
};
use crate::path::quality::{Look, Watch};

/// A burst takes so long.
const TAKES: Duration = Duration::from_millis(500);
/// Of so many large echoes in a train most must come, to show a rate.
const TRAIN: u32 = 10;
const MOST: u32 = 8;
/// A queue that is full delays packets by so much.
const FULL: u32 = 300;
/// After so long at the latest the best of two paths is used: its dwell time, the pause between two bursts, and a moment.
const PATIENCE: Duration = LONGEST_DWELL.saturating_add(Duration::from_secs(45));

/// What is true of a network.
#[derive(Clone, Copy, Debug)]
struct Net {
    /// The share of packets lost in each direction.
    loss: f64,
    /// The round trip in milliseconds.
    rtt: u32,
    /// What it carries in each direction, in bits per second.
    carries: u64,
}

/// What networks carry, in bits per second.
const WIDE: u64 = 50_000_000;
const MEAGRE: u64 = 200_000;
const GOOD: [Net; 2] =
    [Net { loss: 0.0, rtt: 10, carries: WIDE }, Net { loss: 0.0, rtt: 50, carries: WIDE }];

/// How long an exchange takes, in milliseconds, unless something is full.
fn cost(Net { loss, rtt, .. }: Net) -> f64 {
    f64::from(rtt) + 1000.0 * (1.0 - (1.0 - loss).powi(2))
}

/// What is true of wifi and lte, whose bursts and packets show it.
struct Truth {
    random: fastrand::Rng,
    links: [Net; 2],
    /// What is asked of the tunnel, up and down, in bits per second, beside what people type.
    asked: [u64; 2],
    watch: Watch,
    /// Its last look.
    look: Look,
    under_way: Vec<(Instant, PathKey, Burst)>,
    /// When each link was left last because it was bad, and how often in a row.
    left: [Option<(Instant, u32)>; 2],
}

impl Truth {
    fn new(seed: u64, now: Instant) -> Self {
        let mut watch = Watch::default();
        watch.begin(now);
        let look = Look {
            at: now,
            acknowledged: 0,
            lost: 0,
            sent_bytes: 0,
            received: 0,
            missing: 0,
            received_bytes: 0,
            rtt: None,
            wait: Duration::ZERO,
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            links: GOOD,
            asked: [0; 2],
            watch,
            look,
            under_way: Vec::new(),
            left: [None; 2],
        }
    }

    fn of(&self, path: PathKey) -> Net {
        self.links[path.link as usize - 1]
    }

    /// How many of these packets a network loses.
    fn lost(&mut self, packets: u64, loss: f64) -> u64 {
        (0..packets).filter(|_| self.random.f64() < loss).count() as u64
    }

    /// What the packets of the active path show.
    fn show(&mut self, active: PathKey, now: Instant) -> Symptoms {
        let Net { loss, rtt, carries } = self.of(active);
        // Somebody types, and a quarter of what is carried in a second.
        let bytes = self.asked.map(|asked| 300 + asked.min(carries) / 8 / 4);
        let packets = bytes.map(|bytes| 3 + bytes / 1250);
        let [up, down] = packets.map(|packets| self.lost(packets, loss));
        let is_full = self.asked.map(|asked| asked > carries);
        let waits = if is_full.contains(&true) { FULL } else { 0 };
        let look = &mut self.look;
        look.at = now;
        look.acknowledged += packets[0] - up;
        look.lost += up;
        look.sent_bytes += bytes[0];
        look.received += packets[1] - down;
        look.missing += down;
        look.received_bytes += bytes[1];
        look.rtt = Some((rtt + waits) * MS);
        look.wait = if is_full[0] { FULL * MS } else { Duration::ZERO };
        self.watch.look(*look, Some(GOOD[active.link as usize - 1].rtt * MS))
    }

    /// What a burst over a path shows.
    fn sample(&mut self, path: PathKey, burst: Burst) -> Option<Sample> {
        let Net { loss, rtt, carries } = self.of(path);
        let mut answers = |sent: u32| {
            let arrives = |_: &u32| self.random.f64() > loss && self.random.f64() > loss;
            (0..sent).filter(arrives).count() as u32
        };
        let sent = if burst == Burst::Large { 2 * TRAIN } else { 24 };
        let (answered, train) = (answers(sent), answers(TRAIN));
        let rate = (burst != Burst::Small && train >= MOST).then_some(carries);
        let sample = Sample { sent, answered, rtt: Some(rtt * MS), rate };
        Some(sample).filter(|_| answered > 0)
    }

    /// Lives until the next look.
    fn live(&mut self, fixture: &mut Fixture) {
        let mut actions = fixture.wait(LOOK);
        let due: Vec<_> = self.under_way.extract_if(.., |(at, ..)| *at <= fixture.now).collect();
        for (_, path, burst) in due {
            let sampled = self.sample(path, burst);
            actions.extend(fixture.tell(Event::Sampled(path, sampled)));
        }
        if let Some(active) = fixture.manager.active() {
            let symptoms = self.show(active, fixture.now);
            let rtt = GOOD[active.link as usize - 1].rtt * MS;
            actions.extend(fixture.tell(Event::Measured(active, rtt)));
            if fixture.manager.minds(&symptoms) {
                actions.extend(fixture.tell(Event::Symptoms(active, symptoms)));
            }
        }
        for action in actions {
            match action {
                Action::Ask(path) => {
                    let rtt = self.of(path).rtt * MS;
                    let _ = fixture.tell(Event::Answered(path, Some(rtt)));
                }
                Action::Sample(path, burst) => {
                    self.under_way.push((fixture.now + TAKES, path, burst));
                }
                Action::Switch(path, reason) => self.switch(path, reason, fixture.now),
                Action::Forget(_) | Action::Renew(_) | Action::BeginAnew(_) => {}
            }
        }
    }

    /// A path that was left because it was bad is not used before its dwell time is over, and so not left again either.
    fn switch(&mut self, to: PathKey, reason: Reason, now: Instant) {
        self.watch.begin(now);
        if !reason.is_of_quality() {
            return;
        }
        let left = &mut self.left[2 - to.link as usize];
        let before = left.filter(|(at, _)| now < *at + FORGIVENESS);
        if let Some((at, times)) = before {
            // A lone failure is forgiven sooner.
            let doubled = SHORTEST_DWELL.saturating_mul(1 << (times - 1).min(16));
            let dwell = if times == 1 { BRIEF_DWELL } else { doubled.min(LONGEST_DWELL) };
            assert!(now >= at + dwell, "left {times} times, and again after {:?}", now - at);
        }
        *left = Some((now, before.map_or(1, |(_, times)| times + 1)));
    }
}

#[test]
fn a_path_that_becomes_bad_is_left_within_seconds_and_used_again_when_it_is_good() {
    let [good, _] = GOOD;
    for (bad, asked) in [
        (Net { loss: 0.15, ..good }, [1_500_000, 0]),
        (Net { loss: 0.3, ..good }, [0; 2]),
        (Net { rtt: 400, ..good }, [0; 2]),
        (Net { carries: MEAGRE, ..good }, [20_000_000, 0]),
        (Net { carries: MEAGRE, ..good }, [0, 20_000_000]),
    ] {
        let mut fixture = on_wifi();
        let mut truth = Truth { asked, ..Truth::new(1, fixture.now) };
        for turn in 0..6 {
            for _ in 0..20 {
                truth.live(&mut fixture);
            }
            truth.links[0] = bad;
            let begun = fixture.now;
            while fixture.manager.active() == Some(key(1)) {
                truth.live(&mut fixture);
                let took = fixture.now - begun;
                assert!(took < 5 * SECOND, "{bad:?} {turn}: left after {took:?}");
            }
            for _ in 0..400 {
                truth.live(&mut fixture);
            }
            assert_eq!(fixture.manager.active(), Some(key(2)), "it is bad");
            truth.links[0] = good;
            let (begun, dwell) = (fixture.now, SHORTEST_DWELL * (1 << turn));
            while fixture.manager.active() == Some(key(2)) {
                truth.live(&mut fixture);
            }
            let waited = fixture.now - begun;
            assert!((dwell..2 * dwell + 35 * SECOND).contains(&waited), "{turn}: {waited:?}");
        }
    }
}

/// What networks become: good, bad in several ways, and narrow.
fn becomes(good: Net, kind: usize) -> Net {
    [
        good,
        Net { loss: 0.1, ..good },
        Net { loss: 0.4, ..good },
        Net { loss: 0.01, rtt: 40 * good.rtt, ..good },
        Net { carries: MEAGRE, ..good },
    ][kind]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Whatever the networks do, and whatever is asked of them: the dwell time of each path that was left limits how often it is
    /// left again.
    #[test]
    fn switches_for_quality_are_few(
        seed: u64,
        plan in proptest::collection::vec((0usize..2, 0usize..5, 0usize..3, 1u32..120), 10..60),
    ) {
        let mut fixture = on_wifi();
        let (mut truth, end) = (Truth::new(seed, fixture.now), fixture.now + 3600 * SECOND);
        for (link, kind, asked, seconds) in plan.into_iter().cycle() {
            truth.links[link] = becomes(GOOD[link], kind);
            truth.asked = [[0, 0], [20_000_000, 0], [0, 20_000_000]][asked];
            for _ in 0..4 * seconds {
                truth.live(&mut fixture);
            }
            if fixture.now >= end {
                break;
            }
        }
    }

    /// While nothing is full, beside a path that is four times as good another one is not used for longer than its dwell time,
    /// the pause between two bursts, and a moment.
    #[test]
    fn no_path_is_used_for_long_beside_a_much_better_one(
        seed: u64,
        plan in proptest::collection::vec((0usize..2, 0usize..4, 1u32..120), 10..60),
    ) {
        let mut fixture = on_wifi();
        let (mut truth, end) = (Truth::new(seed, fixture.now), fixture.now + 3600 * SECOND);
        let mut since = fixture.now;
        for (link, kind, seconds) in plan.into_iter().cycle() {
            truth.links[link] = becomes(GOOD[link], kind);
            for _ in 0..4 * seconds {
                truth.live(&mut fixture);
                let active = fixture.manager.active().unwrap().link as usize - 1;
                let costs = [active, 1 - active].map(|link| cost(truth.links[link]));
                if costs[0] < 4.0 * costs[1] {
                    since = fixture.now;
                }
                let used = fixture.now - since;
                prop_assert!(used < PATIENCE, "{active} for {used:?}: {costs:?}");
            }
            if fixture.now >= end {
                break;
            }
        }
    }
}
