//! What happens to the laptop's networks during the show.

use std::time::Duration;

use crate::lab::{self, Access, Scene};

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
    /// The laptop leaves the building and comes back, and then its wifi only pretends to work.
    pub(super) fn roam() -> Self {
        let event = |at, title, act| Event { at: Duration::from_secs(at), title, act };
        Self {
            length: Duration::from_secs(24),
            events: vec![
                event(3, "out of wifi's reach: the link goes down", |scene| {
                    scene.disconnect(Access::Wifi)
                }),
                event(7, "back in wifi's reach", |scene| scene.connect(Access::Wifi)),
                event(13, "wifi drops everything in silence, its link stays up", |scene| {
                    scene.air(Access::Wifi).black_hole(true);
                    Ok(())
                }),
                event(17, "wifi works again", |scene| {
                    scene.air(Access::Wifi).black_hole(false);
                    Ok(())
                }),
            ],
        }
    }

    /// Ten seconds in which nothing happens.
    #[cfg(test)]
    pub(super) fn calm() -> Self {
        Self { length: Duration::from_secs(10), events: Vec::new() }
    }
}
