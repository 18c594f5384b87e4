//! A laptop, two servers on the internet, and a site behind both of them.
//!
//! ```text
//!           wifi0 ◀── 5 ms ──▶ wifi ◀──▶┐              ┌▶ eth0 berlin lan0 ◀─┐
//!  laptop                               internet ◀──▶ ─┤                     office 10.78.0.10, etcd
//!           lte0  ◀── 25 ms ─▶ lte  ◀──▶┘              └▶ eth0 paris  lan0 ◀─┘
//!
//!  berlin   eth0  10.77.9.2   lan0  10.78.1.1   roam0  10.66.0.1
//!  paris    eth0  10.77.8.2   lan0  10.78.2.1   roam0  10.66.0.1
//!  office   berlin 10.78.1.2  paris 10.78.2.2   lo 10.78.0.10
//! ```
//! The servers give the laptop the same inner address, 10.66.0.2. BIRD on both of them tells the office which one has its
//! session. The laptop's configuration is the one that `roamd peer add --directory` wrote.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use roamd_lab::{Access, LinkShape, Namespace, Process, Scene, etcd::Member, veth};
use tempfile::TempDir;

use super::bird;
use crate::{
    harness::{Host, eventually, nft, start_etcd},
    roaming::{Stream, stream_to},
};

/// The office's address.
pub(crate) const OFFICE: &str = "10.78.0.10";
/// The preferred server answers for half a minute before it is used again.
const RETURN: Duration = Duration::from_secs(60);
/// The laptop's inner address.
pub(crate) const LAPTOP: &str = "10.66.0.2";
/// The servers by name and outer address. The first one is preferred.
pub(crate) const SERVERS: [(&str, &str); 2] = [("berlin", "10.77.9.2"), ("paris", "10.77.8.2")];

/// See the module's documentation.
pub(crate) struct Site {
    pub(crate) scene: Scene,
    pub(crate) client: Host,
    pub(crate) servers: [Host; 2],
    pub(crate) office: Namespace,
    pub(crate) etcd: Option<Process>,
    member: Member,
    _birds: Vec<Process>,
    folder: TempDir,
}

impl Site {
    /// All that stands before a daemon runs: links, routes, BIRD, etcd with no peer, and configurations.
    fn new() -> Self {
        let scene = Scene::new().unwrap();
        let paris = Namespace::new("paris").unwrap();
        let office = Namespace::new("office").unwrap();
        let internet = scene.internet();
        veth(internet, "paris", &paris, "eth0").unwrap();
        internet.add_address("paris", "10.77.8.1/24").unwrap();
        paris.add_address("eth0", "10.77.8.2/24").unwrap();
        paris.add_route("0.0.0.0/0", Some("10.77.8.1"), "eth0", 0).unwrap();
        office.add_address("lo", &format!("{OFFICE}/32")).unwrap();
        let namespaces = [scene.server().clone(), paris];
        for (number, ((name, _), server)) in (1..).zip(SERVERS.iter().zip(&namespaces)) {
            veth(server, "lan0", &office, name).unwrap();
            server.add_address("lan0", &format!("10.78.{number}.1/24")).unwrap();
            office.add_address(name, &format!("10.78.{number}.2/24")).unwrap();
            let gateway = format!("10.78.{number}.2");
            server.add_route(&format!("{OFFICE}/32"), Some(&gateway), "lan0", 0).unwrap();
            server.forward(true).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let birds = bird::start(&namespaces, &office, folder.path());
        let at = |port| SocketAddr::new(OFFICE.parse().unwrap(), port);
        let member = Member::new("etcd", folder.path(), at(2379), at(2380));
        let mut hosts = SERVERS.iter().zip(namespaces);
        let servers = std::array::from_fn(|_| {
            let ((name, _), namespace) = hosts.next().unwrap();
            Host::new(name, namespace, folder.path())
        });
        let client = Host::new("laptop", scene.client().clone(), folder.path());
        let mut site =
            Self { scene, client, servers, office, etcd: None, member, _birds: birds, folder };
        site.start_etcd();
        site.configure();
        site
    }

    fn configure(&self) {
        let fleet: String = SERVERS
            .iter()
            .zip(&self.servers)
            .map(|((name, address), server)| {
                let key = server.key();
                format!(
                    "[[directory.server]]\nname = \"{name}\"\naddress = \"{address}\"\n\
                     public-key = \"{key}\"\n"
                )
            })
            .collect();
        for ((name, _), server) in SERVERS.iter().zip(&self.servers) {
            let directory = format!(
                "[directory]\nname = \"{name}\"\netcd = {{ endpoints = [\"{}\"], \
                 prefix = \"/roamd/home\" }}\n",
                self.member.endpoint()
            );
            server.configure(&format!(
                "role = \"server\"\nlisten = \"[::]:4433\"\n{directory}{fleet}\
                 [tun]\nname = \"roam0\"\naddresses = [\"10.66.0.1/24\"]\nroutes = [\"10.78.0.0/16\"]\n"
            ));
        }
    }

    /// A site whose laptop has a session with the preferred server, and whose office can reach it.
    pub(crate) fn connected() -> Self {
        let mut site = Self::new();
        site.add_laptop();
        let start = |server: &mut Host| {
            server.start();
            eventually("the server listens", || server.try_status());
        };
        // On a busy machine the second one may answer first.
        start(&mut site.servers[0]);
        site.client.start();
        site.client.connected();
        start(&mut site.servers[1]);
        site.until_server("berlin");
        site.until_reserve();
        site
    }

    /// Starts etcd, on the data that it left.
    pub(crate) fn start_etcd(&mut self) {
        self.etcd = Some(start_etcd(&self.member, &self.office, self.folder.path()));
    }

    /// Adds the laptop to the directory, as an admin on the first server does, and gives it its file.
    fn add_laptop(&self) {
        let [server, laptop] = [&self.servers[0], &self.client].map(Host::file);
        let [server, laptop_file] = [&server, &laptop].map(|it| it.to_str().unwrap());
        let arguments =
            ["peer", "add", "laptop", "--directory", server, "--output", laptop_file, "-a", LAPTOP];
        let output = self.servers[0].tell(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let written = fs::read_to_string(&laptop).unwrap();
        let more = "[tun]\nname = \"roam0\"\n[paths]\nstandby-check = \"5s\"\n";
        fs::write(laptop, written + more).unwrap();
    }

    /// Limits wifi to 50 Mbit/s, so that a transfer lasts.
    pub(crate) fn slow_down(&self) {
        let rate = Some(50_000_000);
        let shape = LinkShape { rate, ..LinkShape::delayed(Duration::from_millis(5)) };
        self.scene.air(Access::Wifi).set(shape);
    }

    /// Waits until the laptop's session is with this server, and the office reaches it.
    pub(crate) fn until_server(&self, name: &str) {
        eventually(name, || (self.client.server_in_use()? == name).then_some(()));
        eventually("the office reaches the laptop", || {
            let mut ping = self.office.command("ping");
            ping.args(["-n", "-c", "1", "-W", "1", "-I", OFFICE, LAPTOP]);
            ping.output().unwrap().status.success().then_some(())
        });
    }

    /// Waits until the preferred server, which answers again, has been believed for long enough.
    pub(crate) fn until_returned(&self) {
        let begun = Instant::now();
        while self.client.server_in_use().as_deref() != Some("berlin") {
            assert!(begun.elapsed() < RETURN, "not back within {RETURN:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.until_server("berlin");
    }

    /// Waits until the reserve is warm.
    pub(crate) fn until_reserve(&self) {
        eventually("a warm reserve", || {
            let status = self.client.try_status()?;
            let servers = status["servers"].as_array()?.clone();
            servers
                .iter()
                .any(|it| it["state"] == "reserve" && it["answered"].is_f64())
                .then_some(())
        });
    }

    /// A hundred packets a second each way between laptop and office for `duration`, with `event` after a second.
    pub(crate) fn stream(&self, duration: Duration, event: impl FnOnce() + Send) -> Stream {
        let echo = format!("{OFFICE}:7000");
        stream_to((&self.office, &echo), self.scene.client(), duration, event)
    }

    /// Cuts a server off from everybody, or lets it back, without a word to anybody: nothing loses its carrier.
    pub(crate) fn power(&self, server: usize, on: bool) {
        let namespace = &self.servers[server].namespace;
        let commands: &[&str] = if on {
            &["delete table inet power"]
        } else {
            &[
                "add table inet power",
                "add chain inet power in { type filter hook prerouting priority -300; }",
                "add chain inet power out { type filter hook output priority -300; }",
                "add rule inet power in iifname != { lo, roam0 } drop",
                "add rule inet power out oifname != { lo, roam0 } drop",
            ]
        };
        nft(namespace, commands);
    }

    /// Cuts a server off from etcd alone, or lets it back.
    pub(crate) fn hides_etcd(&self, server: usize, hidden: bool) {
        let commands: &[&str] = if hidden {
            &[
                "add table inet etcd",
                "add chain inet etcd out { type filter hook output priority 0; }",
                "add rule inet etcd out tcp dport 2379 drop",
            ]
        } else {
            &["delete table inet etcd"]
        };
        nft(&self.servers[server].namespace, commands);
    }

    /// Waits until a server has no route to the laptop any more.
    pub(crate) fn until_unrouted(&self, server: usize) {
        eventually("no route to the laptop", || {
            let mut command = self.servers[server].namespace.command("ip");
            let output = command.args(["route", "show", "proto", "82"]).output().unwrap();
            (output.status.success() && output.stdout.is_empty()).then_some(())
        });
    }

    /// Hears of the office's routes from here on.
    pub(crate) fn monitor(&self, name: &str) -> Process {
        let mut command = self.office.command("ip");
        command.args(["-4", "-ts", "monitor", "route"]);
        let monitor = self.office.spawn(name, command, self.folder.path()).unwrap();
        // It says something, so it listens.
        eventually("the monitor", || {
            for change in ["add", "delete"] {
                let mut command = self.office.command("ip");
                command.args(["route", change, "blackhole", "203.0.113.1"]);
                assert!(command.status().unwrap().success());
            }
            monitor.log().unwrap().contains("203.0.113.1").then_some(())
        });
        monitor
    }

    /// Which server the office sends to for the laptop, if there is one.
    pub(crate) fn route_of_laptop(&self) -> Option<String> {
        let mut command = self.office.command("ip");
        let output = command.args(["-o", "route", "get", LAPTOP]).output().unwrap();
        let text = String::from_utf8(output.stdout).ok()?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "dev");
        words.nth(1).map(ToOwned::to_owned)
    }
}
