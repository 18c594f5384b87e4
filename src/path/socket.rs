//! The one socket that quinn sees, in front of the sockets of all open paths.
//!
//! - Sends leave by the active path; receives come from every open one, so that what is still under
//!   way on an old path after a switch is not lost.
//! - quinn talks to one virtual server address; each path maps it to the real one. So a connection
//!   can move between IPv4 and IPv6, and to another address of the same server.
//! - No I/O error reaches quinn: one from a send would leave a connection that neither works nor
//!   ends, one from a receive ends the endpoint. Errors become [`PathError`]s.

mod open;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::{Notify, mpsc};

use self::open::OpenPath;
pub(crate) use self::open::{PathId, PathStats};
use super::{cut::Cut, udp::RECEIVE_SEGMENTS};
use crate::{
    clock::{self, AtomicInstant},
    mutex::Mutex,
};

/// The server's address as quinn knows it. It never leaves the machine; 2001:db8::/32 is reserved
/// for documentation (RFC 3849), so it cannot be an address of the server by chance.
pub(crate) const VIRTUAL_SERVER: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 4433, 0, 0));

/// Receive errors in a row after which a path is no longer read. A socket reports an error once and
/// then works or waits; one that only fails would spin.
const RECEIVE_ERRORS: u32 = 16;

/// A send or receive on a path failed. Reported once until the path works again.
#[derive(Debug)]
pub struct PathError {
    /// The path.
    pub path: PathId,
    /// The kernel's error.
    pub error: io::Error,
}

/// See the module's documentation.
pub struct PathSocket {
    paths: ArcSwap<Paths>,
    errors: mpsc::Sender<PathError>,
    next_id: AtomicU64,
    /// Where the next receive starts, so that a busy path does not starve the others.
    turn: AtomicUsize,
    unsent: AtomicU64,
    /// When the first packet was sent on the active path since the last one was received.
    unheard: AtomicInstant,
    went_unheard: Notify,
    stirs: Notify,
    receiver: AtomicWaker,
    senders: Mutex<Vec<Waker>>,
}

#[derive(Clone, Default)]
struct Paths {
    open: Vec<Arc<OpenPath>>,
    active: Option<Arc<OpenPath>>,
}

impl PathSocket {
    /// A socket without paths, which sends and receives nothing. Errors of paths go to `errors`; while that is
    /// full, they are only counted.
    #[must_use]
    pub fn new(errors: mpsc::Sender<PathError>) -> Arc<Self> {
        Arc::new(Self {
            paths: ArcSwap::default(),
            errors,
            next_id: AtomicU64::default(),
            turn: AtomicUsize::default(),
            unsent: AtomicU64::default(),
            unheard: AtomicInstant::default(),
            went_unheard: Notify::new(),
            stirs: Notify::new(),
            receiver: AtomicWaker::new(),
            senders: Mutex::default(),
        })
    }

    /// Starts to read `socket`, whose path leads to `server` over a link that `cut` is about. The first path becomes
    /// the active one.
    pub fn open(&self, socket: Arc<dyn AsyncUdpSocket>, server: SocketAddr, cut: Cut) -> PathId {
        let id = PathId(self.next_id.fetch_add(1, Relaxed));
        let path = Arc::new(OpenPath::new(id, socket, server, cut));
        self.update(|paths| {
            paths.open.push(path.clone());
            paths.active.get_or_insert_with(|| path.clone());
        });
        id
    }

    /// Makes path `id` the active one; `false` if it is not open.
    pub fn switch(&self, id: PathId) -> bool {
        let mut found = false;
        self.update(|paths| {
            if let Some(path) = paths.open.iter().find(|path| path.id == id) {
                paths.active = Some(path.clone());
                self.unheard.clear();
                found = true;
            }
        });
        found
    }

    /// Opens `socket` in place of that of path `id`, which leads to `server`, too. It becomes the active path if that
    /// was.
    pub(crate) fn replace(
        &self,
        id: PathId,
        socket: Arc<dyn AsyncUdpSocket>,
        server: SocketAddr,
        cut: Cut,
    ) -> PathId {
        let new = self.open(socket, server, cut);
        self.update(|paths| {
            paths.open.retain(|path| path.id != id);
            if paths.active.as_ref().is_some_and(|path| path.id == id) {
                paths.active = paths.open.iter().find(|path| path.id == new).cloned();
            }
        });
        new
    }

    /// Since when packets are sent on the active path and none is received.
    #[must_use]
    pub fn unheard_since(&self) -> Option<Instant> {
        self.unheard.get()
    }

    /// Waits until [`Self::unheard_since`] begins: a packet is sent, and an earlier one was answered. Cancel safe.
    pub async fn went_unheard(&self) {
        self.went_unheard.notified().await;
    }

    /// The same, for another task or branch, which hears of what was sent since its last call as well. Cancel safe.
    pub(crate) async fn stirs(&self) {
        self.stirs.notified().await;
    }

    /// Expects no answer to the packets sent so far.
    pub fn expect_nothing(&self) {
        self.unheard.clear();
    }

    fn sent(&self) {
        if self.unheard.is_none() {
            self.unheard.set(clock::now());
            self.went_unheard.notify_one();
            self.stirs.notify_one();
        }
    }

    /// Closes the path's socket. If it was the active path, sends go nowhere until a switch.
    pub fn close(&self, id: PathId) {
        self.update(|paths| {
            paths.open.retain(|path| path.id != id);
            paths.active.take_if(|path| path.id == id);
        });
    }

    /// Closes the sockets of all paths.
    pub fn close_all(&self) {
        self.update(|paths| *paths = Paths::default());
    }

    /// The active path.
    #[must_use]
    pub fn active(&self) -> Option<PathId> {
        self.paths.load().active.as_ref().map(|path| path.id)
    }

    /// The counters of path `id`.
    #[must_use]
    pub fn stats(&self, id: PathId) -> Option<PathStats> {
        let paths = self.paths.load();
        paths.open.iter().find(|path| path.id == id).map(|path| path.stats())
    }

    /// Datagrams that could not be sent because no path was active.
    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.unsent.load(Relaxed)
    }

    /// Changes the set of paths and wakes quinn, so that it polls the new one.
    fn update(&self, mut change: impl FnMut(&mut Paths)) {
        self.paths.rcu(|paths| {
            let mut paths = Paths::clone(paths);
            change(&mut paths);
            paths
        });
        self.receiver.wake();
        let mut senders = self.senders.lock();
        senders.drain(..).for_each(Waker::wake);
    }

    fn report(&self, path: &OpenPath, error: io::Error) {
        if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) {
            return;
        }
        path.errors.fetch_add(1, Relaxed);
        if !path.failing.swap(true, Relaxed) {
            let _ = self.errors.try_send(PathError { path: path.id, error });
        }
    }

    /// Polls one path; errors are reported, not returned.
    fn poll_path(
        &self,
        path: &OpenPath,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        for _ in 0..RECEIVE_ERRORS {
            match path.socket.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    if path.received(&mut meta[..count]) && self.active() == Some(path.id) {
                        self.unheard.clear();
                    }
                    return Poll::Ready(count);
                }
                Poll::Ready(Err(error)) => self.report(path, error),
                Poll::Pending => return Poll::Pending,
            }
        }
        path.receives.store(false, Relaxed);
        Poll::Pending
    }
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(ActivePoller { socket: self, poller: None })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let paths = self.paths.load();
        let Some(path) = &paths.active else {
            self.unsent.fetch_add(1, Relaxed);
            return Ok(());
        };
        if path.cut.is_on() {
            self.sent();
            return Ok(());
        }
        let Transmit { ecn, contents, segment_size, .. } = *transmit;
        let transmit =
            Transmit { destination: path.server, ecn, contents, segment_size, src_ip: None };
        match path.socket.try_send(&transmit) {
            Ok(()) => {
                path.sent_bytes.fetch_add(contents.len() as u64, Relaxed);
                path.failing.store(false, Relaxed);
                self.sent();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) => self.report(path, error),
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receiver.register(cx.waker());
        let paths = self.paths.load();
        let turn = self.turn.fetch_add(1, Relaxed);
        for step in 0..paths.open.len() {
            let path = &paths.open[turn.wrapping_add(step) % paths.open.len()];
            if path.receives.load(Relaxed)
                && let Poll::Ready(count) = self.poll_path(path, cx, bufs, meta)
            {
                return Poll::Ready(Ok(count));
            }
        }
        Poll::Pending
    }

    /// A virtual address, of the same family as [`VIRTUAL_SERVER`].
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv6Addr::UNSPECIFIED, 0).into())
    }

    fn max_transmit_segments(&self) -> usize {
        let paths = self.paths.load();
        paths.open.iter().map(|path| path.socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.paths.load().open.iter().any(|path| path.socket.may_fragment())
    }
}

impl fmt::Debug for PathSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.paths.load();
        f.debug_struct("PathSocket")
            .field("open", &paths.open.iter().map(|path| path.id).collect::<Vec<_>>())
            .field("active", &paths.active.as_ref().map(|path| path.id))
            .finish_non_exhaustive()
    }
}

/// Waits until the active path is writable. quinn makes its poller once for a connection's life, so
/// this one follows the switches.
struct ActivePoller {
    socket: Arc<PathSocket>,
    poller: Option<(PathId, Pin<Box<dyn UdpPoller>>)>,
}

impl UdpPoller for ActivePoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let paths = this.socket.paths.load();
        // Without an active path a send succeeds by doing nothing.
        let Some(path) = &paths.active else { return Poll::Ready(Ok(())) };
        if this.poller.as_ref().is_none_or(|(id, _)| *id != path.id) {
            this.poller = Some((path.id, path.socket.clone().create_io_poller()));
        }
        let Some((_, poller)) = &mut this.poller else { return Poll::Ready(Ok(())) };
        // On an error the send that follows fails too, and that one is reported.
        if poller.as_mut().poll_writable(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut senders = this.socket.senders.lock();
        if !senders.iter().any(|waker| waker.will_wake(cx.waker())) {
            senders.push(cx.waker().clone());
        }
        drop(senders);
        // A switch since the load above woke only the tasks that were registered then.
        if this.socket.active() != Some(path.id) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl fmt::Debug for ActivePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivePoller").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::udp::fake::FakeSocket;

    const SERVER: &str = "192.0.2.1:4433";
    const ERRORS: [Errno; 5] =
        [Errno::ENETDOWN, Errno::ENETUNREACH, Errno::EPERM, Errno::ENODEV, Errno::EINVAL];

    struct Fixture {
        socket: Arc<PathSocket>,
        errors: mpsc::Receiver<PathError>,
        /// Of the link of all paths.
        cut: Cut,
    }

    fn fixture() -> Fixture {
        let (sender, errors) = mpsc::channel(4);
        Fixture { socket: PathSocket::new(sender), errors, cut: Cut::default() }
    }

    impl Fixture {
        fn open(&self, local: &str, server: &str) -> (Arc<FakeSocket>, PathId) {
            let fake = FakeSocket::new(local);
            let id = self.socket.open(fake.clone(), server.parse().unwrap(), self.cut.clone());
            (fake, id)
        }

        fn send(&self) -> io::Result<()> {
            self.socket.try_send(&Transmit {
                destination: VIRTUAL_SERVER,
                ecn: None,
                contents: &[0; 100],
                segment_size: None,
                src_ip: None,
            })
        }

        /// What quinn would see: sources and lengths.
        fn receive(&self) -> Poll<io::Result<Vec<(SocketAddr, usize)>>> {
            let mut buffer = [0; 1500];
            let mut meta = [RecvMeta::default()];
            let cx = &mut Context::from_waker(Waker::noop());
            self.socket
                .poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
                .map_ok(|count| meta[..count].iter().map(|meta| (meta.addr, meta.len)).collect())
        }
    }

    #[test]
    fn sends_leave_by_the_active_path_to_its_own_server_address() {
        let fixture = fixture();
        let (wifi, _) = fixture.open("10.0.0.2:1000", SERVER);
        let (lte, lte_id) = fixture.open("[2001:db8::2]:1000", "[2001:db8::3]:4433");
        fixture.send().unwrap();
        assert!(fixture.socket.switch(lte_id));
        fixture.send().unwrap();
        assert_eq!(*wifi.sent.lock().unwrap(), [(SERVER.parse().unwrap(), None)]);
        assert_eq!(*lte.sent.lock().unwrap(), [("[2001:db8::3]:4433".parse().unwrap(), None)]);
    }

    #[test]
    fn every_open_path_is_heard_and_comes_from_the_virtual_server() {
        let fixture = fixture();
        let (wifi, _) = fixture.open("10.0.0.2:1000", SERVER);
        let (lte, _) = fixture.open("10.0.1.2:1000", SERVER);
        for fake in [wifi, lte] {
            fake.arrive(Ok((vec![1, 2, 3], SERVER.parse().unwrap(), None)));
            let Poll::Ready(Ok(received)) = fixture.receive() else { panic!("nothing received") };
            assert_eq!(received, [(VIRTUAL_SERVER, 3)]);
        }
        assert!(fixture.receive().is_pending());
    }

    #[test]
    fn a_datagram_from_a_stranger_is_emptied_and_counted() {
        let fixture = fixture();
        let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
        wifi.arrive(Ok((vec![1, 2, 3], "198.51.100.1:4433".parse().unwrap(), None)));
        let Poll::Ready(Ok(received)) = fixture.receive() else { panic!("nothing received") };
        assert_eq!(received[0].1, 0);
        let stats = fixture.socket.stats(id).unwrap();
        assert_eq!((stats.foreign, stats.received_bytes, stats.last_heard), (1, 0, None));
    }

    #[test]
    fn a_link_that_is_cut_is_silent_both_ways_and_reports_nothing() {
        let mut fixture = fixture();
        let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
        let arrive = || wifi.arrive(Ok((vec![7], SERVER.parse().unwrap(), None)));
        let lease = fixture.cut.begin().unwrap();
        fixture.send().unwrap();
        assert!(fixture.socket.unheard_since().is_some(), "it is as if nobody answered");
        arrive();
        let Poll::Ready(Ok(received)) = fixture.receive() else { panic!("nothing received") };
        assert_eq!(received[0].1, 0);
        assert!(fixture.socket.unheard_since().is_some());
        let PathStats { sent_bytes, received_bytes, errors, foreign, last_heard } =
            fixture.socket.stats(id).unwrap();
        assert_eq!((sent_bytes, received_bytes, errors, foreign, last_heard), (0, 0, 0, 0, None));
        assert!(wifi.sent.lock().unwrap().is_empty() && fixture.errors.try_recv().is_err());

        drop(lease);
        fixture.send().unwrap();
        arrive();
        let Poll::Ready(Ok(received)) = fixture.receive() else { panic!("nothing received") };
        assert_eq!((received, wifi.sent.lock().unwrap().len()), (vec![(VIRTUAL_SERVER, 1)], 1));
        assert_eq!(fixture.socket.unheard_since(), None);
    }

    #[test]
    fn a_send_error_is_reported_once_and_never_returned() {
        for errno in ERRORS {
            let mut fixture = fixture();
            let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
            *wifi.send_error.lock().unwrap() = Some(errno);
            for _ in 0..100 {
                fixture.send().unwrap();
            }
            let report = fixture.errors.try_recv().unwrap();
            assert_eq!((report.path, report.error.raw_os_error()), (id, Some(errno as i32)));
            assert!(fixture.errors.try_recv().is_err());
            assert_eq!(fixture.socket.stats(id).unwrap().errors, 100);

            *wifi.send_error.lock().unwrap() = None;
            fixture.send().unwrap();
            *wifi.send_error.lock().unwrap() = Some(errno);
            fixture.send().unwrap();
            assert!(fixture.errors.try_recv().is_ok(), "a new failure is a new report");
        }
    }

    #[test]
    fn a_receive_error_is_reported_and_the_next_datagram_still_arrives() {
        for errno in ERRORS {
            let mut fixture = fixture();
            let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
            wifi.arrive(Err(errno.into()));
            wifi.arrive(Ok((vec![7], SERVER.parse().unwrap(), None)));
            let Poll::Ready(Ok(received)) = fixture.receive() else { panic!("nothing received") };
            assert_eq!(received, [(VIRTUAL_SERVER, 1)]);
            assert_eq!(fixture.errors.try_recv().unwrap().path, id);
        }
    }

    #[test]
    fn a_path_with_only_receive_errors_does_not_block_the_others() {
        let fixture = fixture();
        let (wifi, _) = fixture.open("10.0.0.2:1000", SERVER);
        let (lte, _) = fixture.open("10.0.1.2:1000", SERVER);
        for _ in 0..1000 {
            wifi.arrive(Err(Errno::EBADF.into()));
        }
        lte.arrive(Ok((vec![7], SERVER.parse().unwrap(), None)));
        assert!(fixture.receive().is_ready(), "the other path is heard");
        assert!(fixture.receive().is_pending());
        assert!(wifi.receive_calls.load(Relaxed) <= u64::from(RECEIVE_ERRORS));
    }

    #[test]
    fn a_probe_for_a_larger_mtu_is_no_path_error() {
        let mut fixture = fixture();
        let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
        *wifi.send_error.lock().unwrap() = Some(Errno::EMSGSIZE);
        fixture.send().unwrap();
        assert!(fixture.errors.try_recv().is_err());
        assert_eq!(fixture.socket.stats(id).unwrap().errors, 0);
    }

    #[test]
    fn a_full_socket_holds_quinn_back() {
        let fixture = fixture();
        let (wifi, _) = fixture.open("10.0.0.2:1000", SERVER);
        *wifi.send_error.lock().unwrap() = Some(Errno::EAGAIN);
        assert_eq!(fixture.send().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_closed_path_gives_up_its_socket_and_sends_go_nowhere() {
        let fixture = fixture();
        let (wifi, id) = fixture.open("10.0.0.2:1000", SERVER);
        let socket = Arc::downgrade(&wifi);
        drop(wifi);
        fixture.socket.close(id);
        assert!(socket.upgrade().is_none());
        fixture.send().unwrap();
        assert_eq!((fixture.socket.unsent(), fixture.socket.active()), (1, None));
        assert!(!fixture.socket.switch(id));
    }
}
