//! A server that moves to another of the addresses that its clients know.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{
    harness::eventually,
    roaming::{Laptop, Stream, stream},
};

/// Both addresses of the server, as a client's configuration lists them.
const BOTH: &str = "10.77.9.2:4433\", \"10.77.9.3:4433";
const RUNS: usize = 3;
/// A client is without its server for so long at most.
const HOLE: Duration = Duration::from_secs(3);
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
        let script = laptop.server.folder().join("deaf.nft");
        let drop = "table ip deaf {\n chain in {\n type filter hook input priority 0;\n \
                    ip daddr 10.77.9.2 drop\n }\n}\n";
        std::fs::write(&script, drop).unwrap();
        let stream = stream(&laptop.scene, LONG, || {
            let mut command = laptop.scene.server().command("nft");
            assert!(command.arg("-f").arg(&script).status().unwrap().success());
        });
        assert_short(run, &laptop, &stream);
    }
}
