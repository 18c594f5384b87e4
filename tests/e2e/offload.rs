//! Super-packets at the TUN device, with and without, and what the network behind the server sees.
//!
//! ```text
//!   client 0 ══ tunnel ══ server ── c1 10.77.1.1 ─────── eth0 10.77.1.2  client 1: no daemon, a
//!                                   (no offloads)                        host behind the server
//! ```

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Host, Net, inner_v4, inner_v6, transfer};

const MEGABYTE: usize = 1_000_000;
/// linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;

/// Sends datagrams of `size` as one, and gives the lengths of what arrives.
fn send_segments(
    from: &Host,
    to: &Host,
    (source, target): (&str, &str),
    count: usize,
) -> Vec<usize> {
    const SIZE: u16 = 700;
    let bind = |host: &Host, address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), 0);
        host.namespace.run(|| UdpSocket::bind(address).unwrap()).unwrap()
    };
    let (here, there) = (bind(from, source), bind(to, target));
    there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let bytes: Vec<u8> = (0..count * usize::from(SIZE) - 1).map(|at| (at / 700) as u8).collect();
    sendmsg(
        std::os::fd::AsRawFd::as_raw_fd(&here),
        &[IoSlice::new(&bytes)],
        &[ControlMessage::UdpGsoSegments(&SIZE)],
        MsgFlags::empty(),
        Some(&SockaddrStorage::from(there.local_addr().unwrap())),
    )
    .unwrap();
    let mut buffer = [0; 2000];
    (0..count)
        .map(|number| {
            let length = there.recv(&mut buffer).unwrap();
            assert!(buffer[..length].iter().all(|byte| *byte == number as u8), "{number}");
            length
        })
        .collect()
}

#[test]
fn peers_with_and_without_offload_exchange_packets() {
    for (server, client) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut net = Net::new(1);
        for (host, offload) in [(&net.server, server), (&net.clients[0], client)] {
            host.amend("[tun]\n", &format!("[tun]\noffload = {offload}\n"));
        }
        net.start();
        let (here, there) = (&net.clients[0], &net.server);
        transfer(here, there, "10.66.0.1", 10 * MEGABYTE);
        transfer(there, here, &inner_v6(0), 10 * MEGABYTE);
        let mut lengths = vec![700; 40];
        lengths[39] = 699;
        for addresses in [("10.66.0.1", inner_v4(0)), ("fd66::1", inner_v6(0))] {
            let (server, client) = (addresses.0, addresses.1.as_str());
            assert_eq!(send_segments(here, there, (client, server), 40), lengths);
            assert_eq!(send_segments(there, here, (server, client), 40), lengths);
        }
        for host in [here, there] {
            let dropped = host.status()["traffic"]["dropped"].to_string();
            assert!(!dropped.contains("malformed"), "{dropped}");
        }
    }
}

/// Sees every IPv4 packet that arrives on any link of `host`.
fn tap(host: &Host) -> Socket {
    let socket = host
        .namespace
        .run(|| {
            let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
            Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap()
        })
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket.set_recv_buffer_size(64 << 20).unwrap();
    socket
}

/// Looks at what arrives at `host` until `done`; how many packets there were of TCP and UDP for its
/// own address, and those whose checksums are wrong.
fn watch(host: &Host, done: &AtomicBool) -> (usize, Vec<Vec<u8>>) {
    let socket = tap(host);
    let (mut seen, mut wrong, mut buffer) = (0, Vec::new(), vec![0; 70_000]);
    while !done.load(Relaxed) {
        let Ok(length) = std::io::Read::read(&mut &socket, &mut buffer) else { continue };
        let ip = &buffer[..length];
        if !matches!(ip[9], 6 | 17) || ip[16..20] != [10, 77, 1, 2] {
            continue;
        }
        seen += 1;
        if !is_right(ip) {
            wrong.push(ip[..ip.len().min(60)].to_vec());
        }
    }
    (seen, wrong)
}

/// Whether the checksums of an IPv4 packet are right, word by word (RFC 1071 §1).
fn is_right(ip: &[u8]) -> bool {
    let sum = |bytes: &[u8]| -> u32 {
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        bytes.chunks(2).map(word).sum()
    };
    let folds_to_ones = |mut sum: u32| {
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    };
    let pseudo = sum(&ip[12..20]) + u32::from(ip[9]) + (ip.len() - 20) as u32;
    folds_to_ones(sum(&ip[..20])) && folds_to_ones(pseudo + sum(&ip[20..]))
}

#[test]
fn the_network_behind_the_server_sees_whole_packets_with_right_checksums() {
    let mut net = Net::new(2);
    let lan = net.clients.pop().unwrap();
    for (namespace, link) in [(&net.server.namespace, "c1"), (&lan.namespace, "eth0")] {
        namespace.disable_offloads(link).unwrap();
    }
    net.server.namespace.forward(true).unwrap();
    lan.namespace.add_route("10.66.0.0/24", Some("10.77.1.1"), "eth0", 0).unwrap();
    net.clients[0].amend("[tun]\n", "[tun]\nroutes = [\"10.66.0.0/24\", \"10.77.1.0/24\"]\n");
    net.start();
    let done = AtomicBool::new(false);
    let (seen, wrong) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&lan, &done));
        std::thread::sleep(Duration::from_millis(200));
        transfer(&net.clients[0], &lan, "10.77.1.2", 5 * MEGABYTE);
        transfer(&lan, &net.clients[0], &inner_v4(0), 5 * MEGABYTE);
        send_segments(&net.clients[0], &lan, (&inner_v4(0), "10.77.1.2"), 40);
        done.store(true, Relaxed);
        watching.join().unwrap()
    });
    assert!(seen > 4000, "{seen} packets: super-packets crossed the wire, or few were seen");
    assert!(wrong.is_empty(), "{} of {seen}, such as {:02x?}", wrong.len(), wrong[0]);
}

#[test]
fn outer_packets_carry_the_configured_dscp() {
    let mut net = Net::new(1);
    for host in [&net.server, &net.clients[0]] {
        host.amend("[tun]\n", "[quic]\ndscp = 46\n[tun]\n");
    }
    let taps = [tap(&net.server), tap(&net.clients[0])];
    net.start();
    net.clients[0].assert_ping("10.66.0.1", &[]);
    transfer(&net.clients[0], &net.server, "10.66.0.1", MEGABYTE);
    let mut buffer = vec![0; 70_000];
    for tap in taps {
        let mut bytes = Vec::new();
        while let Ok(length) = std::io::Read::read(&mut &tap, &mut buffer) {
            let ip = &buffer[..length];
            let (from, to) = (&ip[20..22], &ip[22..24]);
            if ip[9] == 17 && [from, to].contains(&&4433_u16.to_be_bytes()[..]) {
                bytes.push(ip[1]);
            }
        }
        assert!(bytes.len() > 5 && bytes.iter().all(|byte| byte >> 2 == 46), "{bytes:02x?}");
    }
}
