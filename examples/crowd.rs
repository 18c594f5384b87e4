//! A server died, and all its clients come to the next one at the same moment: `cargo build --release && cargo run
//! --release --example crowd [NUMBER [PROGRAM [ROW]]]`, as root; 5,000 clients if no number is given. `PROGRAM` is another roamd
//! to compare with, `ROW` the one row that is wanted, such as `own-0-3`: addresses, round trip, spread.
//!
//! ```text
//!  crowd     NUMBER clients that begin at once ──20 ms──┐
//!                                                       ├── server
//!  inside    a client with a session, which pings ──────┘
//! ```
//! The server is the real daemon, in a process and a namespace of its own. The clients are connections of this process:
//! each has a key, a UDP port, and the pace of roamd's client, from an address of its own or all from one, as behind a NAT.
//! With two cores the crowd has one of them, and begins some 2,000 handshakes a second with it: more than some 2,000 clients that
//! begin in the same moment keep it busy with handshakes that are too old when their answers come, which no client in a
//! machine of its own does. Hence the rows in which clients notice within three seconds. Without `RUST_BACKTRACE`: a
//! backtrace for each handshake that fails costs more than the handshake.
#![expect(clippy::disallowed_methods, reason = "runs in real time")]
#![expect(clippy::print_stdout, reason = "a table for people")]

#[path = "clients/addresses.rs"]
mod addresses;
#[path = "clients/echo.rs"]
mod echo;
#[path = "clients/rig.rs"]
mod rig;

use std::{
    fs,
    io::{self, IoSliceMut},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, EndpointConfig, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use roamd::internals::{
    client::pace::pace,
    identity::{PrivateKey, PublicKey},
    path::udp::UdpSocket,
    quic::session::{self, MessageStream},
};
use tokio::{
    task::JoinSet,
    time::{self, timeout},
};

use self::echo::Pings;

const NUMBER: usize = 5000;
/// As in client/dial.rs: the first handshake of a round, and those that follow.
const FIRST: Duration = Duration::from_secs(10);
const FURTHER: Duration = Duration::from_secs(3);
/// How long a welcome may take.
const GREETING: Duration = Duration::from_secs(3);
/// After that the rest is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before the storm, and after it.
const CALM: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Addresses {
    /// Each client has an address in a /24 of its own.
    Own,
    /// All have one: 10.77.0.2.
    One,
}

fn main() -> anyhow::Result<()> {
    let number = std::env::args().nth(1).map_or(Ok(NUMBER), |text| text.parse())?;
    let program = std::env::args().nth(2).map_or_else(rig::program, |path| Ok(path.into()))?;
    println!("{number} clients");
    println!(
        "{:<10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>12}{:>10}{:>8}{:>10}{:>8}{:>8}{:>8}{:>8}",
        "addresses",
        "RTT ms",
        "over s",
        "half s",
        "90 % s",
        "all s",
        "absent",
        "handshakes",
        "CPU s",
        "CPU %",
        "peak MB",
        "p50 ms",
        "p99 ms",
        "max ms",
        "lost"
    );
    let wanted = std::env::args().nth(3);
    for (addresses, delay, spread) in [
        (Addresses::Own, 0, 0),
        (Addresses::Own, 0, 3),
        (Addresses::Own, 20, 3),
        (Addresses::One, 20, 3),
        (Addresses::One, 100, 3),
    ] {
        let name = format!("{addresses:?}-{}-{spread}", 2 * delay).to_lowercase();
        if wanted.as_ref().is_none_or(|wanted| *wanted == name) {
            let (delay, spread) = (Duration::from_millis(delay), Duration::from_secs(spread));
            measure(&program, number, addresses, delay, spread)?;
        }
    }
    Ok(())
}

fn measure(
    program: &Path,
    number: usize,
    addresses: Addresses,
    delay: Duration,
    spread: Duration,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (here, there, _link) = rig::namespaces(delay)?;
    addresses::give(&here, &there, "10.77.0.2")?;
    let keys: Vec<_> = (0..=number).map(|_| PrivateKey::generate()).collect::<Result<_, _>>()?;
    let (mut server, server_key) = rig::start(program, &there, folder.path(), &keys)?;

    go_first(&server.pid().to_string())?;
    let back = Arc::new(Storm::default());
    let (inside, crowd) = keys.split_last().context("no keys")?;
    let pings = here.run(|| {
        let ready = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            loop {
                let config = rig::config(inside, server_key)?;
                match rig::connect(rig::endpoint()?, config).await {
                    Ok(client) => return anyhow::Ok(client),
                    Err(error) if ready.elapsed() > FIRST => return Err(error),
                    Err(_) => time::sleep(Duration::from_millis(20)).await,
                }
            }
        })?;
        let took = ready.elapsed();
        let resident = server.memory("VmRSS")?;
        let reloaded = reload(program, folder.path())?;
        println!(
            "  start {:.2} s, {:.1} MB; reload {:.2} s, then {:.1} MB",
            took.as_secs_f64(),
            resident as f64 / 1000.0,
            reloaded.as_secs_f64(),
            server.memory("VmRSS")? as f64 / 1000.0
        );
        anyhow::Ok((runtime, client))
    })??;
    let (runtime, client) = pings;
    let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Pings::default())));
    let pinging = {
        let (stop, heard, (client, messages)) = (stop.clone(), heard.clone(), client);
        let own = rig::inner(number);
        thread::spawn(move || {
            let thread = fs::read_link("/proc/thread-self")?;
            go_first(&thread.file_name().context("no thread id")?.to_string_lossy())?;
            runtime.block_on(echo::type_until(&stop, &client, own, &heard));
            drop(messages);
            anyhow::Ok(())
        })
    };
    thread::sleep(CALM);
    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Pings::default();
    let (cpu, begun) = (server.cpu()?, Instant::now());
    let storm = {
        let (back, crowd) = (back.clone(), crowd.to_vec());
        here.thread("crowd", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(storm(addresses, spread, &crowd, server_key, &back))
        })?
    };
    let _sessions = storm.join().map_err(|_| anyhow::anyhow!("the crowd panicked"))???;
    let used = server.cpu()? - cpu;
    let took = begun.elapsed();
    stop.store(true, Relaxed);
    pinging.join().map_err(|_| anyhow::anyhow!("the client inside panicked"))??;
    let mut times = back.times();
    times.sort();
    let at = |share: f64| {
        let wanted = (share * number as f64).ceil() as usize;
        times.get(wanted.max(1) - 1).map_or("-".into(), |it| format!("{:.2}", it.as_secs_f64()))
    };
    println!(
        "{:<10}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>12}{used:>10.2}{:>8.0}{:>10.1}{}",
        format!("{addresses:?}").to_lowercase(),
        2 * delay.as_millis(),
        spread.as_secs(),
        at(0.5),
        at(0.9),
        at(1.0),
        number - times.len(),
        back.begun.load(Relaxed),
        100.0 * used / took.as_secs_f64(),
        server.memory("VmHWM")? as f64 / 1000.0,
        row(&mut heard.lock().unwrap_or_else(PoisonError::into_inner))
    );
    server.stop()?;
    Ok(())
}

/// What becomes of the crowd.
#[derive(Default)]
struct Storm {
    /// Handshakes begun.
    begun: AtomicUsize,
    back: Mutex<Vec<Duration>>,
}

impl Storm {
    fn times(&self) -> Vec<Duration> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All clients, each of which notices within `spread`, until each has a session or the time is over; the sessions.
async fn storm(
    addresses: Addresses,
    spread: Duration,
    keys: &[PrivateKey],
    server: PublicKey,
    storm: &Arc<Storm>,
) -> anyhow::Result<Vec<(Connection, MessageStream)>> {
    let mut ready = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        ready.push((endpoint(addresses, number)?, rig::config(key, server)?));
    }
    let (mut clients, begun) = (JoinSet::new(), Instant::now());
    for (endpoint, config) in ready {
        let storm = storm.clone();
        let notices = spread.mul_f32(fastrand::f32());
        clients.spawn(async move {
            time::sleep(notices).await;
            let session = return_to(endpoint, config, Instant::now(), &storm).await;
            storm.back.lock().unwrap_or_else(PoisonError::into_inner).push(begun.elapsed());
            session
        });
    }
    let mut sessions = Vec::new();
    let _ = timeout(PATIENCE, async {
        while let Some(session) = clients.join_next().await {
            sessions.extend(session);
        }
    })
    .await;
    Ok(sessions)
}

fn endpoint(addresses: Addresses, number: usize) -> anyhow::Result<(Endpoint, Arc<Socket>)> {
    let local = match addresses {
        Addresses::One => SocketAddr::from(([10, 77, 0, 2], 0)),
        Addresses::Own => addresses::nth(number),
    };
    let mut small = EndpointConfig::default();
    small.max_udp_payload_size(1500)?;
    let udp = UdpSocket::bind(local, None, 0, None)?;
    let socket = Arc::new(Socket { udp, is_put_off: AtomicBool::new(false) });
    let runtime = Arc::new(TokioRuntime);
    Ok((Endpoint::new_with_abstract_socket(small, None, socket.clone(), runtime)?, socket))
}

/// A client's socket. It sees whether the server asks for a proof of the client's address (RFC 9000 §17.2.5).
#[derive(Debug)]
struct Socket {
    udp: Arc<UdpSocket>,
    is_put_off: AtomicBool,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.udp.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.udp.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.udp.poll_recv(cx, bufs, meta))?;
        if bufs.iter().take(received).any(|buffer| buffer[0] & 0xf0 == 0xf0) {
            self.is_put_off.store(true, Relaxed);
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }
}

/// A client that lost its session at `lost`, as client/dial.rs has it: rounds of handshakes at its pace, the first
/// to complete asks for a session.
async fn return_to(
    (endpoint, socket): (Endpoint, Arc<Socket>),
    config: quinn::ClientConfig,
    lost: Instant,
    storm: &Arc<Storm>,
) -> (Connection, MessageStream) {
    loop {
        let round = Instant::now();
        socket.is_put_off.store(false, Relaxed);
        let mut handshakes = JoinSet::new();
        let begin = |handshakes: &mut JoinSet<_>, limit| {
            let (endpoint, config) = (endpoint.clone(), config.clone());
            storm.begun.fetch_add(1, Relaxed);
            handshakes.spawn(async move {
                let connecting = endpoint.connect_with(config, rig::SERVER.parse()?, "roamd")?;
                anyhow::Ok(timeout(limit, connecting).await??)
            });
        };
        begin(&mut handshakes, FIRST);
        let mut next = Instant::now() + pace(lost.elapsed(), false, fastrand::f32());
        while round.elapsed() < FIRST {
            tokio::select! {
                Some(ended) = handshakes.join_next() => if let Ok(Ok(connection)) = ended {
                    let opened = timeout(GREETING, session::open(&connection, true, 1)).await;
                    if let Ok(Ok((messages, _))) = opened {
                        return (connection, messages);
                    }
                },
                () = time::sleep_until(next.into()) => {
                    begin(&mut handshakes, FURTHER);
                    let is_put_off = socket.is_put_off.load(Relaxed);
                    next = Instant::now() + pace(lost.elapsed(), is_put_off, fastrand::f32());
                }
            }
        }
    }
}

/// The echoes of the client inside.
fn row(pings: &mut Pings) -> String {
    let [typical, late, latest] = pings.percentiles();
    let lost = pings.sent.saturating_sub(pings.answers.len());
    format!("{typical:>8.1}{late:>8.1}{latest:>8.1}{lost:>8}")
}

/// Lets a process or thread go before the crowd, whose members have machines of their own elsewhere.
fn go_first(id: &str) -> anyhow::Result<()> {
    let output = Command::new("renice").args(["-n", "-10", "-p", id]).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn reload(program: &Path, folder: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let output = Command::new(program)
        .args(["reload", "server"])
        .env("ROAMD_RUNTIME_DIR", folder)
        .env("STATE_DIRECTORY", folder)
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(begun.elapsed())
}
