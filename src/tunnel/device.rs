//! Where inner packets come from and go to: the TUN device, or a channel in its place.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd},
    sync::Arc,
};

use nix::{libc, sys::uio::writev, unistd::read};
use tokio::io::unix::AsyncFd;
use tracing::{debug, info};

use super::{
    merge::{Joined, Merger},
    split::Splitter,
    vnet::{self, Header, Offload},
};
use crate::{mutex::Mutex, wire::packet::Packet};

/// Packets in one batch, approximately. It bounds how long one pump delays the others.
pub(crate) const BATCH: usize = 64;
/// The longest IP packet.
const LONGEST: usize = 65_535;

/// A source of inner packets.
pub(crate) trait PacketSource: Send + 'static {
    /// Waits for packets and appends them to `batch`: about [`BATCH`], or the segments of one super-packet.
    /// Returns the number of packets that could not be read.
    ///
    /// An error means that the device is gone for good.
    fn recv(&mut self, batch: &mut Vec<Packet>) -> impl Future<Output = io::Result<u64>> + Send;
}

/// A sink for inner packets.
pub trait PacketSink: Send + Sync + 'static {
    /// Delivers a batch without waiting; returns how many packets were not taken.
    fn send(&self, batch: &[Packet]) -> u64;

    /// Whether it computes checksums itself, so that packets may be [`UNCHECKED`].
    ///
    /// [`UNCHECKED`]: crate::wire::packet::UNCHECKED
    fn completes_checksums(&self) -> bool;
}

/// The TUN device. It vanishes, with its addresses and routes, when the last handle is dropped.
pub(crate) struct Tun {
    device: Arc<AsyncFd<tun::Device>>,
    offload: Offload,
}

/// The reading side of a [`Tun`].
pub(crate) struct TunReader {
    device: Arc<AsyncFd<tun::Device>>,
    offload: Offload,
    splitter: Splitter,
    /// The buffer of one read.
    buffer: Box<[u8]>,
}

/// The writing side of a [`Tun`].
pub(crate) struct TunWriter {
    device: Arc<AsyncFd<tun::Device>>,
    offload: Offload,
    merger: Mutex<Merger>,
}

impl Tun {
    /// Creates the device, without addresses and down. Needs `CAP_NET_ADMIN`. With `offload` the
    /// kernel leaves segmentation and checksums to this process, as far as it supports that.
    pub(crate) fn create(name: &str, mtu: u16, offload: bool) -> io::Result<Self> {
        let open = |with_header: bool| {
            let mut configuration = tun::Configuration::default();
            configuration.tun_name(name).mtu(mtu).platform_config(|platform| {
                // The interface is set up through rtnetlink, see `interface`.
                platform.ensure_root_privileges(false).vnet_hdr(with_header);
            });
            let device = tun::Device::new(&configuration).map_err(io::Error::from)?;
            device.set_nonblock()?;
            Ok::<_, io::Error>(device)
        };
        let offloading = offload.then(|| open(true).map(|device| (best_offload(&device), device)));
        let (offload, device) = match offloading {
            Some(Ok((Some(offload), device))) => (offload, device),
            Some(Ok((None, device))) => {
                // One device of the name at a time.
                drop(device);
                (Offload::None, open(false)?)
            }
            // What is wrong with the device shows again.
            Some(Err(_)) | None => (Offload::None, open(false)?),
        };
        match offload {
            Offload::Udp => debug!(interface = name, ?offload, "TUN device"),
            Offload::None | Offload::Checksums | Offload::Tcp => {
                info!(interface = name, ?offload, "TUN device");
            }
        }
        Self::register(device, offload)
    }

    /// The device behind a descriptor, if it is called `name` and has headers where `offload` wants
    /// them.
    pub(crate) fn adopt(
        descriptor: OwnedFd,
        name: &str,
        mtu: u16,
        offload: bool,
    ) -> io::Result<Option<Self>> {
        nix::ioctl_read_bad!(get_iff, nix::request_code_read!(b'T', 210, 4), libc::ifreq);
        // SAFETY: ifreq consists of integers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an ifreq, although its number says otherwise.
        if unsafe { get_iff(descriptor.as_raw_fd(), &raw mut request) }.is_err() {
            return Ok(None);
        }
        let called = request.ifr_name.map(|byte| byte as u8);
        let called = called.split(|byte| *byte == 0).next().unwrap_or_default();
        // SAFETY: TUNGETIFF filled in this member.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let with_header = flags & libc::IFF_VNET_HDR != 0;
        if called != name.as_bytes() || with_header && !offload {
            return Ok(None);
        }
        let mut configuration = tun::Configuration::default();
        configuration.raw_fd(descriptor.into_raw_fd()).tun_name(name).mtu(mtu);
        let device = tun::Device::new(&configuration).map_err(io::Error::from)?;
        device.set_nonblock()?;
        let offload = if with_header { best_offload(&device) } else { None };
        Self::register(device, offload.unwrap_or(Offload::None)).map(Some)
    }

    fn register(device: tun::Device, offload: Offload) -> io::Result<Self> {
        // SAFETY: the device owns its descriptor, always names the same one, and closes it when the
        // `AsyncFd` that owns it has deregistered it.
        let device = unsafe { AsyncFd::register(device) }?;
        Ok(Self { device: Arc::new(device), offload })
    }

    /// The offload that the kernel accepted.
    #[must_use]
    pub(crate) fn offload(&self) -> Offload {
        self.offload
    }

    /// The reading side. Packets go to one reader only, so there should be one.
    #[must_use]
    pub(crate) fn reader(&self) -> TunReader {
        TunReader {
            device: self.device.clone(),
            offload: self.offload,
            splitter: Splitter::default(),
            buffer: vec![0; vnet::SIZE + LONGEST].into(),
        }
    }

    /// A writing side.
    #[must_use]
    pub(crate) fn writer(&self) -> TunWriter {
        let merger = Mutex::default();
        TunWriter { device: self.device.clone(), offload: self.offload, merger }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device has it open for as long as `self` borrows it.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}

/// Enables the best offload that the kernel supports; `None` if it supports none.
fn best_offload(device: &tun::Device) -> Option<Offload> {
    nix::ioctl_write_int!(set_offload, b'T', 208);
    let accepted = Offload::LEVELS.into_iter().find(|(_, flags)| {
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        unsafe { set_offload(device.as_raw_fd(), (*flags).into()) }.is_ok()
    });
    accepted.map(|(offload, _)| offload)
}

impl TunReader {
    /// Reads once; `None` if no packet is ready.
    fn read(&mut self, batch: &mut Vec<Packet>) -> io::Result<u64> {
        let length = read(&self.device, &mut self.buffer)?;
        let bytes = &self.buffer[..length];
        let (header, ip) = if self.offload == Offload::None {
            (Ok(Header::default()), bytes)
        } else if let Some((header, ip)) = bytes.split_first_chunk::<{ vnet::SIZE }>() {
            (Header::decode(*header), ip)
        } else {
            return Ok(1);
        };
        let split = header.is_ok_and(|header| self.splitter.split(header, ip, batch).is_ok());
        Ok(u64::from(!split))
    }
}

impl PacketSource for TunReader {
    async fn recv(&mut self, batch: &mut Vec<Packet>) -> io::Result<u64> {
        let device = self.device.clone();
        let (full, mut malformed) = (batch.len() + BATCH, 0);
        loop {
            let mut ready = device.readable().await?;
            let before = batch.len();
            while batch.len() < full {
                match ready.try_io(|_| self.read(batch)) {
                    Ok(read) => malformed += read?,
                    Err(_would_block) => break,
                }
            }
            if batch.len() > before || malformed > 0 {
                return Ok(malformed);
            }
        }
    }
}

impl TunWriter {
    /// Whether the device accepted one write.
    fn write(&self, joined: Joined<'_>) -> bool {
        let headers = IoSlice::new(joined.headers);
        if joined.count == 1 {
            let packet = joined.map(IoSlice::new).next();
            return packet.is_some_and(|packet| writev(&self.device, &[headers, packet]).is_ok());
        }
        let mut pieces = Vec::with_capacity(1 + joined.count);
        pieces.push(headers);
        pieces.extend(joined.map(IoSlice::new));
        writev(&self.device, &pieces).is_ok()
    }

    fn write_whole(&self, packet: &Packet) -> bool {
        packet.checked().is_some_and(|packet| self.device.get_ref().send(packet.ip()).is_ok())
    }
}

impl PacketSink for TunWriter {
    fn send(&self, batch: &[Packet]) -> u64 {
        if self.offload == Offload::None {
            return batch.iter().filter(|packet| !self.write_whole(packet)).count() as u64;
        }
        let mut failed = 0;
        let mut merger = self.merger.lock();
        merger.merge(batch, self.offload, |joined| {
            let count = joined.count as u64;
            if !self.write(joined) {
                failed += count;
            }
        });
        failed
    }

    fn completes_checksums(&self) -> bool {
        self.offload != Offload::None
    }
}

/// A channel in place of a device, for tests that need no privileges.
#[cfg(test)]
pub(crate) mod channel {
    use tokio::sync::mpsc;

    use super::{BATCH, Packet, PacketSink, PacketSource, io};

    impl PacketSource for mpsc::Receiver<Packet> {
        async fn recv(&mut self, batch: &mut Vec<Packet>) -> io::Result<u64> {
            match self.recv_many(batch, BATCH).await {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Ok(0),
            }
        }
    }

    impl PacketSink for mpsc::Sender<Packet> {
        fn send(&self, batch: &[Packet]) -> u64 {
            batch.iter().filter(|packet| self.try_send((*packet).clone()).is_err()).count() as u64
        }

        fn completes_checksums(&self) -> bool {
            true
        }
    }
}
