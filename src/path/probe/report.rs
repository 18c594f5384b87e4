//! What is told of a path, and by which probe.

use std::sync::Weak;

use crate::path::manager::Event;

/// An event about a path. One of a probe counts for as long as somebody has that probe: what waits to be read when it is
/// dropped may be of another network, or of a connection before.
#[derive(Debug)]
pub(crate) struct Report {
    event: Event,
    probe: Option<Weak<()>>,
}

impl Report {
    pub(super) fn of(probe: &Weak<()>, event: Event) -> Self {
        Self { event, probe: Some(probe.clone()) }
    }

    /// The event, if it still counts.
    #[must_use]
    pub(crate) fn event(self) -> Option<Event> {
        let counts = self.probe.is_none_or(|probe| probe.strong_count() > 0);
        counts.then_some(self.event)
    }
}

/// What no probe found out.
impl From<Event> for Report {
    fn from(event: Event) -> Self {
        Self { event, probe: None }
    }
}
