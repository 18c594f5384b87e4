//! Where inner packets come from and go to: the TUN device, or a channel in its place.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use tun::AsyncDevice;

/// Packets in one batch at most: bounds how long one pump keeps the others waiting.
pub const BATCH: usize = 64;
/// The reader cuts its packets from chunks of this size: one allocation for dozens of packets.
const CHUNK: usize = 64 * 1024;

/// Gives inner packets.
pub trait PacketSource: Send + 'static {
    /// Waits for packets and adds at most [`BATCH`] of them to the end of `batch`.
    ///
    /// An error means that the device is gone for good.
    fn recv(&mut self, batch: &mut Vec<Bytes>) -> impl Future<Output = io::Result<()>> + Send;
}

/// Takes inner packets.
pub trait PacketSink: Send + Sync + 'static {
    /// Delivers a batch without waiting; returns how many packets were not taken.
    fn send(&self, batch: &[Bytes]) -> u64;
}

/// The TUN device. It vanishes, with its addresses and routes, when the last handle is dropped.
pub struct Tun {
    device: Arc<AsyncDevice>,
    mtu: u16,
}

/// The reading side of a [`Tun`].
pub struct TunReader {
    device: Arc<AsyncDevice>,
    chunk: BytesMut,
    mtu: usize,
}

/// The writing side of a [`Tun`].
#[derive(Clone)]
pub struct TunWriter {
    device: Arc<AsyncDevice>,
}

impl Tun {
    /// Creates the device, without addresses and down. Needs `CAP_NET_ADMIN`.
    pub fn create(name: &str, mtu: u16) -> io::Result<Self> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name).mtu(mtu).platform_config(|platform| {
            // The interface is set up through rtnetlink, see `interface`.
            platform.ensure_root_privileges(false);
        });
        let device = tun::Device::new(&configuration).map_err(io::Error::from)?;
        Ok(Self { device: Arc::new(AsyncDevice::new(device)?), mtu })
    }

    /// The reading side. Packets go to one reader only, so there should be one.
    #[must_use]
    pub fn reader(&self) -> TunReader {
        let mtu = usize::from(self.mtu);
        TunReader { device: self.device.clone(), chunk: BytesMut::new(), mtu }
    }

    /// A writing side.
    #[must_use]
    pub fn writer(&self) -> TunWriter {
        TunWriter { device: self.device.clone() }
    }
}

impl TunReader {
    /// Room for one packet at the start of the chunk.
    fn room(&mut self) -> &mut [u8] {
        if self.chunk.len() < self.mtu {
            self.chunk = BytesMut::zeroed(CHUNK.max(self.mtu));
        }
        &mut self.chunk[..self.mtu]
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.chunk.split_to(length).freeze()
    }
}

impl PacketSource for TunReader {
    async fn recv(&mut self, batch: &mut Vec<Bytes>) -> io::Result<()> {
        let device = self.device.clone();
        let length = device.recv(self.room()).await?;
        batch.push(self.take(length));
        for _ in 1..BATCH {
            // Reads without waiting; an error shows again at the next call.
            let Ok(length) = tun::Device::recv(&device, self.room()) else { break };
            batch.push(self.take(length));
        }
        Ok(())
    }
}

impl PacketSink for TunWriter {
    fn send(&self, batch: &[Bytes]) -> u64 {
        let device: &tun::Device = &self.device;
        batch.iter().filter(|packet| device.send(packet).is_err()).count() as u64
    }
}

/// A channel in place of a device, for tests that need no privileges.
#[cfg(test)]
pub(crate) mod channel {
    use tokio::sync::mpsc;

    use super::{BATCH, Bytes, PacketSink, PacketSource, io};

    impl PacketSource for mpsc::Receiver<Bytes> {
        async fn recv(&mut self, batch: &mut Vec<Bytes>) -> io::Result<()> {
            match self.recv_many(batch, BATCH).await {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Ok(()),
            }
        }
    }

    impl PacketSink for mpsc::Sender<Bytes> {
        fn send(&self, batch: &[Bytes]) -> u64 {
            batch.iter().filter(|packet| self.try_send((*packet).clone()).is_err()).count() as u64
        }
    }
}
