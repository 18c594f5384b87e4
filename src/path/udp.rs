//! A UDP socket for quinn that reports its errors instead of hiding them.
//!
//! quinn's own socket logs send errors and drops them. A path needs them: a vanished interface
//! shows first as a send error. The wrapper of this socket keeps the errors from quinn.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::{
    burst::{Advice, Burst},
    dscp,
};

use crate::mutex::Mutex;

/// Kernel buffer in each direction in bytes: about 60 ms at 1 Gbit/s, as long as other processes may keep this one
/// from the CPU.
const BUFFER: usize = 8 * 1024 * 1024;

/// Datagrams of the largest size, `MAX_UDP_PAYLOAD` of `quic`, that one receive can return. UDP GRO
/// merges small ones up to 64 kB, so that this has room for all that it merges. quinn makes 32 buffers
/// of so many datagrams, once, before all paths are known.
pub(crate) const RECEIVE_SEGMENTS: usize = 8;

/// A bound UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    burst: Mutex<Burst>,
    /// The task that polls for received datagrams and also sends the kept burst.
    receiver: AtomicWaker,
    dscp: u8,
}

impl UdpSocket {
    /// Opens a socket on `local`, and on `link` alone if one is named (SO_BINDTODEVICE of
    /// socket(7)). `[::]` also takes IPv4.
    ///
    /// Every packet carries the class `dscp` in its header and the firewall mark `mark` (SO_MARK of socket(7);
    /// needs `CAP_NET_ADMIN`).
    pub fn bind(
        local: SocketAddr,
        link: Option<&str>,
        dscp: u8,
        mark: Option<u32>,
    ) -> io::Result<Arc<Self>> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() {
            socket.set_only_v6(local.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        if let Some(link) = link {
            socket.bind_device(Some(link.as_bytes()))?;
        }
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        // Beyond net.core.*mem_max where we may (CAP_NET_ADMIN), up to it where we may not.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &BUFFER).is_err() {
            socket.set_send_buffer_size(BUFFER)?;
        }
        socket.bind(&local.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        Ok(Arc::new(Self {
            io,
            state,
            burst: Mutex::default(),
            receiver: AtomicWaker::new(),
            dscp,
        }))
    }

    fn burst(&self) -> MutexGuard<'_, Burst> {
        self.burst.lock()
    }

    fn send(&self, transmit: &Transmit) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || match self.dscp {
            0 => self.state.try_send((&self.io).into(), transmit),
            dscp => dscp::send(&self.io, transmit, dscp),
        })
    }

    /// Sends the kept burst. It stays kept if the kernel's buffer is full.
    fn send_kept(&self, burst: &mut Burst) -> io::Result<()> {
        let sent = burst.transmit().map_or(Ok(()), |transmit| self.send(&transmit));
        if !is_would_block(&sent) {
            burst.clear();
        }
        sent
    }

    /// Sends the kept burst when it is due, or wakes the task of `cx` for another poll.
    fn poll_kept(&self, cx: &mut Context) -> io::Result<()> {
        let mut burst = self.burst();
        if burst.is_empty() {
            return Ok(());
        }
        if burst.has_settled() {
            let sent = self.send_kept(&mut burst);
            if !is_would_block(&sent) {
                return sent;
            }
            if self.io.poll_send_ready(cx)?.is_pending() {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }
}

fn is_would_block(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            make: move || {
                let socket = self.clone();
                async move { socket.io.writable().await }
            },
            pending: None,
        })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let mut burst = self.burst();
        loop {
            match burst.offer(transmit, self.state.max_gso_segments()) {
                Advice::SendAlone => return self.send(transmit),
                Advice::SendKeptFirst => self.send_kept(&mut burst)?,
                Advice::Keep => break,
                Advice::SendAll => {
                    let sent = self.send_kept(&mut burst);
                    if !is_would_block(&sent) {
                        return sent;
                    }
                    break;
                }
            }
        }
        self.receiver.wake();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receiver.register(cx.waker());
        self.poll_kept(cx)?;
        let full = bufs.len().min(BATCH_SIZE);
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let mut received = Err(io::ErrorKind::WouldBlock.into());
            let _ = self.io.try_io(Interest::READABLE, || {
                received = self.state.recv((&self.io).into(), bufs, meta);
                // If the kernel has no more, tokio need not find that out by a read that gets nothing.
                let is_drained = match &received {
                    Ok(count) => *count < full,
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                };
                if is_drained { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

pin_project_lite::pin_project! {
    /// Waits for the socket to be writable, any number of times without an allocation.
    struct Poller<M, F> {
        make: M,
        #[pin]
        pending: Option<F>,
    }
}

impl<M, F> UdpPoller for Poller<M, F>
where
    M: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<()>> + Send + Sync + 'static,
{
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if this.pending.is_none() {
            this.pending.set(Some((this.make)()));
        }
        let result = match this.pending.as_mut().as_pin_mut() {
            Some(pending) => ready!(pending.poll(cx)),
            None => Ok(()),
        };
        this.pending.set(None);
        Poll::Ready(result)
    }
}

impl<M, F> fmt::Debug for Poller<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// Receives what is there; gives the number of datagrams.
    async fn receive(socket: &UdpSocket) -> usize {
        let (mut buffer, mut meta) = (vec![0; 65_535], [RecvMeta::default()]);
        let received =
            poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
        timeout(Duration::from_secs(10), received).await.unwrap().unwrap();
        meta[0].len.div_ceil(meta[0].stride)
    }

    #[tokio::test]
    async fn one_read_finds_all_datagrams_and_later_ones_are_heard() {
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), None, 0, None).unwrap();
        let (here, there) = (bind(), bind());
        here.io.writable().await.unwrap();
        let send = |bytes: &[u8]| {
            let destination = there.local_addr().unwrap();
            let (ecn, segment_size, src_ip) = (None, None, None);
            here.try_send(&Transmit { destination, ecn, contents: bytes, segment_size, src_ip })
        };
        // More than one read takes, then few.
        for datagrams in [2 * BATCH_SIZE + 1, 1, 2] {
            for _ in 0..datagrams {
                send(&[7; 100]).unwrap();
            }
            let mut received = 0;
            while received < datagrams {
                received += receive_all(&there).await;
            }
            assert_eq!(received, datagrams);
        }
    }

    /// Receives into as many buffers as quinn has; gives the number of datagrams.
    async fn receive_all(socket: &UdpSocket) -> usize {
        let mut buffers = vec![vec![0; 65_535]; BATCH_SIZE];
        let mut buffers: Vec<_> = buffers.iter_mut().map(|it| IoSliceMut::new(it)).collect();
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let received = poll_fn(|cx| socket.poll_recv(cx, &mut buffers, &mut meta));
        let count = timeout(Duration::from_secs(10), received).await.unwrap().unwrap();
        meta[..count].iter().map(|it| it.len.div_ceil(it.stride)).sum()
    }

    #[tokio::test]
    async fn a_delayed_batch_is_sent_when_no_further_packet_follows() {
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), None, 0, None).unwrap();
        let (here, there) = (bind(), bind());
        // Polls for received datagrams, as quinn does.
        tokio::spawn({
            let here = here.clone();
            async move { receive(&here).await }
        });
        tokio::task::yield_now().await;
        let contents = vec![7; 12_000];
        let transmit = Transmit {
            destination: there.local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(1200),
            src_ip: None,
        };
        let mut received = 0;
        for _ in 0..2 {
            here.try_send(&transmit).unwrap();
        }
        while received < 20 {
            received += receive(&there).await;
        }
        assert_eq!(received, 20);
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A socket in memory that fails as told.

    use std::{
        collections::VecDeque,
        sync::{Mutex, atomic::AtomicU64},
        task::Waker,
    };

    use super::*;

    /// What the next receive gives: bytes and their source, or an error.
    pub(crate) type Arrival = io::Result<(Vec<u8>, SocketAddr, Option<IpAddr>)>;

    #[derive(Debug)]
    pub(crate) struct FakeSocket {
        pub(crate) local: SocketAddr,
        /// Destination and source of what was sent.
        pub(crate) sent: Mutex<Vec<(SocketAddr, Option<IpAddr>)>>,
        pub(crate) send_error: Mutex<Option<nix::errno::Errno>>,
        arrivals: Mutex<VecDeque<Arrival>>,
        waker: Mutex<Option<Waker>>,
        pub(crate) receive_calls: AtomicU64,
    }

    impl FakeSocket {
        pub(crate) fn new(local: &str) -> Arc<Self> {
            Arc::new(Self {
                local: local.parse().unwrap(),
                sent: Mutex::default(),
                send_error: Mutex::default(),
                arrivals: Mutex::default(),
                waker: Mutex::default(),
                receive_calls: AtomicU64::default(),
            })
        }

        pub(crate) fn arrive(&self, arrival: Arrival) {
            self.arrivals.lock().unwrap().push_back(arrival);
            if let Some(waker) = self.waker.lock().unwrap().take() {
                waker.wake();
            }
        }
    }

    #[derive(Debug)]
    pub(crate) struct AlwaysWritable;

    impl UdpPoller for AlwaysWritable {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncUdpSocket for FakeSocket {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(AlwaysWritable)
        }

        fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
            match *self.send_error.lock().unwrap() {
                Some(errno) => Err(errno.into()),
                None => {
                    self.sent.lock().unwrap().push((transmit.destination, transmit.src_ip));
                    Ok(())
                }
            }
        }

        fn poll_recv(
            &self,
            cx: &mut Context,
            bufs: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            self.receive_calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            match self.arrivals.lock().unwrap().pop_front() {
                Some(Ok((bytes, addr, dst_ip))) => {
                    bufs[0][..bytes.len()].copy_from_slice(&bytes);
                    let len = bytes.len();
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip };
                    Poll::Ready(Ok(1))
                }
                Some(Err(error)) => Poll::Ready(Err(error)),
                None => {
                    *self.waker.lock().unwrap() = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(self.local)
        }
    }
}
