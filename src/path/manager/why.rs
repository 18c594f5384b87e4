//! The manager's decisions in words.

use std::time::Instant;

use super::{Active, Key, Manager, Path, State};

impl Manager {
    /// Why a path is used or is not, in words.
    #[must_use]
    pub(crate) fn why(&self, key: Key, now: Instant) -> String {
        let Some(path) = self.paths.get(&key) else { return String::new() };
        if self.is_active(key) {
            return match self.active {
                Some(Active { doubt: Some(_), .. }) => "silent; all others are asked, too",
                _ if self.is_chosen(key) => "somebody chose it",
                _ if self.best_standby().is_none() => "the only path that works",
                _ => "the best path that works",
            }
            .into();
        }
        let within = |at: Instant| {
            let seconds = at.saturating_duration_since(now).as_secs_f64();
            format!("{seconds:.0} s")
        };
        match path.state {
            _ if !self.is_allowed(key) => "another link is pinned".into(),
            State::Waiting => "not asked yet".into(),
            State::Probing { deadline } => {
                format!("no answer yet, given up in {}", within(deadline))
            }
            State::Failed { retry_at } => {
                format!("did not answer, asked again in {}", within(retry_at))
            }
            State::Standby { .. } => match (self.improves(key), self.ready_at(key, path)) {
                (Some(_), Some(ready)) if ready > now => {
                    format!("failed lately, takes over if it is good for another {}", within(ready))
                }
                (Some(_), _) => "takes over as soon as the active path is trusted".into(),
                (None, _) => self.why_not_better(key, path).into(),
            },
        }
    }

    fn why_not_better(&self, key: Key, path: &Path) -> &'static str {
        let active = self.active().and_then(|key| Some((key, self.paths.get(&key)?)));
        match active {
            Some((active, _)) if self.is_chosen(active) && !self.is_chosen(key) => {
                "somebody chose another link"
            }
            Some((_, active)) if active.rank < path.rank => "the active path is preferred",
            Some(_) => "not faster than the active path",
            None => "there is no connection",
        }
    }
}
