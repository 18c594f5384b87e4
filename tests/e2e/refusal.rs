//! Who is not let in, and what both sides say.

use nix::sys::signal::Signal;

use crate::{
    harness::{Net, client_toml, eventually},
    manager::Manager,
};

#[test]
fn an_unknown_key_is_refused_with_a_reason_on_both_sides() {
    let mut net = Net::new(2);
    // The second client is not in the server's configuration.
    let stranger = net.clients.pop().unwrap();
    net.configure_server("[::]:4433", "");
    net.clients.push(stranger);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let stranger = &mut net.clients[1];
    stranger.start();
    assert_eq!(stranger.exit_code(), Some(69));
    let key = stranger.key();
    let said = stranger.log();
    assert!(said.contains("refused this client's key"), "{said}");
    assert!(said.contains(&format!("public-key = \"{key}\"")), "{said}");
    assert!(net.server.log().contains(&key), "the server names the key");
    assert_eq!(net.server.status()["refused-keys"], 1);
}

#[test]
fn a_service_that_is_refused_asks_again_and_keeps_its_seal() {
    let mut net = Net::new(1);
    let known = net.clients[0].key();
    net.server.amend(&known, "ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=");
    net.clients[0].amend("[tun]", "[tun]\nroutes = [\"default\"]\nkill-switch = true");
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let manager = Manager::new(net.clients[0].folder());
    net.clients[0].start_with(&manager.variables());
    let client = &net.clients[0];
    let refused = eventually("a refusal", || {
        client.try_status().filter(|status| status["refused-since"].is_number())
    });
    assert_eq!(refused["state"], "waiting");
    assert!(refused["last-error"].as_str().unwrap().contains(&client.key()), "{refused}");
    assert!((20.0..=60.0).contains(&refused["next-attempt"].as_f64().unwrap()), "{refused}");
    let said = manager.assignments();
    let status = said.iter().find(|it| it.starts_with("STATUS=refused by the server since "));
    assert!(status.is_some_and(|it| it.contains("; asks again at ")), "{said:?}");
    assert!(said.iter().any(|it| it == "READY=1"), "whoever starts it waits for this: {said:?}");
    let tables = client.namespace.command("nft").args(["list", "tables"]).output().unwrap();
    assert!(String::from_utf8_lossy(&tables.stdout).contains("roamd-roam0"), "{tables:?}");

    net.server.amend("ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=", &known);
    net.server.daemon.as_mut().unwrap().signal(Signal::SIGHUP).unwrap();
    // Another network may lead to another server.
    net.clients[0].namespace.add_address("eth0", "10.77.0.3/24").unwrap();
    net.clients[0].connected();
    let status = net.clients[0].status();
    assert!(status["refused-since"].is_null() && status["next-attempt"].is_null(), "{status}");
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_server_with_another_key_is_refused() {
    let mut net = Net::new(1);
    let wrong = net.clients[0].key();
    let other = crate::harness::roamd(&["genkey"]);
    assert!(other.status.success());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &other.stdout).unwrap();
    let output = crate::harness::roamd(&["pubkey", file.path().to_str().unwrap()]);
    let expected = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_ne!(expected, wrong);
    net.clients[0].configure(&client_toml("10.77.0.1:4433", &expected, ""));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    net.clients[0].start();
    assert_eq!(net.clients[0].exit_code(), Some(69));
    let said = net.clients[0].log();
    assert!(said.contains(&expected) && said.contains(&net.server.key()), "{said}");
}

#[test]
fn a_device_name_in_use_is_an_error_that_names_it() {
    let mut net = Net::new(1);
    net.start();
    let folder = tempfile::tempdir().unwrap();
    let namespace = net.clients[0].namespace.clone();
    let mut second = crate::harness::Host::new("second", namespace, folder.path());
    second.configure(&client_toml("10.77.0.1:4433", &net.server.key(), ""));
    second.start();
    assert_ne!(second.exit_code(), Some(0));
    assert!(second.log().contains("cannot create TUN device roam0"), "{}", second.log());
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let mut net = Net::new(0);
    let taken =
        net.server.namespace.run(|| std::net::UdpSocket::bind("[::]:4433").unwrap()).unwrap();
    net.server.start();
    assert_ne!(net.server.exit_code(), Some(0));
    assert!(net.server.log().contains("cannot listen on [::]:4433"), "{}", net.server.log());
    drop(taken);
}
