//! The machine's own network links, as the kernel tells of them through rtnetlink.

pub mod candidate;
pub mod monitor;
pub mod portal;
pub mod wake;
