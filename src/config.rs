//! What the user wants: one TOML file, overridden by the environment.
//!
//! ```text
//!  FILE, ROAMD_* ─▶ source (merge) ─▶ tree ─▶ read ─▶ raw ─▶ client | server ─▶ Config
//!                                              │ unknown keys,   │ what values mean
//!                                              │ wrong types     │ to each other
//!                                              └──▶ Problems ◀───┘
//! ```
//!
//! No step ends at its first problem: a value that cannot be used becomes `None` in
//! `raw`, and everything else is looked at all the same.
//!
//! `ROAMD_QUIC__IDLE_TIMEOUT=45s` sets `quic.idle-timeout`. A list is separated by commas;
//! an empty variable is as good as none; lists of tables are set in the file only.

mod budget;
mod check;
mod client;
mod congestion;
mod directory;
#[cfg(test)]
mod fake;
mod filter;
mod fleet;
mod host_port;
#[cfg(feature = "networkmanager")]
mod items;
mod keys;
mod lines;
mod problem;
mod proxy;
mod raw;
mod read;
#[cfg(test)]
mod reference;
mod relay;
pub(crate) mod rights;
mod server;
mod source;

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::identity::{PrivateKey, PublicKey};

pub use budget::{Budget, OverBudget, Period};
#[cfg(feature = "etcd")]
pub(crate) use check::is_name;
pub(crate) use check::{MAX_MTU, MIN_MTU, is_domain};
pub use congestion::Congestion;
pub(crate) use filter::Filter;
pub(crate) use host_port::{DEFAULT_PORT, HostPort};
#[cfg(feature = "networkmanager")]
pub(crate) use items::Items;
pub(crate) use problem::Problem;
pub use problem::{ConfigErrors, Origin};
pub(crate) use proxy::{Proxy, unusable as unusable_proxy};
pub(crate) use relay::Relay;
pub(crate) use server::misplaced;

/// Reads and checks the file at `path`, with this process's environment over it.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    Ok(Loaded::new(path, process_environment())?.config)
}

/// Reads what the file at `path` says of the directory, with this process's environment over it.
pub(crate) fn load_directory(path: &Path) -> Result<DirectoryFile, ConfigErrors> {
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigErrors::Unreadable { path: path.into(), error })?;
    read::load_directory(path, &text, process_environment())
}

/// The variables of this process's environment; what is not UTF-8 is made so, to be refused.
pub(crate) fn process_environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    })
}

/// One element of `tun.routes`, unchanged; an error says what is accepted.
pub(crate) fn tun_route(text: &str) -> Result<String, String> {
    let mut problems = problem::Problems::default();
    check::tun_routes(&Some(vec![Some(text.to_owned())]), &mut problems);
    let in_no_file = |_: &str| (Origin::File { line: None }, true);
    match problems.into_vec(in_no_file).pop() {
        Some(Problem { reason, .. }) => Err(reason),
        None => Ok(text.to_owned()),
    }
}

/// A configuration, with the text that would give the same one without any defaults.
#[derive(Debug)]
pub struct Loaded {
    /// What modules use.
    pub config: Config,
    effective: raw::RawConfig,
}

impl Loaded {
    /// Reads and checks the file at `path` with these variables over it.
    pub fn new(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigErrors::Unreadable { path: path.into(), error })?;
        Self::of_text(path, &text, environment)
    }

    /// The same for a file at `path` whose content is `text`.
    pub(crate) fn of_text(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (config, effective) = read::load(path, text, environment)?;
        Ok(Self { config, effective })
    }

    /// The file that the key was read from, if that is another one.
    #[must_use]
    pub fn key_file(&self) -> Option<&Path> {
        match &self.effective {
            raw::RawConfig::Client(raw) => raw.private_key_file.as_deref(),
            raw::RawConfig::Server(raw) => raw.private_key_file.as_deref(),
        }
    }

    /// The certificates and the key that etcd is reached with.
    pub(crate) fn etcd_files(&self) -> impl Iterator<Item = &Path> {
        let directory = match &self.config {
            Config::Client(_) => None,
            Config::Server(server) => server.directory.as_ref(),
        };
        let files = directory.map(|Directory { etcd, .. }| [&etcd.ca, &etcd.cert, &etcd.key]);
        files.into_iter().flatten().filter_map(|file| file.as_deref())
    }

    /// The effective configuration as TOML: every default filled in, no secrets.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&self.effective)
    }
}

/// A configuration that can be used.
#[derive(Debug)]
pub enum Config {
    /// `role = "client"`
    Client(ClientConfig),
    /// `role = "server"`
    Server(ServerConfig),
}

impl Config {
    /// This host's own key.
    pub fn private_key(&self) -> &PrivateKey {
        match self {
            Self::Client(client) => &client.private_key,
            Self::Server(server) => &server.private_key,
        }
    }

    /// The name of the TUN device.
    pub fn interface(&self) -> &str {
        match self {
            Self::Client(client) => &client.tun.name,
            Self::Server(server) => &server.tun.name,
        }
    }

    /// What to log, and how.
    pub fn log(&self) -> &Log {
        match self {
            Self::Client(client) => &client.log,
            Self::Server(server) => &server.log,
        }
    }

    /// What to say of a proxy of this process's environment that cannot be used.
    pub(crate) fn unusable_proxy(&self) -> Option<String> {
        match self {
            Self::Client(client) => client
                .servers
                .iter()
                .find_map(|server| unusable_proxy(server, process_environment())),
            Self::Server(_) => None,
        }
    }
}

/// A host that keeps a tunnel to a server.
#[derive(Debug)]
pub struct ClientConfig {
    /// This host's key, from `private-key-file`.
    pub private_key: PrivateKey,
    /// Where the tunnel leads: one of these, at least one, the preferred one first.
    pub servers: Vec<ServerPeer>,
    /// What is done at home, which is where the first server answers at one of its [`ServerPeer::home`] addresses.
    pub home: HomeMode,
    /// The TUN device.
    pub tun: ClientTun,
    /// How paths are chosen.
    pub paths: Paths,
    /// The connection.
    pub quic: Quic,
    /// What to log.
    pub log: Log,
    /// Where Prometheus finds figures, if anywhere.
    pub metrics: Option<Metrics>,
}

impl ClientConfig {
    /// The keys whose change takes a restart, of those that differ in `new`.
    #[must_use]
    pub fn takes_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("private-key", self.private_key.public_key() != new.private_key.public_key()),
            ("tun.name", self.tun.name != new.tun.name),
            ("tun.mtu", self.tun.mtu != new.tun.mtu),
            ("tun.offload", self.tun.offload != new.tun.offload),
            ("quic", self.quic != new.quic),
            ("log.format", self.log.format != new.log.format),
            ("metrics.listen", self.metrics != new.metrics),
        ];
        only_changed(&changed)
    }

    /// What is in force after a reload of `new`: a key whose change takes a restart keeps its value.
    #[must_use]
    pub fn reloaded(&self, new: Self) -> Self {
        Self {
            private_key: self.private_key.clone(),
            servers: new.servers,
            home: new.home,
            tun: ClientTun {
                name: self.tun.name.clone(),
                mtu: self.tun.mtu,
                offload: self.tun.offload,
                ..new.tun
            },
            paths: new.paths,
            quic: self.quic.clone(),
            log: Log { format: self.log.format, ..new.log },
            metrics: self.metrics.clone(),
        }
    }
}

fn only_changed(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    keys.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect()
}

/// A server, as a client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPeer {
    /// For people; without one its first address.
    pub name: String,
    /// Names and addresses, at least one; all are tried.
    pub addresses: Vec<HostPort>,
    /// Its TCP port, for networks that let no UDP out, if it has one.
    pub tcp_port: Option<u16>,
    /// The HTTP proxy that leads to its TCP port, if there is one.
    pub proxy: Option<Box<Proxy>>,
    /// A CONNECT-UDP relay of somebody else that leads to it, if there is one.
    pub relay: Option<Relay>,
    /// Its addresses in its own network, which count only on a link of that network.
    pub home: Vec<SocketAddr>,
    /// The only key that is believed to be the server's.
    pub public_key: PublicKey,
}

/// What a client does at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HomeMode {
    /// The tunnel carries on, over the direct path.
    Direct,
    /// The tunnel stands aside: its routes are withdrawn, and its session stays.
    Off,
}

/// A client's TUN device; its addresses come from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTun {
    /// The interface's name.
    pub name: String,
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// Whether segmentation and checksums are left to this process, as far as the kernel does that.
    pub offload: bool,
    /// What goes into the tunnel; `None` takes what the server offers.
    pub routes: Option<Vec<IpNet>>,
    /// What stays outside although [`Self::routes`] has it.
    pub exclude: Exclude,
    /// Whether what belongs into the tunnel stays unsent where there is none.
    pub kill_switch: bool,
    /// The resolvers inside the tunnel; `None` takes what the server offers.
    pub dns: Option<Dns>,
}

/// What stays outside of the tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclude {
    /// Whatever the host has a route for that is not its default route.
    pub lan: bool,
    /// Everything, for as long as a captive portal keeps the tunnel from connecting.
    pub portal: bool,
    /// These prefixes.
    pub nets: Vec<IpNet>,
}

/// Resolvers inside the tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Their addresses.
    pub servers: Vec<IpAddr>,
    /// The domains that they are asked about.
    pub domains: Vec<String>,
}

/// Where figures are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metrics {
    /// Over TCP, on this host alone.
    Loopback(SocketAddr),
    /// On a UNIX socket.
    Socket(PathBuf),
}

/// How a client chooses among its links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// How long a probe may take before its path has failed.
    pub probe_timeout: Duration,
    /// How often a standby is asked whether it still works; `None` for never. On a metered link it is
    /// asked twenty times more rarely.
    pub standby_check: Option<Duration>,
    /// Bytes a minute of copies that may go over a metered standby, each way.
    pub metered_copies: u32,
    /// Whether the next server is asked now and then over a metered link, too.
    pub metered_reserve: bool,
    /// Best first; a link is ranked by the first one that matches.
    pub prefer: Vec<Preference>,
    /// Links that are never used: names in which `*` and `?` are wildcards.
    pub ignore: Vec<String>,
}

/// A rank among links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preference {
    /// The links' name, in which `*` and `?` are wildcards.
    pub link: String,
    /// Whether traffic costs money there.
    pub metered: bool,
    /// How much each of them may carry.
    pub budget: Option<Budget>,
}

/// The QUIC connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quic {
    /// Silence after which the connection, though not the session, is given up.
    pub idle_timeout: Duration,
    /// Silence after which a packet is sent to keep the connection; less than half of
    /// [`Quic::idle_timeout`].
    pub keep_alive: Duration,
    /// The congestion controller.
    pub congestion: Congestion,
    /// The class in the outer packets' headers (DSCP, RFC 2474); 0 is best effort.
    pub dscp: u8,
}

/// What to log, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Which events.
    pub level: Filter,
    /// In which form.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A host to which clients keep tunnels.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// This host's key, from `private-key-file`.
    pub private_key: PrivateKey,
    /// Where clients are awaited (UDP); one address at least.
    pub listen: Vec<SocketAddr>,
    /// Where clients are awaited whose networks let no UDP out (TCP), if anywhere.
    pub listen_tcp: Option<SocketAddr>,
    /// How long a stop waits for clients that have another server to go to.
    pub drain: Duration,
    /// The TUN device.
    pub tun: ServerTun,
    /// Who may connect.
    pub peers: Vec<Peer>,
    /// Where more of them are, if anywhere.
    pub directory: Option<Directory>,
    /// What new clients are told of all servers that share the directory, the preferred one first.
    pub fleet: Vec<ServerPeer>,
    /// Every connection.
    pub quic: Quic,
    /// What to log.
    pub log: Log,
    /// Where Prometheus finds figures, if anywhere.
    pub metrics: Option<Metrics>,
}

impl ServerConfig {
    /// The keys whose change takes a restart, of those that differ in `new`.
    #[must_use]
    pub fn takes_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("private-key", self.private_key.public_key() != new.private_key.public_key()),
            ("listen", self.listen != new.listen),
            ("listen-tcp", self.listen_tcp != new.listen_tcp),
            ("tun.name", self.tun.name != new.tun.name),
            ("tun.mtu", self.tun.mtu != new.tun.mtu),
            ("tun.offload", self.tun.offload != new.tun.offload),
            ("tun.addresses", self.tun.addresses != new.tun.addresses),
            ("tun.nat", self.tun.nat != new.tun.nat),
            ("tun.peer-routes", self.tun.peer_routes != new.tun.peer_routes),
            ("directory", self.directory != new.directory),
            ("quic", self.quic != new.quic),
            ("log.format", self.log.format != new.log.format),
            ("metrics.listen", self.metrics != new.metrics),
        ];
        only_changed(&changed)
    }

    /// What is in force after a reload of `new`: a key whose change takes a restart keeps its value.
    #[must_use]
    pub fn reloaded(&self, new: Self) -> Self {
        Self {
            private_key: self.private_key.clone(),
            listen: self.listen.clone(),
            listen_tcp: self.listen_tcp,
            drain: new.drain,
            tun: ServerTun { routes: new.tun.routes, dns: new.tun.dns, ..self.tun.clone() },
            peers: new.peers,
            directory: self.directory.clone(),
            fleet: new.fleet,
            quic: self.quic.clone(),
            log: Log { format: self.log.format, ..new.log },
            metrics: self.metrics.clone(),
        }
    }
}

/// Where several servers have their peers together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// What the other servers know this one by.
    pub name: String,
    /// Where it is.
    pub etcd: Etcd,
    /// The file with what the keys of tickets are encrypted under there; without one, none are shared.
    pub ticket_key_file: Option<PathBuf>,
}

/// A file that names a directory.
#[derive(Debug, Default)]
pub(crate) struct DirectoryFile {
    /// The directory; none if the file does not name one.
    pub(crate) directory: Option<Directory>,
    /// What new clients are told of the servers that share it.
    pub(crate) fleet: Vec<ServerPeer>,
    /// A server's inner addresses with the networks that the peers share.
    pub(crate) networks: Vec<IpNet>,
    /// The server, if the file is one's.
    pub(crate) server: Option<ServerConfig>,
}

/// etcd, as this host reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// The URLs of its members, at least one; all with `https://` or all with `http://`.
    pub endpoints: Vec<String>,
    /// What the names of all keys begin with.
    pub prefix: String,
    /// The certificates of who signs the members'; there if they are reached by `https://`.
    pub ca: Option<PathBuf>,
    /// This host's certificate, where etcd asks for one.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// A server's TUN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTun {
    /// The interface's name.
    pub name: String,
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// Whether segmentation and checksums are left to this process, as far as the kernel does that.
    pub offload: bool,
    /// The interface's own addresses, each with the prefix that peers share; at least one.
    pub addresses: Vec<IpNet>,
    /// Offered to clients that name no routes of their own.
    pub routes: Vec<IpNet>,
    /// Offered to clients that name no resolvers of their own.
    pub dns: Dns,
    /// Whether peers reach other networks with this host's addresses.
    pub nat: bool,
    /// Whether this host has a route to each inner address of a peer whose session is here.
    pub peer_routes: bool,
}

/// A client, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// For people; unique.
    pub name: String,
    /// Its identity; unique.
    pub public_key: PublicKey,
    /// Its inner addresses, at least one; no other peer has them.
    pub addresses: Vec<IpAddr>,
}
