//! Client and server together.

mod loopback;
mod simulation;
