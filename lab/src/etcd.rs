//! etcd for tests: members of one cluster, each with a folder and ports of its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU8, Ordering},
};

/// A loopback address of this test's own. A port that was free a moment ago may be another test's by the time that etcd
/// takes it; then both would talk to the same etcd, until one of them ends it.
#[must_use]
pub fn loopback() -> IpAddr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high & 63, low, 1 + LAST.fetch_add(1, Ordering::Relaxed) % 254).into()
}

/// A member of a cluster of etcd.
#[derive(Clone, Debug)]
pub struct Member {
    name: String,
    folder: PathBuf,
    clients: SocketAddr,
    peers: SocketAddr,
}

impl Member {
    /// A member that keeps its data below `folder` and has two ports at `address`.
    #[must_use]
    pub fn new(name: &str, folder: &Path, clients: SocketAddr, peers: SocketAddr) -> Self {
        Self { name: name.into(), folder: folder.join(name), clients, peers }
    }

    /// The members m0, m1 and so on of a cluster, with ports that nobody else has at the moment.
    ///
    /// # Errors
    ///
    /// When the kernel has none.
    pub fn cluster(count: usize, folder: &Path, address: IpAddr) -> std::io::Result<Vec<Self>> {
        // All at once, so that they differ: etcd ends if two of its URLs are the same.
        let bind = |_| TcpListener::bind((address, 0));
        let held = (0..2 * count).map(bind).collect::<std::io::Result<Vec<_>>>()?;
        let ports =
            held.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
        let member =
            |(n, at): (usize, &[SocketAddr])| Self::new(&format!("m{n}"), folder, at[0], at[1]);
        Ok(ports.chunks(2).enumerate().map(member).collect())
    }

    /// Where clients find it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.clients)
    }

    /// Its data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What runs it, as one of `cluster`. A cluster that was once begun goes on.
    #[must_use]
    pub fn command(&self, cluster: &[Self]) -> Command {
        let all: Vec<_> =
            cluster.iter().map(|it| format!("{}=http://{}", it.name, it.peers)).collect();
        let (clients, peers) = (self.endpoint(), format!("http://{}", self.peers));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.folder)
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &all.join(","), "--log-level", "error"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command
    }
}
