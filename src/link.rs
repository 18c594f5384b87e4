//! The machine's own network links, as the kernel tells of them through rtnetlink.

pub(crate) mod candidate;
pub(crate) mod monitor;
pub(crate) mod netlink;
pub(crate) mod portal;
pub(crate) mod wake;
