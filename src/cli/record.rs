//! What a client says of its paths, asked a few times a second.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    clock,
    daemon::status::{ClientStatus, Role, SwitchStatus},
    host::instance::Instance,
    mutex::Mutex,
    tunnel::counters::Snapshot,
};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(200);
/// Two switches that are alike, their gaps among it, are one if they seem to be nearer to each other.
const SAME: Duration = Duration::from_secs(2);

/// The client's paths at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    /// The link that carries the tunnel.
    pub(crate) link: Option<String>,
    /// The same with the transport if that is not UDP.
    pub(crate) active: Option<String>,
    /// Each path that works, named likewise, with its round trip in milliseconds.
    pub(crate) rtts: Vec<(String, f64)>,
    /// What was done about packets that did not arrive.
    pub(crate) care: Care,
}

impl Sample {
    /// Whether a path over this link works.
    pub(crate) fn works(&self, link: &str) -> bool {
        self.links().any(|other| other == link)
    }

    /// Whether a path over another link does.
    pub(crate) fn works_beside(&self, link: &str) -> bool {
        self.links().any(|other| other != link)
    }

    fn links(&self) -> impl Iterator<Item = &str> {
        // The transport is named behind the link.
        self.rtts.iter().filter_map(|(path, _)| path.split_whitespace().next())
    }
}

/// Counts of inner packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Care {
    /// Sent to the server also over a standby, and come from it over one first.
    pub(crate) copied: u64,
    pub(crate) rescued: u64,
    /// Sent to the server once more, and come from it late.
    pub(crate) repeated: u64,
    pub(crate) repaired: u64,
}

/// A change of path, when it happened.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    pub(crate) at: Instant,
    pub(crate) what: SwitchStatus,
}

/// All that was said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) samples: Vec<Sample>,
    pub(crate) switches: Vec<Switch>,
}

/// Asks until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(client: Instance) -> std::io::Result<Self> {
        let (record, stop) = (Arc::<Mutex<Record>>::default(), Arc::<AtomicBool>::default());
        let thread = thread::Builder::new().name("watch".to_owned()).spawn({
            let (record, stop) = (record.clone(), stop.clone());
            move || {
                while !stop.load(Relaxed) {
                    // A daemon that does not answer shows elsewhere.
                    if let Ok(status) = client.status()
                        && let Role::Client(status) = status.role
                    {
                        record.lock().add(clock::now(), &status);
                    }
                    thread::park_timeout(INTERVAL);
                }
            }
        })?;
        Ok(Self { record, stop, thread: Some(thread) })
    }

    /// What was said last.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.record.lock().samples.last().cloned()
    }

    pub(crate) fn record(&self) -> Record {
        self.record.lock().clone()
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
    pub(crate) fn care(&self, from: Instant, to: Instant) -> Care {
        let until = |at: Instant| {
            let seen = self.samples.iter().take_while(|sample| sample.at < at).last();
            seen.map(|sample| sample.care).unwrap_or_default()
        };
        until(to).since(until(from))
    }

    /// Which path was in use from when on; `end` is when the last one was over. None while there was no path.
    pub(crate) fn spans(&self, end: Instant) -> Vec<(Range<Instant>, Option<String>)> {
        let mut spans: Vec<(Range<Instant>, Option<String>)> = Vec::new();
        for Sample { at, active, .. } in &self.samples {
            match spans.last_mut() {
                Some((span, link)) => {
                    span.end = *at;
                    if link != active {
                        spans.push((*at..*at, active.clone()));
                    }
                }
                None => spans.push((*at..*at, active.clone())),
            }
        }
        if let Some((span, _)) = spans.last_mut() {
            span.end = end.max(span.start);
        }
        spans
    }

    fn add(&mut self, at: Instant, status: &ClientStatus) {
        let active = status.paths.iter().find(|path| path.state.is_in_use());
        let rtts = status.paths.iter().filter(|path| path.state.is_usable());
        self.samples.push(Sample {
            at,
            link: active.map(|path| path.link.clone()),
            active: active.map(|path| path.transport.mark(&path.link)),
            rtts: rtts
                .filter_map(|path| Some((path.transport.mark(&path.link), path.rtt?)))
                .collect(),
            care: Care::of(&status.traffic),
        });
        self.add_switches(at, &status.switches);
    }

    fn add_switches(&mut self, at: Instant, switches: &[SwitchStatus]) {
        for switch in switches {
            let Some(then) = at.checked_sub(Duration::from_secs_f64(switch.ago)) else { continue };
            // The computed time of one switch differs by how long the answers took.
            let is_known = self.switches.iter().any(|known| {
                let apart = known.at.max(then).duration_since(known.at.min(then));
                apart < SAME && SwitchStatus { ago: switch.ago, ..known.what.clone() } == *switch
            });
            if !is_known {
                self.switches.push(Switch { at: then, what: switch.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::candidate::Transport;

    #[test]
    fn what_was_done_between_two_moments_is_the_difference_of_the_answers_before_them() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let sample = |milliseconds, copied| Sample {
            at: at(milliseconds),
            link: None,
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

    #[test]
    fn samples_with_the_same_path_are_one_span() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let sample = |seconds, active: Option<&str>| Sample {
            at: at(seconds),
            link: None,
            active: active.map(Into::into),
            rtts: Vec::new(),
            care: Care::default(),
        };
        let (wifi, lte) = (Some("wifi0"), Some("lte0"));
        let samples = [(0, wifi), (1, wifi), (2, lte), (3, None), (4, None)];
        let samples = samples.map(|(seconds, active)| sample(seconds, active)).into();
        let record = Record { samples, ..Record::default() };
        let expected = [(0..2, wifi), (2..3, lte), (3..9, None)]
            .map(|(span, link)| (at(span.start)..at(span.end), link.map(String::from)));
        assert_eq!(record.spans(at(9)), expected);
        assert!(Record::default().spans(at(9)).is_empty());
    }

    #[test]
    fn a_switch_of_a_slow_answer_is_counted_once() {
        let switch = |ago, gap| SwitchStatus {
            ago,
            from: Some("wifi0".into()),
            from_transport: Transport::Udp,
            to: "lte0".into(),
            to_transport: Transport::Udp,
            server: "192.0.2.1:4433".parse().unwrap(),
            reason: "gone".into(),
            gap,
        };
        let (mut record, now) = (Record::default(), clock::now() + Duration::from_secs(60));
        record.add_switches(now, &[switch(1.0, 62.5)]);
        // The answer took 0.7 s.
        record.add_switches(now + Duration::from_millis(900), &[switch(1.2, 62.5)]);
        assert_eq!(record.switches.len(), 1);
        record.add_switches(
            now + Duration::from_millis(900),
            &[switch(1.2, 62.5), switch(0.1, 19.0)],
        );
        record.add_switches(now + Duration::from_secs(9), &[switch(0.1, 62.5)]);
        assert_eq!(record.switches.len(), 3);
    }
}
