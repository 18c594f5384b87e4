//! A server that moves to another of the addresses that its clients know.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use roamd_lab::Access;

use crate::{
    harness::{Host, eventually},
    names::start_with,
    roaming::{Laptop, Stream, stream},
};

/// Both addresses of the server, as a client's configuration lists them.
const BOTH: &str = "10.77.9.2:4433\", \"10.77.9.3:4433";
const RUNS: usize = 3;
/// A client is without its server for so long at most, also where nobody tells it and it has to find out.
const HOLE: Duration = Duration::from_millis(1500);
/// Long enough to tell: a client that does not find its server waits to the end of the stream.
const LONG: Duration = Duration::from_secs(6);

/// Connected to the first address, with a standby to the second.
fn laptop() -> Laptop {
    let laptop = Laptop::with(BOTH, "", |scene| {
        // The second address stays when the first one goes.
        scene.server().sysctl("net/ipv4/conf/all/promote_secondaries", "1").unwrap();
        scene.server().add_address("eth0", "10.77.9.3/24").unwrap();
    });
    eventually("the first address in use, the second ready", || {
        let status = laptop.client.try_status()?;
        let paths = status["paths"].as_array()?.clone();
        let is = |server: &str, state: &str| {
            paths.iter().any(|path| path["server"] == server && path["state"] == state)
        };
        (is("10.77.9.2:4433", "active") && is("10.77.9.3:4433", "standby")).then_some(())
    });
    laptop
}

/// A firewall of the server's network that was started again: it knows no flow, and lets the server answer in
/// those only that it sees begin with a handshake. What the server says of a connection that it does not know,
/// a stateless reset (RFC 9000 §10.3), does not get through.
const NO_RESETS: &str = "
table ip strict {
    set begun { type ipv4_addr . inet_service; flags dynamic; size 65535; timeout 60s; }
    chain in {
        type filter hook input priority 0;
        udp dport 4433 @th,64,1 1 add @begun { ip saddr . udp sport }
    }
    chain out {
        type filter hook output priority 0;
        udp sport 4433 @th,64,1 0 ip daddr . udp dport != @begun drop
    }
}
";

/// Gives the server's host these rules.
fn filter(server: &Host, rules: &str) {
    let script = server.folder().join("filter.nft");
    fs::write(&script, rules).unwrap();
    let mut command = server.namespace.command("nft");
    assert!(command.arg("-f").arg(&script).status().unwrap().success());
}

fn assert_short(run: usize, laptop: &Laptop, stream: &Stream) {
    let status = laptop.client.status();
    assert!(stream.gap < HOLE + stream.stall, "run {run}: {stream:?}, {status}");
    assert_eq!(status["session"]["remote"], "10.77.9.3:4433", "run {run}");
}

/// The server's process ends by `signal`, and another one listens at the other address.
fn restart(server: &mut Host, signal: Signal) {
    let mut old = server.daemon.take().unwrap();
    server.amend("[::]:4433", "10.77.9.3:4433");
    old.signal(signal).unwrap();
    old.wait(Duration::from_secs(5)).unwrap();
    server.start();
}

/// What is sent to the old address is lost without a word.
fn silence(server: &Host) {
    let rules = "table ip gone {\n chain in {\n type filter hook input priority 0;\n ip daddr 10.77.9.2 drop\n }\n}\n";
    filter(server, rules);
}

/// The new process does not know the connection of the old one, and says so.
#[test]
fn a_server_that_starts_again_at_another_address_costs_a_moment() {
    for run in 0..RUNS {
        let mut laptop = laptop();
        let stream = stream(&laptop.scene, LONG, || restart(&mut laptop.server, Signal::SIGKILL));
        assert_short(run, &laptop, &stream);
    }
}

/// It says goodbye.
#[test]
fn a_server_that_stops_and_is_started_at_another_address_costs_a_moment() {
    for run in 0..RUNS {
        let mut laptop = laptop();
        let stream = stream(&laptop.scene, LONG, || restart(&mut laptop.server, Signal::SIGTERM));
        assert_short(run, &laptop, &stream);
    }
}

/// Nobody at the old address says anything, and the new process knows no connection.
#[test]
fn a_server_whose_machine_dies_and_is_replaced_at_another_address_costs_a_moment() {
    for links in [&Access::BOTH[..], &[Access::Wifi]] {
        for run in 0..RUNS {
            let mut laptop = laptop();
            if let [Access::Wifi] = links {
                laptop.scene.disconnect(Access::Lte).unwrap();
            }
            let stream = stream(&laptop.scene, LONG, || {
                silence(&laptop.server);
                restart(&mut laptop.server, Signal::SIGKILL);
            });
            assert_short(run, &laptop, &stream);
        }
    }
}

/// The client has a name only, and its resolver knows the new address from the moment of the move on.
#[test]
fn a_server_that_moves_to_an_address_that_only_its_name_tells_costs_a_moment() {
    for is_new in [false, true] {
        for run in 0..RUNS {
            let folder = tempfile::tempdir().unwrap();
            let hosts = folder.path().join("hosts");
            fs::write(&hosts, "10.77.9.2 vpn.example\n").unwrap();
            let mut laptop = Laptop::connected();
            start_with(&mut laptop, &hosts, "/etc/hosts");
            laptop.client.connected();
            laptop.until_active(Access::Wifi);
            laptop.until(Access::Lte, "standby");
            laptop.scene.server().add_address("eth0", "10.77.9.3/24").unwrap();
            let stream = stream(&laptop.scene, LONG, || {
                fs::write(&hosts, "10.77.9.3 vpn.example\n").unwrap();
                silence(&laptop.server);
                if is_new {
                    restart(&mut laptop.server, Signal::SIGKILL);
                }
            });
            assert_short(run, &laptop, &stream);
            let sessions = if is_new { 2 } else { 1 };
            assert_eq!(laptop.client.status()["sessions"], sessions, "run {run}");
        }
    }
}

/// Two machines have the server's key, and only one of them the session.
#[test]
fn a_spare_server_is_used_when_the_first_one_dies_and_not_before() {
    for run in 0..RUNS {
        let mut laptop = laptop();
        laptop.server.daemon.take().unwrap().signal(Signal::SIGKILL).unwrap();
        laptop.server.amend("[::]:4433", "10.77.9.2:4433");
        laptop.server.start();
        let is_at_first = |status: &serde_json::Value| {
            let is_new = status["state"] == "connected" && status["sessions"] == 2;
            is_new && status["session"]["remote"] == "10.77.9.2:4433"
        };
        eventually("the first one", || laptop.client.try_status().filter(is_at_first));
        let mut spare = laptop.server.second("spare", &laptop.server);
        let text = fs::read_to_string(laptop.server.folder().join("roamd.toml")).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        spare.configure(&rest.replace("roam0", "spare0").replace("9.2:4433", "9.3:4433"));
        spare.start();
        let status = eventually("the spare one", || {
            let status = laptop.client.try_status()?;
            let mut paths = status["paths"].as_array()?.iter();
            let is_spare = |path: &&serde_json::Value| {
                path["why"] == "another server, which does not have this session"
            };
            paths.any(|path| is_spare(&path)).then_some(status)
        });
        assert!(is_at_first(&status), "{status}");
        let first = laptop.server.daemon.take().unwrap();
        let stream = stream(&laptop.scene, LONG, || first.signal(Signal::SIGKILL).unwrap());
        assert_short(run, &laptop, &stream);
        assert_eq!(laptop.client.status()["sessions"], 3, "run {run}");
    }
}

/// The same process answers at its other address from one moment to the next.
#[test]
fn a_server_that_loses_the_address_in_use_costs_a_moment() {
    for run in 0..RUNS {
        let laptop = laptop();
        let stream = stream(&laptop.scene, LONG, || {
            laptop.scene.server().delete_address("eth0", "10.77.9.2/24").unwrap();
        });
        assert_short(run, &laptop, &stream);
    }
}

/// The old address still sends, but hears nothing.
#[test]
fn a_server_that_is_deaf_at_the_address_in_use_costs_a_moment() {
    for run in 0..RUNS {
        let laptop = laptop();
        let stream = stream(&laptop.scene, LONG, || silence(&laptop.server));
        assert_short(run, &laptop, &stream);
    }
}

/// Another machine took the server's place: nobody tells the client that its connection is gone.
#[test]
fn a_server_that_forgets_and_cannot_say_so_costs_a_moment() {
    for listen in ["10.77.9.2:4433", "10.77.9.3:4433"] {
        for run in 0..RUNS {
            let mut laptop = laptop();
            let mut old = laptop.server.daemon.take().unwrap();
            laptop.server.amend("[::]:4433", listen);
            let stream = stream(&laptop.scene, LONG, || {
                filter(&laptop.server, NO_RESETS);
                old.signal(Signal::SIGKILL).unwrap();
                old.wait(Duration::from_secs(5)).unwrap();
                laptop.server.start();
            });
            let status = laptop.client.status();
            assert!(stream.gap < HOLE + stream.stall, "{listen}, run {run}: {stream:?}, {status}");
            assert_eq!(status["session"]["remote"], listen, "run {run}");
            assert_eq!(status["sessions"], 2, "run {run}: {status}");
        }
    }
}

/// The same with a single way to the server, over which it is asked as well.
#[test]
fn a_server_that_forgets_on_the_only_path_costs_a_moment() {
    for run in 0..RUNS {
        let mut laptop = Laptop::connected();
        laptop.scene.disconnect(Access::Lte).unwrap();
        let mut old = laptop.server.daemon.take().unwrap();
        let stream = stream(&laptop.scene, LONG, || {
            filter(&laptop.server, NO_RESETS);
            old.signal(Signal::SIGKILL).unwrap();
            old.wait(Duration::from_secs(5)).unwrap();
            laptop.server.start();
        });
        assert!(
            stream.gap < HOLE + stream.stall,
            "run {run}: {stream:?}, {}",
            laptop.client.status()
        );
    }
}
