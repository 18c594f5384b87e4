//! What a link may carry: `paths.prefer.budget`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Date;

/// Less is used up by keeping the link warm; more is no limit that anybody pays for.
const LEAST: u64 = 1_000_000;
const MOST: u64 = 1_000_000_000_000_000;

/// How much a link may carry in each period, both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes.
    pub bytes: u64,
    /// How often it begins anew.
    pub period: Period,
    /// What happens when it is used up.
    pub over: OverBudget,
}

/// How long a budget lasts. Days are those of the machine's time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From midnight.
    Day,
    /// From Monday.
    Week,
    /// From this day of each month; from the last one of a month that is shorter.
    Month {
        /// 1 to 31.
        first: u8,
    },
    /// From this day on, again and again after so many days.
    Days {
        /// 1 to 366.
        count: u16,
        /// The first day of one of the periods.
        start: Date,
    },
}

/// A period as it is written, without the day on which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Day,
    Week,
    Month,
    Days(u16),
}

/// The longest period in days: usage is kept for a little longer.
const LONGEST: u16 = 366;

/// What happens to a link whose budget is used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverBudget {
    /// Flows that take much wait.
    #[default]
    HoldBulk,
    /// Nothing is sent over it.
    Stop,
    /// It is used as before.
    Warn,
}

impl Period {
    /// The first day of the period in which `day` is.
    #[must_use]
    pub(crate) fn begin(self, day: Date) -> Date {
        match self {
            Self::Day => day,
            Self::Week => day.plus(-i64::from(day.weekday())),
            Self::Month { first } => {
                let begin = |month: Date| month.with_day(first);
                if begin(day) <= day { begin(day) } else { begin(day.with_day(1).plus(-1)) }
            }
            Self::Days { count, start } => {
                let since_start = day.number() - start.number();
                day.plus(-since_start.rem_euclid(count.max(1).into()))
            }
        }
    }
}

/// As a budget has it behind its slash.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day => f.write_str("day"),
            Self::Week => f.write_str("week"),
            Self::Month { .. } => f.write_str("month"),
            Self::Days { count: 1, .. } => f.write_str("1 day"),
            Self::Days { count, .. } => write!(f, "{count} days"),
        }
    }
}

/// Reads bytes for each period, such as `2 GB/month` or `2 GB/28 days`.
pub(super) fn parse(text: &str) -> Option<(u64, Written)> {
    let (size, period) = text.split_once('/')?;
    let period = match period.trim() {
        "day" => Written::Day,
        "week" => Written::Week,
        "month" => Written::Month,
        days => Written::Days(days_of(days)?),
    };
    let size = size.trim();
    let end = size.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = size.split_at(end);
    let unit: u64 = match unit.trim_start() {
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    // What is no number fits nowhere.
    (LEAST as f64..=MOST as f64).contains(&bytes).then_some((bytes as u64, period))
}

/// Reads `28 days` or `28d`.
fn days_of(text: &str) -> Option<u16> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(end);
    let count = count.parse().ok().filter(|count| (1..=LONGEST).contains(count))?;
    matches!(unit.trim_start(), "d" | "day" | "days").then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn a_budget_is_a_number_with_a_unit_for_each_period() {
        for (text, expected) in [
            ("2 GB/month", Some((2_000_000_000, Written::Month))),
            ("2GiB / month", Some((2 << 30, Written::Month))),
            ("0.5 GB/week", Some((500_000_000, Written::Week))),
            ("1000 kB/day", Some((1_000_000, Written::Day))),
            ("1000 TB/month", Some((MOST, Written::Month))),
            ("2 GB/28 days", Some((2_000_000_000, Written::Days(28)))),
            ("2 GB/30d", Some((2_000_000_000, Written::Days(30)))),
            ("2 GB / 1 day", Some((2_000_000_000, Written::Days(1)))),
            ("2 GB/366 days", Some((2_000_000_000, Written::Days(366)))),
            ("2 GB/0 days", None),
            ("2 GB/367 days", None),
            ("2 GB/65564 days", None),
            ("2 GB/28", None),
            ("2 GB/-28 days", None),
            ("2 GB/28 weeks", None),
            ("2 GB/days", None),
            ("1001 TB/month", None),
            ("999 kB/day", None),
            ("2 GB", None),
            ("2 gb/month", None),
            ("2 GB/year", None),
            ("GB/month", None),
            ("-2 GB/month", None),
            ("1e3 MB/month", None),
            ("1.2.3 GB/month", None),
            ("2000000000/month", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_period_begins_on_its_day_or_on_the_last_one_of_a_shorter_month() {
        let month = |first| Period::Month { first };
        let days = |count, start| Period::Days { count, start: date(start) };
        for (period, day, begin) in [
            (Period::Day, "2026-11-29", "2026-11-29"),
            (Period::Week, "2026-11-29", "2026-11-23"),
            (Period::Week, "2026-11-30", "2026-11-30"),
            (Period::Week, "2027-01-01", "2026-12-28"),
            (month(1), "2026-11-29", "2026-11-01"),
            (month(15), "2026-11-14", "2026-10-15"),
            (month(15), "2026-11-15", "2026-11-15"),
            (month(15), "2027-01-03", "2026-12-15"),
            (month(31), "2026-11-29", "2026-10-31"),
            (month(31), "2026-11-30", "2026-11-30"),
            (month(31), "2027-02-27", "2027-01-31"),
            (month(31), "2028-02-29", "2028-02-29"),
            (month(30), "2027-03-01", "2027-02-28"),
            (days(28, "2026-11-03"), "2026-11-03", "2026-11-03"),
            (days(28, "2026-11-03"), "2026-11-30", "2026-11-03"),
            (days(28, "2026-11-03"), "2026-12-01", "2026-12-01"),
            (days(28, "2026-11-03"), "2027-03-01", "2027-02-23"),
            (days(28, "2026-11-03"), "2028-03-01", "2028-02-22"),
            (days(28, "2026-11-03"), "2026-11-02", "2026-10-06"),
            (days(30, "2027-01-15"), "2026-11-29", "2026-11-16"),
            (days(1, "2027-01-15"), "2026-11-29", "2026-11-29"),
            (days(366, "2026-11-03"), "1970-01-01", "1970-01-01"),
        ] {
            assert_eq!(period.begin(date(day)), date(begin), "{period:?} {day}");
        }
    }
}
