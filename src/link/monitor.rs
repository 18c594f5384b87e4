//! Hears of changes to links, addresses, routes and rules.
//!
//! Messages are hints only: whoever listens looks at the whole state again and compares. So a
//! message that was lost, repeated or about something else does no harm. A slow poll is the net
//! below: for messages that the kernel dropped (ENOBUFS), and for what it never tells.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use rtnetlink::MulticastGroup;
use tokio::time;
use tracing::warn;

use crate::task::Task;

/// What can make a path appear or vanish.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// The longest without a look.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// From a netlink socket that failed to the next.
const REOPEN: Duration = Duration::from_secs(1);

/// Listens to the kernel.
pub struct Monitor {
    hints: BoxStream<'static, ()>,
    /// What reads the netlink socket.
    _connection: Option<Task>,
}

impl Monitor {
    /// Opens the netlink socket in the namespace of the calling thread.
    pub fn open() -> std::io::Result<Self> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        let hints = messages.map(|_| ()).boxed();
        Ok(Self { hints, _connection: Some(Task::spawn("netlink", connection)) })
    }

    /// Listens to a simulated kernel.
    #[cfg(test)]
    pub(crate) fn of(hints: BoxStream<'static, ()>) -> Self {
        Self { hints, _connection: None }
    }

    /// Returns when it is time to look: at once after a change, and now and then without one.
    /// Cancel safe.
    pub async fn changed(&mut self) {
        // Without a hint it is time for the poll.
        let _ = time::timeout(POLL, self.hint()).await;
    }

    /// Returns when the kernel tells of a change, and takes all that it told so far. Cancel safe.
    pub async fn hint(&mut self) {
        if self.hints.next().await.is_some() {
            while self.hints.next().now_or_never().flatten().is_some() {}
            return;
        }
        time::sleep(REOPEN).await;
        match Self::open() {
            Ok(reopened) => *self = reopened,
            Err(error) => warn!(%error, "can't hear of network changes, polling instead"),
        }
    }
}
