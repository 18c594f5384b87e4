//! A server that will stop waits for the clients that have another server to go to.
//!
//! ```text
//!            roamd drain, or a signal               all of them have gone, the time is over, or a second signal
//!  serving ────────────────────────────▶ draining ─────────────────────────────────────────────────────────────▶ goodbye
//!     ▲                                     │
//!     └──────── roamd drain --cancel ───────┘
//! ```
//! Each such client is told ([`GoAway`]), also one that comes meanwhile, and served as before until it has moved. A
//! client without another server hears the goodbye, as at any stop: nobody waits for it.

use std::{
    convert::Infallible,
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};
use tracing::info;

use super::Server;
use crate::{
    clock,
    daemon::{control::Reply, events::Event, signals::Stops, status::DrainingStatus, systemd},
    quic::session::MessageStream,
    wire::message::{Bulk, GoAway, Message},
};

/// The longest time that clients may have.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// From one report to the next while clients leave.
const REPORT: Duration = Duration::from_secs(1);
/// From one change of what a client wants of bulk to the next: each costs more than the message.
const BULK_PACE: Duration = Duration::from_secs(1);

/// Whether the server will stop, and the clients that it waits for.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// When the server stops at the latest; none while it serves on.
    until: watch::Sender<Option<Instant>>,
    /// A signal said so: whoever sent it waits for the end of the process.
    is_final: AtomicBool,
    clients: watch::Sender<Clients>,
}

/// Sessions of clients that have another server to go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Clients {
    /// Sessions at present.
    here: usize,
    /// Sessions that were told to go away since draining began.
    told: usize,
}

/// Counts a session of a client that has another server to go to.
pub(super) struct Movable<'a>(&'a Drain);

impl Drop for Movable<'_> {
    fn drop(&mut self) {
        self.0.clients.send_modify(|clients| clients.here -= 1);
    }
}

impl Drain {
    /// A session began, of a client that `moves` when it is told to.
    pub(super) fn attach(&self, moves: bool) -> Option<Movable<'_>> {
        moves.then(|| {
            let told = usize::from(self.is_draining());
            self.clients.send_modify(|clients| {
                clients.here += 1;
                clients.told += told;
            });
            Movable(self)
        })
    }

    pub(super) fn is_draining(&self) -> bool {
        self.until.borrow().is_some()
    }

    /// Waits until the server drains. Cancel safe.
    pub(super) async fn begun(&self) {
        let _ = self.until.subscribe().wait_for(Option::is_some).await;
    }

    /// Holds the conversation after the welcome. A client that `moves` is told to go away, now or when draining begins,
    /// and again when the time changes. What it wants of bulk is told to `hold_bulk`.
    pub(super) async fn converse(
        &self,
        messages: &mut MessageStream,
        moves: bool,
        hold_bulk: impl Fn(bool),
    ) -> Infallible {
        let mut until = self.until.subscribe();
        until.mark_changed();
        let (mut wanted, mut changed_at) = (None, None::<Instant>);
        loop {
            let due = wanted.map(|_| changed_at.map_or_else(clock::now, |at| at + BULK_PACE));
            tokio::select! {
                () = clock::sleep_until(due) => {
                    changed_at = Some(clock::now());
                    if let Some(held) = wanted.take() {
                        hold_bulk(held);
                    }
                }
                Ok(()) = until.changed(), if moves => {
                    if let Some(until) = *until.borrow_and_update() {
                        let left = until.saturating_duration_since(clock::now());
                        let within = left.as_millis().try_into().unwrap_or(u32::MAX);
                        messages.tell(&Message::GoAway(GoAway { within }));
                    }
                }
                message = messages.received() => match message {
                    Message::Bulk(Bulk { held }) => wanted = Some(held),
                    Message::Hello(_) | Message::Welcome(_) | Message::GoAway(_) => messages.refuse(),
                },
            }
        }
    }

    /// Gives clients until `until`; no longer than before once a signal has come.
    fn begin(&self, mut until: Instant) {
        if !self.is_draining() {
            self.clients.send_modify(|clients| clients.told = clients.here);
        }
        if self.is_final.load(Relaxed) {
            until = self.until.borrow().map_or(until, |before| before.min(until));
        }
        self.until.send_replace(Some(until));
    }

    /// Gives clients until `end`, or until the earlier time that they were given before. This cannot be cancelled.
    pub(super) fn stop(&self, end: Instant) {
        self.is_final.store(true, Relaxed);
        self.begin(end);
    }

    /// Serves on, or says why not.
    fn cancel(&self) -> Result<(), &'static str> {
        if self.is_final.load(Relaxed) {
            return Err(
                "a signal stops the server, as `systemctl stop` does; start it again instead",
            );
        }
        self.until.send_replace(None).map(|_| ()).ok_or("nothing is being drained")
    }

    /// Waits until nobody is waited for any more. Cancel safe.
    pub(super) async fn over(&self) {
        let (mut until, mut clients) = (self.until.subscribe(), self.clients.subscribe());
        loop {
            let end = *until.borrow_and_update();
            tokio::select! {
                _ = until.changed() => {}
                _ = clients.wait_for(|it| it.here == 0), if end.is_some() => return,
                () = clock::sleep_until(end) => return,
            }
        }
    }

    /// What the status says, while the server drains.
    pub(super) fn status(&self) -> Option<DrainingStatus> {
        let left = (*self.until.borrow())?.saturating_duration_since(clock::now());
        let Clients { here, told } = *self.clients.borrow();
        Some(DrainingStatus { clients: told, here, left: left.as_millis() as f64 / 1000.0 })
    }
}

impl fmt::Display for DrainingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, here, left } = *self;
        write!(f, "draining: {here} of {clients} clients are still here, {left:.0} s left")
    }
}

impl Server {
    /// Serves until a signal comes or a person drains the server, and all clients that can move have gone then.
    pub(super) async fn drained(&self, stops: &mut Stops) {
        loop {
            tokio::select! {
                // First: where nobody can move there is nothing to report.
                biased;
                () = self.drain.over() => {
                    if !self.drain.is_final.load(Relaxed) {
                        systemd::stopping();
                    }
                    return;
                }
                signal = stops.next() => {
                    info!(signal, "stopping");
                    systemd::stopping();
                    if self.drain.is_final.load(Relaxed) {
                        return;
                    }
                    self.drain.stop(clock::now() + self.configured.borrow().config.drain);
                }
                never = self.report_draining() => match never {},
            }
        }
    }

    /// Lets clients have `seconds` to go elsewhere; the process ends after that.
    pub(super) fn begin_drain(&self, seconds: u32) -> Reply {
        let within = Duration::from_secs(seconds.into());
        if within > LONGEST {
            return Reply::Error(format!(
                "{seconds} s are too long: {} at most",
                LONGEST.as_secs()
            ));
        }
        info!(seconds, "draining");
        self.drain.begin(clock::now() + within);
        Reply::Done(self.drain.status().iter().map(ToString::to_string).collect())
    }

    /// Serves on.
    pub(super) fn cancel_drain(&self) -> Reply {
        if let Err(reason) = self.drain.cancel() {
            return Reply::Error(reason.into());
        }
        info!("draining was cancelled");
        self.events.tell(Event::DrainCancelled);
        Reply::Done(vec!["serving on; clients that have left come back as they prefer".into()])
    }

    /// Tells systemd and whoever listens how many clients are still here.
    async fn report_draining(&self) -> Infallible {
        let mut until = self.drain.until.subscribe();
        loop {
            let _ = until.wait_for(Option::is_some).await;
            let mut before = None;
            while let Some(draining) = self.drain.status() {
                systemd::report(&draining.to_string());
                // A stop may take longer than TimeoutStopSec= allows.
                systemd::extend(5 * REPORT);
                let counts = (draining.clients, draining.here);
                if before.replace(counts) != Some(counts) {
                    info!(clients = draining.clients, here = draining.here, "clients leave");
                    self.events.tell(Event::Draining(draining));
                }
                tokio::select! {
                    () = time::sleep(REPORT) => {}
                    _ = until.changed() => {}
                }
            }
            systemd::report(&self.listening());
        }
    }
}
