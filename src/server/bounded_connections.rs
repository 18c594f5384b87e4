//! Bounds the connections of a peer that are not its session, since each costs memory.

use std::{collections::VecDeque, net::SocketAddr, sync::MutexGuard};

use quinn::{Connection, VarInt};

use crate::{mutex::Mutex, quic::close};

/// Connections of one kind and one peer, oldest first; at most `most`.
#[derive(Debug)]
pub(super) struct BoundedConnections {
    most: usize,
    open: Mutex<VecDeque<Connection>>,
}

/// A connection in [`BoundedConnections`]. When dropped, it removes the connection.
pub(super) struct Entry<'a> {
    set: &'a BoundedConnections,
    connection: &'a Connection,
}

impl BoundedConnections {
    /// Allows `most` connections.
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, VecDeque<Connection>> {
        self.open.lock()
    }

    /// Adds a connection; beyond the maximum the oldest is closed.
    pub(super) fn admit<'a>(&'a self, connection: &'a Connection) -> Entry<'a> {
        let mut open = self.open();
        open.push_back(connection.clone());
        if open.len() > self.most
            && let Some(oldest) = open.pop_front()
        {
            oldest.close(close::TAKEN_OVER, b"newer connections have this key");
        }
        Entry { set: self, connection }
    }

    /// Where they are, as quinn sees it.
    pub(super) fn remotes(&self) -> Vec<SocketAddr> {
        self.open().iter().map(Connection::remote_address).collect()
    }

    /// Closes all of them.
    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        for connection in self.open().drain(..) {
            connection.close(code, reason);
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.set.open().retain(|other| other.stable_id() != self.connection.stable_id());
    }
}
