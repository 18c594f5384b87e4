//! What strangers cost a server and its clients: `cargo build --release && cargo run --release --example
//! flood [PROGRAM [FLOOD]]`, as root; some three minutes. `PROGRAM` is another roamd to compare with, `FLOOD` the
//! one row that is wanted, such as `half-open`.
//!
//! ```text
//!  inside    client with a tunnel, pings through it ──┐
//!  newcomer  client that starts under the flood ──────┼── server
//!  flood     10,000 handshakes a second ──────────────┘
//! ```
//! The flood consists of first flights from addresses that never answer (*spoofed*), of handshakes that
//! answer a Retry and then fall silent (*half-open*), or of whole handshakes with keys that the server does
//! not know (*unknown-key*), from one address or from a thousand, each in a /24 of its own. All daemons are
//! real, each in a namespace of its own; the flood is this process, and its own CPU limits how many
//! handshakes it begins.
#![expect(clippy::disallowed_methods, reason = "runs in real time")]
#![expect(clippy::print_stdout, reason = "a table for people")]

#[path = "clients/addresses.rs"]
mod addresses;

use std::{
    fs,
    io::{self, IoSliceMut},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use roamd::internals::{
    identity::{PrivateKey, PublicKey},
    path::udp::UdpSocket,
    quic::{self, tls},
};
use roamd_lab::{Namespace, Process, veth};
use tokio::{task::JoinSet, time};

/// Begun in a second.
const RATE: usize = 10_000;
/// Strangers with a key of their own that are at it at a time.
const STRANGERS: usize = 1000;
/// How long a stranger waits for an answer.
const IMPATIENCE: Duration = Duration::from_millis(300);
/// From one half-open handshake of a stranger to its next.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a half-open handshake is kept up; it ends without a word.
const SILENCE: Duration = Duration::from_secs(12);
/// Under the flood, before and after the newcomer starts.
const SPELL: Duration = Duration::from_secs(5);
/// The newcomer gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const HOSTS: [&str; 3] = ["inside", "newcomer", "flood"];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Quiet,
    /// From addresses that never answer.
    Spoofed,
    /// From addresses that answer a Retry, and nothing else.
    HalfOpen,
    UnknownKey,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Quiet => "none",
            Self::Spoofed => "spoofed",
            Self::HalfOpen => "half-open",
            Self::UnknownKey => "unknown-key",
        }
    }
}

fn main() -> anyhow::Result<()> {
    let program = std::env::args().nth(1).map_or_else(program, |path| Ok(PathBuf::from(path)))?;
    let wanted = std::env::args().nth(2);
    println!(
        "{:<12}{:>9}{:>10}{:>14}{:>10}{:>10}{:>8}{:>12}{:>12}",
        "flood",
        "sources",
        "begun/s",
        "newcomer in s",
        "p50 ms",
        "p99 ms",
        "lost %",
        "server CPU %",
        "server MB"
    );
    for (kind, sources) in [
        (Kind::Quiet, 0),
        (Kind::Spoofed, 1),
        (Kind::Spoofed, 1000),
        (Kind::HalfOpen, 1),
        (Kind::HalfOpen, 1000),
        (Kind::UnknownKey, 1),
        (Kind::UnknownKey, 1000),
    ] {
        if wanted.as_ref().is_none_or(|wanted| wanted == kind.name()) {
            println!("{}", measure(&program, kind, sources)?);
        }
    }
    Ok(())
}

fn measure(program: &Path, kind: Kind, sources: usize) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let there = Namespace::new("server")?;
    let mut hosts = Vec::new();
    for (number, name) in HOSTS.into_iter().enumerate() {
        let (host, link) = (Namespace::new(name)?, format!("to{number}"));
        veth(&host, "eth0", &there, &link)?;
        for (host, link, last) in [(&host, "eth0", 2), (&there, link.as_str(), 1)] {
            host.set_up(link)?;
            host.add_address(link, &format!("10.77.{number}.{last}/24"))?;
        }
        hosts.push(host);
    }
    let flood = hosts.pop().context("no flood")?;
    addresses::give(&flood, &there, "10.77.2.2")?;

    let server_key = key(program, folder.path(), "server")?;
    let mut toml = "role = \"server\"\nprivate-key-file = \"server.key\"\nlisten = \"[::]:4433\"\n\
                    [tun]\naddresses = [\"10.66.0.1/24\"]\n"
        .to_owned();
    for (number, name) in HOSTS.into_iter().enumerate().take(2) {
        let own = key(program, folder.path(), name)?;
        toml += &format!(
            "[[peer]]\nname = \"{name}\"\npublic-key = \"{own}\"\naddresses = [\"10.66.0.{}\"]\n",
            number + 2
        );
        let client = format!(
            "role = \"client\"\nprivate-key-file = \"{name}.key\"\n[server]\naddress = \
             [\"10.77.{number}.1:4433\"]\npublic-key = \"{server_key}\"\n[tun]\nname = \"roam0\"\n"
        );
        fs::write(folder.path().join(name).with_extension("toml"), client)?;
    }
    fs::write(folder.path().join("server.toml"), toml)?;

    let mut server = start(program, &there, folder.path(), "server")?;
    let mut inside = start(program, &hosts[0], folder.path(), "inside")?;
    connected(program, &hosts[0], folder.path(), "inside", PATIENCE)?.context("no tunnel")?;
    let flooding = Flooding::start(&flood, kind, sources, server_key)?;
    thread::sleep(Duration::from_secs(1));

    let (cpu_before, begun_before, begun) = (server.cpu()?, flooding.begun(), Instant::now());
    let pings = {
        let mut command = hosts[0].command("ping");
        let seconds = (2 * SPELL).as_secs().to_string();
        command.args(["-n", "-i", "0.02", "-W", "2", "-w", &seconds, "10.66.0.1"]);
        thread::spawn(move || command.output())
    };
    thread::sleep(SPELL);
    let mut newcomer = start(program, &hosts[1], folder.path(), "newcomer")?;
    let entered = connected(program, &hosts[1], folder.path(), "newcomer", PATIENCE)?;
    let output = pings.join().map_err(|_| anyhow::anyhow!("ping panicked"))??;
    let seconds = begun.elapsed().as_secs_f64();
    let rate = (flooding.begun() - begun_before) as f64 / seconds;
    let used = (server.cpu()? - cpu_before) / seconds * 100.0;
    let peak = server.memory("VmHWM")?;
    flooding.stop();
    for process in [&mut newcomer, &mut inside, &mut server] {
        process.stop()?;
    }

    let text = String::from_utf8_lossy(&output.stdout);
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    let percentile = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    let lost = text.split("received, ").nth(1).and_then(|rest| rest.split('%').next());
    let entered = entered.map_or_else(
        || format!("> {}", PATIENCE.as_secs()),
        |time| format!("{:.2}", time.as_secs_f64()),
    );
    Ok(format!(
        "{:<12}{sources:>9}{rate:>10.0}{entered:>14}{:>10.2}{:>10.2}{:>8}{used:>12.0}{:>12.1}",
        kind.name(),
        percentile(0.5),
        percentile(0.99),
        lost.unwrap_or("?"),
        peak as f64 / 1000.0
    ))
}

/// Threads that flood until they are stopped.
struct Flooding {
    begun: Arc<AtomicU64>,
    stops: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<anyhow::Result<()>, roamd_lab::Error>>,
}

impl Flooding {
    fn start(
        flood: &Namespace,
        kind: Kind,
        sources: usize,
        server: PublicKey,
    ) -> anyhow::Result<Self> {
        let (begun, stops) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counts, ends) = (begun.clone(), stops.clone());
        let addresses: Vec<_> = (0..sources).map(addresses::nth).collect();
        let target = SocketAddr::from(([10, 77, 2, 1], 4433));
        let thread = flood.thread("flood", move || match kind {
            Kind::Quiet => Ok(()),
            Kind::Spoofed => spoof(&addresses, target, server, &counts, &ends),
            Kind::HalfOpen | Kind::UnknownKey => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(knock(kind, &addresses, target, server, &counts, &ends)),
        })?;
        // The spoofed first flights are made in advance.
        let ready = Instant::now();
        while kind != Kind::Quiet && begun.load(Relaxed) == 0 {
            anyhow::ensure!(ready.elapsed() < PATIENCE, "the flood does not begin");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { begun, stops, thread })
    }

    fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    fn stop(self) {
        self.stops.store(true, Relaxed);
        // What went wrong there shows in the rate.
        let _ = self.thread.join();
    }
}

fn stranger(server: PublicKey) -> anyhow::Result<quinn::ClientConfig> {
    let key = PrivateKey::generate()?;
    let mut config =
        quinn::ClientConfig::new(Arc::new(tls::client(&key, server, tls::TUNNEL)?.fresh));
    let mut transport = quic::probe_transport();
    transport.max_idle_timeout(Some(SILENCE.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Sends first flights, and reads no answer.
fn spoof(
    addresses: &[SocketAddr],
    target: SocketAddr,
    server: PublicKey,
    begun: &AtomicU64,
    stops: &AtomicBool,
) -> anyhow::Result<()> {
    let config = stranger(server)?;
    let mut endpoint =
        quinn_proto::Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
    let mut flights = Vec::with_capacity(RATE);
    for _ in 0..RATE {
        let (_, mut connection) =
            endpoint.connect(Instant::now(), config.clone(), target, "roamd")?;
        let mut flight = Vec::new();
        loop {
            let mut datagram = Vec::new();
            if connection.poll_transmit(Instant::now(), 1, &mut datagram).is_none() {
                break;
            }
            flight.push(datagram);
        }
        flights.push(flight);
    }
    let sockets: Vec<_> =
        addresses.iter().map(std::net::UdpSocket::bind).collect::<Result<_, _>>()?;
    let start = Instant::now();
    for (number, flight) in flights.iter().cycle().enumerate() {
        if stops.load(Relaxed) {
            break;
        }
        let ahead = number as f64 / RATE as f64 - start.elapsed().as_secs_f64();
        if ahead > 0.001 {
            thread::sleep(Duration::from_secs_f64(ahead));
        }
        for datagram in flight {
            // What does not fit into the line is lost.
            let _ = sockets[number % sockets.len()].send_to(datagram, target);
        }
        begun.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// Handshakes with a key that the server does not know.
async fn knock(
    kind: Kind,
    addresses: &[SocketAddr],
    target: SocketAddr,
    server: PublicKey,
    begun: &Arc<AtomicU64>,
    stops: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let config = stranger(server)?;
    let mut small = EndpointConfig::default();
    small.max_udp_payload_size(1500)?;
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            let udp: Arc<dyn AsyncUdpSocket> = UdpSocket::bind(*address, None, 0, None)?;
            let udp = if kind == Kind::HalfOpen { Arc::new(Deaf(udp)) } else { udp };
            Endpoint::new_with_abstract_socket(small.clone(), None, udp, Arc::new(TokioRuntime))
        })
        .collect::<Result<_, _>>()?;
    let mut strangers = JoinSet::new();
    for number in 0..STRANGERS {
        let endpoint = endpoints[number % endpoints.len()].clone();
        let (config, begun, stops) = (config.clone(), begun.clone(), stops.clone());
        strangers.spawn(async move {
            while !stops.load(Relaxed) {
                begun.fetch_add(1, Relaxed);
                let Ok(connecting) = endpoint.connect_with(config.clone(), target, "roamd") else {
                    return;
                };
                if kind == Kind::HalfOpen {
                    tokio::spawn(connecting);
                    time::sleep(PAUSE).await;
                } else if let Ok(Ok(connection)) = time::timeout(IMPATIENCE, connecting).await {
                    let _ = time::timeout(IMPATIENCE, connection.closed()).await;
                }
            }
        });
    }
    strangers.join_all().await;
    Ok(())
}

/// A socket that hears nothing but Retries (RFC 9000 §17.2.5).
#[derive(Debug)]
struct Deaf(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.0.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter().zip(meta).take(received) {
            if buffer[0] & 0xf0 != 0xf0 {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }
}

fn key(program: &Path, folder: &Path, name: &str) -> anyhow::Result<PublicKey> {
    let file = folder.join(name).with_extension("key");
    let output =
        std::process::Command::new(program).args(["genkey", "--output"]).arg(&file).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PrivateKey::load(&file)?.public_key())
}

fn start(
    program: &Path,
    namespace: &Namespace,
    folder: &Path,
    name: &str,
) -> anyhow::Result<Process> {
    let mut command = namespace.command(program);
    command
        .arg("run")
        .arg(folder.join(name).with_extension("toml"))
        .env("ROAMD_RUNTIME_DIR", folder)
        .env("STATE_DIRECTORY", folder)
        .env("ROAMD_LOG__LEVEL", "warn");
    Ok(namespace.spawn(name, command, folder)?)
}

/// Waits until a client has its tunnel; how long that took.
fn connected(
    program: &Path,
    namespace: &Namespace,
    folder: &Path,
    name: &str,
    patience: Duration,
) -> anyhow::Result<Option<Duration>> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        let mut command = namespace.command(program);
        command.args(["status", name, "--json"]).env("ROAMD_RUNTIME_DIR", folder);
        let text = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
        if text.contains("\"state\": \"connected\"") || text.contains("\"state\":\"connected\"") {
            return Ok(Some(begun.elapsed()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// The daemon, built beside this example.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).context("no folder")?.join("roamd");
    anyhow::ensure!(program.exists(), "{} is missing: cargo build --release", program.display());
    Ok(program)
}
