//! What the [`Roamer`](super::roam::Roamer) tells the [`Mover`](super::moving::Mover): what it sees, and what people want.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::chance::fraction;
use crate::{clock, daemon::control::Reply, path::manager::Dialing};

/// Wishes that wait.
const WISHES: usize = 4;
/// How long all paths to the server in use are asked, at least, before another one takes its place: three of its round trips
/// if that is longer.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);
/// What is added to the patience at most, by chance.
const JITTER: Duration = Duration::from_millis(100);

/// What the roamer sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    /// Since when no path reaches the server, and how long its paths are asked before another one takes its place.
    pub(super) unreachable: Option<(Instant, Duration)>,
    /// How long the server goes on, if it said that it will stop.
    pub(super) goes_away: Option<Duration>,
    pub(super) dialing: Dialing,
}

/// What a person wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// The server of this name.
    Go { name: String, reply: oneshot::Sender<Reply> },
    /// The choice is left to us.
    Auto,
}

/// The roamer's end.
#[derive(Debug)]
pub(super) struct Signals {
    signs: watch::Sender<Signs>,
    wishes: mpsc::Sender<Wish>,
}

impl Signals {
    pub(super) fn new() -> (Self, Heard) {
        let signs = watch::Sender::default();
        let (wishes, wanted) = mpsc::channel(WISHES);
        let heard = Heard { signs: signs.subscribe(), wishes: wanted };
        (Self { signs, wishes }, heard)
    }

    /// Tells whether the server `is_unreachable`, and how links are dialed.
    pub(super) fn tell(&self, is_unreachable: bool, rtt: Duration, dialing: &Dialing) {
        self.signs.send_if_modified(|signs| {
            let was_unreachable = signs.unreachable.is_some();
            if is_unreachable != was_unreachable {
                // Not all clients of a server leave it at the same moment.
                let patience = PATIENCE.max(3 * rtt) + JITTER.mul_f32(fraction());
                signs.unreachable = is_unreachable.then(|| (clock::now(), patience));
            }
            let is_other = signs.dialing != *dialing;
            if is_other {
                signs.dialing = dialing.clone();
            }
            is_other || is_unreachable != was_unreachable
        });
    }

    /// The server will stop after so long.
    pub(super) fn goes_away(&self, within: Duration) {
        self.signs.send_modify(|signs| signs.goes_away = Some(within));
    }

    /// Tells what somebody wants. Beyond a few of them it is lost, and whoever asked hears so.
    pub(super) fn wish(&self, wish: Wish) {
        let _ = self.wishes.try_send(wish);
    }
}

/// The mover's end.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) signs: watch::Receiver<Signs>,
    pub(super) wishes: mpsc::Receiver<Wish>,
}
