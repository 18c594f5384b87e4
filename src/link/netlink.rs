//! A route netlink socket (rtnetlink(7)) and the task that serves it.

use std::{
    io,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use futures_util::{TryStream, TryStreamExt as _};
use nix::errno::Errno;
use rtnetlink::Handle;
use tracing::warn;

use crate::{
    mutex::Mutex,
    task::{Task, entire},
};

/// A dump ends within milliseconds, unless its last message was lost because the socket's buffer was full.
const DUMP: Duration = Duration::from_secs(2);

/// An open netlink socket. It is closed when this is dropped; handles then fail.
#[derive(Debug)]
pub struct Netlink {
    socket: Arc<Mutex<Socket>>,
    /// Held by the dump that is under way: the kernel makes one at a time for a socket, and refuses a second one.
    dumping: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Socket {
    handle: Handle,
    connection: Task,
    strict: bool,
}

impl Socket {
    fn open(strict: bool) -> io::Result<Self> {
        let opened = if strict {
            // Linux knows it since 4.20.
            rtnetlink::new_connection_with_strict_check().or_else(|_| rtnetlink::new_connection())
        } else {
            rtnetlink::new_connection()
        };
        let (connection, handle, _messages) = opened?;
        Ok(Self { handle, connection: Task::spawn("netlink", connection), strict })
    }

    /// Opens another one in its place.
    fn renew(&mut self) {
        match Self::open(self.strict) {
            Ok(open) => *self = open,
            Err(error) => warn!(%error, "cannot open another netlink socket"),
        }
    }
}

impl Netlink {
    /// Opens the socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self::with(Socket::open(false)?))
    }

    /// The same, with a kernel that answers exactly what is asked (`NETLINK_GET_STRICT_CHK`), where it can.
    pub fn open_strict() -> io::Result<Self> {
        Ok(Self::with(Socket::open(true)?))
    }

    fn with(socket: Socket) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)), dumping: Arc::default() }
    }

    /// Makes requests. The task ends at a message that it cannot read; then this opens another socket.
    #[must_use]
    pub fn handle(&self) -> Handle {
        let mut socket = self.socket();
        if socket.connection.is_finished() {
            socket.renew();
        }
        socket.handle.clone()
    }

    /// Makes a dump, after those that others make. The kernel goes on with it although nobody waits for it any more. One that
    /// does not end fails, and the socket is opened anew.
    pub(crate) async fn dump<S>(
        &self,
        request: impl FnOnce(Handle) -> S,
    ) -> Result<Vec<S::Ok>, rtnetlink::Error>
    where
        S: TryStream<Ok: Send, Error = rtnetlink::Error> + Send + 'static,
    {
        let turn = self.dumping.clone().lock_owned().await;
        let (dump, socket) = (request(self.handle()).try_collect(), self.socket.clone());
        entire(async move {
            let _turn = turn;
            tokio::time::timeout(DUMP, dump).await.unwrap_or_else(|_| {
                socket.lock().renew();
                Err(rtnetlink::Error::RequestFailed)
            })
        })
        .await
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock()
    }
}

/// The operating system's error behind a netlink one, if it is one.
#[must_use]
pub(crate) fn os_error(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Success also where the kernel says that nothing was left to do.
pub(crate) fn unless(
    done: Errno,
    result: Result<(), rtnetlink::Error>,
) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if os_error(&error) == Some(done as i32) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};

    use super::*;

    async fn ask(netlink: &Netlink) -> bool {
        netlink.handle().link().get().execute().try_next().await.is_ok_and(|link| link.is_some())
    }

    #[tokio::test]
    async fn a_socket_whose_task_ended_is_opened_again() {
        let netlink = Netlink::open().unwrap();
        assert!(ask(&netlink).await);
        netlink.socket().connection.abort();
        tokio::task::yield_now().await;
        assert!(ask(&netlink).await, "the first question after the end");
        assert!(ask(&netlink).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dump_that_does_not_end_fails_and_the_next_one_is_made_on_another_socket() {
        let netlink = Netlink::open().unwrap();
        let endless = netlink.dump(|_| stream::pending::<Result<(), rtnetlink::Error>>());
        let begun = tokio::time::Instant::now();
        assert!(endless.await.is_err());
        assert_eq!(begun.elapsed(), DUMP);
        tokio::time::resume();
        let links = netlink.dump(|handle| handle.link().get().execute()).await;
        assert!(links.is_ok_and(|it| !it.is_empty()));
    }

    #[tokio::test]
    async fn a_dump_for_which_nobody_waits_any_more_is_over_before_the_next_one() {
        let netlink = Netlink::open().unwrap();
        for _ in 0..20 {
            let links = || netlink.dump(|handle| handle.link().get().execute());
            assert!(links().now_or_never().is_none(), "it takes a while");
            assert!(links().await.is_ok_and(|it| !it.is_empty()));
        }
    }
}
