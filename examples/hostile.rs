//! One client of bad will among ten honest ones: `cargo build --release && cargo run --release --example
//! hostile`, as root. For each thing that it does, at full speed for ten seconds, a line says what the
//! others notice (round trips through the tunnel to the server and back, pings without an answer, what
//! they can send together) and what it costs the server in memory.
//!
//! The server is the real daemon in a namespace; the clients are connections of this process, the hostile
//! one in a thread of its own. With two cores it takes part of the others' time whatever it does: compare
//! with `bulk`, which is allowed.
#![expect(clippy::disallowed_methods, reason = "runs in real time")]
#![expect(clippy::print_stdout, reason = "a table for people")]

#[path = "clients/echo.rs"]
mod echo;
#[path = "clients/rig.rs"]
mod rig;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::Connection;
use roamd::internals::identity::{PrivateKey, PublicKey};
use roamd_lab::Process;
use tokio::{task::JoinSet, time};

use self::echo::{INTERVAL, Pings, SERVER};

const HONEST: usize = 10;
const HOSTILE: usize = HONEST;
/// Peers that are configured and never come: the first of them, and how many.
const OFFLINE: usize = HONEST + 1;
const ABSENT: usize = 100;
const PEERS: usize = OFFLINE + ABSENT;
/// Only pings, then pings while all honest clients send.
const PHASE: Duration = Duration::from_secs(5);

const UDP: u8 = 17;

#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    /// Large UDP packets to the server.
    Bulk,
    /// The smallest UDP packets, each from another port, to a peer that is offline.
    Flows,
    /// The same to all peers that are offline, in turn.
    Everyone,
    /// Packets of 20 bytes to it, each after as much padding as fits into one buffer of the receiver.
    Slices,
    /// Pieces of packets that are never whole.
    Pieces,
}

fn main() -> anyhow::Result<()> {
    println!(
        "{:<10}{:>12}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}",
        "hostile", "datagrams/s", "p50 ms", "p99 ms", "max ms", "lost %", "Mbit/s", "server kB"
    );
    for deed in [Deed::Nothing, Deed::Bulk, Deed::Flows, Deed::Everyone, Deed::Slices, Deed::Pieces]
    {
        measure(deed)?;
    }
    Ok(())
}

fn measure(deed: Deed) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (here, there, _) = rig::namespaces(Duration::ZERO)?;
    let keys: Vec<_> = (0..PEERS).map(|_| PrivateKey::generate()).collect::<Result<_, _>>()?;
    let (mut server, server_key) = rig::start(&rig::program()?, &there, folder.path(), &keys)?;
    let row = here.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(live(deed, &server, server_key, &keys))
    })??;
    println!("{row}");
    server.stop()?;
    Ok(())
}

async fn live(
    deed: Deed,
    server: &Process,
    server_key: PublicKey,
    keys: &[PrivateKey],
) -> anyhow::Result<String> {
    let endpoint = rig::endpoint()?;
    let mut clients = Vec::new();
    for own in &keys[..HONEST] {
        let begun = Instant::now();
        clients.push(loop {
            match rig::connect(endpoint.clone(), rig::config(own, server_key)?).await {
                Ok(client) => break client,
                // It may not listen yet.
                Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error),
                Err(_) => time::sleep(Duration::from_millis(100)).await,
            }
        });
    }
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let hostile = {
        let config = rig::config(&keys[HOSTILE], server_key)?;
        let (stop, sent) = (stop.clone(), sent.clone());
        thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, _control) = rig::connect(rig::endpoint()?, config).await?;
                while !stop.load(Relaxed) {
                    sent.fetch_add(misbehave(deed, &connection).await?, Relaxed);
                }
                Ok(())
            })
        })
    };
    let pings = Arc::new(Mutex::new(Pings::default()));
    let mut tasks = JoinSet::new();
    for (number, (connection, _)) in clients.iter().enumerate() {
        let (connection, pings, stop) = (connection.clone(), pings.clone(), stop.clone());
        tasks.spawn(async move {
            echo::type_until(&stop, &connection, rig::inner(number), &pings).await;
        });
    }
    time::sleep(PHASE).await;
    let row = row(&mut pings.lock().unwrap_or_else(PoisonError::into_inner));
    let begun = Instant::now();
    let mut sending = JoinSet::new();
    for (number, (connection, _)) in clients.iter().enumerate() {
        sending.spawn(send(connection.clone(), rig::inner(number), begun + PHASE));
    }
    let bytes: u64 = sending.join_all().await.into_iter().sum();
    let megabits = bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6;
    let resident = server.memory("VmRSS")?;
    stop.store(true, Relaxed);
    drop((tasks, clients));
    let rate = sent.load(Relaxed) as f64 / (2.0 * PHASE.as_secs_f64());
    match hostile.join() {
        Ok(ended) => ended?,
        Err(_panicked) => anyhow::bail!("the hostile client panicked"),
    }
    let name = format!("{deed:?}").to_lowercase();
    Ok(format!("{name:<10}{rate:>12.0}{row}{megabits:>12.0}{resident:>12}"))
}

/// Does it for a moment; returns how many datagrams that took.
async fn misbehave(deed: Deed, connection: &Connection) -> anyhow::Result<u64> {
    let (own, offline) = (rig::inner(HOSTILE), rig::inner(OFFLINE));
    let full = connection.max_datagram_size().unwrap_or(1162);
    let mut count = 0;
    let mut say = async |datagram: Vec<u8>| {
        count += 1;
        connection.send_datagram_wait(Bytes::from(datagram)).await
    };
    match deed {
        Deed::Nothing => time::sleep(INTERVAL).await,
        Deed::Bulk => say(udp(own, SERVER, 9, 1200)).await?,
        Deed::Flows => say(udp(own, offline, fastrand::u16(..), 0)).await?,
        Deed::Everyone => {
            for number in OFFLINE..PEERS {
                say(udp(own, rig::inner(number), fastrand::u16(..), 0)).await?;
            }
        }
        Deed::Slices => {
            for _ in 0..44 {
                say(vec![0; full]).await?;
            }
            say(rig::ipv4(own, offline, 253, &[])).await?;
        }
        Deed::Pieces => {
            let mut piece = vec![0; full];
            let [high, low] = fastrand::u16(..).to_be_bytes();
            for index in 0..15 {
                piece[..4].copy_from_slice(&[1, index << 4 | 15, high, low]);
                say(piece.clone()).await?;
            }
        }
    }
    Ok(count)
}

fn udp(source: [u8; 4], destination: [u8; 4], port: u16, payload: usize) -> Vec<u8> {
    let mut udp = vec![0; 8 + payload];
    udp[..2].copy_from_slice(&fastrand::u16(1024..).to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[4..6].copy_from_slice(&((8 + payload) as u16).to_be_bytes());
    rig::ipv4(source, destination, UDP, &udp)
}

/// The echoes of the honest clients.
fn row(pings: &mut Pings) -> String {
    let [typical, late, latest] = pings.percentiles();
    let lost = 100.0 - 100.0 * pings.answers.len() as f64 / pings.sent.max(1) as f64;
    format!("{typical:>10.1}{late:>10.1}{latest:>10.1}{lost:>10.1}")
}

/// Sends UDP packets to the server's discard port (RFC 863); the bytes of payload.
async fn send(connection: Connection, own: [u8; 4], end: Instant) -> u64 {
    const PAYLOAD: usize = 1100;
    let (packet, mut bytes) = (Bytes::from(udp(own, SERVER, 9, PAYLOAD)), 0);
    while Instant::now() < end && connection.send_datagram_wait(packet.clone()).await.is_ok() {
        bytes += PAYLOAD as u64;
    }
    bytes
}
