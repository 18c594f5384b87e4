//! A configuration that changes while the daemon runs.

use std::{process::Output, time::Duration};

use nix::sys::signal::Signal;

use crate::harness::{Host, Net, eventually};

fn reload(host: &Host) -> Output {
    host.tell(&["reload", "roamd"])
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_removed_peer_is_cut_off_at_once_and_comes_back_by_itself_when_it_is_added_again() {
    let mut net = Net::new(2);
    net.start();
    let second = net.clients[1].key();
    let session = |host: &Host| host.status()["session"]["since"].as_f64().unwrap();
    let before = session(&net.clients[0]);
    net.server.amend(&second, "ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=");
    let output = reload(&net.server);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("in effect"), "{}", said(&output));
    let refused = eventually("a refusal", || {
        let status = net.clients[1].try_status()?;
        status["refused-since"].is_number().then_some(status)
    });
    assert!(refused["session"].is_null());
    assert!(session(&net.clients[0]) >= before);
    assert_eq!(net.clients[0].status()["sessions"], 1);
    net.clients[0].assert_ping("10.66.0.1", &[]);
    net.server.amend("ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=", &second);
    net.server.daemon.as_mut().unwrap().signal(Signal::SIGHUP).unwrap();
    // It asks within a minute.
    std::thread::sleep(Duration::from_secs_f64(refused["next-attempt"].as_f64().unwrap()));
    net.clients[1].connected();
    net.clients[1].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[1].status()["sessions"], 2);
}

#[test]
fn a_peers_new_address_takes_effect() {
    let mut net = Net::new(2);
    net.start();
    net.server.amend("\"10.66.0.2\"", "\"10.66.0.77\"");
    assert!(reload(&net.server).status.success());
    eventually("the new address", || {
        let status = net.clients[0].try_status()?;
        (status["addresses"][0] == "10.66.0.77/32" && status["state"] == "connected").then_some(())
    });
    net.clients[0].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[1].status()["sessions"], 1);
}

#[test]
fn a_broken_file_changes_nothing_and_says_why() {
    let mut net = Net::new(1);
    net.start();
    for host in [&net.server, &net.clients[0]] {
        host.amend("[tun]", "[tun]\nmut = 1300");
        let output = reload(host);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("did you mean tun.mtu?"), "{}", said(&output));
        host.amend("mut = 1300", "mtu = 1300");
        let output = reload(host);
        assert!(said(&output).contains("tun.mtu changes with a restart only"), "{}", said(&output));
    }
    net.clients[0].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[0].status()["mtu"], 1400);
}

#[test]
fn a_clients_routes_and_preferences_change_without_a_new_session() {
    let mut net = Net::new(1);
    net.start();
    net.clients[0].amend("[tun]", "[tun]\nroutes = [\"192.0.2.0/24\"]");
    let output = reload(&net.clients[0]);
    assert!(output.status.success(), "{}", said(&output));
    let client = &net.clients[0];
    eventually("the new route", || {
        let mut command = client.namespace.command("ip");
        let route = command.args(["route", "get", "192.0.2.1"]).output().unwrap();
        String::from_utf8_lossy(&route.stdout).contains("dev roam0").then_some(())
    });
    client.amend("[tun]", "[paths]\nignore = [\"eth*\"]\n[tun]");
    assert!(reload(client).status.success());
    eventually("the ignored link is not used", || {
        let status = client.try_status()?;
        status["paths"].as_array()?.is_empty().then_some(())
    });
    client.amend("ignore = [\"eth*\"]", "");
    assert!(reload(client).status.success());
    eventually("the link is used again", || {
        let output = client.ping("10.66.0.1", &["-c", "1", "-W", "1"]);
        output.status.success().then_some(())
    });
    assert_eq!(client.status()["sessions"], 1);
}

#[test]
fn changes_that_need_a_restart_are_named_to_the_service_manager_until_it() {
    let mut net = Net::new(0);
    let path = net.server.folder().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    net.server.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let mut told = [0; 4096];
    let mut until = |text: &str| loop {
        let length = manager.recv(&mut told).unwrap_or_else(|_| panic!("never told: {text}"));
        if String::from_utf8_lossy(&told[..length]).contains(text) {
            return;
        }
    };
    until("STATUS=listening on [::]:4433\n");
    net.server.amend("[tun]", "[tun]\nnat = true");
    let output = reload(&net.server);
    assert!(said(&output).contains("tun.nat changes with a restart only"), "{}", said(&output));
    until("STATUS=listening on [::]:4433 (tun.nat changes with a restart only)\n");
    net.server.amend("nat = true", "");
    assert!(reload(&net.server).status.success());
    until("STATUS=listening on [::]:4433\n");
}
