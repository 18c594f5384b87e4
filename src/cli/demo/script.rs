//! What happens to the laptop's networks during the show.

use std::time::Duration;

use roamd_lab::{Access, LinkShape, Scene};

/// How long a packet takes to wifi's router.
const WIFI: Duration = Duration::from_millis(5);

/// Changes wifi's link.
fn wifi(scene: &Scene, shape: LinkShape) -> roamd_lab::Result<()> {
    scene.air(Access::Wifi).set(shape);
    Ok(())
}

/// Something that happens at a set time.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Since the first line was typed.
    pub(super) at: Duration,
    /// What the user sees, in a few words.
    pub(super) title: &'static str,
    /// Whether from here on there is no network at all, until the next event.
    pub(super) offline: bool,
    /// What is done to the scene.
    pub(super) act: fn(&Scene) -> roamd_lab::Result<()>,
}

/// The events of a show, in order, and how long it lasts.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) length: Duration,
    pub(super) events: Vec<Event>,
}

impl Script {
    /// The laptop begins in a hotel whose wifi drops UDP, leaves the building and comes back; its wifi only pretends to
    /// work, then works badly, and then the laptop is underground for longer than the connection lives.
    pub(super) fn roam() -> Self {
        let event =
            |at, title, act| Event { at: Duration::from_secs(at), title, offline: false, act };
        let offline = |at, title, act| Event { offline: true, ..event(at, title, act) };
        Self {
            length: Duration::from_secs(75),
            events: vec![
                event(2, "in a hotel: no lte, and wifi drops UDP", |scene| {
                    scene.disconnect(Access::Lte)?;
                    wifi(scene, LinkShape { blocks_udp: true, ..LinkShape::delayed(WIFI) })
                }),
                event(6, "the hotel lets UDP through", |scene| {
                    wifi(scene, LinkShape::delayed(WIFI))
                }),
                event(9, "out of wifi's reach, lte is back", |scene| {
                    scene.connect(Access::Lte)?;
                    scene.disconnect(Access::Wifi)
                }),
                event(11, "back in wifi's reach", |scene| scene.connect(Access::Wifi)),
                event(17, "wifi drops everything in silence, its link stays up", |scene| {
                    scene.air(Access::Wifi).black_hole(true);
                    Ok(())
                }),
                event(19, "wifi works again", |scene| {
                    scene.air(Access::Wifi).black_hole(false);
                    Ok(())
                }),
                event(24, "wifi loses 30 % of all packets", |scene| {
                    wifi(scene, LinkShape { loss: 0.3, ..LinkShape::delayed(WIFI) })
                }),
                offline(29, "underground: no network at all for 35 s", |scene| {
                    scene.disconnect(Access::Wifi)?;
                    scene.disconnect(Access::Lte)
                }),
                event(64, "above ground: lte and wifi are back", |scene| {
                    wifi(scene, LinkShape::delayed(WIFI))?;
                    scene.connect(Access::Lte)?;
                    scene.connect(Access::Wifi)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_show_ends_ten_seconds_after_the_last_event_and_is_offline_for_longer_than_a_connection_lives()
     {
        let Script { length, events } = Script::roam();
        assert!(events.is_sorted_by_key(|event| event.at));
        assert!(length >= events.last().unwrap().at + Duration::from_secs(10));
        let underground = events.iter().position(|event| event.offline).unwrap();
        let ends = events[underground + 1].at;
        assert!(ends - events[underground].at >= Duration::from_secs(35));
    }
}
