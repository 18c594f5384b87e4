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
    let taken =
        net.server.namespace.run(|| std::net::UdpSocket::bind("[::]:4433").unwrap()).unwrap();
    net.server.start();
    assert_ne!(net.server.exit_code(), Some(0));
    assert_eq!(routed(&net.server), [""; 0], "a start that fails removes it, too");
    drop(taken);
    // A child that another test has forked holds the port until it runs its program.
    eventually("the port is free", || {
        let mut command = net.server.namespace.command("ss");
        let output = command.args(["-Hlun", "sport = :4433"]).output().unwrap();
        (output.status.success() && output.stdout.is_empty()).then_some(())
    });
    net.server.start();
    until_routed(&net.server, &[]);

    net.clients[0].start();
    until_routed(&net.server, &[0]);
    stop(&mut net.server);
    assert_eq!(routed(&net.server), [""; 0]);
}

/// Two servers, a router of their site with BIRD, and a laptop that reaches both.
///
/// ```text
///            ┌─ eth0 10.77.0.2 ── eth0 10.77.0.1 ┌ berlin ┐ lan 10.10.0.2 ── lan0 10.10.0.1 ┐
///   laptop ──┤                                   └────────┘                                 ├─ router, etcd
///            └─ eth1 10.77.1.2 ── eth0 10.77.1.1 ┌ paris ─┐ lan 10.10.1.2 ── lan1 10.10.1.1 ┘
/// ```
#[cfg(feature = "etcd")]
mod fleet {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        time::{Duration, Instant, SystemTime},
    };

    use nix::sys::signal::Signal;
    use roamd_lab::{Namespace, Process, etcd::Member, veth};
    use tempfile::TempDir;

    use super::run;
    use crate::{
        bird,
        harness::{Host, PATIENCE, client_toml, eventually, inner_v4, inner_v6, start_etcd},
    };

    struct Fleet {
        laptop: Host,
        servers: [Host; 2],
        router: Namespace,
        etcd: Option<Process>,
        member: Member,
        _birds: Vec<Process>,
        folder: TempDir,
    }

    const NAMES: [&str; 2] = ["berlin", "paris"];

    /// What the router has for each server: a session for each family.
    fn router_conf() -> String {
        let mut conf = "router id 10.10.0.1;\nprotocol device { }\n\
            protocol kernel k4 { ipv4 { export where source = RTS_BGP; }; }\n\
            protocol kernel k6 { ipv6 { export where source = RTS_BGP; }; }\n\
            protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; }\n"
            .to_owned();
        for (number, name) in NAMES.iter().enumerate() {
            for (family, neighbor) in
                [("ipv4", format!("10.10.{number}.2")), ("ipv6", format!("fd10:{number}::2"))]
            {
                conf += &format!(
                    "protocol bgp {name}_{family} {{ local as 65000; neighbor {neighbor} as {}; bfd on;\n\
                     connect delay time 1; connect retry time 1; error wait time 1, 2;\n\
                     {family} {{ import all; export all; }}; }}\n",
                    65001 + number
                );
            }
        }
        conf
    }

    impl Fleet {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let host = |name| Host::new(name, Namespace::new(name).unwrap(), folder.path());
            let (laptop, servers) = (host("laptop"), NAMES.map(host));
            let router = Namespace::new("router").unwrap();
            router.forward(true).unwrap();
            let mut birds = Vec::new();
            for (number, server) in servers.iter().enumerate() {
                let (eth, lan) = (format!("eth{number}"), format!("lan{number}"));
                let there = &server.namespace;
                veth(&laptop.namespace, &eth, there, "eth0").unwrap();
                veth(there, "lan", &router, &lan).unwrap();
                there.forward(true).unwrap();
                for (namespace, link, address) in [
                    (&laptop.namespace, eth.as_str(), format!("10.77.{number}.2/24")),
                    (there, "eth0", format!("10.77.{number}.1/24")),
                    (there, "lan", format!("10.10.{number}.2/24")),
                    (there, "lan", format!("fd10:{number}::2/64")),
                    (&router, lan.as_str(), format!("10.10.{number}.1/24")),
                    (&router, lan.as_str(), format!("fd10:{number}::1/64")),
                ] {
                    namespace.set_up(link).unwrap();
                    namespace.add_address(link, &address).unwrap();
                }
                let via = format!("10.10.{number}.1");
                there.add_route("10.10.0.0/16", Some(&via), "lan", 100).unwrap();
                let conf = bird::shipped(&[
                    ("65001", (65001 + number).to_string()),
                    ("10.10.0.", format!("10.10.{number}.")),
                    ("fd10::", format!("fd10:{number}::")),
                ]);
                birds.push(bird::run(there, &conf, folder.path()));
            }
            birds.push(bird::run(&router, &router_conf(), folder.path()));
            let member = Member::new(
                "m0",
                folder.path(),
                "10.10.0.1:2379".parse().unwrap(),
                "10.10.0.1:2380".parse().unwrap(),
            );
            let mut fleet =
                Self { laptop, servers, router, etcd: None, member, _birds: birds, folder };
            fleet.start_etcd();
            for number in 0..NAMES.len() {
                fleet.configure(number);
                fleet.servers[number].start();
            }
            for server in &fleet.servers {
                eventually("the server listens", || server.try_status());
            }
            // A device that outlives the client, as with a service manager.
            let laptop = &fleet.laptop;
            run(laptop, "ip", &["tuntap", "add", "roam0", "mode", "tun", "vnet_hdr"]);
            fleet
        }

        fn start_etcd(&mut self) {
            self.etcd = Some(start_etcd(&self.member, &self.router, self.folder.path()));
        }

        fn configure(&self, number: usize) {
            let last = 253 + number;
            self.servers[number].configure(&format!(
                "role = \"server\"\nlisten = \"[::]:4433\"\n[tun]\nname = \"roam0\"\n\
                 addresses = [\"10.66.0.{last}/24\", \"fd66::{last}/64\"]\n[directory]\nname = \"{}\"\n\
                 etcd = {{ endpoints = [\"{}\"], prefix = \"/roamd/home\" }}\n\
                 [[peer]]\nname = \"laptop\"\npublic-key = \"{}\"\naddresses = [\"{}\", \"{}\"]\n",
                NAMES[number],
                self.member.endpoint(),
                self.laptop.key(),
                inner_v4(0),
                inner_v6(0)
            ));
        }

        /// The laptop's client begins anew, at this server; nobody says goodbye to the one before.
        fn go_to(&mut self, server: usize) {
            if let Some(daemon) = self.laptop.daemon.take() {
                daemon.signal(Signal::SIGKILL).unwrap();
            }
            let address = format!("10.77.{server}.1:4433");
            let toml = client_toml(&address, &self.servers[server].key(), "");
            let routes = "routes = [\"10.10.0.0/16\", \"fd10::/16\"]\n";
            self.laptop.configure(&format!("{toml}{routes}"));
            self.laptop.start();
            self.laptop.connected();
        }

        /// Through which server the router sends packets to the laptop.
        fn way(&self, family: &str, address: &str) -> Option<usize> {
            let mut command = self.router.command("ip");
            let output = command.args([family, "route", "show", address]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            (0..NAMES.len()).find(|number| text.contains(&format!("dev lan{number}")))
        }

        fn until_way(&self, server: usize) {
            for (family, address) in [("-4", inner_v4(0)), ("-6", inner_v6(0))] {
                eventually("the router's way", || {
                    (self.way(family, &address) == Some(server)).then_some(())
                });
            }
        }

        fn until_holder(&self, server: usize) {
            for asked in &self.servers {
                eventually("the holder", || {
                    let status = asked.try_status()?;
                    (status["peers"][0]["holder"]["server"] == NAMES[server]).then_some(())
                });
            }
        }
    }

    /// A connection from the router to the laptop, which sends back what comes.
    struct Stream(TcpStream);

    impl Stream {
        fn open(fleet: &Fleet) -> Self {
            let address: SocketAddr = format!("{}:7777", inner_v4(0)).parse().unwrap();
            let listener =
                fleet.laptop.namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    stream.write_all(&bytes[..count]).unwrap();
                }
            });
            let stream = fleet.router.run(|| TcpStream::connect(address).unwrap()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Self(stream)
        }

        fn assert_alive(&mut self) {
            self.0.write_all(b"ping").unwrap();
            let mut answer = [0; 4];
            self.0.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"ping");
        }
    }

    /// When the log first has a line with `text` after `from`.
    fn logged(log: &str, text: &str, from: SystemTime) -> SystemTime {
        let mut times = log
            .lines()
            .filter(|line| line.contains(text))
            .filter_map(|line| humantime::parse_rfc3339(line.split(' ').next()?).ok());
        times.find(|at| *at >= from).unwrap_or_else(|| panic!("no {text:?} in {log}"))
    }

    #[test]
    fn a_connection_behind_the_servers_goes_on_when_the_session_moves() {
        let mut fleet = Fleet::new();
        fleet.go_to(0);
        fleet.until_holder(0);
        fleet.until_way(0);
        let mut stream = Stream::open(&fleet);
        stream.assert_alive();
        for to in [1, 0, 1] {
            let mut monitor = fleet.router.command("ip");
            monitor.args(["-4", "-ts", "monitor", "route"]);
            let monitor = fleet.router.spawn("monitor", monitor, fleet.folder.path()).unwrap();
            let before = SystemTime::now();
            fleet.go_to(to);
            fleet.until_way(to);
            stream.assert_alive();
            fleet.until_holder(to);
            // The session of a process that was killed.
            let from = &fleet.servers[1 - to];
            eventually("the old session is gone", || {
                from.try_status()?["peers"][0]["session"].is_null().then_some(())
            });
            let began = logged(&fleet.servers[to].log(), "connected peer", before);
            let log = monitor.log().unwrap().replace('[', "").replace("] ", "Z ");
            let routed = logged(&log, &format!("dev lan{to}"), before);
            let claimed = logged(&from.log(), "is at another server", before);
            eprintln!(
                "to {}: the other server heard of it {:?} after the session began, and the router had the route {:?} after it",
                NAMES[to],
                claimed.duration_since(began),
                routed.duration_since(began)
            );
        }
    }

    #[test]
    fn a_server_that_reaches_neither_etcd_nor_the_client_gives_its_routes_up() {
        let mut fleet = Fleet::new();
        fleet.go_to(0);
        fleet.until_holder(0);
        fleet.until_way(0);
        // berlin's way to etcd and to the laptop break; its session with the router stays.
        let berlin = &fleet.servers[0];
        let told = berlin.status()["peers"][0]["routes"].clone();
        assert!(told["since"].is_number() && told["withdrawn"].is_null(), "{told}");
        run(
            berlin,
            "nft",
            &[
                "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; \
             add rule inet cut out tcp dport 2379 drop",
            ],
        );
        fleet.laptop.namespace.set_down("eth0").unwrap();
        let begun = Instant::now();
        eventually("no route to the laptop", || {
            (fleet.way("-4", &inner_v4(0)).is_none() && fleet.way("-6", &inner_v6(0)).is_none())
                .then_some(())
        });
        let took = begun.elapsed();
        eprintln!("given up after {took:?}");
        assert!(took < Duration::from_secs(7), "{took:?}");
        let peer = berlin.status()["peers"][0].clone();
        assert_eq!(peer["routes"]["withdrawn"], "unheard", "{peer}");
        assert_eq!(peer["routes-withdrawn"]["unheard"], 1, "{peer}");
        let said = String::from_utf8(berlin.tell(&["status"]).stdout).unwrap();
        assert!(said.contains("laptop: no routes for "), "{said}");
    }

    #[test]
    fn without_etcd_the_session_and_its_routes_stay_while_the_client_is_there() {
        let mut fleet = Fleet::new();
        fleet.go_to(0);
        fleet.until_way(0);
        let mut stream = Stream::open(&fleet);
        fleet.etcd = None;
        std::thread::sleep(Duration::from_secs(14));
        stream.assert_alive();
        assert_eq!(fleet.way("-4", &inner_v4(0)), Some(0));
        // The client moves all the same.
        fleet.go_to(1);
        eventually("a session", || {
            fleet.servers[1].try_status()?["peers"][0]["session"].as_object().map(drop)
        });
        fleet.start_etcd();
        fleet.until_holder(1);
        fleet.until_way(1);
        stream.assert_alive();
    }
}
