//! The server's name, and what it stands for.

use std::fs;

use roamd::lab::Access;

use crate::{harness::eventually, roaming::Laptop};

#[test]
fn a_server_that_moves_is_found_by_its_name_while_the_old_address_works() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "10.77.9.2 vpn.example\n").unwrap();
    let mut laptop = Laptop::connected();
    laptop.client.daemon = None;
    laptop.client.amend("10.77.9.2:4433", "vpn.example:4433");
    laptop.client.start_in(
        "unshare",
        &[
            "--mount",
            "sh",
            "-c",
            "mount --bind $0 /etc/hosts && exec \"$@\"",
            hosts.to_str().unwrap(),
        ],
    );
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
