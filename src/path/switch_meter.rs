//! How long a switch of paths interrupts the tunnel: its gap.
//!
//! The gap begins when the server owed an answer on the old path, and ends when it is first heard on the new one.
//! When the old path still works, the gap begins with the switch itself.

use std::time::{Duration, Instant};

use super::Reason;
use crate::link::candidate::Candidate;

/// Measures the newest switch; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct SwitchMeter(Option<Running>);

#[derive(Debug)]
struct Running {
    from: Option<Candidate>,
    to: Candidate,
    reason: Reason,
    words: String,
    begun: Instant,
    silent_since: Instant,
}

/// A switch that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switched {
    pub(crate) from: Option<Candidate>,
    pub(crate) to: Candidate,
    pub(crate) reason: Reason,
    /// The reason for people.
    pub(crate) words: String,
    pub(crate) gap: Duration,
}

impl SwitchMeter {
    /// A switch begins `now`, for a reason that `words` tell people; the old path is unheard since `unheard_since`. An earlier switch that is not over is
    /// not measured: nothing was heard on its path.
    pub(crate) fn begin(
        &mut self,
        from: Option<Candidate>,
        to: Candidate,
        (reason, words): (Reason, String),
        unheard_since: Option<Instant>,
        now: Instant,
    ) {
        let silent_since = unheard_since.filter(|_| !reason.is_soft()).unwrap_or(now);
        self.0 = Some(Running { from, to, reason, words, begun: now, silent_since });
    }

    /// Where the switch that is not over leads.
    #[must_use]
    pub(crate) fn awaited(&self) -> Option<&Candidate> {
        self.0.as_ref().map(|running| &running.to)
    }

    /// The server was last heard on the new path at `at`; gives the switch if that ends it.
    pub(crate) fn heard(&mut self, at: Instant) -> Option<Switched> {
        let Running { from, to, reason, words, silent_since, .. } =
            self.0.take_if(|running| at >= running.begun)?;
        let gap = at.saturating_duration_since(silent_since);
        Some(Switched { from, to, reason, words, gap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::candidate::Transport;

    const MS: Duration = Duration::from_millis(1);

    fn link(name: &str) -> Candidate {
        Candidate {
            link: name.into(),
            index: 1,
            source: [10, 0, 0, 2].into(),
            router: None,
            metric: 100,
            server: ([192, 0, 2, 1], 4433).into(),
            transport: Transport::Udp,
        }
    }

    fn why(reason: Reason) -> (Reason, String) {
        (reason, reason.to_string())
    }

    /// The gap of a switch at `start` from a path that is unheard for `unheard_for`. The new path is first heard
    /// 40 ms later.
    fn gap(reason: Reason, unheard_for: Option<Duration>) -> Duration {
        let (mut meter, start) = (SwitchMeter::default(), Instant::now());
        let unheard_since = unheard_for.map(|it| start - it);
        meter.begin(Some(link("wlan0")), link("wwan0"), why(reason), unheard_since, start);
        meter.heard(start + 40 * MS).expect("it is over").gap
    }

    #[test]
    fn the_gap_of_a_silent_path_begins_with_its_silence() {
        assert_eq!(gap(Reason::Silent, Some(500 * MS)), 540 * MS);
        assert_eq!(gap(Reason::Gone, Some(20 * MS)), 60 * MS);
    }

    #[test]
    fn the_gap_of_a_dead_path_without_a_silence_begins_with_the_switch() {
        assert_eq!(gap(Reason::Gone, None), 40 * MS);
        assert_eq!(gap(Reason::SendFailed, None), 40 * MS);
    }

    #[test]
    fn the_gap_of_a_working_path_begins_with_the_switch() {
        for reason in [Reason::Preferred, Reason::Faster, Reason::Chosen, Reason::Lossy] {
            assert_eq!(gap(reason, Some(500 * MS)), 40 * MS, "{reason}");
        }
    }

    #[test]
    fn packets_received_before_the_switch_do_not_end_the_gap() {
        let (mut meter, start) = (SwitchMeter::default(), Instant::now());
        meter.begin(None, link("wwan0"), why(Reason::Chosen), None, start);
        assert_eq!(meter.heard(start - MS), None);
        assert_eq!(meter.awaited(), Some(&link("wwan0")));
        let switched = meter.heard(start).expect("it is over");
        assert_eq!(
            (switched.from, switched.to, switched.gap),
            (None, link("wwan0"), Duration::ZERO)
        );
        assert_eq!(meter.awaited(), None);
        assert_eq!(meter.heard(start + MS), None, "it is told once");
    }

    #[test]
    fn a_switch_that_another_one_replaces_is_not_measured() {
        let (mut meter, start) = (SwitchMeter::default(), Instant::now());
        meter.begin(Some(link("wlan0")), link("wwan0"), why(Reason::Gone), None, start);
        meter.begin(Some(link("wwan0")), link("eth0"), why(Reason::Gone), None, start + 100 * MS);
        assert_eq!(meter.heard(start + 50 * MS), None);
        let switched = meter.heard(start + 130 * MS).expect("it is over");
        assert_eq!((switched.to, switched.gap), (link("eth0"), 30 * MS));
    }
}
