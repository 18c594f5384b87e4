//! What each link carried on each day, and what is left of its budget.
//!
//! A day comes from a clock that may be wrong: a machine without a battery begins in 1970, and one whose battery is
//! weak begins anywhere. So a step of the clock is believed at once only if it is small, or leads to where the newest
//! days of the ledger are; a large one is believed when the clock has gone on from there for an hour of running, over
//! restarts too. Meanwhile the day stays, and so does what is left of each budget. Days that were counted are
//! never moved, and days that are still to come count as used.

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
/// A step of the clock of so many days is believed at once: the machine was off for a while.
const NEAR: i64 = 7;
/// After so long a clock that took a larger step is believed. Time servers answer sooner, and the user has time to set it.
const BELIEF: Duration = Duration::from_secs(3600);
/// From one look to the next, at most: while nobody looks the process does not run.
const LOOK: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ledger {
    #[serde(rename = "links")]
    accounts: BTreeMap<String, Account>,
    /// The day into which is counted.
    day: Option<Date>,
    doubt: Option<Doubt>,
    /// When the clock was looked at last.
    #[serde(skip)]
    looked: Option<Instant>,
}

/// A large step of the clock, which is not believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    /// Where the clock is.
    day: Date,
    /// For how long it has been there.
    milliseconds: u64,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Account {
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
    /// What was read from a file, without what no ledger would have written.
    pub(super) fn checked(mut self) -> Self {
        let is_name =
            |name: &str| (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_printable);
        self.accounts.retain(|name, _| is_name(name));
        self.bound();
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Takes over what an earlier run kept, beside what was counted since.
    pub(super) fn take_over(&mut self, earlier: Self) {
        let counted = std::mem::replace(self, earlier);
        for (link, account) in counted.accounts {
            let kept = self.accounts.entry(link).or_default();
            kept.lately.add(account.lately);
            kept.told = kept.told.or(account.told);
            for (day, amount) in account.days {
                kept.days.entry(day).or_default().add(amount);
            }
        }
        self.day = self.day.or(counted.day);
        self.bound();
    }

    /// The day into which is counted now, as the clock on the wall says `wall`.
    pub(super) fn today(&mut self, wall: Date, now: Instant) -> Date {
        let first = Date::of_number(FIRST_DAY);
        let looked = self.looked.replace(now).unwrap_or(now);
        let day = match self.day {
            None => wall.max(first),
            Some(day) if wall < first => day,
            // The clock is right for the first time, and says what the first day was.
            Some(day) if day == first => {
                self.move_day(first, wall);
                wall
            }
            Some(day) if is_near(day, wall) => {
                self.doubt = None;
                day.max(wall)
            }
            Some(_) if self.newest().is_some_and(|newest| is_near(newest, wall)) => wall,
            Some(day) => {
                let doubt = self.doubt.filter(|doubt| is_near(doubt.day, wall));
                let ran = now.saturating_duration_since(looked).min(LOOK).as_millis() as u64;
                let milliseconds = doubt.map_or(0, |doubt| doubt.milliseconds.saturating_add(ran));
                self.doubt = Some(Doubt { day: wall, milliseconds });
                if u128::from(milliseconds) < BELIEF.as_millis() { day } else { wall }
            }
        };
        if self.doubt.is_some_and(|doubt| is_near(day, doubt.day)) {
            self.doubt = None;
        }
        self.day = Some(day);
        day
    }

    fn newest(&self) -> Option<Date> {
        self.accounts.values().filter_map(|it| it.days.keys().next_back()).max().copied()
    }

    /// Counts what was counted into one day into another one.
    fn move_day(&mut self, from: Date, to: Date) {
        for account in self.accounts.values_mut() {
            if let Some(amount) = account.days.remove(&from) {
                account.days.entry(to).or_default().add(amount);
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

/// Whether a clock at `wall` may have gone on from `day`; a time zone further west is a day behind.
fn is_near(day: Date, wall: Date) -> bool {
    (-1..=NEAR).contains(&(wall.number() - day.number()))
}

impl Account {
    fn status(&self, budget: &Budget, today: Date) -> BudgetStatus {
        let since = budget.period.begin(today);
        let used = self.days.range(since..).map(|(_, amount)| amount.total());
        BudgetStatus::new(budget, used.fold(0, u64::saturating_add), since)
    }
}
