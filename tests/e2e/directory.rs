//! Peers in etcd: servers as processes, and `roamd peer --directory`.

use std::{
    fs,
    process::{Command, Output, Stdio},
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;
use roamd_lab::{Process, etcd::Member};

use crate::harness::{Host, Net, PROGRAM, eventually, inner_v4, start_etcd};

/// A net whose server has its first client in its file and nobody else, and an etcd on the server's host.
struct Site {
    net: Net,
    etcd: Member,
    running: Option<Process>,
}

impl Site {
    fn new(clients: u8) -> Self {
        let net = Net::new(clients);
        let [for_clients, for_peers] = [2379, 2380].map(|port| ([127, 0, 0, 1], port).into());
        let etcd = Member::new("m0", net.server.folder(), for_clients, for_peers);
        let directory = format!(
            "[directory]\netcd = {{ endpoints = [\"{}\"], prefix = \"/roamd/home\" }}",
            etcd.endpoint()
        );
        net.configure_server("[::]:4433", "");
        net.server.amend("[tun]", &format!("{directory}\n[tun]"));
        let file = net.server.file();
        let text = fs::read_to_string(&file).unwrap();
        let second = text.match_indices("[[peer]]").nth(1).map_or(text.len(), |(at, _)| at);
        fs::write(&file, &text[..second]).unwrap();
        let mut site = Self { net, etcd, running: None };
        site.start_etcd();
        site
    }

    fn start_etcd(&mut self) {
        let server = &self.net.server;
        self.running = Some(start_etcd(&self.etcd, &server.namespace, server.folder()));
    }

    fn kill_etcd(&mut self) {
        let mut etcd = self.running.take().unwrap();
        etcd.signal(Signal::SIGKILL).unwrap();
        etcd.stop().unwrap();
    }

    fn start_server(&mut self) {
        let state = self.net.server.folder().to_str().unwrap().to_owned();
        self.net.server.start_with(&[("STATE_DIRECTORY", &state)]);
        eventually("the server listens", || self.net.server.try_status());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.net.server.namespace.command(PROGRAM);
        command.arg("peer").args(arguments).arg("--directory").arg(self.net.server.file());
        command
    }

    fn peer(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.peer(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// Adds a client as it is.
    fn add(&self, client: usize) {
        let key = self.net.clients[client].key();
        let name = format!("client{client}");
        let add = ["add", &name, "--endpoint", "vpn.example.net", "--public-key", &key];
        let said = self.done(&add);
        let address = inner_v4(client);
        assert!(said.starts_with(&format!("{name} has {address}, ")), "{said}");
    }

    fn directory(&self) -> serde_json::Value {
        self.net.server.status()["directory"].clone()
    }

    fn doctor(&self) -> String {
        let output = self.net.server.tell(&["doctor", self.net.server.file().to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn until_state(&self, state: &str) {
        eventually(state, || (self.directory()["state"] == state).then_some(()));
    }
}

fn refused(client: &Host) -> Option<()> {
    client.try_status()?["refused-since"].is_number().then_some(())
}

#[test]
fn a_peer_added_in_etcd_connects_and_a_removed_one_is_cut_off() {
    let mut site = Site::new(3);
    site.start_server();
    site.add(1);
    site.add(2);
    eventually("both are known", || (site.directory()["peers"] == 2).then_some(()));
    for client in &mut site.net.clients {
        client.start();
    }
    for client in &site.net.clients {
        client.connected();
        client.assert_ping("10.66.0.1", &[]);
    }
    let said = site.done(&["remove", "client1"]);
    let removed = Instant::now();
    assert_eq!(said, "client1 is not in /roamd/home any more\n");
    eventually("a refusal", || refused(&site.net.clients[1]));
    eprintln!("cut off {:?} after roamd peer remove", removed.elapsed());
    for stays in [0, 2] {
        assert_eq!(site.net.clients[stays].status()["sessions"], 1);
        site.net.clients[stays].assert_ping("10.66.0.1", &[]);
    }
    // The server's own file has this name.
    let again = site.peer(&["add", "client0", "--endpoint", "vpn.example.net"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("has a peer called client0 already"), "{said}");
    assert!(again.stdout.is_empty(), "no key for nobody");
}

#[test]
fn a_server_goes_on_and_starts_again_without_etcd() {
    let mut site = Site::new(3);
    site.start_server();
    site.add(1);
    site.add(2);
    eventually("both are known", || (site.directory()["peers"] == 2).then_some(()));
    let doctor = site.doctor();
    assert!(doctor.contains("ok    directory: etcd answers, 2 may connect"), "{doctor}");
    site.done(&["remove", "client2"]);
    eventually("one is gone", || (site.directory()["peers"] == 1).then_some(()));
    site.net.clients[1].start();
    site.net.clients[1].connected();
    site.kill_etcd();
    site.until_state("away");
    site.net.clients[1].assert_ping("10.66.0.1", &[]);
    let doctor = site.doctor();
    assert!(
        doctor.contains("bad   directory: etcd does not tell what is below /roamd/home: "),
        "{doctor}"
    );

    site.net.server.daemon.as_ref().unwrap().signal(Signal::SIGKILL).unwrap();
    assert_eq!(site.net.server.exit_code(), None);
    site.start_server();
    site.until_state("away");
    eventually("a new session", || (site.net.clients[1].status()["sessions"] == 2).then_some(()));
    site.net.clients[1].connected();
    site.net.clients[1].assert_ping("10.66.0.1", &[]);
    site.net.clients[2].start();
    assert_eq!(site.net.clients[2].exit_code(), Some(69), "it is refused");
    let shown = site.net.server.tell(&["status", "roamd"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("directory    /roamd/home, away for "), "{shown}");
    assert!(shown.contains(", 1 peers of revision "), "{shown}");

    site.start_etcd();
    site.until_state("current");
    site.done(&["remove", "client1"]);
    eventually("a refusal", || refused(&site.net.clients[1]));
}

#[test]
fn twenty_commands_at_once_give_no_address_twice() {
    let mut site = Site::new(1);
    site.start_server();
    site.until_state("current");
    thread::scope(|scope| {
        for admin in ["anna", "ben"] {
            let site = &site;
            scope.spawn(move || {
                let commands: Vec<_> = (0..10)
                    .map(|n| {
                        let name = format!("{admin}{n}");
                        let mut add =
                            site.command(&["add", &name, "--endpoint", "vpn.example.net"]);
                        add.stdout(Stdio::null()).spawn().unwrap()
                    })
                    .collect();
                for mut command in commands {
                    assert!(command.wait().unwrap().success());
                }
            });
        }
    });
    let listed = site.peer(&["list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let addresses: std::collections::HashSet<_> =
        listed.lines().map(|line| line.rsplit_once("  ").unwrap().1).collect();
    assert_eq!((listed.lines().count(), addresses.len()), (20, 20), "{listed}");
    assert!(!listed.contains("10.66.0.1,") && !listed.contains("10.66.0.2,"), "{listed}");

    // An admin's file has no key.
    let short = site.net.server.folder().join("admin.toml");
    let endpoint = site.etcd.endpoint();
    let text = format!(
        "[directory]\netcd = {{ endpoints = \"{endpoint}\", prefix = \"/roamd/home\" }}\n\
         [tun]\naddresses = \"10.66.0.253/24\"\n"
    );
    fs::write(&short, text).unwrap();
    let mut add = site.net.server.namespace.command(PROGRAM);
    add.args(["peer", "add", "nas", "--endpoint", "vpn.example.net", "--directory"]).arg(&short);
    let output = add.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // The server has told its own address. The next one is in its file alone, which the admin's does not know.
    assert_eq!(said, "nas has 10.66.0.2 in /roamd/home\n");
    let client = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(client.contains("public-key = \"the server's key, as roamd pubkey"), "{client}");
}
