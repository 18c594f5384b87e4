//! What the client says of its paths, asked a few times a second.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    clock,
    daemon::status::{ClientStatus, Role, SwitchStatus},
    host::instance::Instance,
    path::Condition,
    tunnel::counters::Snapshot,
};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(200);

/// The client's paths at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// The link that carries the tunnel, with the transport if that is not UDP.
    pub(super) active: Option<String>,
    /// Each path that works, named likewise, with its round trip in milliseconds.
    pub(super) rtts: Vec<(String, f64)>,
    /// What was done about packets that did not arrive.
    pub(super) care: Care,
}

/// Counts of inner packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Care {
    /// Sent to the server also over a standby, and come from it over one first.
    pub(super) copied: u64,
    pub(super) rescued: u64,
    /// Sent to the server once more, and come from it late.
    pub(super) repeated: u64,
    pub(super) repaired: u64,
}

/// A change of path, when it happened.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    pub(super) at: Instant,
    pub(super) what: SwitchStatus,
}

/// All that was said.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) samples: Vec<Sample>,
    pub(super) switches: Vec<Switch>,
}

/// Asks until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(client: Instance) -> std::io::Result<Self> {
        let (record, stop) = (Arc::<Mutex<Record>>::default(), Arc::<AtomicBool>::default());
        let thread = thread::Builder::new().name("watch".to_owned()).spawn({
            let (record, stop) = (record.clone(), stop.clone());
            move || {
                while !stop.load(Relaxed) {
                    // A daemon that does not answer shows elsewhere.
                    if let Ok(status) = client.status()
                        && let Role::Client(status) = status.role
                    {
                        lock(&record).add(clock::now(), &status);
                    }
                    thread::park_timeout(INTERVAL);
                }
            }
        })?;
        Ok(Self { record, stop, thread: Some(thread) })
    }

    /// The link that carried the tunnel when last asked.
    pub(super) fn active(&self) -> Option<String> {
        lock(&self.record).samples.last().and_then(|sample| sample.active.clone())
    }

    pub(super) fn record(&self) -> Record {
        lock(&self.record).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It can only have panicked, and a panic ends the process.
            let _ = thread.join();
        }
    }
}

impl Care {
    fn of(traffic: &Snapshot) -> Self {
        Self {
            copied: traffic.copied_packets,
            rescued: traffic.rescued_packets,
            repeated: traffic.repeated_packets,
            repaired: traffic.repaired_packets,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            copied: self.copied.saturating_sub(before.copied),
            rescued: self.rescued.saturating_sub(before.rescued),
            repeated: self.repeated.saturating_sub(before.repeated),
            repaired: self.repaired.saturating_sub(before.repaired),
        }
    }
}

impl fmt::Display for Care {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copied, rescued, repeated, repaired } = self;
        let parts = [
            (copied + rescued > 0).then(|| {
                format!("{copied} packets also sent over the standby, {rescued} came over it first")
            }),
            (repeated + repaired > 0)
                .then(|| format!("{repeated} sent again, {repaired} repaired")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

impl Record {
    /// What was done about packets that did not arrive, between two moments.
    pub(super) fn care(&self, from: Instant, to: Instant) -> Care {
        let until = |at: Instant| {
            let seen = self.samples.iter().take_while(|sample| sample.at < at).last();
            seen.map(|sample| sample.care).unwrap_or_default()
        };
        until(to).since(until(from))
    }

    fn add(&mut self, at: Instant, status: &ClientStatus) {
        let works =
            |state| matches!(state, Condition::Active | Condition::Suspect | Condition::Standby);
        let in_use = |state| matches!(state, Condition::Active | Condition::Suspect);
        let active = status.paths.iter().find(|path| in_use(path.state));
        let rtts = status.paths.iter().filter(|path| works(path.state));
        self.samples.push(Sample {
            at,
            active: active.map(|path| path.transport.mark(&path.link)),
            rtts: rtts
                .filter_map(|path| Some((path.transport.mark(&path.link), path.rtt?)))
                .collect(),
            care: Care::of(&status.traffic),
        });
        for switch in &status.switches {
            let Some(then) = at.checked_sub(Duration::from_secs_f64(switch.ago)) else { continue };
            // Between two answers the computed time of one switch differs a little.
            let known = self.switches.iter().any(|known| {
                let apart = known.at.max(then).duration_since(known.at.min(then));
                apart < INTERVAL / 2 && known.what.to == switch.to
            });
            if !known {
                self.switches.push(Switch { at: then, what: switch.clone() });
            }
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_between_two_moments_is_the_difference_of_the_answers_before_them() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let sample = |milliseconds, copied| Sample {
            at: at(milliseconds),
            active: None,
            rtts: Vec::new(),
            care: Care { copied, rescued: 2 * copied, ..Care::default() },
        };
        let record = Record {
            samples: vec![sample(0, 1), sample(200, 4), sample(400, 9)],
            ..Record::default()
        };
        let care = record.care(at(100), at(300));
        assert_eq!(care, Care { copied: 3, rescued: 6, ..Care::default() });
        assert_eq!(care.to_string(), "3 packets also sent over the standby, 6 came over it first");
        assert_eq!(record.care(at(300), at(350)).to_string(), "");
    }
}
