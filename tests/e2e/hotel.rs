//! A network that lets no UDP out, and the server's TCP port.
//!
//! ```text
//!  client0 eth0 10.77.0.2 ──── c0 10.77.0.1 server: UDP 4433 (dropped by nftables at times), TCP 443
//! ```

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    edges::said,
    harness::{Host, Net, eventually, transfer},
};

/// From the start to the first answer, and the longest stall at a move to TCP: TCP must not wait for the five seconds that
/// a probe has. Undisturbed it is some 400 ms.
const SOON: Duration = Duration::from_millis(1500);

/// Both addresses of the server, as the client's configuration lists them.
const BOTH: &str = "10.77.0.1:4433\", \"[fd77:0::1]:4433";

/// A client that knows the server's TCP port; nothing runs.
fn hotel(server: &str) -> Net {
    let net = Net::new(1);
    net.configure_server("[::]:4433", "listen-tcp = \"[::]:443\"");
    net.configure_client(0, server, "");
    net.clients[0].amend("[server]\n", "[server]\ntcp-port = 443\n");
    net
}

/// Drops UDP to and from the server, or lets it through.
fn let_udp_through(net: &Net, through: bool) {
    let commands: &[&str] = if through {
        &["delete table inet hotel"]
    } else {
        &[
            "add table inet hotel",
            "add chain inet hotel input { type filter hook input priority -10; }",
            "add rule inet hotel input udp dport 4433 counter drop",
            "add chain inet hotel output { type filter hook output priority -10; }",
            "add rule inet hotel output udp sport 4433 counter drop",
        ]
    };
    net.nft(commands);
}

/// Drops TCP to the server, or lets it through.
fn let_tcp_through(net: &Net, through: bool) {
    let commands: &[&str] = if through {
        &["delete table inet dead"]
    } else {
        &[
            "add table inet dead",
            "add chain inet dead input { type filter hook input priority -10; }",
            "add rule inet dead input tcp dport 443 counter drop",
        ]
    };
    net.nft(commands);
}

#[test]
fn a_client_whose_network_drops_udp_from_the_start_comes_over_tcp() {
    for server in ["10.77.0.1:4433", "[fd77:0::1]:4433", BOTH] {
        let mut net = hotel(server);
        let_udp_through(&net, false);
        net.server.start();
        eventually("the server listens", || net.server.try_status());
        let begun = Instant::now();
        net.clients[0].start();
        net.clients[0].connected();
        net.clients[0].assert_ping("10.66.0.1", &["-c", "1"]);
        let first = begun.elapsed();
        assert!(first < SOON, "{first:?}");
        assert_eq!(net.clients[0].path_in_use().unwrap()["transport"], "tcp");
        let status = net.server.status();
        assert_eq!(status["tcp"]["listen"], "[::]:443");
        let remote = status["peers"][0]["session"]["remote"].as_str().unwrap();
        assert!(remote.starts_with("10.77.0.2:") || remote.starts_with("[fd77::2]:"), "{remote}");
        transfer(&net.clients[0], &net.server, "10.66.0.1", 4 << 20);
        transfer(&net.server, &net.clients[0], "10.66.0.2", 4 << 20);
        // The TCP connection is that of a known peer: it stays.
        std::thread::sleep(Duration::from_secs(17));
        net.clients[0].assert_ping("fd66::1", &[]);
        assert_eq!(net.clients[0].path_in_use().unwrap()["transport"], "tcp");
    }
}

#[test]
fn a_tunnel_moves_to_tcp_when_udp_is_dropped_and_back_when_it_is_not() {
    let mut net = hotel(BOTH);
    net.start();
    net.clients[0].until_path("transport", "udp");
    // A busy machine may have tried TCP, too.
    let is_unused = || (net.server.status()["tcp"]["connections"] == 0).then_some(());
    eventually("TCP is not used", is_unused);
    let ping = |net: &Net| {
        let mut command = net.clients[0].namespace.command("ping");
        command.args(["-n", "-q", "-i", "0.02", "-c", "1500", "10.66.0.1"]);
        command.stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let pinging = ping(&net);
    std::thread::sleep(Duration::from_secs(2));
    let_udp_through(&net, false);
    net.clients[0].until_path("transport", "tcp");
    net.clients[0].assert_ping("10.66.0.1", &[]);
    std::thread::sleep(Duration::from_secs(2));
    let_udp_through(&net, true);
    net.clients[0].until_path("transport", "udp");
    let gap = net.clients[0].gap_of_switch("to-transport", "tcp");
    assert!(gap < SOON.as_secs_f64() * 1000.0, "{gap}");
    net.clients[0].assert_ping("10.66.0.1", &[]);
    let output = pinging.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    eventually("TCP is closed", || (net.server.status()["tcp"]["connections"] == 0).then_some(()));
}

/// The server's memory in KiB.
fn resident(net: &Net) -> u64 {
    net.server.daemon.as_ref().unwrap().memory("VmRSS").unwrap()
}

#[test]
fn a_thousand_silent_connections_keep_nobody_out() {
    let mut net = hotel("10.77.0.1:4433");
    let_udp_through(&net, false);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let before = resident(&net);
    // From the client's own address, half of them with the beginning of a TLS hello.
    let server: SocketAddr = "10.77.0.1:443".parse().unwrap();
    let connect = || (0..1000).map(|_| TcpStream::connect(server).unwrap()).collect::<Vec<_>>();
    let mut silent = net.clients[0].namespace.run(connect).unwrap();
    for stream in silent.iter_mut().step_by(2) {
        // The server may have closed it.
        let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    }
    let growth = resident(&net).saturating_sub(before);
    assert!(growth < 8 << 10, "{growth} KiB for 1000 connections");
    net.clients[0].start();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &[]);
    let tcp = &net.server.status()["tcp"];
    let turned_away = tcp["refused"].as_u64().unwrap() + tcp["dismissed"].as_u64().unwrap();
    assert!(turned_away >= 1000 - 16, "{tcp}");
}

#[test]
fn a_tcp_connection_that_somebody_resets_is_followed_by_another_one_in_the_same_session() {
    let mut net = hotel("10.77.0.1:4433");
    let_udp_through(&net, false);
    net.start();
    net.clients[0].until_path("transport", "tcp");
    net.nft(&[
        "add table inet cut",
        "add chain inet cut input { type filter hook input priority -10; }",
        "add rule inet cut input tcp dport 443 counter reject with tcp reset",
    ]);
    net.clients[0].ping("10.66.0.1", &["-c", "1", "-W", "1"]);
    eventually("the connection is gone", || {
        net.clients[0].log().contains("path error").then_some(())
    });
    net.nft(&["delete table inet cut"]);
    eventually("an answer", || {
        net.clients[0].ping("10.66.0.1", &["-c", "1", "-W", "1"]).status.success().then_some(())
    });
    net.clients[0].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[0].status()["sessions"], 1);
}

#[test]
fn a_tcp_connection_that_stalled_is_followed_by_one_that_does_not_back_off() {
    let mut net = hotel("10.77.0.1:4433");
    let_udp_through(&net, false);
    net.start();
    net.clients[0].until_path("transport", "tcp");
    net.clients[0].assert_ping("10.66.0.1", &["-c", "3", "-i", "0.2"]);
    // The last retransmission in vain is after some 3.2 s; TCP gives up after five, 1.7 s from then.
    let_tcp_through(&net, false);
    let ping = |wait: &str| net.clients[0].ping("10.66.0.1", &["-c", "1", "-W", wait]);
    assert!(!ping("3.5").status.success());
    let_tcp_through(&net, true);
    let begun = Instant::now();
    eventually("an answer", || ping("1").status.success().then_some(()));
    let stall = begun.elapsed();
    assert!(stall < SOON, "{stall:?}");
    assert_eq!(net.clients[0].status()["sessions"], 1);
}

#[test]
fn the_doctor_says_which_ways_a_network_leaves_open() {
    let mut net = hotel("10.77.0.1:4433");
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let examined = |host: &Host| {
        let file = host.folder().join("roamd.toml").display().to_string();
        said(host, &["doctor", &file])
    };
    let (code, text) = examined(&net.clients[0]);
    assert_eq!(code, Some(0), "{text}");
    let found = "ok    eth0: UDP 4433 works, TCP 443 works; the tunnel uses UDP";
    assert!(text.contains(found), "{text}");
    let_udp_through(&net, false);
    let (code, text) = examined(&net.clients[0]);
    assert_eq!(code, Some(0), "{text}");
    let found = "poor  eth0: UDP 4433 is silent, TCP 443 works; no UDP gets through, and the tunnel will use TCP";
    assert!(text.contains(found), "{text}");
    assert!(text.contains("poor  10.77.0.1:4433 over eth0: no answer"), "{text}");
    assert!(text.contains("ok    10.77.0.1:443 (tcp) over eth0: answers, "), "{text}");
    let_tcp_through(&net, false);
    let (code, text) = examined(&net.clients[0]);
    assert_eq!(code, Some(1), "{text}");
    let found = "bad   eth0: UDP 4433 is silent, TCP 443 is silent; no tunnel over this link";
    assert!(text.contains(found), "{text}");
    let (_, text) = examined(&net.server);
    assert!(text.contains("ok    port: [::]:443 is this server's (TCP)"), "{text}");
    assert!(text.contains("drops what comes to TCP port 443"), "{text}");
}
