//! Everything goes into the tunnel, and nothing else does.
//!
//! ```text
//!   client 0 ── eth0 10.77.0.2 ─────── c0 10.77.0.1 ── server ── wan 198.51.100.1 ─── eth0 198.51.100.2 outside
//!               default route via 10.77.0.1                          2001:db8:1::1         2001:db8:1::2
//! ```
//! `outside` knows no way back to any of the client's networks: only what the server sends on with its own
//! address is answered.

use std::{fs, process::Command, time::Duration};

use nix::sys::signal::Signal;
use roamd_lab::{Namespace, Process, veth};

use crate::harness::{Host, Net, eventually};

const OUTSIDE: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

struct World {
    net: Net,
    _outside: Namespace,
}

fn world(server: &str, client: &str) -> World {
    let net = Net::new(1);
    let outside = Namespace::new("outside").unwrap();
    veth(&net.server.namespace, "wan", &outside, "eth0").unwrap();
    for (host, link, last) in [(&net.server.namespace, "wan", 1), (&outside, "eth0", 2)] {
        host.set_up(link).unwrap();
        host.add_address(link, &format!("198.51.100.{last}/24")).unwrap();
        host.add_address(link, &format!("2001:db8:1::{last}/64")).unwrap();
    }
    let laptop = &net.clients[0].namespace;
    laptop.add_route("0.0.0.0/0", Some("10.77.0.1"), "eth0", 100).unwrap();
    laptop.add_route("::/0", Some("fd77:0::1"), "eth0", 100).unwrap();
    net.server.amend("[tun]\n", &format!("[tun]\n{server}\n"));
    net.clients[0].amend("[tun]\n", &format!("[tun]\n{client}\n"));
    World { net, _outside: outside }
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> String {
    let mut command: Command = host.namespace.command(program);
    let output = command.args(arguments).output().unwrap();
    let (out, err) = (output.stdout, output.stderr);
    String::from_utf8_lossy(&out).into_owned() + &String::from_utf8_lossy(&err)
}

fn rules(host: &Host) -> String {
    run(host, "ip", &["-4", "rule"]) + &run(host, "ip", &["-6", "rule"])
}

fn reaches(host: &Host, address: &str) -> bool {
    host.ping(address, &["-c", "1", "-W", "1"]).status.success()
}

fn stop(host: &mut Host) {
    host.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(host.exit_code(), Some(0));
}

#[test]
fn everything_goes_through_the_tunnel_without_a_loop_and_is_undone_on_stop() {
    let mut world = world("nat = true", "routes = [\"default\"]");
    let before = rules(&world.net.clients[0]);
    world.net.start();
    let client = &mut world.net.clients[0];
    for address in OUTSIDE {
        client.assert_ping(address, &[]);
    }
    // The neighbourhood stays outside.
    assert!(run(client, "ip", &["route", "get", "10.77.0.1"]).contains("dev eth0"));
    assert!(run(client, "ip", &["route", "get", "198.51.100.2"]).contains("dev roam0"));
    stop(client);
    assert_eq!(rules(client), before);
    assert!(!OUTSIDE.iter().any(|address| reaches(client, address)));
    let server = &mut world.net.server;
    assert!(run(server, "nft", &["list", "tables"]).contains("roamd-roam0"));
    stop(server);
    assert_eq!(run(server, "nft", &["list", "tables"]), "");
    let forwarding = run(server, "cat", &["/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!(forwarding.trim(), "0");
}

#[test]
fn a_paused_tunnel_leads_nothing_into_itself_and_the_kill_switch_holds() {
    for kill_switch in [false, true] {
        let keys = format!("routes = [\"default\"]\nkill-switch = {kill_switch}");
        let mut world = world("nat = true", &keys);
        let before = rules(&world.net.clients[0]);
        world.net.start();
        let client = &world.net.clients[0];
        let tell = |arguments: &[&str]| {
            let output = client.tell(arguments);
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let said = tell(&["pause"]);
        assert_eq!(said.contains("the kill switch holds back"), kill_switch, "{said}");
        assert_eq!(rules(client), before);
        assert!(run(client, "ip", &["route", "get", OUTSIDE[0]]).contains("dev eth0"));
        // The tunnel's own network goes nowhere else.
        assert!(run(client, "ip", &["route", "get", "10.66.0.1"]).contains("dev roam0"));
        let ping = run(client, "ping", &["-n", "-c", "1", "-W", "1", OUTSIDE[0]]);
        assert_eq!(ping.contains("not permitted"), kill_switch, "{ping}");
        eventually("the server has heard the goodbye", || {
            world.net.server.status()["peers"][0]["session"].is_null().then_some(())
        });
        tell(&["resume"]);
        client.connected();
        client.assert_ping(OUTSIDE[0], &[]);
    }
}

#[test]
fn a_strict_reverse_path_filter_lets_the_server_through() {
    let mut world = world("nat = true", "routes = [\"default\"]");
    world.net.clients[0].namespace.reverse_path_filter(1).unwrap();
    world.net.start();
    world.net.clients[0].assert_ping(OUTSIDE[0], &[]);
}

#[test]
fn rules_and_routes_that_somebody_deletes_come_back() {
    let mut world = world("nat = true", "routes = [\"default\"]");
    world.net.start();
    let client = &world.net.clients[0];
    let before = rules(client);
    assert!(before.contains("5330:"), "{before}");
    for delete in [
        &["-4", "rule", "del", "pref", "5330"][..],
        &["-6", "rule", "del", "pref", "5320"],
        &["-4", "route", "flush", "table", "1919902061"],
    ] {
        assert_eq!(run(client, "ip", delete), "");
    }
    eventually("the rules are back", || (rules(client) == before).then_some(()));
    eventually("the route is back", || reaches(client, OUTSIDE[0]).then_some(()));
}

#[test]
fn a_family_that_the_server_lacks_does_not_bypass_the_tunnel() {
    let mut world = world("nat = true", "routes = [\"default\"]");
    world.net.server.amend(", \"fd66::2\"]", "]");
    world.net.start();
    let client = &world.net.clients[0];
    client.assert_ping(OUTSIDE[0], &[]);
    let refused = run(client, "ip", &["route", "get", OUTSIDE[1]]);
    assert!(refused.contains("unreachable"), "{refused}");
}

/// What `ip monitor` says of the tunnel's rules and routes of IPv6 in this namespace.
struct Ipv6Changes(Process);

impl Ipv6Changes {
    fn hear(client: &Host, name: &str) -> Self {
        let mut command = client.namespace.command("ip");
        command.args(["-6", "monitor", "rule", "route"]);
        let monitor = client.namespace.spawn(name, command, client.folder()).unwrap();
        eventually("the monitor", || {
            for change in ["add", "del"] {
                run(client, "ip", &["-6", "rule", change, "pref", "7000", "lookup", "main"]);
            }
            (!monitor.log().unwrap().is_empty()).then_some(())
        });
        Self(monitor)
    }

    /// The first `count` of them, and that no more follow.
    fn heard(&self, client: &Host, count: usize) -> Vec<String> {
        let is_tunnels = |line: &&str| line.contains("5330:") || line.contains("table 1919902061");
        let heard = || {
            let log = self.0.log().unwrap();
            log.lines().filter(is_tunnels).map(str::to_owned).collect::<Vec<_>>()
        };
        eventually("changes", || (heard().len() >= count).then_some(()));
        // The host looks at its rules again.
        for change in ["add", "del"] {
            run(client, "ip", &["-6", "rule", change, "pref", "7001", "lookup", "main"]);
            std::thread::sleep(Duration::from_millis(300));
        }
        let heard = heard();
        assert_eq!(heard.len(), count, "{heard:?}");
        heard
    }
}

#[test]
fn a_family_that_the_server_gets_or_loses_is_held_back_while_it_is_not_in_the_tunnel() {
    let mut world = world("nat = true", "routes = [\"default\"]");
    world.net.server.amend(", \"fd66::2\"]", "]");
    world.net.start();
    let changes = Ipv6Changes::hear(&world.net.clients[0], "gets");
    world.net.server.amend("\"10.66.0.2\"]", "\"10.66.0.2\", \"fd66::2\"]");
    assert!(world.net.server.tell(&["reload", "roamd"]).status.success());
    let heard = changes.heard(&world.net.clients[0], 3);
    assert!(heard[0].starts_with("default dev roam0"), "{heard:?}");
    assert!(heard[1].contains("lookup 1919902061"), "{heard:?}");
    assert!(heard[2].contains("Deleted") && heard[2].contains("unreachable"), "{heard:?}");
    world.net.clients[0].assert_ping(OUTSIDE[1], &[]);
    drop(changes);
    let changes = Ipv6Changes::hear(&world.net.clients[0], "loses");
    world.net.server.amend(", \"fd66::2\"]", "]");
    assert!(world.net.server.tell(&["reload", "roamd"]).status.success());
    let heard = changes.heard(&world.net.clients[0], 3);
    assert!(heard[0].contains("unreachable") && !heard[0].contains("Deleted"), "{heard:?}");
    assert!(heard[1].starts_with("Deleted default dev roam0"), "{heard:?}");
    assert!(heard[2].contains("Deleted") && heard[2].contains("lookup"), "{heard:?}");
    let refused = run(&world.net.clients[0], "ip", &["route", "get", OUTSIDE[1]]);
    assert!(refused.contains("unreachable"), "{refused}");
}

#[test]
fn excluded_networks_stay_outside_the_tunnel() {
    let exclude = "routes = [\"default\"]\nexclude = [\"198.51.100.0/24\", \"2001:db8:1::/48\"]";
    let mut world = world("nat = true", exclude);
    world.net.start();
    for address in OUTSIDE {
        let route = run(&world.net.clients[0], "ip", &["route", "get", address]);
        assert!(route.contains("dev eth0"), "{route}");
    }
    // Without "lan" even the neighbourhood is inside, all but the server.
    let route = run(&world.net.clients[0], "ip", &["route", "get", "10.77.0.77"]);
    assert!(route.contains("dev roam0"), "{route}");
}

#[test]
fn the_kill_switch_outlives_a_killed_daemon() {
    let mut world = world("nat = true", "routes = [\"default\"]\nkill-switch = true");
    // Without the tunnel there is a way, too.
    let lab = &world.net.server.namespace;
    lab.forward(true).unwrap();
    world._outside.add_route("10.77.0.0/24", Some("198.51.100.1"), "eth0", 0).unwrap();
    assert!(reaches(&world.net.clients[0], OUTSIDE[0]));
    world.net.start();
    let client = &mut world.net.clients[0];
    client.assert_ping(OUTSIDE[0], &[]);
    // Whoever flushes all rules does not lift it for long.
    assert_eq!(run(client, "nft", &["flush", "ruleset"]), "");
    eventually("the kill switch is back", || {
        run(client, "nft", &["list", "tables"]).contains("roamd-roam0").then_some(())
    });
    client.daemon.as_mut().unwrap().signal(Signal::SIGKILL).unwrap();
    assert_eq!(client.exit_code(), None);
    let refused = run(client, "ping", &["-c", "1", "-W", "1", OUTSIDE[0]]);
    assert!(!reaches(client, OUTSIDE[0]), "{refused}");
    // The neighbourhood is open.
    client.assert_ping("10.77.0.1", &[]);
    client.start();
    client.connected();
    eventually("the tunnel carries again", || reaches(client, OUTSIDE[0]).then_some(()));
    stop(client);
    assert_eq!(run(client, "nft", &["list", "tables"]), "");
    assert!(reaches(client, OUTSIDE[0]));
    // Whoever crashed with it and starts without it lifts it.
    client.start();
    client.connected();
    client.daemon.as_mut().unwrap().signal(Signal::SIGKILL).unwrap();
    assert_eq!(client.exit_code(), None);
    client.amend("kill-switch = true", "");
    client.start();
    client.connected();
    assert_eq!(run(client, "nft", &["list", "tables"]), "");
}

#[test]
fn a_kill_switch_that_cannot_be_set_is_an_error() {
    let mut world = world("", "routes = [\"default\"]\nkill-switch = true");
    let client = &mut world.net.clients[0];
    let empty = tempfile::tempdir().unwrap();
    client.start_with(&[("PATH", empty.path().to_str().unwrap())]);
    assert_eq!(client.exit_code(), Some(78));
    let log = client.log();
    assert!(log.contains("kill switch") && log.contains("is nftables installed?"), "{log}");
    assert!(fs::read_dir(empty.path()).unwrap().next().is_none());
}
