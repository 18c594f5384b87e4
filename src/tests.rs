//! Client and server together.

mod loopback;
pub(crate) mod simulation;
