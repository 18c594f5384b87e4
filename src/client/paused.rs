//! A tunnel that a person has paused: it sends nothing, and what its routes led into it goes directly.
//!
//! ```text
//!  pause ──▶ routes and resolvers withdrawn ──▶ goodbye to the server ──▶ nothing is sent
//!                                                                            │ resume, or the time is over
//!            session ◀── servers are asked ◀── routes are back ◀─────────────┘
//! ```
//! The inner addresses and the tunnel's own networks stay, so that connections inside wait as in an outage, and the kill
//! switch stays as well. A pause does not outlive the process. Its time goes on while the machine is suspended.

use std::{
    future,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    Client, GOODBYE,
    command::next_choice,
    connect::Minds,
    desired::ApplyError,
    upkeep::AGAIN,
    view::{Line, milliseconds},
};
use crate::{
    clock,
    daemon::control::Reply,
    host::Setup,
    link::suspend::{ClockJump, suspended},
    quic::close,
};

/// The clocks are not read at the same moment.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// A pause, and when it is over; without an instant a person ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paused {
    pub(super) until: Option<Instant>,
}

impl Paused {
    /// How long it still lasts; none if a person ends it.
    pub(super) fn lasts(self) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(clock::now()))
    }
}

impl Client {
    /// Pauses the tunnel, or changes how long it is paused.
    pub(super) async fn pause(&self, seconds: Option<u32>, host: &mut impl Setup) -> Reply {
        let lasts = seconds.map(|it| Duration::from_secs(it.into()));
        let withdrawn = self.apply(host, |desired| {
            desired.paused = true;
            // Without a session to make there is no portal to pass.
            desired.portal = false;
        });
        if let Err(error) = withdrawn.await {
            return Reply::Error(error.to_string());
        }
        let paused = Paused { until: lasts.map(|lasts| clock::now() + lasts) };
        self.paused.send_replace(Some(paused));
        let until = match lasts {
            Some(lasts) => format!("paused for {}", milliseconds(lasts)),
            None => "paused until roamd resume".into(),
        };
        let becomes = if self.config.borrow().tun.kill_switch {
            "the kill switch holds back what belongs in the tunnel"
        } else {
            "what goes into the tunnel otherwise leaves directly"
        };
        Reply::Done(vec![format!("{until}: {becomes}")])
    }

    /// Ends a pause.
    pub(super) async fn resume(&self, host: &mut impl Setup) -> Reply {
        if self.paused.borrow().is_none() {
            return Reply::Error("it is not paused".into());
        }
        match self.return_routes(host).await {
            Ok(()) => {
                self.paused.send_replace(None);
                Reply::Done(vec!["the server is asked".into()])
            }
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    /// Packets to the tunnel's routes wait in the tunnel from here on, as in an outage.
    async fn return_routes(&self, host: &mut impl Setup) -> Result<(), ApplyError> {
        self.apply(host, |desired| desired.paused = false).await
    }

    /// Returns when the tunnel is paused. Cancel safe.
    pub(super) async fn until_paused(&self) {
        // An error would mean that the sender is gone, which `self` has.
        let _ = self.paused.subscribe().wait_for(Option::is_some).await;
    }

    /// Rests for as long as the tunnel is paused. People are answered meanwhile.
    pub(super) async fn rest(
        &self,
        host: &mut impl Setup,
        Minds { manager, course, orders }: &mut Minds<'_>,
    ) {
        let (mut changes, jump) = (self.paused.subscribe(), ClockJump::watch().ok());
        // A host that did not take the routes back is asked again then.
        let (mut shown, mut slept, mut again) = (None, suspended(), None);
        loop {
            let Some(paused) = *changes.borrow_and_update() else { break };
            if shown != Some(paused) && paused.lasts() != Some(Duration::ZERO) {
                info!(lasts = ?paused.lasts(), "paused: nothing is sent");
                self.shown.paused(paused);
                shown = Some(paused);
            }
            tokio::select! {
                _ = changes.changed() => again = None,
                () = occurs(jump.as_ref()) => {
                    let before = std::mem::replace(&mut slept, suspended());
                    self.wakes(slept.saturating_sub(before));
                }
                () = clock::sleep_until(again.or(paused.until)) => {
                    match self.return_routes(host).await {
                        Ok(()) => _ = self.paused.send_replace(None),
                        // A session would carry nothing: the traffic would go on directly.
                        Err(error) => {
                            warn!(%error, "still paused: the host stays as it was");
                            again = Some(clock::now() + AGAIN);
                        }
                    }
                }
                (choice, reply) = next_choice(orders, || "it is paused".into()) => {
                    let _ = reply.send(self.choose(choice, manager, course).await);
                }
            }
        }
        if shown.is_some() {
            info!("resumed");
            self.shown.resumed();
        }
    }

    /// The machine was suspended for so long.
    fn wakes(&self, slept: Duration) {
        self.paused.send_if_modified(|paused| match paused {
            Some(Paused { until: Some(until) }) if slept >= SHORTEST_SLEEP => {
                *until = until.checked_sub(slept).unwrap_or_else(clock::now);
                true
            }
            Some(_) | None => false,
        });
    }

    /// Says goodbye on the connection of the day, if there is one, and lets the server hear it.
    pub(super) async fn part(&self, reason: &[u8]) {
        if let Some(Line { connection, endpoint, .. }) = self.shown.take_line() {
            connection.close(close::GOODBYE, reason);
            let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
        }
    }
}

/// Waits for a jump of the clocks, if somebody tells of it.
async fn occurs(jump: Option<&ClockJump>) {
    match jump {
        Some(jump) if jump.occurs().await.is_ok() => {}
        Some(_) | None => future::pending().await,
    }
}

#[cfg(test)]
mod tests;
