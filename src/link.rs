//! The machine's own network links, as the kernel tells of them through rtnetlink.

pub(crate) mod candidate;
pub(crate) mod monitor;
pub(crate) mod neighbour;
pub(crate) mod netlink;
pub(crate) mod portal;
pub(crate) mod router;
pub(crate) mod suspend;

/// The mark of packets that carry a tunnel ("roam"), SO_MARK of socket(7): they stay outside of every tunnel.
pub(crate) const MARK: u32 = 0x726f_616d;
