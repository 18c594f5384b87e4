//! What a tunnel carries.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::harness::{Net, eventually, inner_v4, inner_v6, transfer};

const MEGABYTE: usize = 1_000_000;

#[test]
fn both_inner_families_cross_both_outer_families() {
    for (listen, server) in [
        ("[::]:4433", "10.77.0.1:4433"),
        ("[::]:4433", "[fd77::1]:4433"),
        ("0.0.0.0:4433", "10.77.0.1:4433"),
        ("[fd77::1]:4433", "[fd77::1]:4433"),
    ] {
        let mut net = Net::new(1);
        net.configure_server(listen, "");
        net.configure_client(0, server, "");
        net.start();
        net.clients[0].assert_ping("10.66.0.1", &[]);
        net.clients[0].assert_ping("fd66::1", &[]);
        net.server.assert_ping(&inner_v4(0), &[]);
        net.server.assert_ping(&inner_v6(0), &[]);
    }
}

#[test]
fn a_hundred_megabytes_arrive_whole_in_each_direction() {
    let mut net = Net::new(1);
    net.start();
    transfer(&net.clients[0], &net.server, "10.66.0.1", 100 * MEGABYTE);
    transfer(&net.server, &net.clients[0], &inner_v6(0), 100 * MEGABYTE);
    let status = net.clients[0].status();
    assert!(status["traffic"]["sent-bytes"].as_u64().unwrap() > 100 * MEGABYTE as u64);
    assert!(status["traffic"]["received-bytes"].as_u64().unwrap() > 100 * MEGABYTE as u64);
}

#[test]
fn udp_datagrams_of_every_size_are_echoed() {
    let mut net = Net::new(1);
    net.start();
    for (server, client) in [("10.66.0.1", inner_v4(0)), ("fd66::1", inner_v6(0))] {
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
        let there = net.server.namespace.run(|| UdpSocket::bind(address(server)).unwrap()).unwrap();
        let here =
            net.clients[0].namespace.run(|| UdpSocket::bind(address(&client)).unwrap()).unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        here.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for size in (0..=3000).step_by(50).chain([1332, 1352, 1353, 1372, 1373]) {
            let sent = vec![size as u8; size];
            here.send(&sent).unwrap();
            let mut buffer = [0; 4000];
            let (count, from) = there.recv_from(&mut buffer).unwrap();
            there.send_to(&buffer[..count], from).unwrap();
            let count = here.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..count], sent, "{size} bytes to {server}");
        }
    }
}

#[test]
fn two_clients_reach_the_server_and_each_other() {
    let mut net = Net::new(2);
    net.start();
    for (number, client) in net.clients.iter().enumerate() {
        client.assert_ping("10.66.0.1", &[]);
        client.assert_ping(&inner_v4(1 - number), &[]);
        client.assert_ping(&inner_v6(1 - number), &[]);
    }
    transfer(&net.clients[0], &net.clients[1], &inner_v4(1), 5 * MEGABYTE);
    let peers = &net.server.status()["peers"];
    for number in 0..2 {
        assert!(peers[number]["session"].is_object(), "{peers}");
    }
}

#[test]
fn large_packets_cross_a_path_that_carries_1200_bytes() {
    let mut net = Net::new(1);
    // IPv4 and UDP headers take 28 bytes; QUIC's least is 1200 (RFC 9000 §14).
    net.clients[0].namespace.set_mtu("eth0", 1228).unwrap();
    net.server.namespace.set_mtu("c0", 1228).unwrap();
    net.start();
    // 1372 bytes of payload make an IPv4 packet of exactly the tunnel's 1400 that may not be split.
    for (from, to) in [(&net.clients[0], "10.66.0.1".to_owned()), (&net.server, inner_v4(0))] {
        from.assert_ping(&to, &["-M", "do", "-s", "1372"]);
    }
    transfer(&net.clients[0], &net.server, "10.66.0.1", 5 * MEGABYTE);
    transfer(&net.server, &net.clients[0], &inner_v4(0), 5 * MEGABYTE);
    let status = net.clients[0].status();
    assert!(status["traffic"]["split-packets"].as_u64().unwrap() > 1000, "{status}");
    assert_eq!(status["session"]["path-mtu"], 1200);
}

#[test]
fn garbage_on_the_servers_port_disturbs_no_session() {
    let mut net = Net::new(1);
    net.start();
    let before = net.clients[0].status()["sessions"].clone();
    net.clients[0]
        .namespace
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let mut state = 1_u32;
            for _ in 0..10_000 {
                let mut datagram = [0; 64];
                for byte in &mut datagram {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (state >> 24) as u8;
                }
                let length = (state >> 16) as usize % datagram.len();
                socket.send_to(&datagram[..length], "10.77.0.1:4433").unwrap();
            }
        })
        .unwrap();
    net.clients[0].assert_ping("10.66.0.1", &[]);
    assert_eq!(net.clients[0].status()["sessions"], before);
}

#[test]
fn a_forged_inner_source_is_counted_and_dropped() {
    let mut net = Net::new(2);
    net.start();
    let client = &net.clients[0];
    client.namespace.add_address("roam0", "10.66.0.200/32").unwrap();
    client.namespace.add_address("roam0", &format!("{}/32", inner_v4(1))).unwrap();
    for forged in ["10.66.0.200", &inner_v4(1)] {
        let output = client.ping("10.66.0.1", &["-W", "1", "-I", forged]);
        assert!(!output.status.success(), "an answer to {forged}");
    }
    eventually("six drops", || {
        let drops = &net.server.status()["peers"][0]["traffic"]["dropped"]["foreign-source"];
        (drops.as_u64()? == 6).then_some(())
    });
    client.assert_ping("10.66.0.1", &["-I", &inner_v4(0)]);
}
