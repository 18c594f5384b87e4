//! Hears of changes to links, addresses, routes and rules: one netlink socket for the whole process.
//!
//! ```text
//!  kernel ──▶ netlink socket ──▶ task ──hint──▶ watch ─┬─▶ Hints: roaming, dialing
//!                                                      ├─▶ Hints: interface, routing rules
//!                                                      └─▶ Hints: the server's names
//! ```
//! Messages are hints only: each consumer reads the whole state again and compares. So a message that was lost,
//! repeated or about something else does no harm. Messages that the kernel dropped (ENOBUFS) are a hint, as is a
//! socket that was opened again. A poll every 5 s finds changes without a message; all consumers make it at once, so
//! that a machine that saves power wakes up for one only.

use std::{
    io,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt as _, stream};
use rtnetlink::MulticastGroup;
use tokio::{sync::watch, time};
use tracing::warn;

use crate::{clock, task::Task};

/// The groups whose messages can mean that a path appeared or vanished.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// The interval of the poll.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// The pause before a failed netlink socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Listens to the kernel. Hints come for as long as it exists.
#[derive(Debug)]
pub(crate) struct Monitor {
    hints: watch::Sender<()>,
    since: Instant,
    _task: Task,
}

impl Monitor {
    /// Opens the netlink socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        Self::follow(|| {
            let (connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
            // It reads the socket for as long as it is polled.
            let connection = stream::once(connection).filter_map(|()| std::future::ready(None));
            Ok(stream::select(messages.map(drop), connection).boxed())
        })
    }

    /// Turns the messages of a stream into hints. When it ends, `open` gives the next one.
    fn follow<S>(open: impl FnMut() -> io::Result<S> + Send + 'static) -> io::Result<Self>
    where
        S: Stream + Send + Unpin + 'static,
    {
        let (mut open, hints) = (open, watch::Sender::default());
        let task = Task::spawn("monitor", pass_on(open()?, open, hints.clone()));
        Ok(Self { hints, since: clock::now(), _task: task })
    }

    /// Hints of all changes after this call.
    pub(crate) fn hints(&self) -> Hints {
        Hints { changes: self.hints.subscribe(), since: self.since }
    }
}

async fn pass_on<S: Stream + Unpin>(
    mut messages: S,
    mut open: impl FnMut() -> io::Result<S>,
    hints: watch::Sender<()>,
) {
    loop {
        while messages.next().await.is_some() {
            hints.send_replace(());
        }
        warn!("the netlink socket failed: polling for a moment");
        time::sleep(REOPEN).await;
        match open() {
            Ok(opened) => messages = opened,
            Err(error) => warn!(%error, "cannot hear of network changes, polling instead"),
        }
        // Changes may have been missed meanwhile.
        hints.send_replace(());
    }
}

/// The hints of one consumer. All changes while it does not wait make one hint.
#[derive(Clone, Debug)]
pub struct Hints {
    changes: watch::Receiver<()>,
    /// The polls are whole intervals after this.
    since: Instant,
}

impl Hints {
    /// The hints of a kernel that is told of by `hints`.
    pub(crate) fn of(hints: &watch::Sender<()>) -> Self {
        Self { changes: hints.subscribe(), since: clock::now() }
    }

    /// Gives no hints.
    pub fn none() -> Self {
        Self::of(&watch::Sender::default())
    }

    /// Hints for another consumer, of all changes after this call.
    #[must_use]
    pub(crate) fn again(&self) -> Self {
        let mut again = self.clone();
        again.changes.mark_unchanged();
        again
    }

    /// Returns after a change, or when the next poll is due. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        let since_poll = clock::now().duration_since(self.since).as_nanos() % POLL.as_nanos();
        let until_poll = POLL - Duration::from_nanos(since_poll as u64);
        // A timeout is the poll.
        let _ = time::timeout(until_poll, self.hint()).await;
    }

    /// Returns after a change, and consumes all hints so far. Cancel safe.
    pub(crate) async fn hint(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;

    fn is_hinted(hints: &mut Hints) -> bool {
        hints.hint().now_or_never().is_some()
    }

    /// A monitor of streams in memory. A stream ends when its sender is dropped, and the next one follows.
    fn monitor(streams: usize) -> (Monitor, Vec<mpsc::UnboundedSender<()>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..streams).map(|_| mpsc::unbounded_channel()).unzip();
        let mut receivers = receivers.into_iter();
        let monitor = Monitor::follow(move || {
            let receiver = receivers.next().ok_or(io::ErrorKind::NotConnected)?;
            Ok(Box::pin(stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|message| (message, receiver))
            })))
        });
        (monitor.unwrap(), senders)
    }

    #[tokio::test(start_paused = true)]
    async fn every_consumer_hears_once_of_many_messages() {
        let (monitor, kernel) = monitor(1);
        let (mut first, mut second) = (monitor.hints(), monitor.hints());
        for _ in 0..100 {
            kernel[0].send(()).unwrap();
        }
        time::sleep(Duration::from_millis(1)).await;
        assert!(is_hinted(&mut first) && !is_hinted(&mut first));
        let mut late = second.again();
        assert!(!is_hinted(&mut late), "what was before");
        assert!(is_hinted(&mut second) && !is_hinted(&mut second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_failed_is_a_hint_and_another_one_is_heard() {
        let (monitor, mut kernel) = monitor(2);
        let mut hints = monitor.hints();
        drop(kernel.remove(0));
        time::timeout(2 * REOPEN, hints.hint()).await.unwrap();
        assert!(!is_hinted(&mut hints));
        kernel[0].send(()).unwrap();
        time::timeout(REOPEN, hints.hint()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_hint_all_consumers_read_the_links_at_once() {
        let (monitor, kernel) = monitor(1);
        let begun = clock::now();
        time::sleep(POLL / 5).await;
        let mut first = monitor.hints();
        kernel[0].send(()).unwrap();
        first.changed().await;
        assert_eq!(clock::now(), begun + POLL / 5);
        let mut second = first.again();
        for polls in 1..4 {
            let late = async {
                time::sleep(POLL / 4).await;
                second.changed().await;
                clock::now()
            };
            let ((), at) = tokio::join!(first.changed(), late);
            assert_eq!((clock::now(), at), (begun + polls * POLL, begun + polls * POLL));
        }
    }
}
