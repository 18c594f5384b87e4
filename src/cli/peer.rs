//! `roamd peer add`, `list` and `remove`: the server's file, edited as a person would, and the client's file
//! that goes with it; or the directory that several servers share.

mod client;
mod directory;
mod file;

use std::{
    collections::HashSet,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use ipnet::IpNet;

use self::file::{Lock, ServerFile};
use super::{
    complete::{configured, peers},
    exit::Exit,
    tunnel::{self, Tunnel},
};
use crate::{
    config::{self, Config, HostPort, Loaded, Peer, ServerConfig, ServerPeer, process_environment},
    daemon::control::{ControlError, Request},
    host::instance::Instance,
    identity::{PrivateKey, PublicKey},
};

const ADD_HELP: &str = "\
The client's configuration holds its private key: send it over a safe way, and only to the client. With \
--public-key the client keeps its own key, and writes private-key-file itself.

Examples:
  roamd peer add laptop --endpoint vpn.example.net > laptop.toml
  roamd peer add nas home --endpoint 192.0.2.1:443 --output nas.toml
  roamd peer add phone home --directory > phone.toml    all servers of [[directory.server]]";
const QR_EXAMPLE: &str = if cfg!(feature = "qr") {
    "\n  roamd peer add tablet --endpoint vpn.example.net --qr"
} else {
    ""
};

/// What to do with a server's peers.
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Add a client: make its key, find addresses for it, and print its configuration
    #[command(after_help = ADD_HELP.to_owned() + QR_EXAMPLE)]
    Add(Add),
    /// Show who may connect
    List(Which),
    /// Remove a client: it is cut off at once
    Remove {
        /// The peer's name
        #[arg(value_name = "PEER", add = peers())]
        name: String,
        /// Where it is written
        #[command(flatten)]
        which: Which,
    },
    /// Say that the directory is right as it is, after etcd was restored from a backup
    Confirm {
        /// A tunnel whose file names the directory [default: the only one in /etc/roamd]
        #[arg(value_name = "NAME|FILE", add = configured())]
        tunnel: Option<Tunnel>,
    },
}

/// Where the peers are.
#[derive(Debug, Args)]
pub struct Which {
    /// The server [default: the only tunnel in /etc/roamd]
    #[arg(value_name = "NAME|FILE", add = configured())]
    tunnel: Option<Tunnel>,
    /// Peers in the directory that the server's file names, and not in the file itself. [directory] and
    /// tun.addresses are all that this file needs
    #[arg(short, long)]
    directory: bool,
}

/// A new peer.
#[derive(Debug, Args)]
pub struct Add {
    /// A name for people
    #[arg(value_name = "PEER")]
    name: String,
    #[command(flatten)]
    which: Which,
    /// Where clients reach the server, a name or address with or without a port; may be repeated [default: what the
    /// server's file says in [[directory.server]]; with --directory of all servers, else of this one]
    #[arg(short, long, value_name = "HOST[:PORT]")]
    endpoint: Vec<HostPort>,
    /// What the client sends into the tunnel, such as "default"; may be repeated [default: what the
    /// server offers]
    #[arg(short, long, value_name = "PREFIX", value_parser = config::tun_route)]
    route: Vec<String>,
    /// An inner address instead of a free one; may be repeated
    #[arg(short, long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// The client's key, if it has one
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
    /// Write the client's configuration to a new file of mode 0600 instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show the client's configuration as a QR code, for a client with a camera
    #[cfg(feature = "qr")]
    #[arg(long, conflicts_with = "output")]
    qr: bool,
}

/// Does it.
pub(crate) fn peer(command: PeerCommand) -> anyhow::Result<()> {
    match command {
        PeerCommand::Add(add) => match add.which.place()? {
            Place::File(path) => add.run(&path),
            Place::Directory(path) => directory::add(&add, &path),
        },
        PeerCommand::List(which) => match which.place()? {
            Place::File(path) => list(&path),
            Place::Directory(path) => directory::list(&path),
        },
        PeerCommand::Remove { name, which } => match which.place()? {
            Place::File(path) => remove(&name, &path),
            Place::Directory(path) => directory::remove(&name, &path),
        },
        PeerCommand::Confirm { tunnel } => directory::confirm(&tunnel::file(tunnel.as_ref())?),
    }
}

enum Place {
    File(PathBuf),
    Directory(PathBuf),
}

impl Which {
    fn place(&self) -> anyhow::Result<Place> {
        let path = tunnel::file(self.tunnel.as_ref())?;
        Ok(if self.directory { Place::Directory(path) } else { Place::File(path) })
    }
}

fn server(path: &Path) -> anyhow::Result<ServerConfig> {
    match Loaded::new(path, process_environment())?.config {
        Config::Server(server) => Ok(server),
        Config::Client(_) => {
            let path = path.display();
            Err(Exit::Config.because(anyhow!("{path} is a client's; peers are a server's")))
        }
    }
}

impl Add {
    fn run(self, path: &Path) -> anyhow::Result<()> {
        let lock = Lock::of(path)?;
        let server = server(path)?;
        let taken = server.peers.iter().find(|peer| peer.name == self.name);
        ensure!(taken.is_none(), "{} has a peer called {} already", path.display(), self.name);
        let (key, public_key) = self.key()?;
        let addresses = match self.address.is_empty() {
            true => free_addresses(&server.tun.addresses, &addresses_of(&server))?,
            false => self.address.clone(),
        };
        let peer = Peer { name: self.name.clone(), public_key, addresses };
        let mut file = ServerFile::open(path)?;
        file.add(&peer);
        // The other servers of a fleet do not know this peer.
        let own = |it: &&ServerPeer| it.public_key == server.private_key.public_key();
        let own: Vec<_> = server.fleet.iter().filter(own).cloned().collect();
        let servers = self.servers(&own, Some(&server), path)?;
        let text = client::toml(&servers, key.as_ref(), &self.route);
        // The client's file first: with half of it done, nobody is let in.
        let checked = file.check(path)?;
        match &self.output {
            Some(output) => client::write_new(output, &text)?,
            None => self.print(&text)?,
        }
        if let Err(error) = checked.replace() {
            if let Some(output) = &self.output {
                let _ = std::fs::remove_file(output);
            }
            return Err(error);
        }
        drop(lock);
        let mut stderr = io::stderr().lock();
        self.say(&peer, &path.display().to_string(), &mut stderr)?;
        tell_daemon(path, &mut stderr)
    }

    /// The servers in the client's file: the one at the endpoints, or else those of the `fleet`, as `path` has it.
    fn servers(
        &self,
        fleet: &[ServerPeer],
        known: Option<&ServerConfig>,
        path: &Path,
    ) -> anyhow::Result<Vec<client::Server>> {
        if !self.endpoint.is_empty() {
            return Ok(vec![client::Server::at(&self.endpoint, known)]);
        }
        if fleet.is_empty() {
            let path = path.display();
            return Err(Exit::Usage.because(anyhow!(
                "where do clients reach the server? Say --endpoint HOST, or tell of it in a [[directory.server]] of {path}"
            )));
        }
        Ok(fleet.iter().map(|it| client::Server::of(it, known)).collect())
    }

    /// The client's key pair; of a client that has one already, the public half.
    fn key(&self) -> anyhow::Result<(Option<PrivateKey>, PublicKey)> {
        if let Some(public) = self.public_key {
            return Ok((None, public));
        }
        let key = PrivateKey::generate()?;
        let public = key.public_key();
        Ok((Some(key), public))
    }

    /// Shows the client's configuration.
    fn print(&self, text: &str) -> anyhow::Result<()> {
        #[cfg(feature = "qr")]
        if self.qr {
            return client::show_qr(text);
        }
        Ok(io::stdout().lock().write_all(text.as_bytes())?)
    }

    fn say(&self, peer: &Peer, place: &str, stderr: &mut impl io::Write) -> io::Result<()> {
        let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
        writeln!(stderr, "{} has {} in {place}", peer.name, addresses.join(", "))
    }
}

fn list(path: &Path) -> anyhow::Result<()> {
    show(&server(path)?.peers)
}

fn show(peers: &[Peer]) -> anyhow::Result<()> {
    let width = peers.iter().map(|peer| peer.name.chars().count()).max().unwrap_or(0);
    let mut stdout = io::stdout().lock();
    for peer in peers {
        let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
        let (name, key) = (&peer.name, peer.public_key);
        writeln!(stdout, "{name:width$}  {key}  {}", addresses.join(", "))?;
    }
    Ok(())
}

fn remove(name: &str, path: &Path) -> anyhow::Result<()> {
    let lock = Lock::of(path)?;
    let server = server(path)?;
    let Some(at) = server.peers.iter().position(|peer| peer.name == name) else {
        let names: Vec<_> = server.peers.iter().map(|peer| peer.name.as_str()).collect();
        let names = if names.is_empty() { "nobody".into() } else { names.join(", ") };
        bail!("{} has no peer called {name}, but {names}", path.display());
    };
    let mut file = ServerFile::open(path)?;
    file.remove(at);
    file.check(path)?.replace()?;
    drop(lock);
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "{name} is not in {} any more", path.display())?;
    tell_daemon(path, &mut stderr)
}

/// Makes a running daemon heed the file.
fn tell_daemon(path: &Path, stderr: &mut impl io::Write) -> anyhow::Result<()> {
    match Instance::of_file(path).tell(&Request::Reload) {
        Ok(_) => writeln!(stderr, "the running server heeds it")?,
        Err(ControlError::NotRunning { .. }) => {}
        Err(error) => {
            writeln!(stderr, "roamd: warning: the running server does not heed it: {error}")?
        }
    }
    Ok(())
}

/// All addresses that a server's file gives to somebody.
fn addresses_of(server: &ServerConfig) -> HashSet<IpAddr> {
    let peers = server.peers.iter().flat_map(|peer| peer.addresses.iter().copied());
    peers.chain(server.tun.addresses.iter().map(IpNet::addr)).collect()
}

/// The first free address of each network.
fn free_addresses(networks: &[IpNet], taken: &HashSet<IpAddr>) -> anyhow::Result<Vec<IpAddr>> {
    networks
        .iter()
        .map(|net| {
            let mut hosts = hosts(net);
            hosts.find(|host| !taken.contains(host)).with_context(|| {
                format!("every address of {} is taken: use a larger network", net.trunc())
            })
        })
        .collect()
}

fn hosts(net: &IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match net {
        IpNet::V4(net) => Box::new(net.hosts().map(|host: Ipv4Addr| host.into())),
        // Its first address is for routers (RFC 4291 §2.6.1).
        IpNet::V6(net) if net.prefix_len() < 127 => {
            Box::new(net.hosts().skip(1).map(|host: Ipv6Addr| host.into()))
        }
        IpNet::V6(net) => Box::new(net.hosts().map(|host: Ipv6Addr| host.into())),
    }
}
