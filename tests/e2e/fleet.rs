//! Two servers, one etcd, BIRD, and a host behind both servers; the scene is drawn in `site`.

mod bird;
mod site;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;

use self::site::{LAPTOP, OFFICE, Site};
use crate::{
    harness::{Host, PATIENCE, eventually, transfer_to},
    roaming::shown,
    ssh::Sshd,
};

/// How long a client is without its server if that dies or falls silent.
const FAILOVER: Duration = Duration::from_millis(1500);
/// The same where nothing has died: a round trip over wifi takes 10 ms. 25 to 180 ms measured on two busy cores.
const MOVE: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(6);

/// The longest time in which an ssh through the tunnel printed nothing while `event` happened, a second after its start.
fn ssh_stall(client: &Host, sshd: &Sshd, event: impl FnOnce() + Send) -> Duration {
    let script = "for i in $(seq 300); do echo $i; sleep 0.02; done; exit 7";
    let mut ssh =
        sshd.ssh(client, script).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
    std::thread::scope(|scope| {
        let (mut last, mut stall) = (None::<Instant>, Duration::ZERO);
        let mut event = Some(event);
        for (number, line) in (1..).zip(lines) {
            assert_eq!(line.unwrap(), number.to_string());
            if number == 50 {
                scope.spawn(event.take().unwrap());
            }
            stall = stall.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
            last = Some(Instant::now());
        }
        assert_eq!(ssh.wait().unwrap().code(), Some(7));
        shown(stall)
    })
}

/// The longest time for which a TCP connection that the office has opened to the laptop stood still.
fn office_stall(site: &Site, duration: Duration) -> Duration {
    let address: SocketAddr = format!("{LAPTOP}:7777").parse().unwrap();
    let listener = site.client.namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                stream.write_all(&byte).unwrap();
            }
        });
        let mut stream = site.office.run(|| TcpStream::connect(address).unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (begun, mut stall) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < duration {
            let asked = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stall = stall.max(asked.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        shown(("a connection of the office", stall)).1
    })
}

/// For how long the office had its route to the laptop through this server, by what `ip -ts monitor` said.
fn told(server: &str, log: &str) -> Duration {
    let (mut total, mut since) = (Duration::ZERO, None::<SystemTime>);
    for line in log.lines().filter(|line| line.contains(LAPTOP)) {
        let (at, route) = line.trim_start_matches('[').split_once("] ").unwrap();
        let at = humantime::parse_rfc3339(&format!("{at}Z")).unwrap();
        let is_told = route.contains(&format!("dev {server}")) && !route.starts_with("Deleted");
        match since {
            None if is_told => since = Some(at),
            Some(begun) if !is_told => {
                total += at.duration_since(begun).unwrap_or_default();
                since = None;
            }
            _ => {}
        }
    }
    total + since.and_then(|begun| begun.elapsed().ok()).unwrap_or_default()
}

#[test]
fn a_server_that_is_killed_costs_ssh_and_a_stream_a_moment() {
    let mut site = Site::connected();
    let sshd = Sshd::start_at(&site.office, OFFICE);
    let berlin = site.servers[0].daemon.take().unwrap();
    let stream = site.stream(LONG, || berlin.signal(Signal::SIGKILL).unwrap());
    assert!(stream.gap < FAILOVER + stream.stall, "{stream:?}");
    site.until_server("paris");
    site.servers[0].start();
    site.until_returned();
    let berlin = site.servers[0].daemon.take().unwrap();
    let stall = ssh_stall(&site.client, &sshd, || berlin.signal(Signal::SIGKILL).unwrap());
    assert!(stall < FAILOVER, "{stall:?}");
    site.until_server("paris");
}

#[test]
fn a_server_whose_power_is_cut_costs_ssh_and_a_stream_a_moment() {
    let site = Site::connected();
    let sshd = Sshd::start_at(&site.office, OFFICE);
    let stalls = std::thread::scope(|scope| {
        let ssh = scope.spawn(|| ssh_stall(&site.client, &sshd, || ()));
        let from_office = scope.spawn(|| office_stall(&site, LONG));
        let stream = site.stream(LONG, || site.power(0, false));
        assert!(stream.gap < FAILOVER + stream.stall, "{stream:?}");
        [ssh, from_office].map(|it| it.join().unwrap())
    });
    for stall in stalls {
        assert!(stall < FAILOVER + Duration::from_millis(500), "{stalls:?}");
    }
    site.until_server("paris");
    // It still has the session, and it may be told by now where the client is. It heard nothing for too long to tell the
    // office of a route again.
    site.until_unrouted(0);
    let monitor = site.monitor("monitor");
    let back = site.stream(LONG, || site.power(0, true));
    assert!(back.gap < MOVE + back.stall, "{back:?}");
    let log = monitor.log().unwrap();
    assert!(!log.contains("dev berlin"), "{log}");
}

/// Its link returns, and its way to etcd does not.
#[test]
#[ignore = "a minute of measuring"]
fn how_long_a_server_that_was_cut_off_is_told_to_routers() {
    let site = Site::connected();
    for cut in [2, 4, 6, 8].map(Duration::from_secs) {
        let mut log = String::new();
        site.stream(cut + LONG, || {
            site.power(0, false);
            site.hides_etcd(0, true);
            std::thread::sleep(cut);
            let monitor = site.monitor(&format!("monitor-{cut:?}"));
            site.power(0, true);
            std::thread::sleep(LONG);
            site.hides_etcd(0, false);
            log = monitor.log().unwrap();
        });
        assert_eq!(site.client.server_in_use().as_deref(), Some("paris"));
        let (_, told) = shown((cut, told("berlin", &log)));
        assert_eq!(told, Duration::ZERO, "{cut:?}");
        assert!(site.client.tell(&["switch", "--server", "berlin"]).status.success());
        site.until_server("berlin");
        std::thread::sleep(Duration::from_secs(5));
        site.until_reserve();
    }
}

#[test]
fn a_drained_server_loses_nothing_and_nor_does_the_way_back() {
    let mut site = Site::connected();
    let drained = site.stream(LONG, || {
        let output = site.servers[0].tell(&["drain", "roamd"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    assert_eq!(drained.lost, 0, "{drained:?}");
    assert!(drained.gap < MOVE + drained.stall, "{drained:?}");
    site.until_server("paris");
    site.servers[0].daemon = None;
    site.servers[0].start();
    let back = site.stream(Duration::from_secs(42), || ());
    assert_eq!(site.client.server_in_use().as_deref(), Some("berlin"));
    assert_eq!(back.lost, 0, "{back:?}");
    assert!(back.gap < MOVE + back.stall, "{back:?}");
}

#[test]
fn a_rolling_restart_under_ssh_and_bulk_costs_no_connection() {
    let mut site = Site::connected();
    site.slow_down();
    let sshd = Sshd::start_at(&site.office, OFFICE);
    let Site { client, servers, office, .. } = &mut site;
    let (client, office) = (&*client, &*office);
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| transfer_to(&client.namespace, (office, OFFICE), 60_000_000));
        let ssh = scope.spawn(|| ssh_stall(client, &sshd, || ()));
        for server in servers {
            std::thread::sleep(Duration::from_secs(1));
            let mut daemon = server.daemon.take().unwrap();
            daemon.signal(Signal::SIGTERM).unwrap();
            assert!(daemon.wait(Duration::from_secs(10)).unwrap().unwrap().success());
            server.start();
            eventually("the server listens", || server.try_status());
        }
        bulk.join().unwrap();
        ssh.join().unwrap();
    });
}

#[test]
fn a_peer_that_is_removed_in_etcd_is_cut_off_at_every_server() {
    let site = Site::connected();
    let file = site.servers[1].file();
    let remove = ["peer", "remove", "laptop", "--directory", file.to_str().unwrap()];
    assert!(site.servers[1].tell(&remove).status.success());
    let removed = Instant::now();
    site.until_unrouted(0);
    let cut_off = removed.elapsed();
    for server in &site.servers {
        eventually("the laptop is unknown", || {
            server.try_status()?["peers"].as_array()?.is_empty().then_some(())
        });
    }
    shown(("routes are gone, and the laptop is unknown everywhere", cut_off, removed.elapsed()));
    eventually("the laptop is refused", || site.client.try_status()?["refused-since"].as_f64());
}

#[test]
fn a_person_chooses_the_server() {
    let site = Site::connected();
    let moved = site.stream(LONG, || {
        assert!(site.client.tell(&["switch", "--server", "paris"]).status.success());
    });
    assert_eq!(site.client.server_in_use().as_deref(), Some("paris"));
    assert_eq!(moved.lost, 0, "{moved:?}");
    let output = site.client.tell(&["switch", "--server", "rome"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("berlin") && said.contains("paris"),
        "{said}"
    );
}

#[test]
fn without_etcd_everything_goes_on_and_a_server_starts_with_what_it_knew() {
    let mut site = Site::connected();
    let mut etcd = site.etcd.take().unwrap();
    let gone = site.stream(LONG, || etcd.signal(Signal::SIGKILL).unwrap());
    assert_eq!(gone.lost, 0, "{gone:?}");
    etcd.wait(Duration::from_secs(5)).unwrap();
    // A server dies meanwhile: the other one serves the client all the same.
    let mut berlin = site.servers[0].daemon.take().unwrap();
    let died = site.stream(LONG, || berlin.signal(Signal::SIGKILL).unwrap());
    assert!(died.gap < FAILOVER + died.stall, "{died:?}");
    berlin.wait(Duration::from_secs(5)).unwrap();
    // One that starts without etcd has what it knew.
    site.servers[0].start();
    eventually("the peer is known", || {
        let status = site.servers[0].try_status()?;
        let mut peers = status["peers"].as_array()?.iter();
        peers.any(|peer| peer["name"] == "laptop").then_some(())
    });
    site.start_etcd();
    site.until_returned();
    let back = site.stream(LONG, || ());
    assert_eq!(back.lost, 0, "{back:?}");
}

#[test]
fn the_office_keeps_its_connection_to_the_laptop() {
    let site = Site::connected();
    site.slow_down();
    assert_eq!(site.route_of_laptop().as_deref(), Some("berlin"));
    let (office, laptop) = (site.office.clone(), site.client.namespace.clone());
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| transfer_to(&office, (&laptop, LAPTOP), 40_000_000));
        std::thread::sleep(Duration::from_secs(1));
        site.power(0, false);
        bulk.join().unwrap();
    });
    assert_eq!(site.route_of_laptop().as_deref(), Some("paris"));
}
