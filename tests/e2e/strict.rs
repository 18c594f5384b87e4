//! A laptop whose kernel takes a packet only over the link by which an answer would leave (rp_filter = 1, the
//! default of RHEL).

use std::time::Duration;

use nix::sys::signal::Signal;
use roamd_lab::{Access, Scene};

use crate::{
    harness::{Host, client_toml, eventually},
    roaming::{Laptop, SILENCE, last_switch},
};

const SERVER: &str = "10.77.9.2:4433";
/// The priority of the rules that let the server through.
const OURS: &str = "5300:";

fn filter(scene: &Scene, mode: u8) {
    let client = scene.client();
    client.reverse_path_filter(mode).unwrap();
    for access in Access::BOTH {
        let name = format!("net/ipv4/conf/{}/rp_filter", access.link());
        client.sysctl(&name, &mode.to_string()).unwrap();
    }
}

fn laptop() -> Laptop {
    Laptop::with(SERVER, "", |scene| filter(scene, 1))
}

fn ip(host: &Host, arguments: &[&str]) -> String {
    let output = host.namespace.command("ip").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
}

fn rules(host: &Host) -> Vec<String> {
    ip(host, &["-4", "rule"]).lines().map(str::to_owned).collect()
}

fn ours(host: &Host) -> Vec<String> {
    let mut rules = rules(host);
    rules.retain(|rule| rule.starts_with(OURS));
    rules.sort();
    rules
}

/// Routes in tables with large numbers, as ours are.
fn routes(host: &Host) -> Vec<String> {
    let all = ip(host, &["-4", "route", "show", "table", "all"]);
    let number = |route: &str| route.split_once(" table ")?.1.split(' ').next()?.parse().ok();
    let is_ours = |route: &&str| number(route).is_some_and(|table: u32| table > 1 << 31);
    all.lines().filter(is_ours).map(str::to_owned).collect()
}

fn assert_wifi_is_left(laptop: &Laptop) {
    let silent = laptop.stream(Duration::from_secs(4), || {
        laptop.scene.air(Access::Wifi).black_hole(true);
    });
    assert!(silent.gap < SILENCE + silent.stall, "{silent:?}");
    assert_eq!(last_switch(&laptop.client.status())["to"], "lte0");
}

fn assert_nothing_is_left_behind(laptop: &mut Laptop) {
    laptop.client.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(laptop.client.exit_code(), Some(0));
    assert_eq!(rules(&laptop.client).len(), 3, "{:?}", rules(&laptop.client));
    assert_eq!(routes(&laptop.client), [] as [&str; 0]);
}

#[test]
fn a_standby_of_a_split_tunnel_answers_through_strict_filters() {
    let mut laptop = laptop();
    let (rules, routes) = (ours(&laptop.client), routes(&laptop.client));
    assert_eq!((rules.len(), routes.len()), (2, 2), "{rules:?} {routes:?}");
    for (local, link, router) in
        [("10.77.1.2", "wifi0", "10.77.1.1"), ("10.77.2.2", "lte0", "10.77.2.1")]
    {
        let way = ["-4", "route", "get", "10.77.9.2", "from", local];
        let way = ip(&laptop.client, &way);
        assert!(way.contains(&format!("via {router} dev {link}")), "{way}");
    }
    assert_wifi_is_left(&laptop);
    assert_nothing_is_left_behind(&mut laptop);
}

#[test]
fn a_standby_of_a_tunnel_that_takes_everything_answers_through_strict_filters() {
    let mut laptop = laptop();
    laptop.client.daemon = None;
    laptop.client.amend("[tun]\n", "[tun]\nroutes = [\"default\"]\n");
    laptop.client.start();
    laptop.client.connected();
    laptop.until_active(Access::Wifi);
    laptop.until(Access::Lte, "standby");
    assert_wifi_is_left(&laptop);
    assert_nothing_is_left_behind(&mut laptop);
}

#[test]
fn a_host_without_strict_filters_gets_no_rules_and_one_that_becomes_strict_does() {
    let laptop = Laptop::connected();
    assert_eq!(ours(&laptop.client), [] as [&str; 0]);
    filter(&laptop.scene, 1);
    // Nobody tells of it: the next look is within five seconds.
    eventually("rules", || (ours(&laptop.client).len() == 2).then_some(()));
    filter(&laptop.scene, 2);
    eventually("no rules", || ours(&laptop.client).is_empty().then_some(()));
    assert_eq!(routes(&laptop.client), [] as [&str; 0]);
}

#[test]
fn rules_for_strict_filters_follow_the_links_and_come_back_when_somebody_deletes_them() {
    let laptop = laptop();
    let before = (ours(&laptop.client), routes(&laptop.client));
    let now = || (ours(&laptop.client), routes(&laptop.client));
    let table = before.0[0].split("lookup ").nth(1).unwrap().trim().to_owned();
    ip(&laptop.client, &["-4", "rule", "del", "pref", "5300"]);
    ip(&laptop.client, &["-4", "route", "flush", "table", &table]);
    eventually("all is back", || (now() == before).then_some(()));
    laptop.scene.disconnect(Access::Lte).unwrap();
    eventually("one link", || (ours(&laptop.client).len() == 1).then_some(()));
    laptop.scene.connect(Access::Lte).unwrap();
    eventually("two links", || (now() == before).then_some(()));
    // Another router on the same network.
    let client = laptop.scene.client();
    client.add_route("0.0.0.0/0", Some("10.77.2.77"), "lte0", 150).unwrap();
    eventually("the other router", || {
        routes(&laptop.client).iter().any(|route| route.contains("via 10.77.2.77")).then_some(())
    });
}

#[test]
fn the_next_run_removes_the_rules_of_a_killed_one() {
    let mut laptop = laptop();
    let before = ours(&laptop.client);
    let daemon = laptop.client.daemon.as_mut().unwrap();
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(Duration::from_secs(5)).unwrap();
    assert_eq!(ours(&laptop.client), before);
    laptop.client.start();
    laptop.client.connected();
    eventually("its own rules", || {
        let now = ours(&laptop.client);
        (now.len() == 2 && now != before && routes(&laptop.client).len() == 2).then_some(())
    });
    let daemon = laptop.client.daemon.as_mut().unwrap();
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(Duration::from_secs(5)).unwrap();
    assert!(laptop.client.tell(&["unseal", "roamd"]).status.success());
    assert_eq!((ours(&laptop.client).len(), routes(&laptop.client).len()), (0, 0));
}

#[test]
fn the_doctor_knows_what_strict_filters_drop() {
    let mut laptop = laptop();
    let file = laptop.client.folder().join("roamd.toml").display().to_string();
    let said = |laptop: &Laptop| {
        let output = laptop.client.tell(&["doctor", &file]);
        String::from_utf8(output.stdout).unwrap()
    };
    let running = said(&laptop);
    assert!(running.contains("ok    10.77.9.2:4433 over lte0: answers"), "{running}");
    laptop.client.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(laptop.client.exit_code(), Some(0));
    let stopped = said(&laptop);
    assert!(stopped.contains("ok    10.77.9.2:4433 over wifi0: answers"), "{stopped}");
    assert!(stopped.contains("poor  10.77.9.2:4433 over lte0: not asked"), "{stopped}");
}

#[test]
fn two_tunnels_have_rules_of_their_own() {
    let laptop = laptop();
    let before = (ours(&laptop.client), routes(&laptop.client));
    let folder = tempfile::tempdir().unwrap();
    let other = Host::new("other", laptop.scene.client().clone(), folder.path());
    let mut second = laptop.client.second("work", &other);
    let peer = format!(
        "[[peer]]\nname = \"work\"\npublic-key = \"{}\"\naddresses = [\"10.66.0.3\"]\n[[peer]]\n",
        other.key()
    );
    laptop.server.amend("[[peer]]\n", &peer);
    assert!(laptop.server.tell(&["reload", "roamd"]).status.success());
    let split = client_toml(SERVER, &laptop.server.key(), "").replace("roam0", "work0");
    second.configure(&split);
    second.amend("[tun]\n", "[tun]\nroutes = [\"192.0.2.0/24\"]\n");
    second.start();
    second.connected();
    assert_eq!((ours(&second).len(), routes(&second).len()), (4, 4), "{:?}", rules(&second));
    second.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!((ours(&laptop.client), routes(&laptop.client)), before);
}
