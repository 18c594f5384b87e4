//! Months, clocks that are wrong, power that fails.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    Usages,
    ledger::{Ledger, Overdrawn},
    store::Store,
};
use crate::{
    clock::Date,
    config::{Budget, OverBudget, Period},
    daemon::usage::{Amount, BudgetLevel},
};

const HOUR: Duration = Duration::from_secs(3600);
const MB: u64 = 1_000_000;

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

fn amount(sent_bytes: u64, received_bytes: u64, upkeep_bytes: u64) -> Amount {
    Amount { sent_bytes, received_bytes, upkeep_bytes }
}

fn monthly(bytes: u64, first: u8, over: OverBudget) -> impl Fn(&str) -> Option<Budget> + Copy {
    move |link| {
        let budget = Budget { bytes, period: Period::Month { first }, over };
        (link == "wwan0").then_some(budget)
    }
}

/// Bytes of a link on all days.
fn total(ledger: &Ledger, link: &str) -> u64 {
    let links = ledger.links(|_| None, date("2026-01-01"));
    let link = links.into_iter().find(|it| it.link == link).unwrap();
    link.days.iter().map(|day| day.amount.total()).sum()
}

/// The clock on the wall of a laptop of Berlin that flies to New York on the 30th: hours east of Greenwich. Its summer time
/// ends on the 25th of October at one o'clock UTC, that of New York on the 1st of November at six.
fn hours_east(hour: i64) -> i64 {
    let at = |day: &str, hour: i64| date(day).number() * 24 + hour;
    match hour {
        _ if hour < at("2026-10-25", 1) => 2,
        _ if hour < at("2026-10-30", 12) => 1,
        _ if hour < at("2026-11-01", 6) => -4,
        _ => -5,
    }
}

/// Five weeks, hour by hour, with a restart each night at three.
#[test]
fn a_month_is_counted_and_warned_of_once_over_restarts_summer_time_and_a_journey() {
    let mut folder = tempfile::tempdir().unwrap();
    // `STATE_DIRECTORY=… roamd usage` shows what is kept.
    folder.disable_cleanup(env::var_os("KEEP_USAGE").is_some());
    let mut store = Store::at(folder.path().join("home.usage"));
    let (mut ledger, start) = (Ledger::default(), Instant::now());
    let budget = monthly(500 * MB, 1, OverBudget::HoldBulk);
    let (mut news, mut held) = (Vec::new(), Vec::new());
    let first = date("2026-10-01").number() * 24;
    let last = date("2026-11-05").number() * 24;
    for hour in first..last {
        let now = start + (hour - first) as u32 * HOUR;
        let east = hours_east(hour);
        let wall = Date::of_number((hour + east).div_euclid(24));
        let today = ledger.today(wall, now);
        ledger.add("wwan0", today, amount(MB / 4, 3 * MB / 4, MB / 100));
        if (8..18).contains(&((hour + east) % 24)) {
            ledger.add("wlan0", today, amount(20 * MB, 90 * MB, MB / 10));
        }
        let findings = ledger.judge(budget, today);
        news.extend(findings.news.into_iter().map(|(_, it)| (today.to_string(), it.level)));
        held.push((today, findings.overdrawn.held.contains("wwan0")));
        if hour % 24 == 3 {
            store.write(&ledger).unwrap();
            let (kept, damage) = Store::at(store.path().into()).read();
            assert!(damage.is_none());
            ledger = kept;
        }
    }
    let expected = [("2026-10-17", BudgetLevel::Warned), ("2026-10-21", BudgetLevel::Reached)];
    assert_eq!(news, expected.map(|(day, level)| (day.to_owned(), level)));
    let held_days: Vec<_> = held.iter().filter(|(_, held)| *held).map(|(day, _)| *day).collect();
    assert_eq!(held_days.first(), Some(&date("2026-10-21")));
    assert_eq!(held_days.last(), Some(&date("2026-10-31")), "the next month begins at once");
    let usage = ledger.links(budget, date("2026-11-04"));
    let wwan = usage.iter().find(|it| it.link == "wwan0").unwrap();
    let day = |day| wwan.days.iter().find(|it| it.day == date(day)).unwrap().amount.total();
    assert_eq!(day("2026-10-12"), 24 * MB);
    assert_eq!(day("2026-10-25"), 25 * MB, "the hour that comes twice");
    assert_eq!(day("2026-10-30"), 29 * MB, "the day on which he flies");
    assert_eq!(day("2026-11-01"), 25 * MB);
    assert_eq!(total(&ledger, "wwan0"), (last - first) as u64 * MB);
    let months: Vec<_> = wwan.months.iter().map(|it| (&*it.month, it.amount.total())).collect();
    // It begins at two in the morning of Berlin, and ends at seven in the evening of New York.
    let october = 31 * 24 - 2 + 1 + 5;
    assert_eq!(
        months,
        [("2026-10", october * MB), ("2026-11", ((last - first) as u64 - october) * MB)]
    );
    assert_eq!(wwan.budget.as_ref().unwrap().since, date("2026-11-01"));
    let upkeep: u64 = wwan.days.iter().map(|day| day.amount.upkeep_bytes).sum();
    assert_eq!(upkeep, (last - first) as u64 * MB / 100);
    store.write(&ledger).unwrap();
}

#[test]
fn a_clock_that_begins_in_1970_takes_nothing_from_the_month() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let today = ledger.today(date("2026-11-20"), now);
    ledger.add("wwan0", today, amount(0, 450 * MB, 0));
    for hours in 0..50 {
        let today = ledger.today(date("1970-01-01"), now + hours * HOUR);
        assert_eq!(today, date("2026-11-20"));
        ledger.add("wwan0", today, amount(0, MB, 0));
    }
    let budget = monthly(500 * MB, 1, OverBudget::Stop);
    let today = ledger.today(date("2026-11-21"), now + 51 * HOUR);
    assert_eq!(today, date("2026-11-21"));
    let stopped = ledger.judge(budget, today).overdrawn;
    let expected = ["wwan0".to_owned()].into();
    assert_eq!(stopped, Overdrawn { stopped: expected, ..Overdrawn::default() });
}

#[test]
fn what_a_new_machine_counts_before_its_clock_is_right_belongs_to_the_first_right_day() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    for clock in ["1970-01-01", "2026-11-20"] {
        let today = ledger.today(date(clock), now);
        ledger.add("wwan0", today, amount(MB, 0, 0));
    }
    let days = &ledger.links(|_| None, date("2026-11-20"))[0].days;
    let days: Vec<_> = days.iter().map(|it| (it.day, it.amount.total())).collect();
    assert_eq!(days, [(date("2026-11-20"), 2 * MB)]);
}

#[test]
fn a_clock_that_was_far_ahead_leaves_nothing_in_days_to_come() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let count = |ledger: &mut Ledger, clock: &str, at: Instant| {
        let today = ledger.today(date(clock), at);
        ledger.add("wwan0", today, amount(MB, 0, 0));
        today
    };
    assert_eq!(count(&mut ledger, "2026-11-20", now), date("2026-11-20"));
    assert_eq!(count(&mut ledger, "2036-02-07", now + HOUR / 2), date("2026-11-20"), "too far");
    assert_eq!(count(&mut ledger, "2026-11-20", now + HOUR), date("2026-11-20"));
    // Within a year it is believed at once: a machine may have been off.
    assert_eq!(count(&mut ledger, "2027-06-01", now + HOUR), date("2027-06-01"));
    assert_eq!(count(&mut ledger, "2026-11-21", now + HOUR), date("2027-06-01"));
    assert_eq!(count(&mut ledger, "2026-11-21", now + 2 * HOUR), date("2026-11-21"));
    let days = &ledger.links(|_| None, date("2026-11-21"))[0].days;
    let days: Vec<_> = days.iter().map(|it| (it.day, it.amount.total())).collect();
    assert_eq!(days, [(date("2026-11-20"), 3 * MB), (date("2026-11-21"), 3 * MB)]);
}

#[test]
fn a_budget_that_grows_ends_the_holding_and_is_told_of_anew() {
    let (mut ledger, today) = (Ledger::default(), date("2026-11-20"));
    ledger.add("wwan0", today, amount(0, 95 * MB, 0));
    let mut judge = |megabytes, over| {
        let findings = ledger.judge(monthly(megabytes * MB, 15, over), today);
        let news: Vec<_> = findings.news.iter().map(|(_, it)| it.level).collect();
        (news, findings.overdrawn.held.len(), findings.overdrawn.stopped.len(), findings.left)
    };
    let (warned, reached) = (BudgetLevel::Warned, BudgetLevel::Reached);
    assert_eq!(judge(100, OverBudget::HoldBulk), (vec![warned], 0, 0, Some(5 * MB)));
    assert_eq!(judge(100, OverBudget::HoldBulk), (vec![], 0, 0, Some(5 * MB)));
    assert_eq!(judge(90, OverBudget::HoldBulk), (vec![reached], 1, 0, None));
    assert_eq!(judge(90, OverBudget::Stop), (vec![], 0, 1, None));
    assert_eq!(judge(90, OverBudget::Warn), (vec![], 0, 0, None));
    assert_eq!(judge(200, OverBudget::HoldBulk), (vec![], 0, 0, Some(105 * MB)));
    assert_eq!(judge(100, OverBudget::HoldBulk), (vec![warned], 0, 0, Some(5 * MB)));
}

#[test]
fn a_ledger_keeps_64_links_of_400_days() {
    let (mut ledger, day) = (Ledger::default(), date("2026-11-20"));
    for number in 0..500 {
        ledger.add("wwan0", day.plus(number), amount(1, 0, 0));
        ledger.add(&format!("usb{number}"), day.plus(number), amount(1, 0, 0));
    }
    let links = ledger.links(|_| None, day);
    assert_eq!(links.len(), 64);
    let wwan = links.iter().find(|it| it.link == "wwan0").unwrap();
    assert_eq!((wwan.days.len(), wwan.days[0].day), (400, day.plus(100)));
    assert!(links.iter().any(|it| it.link == "usb499"));
    assert!(!links.iter().any(|it| it.link == "usb400"));
}

/// A ledger with a link, on one day.
fn ledger(bytes: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.add("wwan0", date("2026-11-20"), amount(bytes, 0, 0));
    ledger
}

/// What is read of the files as they are.
fn read(store: &Store) -> (Option<u64>, bool) {
    let (ledger, damage) = Store::at(store.path().into()).read();
    ((!ledger.is_empty()).then(|| total(&ledger, "wwan0")), damage.is_some())
}

/// The file is cut after each of its bytes, as by a disk that lost what it said to have.
#[test]
fn whatever_is_left_of_a_file_the_last_one_or_the_one_before_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::at(folder.path().join("state/home.usage"));
    assert_eq!(read(&store), (None, false));
    store.write(&ledger(1)).unwrap();
    assert_eq!(read(&store), (Some(1), false));
    store.write(&ledger(2)).unwrap();
    assert_eq!(read(&store), (Some(2), false));
    let whole = fs::read(store.path()).unwrap();
    for length in 0..whole.len() {
        fs::write(store.path(), &whole[..length]).unwrap();
        assert_eq!(read(&store), (Some(1), true), "{length}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(store.path(), changed).unwrap();
        assert_eq!(read(&store), (Some(1), true), "{at}");
    }
    // Whoever reads a damaged file and writes keeps the whole one beside it.
    let mut next = Store::at(store.path().into());
    next.read();
    next.write(&ledger(3)).unwrap();
    fs::write(store.path(), "{").unwrap();
    assert_eq!(read(&store), (Some(1), true));
}

#[test]
fn power_that_fails_between_two_renamings_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::at(folder.path().join("home.usage"));
    store.write(&ledger(1)).unwrap();
    fs::rename(store.path(), folder.path().join("home.usage-before")).unwrap();
    fs::write(folder.path().join(".roamd-123456"), "half of").unwrap();
    assert_eq!(read(&store), (Some(1), false));
    store.write(&ledger(2)).unwrap();
    assert_eq!(read(&store), (Some(2), false));
}

#[test]
fn what_cannot_be_written_is_counted_on_and_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let obstacle = folder.path().join("state");
    fs::write(&obstacle, "a file where the folder should be").unwrap();
    let usages = Usages::default();
    usages.open(Store::at(obstacle.join("home.usage")));
    let unsaved = || super::lock(&usages.unsaved).is_some();
    for day in ["2026-11-20", "2026-11-21"] {
        usages.ledger().add("wwan0", date(day), amount(1, 0, 0));
        usages.save();
        assert!(unsaved());
    }
    fs::remove_file(&obstacle).unwrap();
    usages.save();
    assert!(!unsaved());
    assert_eq!(read(&Store::at(obstacle.join("home.usage"))), (Some(2), false));
}

#[test]
fn what_no_ledger_writes_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::at(folder.path().join("home.usage"));
    let mut foreign = ledger(1);
    foreign.add("a name of more than 15 bytes", date("2026-11-20"), amount(1, 0, 0));
    foreign.add("\u{1b}[2J", date("2026-11-20"), amount(1, 0, 0));
    store.write(&foreign).unwrap();
    assert_eq!(read(&store), (Some(1), false));
    assert_eq!(store.read().0.links(|_| None, date("2026-11-20")).len(), 1);
}

proptest! {
    /// Whatever the clock says, no byte is lost, the day does not go back but to where the clock stays, and there are not
    /// more days than the clock told.
    #[test]
    fn no_clock_loses_a_byte(
        looks in proptest::collection::vec((0i64..40_000, 0u32..200, 0u64..1000), 1..60),
    ) {
        let (mut ledger, mut now, mut sum) = (Ledger::default(), Instant::now(), 0);
        ledger.add("wwan0", date("2026-11-20"), amount(1, 0, 0));
        for (day, minutes, bytes) in looks {
            now += minutes * Duration::from_secs(60);
            let wall = Date::of_number(day);
            let today = ledger.today(wall, now);
            prop_assert!(today >= wall || today.number() < wall.number() - 400);
            ledger.add("wwan0", today, amount(bytes, 0, 0));
            sum += bytes;
        }
        prop_assert_eq!(total(&ledger, "wwan0"), sum + 1);
    }
}
