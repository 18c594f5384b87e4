//! Random days of a roaming laptop, in virtual time: the real client and server over a simulated
//! network, with a packet through the tunnel every 100 ms and its echo.
//!
//! A quarter of what happens is drawn to coincide with something else ([`moments`]): a link or the server
//! dies in the middle of a handshake, of a greeting, of a switch, or less than a round trip after a network
//! came back. Each cause of a long wait that a random day found has a test of its own there.
//!
//! A day takes a tenth of a second of one core, and all cores are used. Each day has a seed, which a failure
//! prints with the day's story:
//!
//! ```text
//! ROAMD_DAYS=10000 cargo test --profile simulation --lib random_days
//! ROAMD_SEED=17 cargo test --lib random_days -- --nocapture             # one day again, with its log
//! ROAMD_FIRST_DAY=5000 ROAMD_DAYS=100 cargo test --lib random_days      # these only
//! ```
//! `MALLOC_MMAP_THRESHOLD_=1048576` (mallopt(3)) saves half of the time: quinn zeroes 2.3 MB for each
//! handshake, which fresh pages need not be.
//!
//! Keys and connection ids are drawn anew each time, so that a day is the same in what happens to the
//! networks, and all but the same in what the daemons do.

mod dying;
mod ends;
mod lossy;
mod moments;
mod overload;
mod probes;
mod quality;
pub(crate) mod world;

use std::{
    collections::{HashSet, VecDeque},
    env, fmt,
    iter::Sum,
    net::SocketAddr,
    num::NonZero,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::world::{Growth, Hole, Link, World};
use crate::{
    client::Client,
    clock,
    config::{
        ClientConfig, ClientTun, Congestion, Exclude, Filter, HomeMode, HostPort, Log, LogFormat,
        Paths, Peer, Preference, Quic, ServerConfig, ServerPeer,
    },
    daemon::status::PathStatus,
    host::{HostError, Layout, Reports, Setup},
    identity::PrivateKey,
    path::{Condition, handshake::Handshake, network::Network as _},
    quic::{self, tls},
    server::Server,
    wire::{self, packet::Packet},
};

/// Days of an ordinary test run.
const DAYS: u64 = 10;
/// How long a day lasts.
const DAY: Duration = Duration::from_secs(300);
/// Longer than any retry or dwell.
const REST: Duration = Duration::from_secs(300);
/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(100);
/// While a fair network has worked for so long, an echo is not older than this, and four round trips of the slowest one:
/// a packet of a new session that is lost costs two, and of 600 sessions over 570 ms and 2 % that lost their greeting
/// one took 3.3 s, so that two packets more take 5.
const BOUND: Duration = Duration::from_secs(5);
const ROUND_TRIPS: u32 = 4;
/// The same if all networks that work lose more: on one that loses a third each way, a new session needs six packets
/// in a row, and one attempt in twelve gets them.
const LOSSY_BOUND: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(1);
/// No packet of UDP is delivered later than this after it was sent, but for a few: while a server may not send
/// to an address that it has not validated, quinn keeps what it was given.
const LATEST: Duration = Duration::from_millis(1500);
const FEW: u64 = 30;
/// A packet that was lost is repeated for so long.
const REPEATED: Duration = Duration::from_secs(3);
/// A network that loses so much in each direction is bad, and one that loses no more than that is fair, or good.
const BAD: f64 = 0.15;
const FAIR: f64 = 0.05;
const GOOD: f64 = 0.01;
/// A bad network is not used for longer than this beside a good one.
const PATIENCE: Duration = Duration::from_secs(15);

/// A packet that has not come after so long does not come.
const SETTLED: Duration = Duration::from_secs(5);
/// Packets of TCP that a day may lose while a good network is known: a repair has to come in time.
const MOST_LOST: u64 = 10;
/// Packets that may take longer than they would without a tunnel, as below, of 12,000: a path that becomes slow or is silent
/// is left after a moment, and one that failed several times must be good for a while before it is preferred to a slow one.
const MOST_SLOW: u64 = 300;
/// Bytes over a metered lte in a day beside a wifi that carries the tunnel: copies each way, and probes.
const METERED: u64 = 5 * (2 * (64 << 10) + (40 << 10));
/// No packet takes longer than so many times what it would take without a tunnel, and this.
const FACTOR: u32 = 3;
const SLACK: Duration = Duration::from_millis(200);
const LINKS: [&str; 2] = ["wifi0", "lte0"];
const UP: usize = 0;
const DOWN: usize = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

const SERVERS: [&str; 2] = ["203.0.113.1:4433", "[2001:db8:1::1]:4433"];

#[test]
#[expect(
    clippy::print_stdout,
    reason = "whoever asks for many days wants to know what they were like"
)]
fn random_days() {
    let seeds: Vec<u64> = match env::var("ROAMD_SEED") {
        Ok(seed) => {
            tell_all();
            vec![seed.parse().expect("ROAMD_SEED is a number")]
        }
        Err(_) => {
            let number = |name, default| env::var(name).map_or(default, |it| it.parse().unwrap());
            let first = number("ROAMD_FIRST_DAY", 0);
            (first..first + number("ROAMD_DAYS", DAYS)).collect()
        }
    };
    let (failures, lived) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for first in 0..threads {
            let (failures, lived) = (&failures, &lived);
            let seeds = seeds.iter().skip(first).step_by(threads);
            scope.spawn(move || {
                for seed in seeds {
                    match live(*seed) {
                        Ok(figures) => lived.lock().unwrap().push(figures),
                        Err(reason) => {
                            failures.lock().unwrap().push(format!("seed {seed}: {reason}"));
                        }
                    }
                }
            });
        }
    });
    println!("{}", lived.into_inner().unwrap().into_iter().sum::<Figures>());
    let failures = failures.into_inner().unwrap();
    let (failed, days) = (failures.len(), seeds.len());
    assert!(failed == 0, "{failed} of {days} days:\n\n{}", failures.join("\n\n"));
}

/// Logs what the daemons do, with virtual times.
fn tell_all() {
    struct VirtualTime(Instant);
    impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
        fn format_time(
            &self,
            w: &mut tracing_subscriber::fmt::format::Writer<'_>,
        ) -> std::fmt::Result {
            write!(w, "{:8.3} s", clock::now().duration_since(self.0).as_secs_f64())
        }
    }
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_timer(VirtualTime(Instant::now()));
    subscriber.with_test_writer().init();
}

/// A question may reach the server together with the end of the handshake: it is answered all the same.
#[test]
fn a_probe_answers_its_first_question() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        let servers = SERVERS.map(|server| server.parse().unwrap());
        let paths = day.hosts.client_config().paths;
        let (candidate, _) = day.world.candidates(&servers, &paths).await.unwrap().remove(0);
        let (key, server) = (&day.hosts.client, day.hosts.server.public_key());
        let handshake = Handshake::new(key, server, tls::PROBE, quic::probe_transport()).unwrap();
        for attempt in 0..20 {
            let probe = handshake.run(&*day.world, candidate.clone(), BOUND, None).await.unwrap();
            probe.connection.send_datagram("\0now?".into()).unwrap();
            let answer = timeout(BOUND, probe.connection.read_datagram()).await;
            assert_eq!(answer.expect("an answer").unwrap(), "\0now?", "attempt {attempt}");
        }
    });
}

/// A client may keep its probe connection alive, but not for nothing.
#[test]
fn a_probe_connection_without_a_question_for_a_minute_is_closed() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        let servers = SERVERS.map(|server| server.parse().unwrap());
        let paths = day.hosts.client_config().paths;
        let (candidate, _) = day.world.candidates(&servers, &paths).await.unwrap().remove(0);
        let (key, server) = (&day.hosts.client, day.hosts.server.public_key());
        let mut transport = quic::probe_transport();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        let handshake = Handshake::new(key, server, tls::PROBE, transport).unwrap();
        let probe = handshake.run(&*day.world, candidate, BOUND, None).await.unwrap();
        sleep(Duration::from_secs(30)).await;
        probe.connection.send_datagram("\0now?".into()).unwrap();
        assert_eq!(probe.connection.read_datagram().await.unwrap(), "\0now?");
        let asked = clock::now();
        let ended = timeout(REST, probe.connection.closed()).await.expect("it ends");
        let quinn::ConnectionError::ApplicationClosed(close) = ended else { panic!("{ended}") };
        assert_eq!(close.error_code, quic::close::NOT_NEEDED);
        assert_eq!((clock::now() - asked).as_secs(), 60);
    });
}

/// Lives one day; says what was wrong with it.
fn live(seed: u64) -> Result<Figures, String> {
    virtual_time().block_on(Day::new(seed).live())
}

fn virtual_time() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Who is who.
struct Hosts {
    client: PrivateKey,
    server: PrivateKey,
}

struct Day {
    random: fastrand::Rng,
    world: Arc<World>,
    hosts: Hosts,
    /// What happened, for whoever reads a failure.
    story: Vec<String>,
    begun: Instant,
    /// Between two packets.
    pace: Duration,
    server: Option<JoinHandle<()>>,
    app: Arc<App>,
    /// Packets that were late although a network was fair.
    late: u64,
    /// Whether lte is metered.
    is_metered: bool,
    figures: Figures,
}

/// Since when networks work.
#[derive(Clone, Copy)]
struct Works {
    /// Any network.
    any: Instant,
    /// One that loses little.
    fair: Instant,
    /// Each that loses next to nothing and that the client knows.
    good: [Instant; 2],
    /// All that work lose next to nothing.
    all_good: Instant,
    /// The session: what waits for the next one may go along with several attempts (0-RTT), and come twice.
    session: (u64, Instant),
}

/// What was counted in a day, or in several.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    days: u64,
    /// Packets of TCP and UDP that were sent while a good network was known, and those of them that did not come.
    sent: [u64; 2],
    lost: [u64; 2],
    /// Those of them that took longer than a machine without a tunnel would have needed; see [`FACTOR`].
    slow: u64,
    twice: u64,
    switches: u64,
    most_switches: u64,
    most_lost: u64,
    most_slow: u64,
    /// Bytes over lte that was metered while wifi carried the tunnel, and for how long.
    metered: u64,
    most_metered: u64,
}

impl Sum for Figures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            days: sum.days + it.days,
            sent: [0, 1].map(|at| sum.sent[at] + it.sent[at]),
            lost: [0, 1].map(|at| sum.lost[at] + it.lost[at]),
            slow: sum.slow + it.slow,
            twice: sum.twice + it.twice,
            switches: sum.switches + it.switches,
            most_switches: sum.most_switches.max(it.switches),
            most_lost: sum.most_lost.max(it.lost[0]),
            most_slow: sum.most_slow.max(it.slow),
            metered: sum.metered + it.metered,
            most_metered: sum.most_metered.max(it.metered),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The client and the user's program at it, until this is dropped.
struct Tasks {
    running: JoinHandle<()>,
    typing: JoinHandle<()>,
    reading: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in [&self.running, &self.typing, &self.reading] {
            task.abort();
        }
    }
}

/// The user's program on both sides.
#[derive(Default)]
struct App(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last_echo: Option<Instant>,
    /// When the server sent the newest packet that came to the client.
    last_answer: Option<Instant>,
    /// Packets later than [`LATEST`].
    late: u64,
    /// What the packets that are sent now would need without a tunnel.
    bare: Duration,
    /// Up and down: the packets that were sent, the newest last, and the numbers of those that came.
    sent: [VecDeque<Sent>; 2],
    came: [HashSet<u32>; 2],
    /// Packets that took longer than they should.
    slow: [HashSet<u32>; 2],
    twice: HashSet<(usize, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u32,
    at: Instant,
}

struct NoInterface;

impl Setup for NoInterface {
    async fn set(&mut self, _: Layout) -> Result<(), HostError> {
        Ok(())
    }
}

fn quic_settings() -> Quic {
    Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(10),
        congestion: Congestion::Cubic,
        dscp: 0,
    }
}

fn log() -> Log {
    Log { level: Filter::default(), format: LogFormat::Text }
}

impl Hosts {
    fn client_config(&self) -> ClientConfig {
        let addresses = SERVERS.map(|server| {
            let server: SocketAddr = server.parse().unwrap();
            HostPort { host: server.ip().to_string(), port: server.port() }
        });
        ClientConfig {
            private_key: self.client.clone(),
            servers: vec![ServerPeer {
                name: "berlin".into(),
                tcp_port: None,
                proxy: None,
                relay: None,
                home: Vec::new(),
                addresses: addresses.into(),
                public_key: self.server.public_key(),
            }],
            home: HomeMode::Direct,
            tun: ClientTun {
                name: "roam0".into(),
                mtu: 1400,
                offload: true,
                routes: None,
                exclude: Exclude::default(),
                kill_switch: false,
                dns: None,
            },
            paths: Paths {
                probe_timeout: Duration::from_secs(5),
                standby_check: Some(Duration::from_secs(15)),
                metered_copies: 64 << 10,
                metered_reserve: false,
                prefer: Vec::new(),
                ignore: Vec::new(),
            },
            quic: quic_settings(),
            log: log(),
            metrics: None,
        }
    }

    fn server_config(&self) -> ServerConfig {
        let laptop = Peer {
            name: "laptop".into(),
            public_key: self.client.public_key(),
            addresses: vec!["10.66.0.2".parse().unwrap()],
        };
        let listen: SocketAddr = "[::]:4433".parse().unwrap();
        ServerConfig::fake(&self.server, listen, vec![laptop])
    }
}

impl Day {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let links = vec![
            Link::new("wifi0", "10.0.1.2", "198.51.100.1", 100),
            Link::new("lte0", "2001:db8:2::2", "2001:db8:ff::2", 200),
        ];
        let servers = SERVERS.map(|server| server.parse().unwrap());
        Self {
            world: World::new(links, servers, random.u64(..)),
            random,
            hosts: Hosts {
                client: PrivateKey::generate().unwrap(),
                server: PrivateKey::generate().unwrap(),
            },
            story: Vec::new(),
            begun: clock::now(),
            pace: INTERVAL,
            server: None,
            app: Arc::default(),
            late: 0,
            is_metered: false,
            figures: Figures { days: 1, ..Figures::default() },
        }
    }

    /// Starts both daemons and the user's program.
    fn begin(&mut self) -> (Arc<Client>, Tasks) {
        self.begun = clock::now();
        self.world.change(1, |lte| lte.delay = Duration::from_millis(25));
        self.start_server();
        let (to_device, delivered) = mpsc::channel::<Packet>(1024);
        let (from_device, source) = mpsc::channel::<Packet>(1024);
        let mut config = self.hosts.client_config();
        if self.is_metered {
            let prefer = [("wifi*", false), ("lte*", true)];
            let prefer = prefer.map(|(link, metered)| Preference {
                link: link.into(),
                metered,
                ..Preference::default()
            });
            config.paths.prefer = prefer.into();
        }
        let config = Arc::new(config);
        let client =
            Client::new(config, self.world.clone(), Box::new(to_device), Reports::default());
        let client = Arc::new(client.unwrap());
        let running = tokio::spawn({
            let client = client.clone();
            async move {
                let (_orders, mut ordered) = mpsc::channel(1);
                let ended = client.carry(source, &mut NoInterface, &mut ordered).await;
                panic!("the client ended: {ended:?}");
            }
        });
        let typing = tokio::spawn(type_packets(from_device, self.pace, self.app.clone()));
        let reading = tokio::spawn(read_echoes(delivered, self.app.clone()));
        (client, Tasks { running, typing, reading })
    }

    async fn live(mut self) -> Result<Figures, String> {
        self.is_metered = self.random.bool();
        let (client, tasks) = self.begin();
        let running = &tasks.running;
        let end = self.begun + DAY;
        let mut next_event = clock::now() + Duration::from_secs(5);
        let now = clock::now();
        let mut works =
            Works { any: now, fair: now, good: [now; 2], all_good: now, session: (0, now) };
        let mut bad_since = None;
        let mut carried = self.world.links()[1].sent;
        while clock::now() < end && !running.is_finished() {
            sleep(INTERVAL).await;
            let (mut grace, begun) = (Duration::ZERO, clock::now());
            if begun >= next_event {
                grace = self.event().await;
                next_event = clock::now() + self.pause();
            }
            let now = clock::now();
            let links = self.world.links();
            let loses = |most| move |link: &Link| link.is_good() && link.loss <= most;
            for (since, most) in [(&mut works.any, 1.0), (&mut works.fair, FAIR)] {
                if !links.iter().any(loses(most)) || !grace.is_zero() {
                    *since = (*since).max(now + grace);
                }
            }
            let status = client.status();
            if works.session.0 != status.sessions || status.session.is_none() {
                works.session = (status.sessions, now);
            }
            let paths = status.paths;
            let is = |link: usize, states: &[Condition]| {
                let is = |it: &PathStatus| it.link == LINKS[link] && states.contains(&it.state);
                paths.iter().any(is)
            };
            let known = [Condition::Active, Condition::Suspect, Condition::Standby];
            // Nobody looked meanwhile.
            let is_long = now > begun || grace > MOMENT;
            for (link, since) in works.good.iter_mut().enumerate() {
                if !loses(GOOD)(&links[link]) || !is(link, &known) || is_long {
                    *since = now + grace;
                }
            }
            if is_long || links.iter().any(|link| link.is_good() && link.loss > GOOD) {
                works.all_good = now + grace;
            }
            if self.is_metered && is(0, &[Condition::Active]) && !is_long {
                self.figures.metered += (links[1].sent - carried) as u64;
            }
            carried = links[1].sent;
            self.app.0.lock().unwrap().bare = bare(&links, works.good, now);
            self.check(now, works)?;
            if !self.is_on_bad_network(&client) || grace > MOMENT {
                bad_since = None;
            } else if now - *bad_since.get_or_insert(now) > PATIENCE {
                return self.fail(&format!("a bad network is used: {:?}", client.status().paths));
            }
        }
        if running.is_finished() {
            return self.fail("the client ended");
        }
        let switches: u64 = client.status().switches_by_reason.values().sum();
        if switches > self.story.len() as u64 {
            return self.fail(&format!("{switches} switches"));
        }
        (self.figures.switches, self.figures.most_switches) = (switches, switches);
        let Figures { lost, slow, twice, metered, .. } = self.figures;
        if lost[0] > MOST_LOST || slow > MOST_SLOW || twice > 0 || metered > METERED {
            return self.fail(&format!("{:?}", self.figures));
        }
        self.rest(&client).await?;
        drop((client, tasks));
        // Longer than a closing connection uses its socket.
        sleep(Duration::from_secs(10)).await;
        match self.world.open_sockets().len() {
            0 => Ok(self.figures),
            open => self.fail(&format!("{open} sockets are still open")),
        }
    }

    /// A quiet time in which everything works: the preferred path is used, the other one is warm.
    async fn rest(&mut self, client: &Client) -> Result<(), String> {
        for link in 0..2 {
            self.world
                .change(link, |link| (link.up, link.hole, link.loss) = (true, Hole::None, 0.0));
            // A path that became slow would rightly not be used.
            let delay = Duration::from_millis([10, 25][link]);
            self.world.change(link, |it| {
                (it.delay, it.jitter, it.others) = (delay, Duration::ZERO, Duration::ZERO);
                (it.rate, it.growth) = (None, None);
            });
        }
        self.tell("everything works");
        sleep(REST).await;
        let last_echo = self.app.0.lock().unwrap().last_echo;
        if last_echo.is_none_or(|echo| clock::now() - echo > BOUND) {
            return self.fail("no echo after a rest");
        }
        let status = client.status();
        let states: Vec<_> =
            status.paths.iter().map(|path| format!("{} {:?}", path.link, path.state)).collect();
        if states != ["wifi0 Active", "lte0 Standby"] {
            return self.fail(&format!("after a rest: {states:?}"));
        }
        match self.world.open_sockets().len() {
            0..=2 => Ok(()),
            _ => self.fail(&format!("sockets for two paths: {:?}", self.world.open_sockets())),
        }
    }

    fn check(&mut self, now: Instant, works: Works) -> Result<(), String> {
        let mut seen = self.app.0.lock().unwrap();
        // On a network that loses much, some packets are repeated several times.
        match now.saturating_duration_since(works.fair) <= REPEATED {
            true => seen.late = self.late,
            false => self.late = seen.late,
        }
        let last_echo = seen.last_echo.unwrap_or(self.begun);
        let since = works.good.into_iter().min().unwrap_or(now) + SETTLED;
        let Seen { sent, came, slow, twice, .. } = &mut *seen;
        for direction in [UP, DOWN] {
            while let Some(it) =
                sent[direction].front().copied().filter(|it| it.at + SETTLED <= now)
            {
                sent[direction].pop_front();
                if twice.contains(&(direction, it.number)) && it.at >= works.session.1 {
                    self.figures.twice += 1;
                }
                let protocol = usize::from(protocol(it.number) == UDP);
                if it.at < since || protocol == 1 && it.at < works.all_good + SETTLED {
                    continue;
                }
                self.figures.sent[protocol] += 1;
                self.figures.slow += u64::from(slow[direction].contains(&it.number));
                if !came[direction].contains(&it.number) {
                    self.figures.lost[protocol] += 1;
                    let sent = it.at - self.begun;
                    tracing::info!(number = it.number, ?sent, direction, protocol, "lost");
                }
            }
        }
        drop(seen);
        if self.late > FEW {
            return self.fail(&format!("{} packets took more than {LATEST:?}", self.late));
        }
        let slowest = self.world.links().iter().map(|it| it.longest_delay(now)).max();
        let bound = BOUND + ROUND_TRIPS * 2 * slowest.unwrap_or_default();
        for (since, bound) in [(works.fair, bound), (works.any, LOSSY_BOUND)] {
            if now.saturating_duration_since(last_echo.max(since)) > bound {
                return self.fail(&format!(
                    "no echo for {:?} although a network works since {:?}",
                    now.duration_since(last_echo),
                    since.duration_since(self.begun)
                ));
            }
        }
        Ok(())
    }

    /// Whether the network in use is bad and another one, which has answered, is good.
    fn is_on_bad_network(&self, client: &Client) -> bool {
        let links = self.world.links();
        let bad = links.iter().position(|link| link.is_good() && link.loss >= BAD);
        let Some(bad) = bad else { return false };
        let other = &links[1 - bad];
        if !other.is_good()
            || other.loss > GOOD
            || other.longest_delay(clock::now()) > Duration::from_millis(100)
        {
            return false;
        }
        let paths = client.status().paths;
        let is =
            |link: &Link, state| paths.iter().any(|it| it.link == link.name && it.state == state);
        is(&links[bad], Condition::Active) && is(other, Condition::Standby)
    }

    /// From one event to the next: seconds, or a moment.
    fn pause(&mut self) -> Duration {
        let longest = [300, 5_000, 60_000][self.random.usize(..3)];
        Duration::from_millis(self.random.u64(50..longest))
    }

    /// Something happens; how much more than the usual moment it may cost the tunnel.
    async fn event(&mut self) -> Duration {
        let link = self.random.usize(..2);
        let name = ["wifi", "lte"][link];
        match self.random.u32(..22) {
            0..3 => {
                let mut up = false;
                self.world.change(link, |it| {
                    it.up = !it.up;
                    up = it.up;
                });
                self.tell(&format!("{name} is {}", if up { "up" } else { "down" }));
            }
            3..6 => {
                let kinds = [Hole::Everything, Hole::Everything, Hole::Uplink, Hole::Downlink];
                let kind = kinds[self.random.usize(..kinds.len())];
                let mut hole = Hole::None;
                self.world.change(link, |it| {
                    it.hole = if it.hole == Hole::None { kind } else { Hole::None };
                    hole = it.hole;
                });
                self.tell(&format!("{name} loses: {hole:?}"));
            }
            6 => {
                let worst = if self.random.u32(..4) == 0 { 0.4 } else { 0.05 };
                let loss = self.random.f64() * worst;
                self.world.change(link, |it| it.loss = loss);
                self.tell(&format!("{name} loses {:.1} %", loss * 100.0));
            }
            7 => {
                let delay = Duration::from_millis(self.random.u64(1..300));
                self.world.change(link, |it| it.delay = delay);
                self.tell(&format!("{name} takes {delay:?}"));
            }
            8 => {
                let mtu = self.random.usize(1252..1472);
                self.world.change(link, |it| it.mtu = mtu);
                self.tell(&format!("{name} carries {mtu} bytes"));
                return Duration::ZERO;
            }
            9 => {
                self.world.change(link, Link::rebind);
                self.tell(&format!("{name}'s NAT restarts"));
            }
            10 => {
                for link in 0..2 {
                    self.world.change(link, |it| it.hole = Hole::Everything);
                }
                self.tell("both fall silent");
                let outage = Duration::from_millis(self.random.u64(1000..60_000));
                sleep(outage).await;
                for link in 0..2 {
                    self.world.change(link, |it| (it.up, it.hole) = (true, Hole::None));
                }
                self.tell(&format!("both answer after {outage:?}"));
            }
            16 => {
                let jitter = Duration::from_millis(self.random.u64(..120).saturating_sub(40));
                self.world.change(link, |it| it.jitter = jitter);
                self.tell(&format!("{name} delays packets by up to {jitter:?} more"));
            }
            17 => {
                let adds = Duration::from_millis(self.random.u64(..400).saturating_sub(100));
                let lasts = Duration::from_millis(self.random.u64(1000..20_000));
                let since = clock::now();
                let growth = (!adds.is_zero()).then_some(Growth { since, lasts, adds });
                self.world.change(link, |it| it.growth = growth);
                self.tell(&format!("{name} becomes slower by {adds:?} in {lasts:?}"));
            }
            18 => {
                let rate = self.random.bool().then(|| self.random.u32(100_000..2_000_000));
                self.world.change(link, |it| it.rate = rate);
                self.tell(&format!("{name} carries {rate:?} bit/s"));
            }
            19 => {
                let others = Duration::from_millis(self.random.u64(..300).saturating_sub(100));
                self.world.change(link, |it| it.others = others);
                self.tell(&format!("others fill the queue of {name} to {others:?}"));
            }
            20 => {
                self.world.change(link, Link::renumber);
                self.tell(&format!("{name} has another address"));
            }
            11 => return self.restart_server(),
            12 => return self.strike_on_return(link).await,
            _ => return self.strike().await,
        }
        MOMENT
    }

    fn restart_server(&mut self) -> Duration {
        self.start_server();
        self.tell("the server restarts");
        // The client does not hurry to one that just died.
        Duration::from_secs(10)
    }

    /// Starts the server; one that runs is killed without a goodbye.
    fn start_server(&mut self) {
        if let Some(before) = self.server.take() {
            before.abort();
        }
        let (to_device, mut delivered) = mpsc::channel::<Packet>(1024);
        let (from_device, source) = mpsc::channel::<Packet>(1024);
        let config = self.hosts.server_config();
        let nothing = watch::Sender::default().subscribe();
        let (server, endpoint) =
            Server::new(config, vec![self.world.listen()], Box::new(to_device), nothing).unwrap();
        let app = self.app.clone();
        let echoing = async move {
            while let Some(packet) = delivered.recv().await {
                let Some((number, _)) = app.arrived(UP, packet.ip()) else { continue };
                let echo = packet_at(false, clock::now(), number, packet.ip());
                if from_device.try_send(echo).is_ok() {
                    app.sent(DOWN, number);
                }
            }
        };
        self.server = Some(tokio::spawn(async move {
            tokio::select! {
                _ = server.carry(source, &endpoint) => {}
                () = echoing => {}
            }
        }));
    }

    fn tell(&mut self, what: &str) {
        let at = clock::now().duration_since(self.begun);
        tracing::info!("{what}");
        self.story.push(format!("{:8.3} s  {what}", at.as_secs_f64()));
    }

    fn fail<T>(&self, reason: &str) -> Result<T, String> {
        let at = clock::now().duration_since(self.begun).as_secs_f64();
        Err(format!("{:8.3} s  {reason}\n{}", at, self.story.join("\n")))
    }
}

/// A packet from the client or the server with the time of its sending, of TCP or UDP in turn.
fn packet_at(from_client: bool, sent: Instant, number: u32, like: &[u8]) -> Packet {
    let (client, server) = ("10.66.0.2".parse().unwrap(), "10.66.0.1".parse().unwrap());
    let (source, destination) = if from_client { (client, server) } else { (server, client) };
    let mut bytes = wire::packet::tests::packet(source, destination, like.len().max(56) - 20);
    // With a TCP header of 20 bytes, it carries data.
    (bytes[9], bytes[32]) = (protocol(number), 0x50);
    let nanos = sent.duration_since(epoch()).as_nanos() as u64;
    bytes[40..44].copy_from_slice(&number.to_be_bytes());
    bytes[44..52].copy_from_slice(&nanos.to_be_bytes());
    bytes.into()
}

fn protocol(number: u32) -> u8 {
    if number.is_multiple_of(2) { TCP } else { UDP }
}

/// How long a packet takes without a tunnel, over the link that the kernel prefers of those that are good for some seconds.
fn bare(links: &[Link], good: [Instant; 2], now: Instant) -> Duration {
    let mut works = links.iter().zip(good).filter(|(_, since)| *since + SETTLED <= now);
    works.next().map_or(Duration::MAX, |(link, _)| link.longest_delay(now))
}

/// Some moment before all others, the same for the whole process.
fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(|| Instant::now() - Duration::from_secs(60))
}

async fn type_packets(device: mpsc::Sender<Packet>, pace: Duration, app: Arc<App>) {
    for number in 0.. {
        // A full channel is the kernel's queue: it drops.
        if device.try_send(packet_at(true, clock::now(), number, &[0; 100])).is_ok() {
            app.sent(UP, number);
        }
        sleep(pace).await;
    }
}

async fn read_echoes(mut device: mpsc::Receiver<Packet>, app: Arc<App>) {
    while let Some(packet) = device.recv().await {
        let Some((_, sent)) = app.arrived(DOWN, packet.ip()) else { continue };
        let mut seen = app.0.lock().unwrap();
        seen.last_echo = Some(clock::now());
        seen.last_answer = seen.last_answer.max(Some(sent));
    }
}

impl App {
    /// A packet is sent now.
    fn sent(&self, direction: usize, number: u32) {
        let sent = Sent { number, at: clock::now() };
        self.0.lock().unwrap().sent[direction].push_back(sent);
    }

    /// Takes in a packet; its number, and when it was sent, if it did not come before.
    fn arrived(&self, direction: usize, bytes: &[u8]) -> Option<(u32, Instant)> {
        let number = u32::from_be_bytes(bytes[40..44].try_into().unwrap());
        let nanos = u64::from_be_bytes(bytes[44..52].try_into().unwrap());
        let sent = epoch() + Duration::from_nanos(nanos);
        let took = clock::now().saturating_duration_since(sent);
        let mut seen = self.0.lock().unwrap();
        // TCP waits for a network, however long that takes.
        seen.late += u64::from(took > LATEST && protocol(number) == UDP);
        if took > seen.bare.saturating_mul(FACTOR).saturating_add(SLACK) {
            seen.slow[direction].insert(number);
        }
        if !seen.came[direction].insert(number) {
            tracing::info!(direction, number, ?took, "twice");
            seen.twice.insert((direction, number));
            return None;
        }
        Some((number, sent))
    }
}
