//! Decides which handshakes begin: for each first packet, by its source address and the time.
//!
//! ```text
//!  first packet ─ enter ─▶ under way ─ proven ─▶ its key is known; its source is good from now on
//!                   │          └────── ended ──▶ another key, silence, or it gave way to a newer one
//!                   └─▶ Retry: prove the address (RFC 9000 §8.1.2), or ignored
//! ```
//!
//! A TCP connection comes through the same gate, before TLS: a TLS handshake costs what one of QUIC does, so both have one
//! budget. What waits for what is in a [`Room`] of its own, so that one kind of silence does not push out another.
//!
//! A handshake costs about a hundred times the CPU time of a data packet, on the thread that carries the
//! packets of all clients, so handshakes have a budget. *Good* sources, from which a known key was proven
//! lately, may spend all of it. Other sources must leave one quarter for good ones, and up to three quarters
//! after handshakes that proved no key. Memory does not grow with the number of sources.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    num::NonZeroUsize,
    time::Instant,
};

use ipnet::IpNet;
use lru::LruCache;

/// Maximum of handshakes under way in a room, about 40 kB each. At the rate of [`HANDSHAKES`] a handshake has 1.3 s
/// before a newer one replaces it.
const MOST: usize = 384;
/// With this many handshakes under way, a client must validate its address first.
const RETRY_FROM: usize = 32;
/// Maximum of handshakes under way from one address (IPv4) or /64 (IPv6).
const SHARE: usize = 16;
/// The same for a /24 (IPv4) or /48 (IPv6), which often has one owner.
const WIDE_SHARE: usize = 64;

/// The budget of handshakes: 300 per second take about 15 % of one thread.
const HANDSHAKES: Pace = Pace { per_second: 300.0, burst: 32.0 };
/// The budget of Retry packets: each costs one twentieth of a handshake.
pub(super) const RETRIES: Pace = Pace { per_second: 2000.0, burst: 256.0 };
/// Handshakes without a known key after which a source has the lowest priority: a client races one
/// handshake per link, and repeats them.
const ATTEMPTS: Pace = Pace { per_second: 1.0 / 15.0, burst: 4.0 };
/// The factor for a good source: an unknown client may share its address.
const GOOD_ATTEMPTS: f64 = 4.0;
/// The fraction of a budget that a new source must leave for good ones, and that a source without attempts
/// left must leave for all others.
const LEAST_LEFT: f64 = 0.25;
const MOST_LEFT: f64 = 0.75;

/// Sources whose attempts are counted: those of the last half minute at the rate of [`HANDSHAKES`].
const SOURCES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Good sources that are kept. Only the owners of known keys can add one.
const GOOD_SOURCES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The decision on a first packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The handshake begins.
    Admit {
        /// Identifies it in [`Gate::proven`] and [`Gate::ended`].
        id: u64,
        /// Handshakes that it replaces.
        give_way: Vec<u64>,
    },
    /// The client must prove its address.
    Retry,
    /// Nothing is sent. The client retransmits its packet.
    Ignore,
}

/// What is under way. Each kind has places of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// QUIC handshakes.
    Quic,
    /// TCP connections up to the request for datagrams.
    Tcp,
    /// TCP connections that carry datagrams, of nobody known.
    Datagrams,
}

/// The state of the gate.
#[derive(Debug)]
pub(crate) struct Gate {
    /// By [`Room`].
    places: [Places; 3],
    next: u64,
    handshakes: Bucket,
    retries: Bucket,
    /// Remaining attempts by address block. Validated attempts are counted apart, because anybody can forge
    /// the others in the block's name.
    sources: LruCache<(IpNet, bool), Bucket>,
    good: LruCache<IpNet, ()>,
}

/// What is under way in one room.
#[derive(Debug, Default)]
struct Places {
    /// Oldest first.
    under_way: BTreeMap<u64, UnderWay>,
    /// Their number by address block.
    shares: HashMap<IpNet, usize>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    blocks: Blocks,
    is_validated: bool,
    is_good: bool,
}

/// The blocks of addresses that a source belongs to.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    narrow: IpNet,
    wide: IpNet,
}

/// A rate and a burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
    pace: Pace,
}

impl Gate {
    /// Begins with full budgets.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            places: Default::default(),
            next: 0,
            handshakes: Bucket::full(HANDSHAKES, now),
            retries: Bucket::full(RETRIES, now),
            sources: LruCache::new(SOURCES),
            good: LruCache::new(GOOD_SOURCES),
        }
    }

    /// Decides on a first packet from `source`. `is_validated` says that the client has proved that it
    /// receives packets at this address (RFC 9000 §8.1).
    pub(crate) fn enter(&mut self, source: IpAddr, is_validated: bool, now: Instant) -> Verdict {
        let blocks = Blocks::of(source);
        let left = self.must_leave(blocks, is_validated, now);
        let places = &self.places[Room::Quic as usize];
        let share_is_full =
            places.has(blocks.narrow) >= SHARE || places.has(blocks.wide) >= WIDE_SHARE;
        let is_busy = places.under_way.len() >= RETRY_FROM
            || self.handshakes.level(now) < 1.0 + MOST_LEFT * HANDSHAKES.burst;
        if !is_validated && (share_is_full || is_busy && left > 0.0) {
            let may_ask = self.retries.take(left.min(LEAST_LEFT), now);
            return if may_ask { Verdict::Retry } else { Verdict::Ignore };
        }
        self.admit(Room::Quic, blocks, is_validated, left, now)
    }

    /// Decides on a TCP connection from `source`, whose address TCP's own handshake has proved.
    pub(crate) fn enter_over_tcp(&mut self, source: IpAddr, now: Instant) -> Verdict {
        let blocks = Blocks::of(source);
        let left = self.must_leave(blocks, true, now);
        self.admit(Room::Tcp, blocks, true, left, now)
    }

    fn admit(
        &mut self,
        room: Room,
        blocks: Blocks,
        is_validated: bool,
        left: f64,
        now: Instant,
    ) -> Verdict {
        if !self.handshakes.take(left, now) {
            return Verdict::Ignore;
        }
        for block in blocks.both() {
            let fresh = || Bucket::full(ATTEMPTS.times(blocks.size(block)), now);
            self.sources.get_or_insert_mut((block, is_validated), fresh).spend(now);
        }
        let is_good = self.good.contains(&blocks.narrow);
        let id = self.next;
        self.next += 1;
        let newcomer = UnderWay { blocks, is_validated, is_good };
        Verdict::Admit { id, give_way: self.places[room as usize].add(id, newcomer) }
    }

    /// A TCP connection asked for datagrams. Returns those that give way to it in its new room; none if it had to give
    /// way itself.
    pub(crate) fn asked_for_datagrams(&mut self, id: u64) -> Vec<u64> {
        let moved = self.places[Room::Tcp as usize].leave(id);
        let room = &mut self.places[Room::Datagrams as usize];
        moved.map_or_else(Vec::new, |moved| room.add(id, moved))
    }

    /// A handshake proved a known key; `false` if a newer one has replaced it.
    pub(crate) fn proven(&mut self, id: u64) -> bool {
        let Some(blocks) = self.leave(id) else { return false };
        self.good.put(blocks.narrow, ());
        for block in blocks.both() {
            self.sources.pop(&(block, false));
            self.sources.pop(&(block, true));
        }
        true
    }

    /// One is no longer under way, whatever the reason; it proved no key here.
    pub(crate) fn ended(&mut self, id: u64) {
        self.leave(id);
    }

    fn leave(&mut self, id: u64) -> Option<Blocks> {
        self.places.iter_mut().find_map(|places| places.leave(id)).map(|it| it.blocks)
    }

    /// The fraction of the budget that a source must leave for better ones.
    fn must_leave(&mut self, blocks: Blocks, is_validated: bool, now: Instant) -> f64 {
        let spent = blocks.both().map(|block| {
            self.sources
                .get_mut(&(block, is_validated))
                .map_or(0.0, |source| 1.0 - source.level(now) / source.pace.burst)
        });
        if spent[0] < GOOD_ATTEMPTS && self.good.get(&blocks.narrow).is_some() {
            return 0.0;
        }
        let spent = spent[0].max(spent[1]).min(1.0);
        LEAST_LEFT + (MOST_LEFT - LEAST_LEFT) * spent
    }
}

impl Places {
    /// Adds one. Returns those that give way to it.
    fn add(&mut self, id: u64, newcomer: UnderWay) -> Vec<u64> {
        let give_way = self.make_room(newcomer.blocks);
        self.under_way.insert(id, newcomer);
        for block in newcomer.blocks.both() {
            *self.shares.entry(block).or_default() += 1;
        }
        give_way
    }

    fn leave(&mut self, id: u64) -> Option<UnderWay> {
        let left = self.under_way.remove(&id)?;
        for block in left.blocks.both() {
            if let Entry::Occupied(mut count) = self.shares.entry(block) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        Some(left)
    }

    /// Makes room for one more: wherever a limit is reached, the oldest one leaves, those without a validated address
    /// first, and those of good sources last.
    fn make_room(&mut self, blocks: Blocks) -> Vec<u64> {
        let mut give_way = Vec::new();
        for (block, most) in
            [(Some(blocks.narrow), SHARE), (Some(blocks.wide), WIDE_SHARE), (None, MOST)]
        {
            let count = block.map_or(self.under_way.len(), |block| self.has(block));
            if count < most {
                continue;
            }
            let sharing = self.under_way.iter().filter(|(_, other)| {
                block.is_none_or(|block| other.blocks.both().contains(&block))
            });
            let oldest =
                sharing.min_by_key(|(id, other)| (other.is_validated, other.is_good, **id));
            if let Some((&id, _)) = oldest {
                self.leave(id);
                give_way.push(id);
            }
        }
        give_way
    }

    fn has(&self, block: IpNet) -> usize {
        self.shares.get(&block).copied().unwrap_or_default()
    }
}

impl Blocks {
    fn of(source: IpAddr) -> Self {
        let (narrow, wide) = if source.is_ipv4() { (32, 24) } else { (64, 48) };
        let block = |length| IpNet::new(source, length).map_or(source.into(), |net| net.trunc());
        Self { narrow: block(narrow), wide: block(wide) }
    }

    fn both(&self) -> [IpNet; 2] {
        [self.narrow, self.wide]
    }

    /// The size of a block in shares.
    fn size(&self, block: IpNet) -> f64 {
        if block == self.narrow { 1.0 } else { (WIDE_SHARE / SHARE) as f64 }
    }
}

impl Pace {
    fn times(self, factor: f64) -> Self {
        Self { per_second: factor * self.per_second, burst: factor * self.burst }
    }
}

impl Bucket {
    fn full(pace: Pace, now: Instant) -> Self {
        Self { level: pace.burst, at: now, pace }
    }

    fn level(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = self.pace.burst.min(self.level + passed * self.pace.per_second);
        self.at = self.at.max(now);
        self.level
    }

    /// Takes one token if that leaves the fraction `left` of a full bucket.
    fn take(&mut self, left: f64, now: Instant) -> bool {
        let is_there = self.level(now) >= 1.0 + left * self.pace.burst;
        if is_there {
            self.level -= 1.0;
        }
        is_there
    }

    /// Takes one token, on credit if needed. The credit is bounded so that it is paid off in
    /// minutes.
    fn spend(&mut self, now: Instant) {
        self.level = (self.level(now) - 1.0).max((1.0 - GOOD_ATTEMPTS) * self.pace.burst);
    }
}

#[cfg(test)]
mod tests {
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
        for (sources, is_validated) in
            [(1, false), (1, true), (1_000_000, false), (1_000_000, true)]
        {
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
        for (sources, is_validated) in
            [(1, true), (1000, true), (1_000_000, true), (1_000_000, false)]
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
                            prop_assert!(same.count() <= SHARE);
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
}
