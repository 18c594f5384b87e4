//! One open path: its socket, where it leads, and what it counts.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use quinn::{AsyncUdpSocket, udp::RecvMeta};

use super::VIRTUAL_SERVER;
use crate::{
    clock::{self, AtomicInstant},
    path::cut::Cut,
};

/// Identifies an open path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub(super) u64);

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counters of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Bytes handed to the kernel, UDP payload only.
    pub sent_bytes: u64,
    /// Bytes received from the server, UDP payload only.
    pub received_bytes: u64,
    /// Sends and receives that failed, other than by `EMSGSIZE` (a probe for a larger MTU).
    pub errors: u64,
    /// Datagrams that were not from the server.
    pub foreign: u64,
    /// When the server was last heard.
    pub last_heard: Option<Instant>,
}

/// The path, and what others read of it while it works.
pub(super) struct OpenPath {
    pub(super) id: PathId,
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    pub(super) server: SocketAddr,
    pub(super) cut: Cut,
    pub(super) failing: AtomicBool,
    pub(super) receives: AtomicBool,
    pub(super) sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
    foreign: AtomicU64,
    last_heard: AtomicInstant,
}

impl OpenPath {
    /// The path `id` over `socket` to `server`, over a link that `cut` is about.
    pub(super) fn new(
        id: PathId,
        socket: Arc<dyn AsyncUdpSocket>,
        server: SocketAddr,
        cut: Cut,
    ) -> Self {
        Self {
            id,
            socket,
            server: canonical(server),
            cut,
            failing: AtomicBool::new(false),
            receives: AtomicBool::new(true),
            sent_bytes: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            errors: AtomicU64::default(),
            foreign: AtomicU64::default(),
            last_heard: AtomicInstant::default(),
        }
    }

    /// Replaces the source of the server's datagrams by the virtual address and empties all others, which quinn
    /// then skips. Returns whether one was from the server. While the link is cut, nothing has arrived.
    pub(super) fn received(&self, meta: &mut [RecvMeta]) -> bool {
        if self.cut.is_on() {
            meta.iter_mut().for_each(|meta| meta.len = 0);
            return false;
        }
        let mut bytes = 0;
        for meta in meta {
            if canonical(meta.addr) == self.server {
                bytes += meta.len as u64;
                meta.addr = VIRTUAL_SERVER;
                meta.dst_ip = None;
            } else {
                self.foreign.fetch_add(1, Relaxed);
                meta.len = 0;
            }
        }
        if bytes > 0 {
            self.received_bytes.fetch_add(bytes, Relaxed);
            self.last_heard.set(clock::now());
            self.failing.store(false, Relaxed);
        }
        bytes > 0
    }

    pub(super) fn stats(&self) -> PathStats {
        PathStats {
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            errors: self.errors.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            last_heard: self.last_heard.get(),
        }
    }
}

/// The address without flow label and scope, and as IPv4 if a dual-stack socket shows it as IPv4-mapped IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
