//! A server that moves to another of the addresses that its clients know.

use std::time::Duration;

use nix::sys::signal::Signal;
use roamd_lab::Access;

use crate::{
    harness::{Host, eventually},
    roaming::{Laptop, Stream, stream},
};

/// Both addresses of the server, as a client's configuration lists them.
const BOTH: &str = "10.77.9.2:4433\", \"10.77.9.3:4433";
const RUNS: usize = 3;
/// A client is without its server for so long at most.
const HOLE: Duration = Duration::from_secs(3);
/// The same where nobody tells the client, and it has to find out. A client that does not waits to the end of the
/// stream.
const FORGOTTEN: Duration = Duration::from_secs(3);
/// Longer than the idle timeout.
const LONG: Duration = Duration::from_secs(15);

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
    std::fs::write(&script, rules).unwrap();
    let mut command = server.namespace.command("nft");
    assert!(command.arg("-f").arg(&script).status().unwrap().success());
}

fn assert_short(run: usize, laptop: &Laptop, stream: &Stream) {
    let status = laptop.client.status();
    assert!(stream.gap < HOLE, "run {run}: {stream:?}, {status}");
    assert_eq!(status["session"]["remote"], "10.77.9.3:4433", "run {run}");
}

/// The new process does not know the connection of the old one, and says so.
#[test]
fn a_server_that_starts_again_at_another_address_costs_a_moment() {
    for run in 0..RUNS {
        let mut laptop = laptop();
        let mut old = laptop.server.daemon.take().unwrap();
        laptop.server.amend("[::]:4433", "10.77.9.3:4433");
        let stream = stream(&laptop.scene, LONG, || {
            old.signal(Signal::SIGKILL).unwrap();
            old.wait(Duration::from_secs(5)).unwrap();
            laptop.server.start();
        });
        assert_short(run, &laptop, &stream);
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
        let deaf = "table ip deaf {\n chain in {\n type filter hook input priority 0;\n \
                    ip daddr 10.77.9.2 drop\n }\n}\n";
        let stream = stream(&laptop.scene, LONG, || {
            filter(&laptop.server, deaf);
        });
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
            assert!(stream.gap < FORGOTTEN, "{listen}, run {run}: {stream:?}, {status}");
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
        assert!(stream.gap < FORGOTTEN, "run {run}: {stream:?}, {}", laptop.client.status());
    }
}
