//! A random world: three servers, a client and an etcd, between which everything breaks, with clocks that run apart.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// The step of a random world.
const STEP: Duration = Duration::from_millis(100);
/// The idle timeout of a session.
const IDLE: Duration = Duration::from_secs(30);

/// What the random world does next.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// The way between a server and etcd, or a server and the client, breaks or is mended.
    Etcd(usize),
    Client(usize),
    /// A server stands still for so many steps.
    Stall(usize, u64),
    /// The client says hello to a server, and closes its session before if it can.
    Move(usize),
}

fn deeds() -> impl Strategy<Value = Vec<(Deed, u16)>> {
    let server = 0..SERVERS;
    let deed = prop_oneof![
        2 => server.clone().prop_map(Deed::Etcd),
        2 => server.clone().prop_map(Deed::Client),
        1 => (server.clone(), 1..150u64).prop_map(|(server, steps)| Deed::Stall(server, steps)),
        3 => server.prop_map(Deed::Move),
    ];
    // Often at once, while claims and news are under way.
    let wait = prop_oneof![0..8u16, 0..250u16];
    proptest::collection::vec((deed, wait), 1..60)
}

const SERVERS: usize = 3;

/// A server of the random world.
struct Host {
    tenure: Tenure,
    /// How fast its clock runs.
    rate: f64,
    began: Instant,
    reaches_etcd: bool,
    reaches_client: bool,
    /// It stands still until then.
    awake_at: u64,
    /// Since when it does not.
    lacks_etcd_since: u64,
    lacks_client_since: u64,
    session: Option<SessionId>,
    has_routes: bool,
    /// How often it was without routes.
    suspensions: usize,
    /// Whether the client was there since the last tick, and when it was there last.
    has_answered: bool,
    last_there: u64,
    /// Where in etcd's history it is.
    heard: usize,
    is_following: bool,
    /// When it last renewed its lease.
    renewed: u64,
    lease: i64,
    /// Requests that are under way, and whether etcd has done them.
    requests: Vec<(u64, Request, Option<Answer>)>,
}

struct World {
    hosts: Vec<Host>,
    etcd: Etcd,
    /// Each change.
    history: Vec<(i64, Option<Known>)>,
    /// When each lease ends, by etcd's clock.
    leases: BTreeMap<i64, u64>,
    step: u64,
    /// The client's last hello, and where it said it.
    hellos: usize,
    at: Option<usize>,
    moved: u64,
    random: fastrand::Rng,
}

fn steps(time: Duration) -> u64 {
    (time.as_millis() / STEP.as_millis()) as u64
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let hosts = (0..SERVERS).map(|number| {
            let began = Instant::now();
            let key = [number as u8 + 1; 32].into();
            Host {
                tenure: Tenure::new(key, "".into(), began),
                rate: 0.99 + 0.02 * random.f64(),
                began,
                reaches_etcd: true,
                reaches_client: true,
                awake_at: 0,
                lacks_etcd_since: 0,
                lacks_client_since: 0,
                session: None,
                has_routes: false,
                suspensions: 0,
                has_answered: false,
                last_there: 0,
                heard: 0,
                is_following: false,
                renewed: 0,
                lease: 0,
                requests: Vec::new(),
            }
        });
        let hosts = hosts.collect();
        Self {
            hosts,
            etcd: Etcd::default(),
            history: Vec::new(),
            leases: BTreeMap::new(),
            step: 0,
            hellos: 0,
            at: None,
            moved: 0,
            random,
        }
    }

    fn handle(&mut self, number: usize, event: Event) {
        let step = self.step;
        let host = &mut self.hosts[number];
        let now = host.began + STEP.mul_f64(step as f64 * host.rate);
        for action in host.tenure.handle(event, now) {
            match action {
                Action::Ask(request) => {
                    host.requests.push((step + self.random.u64(0..4), request, None));
                }
                Action::Do(Order::Withdraw { session, .. }) => {
                    assert_eq!(host.session, Some(session));
                    host.has_routes = false;
                }
                Action::Do(Order::Suspend { session, .. }) => {
                    assert_eq!(host.session, Some(session));
                    host.has_routes = false;
                    host.suspensions += 1;
                }
                Action::Do(Order::Restore { session, .. }) => {
                    assert_eq!(host.session, Some(session));
                    host.has_routes = true;
                }
                Action::Do(Order::Close { session, why, .. }) => {
                    assert_eq!(host.session, Some(session));
                    // A client never is kept out.
                    if self.at == Some(number) {
                        assert_eq!(why, Why::CutOff, "closed where the client is");
                        assert!(!host.reaches_client, "the client was there");
                        // It was asked for half of the lease at least.
                        let silent = step - host.last_there;
                        // One that stood still asks for two seconds more.
                        let has_stood = step < host.awake_at + steps(LEASE);
                        let asked = if has_stood { TICK } else { LEASE.mul_f64(0.98 / 2.0) };
                        let asked = steps(asked);
                        assert!(silent + 2 * steps(TICK) >= asked, "{silent}");
                        self.at = None;
                    }
                    host.session = None;
                    assert!(!host.has_routes, "routes outlive the session");
                }
                Action::Do(Order::Elsewhere { .. }) => {}
            }
        }
    }

    fn change(&mut self, known: Option<Known>) {
        self.etcd.change(known);
        self.history.push((self.etcd.revision, self.etcd.known.clone()));
    }

    fn end(&mut self, number: usize) {
        if let Some(session) = self.hosts[number].session.take() {
            self.hosts[number].has_routes = false;
            self.handle(number, Event::Ended { peer: peer(), session });
        }
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Etcd(number) => {
                let host = &mut self.hosts[number];
                host.reaches_etcd = !host.reaches_etcd;
                host.lacks_etcd_since = self.step;
            }
            Deed::Client(number) => {
                let host = &mut self.hosts[number];
                host.reaches_client = !host.reaches_client;
                host.lacks_client_since = self.step;
            }
            Deed::Stall(number, steps) => self.hosts[number].awake_at = self.step + steps,
            Deed::Move(to) if self.hosts[to].reaches_client && self.is_awake(to) => {
                let from = self.at.replace(to).filter(|from| *from != to);
                self.moved = self.step;
                self.hellos += 1;
                let (session, number) = (self.hellos, self.hellos as u64);
                (self.hosts[to].session, self.hosts[to].last_there) = (Some(session), self.step);
                (self.hosts[to].has_routes, self.hosts[to].suspensions) = (true, 0);
                let hello = hello(1, number);
                self.handle(to, Event::Began { peer: peer(), session, hello, client: None });
                // It hears of the end when it is awake again; until then its idle timeout stands for that.
                if let Some(from) =
                    from.filter(|it| self.hosts[*it].reaches_client && self.is_awake(*it))
                {
                    self.end(from);
                }
            }
            Deed::Move(_) => {}
        }
    }

    fn is_awake(&self, number: usize) -> bool {
        self.step >= self.hosts[number].awake_at
    }

    /// One step of the time.
    fn pass(&mut self) {
        self.step += 1;
        let ended: BTreeSet<i64> =
            self.leases.iter().filter(|(_, ends)| **ends <= self.step).map(|(id, _)| *id).collect();
        self.leases.retain(|id, _| !ended.contains(id));
        if self.etcd.known.as_ref().is_some_and(|known| ended.contains(&known.lease)) {
            self.change(None);
        }
        for number in 0..SERVERS {
            if !self.is_awake(number) {
                // What the client sends waits in the socket.
                if self.at == Some(number) && self.hosts[number].reaches_client {
                    (self.hosts[number].has_answered, self.hosts[number].last_there) =
                        (true, self.step);
                }
                continue;
            }
            self.renew(number);
            self.request(number);
            self.follow(number);
            let host = &self.hosts[number];
            let now = host.began + STEP.mul_f64(self.step as f64 * host.rate);
            let is_tick = self.step.is_multiple_of(steps(TICK));
            let wants_signs = host.tenure.wants_signs(now);
            let is_there = self.at == Some(number) && host.reaches_client;
            if is_there {
                (self.hosts[number].has_answered, self.hosts[number].last_there) =
                    (true, self.step);
            }
            if is_tick
                && std::mem::take(&mut self.hosts[number].has_answered)
                && wants_signs
                && let Some(session) = self.hosts[number].session
            {
                self.handle(number, Event::Heard { peer: peer(), session });
            }
            let host = &self.hosts[number];
            let left = host.lacks_client_since.max(self.moved);
            let is_there = self.at == Some(number) && host.reaches_client;
            if !is_there && self.step > left + steps(IDLE) {
                self.end(number);
                if self.at == Some(number) {
                    self.at = None;
                }
            }
            if is_tick {
                self.handle(number, Event::Tick);
            }
        }
    }

    fn renew(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        if !host.reaches_etcd || self.step < host.renewed + steps(LEASE / RENEWALS) {
            return;
        }
        host.renewed = self.step;
        if !self.leases.contains_key(&host.lease) {
            host.lease = (number as i64 + 1) * 1_000_000 + self.step as i64;
        }
        let (id, ends) = (host.lease, self.step + steps(LEASE));
        self.leases.insert(id, ends);
        let now = host.began + STEP.mul_f64(self.step as f64 * host.rate);
        self.handle(number, Event::Lease { id, ends: now + LEASE });
    }

    fn request(&mut self, number: usize) {
        let requests = std::mem::take(&mut self.hosts[number].requests);
        for (due, action, answer) in requests {
            let reaches = self.hosts[number].reaches_etcd;
            match answer {
                _ if !reaches && self.step > due + steps(2 * TICK) => {
                    self.handle(number, Event::Answered(peer(), Answer::Unclear));
                }
                None if reaches && self.step >= due => {
                    let revision = self.etcd.revision;
                    let answer = match &action {
                        Request::Claim { lease, .. } if !self.leases.contains_key(lease) => {
                            Answer::Unclear
                        }
                        _ => self.etcd.asked(&action),
                    };
                    if self.etcd.revision > revision {
                        self.history.push((self.etcd.revision, self.etcd.known.clone()));
                    }
                    let due = self.step + self.random.u64(0..4);
                    self.hosts[number].requests.push((due, action, Some(answer)));
                }
                Some(answer) if reaches && self.step >= due => {
                    self.handle(number, Event::Answered(peer(), answer));
                }
                _ => self.hosts[number].requests.push((due, action, answer)),
            }
        }
    }

    fn follow(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        if !host.reaches_etcd {
            if std::mem::take(&mut host.is_following) {
                self.handle(number, Event::Away);
            }
            return;
        }
        if !host.is_following {
            host.is_following = true;
            host.heard = self.history.len();
            let etcd = &self.etcd;
            let claims = etcd.known.iter().map(|known| (peer(), etcd.put, known.clone())).collect();
            return self.handle(number, Event::All { revision: etcd.revision, claims });
        }
        // Late, sometimes.
        if self.random.u8(0..3) > 0
            && let Some((revision, known)) = self.history.get(host.heard).cloned()
        {
            host.heard += 1;
            self.handle(number, Event::Changed { peer: peer(), revision, known });
        }
    }

    /// For how many steps everything is reached, with the client at this server; none if something is not.
    fn steady(&self, at: usize) -> Option<u64> {
        let is_reached =
            self.hosts[at].reaches_client && self.hosts.iter().all(|host| host.reaches_etcd);
        let changed = self.hosts.iter().map(|host| host.lacks_etcd_since.max(host.awake_at));
        let since = changed.chain([self.moved, self.hosts[at].lacks_client_since]).max()?;
        self.step.checked_sub(since).filter(|_| is_reached)
    }

    fn check(&self) {
        let bound = steps((UNSURE + UNHEARD).mul_f64(1.02) + 2 * TICK);
        for (number, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.has_routes) {
            let is_there = self.at == Some(number) && host.reaches_client;
            let left = if self.at == Some(number) {
                host.lacks_client_since
            } else {
                host.lacks_client_since.max(self.moved)
            };
            // A server cut off from both is fenced.
            let is_cut_off = !host.reaches_etcd && !is_there;
            let since = left.max(host.lacks_etcd_since).max(host.awake_at);
            assert!(
                !is_cut_off || self.step <= since + bound,
                "server {number} has routes, and reaches nobody for {} steps",
                self.step - since
            );
        }
        if let Some(at) = self.at
            && let Some(steady) = self.steady(at)
            && steady >= steps(LEASE.mul_f64(1.02) + 2 * TICK)
        {
            // Where routes went and came, they may wait.
            let waits = self.hosts[at].suspensions > 1
                && steady < steps((LEASE + LONGEST_WAIT + UNHEARD).mul_f64(1.02) + 4 * TICK);
            for (number, host) in self.hosts.iter().enumerate().filter(|it| it.0 != at || !waits) {
                assert_eq!(host.has_routes, number == at, "server {number}, client at {at}");
            }
            assert_eq!(self.etcd.holder(), Some(self.hosts[at].tenure.server));
        }
    }
}

/// Changes of a peer's routes within a minute at most: after the first suspension they are back at once, and then after
/// 10, 20 and 30 s at the earliest.
const MOST_CHANGES: usize = 7;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whenever etcd and the client are heard, for runs of so many seconds: routes do not come and go often, and not at
    /// all where one of both is heard.
    #[test]
    fn routes_change_seldom_however_etcd_and_the_client_come_and_go(
        runs in proptest::collection::vec((any::<[bool; 2]>(), 1..8usize), 1..80),
    ) {
        let (etcd, mut server, _) = two(hello(1, 1));
        let (mut changes, mut second, mut silent) = (Vec::new(), 0, [0; 2]);
        for ([hears_etcd, hears_client], seconds) in runs {
            for _ in 0..seconds {
                second += 1;
                let since = |is_heard, silent: usize| if is_heard { 0 } else { silent + 1 };
                silent = [since(hears_etcd, silent[0]), since(hears_client, silent[1])];
                if hears_etcd {
                    server.renew(1);
                    server.hear_all(&etcd);
                }
                server.now += TICK;
                if hears_client && server.tenure.wants_signs(server.now) {
                    server.handle(Event::Heard { peer: peer(), session: 10 });
                }
                server.handle(Event::Tick);
                for order in server.done() {
                    match order {
                        Order::Suspend { .. } => {
                            prop_assert!(silent[0] >= 5 && silent[1] >= 3, "{silent:?}");
                            changes.push(second);
                        }
                        Order::Restore { .. } => changes.push(second),
                        Order::Close { .. } => return Ok(()),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        for window in changes.windows(MOST_CHANGES + 1) {
            prop_assert!(window[MOST_CHANGES] - window[0] >= 60, "{changes:?}");
        }
    }

    /// Whatever breaks, and in whichever order claims and news come, with clocks that run 1 % apart: no client is kept
    /// out of where it said hello last, a server that reaches neither etcd nor the client has no routes, and where
    /// everything is reached, the server with the client has them alone.
    #[test]
    fn one_server_has_a_peer_and_it_is_where_the_client_is(deeds in deeds(), seed: u64) {
        let mut world = World::new(seed);
        for (deed, wait) in deeds {
            world.act(deed);
            for _ in 0..wait {
                world.pass();
                world.check();
            }
        }
    }
}
