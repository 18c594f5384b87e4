use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
/// From a stranger's first packet to the moment at which the server refuses its key.
const REFUSED_AFTER: Duration = Duration::from_millis(40);

fn stranger(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + (number << 8)).to_be_bytes())
}

fn honest() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

fn quic(gate: &Gate) -> &Places {
    &gate.places[Room::Quic as usize]
}

fn admitted(verdict: &Verdict) -> Option<u64> {
    match verdict {
        Verdict::Admit { id, .. } => Some(*id),
        Verdict::Retry | Verdict::Ignore => None,
    }
}

/// Strangers begin ten handshakes a millisecond, in turn from as many sources, for so long.
struct Flood {
    gate: Gate,
    now: Instant,
    begun: Vec<(Instant, u64)>,
    sources: u32,
    is_validated: bool,
    count: u32,
    admitted: u32,
}

impl Flood {
    fn new(sources: u32, is_validated: bool) -> Self {
        let now = Instant::now();
        let (gate, begun) = (Gate::new(now), Vec::new());
        Self { gate, now, begun, sources, is_validated, count: 0, admitted: 0 }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            for _ in 0..10 {
                let source = stranger(self.count % self.sources);
                self.count += 1;
                let verdict = self.gate.enter(source, self.is_validated, self.now);
                if let Some(id) = admitted(&verdict) {
                    self.begun.push((self.now, id));
                    self.admitted += 1;
                }
            }
            self.now += MILLISECOND;
            if self.is_validated {
                let (gate, now) = (&mut self.gate, self.now);
                self.begun.retain(|(begun, id)| {
                    let goes_on = *begun + REFUSED_AFTER > now;
                    if !goes_on {
                        gate.ended(*id);
                    }
                    goes_on
                });
            }
        }
    }

    /// How long a client needs to get in that sends a first packet every 100 ms, and answers a Retry.
    fn time_to_enter(&mut self) -> Duration {
        let begun = self.now;
        let mut is_validated = false;
        loop {
            match self.gate.enter(honest(), is_validated, self.now) {
                Verdict::Admit { id, .. } => {
                    self.run(100 * MILLISECOND);
                    assert!(self.gate.proven(id), "it had to give way");
                    return self.now - begun;
                }
                Verdict::Retry => {
                    is_validated = true;
                    self.run(20 * MILLISECOND);
                }
                Verdict::Ignore => self.run(100 * MILLISECOND),
            }
            assert!(self.now - begun < Duration::from_secs(20), "{}", self.sources);
        }
    }
}

#[test]
fn a_new_client_is_admitted_while_strangers_flood() {
    for (sources, is_validated, limit) in
        [(1, false, 3000), (1, true, 200), (1_000_000, false, 3000), (1000, true, 200)]
    {
        let mut flood = Flood::new(sources, is_validated);
        flood.run(Duration::from_secs(5));
        let time = flood.time_to_enter();
        assert!(time <= limit * MILLISECOND, "{sources} sources: {time:?}");
    }
}

#[test]
fn a_known_client_is_admitted_at_once_while_strangers_flood() {
    for (sources, is_validated) in [(1, false), (1, true), (1_000_000, false), (1_000_000, true)] {
        let mut flood = Flood::new(sources, is_validated);
        let id = admitted(&flood.gate.enter(honest(), false, flood.now)).unwrap();
        assert!(flood.gate.proven(id));
        for _ in 0..20 {
            flood.run(Duration::from_millis(500));
            let time = flood.time_to_enter();
            assert!(time <= 100 * MILLISECOND, "{sources} sources: {time:?}");
        }
    }
}

#[test]
fn a_flood_gets_no_more_than_its_budget() {
    for (sources, is_validated) in [(1, true), (1000, true), (1_000_000, true), (1_000_000, false)]
    {
        let mut flood = Flood::new(sources, is_validated);
        flood.run(Duration::from_secs(10));
        let most = 10.0 * HANDSHAKES.per_second + HANDSHAKES.burst;
        assert!(f64::from(flood.admitted) <= most, "{sources}: {}", flood.admitted);
    }
}

#[test]
fn a_new_handshake_replaces_the_oldest_one_of_its_source() {
    let now = Instant::now();
    let mut gate = Gate::new(now);
    let at = |id| now + id * Duration::from_millis(100);
    for id in 0..SHARE as u32 {
        let verdict = gate.enter(honest(), true, at(id));
        assert_eq!(verdict, Verdict::Admit { id: id.into(), give_way: Vec::new() });
    }
    let verdict = gate.enter(honest(), true, at(SHARE as u32));
    assert_eq!(verdict, Verdict::Admit { id: SHARE as u64, give_way: vec![0] });
    assert!(!gate.proven(0));
    assert!(gate.proven(1));
}

#[test]
fn whoever_has_hardly_begun_is_not_pushed_out() {
    let begun = Instant::now();
    let mut gate = Gate::new(begun);
    for id in 0..SHARE as u32 {
        let verdict = gate.enter(honest(), true, begun + 5 * id * MILLISECOND);
        assert_eq!(verdict, Verdict::Admit { id: id.into(), give_way: Vec::new() });
    }
    let almost = begun + FAIR - MILLISECOND;
    assert_eq!(gate.enter(honest(), true, almost), Verdict::Ignore);
    let verdict = gate.enter(honest(), true, begun + FAIR);
    assert_eq!(verdict, Verdict::Admit { id: SHARE as u64, give_way: vec![0] });
}

#[test]
fn an_address_from_which_a_key_was_proven_has_room_for_more() {
    let begun = Instant::now();
    let mut gate = Gate::new(begun);
    let id = admitted(&gate.enter(honest(), true, begun)).unwrap();
    assert!(gate.proven(id));
    let mut begins = |at: u32| admitted(&gate.enter(honest(), true, begun + at * MILLISECOND));
    let count = (0..400).step_by(4).filter(|at| begins(*at).is_some()).count();
    assert_eq!(count, SHARE * GOOD_SHARES);
}

/// How many of a crowd begin in a second, each from a network of its own and at once, and prove their keys when so many
/// others have begun.
fn back_in_a_second(is_back: impl Fn(&mut Gate)) -> u32 {
    const UNDER_WAY: usize = 8;
    let begun = Instant::now();
    let (mut gate, mut now, mut under_way, mut back) = (Gate::new(begun), begun, Vec::new(), 0);
    for number in 0.. {
        if now >= begun + Duration::from_secs(1) {
            break;
        }
        match admitted(&gate.enter(stranger(number), true, now)) {
            Some(id) => under_way.push(id),
            None => now += MILLISECOND,
        }
        if under_way.len() > UNDER_WAY {
            assert!(gate.proven(under_way.remove(0)));
            is_back(&mut gate);
            back += 1;
            // What a handshake costs.
            now += MILLISECOND / 2;
        }
    }
    back
}

#[test]
fn each_client_that_comes_back_lets_others_begin_unless_the_thread_is_behind() {
    let budget = (HANDSHAKES.per_second + HANDSHAKES.burst) as u32;
    let within = |back| back <= budget && back + 50 >= budget;
    let keeping_up = back_in_a_second(Gate::returned);
    assert!(keeping_up >= 1900, "the thread is not busy: {keeping_up}");
    let behind = back_in_a_second(|gate| {
        gate.waited(2 * LATE);
        gate.returned();
    });
    assert!(within(behind), "{behind}");
    let unknown = back_in_a_second(|_| {});
    assert!(within(unknown), "{unknown}");
}

#[test]
fn neither_silence_over_tcp_nor_garbage_pushes_out_those_that_are_farther() {
    let begun = Instant::now();
    let mut now = begun;
    let mut gate = Gate::new(begun);
    let mut enter = |gate: &mut Gate| {
        now += 50 * MILLISECOND;
        gate.enter_over_tcp(honest(), now)
    };
    let (carrying, asking) = (enter(&mut gate), enter(&mut gate));
    let [carrying, asking] = [carrying, asking].map(|it| admitted(&it).unwrap());
    let handshake = admitted(&gate.enter(honest(), true, begun)).unwrap();
    assert!(gate.asked_for_datagrams(carrying).is_empty());
    for _ in 0..2 * SHARE {
        assert!(admitted(&enter(&mut gate)).is_some());
    }
    assert!(gate.asked_for_datagrams(asking).is_empty(), "it had to give way");
    let datagrams = &gate.places[Room::Datagrams as usize];
    assert!(datagrams.under_way.keys().eq([&carrying]));
    assert!(gate.proven(handshake), "it has a room of its own");
    gate.ended(carrying);
    assert!(gate.places[Room::Datagrams as usize].shares.is_empty());
}

#[test]
fn connections_over_tcp_and_handshakes_have_one_budget() {
    let mut now = Instant::now();
    let (mut gate, begun, mut count) = (Gate::new(now), now, 0);
    while now < begun + Duration::from_secs(5) {
        for number in 0..10 {
            let verdicts = [
                gate.enter_over_tcp(stranger(number), now),
                gate.enter(stranger(number), true, now),
            ];
            count += verdicts.iter().filter_map(admitted).count();
        }
        now += MILLISECOND;
    }
    assert!(count as f64 <= 5.0 * HANDSHAKES.per_second + HANDSHAKES.burst, "{count}");
}

#[test]
fn a_good_source_gives_way_after_all_others() {
    let mut now = Instant::now();
    let mut gate = Gate::new(now);
    let id = admitted(&gate.enter(honest(), true, now)).unwrap();
    assert!(gate.proven(id));
    let first = admitted(&gate.enter_over_tcp(honest(), now)).unwrap();
    for number in 0..2 * MOST as u32 {
        now += 20 * MILLISECOND;
        assert!(admitted(&gate.enter_over_tcp(stranger(number << 8), now)).is_some());
    }
    assert!(gate.leave(first).is_some(), "it had to give way");
}

#[test]
fn forged_first_packets_in_a_clients_name_do_not_end_its_handshake() {
    let mut now = Instant::now();
    let mut gate = Gate::new(now);
    let id = admitted(&gate.enter(honest(), true, now)).unwrap();
    for _ in 0..10_000 {
        let _ = gate.enter(honest(), false, now);
        now += MILLISECOND / 10;
    }
    assert!(gate.proven(id));
}

#[test]
fn first_packets_forged_in_a_clients_name_do_not_lock_it_out_during_a_flood() {
    for (was_here, limit) in [(false, 3000), (true, 100)] {
        let mut flood = Flood::new(1_000_000, false);
        if was_here {
            let id = admitted(&flood.gate.enter(honest(), false, flood.now)).unwrap();
            assert!(flood.gate.proven(id));
        }
        for _ in 0..200 {
            if let Some(id) = admitted(&flood.gate.enter(honest(), false, flood.now)) {
                flood.gate.ended(id);
            }
            flood.now += 20 * MILLISECOND;
        }
        flood.run(Duration::from_secs(1));
        let time = flood.time_to_enter();
        assert!(time <= limit * MILLISECOND, "was here: {was_here}, {time:?}");
    }
}

#[test]
fn many_networks_of_one_ipv6_owner_share_one_limit() {
    let mut now = Instant::now();
    let mut gate = Gate::new(now);
    for network in 0..1000_u128 {
        let source = 0x2001_0db8_0001_0000_0000_0000_0000_0001 + (network << 64);
        let _ = gate.enter(std::net::Ipv6Addr::from(source).into(), true, now);
        now += 20 * MILLISECOND;
    }
    assert_eq!(quic(&gate).under_way.len(), WIDE_SHARE);
}

#[test]
fn clients_that_return_together_are_admitted_within_seconds() {
    let (mut gate, mut now, mut outside) = (Gate::new(Instant::now()), Instant::now(), 500);
    let begun = now;
    let mut inside = [false; 500];
    while outside > 0 {
        // Each tries four times a second.
        for turn in 0..50 {
            for number in (turn..500).step_by(50) {
                if inside[number] {
                    continue;
                }
                let verdict = gate.enter(stranger(number as u32), true, now);
                if let Some(id) = admitted(&verdict) {
                    inside[number] = gate.proven(id);
                    outside -= 1;
                }
            }
            now += 5 * MILLISECOND;
        }
    }
    assert!(now - begun <= Duration::from_secs(3), "{:?}", now - begun);
}

#[test]
fn a_handshake_that_began_has_time_to_end_however_many_come_after_it() {
    let mut flood = Flood::new(1_000_000, true);
    flood.run(Duration::from_secs(3));
    let id = admitted(&flood.gate.enter(honest(), true, flood.now));
    // None of these ends by itself.
    let begun = flood.now;
    for number in 2_000_000.. {
        let _ = flood.gate.enter(stranger(number), true, flood.now);
        flood.now += MILLISECOND / 10;
        if flood.now - begun > Duration::from_secs(1) {
            break;
        }
    }
    assert!(id.is_none_or(|id| flood.gate.proven(id)));
}

#[derive(Clone, Debug)]
enum Step {
    Enter { source: u32, wide: bool, is_validated: bool },
    End { which: usize, proven: bool },
    Pass { milliseconds: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..40_u32, any::<bool>(), any::<bool>())
            .prop_map(|(source, wide, is_validated)| Step::Enter { source, wide, is_validated }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, proven)| Step::End { which, proven }),
        1 => (0..400_u64).prop_map(|milliseconds| Step::Pass { milliseconds }),
    ];
    prop::collection::vec(step, 1..1000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_handshakes_exceeds_share_budget_or_memory(steps in steps()) {
        let start = Instant::now();
        let (mut gate, mut now) = (Gate::new(start), start);
        let mut open: BTreeMap<u64, (IpAddr, bool)> = BTreeMap::new();
        let mut begun = 0;
        for step in steps {
            match step {
                Step::Enter { source, wide, is_validated } => {
                    let address = if wide { stranger(source << 8) } else { stranger(source / 8) };
                    let verdict = gate.enter(address, is_validated, now);
                    prop_assert!(!(is_validated && verdict == Verdict::Retry), "asked twice");
                    if let Verdict::Admit { id, give_way } = verdict {
                        begun += 1;
                        for gone in give_way {
                            let (_, was_validated) = open.remove(&gone).unwrap();
                            prop_assert!(is_validated || !was_validated);
                        }
                        open.insert(id, (address, is_validated));
                        let same = open.values().filter(|(other, _)| *other == address);
                        prop_assert!(same.count() <= SHARE * GOOD_SHARES);
                    }
                }
                Step::End { which, proven } => {
                    if let Some(&id) = open.keys().nth(which % open.len().max(1)) {
                        open.remove(&id);
                        if proven {
                            prop_assert!(gate.proven(id));
                        } else {
                            gate.ended(id);
                        }
                        prop_assert!(!gate.proven(id), "twice");
                    }
                }
                Step::Pass { milliseconds } => now += milliseconds as u32 * MILLISECOND,
            }
            let most = HANDSHAKES.burst + HANDSHAKES.per_second * (now - start).as_secs_f64();
            prop_assert!(f64::from(begun) <= most + 1e-6);
            prop_assert!(open.len() <= MOST && open.len() == quic(&gate).under_way.len());
            prop_assert!(quic(&gate).shares.len() <= 2 * MOST && gate.sources.len() <= SOURCES.get());
        }
        prop_assert!(open.keys().eq(quic(&gate).under_way.keys()));
        for id in open.into_keys() {
            gate.ended(id);
        }
        prop_assert!(quic(&gate).shares.is_empty());
    }
}
