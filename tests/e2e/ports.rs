//! A server of two UDP ports, and a network that lets only one of them out.
//!
//! ```text
//!  client0 eth0 10.77.0.2 ──── c0 10.77.0.1 server: UDP 4433 (dropped by nftables at times), UDP 443
//! ```

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    harness::{Net, eventually, transfer},
    roaming::shown,
};

/// From the start to the first answer, and the gap at a move to the other port: nobody waits for the five seconds that a
/// probe has. On a busy machine the first is some 470 ms, of which 250 are from one attempt to the next.
const SOON: Duration = Duration::from_millis(1500);
/// Both ports, as the client's configuration lists them.
const PORTS: &str = "10.77.0.1:4433\", \"10.77.0.1:443";

/// A client that knows both ports; nothing runs.
fn two_ports() -> Net {
    let net = Net::new(1);
    net.server.amend("listen = \"[::]:4433\"", "listen = [\"[::]:4433\", \"[::]:443\"]");
    net.configure_client(0, PORTS, "");
    net
}

/// Drops UDP to and from all ports of the server but 443, or lets it through.
fn only_443(net: &Net, only: bool) {
    let commands: &[&str] = if only {
        &[
            "add table inet wifi",
            "add chain inet wifi input { type filter hook input priority -10; }",
            "add rule inet wifi input iifname c0 udp dport != 443 counter drop",
            "add chain inet wifi output { type filter hook output priority -10; }",
            "add rule inet wifi output oifname c0 udp sport != 443 counter drop",
        ]
    } else {
        &["delete table inet wifi"]
    };
    net.nft(commands);
}

#[test]
fn a_network_that_lets_only_udp_443_out_carries_a_tunnel_at_once() {
    let mut net = two_ports();
    only_443(&net, true);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let status = net.server.status();
    assert_eq!(status["listen"], "[::]:4433");
    assert_eq!(status["listen-also"], serde_json::json!(["[::]:443"]));
    let begun = Instant::now();
    net.clients[0].start();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &["-c", "1"]);
    let first = shown(begun.elapsed());
    assert!(first < SOON, "{first:?}");
    assert_eq!(net.clients[0].path_in_use().unwrap()["server"], "10.77.0.1:443");
    transfer(&net.clients[0], &net.server, "10.66.0.1", 4 << 20);
    transfer(&net.server, &net.clients[0], "10.66.0.2", 4 << 20);
}

#[test]
fn a_port_that_is_dropped_in_mid_session_is_left_for_the_other_one_and_nothing_is_lost() {
    let mut net = two_ports();
    net.start();
    net.clients[0].until_path("server", "10.77.0.1:4433");
    let mut ping = net.clients[0].namespace.command("ping");
    ping.args(["-n", "-q", "-i", "0.02", "-c", "500", "10.66.0.1"]);
    let pinging = ping.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    only_443(&net, true);
    net.clients[0].until_path("server", "10.77.0.1:443");
    let status = net.clients[0].status();
    let switches = status["switches"].as_array().unwrap();
    let gap = switches.last().unwrap()["gap"].as_f64().unwrap();
    assert!(shown(gap) < SOON.as_secs_f64() * 1000.0, "{switches:?}");
    let output = pinging.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert_eq!(net.clients[0].status()["sessions"], 1);
    // Neither port is better: the tunnel stays where it is.
    only_443(&net, false);
    eventually("the first port is a standby", || {
        let status = net.clients[0].try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        paths.find(|it| it["server"] == "10.77.0.1:4433" && it["state"] == "standby").map(|_| ())
    });
    assert_eq!(net.clients[0].path_in_use().unwrap()["server"], "10.77.0.1:443");
}
