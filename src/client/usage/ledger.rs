//! What each link carried on each day, and what is left of its budget.
//!
//! A day comes from a clock that may be wrong: a machine without a battery begins in 1970, and one whose battery is
//! weak begins anywhere. So the day into which is counted goes on, and does not go back:
//!
//! | the clock says | counted into |
//! |---|---|
//! | the newest day that has something, the day before (a time zone further west), or a later one | the later of the two |
//! | a day long before or far after it | the newest day; after an hour the clock is believed, and what was counted into days that are still to come belongs to today |
//! | a day before there was a roamd | the newest day |

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Date,
    config::{Budget, OverBudget},
    daemon::usage::{Amount, BudgetLevel, BudgetStatus, LinkUsage},
    wire::foreign::is_printable,
};

/// Links that are kept; with one more the one is forgotten that carried nothing for longest.
const MOST_LINKS: usize = 64;
/// Days of a link that are kept: more than a year.
const MOST_DAYS: usize = 400;
/// Bytes of a link's name at most (IFNAMSIZ of netdevice(7)).
const LONGEST_NAME: usize = 15;
/// The clock is not before this day: no roamd is older. As days since 1970: 2026-01-01.
const FIRST_DAY: i64 = 20_454;
/// A machine may be off for so many days.
const FAR: i64 = 400;
/// After so long a clock that is far off is believed. Time servers answer sooner, and the user has time to set it.
const BELIEF: Duration = Duration::from_secs(3600);

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    accounts: BTreeMap<String, Account>,
    /// Since when the clock is not believed.
    doubted: Option<Instant>,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Account {
    days: BTreeMap<Date, Amount>,
    told: Option<Told>,
    /// Since the process began.
    #[serde(skip)]
    lately: Amount,
}

/// What was told of a budget last: each level once in a period, over restarts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    since: Date,
    level: BudgetLevel,
}

/// What follows from the budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overdrawn {
    /// Links over which bulk waits.
    pub(crate) held: BTreeSet<String>,
    /// Links over which nothing is sent.
    pub(crate) stopped: BTreeSet<String>,
}

/// What a look at the budgets found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) overdrawn: Overdrawn,
    /// The budgets of which a further level is reached.
    pub(super) news: Vec<(String, BudgetStatus)>,
    /// Bytes until one is used up, if one is left.
    pub(super) left: Option<u64>,
}

/// What a link carried since the process began, and its budget.
pub(super) type Row = (String, Amount, Option<BudgetStatus>);

impl Ledger {
    /// What was kept in a file, as far as a ledger may have written it.
    pub(super) fn of(mut accounts: BTreeMap<String, Account>) -> Self {
        let is_name =
            |name: &str| (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_printable);
        accounts.retain(|name, _| is_name(name));
        let mut ledger = Self { accounts, doubted: None };
        ledger.bound();
        ledger
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    pub(super) fn accounts(&self) -> &BTreeMap<String, Account> {
        &self.accounts
    }

    /// The day into which is counted now, as the clock on the wall says `wall`.
    pub(super) fn today(&mut self, wall: Date, now: Instant) -> Date {
        let first = Date::of_number(FIRST_DAY);
        let Some(newest) = self.newest() else { return wall.max(first) };
        let ahead = wall.number() - newest.number();
        // A clock that is right for the first time says what the first day was.
        if wall >= first && ((-1..=FAR).contains(&ahead) || newest == first) {
            self.doubted = None;
            if newest == first {
                self.move_days(wall, |day| day == first);
            }
            return wall.max(newest);
        }
        if wall < first {
            self.doubted = None;
            return newest;
        }
        let doubted = *self.doubted.get_or_insert(now);
        if now.saturating_duration_since(doubted) < BELIEF {
            return newest;
        }
        self.doubted = None;
        self.move_days(wall, |day| day > wall);
        wall
    }

    fn newest(&self) -> Option<Date> {
        self.accounts.values().filter_map(|it| it.days.keys().next_back()).max().copied()
    }

    /// Counts what was counted into these days into another one.
    fn move_days(&mut self, to: Date, is_moved: impl Fn(Date) -> bool) {
        for account in self.accounts.values_mut() {
            let days = std::mem::take(&mut account.days);
            for (day, amount) in days {
                let day = if is_moved(day) { to } else { day };
                account.days.entry(day).or_default().add(amount);
            }
        }
    }

    /// A link carried this.
    pub(super) fn add(&mut self, link: &str, today: Date, amount: Amount) {
        if amount == Amount::default() {
            return;
        }
        let account = self.accounts.entry(link.into()).or_default();
        account.days.entry(today).or_default().add(amount);
        account.lately.add(amount);
        self.bound();
    }

    fn bound(&mut self) {
        for account in self.accounts.values_mut() {
            while account.days.len() > MOST_DAYS {
                account.days.pop_first();
            }
        }
        while self.accounts.len() > MOST_LINKS {
            let last =
                |(_, account): &(&String, &Account)| account.days.keys().next_back().copied();
            let Some(idle) = self.accounts.iter().min_by_key(last).map(|(link, _)| link.clone())
            else {
                return;
            };
            self.accounts.remove(&idle);
        }
    }

    /// Compares what was carried with what may be, as `budget` says of a link.
    pub(super) fn judge(
        &mut self,
        budget: impl Fn(&str) -> Option<Budget>,
        today: Date,
    ) -> Findings {
        let mut findings = Findings::default();
        for (link, account) in &mut self.accounts {
            let Some(budget) = budget(link) else { continue };
            let status = account.status(&budget, today);
            let (since, level) = (status.since, status.level);
            let before = account.told.filter(|told| told.since == since);
            account.told = Some(Told { since, level });
            if level == BudgetLevel::Reached {
                match budget.over {
                    OverBudget::HoldBulk => _ = findings.overdrawn.held.insert(link.clone()),
                    OverBudget::Stop => _ = findings.overdrawn.stopped.insert(link.clone()),
                    OverBudget::Warn => {}
                }
            } else {
                let left = status.of - status.used;
                findings.left = Some(findings.left.map_or(left, |it| it.min(left)));
            }
            if level > before.map_or(BudgetLevel::Within, |told| told.level) {
                findings.news.push((link.clone(), status));
            }
        }
        findings
    }

    /// What each link that has a budget, or was used since the process began, carried since then.
    pub(super) fn rows(&self, budget: impl Fn(&str) -> Option<Budget>, today: Date) -> Vec<Row> {
        let row = |(link, account): (&String, &Account)| {
            let status = budget(link).map(|budget| account.status(&budget, today));
            (link.clone(), account.lately, status)
        };
        let rows = self.accounts.iter().map(row);
        rows.filter(|(_, lately, budget)| *lately != Amount::default() || budget.is_some())
            .collect()
    }

    /// What the links carried day by day.
    pub(crate) fn links(
        &self,
        budget: impl Fn(&str) -> Option<Budget>,
        today: Date,
    ) -> Vec<LinkUsage> {
        let link = |(link, account): (&String, &Account)| {
            let status = budget(link).map(|budget| account.status(&budget, today));
            LinkUsage::new(link, status, &account.days)
        };
        self.accounts.iter().map(link).collect()
    }
}

impl Account {
    fn status(&self, budget: &Budget, today: Date) -> BudgetStatus {
        let since = budget.period.begin(today);
        let used = self.days.range(since..).map(|(_, amount)| amount.total());
        BudgetStatus::new(budget, used.fold(0, u64::saturating_add), since)
    }
}
