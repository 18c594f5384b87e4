//! The server's name, and what it stands for.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use roamd_lab::Access;

use crate::{
    harness::eventually,
    roaming::{Laptop, path},
};

/// Starts the client anew with the server's name instead of its address, and with `file` in the place of another.
pub(crate) fn start_with(laptop: &mut Laptop, file: &Path, place: &str) {
    start_as("vpn.example:4433", laptop, file, place);
}

fn start_as(server: &str, laptop: &mut Laptop, file: &Path, place: &str) {
    laptop.client.daemon = None;
    laptop.client.amend("10.77.9.2:4433", server);
    let script = format!("mount --bind $0 {place} && exec \"$@\"");
    let arguments = ["--mount", "sh", "-c", &script, file.to_str().unwrap()];
    laptop.client.start_in("unshare", &arguments);
}

#[test]
fn a_server_that_moves_is_found_by_its_name_while_the_old_address_works() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "10.77.9.2 vpn.example\n").unwrap();
    let mut laptop = Laptop::connected();
    start_with(&mut laptop, &hosts, "/etc/hosts");
    laptop.client.connected();
    laptop.until_active(Access::Wifi);
    laptop.scene.server().add_address("eth0", "10.77.9.3/24").unwrap();
    fs::write(&hosts, "10.77.9.3 vpn.example\n").unwrap();
    // A network changes, and the client looks.
    laptop.scene.client().add_address("lo", "192.0.2.77/32").unwrap();
    eventually("a path to the new address", || {
        let status = laptop.client.try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        paths
            .any(|path| path["server"] == "10.77.9.3:4433" && path["state"] == "standby")
            .then_some(())
    });
    // The old one is used for as long as it works.
    laptop.client.assert_ping("10.66.0.1", &[]);
    assert_eq!(laptop.client.status()["sessions"], 1);
    let script = folder.path().join("script.nft");
    let drop = "table ip gone {\n chain in {\n type filter hook input priority 0;\n \
                ip daddr 10.77.9.2 drop\n }\n}\n";
    fs::write(&script, drop).unwrap();
    let mut command = laptop.scene.server().command("nft");
    assert!(command.arg("-f").arg(&script).status().unwrap().success());
    eventually("the new address is used", || {
        laptop.client.ping("10.66.0.1", &["-c", "1", "-W", "1"]);
        let status = laptop.client.try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        paths
            .any(|path| path["server"] == "10.77.9.3:4433" && path["state"] == "active")
            .then_some(())
    });
    laptop.client.assert_ping("10.66.0.1", &[]);
    assert_eq!(laptop.client.status()["sessions"], 1, "the same connection");
}

#[test]
fn an_answer_with_hundreds_of_addresses_is_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    // The real one is somewhere among the first, as it would be in an answer that keeps what was true.
    let mut lines = String::from("10.77.9.77 vpn.example\n10.77.9.2 vpn.example\n");
    for number in 0..900 {
        lines += &format!("10.78.{}.{} vpn.example\n", number / 250, number % 250 + 1);
    }
    fs::write(&hosts, lines).unwrap();
    let mut laptop = Laptop::connected();
    start_with(&mut laptop, &hosts, "/etc/hosts");
    laptop.client.connected();
    laptop.until_active(Access::Wifi);
    laptop.client.assert_ping("10.66.0.1", &["-c", "20"]);
    let status = laptop.client.status();
    let paths = status["paths"].as_array().unwrap().len();
    assert!((3..=16).contains(&paths), "eight addresses over two links: {status}");
    let process = laptop.client.daemon.as_ref().unwrap().pid();
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    assert!(open < 100, "{open} descriptors");
}

#[test]
fn a_resolver_that_does_not_answer_holds_up_neither_a_start_nor_a_switch_after_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 10.77.9.99\noptions timeout:10 attempts:3\n").unwrap();
    let mut laptop = Laptop::connected();
    let both = "10.77.9.2:4433\", \"vpn.example:4433";
    let begun = Instant::now();
    start_as(both, &mut laptop, &resolver, "/etc/resolv.conf");
    laptop.client.connected();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    laptop.until_active(Access::Wifi);
    eventually("a warm standby", || {
        (path(&laptop.client.status(), Access::Lte)?["state"] == "standby").then_some(())
    });
    let moved = laptop.stream(Duration::from_secs(4), || {
        assert!(laptop.client.tell(&["reload", "roamd"]).status.success());
        laptop.scene.disconnect(Access::Wifi).unwrap();
    });
    assert!(moved.gap < Duration::from_secs(1), "{moved:?}");
}
