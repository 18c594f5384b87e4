//! Client and server together.

mod crowd;
mod loopback;
pub(crate) mod simulation;
