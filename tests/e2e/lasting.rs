//! What a session outlives, and how it ends.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use roamd_lab::veth;

use crate::{
    harness::{Net, eventually, inner_v4},
    roaming::shown,
};

/// Long enough for the tests' patience, so that it cannot be what saves them.
const SLOW_TO_NOTICE: &str = "[quic]\nidle-timeout = \"60s\"\nkeep-alive = \"20s\"";

#[test]
fn a_killed_server_that_returns_is_found_at_once_and_device_and_addresses_stay() {
    let mut net = Net::new(1);
    net.configure_server("[::]:4433", SLOW_TO_NOTICE);
    net.configure_client(0, "10.77.0.1:4433", SLOW_TO_NOTICE);
    net.start();
    let device = net.clients[0].namespace.ifindex("roam0").unwrap();
    let mut traffic = net.clients[0].namespace.command("ping");
    traffic.args(["-i", "0.05", "10.66.0.1"]);
    let folder = tempfile::tempdir().unwrap();
    let _traffic = net.clients[0].namespace.spawn("ping", traffic, folder.path()).unwrap();

    net.server.daemon.as_ref().unwrap().signal(Signal::SIGKILL).unwrap();
    net.server.exit_code();
    net.server.start();
    eventually("a second session", || {
        (net.clients[0].try_status()?["sessions"].as_u64()? == 2).then_some(())
    });
    net.clients[0].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[0].namespace.ifindex("roam0").unwrap(), device);
    let status = net.clients[0].status();
    assert_eq!(status["addresses"][0], format!("{}/32", inner_v4(0)));
    assert!(status["last-error"].as_str().unwrap().contains("reset"), "{status}");
}

#[test]
fn a_server_that_stops_says_goodbye_and_is_found_again() {
    let mut net = Net::new(1);
    net.start();
    let begun = Instant::now();
    assert!(net.server.daemon.as_mut().unwrap().stop().unwrap().success());
    let took = shown(begun.elapsed());
    // 450 ms measured on a busy machine.
    assert!(took < Duration::from_millis(1500), "{took:?}");
    eventually("the client hears", || {
        let status = net.clients[0].try_status()?;
        status["last-error"].as_str()?.contains("the server stops").then_some(())
    });
    net.server.start();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_client_that_stops_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut net = Net::new(1);
        net.configure_server("[::]:4433", SLOW_TO_NOTICE);
        net.start();
        net.clients[0].daemon.as_ref().unwrap().signal(signal).unwrap();
        assert_eq!(net.clients[0].exit_code(), Some(0));
        net.clients[0].namespace.ifindex("roam0").unwrap_err();
        assert!(net.clients[0].try_status().is_none(), "the control socket is gone");
        eventually("the server heard the goodbye", || {
            net.server.status()["peers"][0]["session"].is_null().then_some(())
        });
    }
}

#[test]
fn the_same_key_takes_its_session_over_without_waiting_for_a_timeout() {
    let mut net = Net::new(2);
    net.configure_server("[::]:4433", SLOW_TO_NOTICE);
    net.start();
    // The first client falls silent: the server does not know yet.
    net.clients[0].daemon.as_ref().unwrap().signal(Signal::SIGSTOP).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let namespace = net.clients[1].namespace.clone();
    net.clients[1].daemon.as_mut().unwrap().stop().unwrap();
    let mut twin = crate::harness::Host::new("twin", namespace, folder.path());
    let key = net.clients[0].folder().join("own.key");
    std::fs::copy(key, folder.path().join("twin/own.key")).unwrap();
    twin.configure(&crate::harness::client_toml("10.77.1.1:4433", &net.server.key(), ""));
    twin.start();
    twin.connected();
    twin.assert_ping("10.66.0.1", &["-I", &inner_v4(0)]);
    let remote = net.server.status()["peers"][0]["session"]["remote"].clone();
    assert!(remote.as_str().unwrap().starts_with("10.77.1.2:"), "{remote}");
}

#[test]
fn an_outage_longer_than_the_idle_timeout_leaves_device_and_addresses() {
    let mut net = Net::new(1);
    let short = "[quic]\nidle-timeout = \"5s\"\nkeep-alive = \"1s\"";
    net.configure_client(0, "10.77.0.1:4433", short);
    net.start();
    let device = net.clients[0].namespace.ifindex("roam0").unwrap();
    net.server.namespace.set_down("c0").unwrap();
    eventually("the client gave the connection up", || {
        (net.clients[0].try_status()?["state"] != "connected").then_some(())
    });
    net.server.namespace.set_up("c0").unwrap();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &["-I", &inner_v4(0)]);
    assert_eq!(net.clients[0].namespace.ifindex("roam0").unwrap(), device);
}

#[test]
fn a_client_that_starts_without_a_network_connects_when_there_is_one() {
    let mut net = Net::new(1);
    net.clients[0].namespace.set_down("eth0").unwrap();
    net.server.start();
    net.clients[0].start();
    eventually("the client waits", || {
        let status = net.clients[0].try_status()?;
        status["last-error"].as_str()?.contains("no network link has a route").then_some(())
    });
    net.clients[0].namespace.set_up("eth0").unwrap();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_device_that_somebody_deletes_ends_the_daemon_with_a_reason() {
    let mut net = Net::new(1);
    net.start();
    net.clients[0].namespace.delete_link("roam0").unwrap();
    assert_ne!(net.clients[0].exit_code(), Some(0));
    assert!(net.clients[0].log().contains("TUN device roam0 is gone"), "{}", net.clients[0].log());
}

#[test]
fn a_link_that_comes_and_goes_beside_the_tunnel_disturbs_nothing() {
    let mut net = Net::new(1);
    net.start();
    let client = &net.clients[0];
    for _ in 0..10 {
        veth(&client.namespace, "docker0", &net.server.namespace, "other0").unwrap();
        client.namespace.set_up("docker0").unwrap();
        client.namespace.add_address("docker0", "172.17.0.1/16").unwrap();
        client.namespace.delete_link("docker0").unwrap();
    }
    client.assert_ping("10.66.0.1", &[]);
    let status = client.status();
    assert_eq!((&status["sessions"], &status["switches"]), (&1.into(), &serde_json::json!([])));
}
