//! A packet socket (packet(7)): every frame that arrives at one link, whole.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, recv, send},
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Room for a burst while the thread does not get to run.
const RECEIVE_BUFFER: usize = 8 << 20;

#[derive(Debug)]
pub(super) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens a socket on the link with this index in the calling thread's namespace.
    pub(super) fn open(ifindex: u32) -> io::Result<Self> {
        // Protocol 0 receives nothing, so no frame of another link gets in before the bind.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        // Beyond the system's limit for root; as far as that goes for everyone else.
        let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as i32)
            .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER));
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.bind(&link_address(ifindex)?)?;
        Ok(Self(socket))
    }

    /// The next frame, cut to `buffer`, and its true length. `None` when there is none for now,
    /// also because the link is down.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC).ok()
    }

    /// Hands a frame to the link.
    pub(super) fn send(&self, frame: &[u8]) -> Result<usize, Errno> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty())
    }

    /// How many frames did not fit the receive buffer since the last call.
    pub(super) fn missed(&self) -> u32 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `statistics`, which is that long and
        // outlives the call.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if done == 0 { statistics.tp_drops } else { 0 }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn link_address(ifindex: u32) -> io::Result<SockAddr> {
    // SAFETY: the storage is zeroed and large enough for every address, `sockaddr_ll` is plain
    // data, and `length` is its size.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            (*address).sll_ifindex = ifindex.cast_signed();
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

fn set_option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one i32 from `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    Errno::result(done).map(drop).map_err(io::Error::from)
}
