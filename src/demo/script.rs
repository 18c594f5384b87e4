//! What happens to the laptop's networks during the show.

use std::time::Duration;

use crate::lab::{self, Scene};

/// Something that happens at a set time.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Since the first line was typed.
    pub(super) at: Duration,
    /// What the user sees, in a few words.
    pub(super) title: &'static str,
    /// What is done to the scene.
    pub(super) act: fn(&Scene) -> lab::Result<()>,
}

/// The events of a show, in order, and how long it lasts.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) length: Duration,
    pub(super) events: Vec<Event>,
}

impl Script {
    /// Ten seconds in which nothing happens.
    pub(super) fn calm() -> Self {
        Self { length: Duration::from_secs(10), events: Vec::new() }
    }
}
