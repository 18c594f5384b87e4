//! Nothing that belongs into the tunnel leaves this host beside it while it is sealed, and everything does when it
//! is not.
//!
//! ```text
//!   client 0 ── eth0 10.77.0.2 ─────── c0 10.77.0.1 ── server        198.51.100.2, 2001:db8:1::2: outside
//!               default route via 10.77.0.1      └─ counts what comes for the outside, in clear and inside
//! ```

mod matrix;

use std::{
    fs,
    net::UdpSocket,
    process::{Command, Output},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use roamd_lab::{Namespace, veth};

use crate::harness::{Host, Net, client_toml, eventually};

const OUTSIDE: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
/// Packets that are sent, of each family.
const PACKETS: u64 = 5;
const OPEN: &str = "routes = []";
const SEALED: &str = "routes = [\"default\"]\nkill-switch = true";
const JUDGE: &str = "table inet judge {
  counter clear {}
  counter inside4 {}
  counter inside6 {}
  chain in {
    type filter hook prerouting priority raw;
    iifname c0 udp dport 9 ip daddr 198.51.100.2 counter name clear
    iifname c0 udp dport 9 ip6 daddr 2001:db8:1::2 counter name clear
    iifname roam0 udp dport 9 ip daddr 198.51.100.2 counter name inside4
    iifname roam0 udp dport 9 ip6 daddr 2001:db8:1::2 counter name inside6
  }
}
";

/// A client with a way to the outside beside the tunnel, and the judge of what it sends there.
struct World {
    net: Net,
}

impl World {
    fn new(tun: &str) -> Self {
        let net = Net::new(1);
        let laptop = &net.clients[0].namespace;
        laptop.add_route("0.0.0.0/0", Some("10.77.0.1"), "eth0", 100).unwrap();
        laptop.add_route("::/0", Some("fd77:0::1"), "eth0", 100).unwrap();
        net.clients[0].amend("[tun]\n", &format!("[tun]\n{tun}\n"));
        let script = net.server.folder().join("judge.nft");
        fs::write(&script, JUDGE).unwrap();
        assert_eq!(run(&net.server, "nft", &["-f", script.to_str().unwrap()]), "");
        Self { net }
    }

    fn client(&mut self) -> &mut Host {
        &mut self.net.clients[0]
    }

    fn serve(&mut self) {
        self.net.server.start();
        eventually("the server listens", || self.net.server.try_status());
    }

    fn counted(&self, counter: &str) -> u64 {
        let listing = run(&self.net.server, "nft", &["list", "counter", "inet", "judge", counter]);
        let packets = listing.split("packets ").nth(1).unwrap_or_default();
        packets.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{listing}"))
    }

    /// Sends packets to the outside, and says how many of them left in clear.
    fn leaked(&self) -> u64 {
        let before = self.counted("clear");
        self.send();
        thread::sleep(Duration::from_millis(50));
        self.counted("clear") - before
    }

    fn send(&self) {
        let client = &self.net.clients[0].namespace;
        client
            .run(|| {
                for (local, outside) in [("0.0.0.0:0", OUTSIDE[0]), ("[::]:0", OUTSIDE[1])] {
                    let outside: std::net::IpAddr = outside.parse().unwrap();
                    for _ in 0..PACKETS {
                        // Offload would make one packet of several from the same socket.
                        let socket = UdpSocket::bind(local).unwrap();
                        // What is held back is an error here.
                        let _ = socket.send_to(b"secret", (outside, 9));
                    }
                }
            })
            .unwrap();
    }

    /// Sends three packets from this port of a host, and says how many of them left in clear.
    fn leaked_from(&self, host: &Namespace, port: u16, mark: Option<u32>) -> u64 {
        let before = self.counted("clear");
        host.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            if let Some(mark) = mark {
                socket2::SockRef::from(&socket).set_mark(mark).unwrap();
            }
            for _ in 0..3 {
                let _ = socket.send_to(b"secret", (OUTSIDE[0], 9));
            }
        })
        .unwrap();
        thread::sleep(Duration::from_millis(100));
        self.counted("clear") - before
    }

    fn assert_open(&self, what: &str) {
        assert_eq!(self.leaked(), 2 * PACKETS, "{what}: everything leaves");
    }

    fn assert_sealed(&self, what: &str) {
        assert_eq!(self.leaked(), 0, "{what}: nothing leaves in clear");
    }
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> String {
    let mut command: Command = host.namespace.command(program);
    let output = command.args(arguments).output().unwrap();
    said(&output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn reload(host: &Host) -> Output {
    host.tell(&["reload", "roamd"])
}

#[test]
fn a_reload_without_a_session_seals_and_lifts_before_it_answers() {
    let mut world = World::new(OPEN);
    world.client().start();
    eventually("the daemon answers", || world.net.clients[0].try_status());
    world.assert_open("no kill switch");
    world.client().amend(OPEN, SEALED);
    let output = reload(world.client());
    assert!(output.status.success(), "{}", said(&output));
    world.assert_sealed("after the reload");
    world.client().amend(SEALED, OPEN);
    let output = reload(world.client());
    assert!(output.status.success(), "{}", said(&output));
    world.assert_open("after the second reload");
}

#[test]
fn a_reload_that_the_host_cannot_apply_is_refused_and_the_tunnel_goes_on() {
    let mut world = World::new(OPEN);
    world.serve();
    let empty = tempfile::tempdir().unwrap();
    world.client().start_with(&[("PATH", empty.path().to_str().unwrap())]);
    world.client().connected();
    world.client().amend(OPEN, SEALED);
    let output = reload(world.client());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("is not in effect") && text.contains("is nftables installed?"), "{text}");
    world.client().assert_ping("10.66.0.1", &[]);
    world.assert_open("as before");
    // What the file says meanwhile takes effect when the host can do it.
    world.client().amend(SEALED, "routes = [\"192.0.2.0/24\"]");
    assert!(reload(world.client()).status.success());
    assert!(run(world.client(), "ip", &["route"]).contains("192.0.2.0/24 dev roam0"));
    assert_eq!(world.client().status()["sessions"], 1);
}

fn kill(host: &mut Host) {
    host.daemon.as_mut().unwrap().signal(Signal::SIGKILL).unwrap();
    assert_eq!(host.exit_code(), None);
}

fn stop(host: &mut Host) {
    host.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(host.exit_code(), Some(0));
}

fn rules(host: &Host) -> String {
    run(host, "ip", &["-4", "rule"]) + &run(host, "ip", &["-6", "rule"])
}

#[cfg(feature = "metrics")]
fn sysctl(host: &Host, name: &str) -> String {
    run(host, "cat", &[&format!("/proc/sys/net/{name}")]).trim().into()
}

#[test]
fn forwarded_packets_do_not_pass_as_the_servers_own() {
    let mut world = World::new(SEALED);
    world.client().namespace.reverse_path_filter(1).unwrap();
    let container = Namespace::new("container").unwrap();
    let laptop = &world.net.clients[0].namespace;
    veth(laptop, "docker0", &container, "eth0").unwrap();
    for (host, link, last) in [(laptop, "docker0", 1), (&container, "eth0", 2)] {
        host.set_up(link).unwrap();
        host.add_address(link, &format!("172.17.0.{last}/16")).unwrap();
    }
    container.add_route("0.0.0.0/0", Some("172.17.0.1"), "eth0", 0).unwrap();
    laptop.forward(true).unwrap();
    assert_eq!(world.leaked_from(&container, 4433, None), 3, "there is a way");
    world.serve();
    world.client().start();
    world.client().connected();
    for port in [4433, 5555] {
        assert_eq!(world.leaked_from(&container, port, None), 0, "{port}");
    }
    // Nor does the mark alone open the seal.
    assert_eq!(world.leaked_from(&world.net.clients[0].namespace, 4433, Some(0x726f_616d)), 0);
    world.client().assert_ping("10.66.0.1", &[]);
}

#[test]
fn the_next_run_removes_what_a_killed_one_left_with_any_configuration() {
    let mut world = World::new(SEALED);
    world.client().namespace.reverse_path_filter(1).unwrap();
    let before = rules(world.client());
    world.serve();
    world.client().start();
    world.client().connected();
    assert!(rules(world.client()).contains("5300:"));
    kill(world.client());
    assert_ne!(rules(world.client()), before);
    world.assert_sealed("killed");
    // Another name for the interface, no kill switch, no strict filter, and no server.
    world.client().namespace.reverse_path_filter(2).unwrap();
    kill(&mut world.net.server);
    world.client().amend(SEALED, OPEN);
    world.client().amend("roam0", "other0");
    world.client().start();
    eventually("the daemon answers", || world.net.clients[0].try_status());
    assert_eq!(rules(world.client()), before);
    assert_eq!(run(world.client(), "nft", &["list", "tables"]), "");
    world.assert_open("no kill switch");
    stop(world.client());
}

#[cfg(feature = "metrics")]
#[test]
fn a_server_that_fails_or_is_killed_leaves_neither_nat_nor_forwarding() {
    let mut net = Net::new(0);
    let server = &mut net.server;
    let taken =
        server.namespace.run(|| std::net::TcpListener::bind("127.0.0.1:9433").unwrap()).unwrap();
    server.amend("[tun]\n", "[metrics]\nlisten = \"127.0.0.1:9433\"\n[tun]\nnat = true\n");
    let forwarding = |server: &Host| {
        let tables = run(server, "nft", &["list", "tables"]);
        (sysctl(server, "ipv4/ip_forward"), sysctl(server, "ipv6/conf/all/forwarding"), tables)
    };
    let before = forwarding(server);
    server.start();
    assert_ne!(server.exit_code(), Some(0));
    assert_eq!(forwarding(server), before);
    drop(taken);
    for nat in ["nat = true", ""] {
        server.start();
        eventually("the server listens", || server.try_status());
        eventually("forwarding", || (forwarding(server).0 == "1").then_some(()));
        kill(server);
        assert_eq!(forwarding(server).0, "1");
        server.amend("nat = true", nat);
        server.start();
        eventually("the server listens", || server.try_status());
        thread::sleep(Duration::from_millis(300));
        stop(server);
        assert_eq!(forwarding(server), before, "{nat}");
    }
}

#[test]
fn two_tunnels_share_a_host_and_a_second_one_for_everything_says_why_not() {
    let mut net = Net::new(2);
    let key = net.server.key();
    let mut second = net.clients[0].second("work", &net.clients[1]);
    let split = "routes = [\"192.0.2.0/24\"]";
    second.configure(&client_toml("10.77.0.1:4433", &key, "").replace("roam0", "work0"));
    second.amend("[tun]\n", &format!("[tun]\n{split}\n"));
    net.clients[0].amend("[tun]\n", "[tun]\nroutes = [\"default\"]\nkill-switch = true\n");
    // An admin's own rule.
    let own = ["rule", "add", "pref", "5320", "to", "203.0.113.0/24", "lookup", "main"];
    assert_eq!(run(&net.clients[0], "ip", &own), "");
    net.start_only(0);
    let before = rules(&net.clients[0]);
    assert!(before.contains("5320:\tfrom all to 203.0.113.0/24 lookup main"), "{before}");
    second.start();
    second.connected();
    second.assert_ping("10.66.0.1", &["-I", "work0"]);
    net.clients[0].assert_ping("10.66.0.1", &["-I", "roam0"]);
    assert_eq!(rules(&net.clients[0]), before);
    // A reload that would take everything is refused.
    second.amend(split, "routes = [\"default\"]");
    let output = second.tell(&["reload", "work"]);
    let reason = "tunnel roamd already takes all traffic of this host";
    assert!(!output.status.success() && said(&output).contains(reason), "{}", said(&output));
    second.assert_ping("10.66.0.1", &["-I", "work0"]);
    stop(&mut second);
    assert_eq!(rules(&net.clients[0]), before);
    second.start();
    assert_eq!(second.exit_code(), Some(78));
    assert!(second.log().contains(reason), "{}", second.log());
    second.amend("work0", "roam0");
    second.start();
    assert_ne!(second.exit_code(), Some(0));
    assert!(second.log().contains("tunnel roamd has it; give this one another tun.name"));
    net.clients[0].assert_ping("10.66.0.1", &["-I", "roam0"]);
    stop(&mut net.clients[0]);
    let after = rules(&net.clients[0]);
    assert!(
        after.contains("5320:\tfrom all to 203.0.113.0/24") && !after.contains("5330:"),
        "{after}"
    );
}

#[test]
fn firewall_rules_that_somebody_flushes_or_changes_come_back() {
    let mut world = World::new(SEALED);
    world.client().start();
    eventually("the daemon answers", || world.net.clients[0].try_status());
    let listing =
        |host: &Host| run(host, "nft", &["--stateless", "list", "table", "inet", "roamd-roam0"]);
    let before = listing(world.client());
    for change in [
        &["flush", "table", "inet", "roamd-roam0"][..],
        &["delete", "table", "inet", "roamd-roam0"],
        &["flush", "ruleset"],
        &["insert", "rule", "inet", "roamd-roam0", "seal", "accept"],
        &["flush", "chain", "inet", "roamd-roam0", "output"],
    ] {
        assert_eq!(run(world.client(), "nft", change), "");
        eventually(&format!("{change:?} is undone"), || {
            (listing(&world.net.clients[0]) == before).then_some(())
        });
        world.assert_sealed("put back");
    }
}

#[test]
fn unseal_lifts_the_kill_switch_when_no_daemon_runs() {
    let mut world = World::new(SEALED);
    let before = rules(world.client());
    let unseal = |world: &World| world.net.clients[0].tell(&["unseal", "roamd"]);
    world.serve();
    world.client().start();
    world.client().connected();
    let output = unseal(&world);
    let advice = "systemctl stop roamd@roamd";
    assert!(!output.status.success() && said(&output).contains(advice), "{}", said(&output));
    world.client().assert_ping("10.66.0.1", &[]);
    kill(world.client());
    world.assert_sealed("killed");
    // A broken file keeps it that way, and says how to get out.
    world.client().amend("kill-switch = true", "kill-switch = maybe");
    world.client().start();
    assert_eq!(world.client().exit_code(), Some(78));
    let log = world.client().log();
    assert!(log.contains("roamd unseal roamd lets it out"), "{log}");
    world.assert_sealed("a broken file");
    for _ in 0..2 {
        let output = unseal(&world);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(rules(world.client()), before);
        assert_eq!(run(world.client(), "nft", &["list", "tables"]), "");
    }
    world.assert_open("unsealed");
    assert!(world.client().tell(&["unseal"]).status.success());
    assert!(world.client().tell(&["unseal", "nobody"]).status.success());
}

#[test]
fn a_sealed_client_finds_its_server_by_name_and_where_it_moves() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "10.77.0.1 vpn.example\n").unwrap();
    let mut world = World::new(&format!("{SEALED}\nexclude = []"));
    world.net.server.namespace.add_address("c0", "203.0.113.1/32").unwrap();
    world.client().amend("10.77.0.1:4433", "vpn.example:4433");
    world.serve();
    let mount = "mount --bind $0 /etc/hosts && exec \"$@\"";
    let arguments = ["--mount", "sh", "-c", mount, hosts.to_str().unwrap()];
    world.client().start_in("unshare", &arguments);
    world.client().connected();
    world.client().assert_ping("10.66.0.1", &[]);
    fs::write(&hosts, "203.0.113.1 vpn.example\n").unwrap();
    assert!(reload(world.client()).status.success());
    eventually("a path to the new address", || {
        let status = world.net.clients[0].try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        let is_new = |path: &serde_json::Value| path["server"] == "203.0.113.1:4433";
        paths.any(|path| is_new(path) && path["state"] == "standby").then_some(())
    });
    let table = run(world.client(), "nft", &["list", "table", "inet", "roamd-roam0"]);
    assert!(table.contains("10.77.0.1 . 4433") && table.contains("203.0.113.1 . 4433"), "{table}");
    world.client().assert_ping("10.66.0.1", &[]);
    world.assert_sealed("all along");
}
