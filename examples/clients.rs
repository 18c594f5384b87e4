//! One server and many clients: `cargo build --release && cargo run --release --example clients
//! [NUMBER...]`, as root. For each number (1, 100 and 1000 if none is given) it prints what that many
//! connected clients cost the server in memory and, idle, in CPU, and what the server takes from 100
//! that send as fast as they may (or all, if there are fewer).
//!
//! The server is the real daemon in a namespace; the clients are connections of this process.
#![expect(clippy::print_stdout, reason = "a table for people")]

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime};
use roamd::{
    config::{Congestion, Quic},
    identity::{PrivateKey, PublicKey},
    lab::{Namespace, Process, veth},
    path::udp::UdpSocket,
    quic::{self, congestion::Handle},
    session::{self, Control},
    tls,
};
use tokio::{task::JoinSet, time};

const SERVER: &str = "10.77.0.1:4433";
/// Handshakes at a time: more, and the server asks for a Retry.
const AT_ONCE: usize = 32;
const ACTIVE: usize = 100;
/// Several keep-alives of each client.
const IDLE: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(5);
/// A tick of the kernel's CPU accounting (USER_HZ, the same on all of Linux's architectures).
const TICK: f64 = 0.01;

fn main() -> anyhow::Result<()> {
    let numbers: Result<Vec<usize>, _> =
        std::env::args().skip(1).map(|text| text.parse()).collect();
    let mut numbers = numbers.context("the arguments are numbers of clients")?;
    if numbers.is_empty() {
        numbers = vec![1, 100, 1000];
    }
    println!(
        "{:>8}{:>12}{:>14}{:>14}{:>12}{:>10}",
        "clients", "server kB", "kB a client", "idle CPU %", "Mbit/s", "CPU s/GB"
    );
    for number in numbers {
        measure(number)?;
    }
    Ok(())
}

fn measure(number: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (here, there) = (Namespace::new("clients")?, Namespace::new("server")?);
    veth(&here, "eth0", &there, "eth0")?;
    for (host, last) in [(&here, 2), (&there, 1)] {
        host.set_up("eth0")?;
        host.add_address("eth0", &format!("10.77.0.{last}/24"))?;
    }
    let keys: Vec<_> = (0..number).map(|_| PrivateKey::generate()).collect::<Result<_, _>>()?;
    let (mut server, server_key) = start(&there, folder.path(), &keys)?;
    let row = here.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(load(&server, server_key, &keys))
    })??;
    println!("{row}");
    server.stop()?;
    Ok(())
}

/// Starts the server with a peer for each key.
fn start(
    namespace: &Namespace,
    folder: &std::path::Path,
    keys: &[PrivateKey],
) -> anyhow::Result<(Process, PublicKey)> {
    let output = std::process::Command::new(program()?)
        .args(["genkey", "--output"])
        .arg(folder.join("server.key"))
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut toml = "role = \"server\"\nprivate-key-file = \"server.key\"\nlisten = \"[::]:4433\"\n\
                    [tun]\naddresses = [\"10.66.0.1/16\"]\n"
        .to_owned();
    for (number, key) in keys.iter().enumerate() {
        let [.., high, low] = inner(number);
        toml += &format!(
            "[[peer]]\nname = \"client {number}\"\npublic-key = \"{}\"\naddresses = [\"10.66.{high}.{low}\"]\n",
            key.public_key()
        );
    }
    let file = folder.join("server.toml");
    fs::write(&file, toml)?;
    let mut command = namespace.command(program()?);
    command.arg("run").arg(file).env("ROAMD_RUNTIME_DIR", folder).env("ROAMD_LOG__LEVEL", "warn");
    let server = namespace.spawn("server", command, folder)?;
    Ok((server, PrivateKey::load(&folder.join("server.key"))?.public_key()))
}

/// The inner address of a client.
fn inner(number: usize) -> [u8; 4] {
    let [high, low] = (number as u16 + 2).to_be_bytes();
    [10, 66, high, low]
}

async fn load(server: &Process, key: PublicKey, keys: &[PrivateKey]) -> anyhow::Result<String> {
    let endpoint = Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0)), None, 0, None)?,
        Arc::new(TokioRuntime),
    )?;
    let empty = memory(server, &endpoint, key, keys).await?;
    let mut clients = Vec::new();
    for keys in keys.chunks(AT_ONCE) {
        let mut connecting = JoinSet::new();
        for own in keys {
            connecting.spawn(connect(endpoint.clone(), config(own, key)?));
        }
        for connected in connecting.join_all().await {
            clients.push(connected?);
        }
    }
    time::sleep(Duration::from_secs(2)).await;
    let resident = resident(server)?;
    let idle = {
        let before = cpu(server)?;
        time::sleep(IDLE).await;
        (cpu(server)? - before) / IDLE.as_secs_f64() * 100.0
    };
    let (before, begun) = (cpu(server)?, Instant::now());
    let bytes: u64 = {
        let mut sending = JoinSet::new();
        for (number, (connection, _)) in clients.iter().enumerate().take(ACTIVE) {
            sending.spawn(send(connection.clone(), inner(number), begun + BUSY));
        }
        sending.join_all().await.into_iter().sum()
    };
    let (rate, used) = (bytes as f64 / begun.elapsed().as_secs_f64(), cpu(server)? - before);
    let each = (resident - empty) as f64 / keys.len() as f64;
    Ok(format!(
        "{:>8}{resident:>12}{each:>14.1}{idle:>14.2}{:>12.0}{:>10.1}",
        keys.len(),
        rate * 8.0 / 1e6,
        used / (bytes as f64 / 1e9)
    ))
}

/// The server's memory before the first client, when it answers.
async fn memory(
    server: &Process,
    endpoint: &Endpoint,
    key: PublicKey,
    keys: &[PrivateKey],
) -> anyhow::Result<u64> {
    let begun = Instant::now();
    loop {
        match connect(endpoint.clone(), config(&keys[0], key)?).await {
            Ok((connection, _)) => {
                connection.close(0_u32.into(), b"");
                time::sleep(Duration::from_secs(1)).await;
                return resident(server);
            }
            Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn config(own: &PrivateKey, server: PublicKey) -> anyhow::Result<quinn::ClientConfig> {
    let quic = Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(10),
        congestion: Congestion::Cubic,
        dscp: 0,
    };
    let mut config =
        quinn::ClientConfig::new(Arc::new(tls::client(own, server, tls::TUNNEL)?.fresh));
    config.transport_config(Arc::new(quic::transport(&quic, 1400, Handle::default())));
    Ok(config)
}

async fn connect(
    endpoint: Endpoint,
    config: quinn::ClientConfig,
) -> anyhow::Result<(Connection, Control)> {
    let connection = endpoint.connect_with(config, SERVER.parse()?, "roamd")?.await?;
    let (control, _) = session::open(&connection, true).await?;
    Ok((connection, control))
}

/// Sends UDP packets to the discard port of the server's inner address (RFC 863); the bytes of payload.
async fn send(connection: Connection, source: [u8; 4], end: Instant) -> u64 {
    const PAYLOAD: usize = 1200;
    let mut ip = vec![0; 28 + PAYLOAD];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((28 + PAYLOAD) as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[64, 17]);
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&[10, 66, 0, 1]);
    ip[20..26].copy_from_slice(&[0x9c, 0x40, 0, 9, 4, 0xb8]);
    let sum: u32 =
        ip[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let (packet, mut bytes) = (Bytes::from(ip), 0);
    while Instant::now() < end && connection.send_datagram_wait(packet.clone()).await.is_ok() {
        bytes += PAYLOAD as u64;
    }
    bytes
}

/// Seconds of CPU that the server has used.
fn cpu(server: &Process) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    let after_name = stat.rsplit(')').next().context("stat without a name")?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * TICK)
}

/// In kB (VmRSS of proc_pid_status(5)).
fn resident(server: &Process) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The daemon, built beside this example.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).context("no folder")?.join("roamd");
    anyhow::ensure!(program.exists(), "{} is missing: cargo build --release", program.display());
    Ok(program)
}
