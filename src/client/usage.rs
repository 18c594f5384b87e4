//! Counts what the links carry, keeps it over restarts, and finds out when a budget is used up.
//!
//! ```text
//!  sockets ─▶ Meters ─▶ look ─▶ Ledger ─┬─▶ Overdrawn ─▶ Roamer: bulk waits; network: no candidates there
//!                                       ├─▶ events, status
//!                                       └─▶ Store, rarely
//! ```

mod ledger;
mod store;

use std::{collections::BTreeSet, convert::Infallible, io, sync::MutexGuard, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time,
};
use tracing::{debug, warn};

use self::ledger::Findings;
pub(crate) use self::{
    ledger::{Ledger, Overdrawn},
    store::Store,
};
use super::Client;
use crate::{
    clock::{self, Date},
    config::{Budget, OverBudget, Paths},
    daemon::{
        events::Event,
        status::{LinkStatus, SCHEMA},
        usage::{Amount, BudgetLevel, BudgetStatus, Bytes, Usage},
    },
    mutex::Mutex,
    path::{meter::Meters, preference::Preferences},
};

/// The suffix of the file in the state directory.
pub(crate) const SUFFIX: &str = "usage";
/// From one writing to the next, at least, unless there is news.
const WRITE: Duration = Duration::from_secs(300);
/// From one look to the next, at least.
const PACE: Duration = Duration::from_secs(1);
/// Bytes a second that a link carries at most, as far as is assumed: a budget that is nearly used up is looked at more
/// often than the networks are.
const FASTEST: u64 = 25_000_000;
/// How long the disk may take where something waits for it: at the start, and at the end.
const DISK: Duration = Duration::from_secs(1);

/// What the links of a client carried.
#[derive(Debug, Default)]
pub(super) struct Usages {
    ledger: Mutex<Ledger>,
    disk: Mutex<Disk>,
    /// Why it is not on disk.
    unsaved: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Disk {
    /// None: nothing is kept.
    store: Option<Store>,
    /// Whether what an earlier run kept was read.
    is_read: bool,
}

impl Usages {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// The ledger, and the day into which is counted.
    fn today(&self) -> (MutexGuard<'_, Ledger>, Date) {
        let mut ledger = self.ledger();
        let today = ledger.today(clock::date(clock::wall()), clock::now());
        (ledger, today)
    }

    /// Takes over what an earlier run kept. Blocks for the disk.
    fn open(&self, store: Store) {
        let mut disk = self.disk.lock();
        *disk = Disk { store: Some(store), is_read: false };
        self.told(self.take_over(&mut disk), &disk);
    }

    /// Writes down what was counted so far. Blocks until the disk has it. A failure is told once.
    fn save(&self) {
        let mut disk = self.disk.lock();
        let saved = self.take_over(&mut disk).and_then(|()| {
            // The disk may be slow, and others need the ledger.
            let kept = self.ledger().clone();
            disk.store.as_mut().map_or(Ok(()), |store| store.write(&kept))
        });
        self.told(saved, &disk);
    }

    /// Reads what was not read yet. Nothing is written before, which would take its place.
    fn take_over(&self, disk: &mut Disk) -> io::Result<()> {
        let Some(store) = disk.store.as_mut().filter(|_| !disk.is_read) else { return Ok(()) };
        let (kept, damage) = store.read()?;
        if let Some(error) = damage {
            let file = store.path().display();
            let what = if kept.is_empty() { "begins anew" } else { "goes on from the one before" };
            warn!(%file, %error, "the account of what links carried is damaged: it {what}");
        }
        self.ledger().take_over(kept);
        disk.is_read = true;
        Ok(())
    }

    fn told(&self, done: io::Result<()>, disk: &Disk) {
        let Some(store) = &disk.store else { return };
        let failed = done.err().map(|error| error.to_string());
        let before = std::mem::replace(&mut *self.unsaved.lock(), failed.clone());
        match failed {
            Some(reason) if before.is_none() => {
                let file = store.path().display();
                warn!(%file, reason, "what links carried cannot be kept on disk: counted in memory");
            }
            Some(reason) => debug!(reason, "what links carried still cannot be kept on disk"),
            None => {}
        }
    }
}

impl Client {
    /// Takes over from `store` what an earlier run kept, before the first session, unless the disk is slow. Tells `stop` over
    /// which links nothing may be sent.
    pub(super) async fn begin_usage(&self, store: Store, stop: impl Fn(BTreeSet<String>)) {
        let usages = self.usages.clone();
        let _ = time::timeout(DISK, spawn_blocking(move || usages.open(store))).await;
        self.enforce(stop);
    }

    /// Counts for ever what `meters` see, and tells `stop` over which links nothing may be sent.
    pub(super) async fn keep_usage(
        &self,
        meters: &Meters,
        stop: impl Fn(BTreeSet<String>),
    ) -> Infallible {
        let (mut hints, mut config) = (self.roaming.network.hints(), self.config.subscribe());
        let (mut crossed, mut written) = (0, clock::now());
        let mut is_changed = false;
        let mut saving = None::<JoinHandle<()>>;
        loop {
            let is_idle = std::mem::replace(&mut crossed, self.counters.crossed()) == crossed;
            is_changed |= self.count(meters, is_idle);
            let (is_news, left) = self.enforce(&stop);
            is_changed |= is_news;
            let now = clock::now();
            let is_due = is_news || now.duration_since(written) >= WRITE;
            // Whatever the disk does, budgets are kept.
            if is_changed && is_due && saving.as_ref().is_none_or(JoinHandle::is_finished) {
                let usages = self.usages.clone();
                saving = Some(spawn_blocking(move || usages.save()));
                (is_changed, written) = (false, now);
            }
            is_changed |= self.usages.unsaved.lock().is_some();
            let soon = left.map(|left| now + soon(left));
            tokio::select! {
                // The other consumers poll at the same moment: an idle machine wakes up once.
                () = hints.changed() => {}
                Ok(()) = config.changed() => {}
                () = clock::sleep_until(soon) => {}
            }
            time::sleep((now + PACE).saturating_duration_since(clock::now())).await;
        }
    }

    /// Writes down all that was counted, unless the disk is slow.
    pub(super) async fn end_usage(&self, meters: &Meters) {
        self.count(meters, false);
        let usages = self.usages.clone();
        let _ = time::timeout(DISK, spawn_blocking(move || usages.save())).await;
    }

    /// Compares with the budgets, and tells what is new. Returns whether something is, and how many bytes are left until
    /// one of them is used up.
    fn enforce(&self, stop: impl Fn(BTreeSet<String>)) -> (bool, Option<u64>) {
        let Findings { overdrawn, news, left } = self.judge();
        let is_news = !news.is_empty();
        news.into_iter().for_each(|(link, status)| self.tell(link, status));
        self.roaming.overdrawn.send_if_modified(|known| {
            if known.stopped != overdrawn.stopped {
                stop(overdrawn.stopped.clone());
            }
            let before = std::mem::replace(known, overdrawn);
            before != *known
        });
        (is_news, left)
    }

    /// Takes in what `meters` counted since the last time; `is_idle` says that nothing crossed the tunnel. Returns whether
    /// there was anything.
    fn count(&self, meters: &Meters, is_idle: bool) -> bool {
        let ((mut ledger, today), mut is_any) = (self.usages.today(), false);
        for (link, [tunnel, probes]) in meters.take() {
            let mut upkeep_bytes = probes.up + probes.down;
            if is_idle {
                // Keep-alives, and answers to questions.
                upkeep_bytes += tunnel.up + tunnel.down;
            }
            let (sent_bytes, received_bytes) = (tunnel.up + probes.up, tunnel.down + probes.down);
            is_any |= sent_bytes + received_bytes > 0;
            ledger.add(&link, today, Amount { sent_bytes, received_bytes, upkeep_bytes });
        }
        is_any
    }

    fn judge(&self) -> Findings {
        let budget = budgets(&self.config.borrow().paths);
        let (mut ledger, today) = self.usages.today();
        ledger.judge(budget, today)
    }

    fn tell(&self, link: String, status: BudgetStatus) {
        let BudgetStatus { used, of, level, over, since, .. } = status;
        let what = match (level, over) {
            (BudgetLevel::Within | BudgetLevel::Warned, _) => "most of the budget is used up",
            (BudgetLevel::Reached, OverBudget::HoldBulk) => {
                "the budget is used up: large transfers wait"
            }
            (BudgetLevel::Reached, OverBudget::Stop) => {
                "the budget is used up: the link is not used any more"
            }
            (BudgetLevel::Reached, OverBudget::Warn) => "the budget is used up",
        };
        warn!(link, used = %Bytes(used), of = %Bytes(of), %since, "{what}");
        self.events.tell(Event::Budget { link, level, used, of, over });
    }

    /// What the links carried, and may carry.
    pub(super) fn links(&self) -> Vec<LinkStatus> {
        let budget = budgets(&self.config.borrow().paths);
        let (ledger, today) = self.usages.today();
        let rows = ledger.rows(budget, today).into_iter();
        rows.map(|(link, amount, budget)| LinkStatus { link, amount, budget }).collect()
    }

    /// The same day by day.
    pub(super) fn usage(&self) -> Usage {
        let budget = budgets(&self.config.borrow().paths);
        let (ledger, today) = self.usages.today();
        let unsaved = self.usages.unsaved.lock().clone();
        Usage { schema: SCHEMA, links: ledger.links(budget, today), unsaved }
    }
}

/// How much each link may carry.
fn budgets(paths: &Paths) -> impl Fn(&str) -> Option<Budget> + use<> {
    let preferences = Preferences::new(paths);
    move |link| preferences.budget(link)
}

/// How soon so many bytes may be used up.
fn soon(left: u64) -> Duration {
    Duration::from_secs_f64(left as f64 / FASTEST as f64)
}

/// What a client that does not run kept in this file; an error if there is none that can be read.
pub(crate) fn kept(store: &mut Store) -> io::Result<Usage> {
    let (ledger, damage) = store.read()?;
    if ledger.is_empty() {
        return Err(damage.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
    }
    let unsaved = damage.map(|error| format!("{}: {error}", store.path().display()));
    let today = clock::date(clock::wall());
    Ok(Usage { schema: SCHEMA, links: ledger.links(|_| None, today), unsaved })
}

#[cfg(test)]
mod tests;
