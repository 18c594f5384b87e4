//! The bodies of the fuzz targets in `fuzz/`: plain functions of their input that panic when something is wrong.
//!
//! `cargo test` replays the corpora in `fuzz/corpus` through them; `docs/development/fuzzing.md` says how to run
//! the fuzzer.

mod capsule;
mod config;
mod datagram;
mod fragment;
mod message;
mod offload;
mod paths;
mod portal;
pub(crate) mod reference;
mod repair;

pub use self::{
    capsule::capsule, config::config, datagram::datagram, fragment::fragment, message::message,
    offload::offload, paths::paths, portal::portal, repair::repair,
};

#[cfg(test)]
mod tests;
