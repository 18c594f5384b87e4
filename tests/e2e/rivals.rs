//! Two machines with one key.

use std::{fs, thread::sleep, time::Duration};

use crate::harness::{Host, Net, eventually};

fn displaced(host: &Host, by: &str) {
    eventually("it is displaced", || {
        let status = host.try_status()?;
        let told = format!("another machine uses this key, from {by}: ");
        let is_told = status["last-error"].as_str()?.starts_with(&told);
        (status["state"] == "waiting" && is_told).then_some(())
    });
}

fn rival(net: &Net, address: &str) {
    eventually("the server knows", || {
        (net.server.try_status()?["peers"][0]["rival"] == address).then_some(())
    });
}

#[test]
fn the_newer_of_two_machines_with_one_key_stays_and_both_sides_are_told() {
    let mut net = Net::new(2);
    fs::copy(net.clients[0].folder().join("own.key"), net.clients[1].folder().join("own.key"))
        .unwrap();
    net.configure_server("[::]:4433", "");
    // One peer: both have its key.
    let second = "[[peer]]\nname = \"client1\"";
    let file = net.server.folder().join("roamd.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.find(second).unwrap()]).unwrap();
    net.start_only(0);
    assert_eq!(net.server.status()["peers"][0]["rival"], serde_json::Value::Null);

    net.clients[1].start();
    net.clients[1].connected();
    displaced(&net.clients[0], "10.77.1.2");
    rival(&net, "10.77.0.2");
    sleep(Duration::from_secs(8));
    let status = net.clients[1].status();
    assert_eq!((&status["state"], &status["sessions"]), (&"connected".into(), &1.into()));
    assert_eq!(net.clients[0].status()["sessions"], 1, "it does not take the session back");
    net.clients[1].assert_ping("10.66.0.1", &[]);
    let text = String::from_utf8(net.server.tell(&["status", "roamd"]).stdout).unwrap();
    assert!(text.contains("client0: another machine with the same key is at 10.77.0.2"), "{text}");

    // Somebody wants it here.
    net.clients[0].daemon = None;
    net.clients[0].start();
    net.clients[0].connected();
    displaced(&net.clients[1], "10.77.0.2");
    rival(&net, "10.77.1.2");
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_client_that_was_killed_is_no_rival_of_itself() {
    let mut net = Net::new(1);
    net.start();
    for _ in 0..3 {
        let killed = net.clients[0].daemon.take().unwrap();
        killed.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
        drop(killed);
        net.clients[0].start();
        net.clients[0].connected();
    }
    sleep(Duration::from_secs(7));
    assert_eq!(net.clients[0].status()["sessions"], 1);
    assert_eq!(net.server.status()["peers"][0]["rival"], serde_json::Value::Null);
}
