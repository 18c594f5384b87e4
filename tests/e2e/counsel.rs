//! A client keeps its own counsel: what a server says, and what the kernel refuses, ends nothing and takes
//! nothing that the client does not give.
//!
//! ```text
//!   LAN ── cafe0 ─── eth1  client 0  eth0 10.77.0.2 ─────── c0 10.77.0.1  server, or one of ill will
//! ```

use std::{fs::File, net::Ipv6Addr, os::fd::AsRawFd as _, process::Command};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, sendto,
    setsockopt, socket, sockopt,
};
use roamd::internals::wire::message::Message;
use roamd_lab::{Namespace, veth};
use serde_json::Value;

use crate::{
    harness::{Host, Net, eventually},
    rogue::{Rogue, welcome},
};

fn run(host: &Host, program: &str, arguments: &[&str]) -> String {
    let mut command: Command = host.namespace.command(program);
    let output = command.args(arguments).output().unwrap();
    let (out, err) = (output.stdout, output.stderr);
    String::from_utf8_lossy(&out).into_owned() + &String::from_utf8_lossy(&err)
}

fn goes_by(host: &Host, address: &str, link: &str) -> bool {
    run(host, "ip", &["route", "get", address]).contains(&format!("dev {link} "))
}

/// What `status` says is left out, and why.
fn left_out(host: &Host) -> Vec<(String, String)> {
    let Some(status) = host.try_status() else { return Vec::new() };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let items = status["left-out"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| (text(&item["what"]), text(&item["why"]))).collect()
}

fn is_left_out(host: &Host, what: &str, why: &str) -> bool {
    left_out(host).iter().any(|item| item.0 == what && item.1.contains(why))
}

/// Another network on the client's `eth1`, with the client's address in it.
fn cafe(host: &Host, address: &str) -> Namespace {
    let cafe = Namespace::new("cafe").unwrap();
    veth(&host.namespace, "eth1", &cafe, "cafe0").unwrap();
    cafe.set_up("cafe0").unwrap();
    host.namespace.set_up("eth1").unwrap();
    host.namespace.add_address("eth1", address).unwrap();
    cafe
}

#[test]
fn a_client_bounds_what_a_server_can_claim() {
    let mut net = Net::new(1);
    net.server.amend(
        "\"fd66::1/64\"]",
        "\"fd66::1/64\", \"200.0.0.1/1\", \"3000::1/3\"]\n\
         routes = [\"0.0.0.0/1\", \"64.0.0.0/2\", \"198.18.0.0/15\", \"10.77.0.0/25\"]\n\
         dns = [\"10.66.0.1\"]\nsearch-domains = [\"com\", \"corp.example\"]",
    );
    net.server.amend("\"fd66::2\"]", "\"fd66::2\", \"200.0.0.2\", \"3000::2\"]");
    net.start();
    let client = &net.clients[0];
    for address in ["8.8.8.8", "100.1.1.1", "199.1.1.1", "2001:db8::1", "3fff::1"] {
        assert!(!goes_by(client, address, "roam0"), "{address}: {:?}", client.status());
    }
    for address in ["198.18.0.1", "10.66.0.77", "fd66::77"] {
        assert!(goes_by(client, address, "roam0"), "{address}");
    }
    for (what, why) in [
        ("route 0.0.0.0/1", "shorter than /8"),
        ("route 64.0.0.0/2", "shorter than /8"),
        ("route 10.77.0.0/25", "eth0 has"),
        ("route 128.0.0.0/1", "shorter than /8"),
        ("route 2000::/3", "shorter than /16"),
        ("search domain com", "dot"),
    ] {
        assert!(is_left_out(client, what, why), "{what} {why}: {:?}", left_out(client));
    }
    let text = String::from_utf8(client.tell(&["status", "roamd"]).stdout).unwrap();
    assert!(text.contains("left out     route 0.0.0.0/1: "), "{text}");
    client.assert_ping("10.66.0.1", &[]);
    client.assert_ping("fd66::1", &[]);
}

#[test]
fn a_lan_that_the_server_offers_is_not_routed_into_the_tunnel() {
    let mut net = Net::new(1);
    net.server.amend("[tun]", "[tun]\nroutes = [\"192.168.1.0/24\"]");
    let _cafe = cafe(&net.clients[0], "192.168.1.2/24");
    net.start();
    let client = &net.clients[0];
    client.assert_ping("10.66.0.1", &[]);
    assert!(goes_by(client, "192.168.1.77", "eth1"));
    assert!(is_left_out(client, "route 192.168.1.0/24", "eth1 has"), "{:?}", left_out(client));
    // Back from the café.
    client.namespace.delete_link("eth1").unwrap();
    eventually("the office is in the tunnel", || {
        (goes_by(client, "192.168.1.77", "roam0") && left_out(client).is_empty()).then_some(())
    });
    // And into the next one, with the session as it was.
    let _cafe = cafe(client, "192.168.1.2/24");
    eventually("the next café is outside", || {
        goes_by(client, "192.168.1.77", "eth1").then_some(())
    });
    assert_eq!(client.status()["sessions"], 1);
}

#[test]
fn a_configured_route_that_conflicts_with_the_host_waits_until_it_fits() {
    let mut net = Net::new(1);
    net.clients[0].amend("[tun]", "[tun]\nroutes = [\"192.168.1.0/24\", \"192.168.2.0/24\"]");
    let _cafe = cafe(&net.clients[0], "192.168.1.2/24");
    net.start();
    let client = &net.clients[0];
    client.assert_ping("10.66.0.1", &[]);
    assert!(goes_by(client, "192.168.2.77", "roam0"));
    assert!(goes_by(client, "192.168.1.77", "eth1"));
    assert!(is_left_out(client, "route 192.168.1.0/24", "eth1 has"), "{:?}", left_out(client));
    client.namespace.delete_address("eth1", "192.168.1.2/24").unwrap();
    eventually("the route is in", || goes_by(client, "192.168.1.77", "roam0").then_some(()));
    eventually("nothing is left out", || left_out(client).is_empty().then_some(()));
}

#[test]
fn a_lan_with_the_tunnels_prefix_does_not_capture_the_server() {
    let mut net = Net::new(1);
    let cafe = cafe(&net.clients[0], "10.66.0.50/24");
    cafe.add_address("cafe0", "10.66.0.1/24").unwrap();
    net.start();
    let client = &net.clients[0];
    assert!(goes_by(client, "10.66.0.1", "roam0"), "{:?}", client.status());
    client.assert_ping("10.66.0.1", &[]);
    assert!(goes_by(client, "10.66.0.77", "eth1"));
    assert!(is_left_out(client, "route 10.66.0.0/24", "eth1 has"), "{:?}", left_out(client));
}

#[test]
fn a_host_without_ipv6_has_a_tunnel_for_ipv4() {
    for off in ["client", "server"] {
        let mut net = Net::new(1);
        let host = if off == "client" { &net.clients[0] } else { &net.server };
        for links in ["all", "default"] {
            let name = format!("net/ipv6/conf/{links}/disable_ipv6");
            host.namespace.sysctl(&name, "1").unwrap();
        }
        net.start();
        net.clients[0].assert_ping("10.66.0.1", &[]);
        let host = if off == "client" { &net.clients[0] } else { &net.server };
        let address = if off == "client" { "address fd66::2/128" } else { "address fd66::1/64" };
        assert!(is_left_out(host, address, "IPv6 is off"), "{:?}", left_out(host));
        // What is on again comes back by itself.
        host.namespace.sysctl("net/ipv6/conf/roam0/disable_ipv6", "0").unwrap();
        eventually("IPv6 in the tunnel", || {
            net.clients[0].ping("fd66::1", &["-c", "1", "-W", "1"]).status.success().then_some(())
        });
        eventually("nothing is left out", || left_out(host).is_empty().then_some(()));
    }
}

#[test]
fn a_family_that_the_host_refuses_does_not_bypass_a_full_tunnel() {
    let mut net = Net::new(1);
    let client = &net.clients[0];
    client.amend("[tun]", "[tun]\nroutes = [\"default\"]");
    client.namespace.add_route("::/0", Some("fd77:0::1"), "eth0", 100).unwrap();
    // Off on every new link, such as the tunnel's, and on where it was on.
    client.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    net.start();
    let client = &net.clients[0];
    let route = run(client, "ip", &["route", "get", "2001:db8:1::2"]);
    assert!(route.contains("unreachable"), "{route}");
    client.namespace.sysctl("net/ipv6/conf/roam0/disable_ipv6", "0").unwrap();
    eventually("IPv6 is inside", || goes_by(client, "2001:db8:1::2", "roam0").then_some(()));
}

#[test]
fn foreign_changes_to_the_interface_are_reverted() {
    let mut net = Net::new(1);
    net.clients[0].amend("[tun]", "[tun]\nroutes = [\"192.0.2.0/24\"]");
    net.start();
    for damage in [
        &["addr", "flush", "dev", "roam0"][..],
        &["link", "set", "roam0", "down"],
        &["link", "set", "roam0", "mtu", "1300"],
        &["route", "del", "192.0.2.0/24"],
    ] {
        for host in [&net.clients[0], &net.server] {
            let _ = run(host, "ip", damage);
        }
        let client = &net.clients[0];
        eventually(&format!("all is well after {damage:?}"), || {
            let reaches = |to| client.ping(to, &["-c", "1", "-W", "1"]).status.success();
            (goes_by(client, "192.0.2.1", "roam0")
                && run(client, "ip", &["link", "show", "roam0"]).contains("mtu 1400")
                && reaches("10.66.0.1")
                && reaches("fd66::1"))
            .then_some(())
        });
    }
    assert_eq!(net.clients[0].status()["sessions"], 1);
}

/// A router advertisement (RFC 4861 §4.2) of half an hour, preferred, without options.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0x08, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn no_router_advertisement_passes_the_tunnel() {
    let mut net = Net::new(1);
    net.start();
    let (client, server) = (&net.clients[0], &net.server);
    for host in [client, server] {
        for name in ["accept_ra", "autoconf"] {
            let path = format!("/proc/sys/net/ipv6/conf/roam0/{name}");
            assert_eq!(run(host, "cat", &[&path]).trim(), "0", "{name}");
        }
    }
    // Even a client that took them does not get one.
    client.namespace.sysctl("net/ipv6/conf/roam0/accept_ra", "2").unwrap();
    server.namespace.add_address("roam0", "fe80::66/64").unwrap();
    let index = server.namespace.ifindex("roam0").unwrap();
    let from: Ipv6Addr = "fe80::66".parse().unwrap();
    let advertise = move || {
        let (raw, icmp) = (SockType::Raw, SockProtocol::IcmpV6);
        let socket = socket(AddressFamily::Inet6, raw, SockFlag::empty(), icmp).unwrap();
        setsockopt(&socket, sockopt::Ipv6Ttl, &255).unwrap();
        let from = SockaddrIn6::from(std::net::SocketAddrV6::new(from, 0, 0, index));
        let socket = File::from(socket);
        bind(socket.as_raw_fd(), &from).unwrap();
        let to: Ipv6Addr = "fd66::2".parse().unwrap();
        let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
        sendto(socket.as_raw_fd(), &ADVERTISEMENT, &to, MsgFlags::empty()).unwrap();
    };
    let dropped = || client.try_status()?["traffic"]["dropped"]["foreign-source"].as_u64();
    eventually("it is dropped", || {
        server.namespace.run(advertise).unwrap();
        dropped()
    });
    let routes = run(client, "ip", &["-6", "route", "show", "default"]);
    assert!(!routes.contains("roam0"), "{routes}");
}

#[test]
fn a_hostile_welcome_ends_nothing() {
    let mut net = Net::new(1);
    let rogue = Rogue::start(&net.server, |number| match number {
        // No address that a host can have: no session, but another attempt.
        0 | 1 => welcome(&["224.0.0.1/4", "127.0.0.1/8", "10.77.0.1/24", "fe80::2/64"], 1400),
        2 => welcome(&["10.66.0.2/24", "10.66.0.2/24", "255.255.255.255/32"], 68),
        _ => welcome(&["10.66.0.2/24"], 0),
    });
    net.clients[0].start();
    let client = &net.clients[0];
    client.connected();
    assert!(rogue.refused() >= 2, "closed with PROTOCOL: {}", rogue.refused());
    for (what, why) in [
        ("MTU 68", "1280"),
        ("address 10.66.0.2", "twice"),
        ("address 255.255.255.255", "no host can have it"),
    ] {
        assert!(is_left_out(client, what, why), "{what} {why}: {:?}", left_out(client));
    }
    assert_eq!(client.status()["mtu"], 1400);
    rogue.end_session();
    eventually("the next session", || (client.try_status()?["sessions"] == 2).then_some(()));
    assert!(is_left_out(client, "MTU 0", "1280"), "{:?}", left_out(client));
    assert!(
        net.clients[0].daemon.as_mut().unwrap().wait(std::time::Duration::ZERO).unwrap().is_none()
    );
}

#[test]
fn a_server_that_welcomes_twice_loses_the_session() {
    let mut net = Net::new(1);
    let rogue = Rogue::start(&net.server, |_| welcome(&["10.66.0.2/24"], 1400));
    net.clients[0].start();
    let client = &net.clients[0];
    client.connected();
    rogue.tell(&Message::Welcome(welcome(&["10.66.0.3/24"], 1400)));
    eventually("closed with PROTOCOL", || (rogue.refused() == 1).then_some(()));
    eventually("the next session", || (client.try_status()?["sessions"] == 2).then_some(()));
    assert_eq!(client.status()["addresses"], serde_json::json!(["10.66.0.2/32"]));
}

#[test]
fn a_client_accepts_only_packets_that_belong_into_the_tunnel() {
    let mut net = Net::new(1);
    let rogue = Rogue::start(&net.server, |_| welcome(&["10.66.0.2/24", "fd66::2/64"], 1400));
    net.clients[0].start();
    let client = &net.clients[0];
    client.connected();
    // Echo requests; what is delivered is answered.
    for (source, destination, reason) in [
        ("10.77.0.1", "10.66.0.2", "foreign-source"),
        ("127.0.0.1", "10.66.0.2", "foreign-source"),
        ("8.8.8.8", "10.66.0.2", "foreign-source"),
        ("10.66.0.2", "10.66.0.2", "foreign-source"),
        ("10.66.0.1", "10.77.0.2", "unknown-destination"),
        ("10.66.0.1", "255.255.255.255", "unknown-destination"),
        ("fe80::1", "fd66::2", "foreign-source"),
        ("fd66::1", "ff02::1", "unknown-destination"),
    ] {
        let count = || client.status()["traffic"]["dropped"][reason].as_u64().unwrap_or_default();
        let before = count();
        rogue.send(source, destination);
        eventually(&format!("{source} -> {destination}"), || (count() > before).then_some(()));
    }
    let received = || client.status()["traffic"]["received-packets"].as_u64().unwrap();
    let before = received();
    rogue.send("10.66.0.1", "10.66.0.2");
    eventually("what is good comes through", || (received() == before + 1).then_some(()));
}
