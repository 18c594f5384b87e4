//! A laptop at home, on its way, and in a café with the addresses of home.
//!
//! ```text
//!            wlan0 192.168.1.50 ──┐
//!  laptop                         ├── lan 192.168.1.10 (a bridge) ┐
//!      nas eth0 192.168.1.20 ─────┘                               ├─ server ── out 198.51.100.1 ── 198.51.100.2 outside
//!  laptop lte0 10.77.0.2 ───────────── lte 10.77.0.1 ─────────────┤
//!  guest wlan0 192.168.1.50 ── in 192.168.1.1 cafe up 10.77.1.2 ──┘ cafe 10.77.1.1
//! ```
//! The café forwards what comes to 192.168.1.10 to the server.

use std::{
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use roamd_lab::{Namespace, veth};
use tempfile::TempDir;

use crate::harness::{Host, PATIENCE, eventually, nft};

const OUTSIDE: &str = "198.51.100.2:7000";
const NAS: &str = "192.168.1.20:7000";
const HOME: &str = "192.168.1.50/24";
const INTERVAL: Duration = Duration::from_millis(10);
/// Packets of 10 ms that are lost when a link goes: none measured, and 55 ms until lte carries. Three times that.
const LEFT: usize = 17;

struct World {
    laptop: Host,
    guest: Host,
    server: Host,
    nas: Namespace,
    outside: Namespace,
    _cafe: Namespace,
    _folder: TempDir,
}

fn run(namespace: &Namespace, line: &str) {
    let mut words = line.split(' ');
    let output = namespace.command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A veth pair with an address at each end, both up.
fn join(a: (&Namespace, &str, &str), b: (&Namespace, &str, &str)) {
    veth(a.0, a.1, b.0, b.1).unwrap();
    for (namespace, link, address) in [a, b] {
        namespace.set_up(link).unwrap();
        if !address.is_empty() {
            namespace.add_address(link, address).unwrap();
        }
    }
}

impl World {
    /// A server and its networks; nobody else runs.
    fn new(mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = |name| Host::new(name, Namespace::new(name).unwrap(), folder.path());
        let (mut server, laptop, guest) = (host("server"), host("laptop"), host("guest"));
        let [nas, outside, cafe] = ["nas", "outside", "cafe"].map(|it| Namespace::new(it).unwrap());
        let there = &server.namespace;
        run(there, "ip link add lan type bridge");
        there.add_address("lan", "192.168.1.10/24").unwrap();
        there.set_up("lan").unwrap();
        join((&laptop.namespace, "wlan0", ""), (there, "lan0", ""));
        join((&nas, "eth0", "192.168.1.20/24"), (there, "lan1", ""));
        for port in ["lan0", "lan1"] {
            run(there, &format!("ip link set {port} master lan"));
        }
        join((&laptop.namespace, "lte0", "10.77.0.2/24"), (there, "lte", "10.77.0.1/24"));
        join((&outside, "eth0", "198.51.100.2/24"), (there, "out", "198.51.100.1/24"));
        join((&guest.namespace, "wlan0", "192.168.1.50/24"), (&cafe, "in", "192.168.1.1/24"));
        join((&cafe, "up", "10.77.1.2/24"), (there, "cafe", "10.77.1.1/24"));
        for (namespace, router) in [(&nas, "192.168.1.10"), (&outside, "198.51.100.1")] {
            namespace.add_route("0.0.0.0/0", Some(router), "eth0", 100).unwrap();
        }
        laptop.namespace.add_route("0.0.0.0/0", Some("10.77.0.1"), "lte0", 700).unwrap();
        guest.namespace.add_route("0.0.0.0/0", Some("192.168.1.1"), "wlan0", 100).unwrap();
        there.forward(true).unwrap();
        cafe.forward(true).unwrap();
        cafe.add_address("in", "192.168.1.10/24").unwrap();
        nft(
            &cafe,
            &[
                "add table ip cafe",
                "add chain ip cafe in { type nat hook prerouting priority -100; }",
                "add rule ip cafe in iifname in ip daddr 192.168.1.10 dnat to 10.77.1.1",
                "add chain ip cafe out { type nat hook postrouting priority 100; }",
                "add rule ip cafe out oifname up masquerade",
            ],
        );
        let mut peers = String::new();
        for (host, inner) in [(&laptop, "10.66.0.2"), (&guest, "10.66.0.3")] {
            peers += &format!(
                "[[peer]]\nname = \"{inner}\"\npublic-key = \"{}\"\naddresses = [\"{inner}\"]\n",
                host.key()
            );
        }
        server.configure(&format!(
            "role = \"server\"\nlisten = \"[::]:4433\"\n[tun]\nname = \"roam0\"\n\
             addresses = [\"10.66.0.1/24\"]\n{peers}"
        ));
        for (host, address) in [(&laptop, "10.77.0.1"), (&guest, "10.77.1.1")] {
            host.configure(&format!(
                "role = \"client\"\n[server]\naddress = [\"{address}\"]\npublic-key = \"{}\"\n\
                 [home]\naddresses = [\"192.168.1.10\"]\nmode = \"{mode}\"\n\
                 [tun]\nname = \"roam0\"\nroutes = [\"0.0.0.0/0\"]\n",
                server.key()
            ));
        }
        server.start();
        eventually("the server listens", || server.try_status());
        let (_cafe, _folder) = (cafe, folder);
        let world = Self { laptop, guest, server, nas, outside, _cafe, _folder };
        world.come_home();
        world
    }

    /// As NetworkManager does.
    fn leave(&self) {
        let laptop = &self.laptop.namespace;
        laptop.set_down("wlan0").unwrap();
        laptop.delete_address("wlan0", HOME).unwrap();
    }

    fn come_home(&self) {
        let laptop = &self.laptop.namespace;
        laptop.add_address("wlan0", HOME).unwrap();
        laptop.set_up("wlan0").unwrap();
        laptop.add_route("0.0.0.0/0", Some("192.168.1.10"), "wlan0", 600).unwrap();
    }

    fn until_home(&self, state: &str) {
        eventually(state, || (self.laptop.try_status()?["home"]["state"] == state).then_some(()));
    }

    /// What is lost while `event` happens after a second, in `seconds`: of packets to `outside`, whose source each time is
    /// what the kernel chooses, and of a flow of the inner address to the nas.
    fn lost(&self, seconds: u64, event: impl FnOnce()) -> [Lost; 2] {
        let laptop = &self.laptop.namespace;
        let (until, end) = (Instant::now() + Duration::from_secs(seconds), Duration::from_secs(1));
        std::thread::scope(|scope| {
            for (host, address) in [(&self.outside, OUTSIDE), (&self.nas, NAS)] {
                let laptop_on_lte: IpAddr = [10, 77, 0, 2].into();
                let echo = host.run(|| UdpSocket::bind(address).unwrap()).unwrap();
                echo.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                scope.spawn(move || {
                    let mut buffer = [0; 8];
                    while Instant::now() < until + end {
                        if let Ok((count, from)) = echo.recv_from(&mut buffer) {
                            assert_ne!(from.ip(), laptop_on_lte, "outside of the tunnel");
                            let _ = echo.send_to(&buffer[..count], from);
                        }
                    }
                });
            }
            let flows = [("0.0.0.0:0", OUTSIDE), ("10.66.0.2:0", NAS)].map(|(local, address)| {
                let socket = laptop.run(|| UdpSocket::bind(local).unwrap()).unwrap();
                scope.spawn(move || stream(&socket, address, until, end))
            });
            std::thread::sleep(Duration::from_secs(1));
            event();
            flows.map(|flow| flow.join().unwrap())
        })
    }
}

/// Packets of a stream that were not answered, and the longest time without an answer.
#[derive(Debug)]
struct Lost {
    packets: usize,
    gap: Duration,
}

fn stream(socket: &UdpSocket, address: &str, until: Instant, end: Duration) -> Lost {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (mut sent, mut answers, mut last, mut gap) = (0, 0, Instant::now(), Duration::ZERO);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_u64;
            while Instant::now() < until {
                let _ = socket.send_to(&sent.to_be_bytes(), address);
                sent += 1;
                std::thread::sleep(INTERVAL);
            }
            sent as usize
        });
        let mut buffer = [0; 8];
        while Instant::now() < until + end {
            if socket.recv_from(&mut buffer).is_ok() {
                gap = gap.max(last.elapsed());
                (last, answers) = (Instant::now(), answers + 1);
            }
        }
        sent = sender.join().unwrap();
    });
    Lost { packets: sent - answers, gap }
}

/// The link by which the laptop sends to `address`, from `source` if one is given.
fn way(laptop: &Host, address: &str, source: &[&str]) -> String {
    let mut command = laptop.namespace.command("ip");
    let output = command.args(["route", "get", address]).args(source).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn a_laptop_leaves_home_and_comes_back_without_losing_its_flows() {
    for (mode, routes, state, link) in [
        ("off", r#"["198.51.99.0/24", "0.0.0.0/0"]"#, "aside", "wlan0"),
        ("off", r#"["198.51.100.0/24"]"#, "aside", "wlan0"),
        ("direct", r#"["0.0.0.0/0"]"#, "direct", "roam0"),
    ] {
        let mut world = World::new(mode);
        world.laptop.amend(r#"["0.0.0.0/0"]"#, routes);
        world.laptop.start();
        world.laptop.connected();
        world.until_home(state);
        let path = world.laptop.path_in_use().unwrap();
        assert_eq!(
            (&path["link"], &path["server"]),
            (&"wlan0".into(), &"192.168.1.10:4433".into())
        );
        assert_eq!(way(&world.laptop, "198.51.100.2", &[]), link);
        if mode == "off" {
            assert_eq!(way(&world.laptop, "192.168.1.20", &["from", "10.66.0.2"]), "roam0");
        }
        let left = world.lost(3, || world.leave());
        assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "roam0");
        assert_eq!(world.laptop.path_in_use().unwrap()["link"], "lte0");
        let back = world.lost(4, || world.come_home());
        world.until_home(state);
        eprintln!("{mode}, {routes}: left {left:?}, back {back:?}");
        assert_eq!(world.laptop.status()["sessions"], 1);
        assert!(left[0].packets < LEFT && left[0].gap < Duration::from_millis(500), "{left:?}");
        assert!(back[0].packets < LEFT, "{back:?}");
        // Before the tunnel stands aside, too, what goes home from the inner address goes into it.
        if mode == "off" {
            assert!(left[1].packets < LEFT && back[1].packets < LEFT, "{left:?} {back:?}");
        }
    }
}

#[test]
fn an_ipv6_address_of_the_server_can_be_home() {
    const LAPTOP: &str = "fd00:1::50/64";
    let mut world = World::new("off");
    world.server.namespace.add_address("lan", "fd00:1::10/64").unwrap();
    world.laptop.namespace.add_address("wlan0", LAPTOP).unwrap();
    world.laptop.amend("\"192.168.1.10\"", "\"fd00:1::10\"");
    world.laptop.start();
    world.laptop.connected();
    world.until_home("aside");
    assert_eq!(world.laptop.path_in_use().unwrap()["server"], "[fd00:1::10]:4433");
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    // The kernel takes the IPv6 address with the link.
    world.leave();
    world.laptop.until_path("link", "lte0");
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "roam0");
    world.come_home();
    world.laptop.namespace.add_address("wlan0", LAPTOP).unwrap();
    world.until_home("aside");
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    assert_eq!(world.laptop.status()["sessions"], 1);
}

/// The rules of this daemon, with the tables to which they lead.
fn rules(laptop: &Host) -> Vec<String> {
    let output = laptop.namespace.command("ip").args(["rule", "show"]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter(|line| line.starts_with("53")).map(Into::into).collect()
}

/// The kernel takes a rule to everything for the same as one to a network.
#[test]
fn a_tunnel_that_gets_everything_while_it_stands_aside_stands_aside_for_everything() {
    let mut world = World::new("off");
    world.laptop.amend(r#"["0.0.0.0/0"]"#, r#"["198.51.99.0/24"]"#);
    world.laptop.start();
    world.laptop.connected();
    world.until_home("aside");
    world.laptop.amend(r#"["198.51.99.0/24"]"#, r#"["0.0.0.0/0"]"#);
    world.laptop.daemon.as_mut().unwrap().signal(Signal::SIGHUP).unwrap();
    eventually("a rule to everything", || {
        let rules = rules(&world.laptop);
        let is_to_all =
            |rule: &String| rule.starts_with("5326:") && rule.contains("from all lookup");
        rules.iter().any(is_to_all).then_some(())
    });
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    // It is not what mends the host that has added it.
    let log = world.laptop.log();
    assert!(!log.contains("put back what was missing"), "{log}");
}

#[test]
fn a_daemon_that_is_killed_while_the_tunnel_stands_aside_leaves_the_way_to_the_kernel() {
    let mut world = World::new("off");
    world.laptop.start();
    world.laptop.connected();
    world.until_home("aside");
    let before = rules(&world.laptop);
    assert!(before.iter().any(|rule| rule.starts_with("5326:")), "{before:?}");
    let daemon = world.laptop.daemon.as_mut().unwrap();
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(PATIENCE).unwrap();
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    world.leave();
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "lte0", "as without a tunnel");
    world.come_home();
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    // The next one takes over, at home, and leaves nothing of the one before.
    world.laptop.start();
    world.laptop.connected();
    world.until_home("aside");
    let after = rules(&world.laptop);
    assert_eq!(after.len(), before.len(), "{before:?} {after:?}");
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "wlan0");
    assert_eq!(way(&world.laptop, "192.168.1.20", &["from", "10.66.0.2"]), "roam0");
    world.leave();
    world.laptop.until_path("link", "lte0");
    assert_eq!(way(&world.laptop, "198.51.100.2", &[]), "roam0");
}

#[test]
fn a_cafe_that_forwards_the_home_address_is_not_home() {
    let mut world = World::new("off");
    world.guest.start();
    world.guest.connected();
    eventually("the server's key answers there", || {
        (world.guest.path_in_use()?["server"] == "192.168.1.10:4433").then_some(())
    });
    eventually("the server says that this is not home", || {
        world.guest.log().contains("not at home").then_some(())
    });
    assert_eq!(world.guest.status()["home"]["state"], "direct");
    assert_eq!(way(&world.guest, "198.51.100.2", &[]), "roam0");
    world.guest.assert_ping("10.66.0.1", &[]);
}
