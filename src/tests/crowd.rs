//! All clients of a server that died come to the next one at the same moment: the server's gate and the clients' pace,
//! in virtual time. The server is one thread with a queue, as the real one.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    client::pace::pace,
    server::gate::{Gate, Verdict},
};

const MS: Duration = Duration::from_millis(1);
/// CPU time of the server: to look at a first packet, to answer it with a Retry, to answer a handshake's first packet,
/// and to check its last one.
const LOOK: Duration = Duration::from_micros(20);
const RETRY: Duration = Duration::from_micros(15);
const ANSWER: Duration = Duration::from_micros(400);
const CHECK: Duration = Duration::from_micros(150);
/// What waits in the server's socket is bounded: some thousand first packets.
const SOCKET: Duration = Duration::from_millis(60);
/// The first retransmission of a first packet (RFC 9002 §6.2.2); the others follow at doubling intervals.
const RETRANSMIT: Duration = Duration::from_millis(1000);
/// How long one handshake may take, for the client and for the server.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client begins a handshake.
    Begin { client: usize },
    /// A first packet comes to the server.
    First { handshake: usize },
    /// It was not answered so far.
    Retransmit { handshake: usize, after: Duration },
    /// The client's last packet of a handshake comes to the server.
    Last { handshake: usize },
    /// The server gives the handshake up.
    GiveUp { handshake: usize },
    /// The client is back.
    Back { client: usize },
}

struct Handshake {
    client: usize,
    begun: Instant,
    /// Whether its address is validated.
    is_validated: bool,
    /// Its place at the gate.
    id: Option<u64>,
    is_answered: bool,
}

struct Crowd {
    gate: Gate,
    now: Instant,
    begun: Instant,
    rtt: Duration,
    address: fn(usize) -> IpAddr,
    handshakes: Vec<Handshake>,
    back: Vec<Option<Duration>>,
    /// Whether each client was asked for its address.
    is_busy: Vec<bool>,
    events: BinaryHeap<Reverse<(Instant, usize, Event)>>,
    count: usize,
    /// Until when the server has something to do.
    busy: Instant,
    /// How long a packet waited in the server at most.
    longest: Duration,
    gone: HashSet<u64>,
    random: fastrand::Rng,
}

/// How a crowd got in.
#[derive(Debug)]
struct Outcome {
    half: Duration,
    all: Duration,
    /// Handshakes begun for each client.
    each: f64,
    longest: Duration,
}

impl Crowd {
    fn new(clients: usize, rtt: Duration, address: fn(usize) -> IpAddr) -> Self {
        let begun = Instant::now();
        let mut crowd = Self {
            gate: Gate::new(begun),
            now: begun,
            begun,
            rtt,
            address,
            handshakes: Vec::new(),
            back: vec![None; clients],
            is_busy: vec![false; clients],
            events: BinaryHeap::new(),
            count: 0,
            busy: begun,
            longest: Duration::ZERO,
            gone: HashSet::new(),
            random: fastrand::Rng::with_seed(7),
        };
        for client in 0..clients {
            // Not even a power cut is heard of by all in the same moment.
            let heard = crowd.begun + crowd.random.u32(..50) * MS;
            crowd.at(heard, Event::Begin { client });
        }
        crowd
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    /// Work for the server: when it is done.
    fn work(&mut self, work: Duration) -> Instant {
        let waits = self.busy.saturating_duration_since(self.now);
        self.longest = self.longest.max(waits);
        self.busy = self.busy.max(self.now) + work;
        self.busy
    }

    fn run(mut self, patience: Duration) -> Option<Outcome> {
        while self.back.iter().any(Option::is_none) {
            let Reverse((at, _, event)) = self.events.pop()?;
            self.now = at;
            if at - self.begun > patience {
                return None;
            }
            self.happen(event);
        }
        let mut back: Vec<_> = self.back.iter().copied().flatten().collect();
        back.sort();
        Some(Outcome {
            half: back[back.len() / 2],
            all: back[back.len() - 1],
            each: self.handshakes.len() as f64 / back.len() as f64,
            longest: self.longest,
        })
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Begin { client } => {
                if self.back[client].is_some() {
                    return;
                }
                let handshake = self.handshakes.len();
                let begun = self.now;
                let new =
                    Handshake { client, begun, is_validated: false, id: None, is_answered: false };
                self.handshakes.push(new);
                self.at(self.now + self.rtt / 2, Event::First { handshake });
                let after = RETRANSMIT;
                self.at(self.now + after, Event::Retransmit { handshake, after });
                let is_busy = self.is_busy[client];
                let pause = pace(self.now - self.begun, is_busy, self.random.f32());
                self.at(self.now + pause, Event::Begin { client });
            }
            Event::Retransmit { handshake, after } => {
                let it = &self.handshakes[handshake];
                let is_over = it.is_answered || self.back[it.client].is_some();
                if !is_over && self.now - it.begun < LIMIT {
                    self.at(self.now + self.rtt / 2, Event::First { handshake });
                    let after = 2 * after;
                    self.at(self.now + after, Event::Retransmit { handshake, after });
                }
            }
            Event::First { handshake } => self.first(handshake),
            Event::Last { handshake } => {
                let done = self.work(CHECK);
                let Handshake { client, id, .. } = self.handshakes[handshake];
                let Some(id) = id.filter(|id| !self.gone.contains(id)) else { return };
                if self.gate.proven(id) {
                    self.gate.returned();
                    self.gone.insert(id);
                    self.at(done + self.rtt / 2, Event::Back { client });
                }
            }
            Event::GiveUp { handshake } => {
                if let Some(id) = self.handshakes[handshake].id
                    && self.gone.insert(id)
                {
                    self.gate.ended(id);
                }
            }
            Event::Back { client } => {
                if self.back[client].is_none() {
                    self.back[client] = Some(self.now - self.begun);
                }
            }
        }
    }

    fn first(&mut self, handshake: usize) {
        let waits = self.busy.saturating_duration_since(self.now);
        let Handshake { client, is_validated, is_answered, .. } = self.handshakes[handshake];
        if waits > SOCKET || is_answered {
            return;
        }
        let seen = self.work(LOOK);
        match self.gate.enter((self.address)(client), is_validated, seen) {
            Verdict::Ignore => {}
            Verdict::Retry => {
                let sent = self.work(RETRY);
                self.handshakes[handshake].is_validated = true;
                self.is_busy[client] = true;
                self.at(sent + self.rtt, Event::First { handshake });
            }
            Verdict::Admit { id, give_way } => {
                self.gone.extend(give_way);
                self.gate.waited(self.busy.saturating_duration_since(self.now));
                let answered = self.work(ANSWER);
                let it = &mut self.handshakes[handshake];
                (it.id, it.is_answered) = (Some(id), true);
                self.at(answered + self.rtt, Event::Last { handshake });
                self.at(answered + LIMIT, Event::GiveUp { handshake });
            }
        }
    }
}

/// Each client has a network of its own.
fn own(client: usize) -> IpAddr {
    let [.., high, low] = (client as u32).to_be_bytes();
    [10, 128 + high, low, 7].into()
}

/// All clients are behind one NAT.
fn one(_: usize) -> IpAddr {
    [192, 0, 2, 7].into()
}

const CLIENTS: usize = 1500;

/// How `CLIENTS` get in with this round trip.
fn crowd(rtt: u32, address: fn(usize) -> IpAddr) -> Outcome {
    let crowd = Crowd::new(CLIENTS, rtt * MS, address);
    crowd.run(Duration::from_secs(60)).expect("somebody is locked out")
}

#[test]
fn a_crowd_gets_in_as_fast_as_the_server_can_let_it_in() {
    let work = CLIENTS as u32 * (ANSWER + CHECK);
    for (rtt, address) in [(1, own as fn(usize) -> IpAddr), (40, own), (1, one), (40, one)] {
        let outcome = crowd(rtt, address);
        assert!(outcome.half < 3 * work && outcome.all < 6 * work, "{rtt} ms: {outcome:?}");
    }
}

#[test]
fn clients_behind_one_nat_do_not_push_each_other_out_however_long_their_round_trip() {
    for rtt in [100, 300] {
        let outcome = crowd(rtt, one);
        // So many at a time.
        assert!(outcome.all < CLIENTS as u32 / 25 * rtt * MS, "{rtt} ms: {outcome:?}");
    }
}

#[test]
fn a_crowd_does_not_besiege_a_server_that_asks_for_proof_of_an_address() {
    let outcome = crowd(40, own);
    assert!(outcome.each < 5.0 && outcome.longest <= SOCKET + MS, "{outcome:?}");
}
