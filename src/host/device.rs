//! The tunnel's TUN device: the one that the last run left, or a new one.

use std::{io, os::fd::OwnedFd};

use tracing::info;

use super::{
    instance::Instance,
    record::{self, Record},
};
use crate::tunnel::device::Tun;

/// A TUN device, and where it comes from.
pub(crate) struct TunDevice {
    /// The device.
    pub tun: Tun,
    /// Whether the last run left it, and what belongs to it.
    pub inherited: bool,
}

impl TunDevice {
    /// The device `name`: the one among the descriptors that the last run `left`, or a new one. It is written down
    /// in the `record` of this `instance`.
    pub(crate) fn open(
        name: &str,
        mtu: u16,
        offload: bool,
        left: Vec<OwnedFd>,
        instance: &Instance,
        record: &Record,
    ) -> io::Result<Self> {
        let device =
            Self::adopt_or_create(name, mtu, offload, left).map_err(
                |error| match record::who_has(name, instance) {
                    Some(tunnel) => io::Error::new(
                        error.kind(),
                        format!("{error}: tunnel {tunnel} has it; give this one another tun.name"),
                    ),
                    None => error,
                },
            )?;
        record.update(|changes| changes.interface = name.into());
        Ok(device)
    }

    fn adopt_or_create(
        name: &str,
        mtu: u16,
        offload: bool,
        left: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        for descriptor in left {
            // Another device, or one of another kind, goes with its descriptor.
            if let Some(tun) = Tun::adopt(descriptor, name, mtu, offload)? {
                info!(interface = name, "taking over the TUN device of the last run");
                return Ok(Self { tun, inherited: true });
            }
        }
        let tun = Tun::create(name, mtu, offload).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot create TUN device {name}: {error}"))
        })?;
        Ok(Self { tun, inherited: false })
    }
}
