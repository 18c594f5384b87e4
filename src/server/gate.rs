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
//!
//! When a server died, all its clients come at once. Each that has no session and proves its key lets two others
//! begin, so that they get in as fast as the thread can let them in, and no faster: while tasks wait for it, only the
//! budget is spent. Whoever has begun is not pushed out before a round trip can be over: they would push each other out, and
//! none would get in.

mod bucket;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lru::LruCache;

use self::bucket::Bucket;
pub(super) use self::bucket::Pace;

/// Maximum of handshakes under way in a room, about 40 kB each. At the rate of [`HANDSHAKES`] a handshake has 1.3 s
/// before a newer one replaces it; when a crowd comes back, less, but [`FAIR`].
const MOST: usize = 384;
/// With this many handshakes under way, a client must validate its address first.
const RETRY_FROM: usize = 32;
/// Maximum of handshakes under way from one address (IPv4) or /64 (IPv6).
const SHARE: usize = 16;
/// The same for a /24 (IPv4) or /48 (IPv6), which often has one owner.
const WIDE_SHARE: usize = 64;

/// How long a client with a validated address has for its handshake before a newer one may replace it: a long round trip
/// and a busy server.
const FAIR: Duration = Duration::from_millis(500);
/// A task that waits for the thread for longer than this shows that the thread has enough to do: a keystroke waits as long.
const LATE: Duration = Duration::from_millis(5);
/// What a client that has come back gives to the budget: its own handshake, and another one.
const GIVEN: f64 = 2.0;

/// The budget of handshakes: 300 per second take about 15 % of one thread.
const HANDSHAKES: Pace = Pace { per_second: 300.0, burst: 32.0 };
/// The budget of Retry packets: each costs one twentieth of a handshake.
pub(super) const RETRIES: Pace = Pace { per_second: 8000.0, burst: 4096.0 };
/// Handshakes without a known key after which a source has the lowest priority: a client races one
/// handshake per link, and repeats them.
const ATTEMPTS: Pace = Pace { per_second: 1.0 / 15.0, burst: 4.0 };
/// The factor for a good source: an unknown client may share its address, and many clients may share a NAT.
const GOOD_ATTEMPTS: f64 = 4.0;
const GOOD_SHARES: usize = 4;
/// Attempts on credit, in bursts: paid off in minutes.
const CREDIT: f64 = GOOD_ATTEMPTS - 1.0;
/// The fraction of a budget that a new source must leave for good ones, and that a source without attempts
/// left must leave for all others.
const LEAST_LEFT: f64 = 0.25;
const MOST_LEFT: f64 = 0.75;

/// Sources whose attempts are counted: those of the last half minute at the rate of [`HANDSHAKES`].
const SOURCES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Good sources that are kept. Only the owners of known keys can add one.
const GOOD_SOURCES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

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
    /// Whether the thread is behind with its work.
    is_late: bool,
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
    since: Instant,
}

/// The blocks of addresses that a source belongs to.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    narrow: IpNet,
    wide: IpNet,
}

impl Gate {
    /// Begins with full budgets.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            places: Default::default(),
            next: 0,
            handshakes: Bucket::full(HANDSHAKES, now),
            is_late: false,
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
        let [narrow, wide] = self.shares(blocks);
        let share_is_full = places.has(blocks.narrow) >= narrow || places.has(blocks.wide) >= wide;
        let is_busy = places.under_way.len() >= RETRY_FROM
            || self.handshakes.level(now) < 1.0 + MOST_LEFT * HANDSHAKES.burst;
        if is_validated || !share_is_full && (!is_busy || left == 0.0) {
            let verdict = self.admit(Room::Quic, blocks, is_validated, left, now);
            if is_validated || verdict != Verdict::Ignore {
                return verdict;
            }
        }
        // Whoever gets an answer waits longer until the next handshake.
        let may_ask = self.retries.take(left.min(LEAST_LEFT), now);
        if may_ask { Verdict::Retry } else { Verdict::Ignore }
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
        // Before all that are under way are looked at: most of a flood ends here.
        if !self.handshakes.has(left, now) {
            return Verdict::Ignore;
        }
        let is_good = self.good.contains(&blocks.narrow);
        let newcomer = UnderWay { blocks, is_validated, is_good, since: now };
        let shares = self.shares(blocks);
        let places = &mut self.places[room as usize];
        // Over TCP a neighbour behind the same NAT would keep a client out.
        let are_fresh = room == Room::Quic && places.are_fresh(&newcomer, shares);
        if are_fresh || !self.handshakes.take(left, now) {
            return Verdict::Ignore;
        }
        for block in blocks.both() {
            let fresh = || Bucket::full(ATTEMPTS.times(blocks.size(block)), now);
            self.sources.get_or_insert_mut((block, is_validated), fresh).spend(CREDIT, now);
        }
        let id = self.next;
        self.next += 1;
        Verdict::Admit { id, give_way: places.add(id, newcomer, shares) }
    }

    /// How many may be under way from each of the blocks.
    fn shares(&self, blocks: Blocks) -> [usize; 2] {
        let factor = if self.good.contains(&blocks.narrow) { GOOD_SHARES } else { 1 };
        [SHARE * factor, WIDE_SHARE * factor]
    }

    /// A handshake that began waited so long for the thread.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.is_late = time > LATE;
    }

    /// A client without a session has proved its key.
    pub(crate) fn returned(&mut self) {
        if !self.is_late {
            self.handshakes.give(GIVEN);
        }
    }

    /// A TCP connection asked for datagrams. Returns those that give way to it in its new room; none if it had to give
    /// way itself.
    pub(crate) fn asked_for_datagrams(&mut self, id: u64) -> Vec<u64> {
        let moved = self.places[Room::Tcp as usize].leave(id);
        let Some(moved) = moved else { return Vec::new() };
        let shares = self.shares(moved.blocks);
        self.places[Room::Datagrams as usize].add(id, moved, shares)
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
            self.sources.get_mut(&(block, is_validated)).map_or(0.0, |source| source.spent(now))
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
    fn add(&mut self, id: u64, newcomer: UnderWay, shares: [usize; 2]) -> Vec<u64> {
        let mut give_way = Vec::new();
        for (block, most) in limits(newcomer.blocks, shares) {
            if let Some((id, _)) = self.first_to_leave(block, most) {
                self.leave(id);
                give_way.push(id);
            }
        }
        self.under_way.insert(id, newcomer);
        for block in newcomer.blocks.both() {
            *self.shares.entry(block).or_default() += 1;
        }
        give_way
    }

    /// Whether somebody with a validated address who has hardly begun would or might have to give way to `newcomer`: who
    /// leaves for one limit may make room for the next, which is not looked at.
    fn are_fresh(&self, newcomer: &UnderWay, shares: [usize; 2]) -> bool {
        limits(newcomer.blocks, shares).into_iter().any(|(block, most)| {
            self.first_to_leave(block, most).is_some_and(|(_, oldest)| {
                oldest.is_validated && newcomer.since.saturating_duration_since(oldest.since) < FAIR
            })
        })
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

    /// Who gives way to one more in the block, or anywhere, where there may be so many: the oldest, those without a validated
    /// address first, and those of good sources last.
    fn first_to_leave(&self, block: Option<IpNet>, most: usize) -> Option<(u64, UnderWay)> {
        let count = block.map_or(self.under_way.len(), |block| self.has(block));
        if count < most {
            return None;
        }
        let sharing = self
            .under_way
            .iter()
            .filter(|(_, other)| block.is_none_or(|block| other.blocks.both().contains(&block)));
        let oldest = sharing.min_by_key(|(id, other)| (other.is_validated, other.is_good, **id));
        oldest.map(|(id, other)| (*id, *other))
    }

    fn has(&self, block: IpNet) -> usize {
        self.shares.get(&block).copied().unwrap_or_default()
    }
}

/// How many may be under way in each block, and altogether.
fn limits(blocks: Blocks, [narrow, wide]: [usize; 2]) -> [(Option<IpNet>, usize); 3] {
    [(Some(blocks.narrow), narrow), (Some(blocks.wide), wide), (None, MOST)]
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
