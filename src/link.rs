//! The machine's own network links, as the kernel tells of them through rtnetlink.

pub mod candidate;
pub mod monitor;
pub mod netlink;
pub mod portal;
pub mod wake;
