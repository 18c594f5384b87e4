//! A server and its clients, each in a namespace of its own, gone with the test.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use ring::digest;
#[cfg(feature = "etcd")]
use roamd_lab::etcd::Member;
use roamd_lab::{Namespace, Process, veth};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_roamd");
/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn roamd(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn public_key(key: &Path) -> String {
    let output = roamd(&["pubkey", key.to_str().unwrap()]);
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Polls until `done` gives a value.
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Changes the rules of a host.
pub(crate) fn nft(namespace: &Namespace, commands: &[&str]) {
    for command in commands {
        assert!(namespace.command("nft").arg(command).status().unwrap().success(), "{command}");
    }
}

/// Starts etcd as the only member of its cluster, on the data that it left, and waits until it answers.
#[cfg(feature = "etcd")]
pub(crate) fn start_etcd(member: &Member, namespace: &Namespace, folder: &Path) -> Process {
    let command = member.command(std::slice::from_ref(member));
    let etcd = namespace.spawn("etcd", command, folder).unwrap();
    eventually("etcd is healthy", || {
        let mut etcdctl = namespace.command("etcdctl");
        let at = member.endpoint();
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &at, "endpoint", "health"]);
        let output = etcdctl.output();
        let output = output.expect("etcdctl cannot be run: apt-get install etcd-client");
        output.status.success().then_some(())
    });
    etcd
}

/// One host: a namespace, a configuration and perhaps a running daemon.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    name: String,
    folder: PathBuf,
    /// What the configuration is called, and the key.
    tunnel: &'static str,
    key: &'static str,
    pub(crate) daemon: Option<Process>,
    starts: usize,
}

impl Host {
    pub(crate) fn new(name: &str, namespace: Namespace, folder: &Path) -> Self {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        let key = folder.join("own.key");
        assert!(roamd(&["genkey", "--output", key.to_str().unwrap()]).status.success());
        let (name, tunnel, key) = (name.into(), "roamd", "own.key");
        Self { namespace, name, folder, tunnel, key, daemon: None, starts: 0 }
    }

    /// Another tunnel on this host, with the key of `peer`; its configuration is the file `TUNNEL.toml`.
    pub(crate) fn second(&self, tunnel: &'static str, peer: &Self) -> Self {
        let key = "second.key";
        fs::copy(peer.folder.join(peer.key), self.folder.join(key)).unwrap();
        let (namespace, folder) = (self.namespace.clone(), self.folder.clone());
        let name = format!("{}-{tunnel}", self.name);
        Self { namespace, name, folder, tunnel, key, daemon: None, starts: 0 }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.tunnel))
    }

    pub(crate) fn key(&self) -> String {
        public_key(&self.folder.join(self.key))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn configure(&self, toml: &str) {
        let text = format!("private-key-file = \"{}\"\n{toml}", self.key);
        fs::write(self.file(), text).unwrap();
    }

    /// Changes the configuration where it says `from`.
    pub(crate) fn amend(&self, from: &str, to: &str) {
        let file = self.file();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it with more variables in its environment.
    pub(crate) fn start_with(&mut self, variables: &[(&str, &str)]) {
        let mut command = self.namespace.command(PROGRAM);
        command.env("STATE_DIRECTORY", &self.folder).envs(variables.iter().copied());
        self.run(command);
    }

    /// Starts it through another program.
    pub(crate) fn start_in(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.namespace.command(program);
        command.args(arguments).arg(PROGRAM);
        self.run(command);
    }

    fn run(&mut self, mut command: Command) {
        command
            .arg("run")
            .arg(self.file())
            .env("ROAMD_RUNTIME_DIR", &self.folder)
            .env("ROAMD_LOG__LEVEL", "debug");
        self.starts += 1;
        let name = format!("{}-{}", self.name, self.starts);
        self.daemon = Some(self.namespace.spawn(&name, command, &self.folder).unwrap());
    }

    pub(crate) fn log(&self) -> String {
        self.daemon.as_ref().map(|daemon| daemon.log().unwrap()).unwrap_or_default()
    }

    /// Waits until the daemon ends by itself; its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let daemon = self.daemon.as_mut().unwrap();
        let status = daemon.wait(PATIENCE).unwrap();
        status.unwrap_or_else(|| panic!("{} still runs", self.name)).code()
    }

    /// What `roamd status --json` says, if the daemon answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let mut command = self.namespace.command(PROGRAM);
        command.args(["status", self.tunnel, "--json"]).env("ROAMD_RUNTIME_DIR", &self.folder);
        let output = command.output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Runs another of the program's commands against this daemon.
    pub(crate) fn tell(&self, arguments: &[&str]) -> Output {
        let mut command = self.namespace.command(PROGRAM);
        command.args(arguments).env("ROAMD_RUNTIME_DIR", &self.folder).output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        eventually("an answer to status", || self.try_status())
    }

    /// The client's path in use.
    pub(crate) fn path_in_use(&self) -> Option<Value> {
        let status = self.try_status()?;
        status["paths"].as_array()?.iter().find(|path| path["state"] == "active").cloned()
    }

    /// The name of the server that has the client's session.
    pub(crate) fn server_in_use(&self) -> Option<String> {
        let status = self.try_status()?;
        let in_use = status["servers"].as_array()?.iter().find(|it| it["state"] == "in-use")?;
        Some(in_use["name"].as_str()?.to_owned())
    }

    /// Waits until the path in use has this `value`, such as the transport "tcp".
    pub(crate) fn until_path(&self, key: &str, value: &str) {
        eventually(value, || (self.path_in_use()?[key] == value).then_some(()));
    }

    /// The gap in milliseconds of the last switch to a path whose `key` has this `value`. A switch is told of once something
    /// has come over the new path.
    pub(crate) fn gap_of_switch(&self, key: &str, value: &str) -> f64 {
        eventually("the switch is told of", || {
            let status = self.try_status()?;
            let mut switches = status["switches"].as_array()?.iter().rev();
            switches.find(|switch| switch[key] == value)?["gap"].as_f64()
        })
    }

    /// Waits until the client's tunnel stands.
    pub(crate) fn connected(&self) {
        eventually("a session", || (self.try_status()?["state"] == "connected").then_some(()));
    }

    pub(crate) fn ping(&self, to: &str, more: &[&str]) -> Output {
        let mut command = self.namespace.command("ping");
        command.args(["-n", "-c", "3", "-i", "0.1", "-W", "5"]).args(more).arg(to);
        command.output().expect("ping cannot be run: apt-get install iputils-ping")
    }

    /// All of a few pings are answered.
    pub(crate) fn assert_ping(&self, to: &str, more: &[&str]) {
        let output = self.ping(to, more);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(" 0% packet loss"),
            "{} -> {to}: {text}",
            self.name
        );
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A second panic here would end all tests.
        match self.daemon.as_ref().map(Process::log).transpose() {
            Ok(log) => eprintln!("--- log of {} ---\n{}", self.name, log.unwrap_or_default()),
            Err(error) => eprintln!("--- log of {}: {error} ---", self.name),
        }
    }
}

/// A server and some clients with a link each.
pub(crate) struct Net {
    pub(crate) clients: Vec<Host>,
    pub(crate) server: Host,
    _folder: TempDir,
}

impl Net {
    /// Changes the rules of the server's host, which is also the network of its clients.
    pub(crate) fn nft(&self, commands: &[&str]) {
        nft(&self.server.namespace, commands);
    }

    /// Lets nothing of TCP and UDP through from the first client but to this TCP port, or again everything.
    pub(crate) fn let_through(&self, only: Option<u16>) {
        let Some(port) = only else { return self.nft(&["delete table inet office"]) };
        self.nft(&[
            "add table inet office",
            "add chain inet office input { type filter hook input priority -10; }",
            &format!("add rule inet office input iifname c0 tcp dport {port} accept"),
            "add rule inet office input iifname c0 meta l4proto { tcp, udp } counter drop",
        ]);
    }

    /// Hosts with keys, links and configurations for a tunnel over IPv4; nothing runs.
    pub(crate) fn new(clients: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Host::new("server", Namespace::new("server").unwrap(), folder.path());
        let clients = (0..clients)
            .map(|number| {
                let name = format!("client{number}");
                let namespace = Namespace::new(&name).unwrap();
                let there = format!("c{number}");
                veth(&namespace, "eth0", &server.namespace, &there).unwrap();
                for (host, link, last) in
                    [(&namespace, "eth0", 2), (&server.namespace, there.as_str(), 1)]
                {
                    host.set_up(link).unwrap();
                    host.add_address(link, &format!("10.77.{number}.{last}/24")).unwrap();
                    host.add_address(link, &format!("fd77:{number}::{last}/64")).unwrap();
                }
                Host::new(&name, namespace, folder.path())
            })
            .collect();
        let net = Self { clients, server, _folder: folder };
        net.configure_server("[::]:4433", "");
        for number in 0..net.clients.len() {
            net.configure_client(number, &format!("10.77.{number}.1:4433"), "");
        }
        net
    }

    pub(crate) fn configure_server(&self, listen: &str, more: &str) {
        let mut toml = format!(
            "role = \"server\"\nlisten = \"{listen}\"\n{more}\n[tun]\nname = \"roam0\"\n\
             addresses = [\"10.66.0.1/24\", \"fd66::1/64\"]\n"
        );
        for (number, client) in self.clients.iter().enumerate() {
            toml += &format!(
                "[[peer]]\nname = \"{}\"\npublic-key = \"{}\"\naddresses = [\"{}\", \"{}\"]\n",
                client.name,
                client.key(),
                inner_v4(number),
                inner_v6(number)
            );
        }
        self.server.configure(&toml);
    }

    pub(crate) fn configure_client(&self, number: usize, server: &str, more: &str) {
        self.clients[number].configure(&client_toml(server, &self.server.key(), more));
    }

    /// Starts the server and one client, and waits until its tunnel stands.
    pub(crate) fn start_only(&mut self, client: usize) {
        self.server.start();
        eventually("the server listens", || self.server.try_status());
        self.clients[client].start();
        self.clients[client].connected();
    }

    /// Starts the server and all clients, and waits until their tunnels stand.
    pub(crate) fn start(&mut self) {
        self.server.start();
        eventually("the server listens", || self.server.try_status());
        for client in &mut self.clients {
            client.start();
        }
        for client in &self.clients {
            client.connected();
        }
    }
}

pub(crate) fn client_toml(server: &str, key: &str, more: &str) -> String {
    format!(
        "role = \"client\"\n{more}\n[server]\naddress = [\"{server}\"]\npublic-key = \"{key}\"\n\
         [tun]\nname = \"roam0\"\n"
    )
}

pub(crate) fn inner_v4(number: usize) -> String {
    format!("10.66.0.{}", number + 2)
}

pub(crate) fn inner_v6(number: usize) -> String {
    format!("fd66::{}", number + 2)
}

/// Sends `length` bytes over TCP from one host to another and checks their digest on arrival.
pub(crate) fn transfer(from: &Host, to: &Host, address: &str, length: usize) {
    transfer_to(&from.namespace, (&to.namespace, address), length);
}

/// The same between namespaces.
pub(crate) fn transfer_to(from: &Namespace, (to, address): (&Namespace, &str), length: usize) {
    let address: std::net::IpAddr = address.parse().unwrap();
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut context = digest::Context::new(&digest::SHA256);
        let (mut buffer, mut received) = (vec![0; 1 << 16], 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return (received, context.finish()),
                count => {
                    received += count;
                    context.update(&buffer[..count]);
                }
            }
        }
    });
    let mut stream = from.run(|| TcpStream::connect(target).unwrap()).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut context = digest::Context::new(&digest::SHA256);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sent = 0;
    while sent < length {
        let mut block = vec![0; (length - sent).min(1 << 16)];
        for word in block.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        context.update(&block);
        stream.write_all(&block).unwrap();
        sent += block.len();
    }
    drop(stream);
    let (received, digest) = receiver.join().unwrap();
    assert_eq!(received, length);
    assert_eq!(digest.as_ref(), context.finish().as_ref(), "{length} bytes to {address}");
}
