//! What the service manager is told.
//!
//! ```text
//!  client ── eth0 ── server (drops what comes in)
//!    └─▶ $NOTIFY_SOCKET
//! ```

use std::{fs, os::unix::net::UnixDatagram, thread, time::Duration};

use crate::harness::{Host, Net, PATIENCE, eventually};

/// Nothing is known of a handshake that nobody answers before it has failed, 10 s later; a start must not wait
/// for that, nor say nothing.
#[test]
fn a_start_ends_without_a_session_and_says_why_there_is_none() {
    let mut net = Net::new(1);
    let drop =
        "table inet t { chain c { type filter hook input priority 0; udp dport 4433 drop; }; }";
    assert!(net.server.namespace.command("nft").arg(drop).status().unwrap().success());
    let path = net.clients[0].folder().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    net.clients[0].start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let mut told = [0; 4096];
    let mut next = || {
        let length = manager.recv(&mut told).expect("nothing was told");
        String::from_utf8(told[..length].to_vec()).unwrap()
    };
    let ready = std::iter::repeat_with(&mut next).find(|it| it.contains("READY=1")).unwrap();
    assert!(
        ready.contains("STATUS=not connected: no answer from 10.77.0.1:4433 over eth0"),
        "{ready}"
    );
    assert!(net.clients[0].status()["uptime"].as_f64().unwrap() < 10.0, "only when all had failed");
    // And then the tunnel comes up all the same.
    let flush = net.server.namespace.command("nft").args(["delete", "table", "inet", "t"]).status();
    assert!(flush.unwrap().success());
    net.server.start();
    net.clients[0].connected();
    let active = std::iter::repeat_with(&mut next).find(|it| it.contains("STATUS=active on eth0"));
    assert!(active.is_some());
}

/// Sockets of rtnetlink(7) in this namespace that listen to groups, by the columns of `/proc/net/netlink`.
fn listening(host: &Host) -> usize {
    let sockets =
        host.namespace.run(|| fs::read_to_string("/proc/thread-self/net/netlink")).unwrap();
    let sockets = sockets.unwrap();
    let columns = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|it| it[1] == "0" && u32::from_str_radix(it[3], 16).unwrap() != 0).count()
}

#[test]
fn a_daemon_has_one_netlink_monitor_socket() {
    let mut net = Net::new(1);
    assert_eq!(listening(&net.server) + listening(&net.clients[0]), 0);
    net.start();
    assert_eq!((listening(&net.server), listening(&net.clients[0])), (1, 1), "connected");
    net.server.daemon = None;
    eventually("the client dials", || {
        (net.clients[0].try_status()?["state"] != "connected").then_some(())
    });
    for _ in 0..20 {
        assert_eq!(listening(&net.clients[0]), 1, "dialing");
        thread::sleep(Duration::from_millis(50));
    }
}
