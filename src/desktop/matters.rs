//! Which matters a person is told of: statuses in, notifications out. Pure.
//!
//! ```text
//!  status ─▶ Seen ─▶ what holds ── lasts long enough ─▶ Show ── does not hold any more ─▶ Close, or a last word
//! ```
//! A matter has one notification, which is replaced and closed, and is shown at most twice in [`PACE`]; all of a tunnel's budgets
//! together have at most [`MOST_BUDGETS`] in that time. Whatever a tunnel does, there is no storm of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::seen::{Seen, Way};
use crate::wire::foreign::Foreign;

/// From one notification of a matter to its next, at least.
const PACE: Duration = Duration::from_secs(30);
/// Notifications of budgets in [`PACE`] for one tunnel: as many as a laptop has links, while a daemon may name any number.
const MOST_BUDGETS: usize = 4;
/// A tunnel without a way is told of after this time. Most outages are over before.
const AWAY: Duration = Duration::from_secs(60);
/// A link that costs money is told of after this time: nobody needs to know of a moment on it.
const COSTLY: Duration = Duration::from_secs(5);
/// A daemon that restarts is back within this time, and its matters go on.
const GRACE: Duration = Duration::from_secs(10);
/// How long is shown what nobody has to act on.
const SHORTLY: Duration = Duration::from_secs(8);

/// Something that a person acts on, of one tunnel. The order is that in which they are told of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Matter {
    /// A network wants a login.
    Portal,
    /// The server will not have this client.
    Refused,
    /// There is no way to the server.
    Away,
    /// The traffic costs money.
    Metered,
    /// This link has carried most of what it may.
    Budget(String),
    /// What a person asked for in the tray was not done.
    Failed,
}

/// What a daemon says of a link's budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) link: Foreign,
    /// All of it was used.
    pub(crate) is_used_up: bool,
    pub(crate) words: Foreign,
}

/// A matter of the tunnel with this name.
pub(crate) type Key = (String, Matter);

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) title: String,
    pub(crate) body: String,
    pub(crate) urgency: Urgency,
    /// In the words of the Desktop Notifications Specification.
    pub(crate) category: &'static str,
    /// A page that a click opens.
    pub(crate) page: Option<String>,
    /// How long it is shown; without it until the matter is over. One that vanishes is in no list of the desktop's.
    pub(crate) vanishes: Option<Duration>,
}

/// How much attention a notification wants. The values are those of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Urgency {
    Low = 0,
    Normal = 1,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Show it, in place of the matter's last one.
    Show(Key, Note),
    /// Show it in place of the matter's last one: the matter is over.
    Conclude(Key, Note),
    /// Nothing is to be seen of the matter any more: it is over.
    Close(Key),
}

/// What holds of all tunnels, and what was told.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    tunnels: BTreeMap<String, Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    seen: Seen,
    /// What was said last of the budgets of links that have used up most of them, by link.
    budgets: BTreeMap<String, Budget>,
    /// Since when its daemon is not there.
    gone: Option<Instant>,
    matters: BTreeMap<Matter, State>,
    /// When the last notifications of budgets were shown, the oldest first.
    budgets_shown: VecDeque<Instant>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when it holds.
    since: Option<Instant>,
    /// What is shown.
    shown: Option<Note>,
    /// When something was shown last.
    last: Option<Instant>,
}

impl Desk {
    /// Takes in the status of a tunnel.
    pub(crate) fn see(&mut self, name: &str, seen: Seen) {
        match self.tunnels.get_mut(name) {
            Some(tunnel) => {
                // The others have a new day, week or month.
                tunnel.budgets.retain(|link, _| seen.near_budget.contains(link));
                (tunnel.seen, tunnel.gone) = (seen, None);
            }
            None => {
                let (budgets, matters) = (BTreeMap::new(), BTreeMap::new());
                let budgets_shown = VecDeque::new();
                let tunnel = Tunnel { seen, budgets, gone: None, matters, budgets_shown };
                self.tunnels.insert(name.into(), tunnel);
            }
        }
    }

    /// Takes in what a daemon says of a budget.
    pub(crate) fn hear(&mut self, name: &str, budget: Budget) {
        if let Some(tunnel) = self.tunnels.get_mut(name) {
            let link = budget.link.to_string();
            tunnel.budgets.insert(link.clone(), budget);
            // It is news even if the same was said a month ago.
            tunnel.matters.entry(Matter::Budget(link)).or_default().shown = None;
        }
    }

    /// Takes in how a budget is, after events were missed: no news if it was heard.
    pub(crate) fn hear_again(&mut self, name: &str, budget: Budget) {
        let known =
            self.tunnels.get(name).and_then(|tunnel| tunnel.budgets.get(budget.link.as_str()));
        if known.is_none_or(|known| known.is_used_up != budget.is_used_up) {
            self.hear(name, budget);
        }
    }

    /// The daemon of a tunnel is not there any more.
    pub(crate) fn gone(&mut self, name: &str, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(name) {
            tunnel.gone.get_or_insert(now);
        }
    }

    /// The tunnels whose daemons are there, by name.
    pub(crate) fn tunnels(&self) -> BTreeMap<&str, &Seen> {
        let there = self.tunnels.iter().filter(|(_, tunnel)| tunnel.gone.is_none());
        there.map(|(name, tunnel)| (&**name, &tunnel.seen)).collect()
    }

    /// What is to be shown or closed by now.
    pub(crate) fn judge(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, tunnel) in &mut self.tunnels {
            tunnel.judge(name, now, &mut actions);
        }
        // What was told lately is not told again if the daemon returns.
        self.tunnels.retain(|_, tunnel| !tunnel.is_over(now) || !tunnel.matters.is_empty());
        actions
    }

    /// When [`Self::judge`] has something to say at the latest, if nothing happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tunnels.iter().flat_map(|(name, tunnel)| tunnel.deadlines(name)).min()
    }
}

impl Tunnel {
    fn is_over(&self, now: Instant) -> bool {
        self.gone.is_some_and(|gone| now >= gone + GRACE)
    }

    /// All that may hold, and all that is shown.
    fn matters(&self) -> BTreeSet<Matter> {
        let each = [Matter::Portal, Matter::Refused, Matter::Away, Matter::Metered];
        let budgets = self.budgets.keys().cloned().map(Matter::Budget);
        each.into_iter().chain(budgets).chain(self.matters.keys().cloned()).collect()
    }

    fn judge(&mut self, name: &str, now: Instant, actions: &mut Vec<Action>) {
        let is_over = self.is_over(now);
        if self.gone.is_some() && !is_over {
            return;
        }
        if is_over {
            self.budgets.clear();
        }
        for matter in self.matters() {
            let wanted = if is_over { None } else { self.note(name, &matter) };
            let room = self.room(&matter);
            let state = self.matters.entry(matter.clone()).or_default();
            let key = (name.to_owned(), matter);
            match wanted {
                Some(note) => {
                    let since = *state.since.get_or_insert(now);
                    let due = state.due(&key.1, since).max(room.unwrap_or(since));
                    if state.is_news(&note) && now >= due {
                        if matches!(key.1, Matter::Budget(_)) {
                            self.budgets_shown.push_back(now);
                        }
                        if self.budgets_shown.len() > MOST_BUDGETS {
                            self.budgets_shown.pop_front();
                        }
                        (state.shown, state.last) = (Some(note.clone()), Some(now));
                        actions.push(Action::Show(key, note));
                    }
                }
                None => {
                    state.since = None;
                    if state.shown.take().is_some() {
                        let last_word = last_word(name, &key.1, &self.seen).filter(|_| !is_over);
                        actions.push(match last_word {
                            Some(note) => {
                                state.last = Some(now);
                                Action::Conclude(key, note)
                            }
                            None => Action::Close(key),
                        });
                    }
                }
            }
        }
        // Links come and go.
        self.matters.retain(|_, state| state.is_kept(now));
    }

    /// When there is room for another notification, if there may be none.
    fn room(&self, matter: &Matter) -> Option<Instant> {
        let is_full = self.budgets_shown.len() == MOST_BUDGETS;
        let oldest = self.budgets_shown.front().filter(|_| is_full)?;
        matches!(matter, Matter::Budget(_)).then(|| *oldest + PACE)
    }

    fn deadlines(&self, name: &str) -> Vec<Instant> {
        if let Some(gone) = self.gone {
            let over = gone + GRACE;
            let is_closed = |state: &State| state.since.is_none() && state.shown.is_none();
            let told = self.matters.values().filter_map(|state| state.last);
            let kept = told.max().filter(|_| self.matters.values().all(is_closed));
            return vec![kept.map_or(over, |last| over.max(last + PACE))];
        }
        let due = self.matters.iter().filter_map(|(matter, state)| {
            let note = self.note(name, matter)?;
            let due = state.due(matter, state.since?);
            state.is_news(&note).then(|| self.room(matter).map_or(due, |room| room.max(due)))
        });
        due.collect()
    }

    /// The notification of a matter that holds; none if it does not. This is the table of what people are told.
    fn note(&self, name: &str, matter: &Matter) -> Option<Note> {
        let (name, seen) = (Foreign::of(name), &self.seen);
        let reason = || seen.reason.as_ref().map(ToString::to_string);
        let note = Note {
            title: String::new(),
            body: String::new(),
            urgency: Urgency::Normal,
            category: "network",
            page: None,
            vanishes: None,
        };
        Some(match matter {
            Matter::Portal => {
                let portal = seen.portal.as_ref()?;
                let title = format!("{name}: {} wants a login", portal.link);
                let body =
                    "A captive portal answers in the server's place. Log in with a browser.".into();
                Note { title, body, page: portal.page.clone(), ..note }
            }
            Matter::Refused => {
                let body = reason().filter(|_| seen.refused && seen.portal.is_none())?;
                let title = format!("{name}: the server refuses this computer");
                Note { title, body, category: "network.error", ..note }
            }
            Matter::Away => {
                if seen.way != Way::None || seen.refused || seen.portal.is_some() {
                    return None;
                }
                let title = format!("{name}: no connection for a minute");
                let body = reason().unwrap_or_else(|| "No network leads to the server.".into());
                Note { title, body, category: "network.disconnected", ..note }
            }
            Matter::Metered => {
                let (link, _) = seen.in_use.as_ref().filter(|_| seen.metered)?;
                let title = format!("{name}: on metered data");
                let body = format!("The tunnel goes over {link}, which costs money.");
                Note { title, body, urgency: Urgency::Low, vanishes: Some(SHORTLY), ..note }
            }
            Matter::Budget(link) => {
                let Budget { link, is_used_up, words } = self.budgets.get(link)?;
                let title = format!("{name}: data budget of {link}");
                let vanishes = (!is_used_up).then_some(SHORTLY);
                Note { title, body: words.to_string(), vanishes, ..note }
            }
            Matter::Failed => return None,
        })
    }
}

impl State {
    /// Whether a person does not know of it. A matter is told again when its title says something else.
    fn is_news(&self, note: &Note) -> bool {
        self.shown.as_ref().is_none_or(|shown| shown.title != note.title)
    }

    /// Whether something is to be kept of a matter: it holds, is shown, or was so lately that it may not be shown again.
    fn is_kept(&self, now: Instant) -> bool {
        self.since.is_some()
            || self.shown.is_some()
            || self.last.is_some_and(|last| now < last + PACE)
    }

    fn due(&self, matter: &Matter, since: Instant) -> Instant {
        let lasts = match matter {
            Matter::Away => AWAY,
            Matter::Metered => COSTLY,
            Matter::Portal | Matter::Refused | Matter::Budget(_) | Matter::Failed => Duration::ZERO,
        };
        (since + lasts).max(self.last.map_or(since, |last| last + PACE))
    }
}

/// What is said of a matter that is over, in place of its notification.
fn last_word(name: &str, matter: &Matter, seen: &Seen) -> Option<Note> {
    let (link, _) = seen.in_use.as_ref().filter(|_| *matter == Matter::Away)?;
    Some(Note {
        title: format!("{}: connected again", Foreign::of(name)),
        body: format!("The tunnel goes over {link}."),
        urgency: Urgency::Low,
        category: "network.connected",
        page: None,
        vanishes: Some(SHORTLY),
    })
}

/// What a person hears whose click came to nothing.
pub(crate) fn failed(name: &str, why: &str) -> Action {
    let note = Note {
        title: format!("{}: not done", Foreign::of(name)),
        body: why.into(),
        urgency: Urgency::Normal,
        category: "network.error",
        page: None,
        vanishes: Some(SHORTLY),
    };
    Action::Conclude((name.into(), Matter::Failed), note)
}

#[cfg(test)]
mod tests;
