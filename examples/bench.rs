//! The whole tunnel on one machine, beside the bare link: `cargo build --release && cargo run
//! --release --example bench`, as root. Prints a table; the ratio is what counts, machines differ.
//!
//! ```text
//!   client namespace  eth0 10.77.0.2 ─────── eth0 10.77.0.1  server namespace
//!                     10.66.0.2 ═══ tunnel ═══ 10.66.0.1
//! ```
#![expect(clippy::disallowed_methods, reason = "measures in real time")]
#![expect(clippy::print_stdout, reason = "a table for people")]

#[path = "bench/quinn.rs"]
mod quinn;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use roamd::internals::identity::PrivateKey;
use roamd_lab::{Namespace, Process, cpu_seconds, veth};

/// How long each measurement takes, after a first second that does not count.
const TIME: Duration = Duration::from_secs(4);

struct Bench {
    client: Namespace,
    server: Namespace,
    daemons: Vec<Process>,
    _folder: tempfile::TempDir,
}

/// The same measurement on the link and through the tunnel.
struct Row {
    what: String,
    unit: &'static str,
    link: f64,
    tunnel: f64,
    /// Seconds of both daemons' CPU for 10^9 bytes of payload.
    cpu: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let bench = Bench::set_up()?;
    let limit = bench.quinn()?;
    let mut rows = Vec::new();
    for (what, up, streams) in
        [("TCP up", true, 1), ("TCP down", false, 1), ("TCP up, 4 streams", true, 4)]
    {
        rows.push(bench.row(what, "Mbit/s", |to| bench.tcp(to, up, streams))?);
    }
    for size in [1200, 64] {
        let what = format!("UDP up, {size} bytes");
        rows.push(bench.row(&what, "kpps", |to| bench.udp(to, size))?);
    }
    rows.push(bench.row("echo, median", "ms", |to| Ok((bench.echo(to)?.0, 0)))?);
    rows.push(bench.row("echo beside TCP, p99", "ms", |to| bench.echo_beside_tcp(to))?);
    println!("{:<22}{:>10}{:>10}{:>8}{:>10}", "", "link", "tunnel", "ratio", "CPU s/GB");
    for Row { what, unit, link, tunnel, cpu } in rows {
        let cpu = cpu.map_or(String::new(), |cpu| format!("{cpu:.1}"));
        let ratio = tunnel / link;
        println!("{what:<22}{link:>10.2}{tunnel:>10.2}{ratio:>8.2}{cpu:>10}  {unit}");
    }
    println!("quinn alone, datagrams: {:.0} Mbit/s, {:.1} CPU s/GB", limit.0, limit.1);
    for daemon in &bench.daemons {
        println!("{}: {} kB resident at most", daemon.name(), daemon.memory("VmHWM")?);
    }
    Ok(())
}

impl Bench {
    fn set_up() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (client, server) = (Namespace::new("client")?, Namespace::new("server")?);
        veth(&client, "eth0", &server, "eth0")?;
        for (host, last) in [(&client, 2), (&server, 1)] {
            host.set_up("eth0")?;
            host.add_address("eth0", &format!("10.77.0.{last}/24"))?;
        }
        let (client_key, server_key) =
            (key(folder.path(), "client")?, key(folder.path(), "server")?);
        let server_toml = format!(
            "role = \"server\"\nprivate-key-file = \"server.key\"\nlisten = \"[::]:4433\"\n[tun]\n\
             addresses = [\"10.66.0.1/24\"]\n[[peer]]\nname = \"client\"\n\
             public-key = \"{client_key}\"\naddresses = [\"10.66.0.2\"]\n"
        );
        let client_toml = format!(
            "role = \"client\"\nprivate-key-file = \"client.key\"\n[server]\n\
             address = [\"10.77.0.1:4433\"]\npublic-key = \"{server_key}\"\n"
        );
        let mut daemons = Vec::new();
        for (name, namespace, toml) in
            [("server", &server, server_toml), ("client", &client, client_toml)]
        {
            let file = folder.path().join(format!("{name}.toml"));
            fs::write(&file, toml)?;
            let mut command = namespace.command(program()?);
            command.arg("run").arg(file).env("ROAMD_RUNTIME_DIR", folder.path());
            command.env("STATE_DIRECTORY", folder.path());
            daemons.push(namespace.spawn(name, command, folder.path())?);
        }
        let bench = Self { client, server, daemons, _folder: folder };
        let begun = Instant::now();
        while bench.echo("10.66.0.1").is_err() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(15), "the tunnel does not stand");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(bench)
    }

    /// Measures on the link and through the tunnel; `measure` gives a number and bytes of payload.
    fn row(
        &self,
        what: &str,
        unit: &'static str,
        measure: impl Fn(&str) -> anyhow::Result<(f64, u64)>,
    ) -> anyhow::Result<Row> {
        let (link, _) = measure("10.77.0.1").with_context(|| format!("{what}, link"))?;
        let before = self.cpu()?;
        let (tunnel, bytes) = measure("10.66.0.1").with_context(|| format!("{what}, tunnel"))?;
        let used = self.cpu()? - before;
        let cpu = (bytes > 0).then(|| used / (bytes as f64 / 1e9));
        Ok(Row { what: what.to_owned(), unit, link, tunnel, cpu })
    }

    /// Seconds of CPU that the daemons have used.
    fn cpu(&self) -> anyhow::Result<f64> {
        Ok(self.daemons.iter().map(Process::cpu).sum::<io::Result<f64>>()?)
    }

    /// Mbit/s of plain datagrams in a QUIC connection over the link, and seconds of both ends' CPU for 10^9 bytes.
    fn quinn(&self) -> anyhow::Result<(f64, f64)> {
        let before = cpu_seconds(std::process::id())?;
        let to = SocketAddr::from(([10, 77, 0, 1], 4434));
        let (rate, bytes) = quinn::datagrams(&self.client, &self.server, to)?;
        Ok((rate, (cpu_seconds(std::process::id())? - before) / (bytes as f64 / 1e9)))
    }

    /// Mbit/s of payload, and bytes in all.
    fn tcp(&self, to: &str, up: bool, streams: usize) -> anyhow::Result<(f64, u64)> {
        let (counted, all, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let counting = AtomicBool::new(false);
        let listener = self.server.run(|| TcpListener::bind(address(to)))??;
        let target = listener.local_addr()?;
        thread::scope(|scope| {
            for _ in 0..streams {
                let here = self.client.run(|| TcpStream::connect(target))??;
                let there = listener.accept()?.0;
                let (mut sender, mut receiver) = if up { (here, there) } else { (there, here) };
                let done = &done;
                scope.spawn(move || {
                    let block = vec![7; 1 << 17];
                    while !done.load(Relaxed) && sender.write_all(&block).is_ok() {}
                });
                let (counted, all, counting) = (&counted, &all, &counting);
                scope.spawn(move || {
                    let mut block = vec![0; 1 << 17];
                    while let Ok(count @ 1..) = receiver.read(&mut block) {
                        all.fetch_add(count as u64, Relaxed);
                        if counting.load(Relaxed) {
                            counted.fetch_add(count as u64, Relaxed);
                        }
                    }
                });
            }
            let rate = count(&counting, &counted);
            done.store(true, Relaxed);
            anyhow::Ok(rate * 8.0 / 1e6)
        })
        .map(|rate| (rate, all.load(Relaxed)))
    }

    /// Thousands of datagrams that arrive in a second, and bytes in all.
    fn udp(&self, to: &str, size: usize) -> anyhow::Result<(f64, u64)> {
        let there = self.server.run(|| UdpSocket::bind(address(to)))??;
        there.set_read_timeout(Some(Duration::from_millis(200)))?;
        let here = self.client.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        here.connect(there.local_addr()?)?;
        let (counted, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let counting = AtomicBool::new(false);
        let rate = thread::scope(|scope| {
            scope.spawn(|| {
                let payload = vec![7; size];
                while !done.load(Relaxed) {
                    // A full socket buffer is what we want.
                    let _ = here.send(&payload);
                }
            });
            scope.spawn(|| {
                let mut payload = vec![0; size];
                while !done.load(Relaxed) {
                    if there.recv(&mut payload).is_ok() && counting.load(Relaxed) {
                        counted.fetch_add(1, Relaxed);
                    }
                }
            });
            let rate = count(&counting, &counted);
            done.store(true, Relaxed);
            rate
        });
        Ok((rate / 1000.0, counted.load(Relaxed) * size as u64))
    }

    /// Milliseconds of a UDP echo, median and 99th percentile.
    fn echo(&self, to: &str) -> anyhow::Result<(f64, f64)> {
        let there = self.server.run(|| UdpSocket::bind(address(to)))??;
        let here = self.client.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        here.connect(there.local_addr()?)?;
        for socket in [&here, &there] {
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut payload = [0; 64];
                while let Ok((count, from)) = there.recv_from(&mut payload) {
                    let _ = there.send_to(&payload[..count], from);
                }
            });
            let mut took = Vec::new();
            for _ in 0..300 {
                let begun = Instant::now();
                here.send(&[7; 64])?;
                here.recv(&mut [0; 64])?;
                took.push(begun.elapsed().as_secs_f64() * 1000.0);
                thread::sleep(Duration::from_millis(5));
            }
            took.sort_by(f64::total_cmp);
            Ok((took[took.len() / 2], took[took.len() * 99 / 100]))
        })
    }

    fn echo_beside_tcp(&self, to: &str) -> anyhow::Result<(f64, u64)> {
        thread::scope(|scope| {
            let bulk = scope.spawn(|| self.tcp(to, true, 1));
            thread::sleep(Duration::from_secs(1));
            let (_, late) = self.echo(to)?;
            let bulk = bulk.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?;
            bulk.map(|_| (late, 0))
        })
    }
}

/// What was counted in a second, after one that is left out.
fn count(counting: &AtomicBool, counted: &AtomicU64) -> f64 {
    thread::sleep(Duration::from_secs(1));
    counting.store(true, Relaxed);
    let begun = Instant::now();
    thread::sleep(TIME);
    counted.load(Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address of this file"), 0)
}

/// Writes a new key to `NAME.key`; gives its public half.
fn key(folder: &Path, name: &str) -> anyhow::Result<String> {
    let file = folder.join(format!("{name}.key"));
    let output =
        std::process::Command::new(program()?).args(["genkey", "--output"]).arg(&file).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PrivateKey::load(&file)?.public_key().to_string())
}

/// The daemon, built beside this example.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).context("no folder")?.join("roamd");
    anyhow::ensure!(program.exists(), "{} is missing: cargo build --release", program.display());
    Ok(program)
}
