//! What the attempts to reach the server came to, for people who ask while there is no connection.

use std::{
    collections::BTreeMap,
    sync::MutexGuard,
    time::{Duration, Instant},
};

use crate::{
    daemon::status::PathStatus, link::candidate::Candidate, mutex::Mutex, path::Condition,
};

/// The attempts since the last connection, one for each way to the server.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<BTreeMap<Candidate, Attempt>>);

#[derive(Debug)]
struct Attempt {
    /// When the first one of those that nobody answered began.
    since: Instant,
    /// Why the last one failed, if it did not merely stay without an answer.
    failure: Option<String>,
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Candidate, Attempt>> {
        self.0.lock()
    }

    /// Notes that an attempt over `candidate` began.
    pub(super) fn begin(&self, candidate: &Candidate, now: Instant) {
        let mut attempts = self.lock();
        match attempts.get_mut(candidate) {
            Some(Attempt { failure: None, .. }) => {}
            Some(attempt) => *attempt = Attempt { since: now, failure: None },
            None => {
                attempts.insert(candidate.clone(), Attempt { since: now, failure: None });
            }
        }
    }

    /// Notes why an attempt over `candidate` failed.
    pub(super) fn fail(&self, candidate: &Candidate, reason: String) {
        if let Some(attempt) = self.lock().get_mut(candidate) {
            attempt.failure = Some(reason);
        }
    }

    /// Forgets the attempts over all candidates but these.
    pub(super) fn retain(&self, is_there: impl Fn(&Candidate) -> bool) {
        self.lock().retain(|candidate, _| is_there(candidate));
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Each of them as a path that does not work yet.
    pub(super) fn status(&self, now: Instant) -> Vec<PathStatus> {
        let attempts = self.lock();
        let status = |(candidate, attempt): (&Candidate, &Attempt)| {
            let (state, why) = match &attempt.failure {
                Some(reason) => (Condition::Failed, reason.clone()),
                None => {
                    let silence = now.saturating_duration_since(attempt.since).as_secs();
                    let silence = humantime::format_duration(Duration::from_secs(silence));
                    (Condition::Probing, format!("no answer for {silence}"))
                }
            };
            PathStatus::unused(candidate, state, why)
        };
        attempts.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::candidate::Transport;

    fn candidate(link: &str) -> Candidate {
        Candidate {
            link: link.into(),
            index: 2,
            source: [192, 0, 2, 1].into(),
            router: None,
            metric: 0,
            server: ([192, 0, 2, 9], 4433).into(),
            transport: Transport::Udp,
        }
    }

    fn shown(attempts: &Attempts, now: Instant) -> Vec<(String, Condition, String)> {
        let paths = attempts.status(now).into_iter();
        paths.map(|path| (path.link, path.state, path.why)).collect()
    }

    #[test]
    fn a_silence_lasts_over_further_attempts_and_a_failure_ends_it() {
        let (attempts, begun, eth0) = (Attempts::default(), Instant::now(), candidate("eth0"));
        let after = |seconds| begun + Duration::from_secs(seconds);
        attempts.begin(&eth0, begun);
        attempts.begin(&eth0, after(5));
        let silent = |why: &str| vec![("eth0".into(), Condition::Probing, why.into())];
        assert_eq!(shown(&attempts, after(9)), silent("no answer for 9s"));
        attempts.fail(&eth0, "the cable is broken".into());
        let failed = ("eth0".into(), Condition::Failed, "the cable is broken".into());
        assert_eq!(shown(&attempts, after(10)), [failed]);
        attempts.begin(&eth0, after(20));
        assert_eq!(shown(&attempts, after(22)), silent("no answer for 2s"));
    }

    #[test]
    fn a_link_that_is_gone_is_not_shown() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        attempts.begin(&candidate("eth0"), now);
        attempts.begin(&candidate("wlan0"), now);
        attempts.retain(|it| it.link == "wlan0");
        assert_eq!(shown(&attempts, now).len(), 1);
        attempts.clear();
        assert_eq!(shown(&attempts, now), []);
    }
}
