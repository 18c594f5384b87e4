//! What people without a key say, and what becomes of it.
//!
//! ```text
//!   client eth0 10.77.0.2 ─────── c0 10.77.0.1, where a forger listens in the server's place
//! ```

use std::{net::UdpSocket, path::Path};

use roamd::internals::{
    config::{self, ClientConfig, Config},
    link::{monitor::Hints, netlink::Netlink},
    path::{
        handshake::Handshake,
        network::{Network as _, kernel::KernelNetwork},
        servers::ServerAddresses,
    },
    quic::{self, congestion::CongestionHandle, tls},
};

use crate::{
    forger,
    harness::{Net, PATIENCE, eventually},
    manager::Manager,
};

/// What sd_notify(3) would take for assignments, and a terminal for colours and a title.
const REASON: &str =
    "x\nFDSTOREREMOVE=1\nFDNAME=tun\nWATCHDOG=trigger\r\x1b[31m\x1b]0;y\x07\u{202e}z";
/// PROTOCOL_VIOLATION (RFC 9000 §20.1).
const PROTOCOL_VIOLATION: u64 = 0x0a;
/// TLS alert 120, as which a server refuses an ALPN that it does not speak.
const NO_APPLICATION_PROTOCOL: u64 = 0x178;

fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !c.is_control() && !('\u{200b}'..='\u{202e}').contains(&c))
}

/// Answers the handshakes of the first client of `net`, in the server's place.
fn forge(net: &Net, code: u64) {
    let socket = net.server.namespace.run(|| UdpSocket::bind("[::]:4433").unwrap()).unwrap();
    std::thread::spawn(move || forger::run(&socket, code, REASON.as_bytes()));
}

#[test]
fn text_of_a_forged_close_reaches_neither_the_service_manager_nor_the_terminal() {
    for code in [PROTOCOL_VIOLATION, NO_APPLICATION_PROTOCOL] {
        let mut net = Net::new(1);
        forge(&net, code);
        let manager = Manager::new(net.clients[0].folder());
        net.clients[0].start_with(&manager.variables());
        let client = &net.clients[0];
        let status = eventually("a failed attempt", || {
            let status = client.try_status()?;
            status["last-error"].is_string().then_some(status)
        });
        let error = status["last-error"].as_str().unwrap();
        assert!(error.contains("FDSTOREREMOVE"), "the forgery did not arrive: {error}");
        assert!(is_harmless(error) && !error.contains('\n'), "{error:?}");
        let shown = client.tell(&["status", "roamd"]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("FDSTOREREMOVE") && is_harmless(&shown), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("FDSTORE")), "{shown:?}");
        let log = client.log();
        assert!(log.contains("FDSTOREREMOVE") && is_harmless(&log), "{log:?}");
        assert!(!log.lines().any(|line| line.starts_with("FDSTORE")), "{log}");
        eventually("systemd is told", || {
            manager.assignments().iter().any(|it| it.contains("STATUS=not connected")).then_some(())
        });
        let said = manager.assignments();
        let known = ["STATUS=", "READY=", "FDNAME=tun", "FDSTORE=1", "FDSTOREREMOVE=1"];
        assert!(said.iter().all(|it| known.iter().any(|known| it.starts_with(known))), "{said:?}");
        // The daemon itself removes and stores its device once, at the start.
        let removed = said.iter().filter(|it| *it == "FDSTOREREMOVE=1").count();
        assert_eq!(removed, 1, "{said:?}");
    }
}

#[test]
fn a_client_that_starts_under_attack_connects_when_the_attack_is_over() {
    let mut net = Net::new(1);
    let manager = Manager::new(net.clients[0].folder());
    let socket = net.server.namespace.run(|| UdpSocket::bind("[::]:4433").unwrap()).unwrap();
    let forger = socket.try_clone().unwrap();
    forger.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let forger = std::thread::spawn(move || {
        let _ = forger::run(&forger, NO_APPLICATION_PROTOCOL, b"go away");
    });
    net.clients[0].start_with(&manager.variables());
    eventually("a failed attempt", || {
        net.clients[0].try_status()?["last-error"].as_str()?.contains("go away").then_some(())
    });
    socket.set_nonblocking(true).unwrap();
    drop(socket);
    forger.join().unwrap();
    net.server.start();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &[]);
}

#[test]
fn text_from_a_peer_stays_on_its_line_of_the_servers_log() {
    let mut net = Net::new(1);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let config = net.clients[0].folder().join("roamd.toml");
    let served = net.clients[0].namespace.run(move || say(&config)).unwrap();
    served.unwrap();
    let log = eventually("the session's end", || {
        let log = net.server.log();
        log.contains("disconnected").then_some(log)
    });
    assert!(log.contains("root logged in") && log.contains("evil 1"), "{log:?}");
    assert!(is_harmless(&log), "{log:?}");
    assert!(!log.lines().any(|line| line.starts_with("root")), "{log}");
}

/// A session with a hello, and an end, that no roamd would say.
fn say(config: &Path) -> anyhow::Result<()> {
    let Config::Client(config) = config::load(config)? else { unreachable!("a client's file") };
    let ClientConfig { private_key, servers, tun, quic, paths, .. } = config;
    let server = &servers[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let links = KernelNetwork::new(Netlink::open()?, 0, 0, Hints::none());
        let servers = ServerAddresses::new(&[]).resolve(&server.addresses).await?;
        let found = links.candidates(&servers, &paths).await?;
        let (candidate, _) = found.into_iter().next().unwrap();
        let transport = quic::transport(&quic, tun.mtu, CongestionHandle::default());
        let handshake = Handshake::new(&private_key, server.public_key, tls::TUNNEL, transport)?;
        let connected = handshake.run(&links, candidate, PATIENCE, None).await?;
        let (mut send, mut receive) = connected.connection.open_bi().await?;
        // [0, [{0: [1], 1: "evil 1...", 3: 1, 8: 1}]]
        let hello = b"\x82\x00\x81\xa4\x00\x81\x01\x01\x6devil 1\n\x1b[31mz\x03\x01\x08\x01";
        send.write_all(&[&[0, hello.len() as u8], &hello[..]].concat()).await?;
        receive.read_exact(&mut [0; 2]).await?;
        connected.connection.close(7u32.into(), b"x\nroot logged in\x1b[31m");
        connected.underlay.endpoint().wait_idle().await;
        Ok(())
    })
}

#[test]
fn a_link_whose_name_would_move_the_cursor_is_not_used() {
    let mut net = Net::new(1);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let rename = |from: &str, to: &str| {
        let link = |arguments: &[&str]| {
            let mut ip = net.clients[0].namespace.command("ip");
            assert!(ip.arg("link").arg("set").args(arguments).status().unwrap().success());
        };
        link(&[from, "down"]);
        link(&[from, "name", to]);
        link(&[to, "up"]);
    };
    rename("eth0", "e\x1b[31m");
    let mut client = net.clients.pop().unwrap();
    client.start();
    eventually("an attempt", || {
        client.try_status()?["last-error"].as_str()?.contains("no network link").then_some(())
    });
    let unused = &client.status()["unused-links"][0];
    assert_eq!(unused["link"], "e\\u{1b}[31m");
    assert_eq!(unused["why"], "its name is not printable");
    drop(client);
}
