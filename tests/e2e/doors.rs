//! Programs on the same host that come to the daemon's sockets, and stay.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use roamd_lab::Access;

use crate::{
    harness::{Net, PROGRAM, eventually},
    roaming::{Laptop, path},
};

/// Callers at each door; the daemon may have a quarter of them open.
const CALLERS: usize = 400;

#[test]
fn many_idle_control_connections_delay_neither_a_switch_nor_an_answer() {
    let mut laptop = Laptop::connected();
    laptop.client.daemon = None;
    laptop.client.amend("[tun]", "[metrics]\nlisten = \"127.0.0.1:9433\"\n[tun]");
    laptop.client.start_in("prlimit", &["--nofile=200"]);
    laptop.client.connected();
    laptop.until_active(Access::Wifi);
    eventually("a warm standby", || {
        (path(&laptop.client.status(), Access::Lte)?["state"] == "standby").then_some(())
    });
    let call = || TcpStream::connect("127.0.0.1:9433").unwrap();
    let control = laptop.client.folder().join("roamd.sock");
    let crowd: Vec<_> = laptop
        .scene
        .client()
        .run(move || {
            let pair = |_| (call(), UnixStream::connect(&control).unwrap());
            (0..CALLERS).map(pair).collect()
        })
        .unwrap();

    let begun = Instant::now();
    assert!(laptop.client.try_status().is_some(), "no answer: {}", laptop.client.log());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut scrape = laptop.scene.client().run(call).unwrap();
    scrape.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    scrape.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("roamd_connected 1"), "{answer}");

    let moved = laptop.stream(Duration::from_secs(3), || {
        laptop.scene.disconnect(Access::Wifi).unwrap();
    });
    // Generous, as without a crowd: other tests share the machine.
    assert!(moved.gap < Duration::from_secs(1), "{moved:?}");
    laptop.until_active(Access::Lte);
    drop(crowd);
}

#[test]
fn a_metrics_socket_beside_the_control_socket_is_no_second_daemon() {
    let mut net = Net::new(1);
    let metrics = net.clients[0].folder().join("metrics.sock");
    net.clients[0].amend("[tun]", &format!("[metrics]\nlisten = {metrics:?}\n[tun]"));
    net.start();
    let client = &net.clients[0];
    let mut command = client.namespace.command(PROGRAM);
    let output = command.arg("status").env("ROAMD_RUNTIME_DIR", client.folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
