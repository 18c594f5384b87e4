//! Months, clocks that are wrong, power that fails.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{Usages, ledger::Ledger, store::Store};
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

/// A plan that was renewed on the 3rd of November, a megabyte a day.
#[test]
fn a_prepaid_plan_is_renewed_each_28_days_and_told_of_once_in_each() {
    let (mut ledger, begun, start) = (Ledger::default(), Instant::now(), date("2026-11-03"));
    let period = Period::Days { count: 28, start };
    let budget = |_: &str| Some(Budget { bytes: 20 * MB, period, over: OverBudget::HoldBulk });
    let mut reached = Vec::new();
    for number in 0..365 {
        let today = ledger.today(start.plus(number), begun + number as u32 * 24 * HOUR);
        ledger.add("wwan0", today, amount(0, MB, 0));
        let findings = ledger.judge(budget, today);
        let is_held = findings.overdrawn.held.contains("wwan0");
        assert_eq!(is_held, number % 28 >= 19, "{today}");
        let news = findings.news.iter().filter(|(_, it)| it.level == BudgetLevel::Reached);
        reached.extend(news.map(|(_, it)| (number, it.since, it.period.clone())));
    }
    let periods = (0..13).map(|it| 28 * it);
    let expected = periods.map(|it| (it + 19, start.plus(it), "28 days".to_owned()));
    assert_eq!(reached, expected.collect::<Vec<_>>());
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
            let (kept, damage) = Store::at(store.path().into()).read().unwrap();
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

/// Looks once a minute, with a megabyte each time; the day of the last one.
fn run(ledger: &mut Ledger, clock: &str, now: &mut Instant, minutes: u32) -> String {
    let mut today = date(clock);
    for _ in 0..minutes {
        *now += HOUR / 60;
        today = ledger.today(date(clock), *now);
        ledger.add("wwan0", today, amount(0, MB, 0));
    }
    today.to_string()
}

fn is_held(ledger: &mut Ledger, megabytes: u64, today: &str) -> bool {
    let budget = monthly(megabytes * MB, 1, OverBudget::HoldBulk);
    ledger.judge(budget, date(today)).overdrawn.held.contains("wwan0")
}

#[test]
fn a_clock_that_begins_in_1970_takes_nothing_from_the_month() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    assert_eq!(run(&mut ledger, "2026-11-20", &mut now, 450), "2026-11-20");
    assert_eq!(run(&mut ledger, "1970-01-01", &mut now, 300), "2026-11-20");
    assert_eq!(run(&mut ledger, "2026-11-21", &mut now, 1), "2026-11-21");
    assert!(is_held(&mut ledger, 751, "2026-11-21"));
}

#[test]
fn a_clock_that_is_behind_for_hours_takes_nothing_from_the_month() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    assert_eq!(run(&mut ledger, "2026-11-29", &mut now, 1900), "2026-11-29");
    assert_eq!(run(&mut ledger, "2026-03-01", &mut now, 60), "2026-11-29");
    assert_eq!(run(&mut ledger, "2026-03-01", &mut now, 120), "2026-03-01");
    assert!(is_held(&mut ledger, 1900, "2026-03-01"), "days to come count as used");
    assert_eq!(run(&mut ledger, "2026-11-29", &mut now, 1), "2026-11-29", "at once");
    assert!(is_held(&mut ledger, 1961, "2026-11-29"));
}

#[test]
fn a_clock_that_is_ahead_gives_no_budget_back_before_it_is_so_for_an_hour() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    assert_eq!(run(&mut ledger, "2026-11-20", &mut now, 500), "2026-11-20");
    assert_eq!(run(&mut ledger, "2027-03-01", &mut now, 30), "2026-11-20");
    assert!(is_held(&mut ledger, 500, "2026-11-20"));
    assert_eq!(run(&mut ledger, "2026-11-20", &mut now, 1), "2026-11-20");
    assert_eq!(run(&mut ledger, "2027-03-01", &mut now, 60), "2026-11-20", "it begins anew");
    assert_eq!(run(&mut ledger, "2027-03-01", &mut now, 2), "2027-03-01");
    // The way back takes an hour, too, of runs that are shorter.
    for runs in 0..4 {
        ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
        let day = run(&mut ledger, "2026-11-21", &mut now, 20);
        assert_eq!(day, if runs < 3 { "2027-03-01" } else { "2026-11-21" });
    }
    assert!(is_held(&mut ledger, 600, "2026-11-21"));
}

#[test]
fn a_machine_that_was_off_for_a_week_goes_on_at_once_and_after_a_year_within_an_hour() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    assert_eq!(run(&mut ledger, "2026-11-20", &mut now, 1), "2026-11-20");
    assert_eq!(run(&mut ledger, "2026-11-27", &mut now, 1), "2026-11-27");
    assert_eq!(run(&mut ledger, "2027-11-27", &mut now, 60), "2026-11-27");
    assert_eq!(run(&mut ledger, "2027-11-27", &mut now, 2), "2027-11-27");
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
    let (ledger, damage) = Store::at(store.path().into()).read().unwrap();
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
    let _ = next.read().unwrap();
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
    fs::write(folder.path().join("home.usage-new"), "half of").unwrap();
    assert_eq!(read(&store), (Some(1), false));
    store.write(&ledger(2)).unwrap();
    assert_eq!(read(&store), (Some(2), false));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left of the half");
}

#[test]
fn what_cannot_be_written_is_counted_on_and_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let obstacle = folder.path().join("state");
    fs::write(&obstacle, "a file where the folder should be").unwrap();
    let usages = Usages::default();
    usages.open(Store::at(obstacle.join("home.usage")));
    let unsaved = || usages.unsaved.lock().is_some();
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
fn what_a_later_version_wrote_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("home.usage");
    let later = r#"{"version":2,"ledgers":[]}"#;
    let text = format!("{later}\n{}\n", super::store::checksum(later.as_bytes()));
    fs::write(&path, &text).unwrap();
    let usages = Usages::default();
    usages.open(Store::at(path.clone()));
    usages.ledger().add("wwan0", date("2026-11-20"), amount(1, 0, 0));
    usages.save();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let unsaved = usages.unsaved.lock().clone().unwrap();
    assert!(unsaved.contains("version 2"), "{unsaved}");
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
    assert_eq!(store.read().unwrap().0.links(|_| None, date("2026-11-20")).len(), 1);
}

proptest! {
    /// Whatever the clock says, no byte is lost, and what is used of a month does not shrink.
    #[test]
    fn no_clock_loses_a_byte(
        looks in proptest::collection::vec((0i64..40_000, 0u32..200, 0u64..1000), 1..60),
    ) {
        let (mut ledger, mut now, mut sum, mut used) = (Ledger::default(), Instant::now(), 1, 0);
        ledger.today(date("2026-11-20"), now);
        ledger.add("wwan0", date("2026-11-20"), amount(1, 0, 0));
        for (day, minutes, bytes) in looks {
            now += minutes * (HOUR / 60);
            let today = ledger.today(Date::of_number(day), now);
            ledger.add("wwan0", today, amount(bytes, 0, 0));
            sum += bytes;
            let budget = monthly(u64::MAX, 1, OverBudget::Warn);
            let links = ledger.links(budget, date("2026-11-20"));
            let of_month = links[0].budget.as_ref().unwrap().used;
            prop_assert!(of_month >= used.max(1));
            used = of_month;
        }
        prop_assert_eq!(total(&ledger, "wwan0"), sum);
    }
}
