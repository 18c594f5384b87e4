//! What links carried, as `roamd usage --json` prints it. The schema has a version like that of the status.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Date,
    config::{Budget, OverBudget},
};

/// Bytes that a link carried, with the headers of their packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Amount {
    /// Sent.
    pub sent_bytes: u64,
    /// Received.
    pub received_bytes: u64,
    /// Of both together those of standbys, probes and copies, and of keep-alives while nothing crossed the tunnel.
    pub upkeep_bytes: u64,
}

impl Amount {
    /// Both directions together.
    #[must_use]
    pub(crate) fn total(self) -> u64 {
        self.sent_bytes.saturating_add(self.received_bytes)
    }

    pub(crate) fn add(&mut self, other: Self) {
        let Self { sent_bytes, received_bytes, upkeep_bytes } = other;
        self.sent_bytes = self.sent_bytes.saturating_add(sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(received_bytes);
        self.upkeep_bytes = self.upkeep_bytes.saturating_add(upkeep_bytes);
    }
}

/// How far a budget is used up. Declared in the order in which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BudgetLevel {
    /// Less than four fifths of it.
    Within,
    /// More.
    Warned,
    /// All of it.
    Reached,
}

/// A link's budget, and what is used of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct BudgetStatus {
    /// Bytes that were carried in this period.
    pub used: u64,
    /// Bytes that may be.
    pub of: u64,
    /// `day`, `week`, `month`, or as `28 days`.
    pub period: String,
    /// When the period began.
    pub since: Date,
    /// How far it is used up.
    pub level: BudgetLevel,
    /// What happens when it is used up.
    pub over: OverBudget,
}

impl BudgetStatus {
    /// What is used of a budget in the period that began at `since`.
    #[must_use]
    pub(crate) fn new(budget: &Budget, used: u64, since: Date) -> Self {
        let Budget { bytes: of, period, over } = *budget;
        let level = match used {
            _ if used >= of => BudgetLevel::Reached,
            _ if used >= of / 5 * 4 => BudgetLevel::Warned,
            _ => BudgetLevel::Within,
        };
        Self { used, of, period: period.to_string(), since, level, over }
    }
}

/// A day of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DayUsage {
    /// Which one, where the client is.
    pub day: Date,
    /// What it carried.
    #[serde(flatten)]
    pub amount: Amount,
}

/// A calendar month of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MonthUsage {
    /// Which one, as `2026-11`.
    pub month: String,
    /// What it carried.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What a link carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LinkUsage {
    /// Its name.
    pub link: String,
    /// What it may carry; none where the configuration does not say, or the daemon does not run.
    pub budget: Option<BudgetStatus>,
    /// Month by month, the oldest first.
    pub months: Vec<MonthUsage>,
    /// Day by day, the oldest first; days on which it carried nothing are left out.
    pub days: Vec<DayUsage>,
}

impl LinkUsage {
    /// That of these days.
    #[must_use]
    pub(crate) fn new(
        link: &str,
        budget: Option<BudgetStatus>,
        days: &BTreeMap<Date, Amount>,
    ) -> Self {
        let mut months = Vec::<MonthUsage>::new();
        for (day, amount) in days {
            match months.last_mut().filter(|it| it.month == day.month()) {
                Some(month) => month.amount.add(*amount),
                None => months.push(MonthUsage { month: day.month(), amount: *amount }),
            }
        }
        let days = days.iter().map(|(day, amount)| DayUsage { day: *day, amount: *amount });
        Self { link: link.into(), budget, months, days: days.collect() }
    }
}

/// What all links of a client carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Usage {
    /// [`SCHEMA`](super::status::SCHEMA).
    pub schema: u32,
    /// The links, by name.
    pub links: Vec<LinkUsage>,
    /// Why the last minutes are not on disk; none while they are.
    pub unsaved: Option<String>,
}

/// A number of bytes with a unit of powers of ten, for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, ["B", "kB", "MB", "GB", "TB"])
    }
}

/// A number with the unit that fits, of units each a thousand times the one before.
pub(crate) fn scaled(f: &mut fmt::Formatter<'_>, value: u64, units: [&str; 5]) -> fmt::Result {
    if value < 1000 {
        return write!(f, "{value} {}", units[0]);
    }
    let (mut scaled, mut unit) = (value as f64, units[0]);
    for larger in &units[1..] {
        if scaled < 1000.0 {
            break;
        }
        scaled /= 1000.0;
        unit = larger;
    }
    write!(f, "{scaled:.1} {unit}")
}
