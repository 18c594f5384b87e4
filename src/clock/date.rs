//! A day of the calendar where this machine is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A day of the Gregorian calendar, from 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// The text is no day.
#[derive(Debug, thiserror::Error)]
#[error("not a day such as 2026-11-29")]
pub struct NoDate;

impl Date {
    /// The day with this number since 1970-01-01, or the nearest that there is (the algorithm `civil_from_days`, Howard
    /// Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    #[must_use]
    pub(crate) fn of_number(number: i64) -> Self {
        let shifted = number.clamp(0, 2_932_896) + 719_468;
        let era = shifted / 146_097;
        let of_era = shifted % 146_097;
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + 400 * era + i64::from(month <= 2);
        Self { year: year as u16, month: month as u8, day: day as u8 }
    }

    /// The number of this day since 1970-01-01.
    #[must_use]
    pub(crate) fn number(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let (era, of_era) = (year / 400, year % 400);
        let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
    }

    /// So many days later.
    #[must_use]
    pub(crate) fn plus(self, days: i64) -> Self {
        Self::of_number(self.number().saturating_add(days))
    }

    /// The day of the same month, the last one if it is shorter.
    #[must_use]
    pub(crate) fn with_day(self, day: u8) -> Self {
        let next = if self.month == 12 {
            Self { year: self.year + 1, month: 1, day: 1 }
        } else {
            Self { month: self.month + 1, day: 1, ..self }
        };
        let length = next.number() - Self { day: 1, ..self }.number();
        Self { day: day.clamp(1, length as u8), ..self }
    }

    /// Days since Monday.
    #[must_use]
    pub(crate) fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        ((self.number() + 3) % 7) as u8
    }

    /// Its year and month, as `2026-11`.
    #[must_use]
    pub(crate) fn month(self) -> String {
        format!("{:04}-{:02}", self.year, self.month)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day } = self;
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl FromStr for Date {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let parts: Vec<_> = text.split('-').collect();
        let [year, month, day] = parts[..] else { return Err(NoDate) };
        let number = |text: &str| text.parse::<u16>().map_err(|_| NoDate);
        let (year, month, day) = (number(year)?, number(month)?, number(day)?);
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day)
        {
            return Err(NoDate);
        }
        let date = Self { year, month: month as u8, day: day as u8 };
        if date.with_day(date.day) == date { Ok(date) } else { Err(NoDate) }
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_has_a_number_and_follows_the_one_before() {
        let mut day: Date = "1970-01-01".parse().unwrap();
        assert_eq!(day.number(), 0);
        for number in 0..60_000 {
            assert_eq!((day.number(), Date::of_number(number)), (number, day));
            assert_eq!(day.to_string().parse::<Date>().unwrap(), day);
            let next = day.plus(1);
            assert!(next > day);
            assert!(next.day == day.day + 1 || (next.day == 1 && day.with_day(31) == day));
            day = next;
        }
        assert_eq!(Date::of_number(20_786).to_string(), "2026-11-29");
        assert_eq!(Date::of_number(20_786).weekday(), 6, "a Sunday");
    }

    #[test]
    fn what_is_no_day_is_refused_and_far_days_end_the_calendar() {
        for text in ["", "2026", "2026-13-01", "2026-02-29", "2026-00-01", "1969-12-31", "x-y-z"] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        assert!("2028-02-29".parse::<Date>().is_ok());
        assert_eq!(Date::of_number(i64::MAX).to_string(), "9999-12-31");
        assert_eq!(Date::of_number(-1).to_string(), "1970-01-01");
    }
}
