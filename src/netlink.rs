//! A route netlink socket (rtnetlink(7)) and the task that serves it.

use std::io;

use rtnetlink::Handle;
use tokio::task::JoinHandle;

/// An open netlink socket. It is closed when this is dropped; handles then fail.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens the socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _messages) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Makes requests.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The operating system's error behind a netlink one, if it is one.
#[must_use]
pub fn os_error(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}
