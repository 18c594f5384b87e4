//! The routes of a server's host to the peers whose session is here, for a routing daemon to tell of.

use nix::sys::signal::Signal;

use crate::harness::{Host, Net, eventually, inner_v4, inner_v6};

/// The addresses that the server's host has routes of ours to.
fn routed(server: &Host) -> Vec<String> {
    let mut routed = Vec::new();
    for family in ["-4", "-6"] {
        let mut command = server.namespace.command("ip");
        let output = command.args([family, "route", "show", "proto", "82"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let first = |line: &str| line.split(' ').next().map(str::to_owned);
        routed.extend(text.lines().filter_map(first));
    }
    routed.sort();
    routed
}

fn until_routed(server: &Host, clients: &[usize]) {
    let of = |client: &usize| [inner_v4(*client), inner_v6(*client)];
    let mut wanted: Vec<_> = clients.iter().flat_map(of).collect();
    wanted.sort();
    eventually(&format!("routes to {wanted:?}"), || (routed(server) == wanted).then_some(()));
}

fn run(host: &Host, program: &str, arguments: &[&str]) {
    assert!(host.namespace.command(program).args(arguments).status().unwrap().success());
}

fn stop(host: &mut Host) {
    host.daemon.as_mut().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(host.exit_code(), Some(0));
}

#[test]
fn the_host_has_routes_to_the_peers_that_are_connected_and_to_no_others() {
    let mut net = Net::new(2);
    net.server.amend("[tun]\n", "[tun]\npeer-routes = true\n");
    // A device that outlives the daemon, with a route of an earlier run.
    run(&net.server, "ip", &["tuntap", "add", "roam0", "mode", "tun", "vnet_hdr"]);
    run(&net.server, "ip", &["link", "set", "roam0", "up"]);
    run(&net.server, "ip", &["route", "add", "10.66.0.77", "dev", "roam0", "proto", "82"]);
    net.start_only(0);
    until_routed(&net.server, &[0]);
    net.clients[1].start();
    net.clients[1].connected();
    until_routed(&net.server, &[0, 1]);
    net.clients[0].assert_ping(&inner_v4(1), &[]);

    run(&net.server, "ip", &["route", "flush", "proto", "82"]);
    run(&net.server, "ip", &["-6", "route", "flush", "proto", "82"]);
    until_routed(&net.server, &[0, 1]);

    stop(&mut net.clients[0]);
    until_routed(&net.server, &[1]);
    net.server.daemon.as_mut().unwrap().signal(Signal::SIGKILL).unwrap();
    assert_eq!(net.server.exit_code(), None);
    stop(&mut net.clients[1]);
    assert_eq!(routed(&net.server).len(), 2, "nobody removed what was left");
    net.server.start();
    until_routed(&net.server, &[]);

    net.clients[0].start();
    until_routed(&net.server, &[0]);
    stop(&mut net.server);
    assert_eq!(routed(&net.server), [""; 0]);
}
