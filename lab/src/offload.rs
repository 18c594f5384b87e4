//! Turns a link's transmit offloads off, so that frames on it are as on a real wire: no longer than the MTU and
//! with complete checksums.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{error::Result, namespace::Namespace};

/// linux/ethtool.h: the commands that take a `struct ethtool_value`, in an order the kernel
/// accepts (segmentation needs scatter/gather needs checksums).
const OFFLOADS: [u32; 6] = [
    0x2c, // ETHTOOL_SGRO
    0x24, // ETHTOOL_SGSO
    0x1f, // ETHTOOL_STSO
    0x22, // ETHTOOL_SUFO
    0x19, // ETHTOOL_SSG
    0x17, // ETHTOOL_STXCSUM
];

/// linux/ethtool.h: `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

impl Namespace {
    /// Turns segmentation and checksum offload of `link` off: what it sends are finished frames.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn disable_offloads(&self, link: &str) -> Result<()> {
        let name = link.to_owned();
        self.inside(format!("turn the offloads of {link} off"), move |_| {
            let control =
                socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            OFFLOADS.iter().try_for_each(|&command| switch_off(&control, &name, command))
        })
    }
}

fn switch_off(control: &OwnedFd, link: &str, command: u32) -> io::Result<()> {
    let mut value = EthtoolValue { command, data: 0 };
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes().take(room)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads the terminated name from `request` and reads and writes the
    // `struct ethtool_value` behind `ifru_data`; both outlive the call.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    match nix::errno::Errno::result(done) {
        // A feature that this kernel does not know.
        Ok(_) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
