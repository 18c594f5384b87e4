//! The manager's decisions in words.

use std::time::Instant;

use super::{
    Active, Manager,
    state::{Path, State, Turn},
};
use crate::{
    link::candidate::Transport,
    path::{
        PathKey,
        rank::{PORTAL, Verdict},
    },
};

impl Manager {
    /// Why a path is used or is not, in words.
    #[must_use]
    pub(crate) fn why(&self, key: PathKey, now: Instant) -> String {
        let Some(path) = self.paths.get(&key) else { return String::new() };
        if self.is_active(key) {
            if let Some(fault) = path.quality.fault.filter(|_| self.works()) {
                let but = match self.best_standby() {
                    _ if self.is_chosen(&path.link) => "but somebody chose it",
                    None => "but no other path works",
                    Some(_) => "and no other path is known to be better",
                };
                return format!("{fault}, {but}");
            }
            return match self.active {
                Some(Active { doubt: Some(_), .. }) => "silent; all others are asked, too",
                _ if self.is_chosen(&path.link) => "somebody chose it",
                _ if path.is_at_home() => "at home: the server is in this network",
                _ if self.best_standby().is_none() => "the only path that works",
                _ => "the best path that works",
            }
            .into();
        }
        match path.state {
            _ if path.portal => PORTAL.into(),
            _ if !self.is_allowed(path) => "another link is pinned".into(),
            State::Waiting if self.turn(path) == Turn::Never && self.is_in_doubt() => {
                format!("asked if {} over this link stays silent", better(path.facts.transport))
            }
            State::Waiting if self.turn(path) == Turn::Never => {
                format!("{} works over this link", better(path.facts.transport))
            }
            State::Waiting => "not asked yet".into(),
            State::Probing { deadline } => {
                format!("no answer yet, given up in {}", within(deadline, now))
            }
            State::Failed { retry_at } => {
                format!("did not answer, asked again in {}", within(retry_at, now))
            }
            State::Standby { .. } if path.is_stranger => {
                "another server, which does not have this session".into()
            }
            State::Standby { .. } => self.why_standby(key, path, now),
        }
    }

    fn why_standby(&self, key: PathKey, path: &Path, now: Instant) -> String {
        if let Some(fault) = path.quality.fault {
            return match path.quality.clean_since {
                None => fault.to_string(),
                Some(since) => {
                    let ready = since + path.failures.dwell(now);
                    format!(
                        "{fault} until lately, trusted if it is good for another {}",
                        within(ready, now)
                    )
                }
            };
        }
        match (self.compare(key), self.ready_at(path)) {
            (None, _) => "there is no connection".into(),
            (Some(Verdict::Worse(why)), _) => why.into(),
            (Some(Verdict::Same), _) => "as good as the active path".into(),
            (Some(Verdict::Better(reason)), _) if reason.is_of_quality() => {
                "takes over once it is known to be better".into()
            }
            (Some(Verdict::Better(_)), Some(ready)) if ready > now => {
                format!(
                    "failed lately, takes over if it is good for another {}",
                    within(ready, now)
                )
            }
            (Some(Verdict::Better(_)), None) if path.rtt.is_none() => {
                "failed lately, takes over once its round trip is known".into()
            }
            (Some(Verdict::Better(_)), _) => {
                "takes over as soon as the active path is trusted".into()
            }
        }
    }
}

fn within(at: Instant, now: Instant) -> String {
    format!("{:.0} s", at.saturating_duration_since(now).as_secs_f64())
}

/// What goes before a path over `transport`.
fn better(transport: Transport) -> &'static str {
    if transport.is_detour() { "UDP or TCP" } else { "UDP" }
}
