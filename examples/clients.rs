//! One server and many clients: `cargo build --release && cargo run --release --example clients
//! [NUMBER...]`, as root. For each number (1, 100 and 1000 if none is given) it prints what that many
//! connected clients cost the server in memory and, idle, in CPU, and what the server takes from 100
//! that send as fast as they may (or all, if there are fewer).
//!
//! The server is the real daemon in a namespace; the clients are connections of this process.
#![expect(clippy::disallowed_methods, reason = "measures in real time")]
#![expect(clippy::print_stdout, reason = "a table for people")]

#[path = "clients/rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use quinn::{Connection, Endpoint};
use roamd::internals::identity::{PrivateKey, PublicKey};
use roamd_lab::Process;
use tokio::{task::JoinSet, time};

use self::rig::{config, connect, inner, start};

/// Handshakes at a time: more, and the server asks for a Retry.
const AT_ONCE: usize = 32;
const ACTIVE: usize = 100;
/// Several keep-alives of each client.
const IDLE: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(5);

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
    let (here, there, _) = rig::namespaces(Duration::ZERO)?;
    let keys: Vec<_> = (0..number).map(|_| PrivateKey::generate()).collect::<Result<_, _>>()?;
    let (mut server, server_key) = start(&rig::program()?, &there, folder.path(), &keys)?;
    let row = here.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(load(&server, server_key, &keys))
    })??;
    println!("{row}");
    server.stop()?;
    Ok(())
}

async fn load(server: &Process, key: PublicKey, keys: &[PrivateKey]) -> anyhow::Result<String> {
    let endpoint = rig::endpoint()?;
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
    let resident = server.memory("VmRSS")?;
    let idle = {
        let before = server.cpu()?;
        time::sleep(IDLE).await;
        (server.cpu()? - before) / IDLE.as_secs_f64() * 100.0
    };
    let (before, begun) = (server.cpu()?, Instant::now());
    let bytes: u64 = {
        let mut sending = JoinSet::new();
        for (number, (connection, _)) in clients.iter().enumerate().take(ACTIVE) {
            sending.spawn(send(connection.clone(), inner(number), begun + BUSY));
        }
        sending.join_all().await.into_iter().sum()
    };
    let (rate, used) = (bytes as f64 / begun.elapsed().as_secs_f64(), server.cpu()? - before);
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
                return Ok(server.memory("VmRSS")?);
            }
            Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Sends UDP packets to the discard port of the server's inner address (RFC 863); the bytes of payload.
async fn send(connection: Connection, source: [u8; 4], end: Instant) -> u64 {
    const PAYLOAD: usize = 1200;
    let mut udp = vec![0; 8 + PAYLOAD];
    udp[..6].copy_from_slice(&[0x9c, 0x40, 0, 9, 4, 0xb8]);
    let ip = rig::ipv4(source, [10, 66, 0, 1], 17, &udp);
    let (packet, mut bytes) = (Bytes::from(ip), 0);
    while Instant::now() < end && connection.send_datagram_wait(packet.clone()).await.is_ok() {
        bytes += PAYLOAD as u64;
    }
    bytes
}
