//! Networks that become bad and good again.

use super::{
    quality::{LOOK, SECOND, sample},
    *,
};

/// A burst takes so long.
const TAKES: Duration = Duration::from_millis(500);

/// What is true of the networks, whose bursts and packets show it.
struct Truth {
    random: fastrand::Rng,
    /// Loss in each direction, and round trip, of wifi and lte.
    links: [(f64, u32); 2],
    under_way: Vec<(Instant, PathKey)>,
    switches: Vec<(Instant, Reason)>,
}

impl Truth {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, links: [(0.0, 10), (0.0, 50)], under_way: Vec::new(), switches: Vec::new() }
    }

    fn of(&self, path: PathKey) -> (f64, u32) {
        self.links[path.link as usize - 1]
    }

    /// How long an exchange takes over each link, in milliseconds.
    fn costs(&self) -> [f64; 2] {
        self.links.map(|(loss, rtt)| f64::from(rtt) + 1000.0 * (1.0 - (1.0 - loss).powi(2)))
    }

    /// Lives until the next look.
    fn live(&mut self, fixture: &mut Fixture) {
        let mut actions = fixture.wait(LOOK);
        let due: Vec<_> = self.under_way.extract_if(.., |(at, _)| *at <= fixture.now).collect();
        for (_, path) in due {
            let (loss, rtt) = self.of(path);
            let arrives = |_: &u32| self.random.f64() > loss && self.random.f64() > loss;
            let answered = (0..24).filter(arrives).count() as u32;
            let sampled = sample(answered, rtt).filter(|_| answered > 0);
            actions.extend(fixture.tell(Event::Sampled(path, sampled)));
        }
        if let Some(active) = fixture.manager.active() {
            let (loss, rtt) = self.of(active);
            let symptoms =
                Symptoms { loss: loss / 2.0, rtt: Some(rtt * MS), ..Symptoms::default() };
            actions.extend(
                fixture.tell(Event::Measured(active, [10, 50][active.link as usize - 1] * MS)),
            );
            if fixture.manager.minds(&symptoms) {
                actions.extend(fixture.tell(Event::Symptoms(active, symptoms)));
            }
        }
        for action in actions {
            match action {
                Action::Ask(path) => {
                    let rtt = self.of(path).1 * MS;
                    let _ = fixture.tell(Event::Answered(path, Some(rtt)));
                }
                Action::Sample(path, _) => self.under_way.push((fixture.now + TAKES, path)),
                Action::Switch(_, reason) => self.switches.push((fixture.now, reason)),
                Action::Forget(_) | Action::BeginAnew(_) => {}
            }
        }
    }
}

#[test]
fn a_path_that_becomes_bad_is_left_within_seconds_and_used_again_when_it_is_good() {
    for (loss, rtt) in [(0.1, 10), (0.3, 10), (0.0, 400)] {
        let (mut fixture, mut truth) = (on_wifi(), Truth::new(1));
        for turn in 0..6 {
            truth.links[0] = (loss, rtt);
            let begun = fixture.now;
            while fixture.manager.active() == Some(key(1)) {
                truth.live(&mut fixture);
                let took = fixture.now - begun;
                assert!(took < 5 * SECOND, "{loss} {rtt} {turn}: left after {took:?}");
            }
            for _ in 0..400 {
                truth.live(&mut fixture);
            }
            assert_eq!(fixture.manager.active(), Some(key(2)), "it is bad");
            truth.links[0] = (0.0, 10);
            let (begun, dwell) = (fixture.now, SHORTEST_DWELL * (1 << turn));
            while fixture.manager.active() == Some(key(2)) {
                truth.live(&mut fixture);
            }
            let waited = fixture.now - begun;
            assert!((dwell..2 * dwell + 35 * SECOND).contains(&waited), "{turn}: {waited:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Whatever the networks do: the dwell time of each path that was left limits how often it is left again, and beside one
    /// that is four times as good a path is not used for longer than that, the pause between two bursts, and a moment.
    #[test]
    fn switches_for_quality_are_few_and_no_path_is_used_beside_a_much_better_one(
        seed: u64,
        plan in proptest::collection::vec((0usize..2, 0u32..4, 1u32..120), 10..60),
    ) {
        let (mut fixture, mut truth) = (on_wifi(), Truth::new(seed));
        let mut plan = plan.into_iter().cycle();
        let (mut since, end) = (fixture.now, fixture.now + 3600 * SECOND);
        while fixture.now < end {
            let (link, kind, seconds) = plan.next().unwrap();
            let good = [10, 50][link];
            truth.links[link] = [(0.0, good), (0.1, good), (0.4, good), (0.01, 40 * good)][kind as usize];
            for _ in 0..4 * seconds {
                truth.live(&mut fixture);
                let (costs, active) = (truth.costs(), fixture.manager.active().unwrap().link);
                let other = costs[2 - active as usize];
                if costs[active as usize - 1] < 4.0 * other {
                    since = fixture.now;
                }
                let used = fixture.now - since;
                prop_assert!(used < 165 * SECOND, "{active} for {used:?}: {costs:?}");
            }
        }
        let departures = truth.switches.iter().filter(|(_, reason)| reason.is_of_quality());
        let departures = departures.count();
        prop_assert!(departures <= 2 * 40, "{departures} in an hour");
    }
}
