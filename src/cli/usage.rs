//! `roamd usage`

use std::{
    fmt::{self, Display},
    fs,
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail};

use super::{
    Tunnel,
    paint::Paint,
    text::{Cell, PLAIN, UNSURE, head, show_budget, table},
    tunnel,
};
use crate::{
    client::usage::{SUFFIX, Store, kept},
    daemon::{
        control::ControlError,
        usage::{Amount, Bytes, LinkUsage, Usage},
    },
    host::instance::{Instance, state_directory},
};

/// Days that are shown unless all are wanted.
const LAST_DAYS: usize = 14;

/// Which days are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Days {
    None,
    Last,
    All,
}

impl Days {
    pub(crate) fn of(all: bool, none: bool) -> Self {
        match (all, none) {
            (true, _) => Self::All,
            (false, true) => Self::None,
            (false, false) => Self::Last,
        }
    }
}

/// Prints what the links of a client carried.
pub(crate) fn usage(tunnel: Option<&Tunnel>, json: bool, days: Days) -> anyhow::Result<()> {
    let usage = ask_or_read(tunnel)?;
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut stdout, &usage)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{}", Text { usage: &usage, days, paint: Paint::for_stdout() })?;
    }
    Ok(())
}

fn ask_or_read(tunnel: Option<&Tunnel>) -> anyhow::Result<Usage> {
    let instance = match tunnel::instance(tunnel) {
        Err(ControlError::NoneRunning(_)) => only_kept()?,
        found => found?,
    };
    match instance.usage() {
        Err(ControlError::NotRunning { .. }) => {}
        asked => return Ok(asked?),
    }
    let mut store = Store::at(instance.state_file(SUFFIX));
    let (read, name) = (kept(&mut store), instance.name());
    let file = store.path().display();
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("no client named {name} is running, and none wrote {file}")
        }
        read => read.with_context(|| format!("no client named {name} is running, and {file}")),
    }
}

/// The only client that has something on disk.
fn only_kept() -> anyhow::Result<Instance> {
    let folder = state_directory();
    let cannot = || format!("no client is running, and {} cannot be read", folder.display());
    let is_kept = |path: &Path| path.extension().is_some_and(|suffix| suffix == SUFFIX);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.with_context(cannot)?),
    };
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let paths = paths.filter(|path| is_kept(path));
    let mut found: Vec<_> = paths.map(|path| Instance::of_file(&path)).collect();
    found.sort_by(|a, b| a.name().cmp(b.name()));
    match found.len() {
        0 => bail!("no client is running, and none wrote anything to {}", folder.display()),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<_> = found.iter().map(Instance::name).collect();
            bail!("several clients have been running, name one: {}", names.join(", "))
        }
    }
}

/// The usage for people.
struct Text<'a> {
    usage: &'a Usage,
    days: Days,
    paint: Paint,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { usage: Usage { links, unsaved, .. }, days, paint } = self;
        if links.is_empty() {
            writeln!(f, "nothing was carried yet")?;
        }
        if let Some(reason) = unsaved {
            writeln!(f, "not on disk  {}", paint.paint(UNSURE, reason))?;
        }
        let budgets = links.iter().filter_map(|it| Some((&it.link, it.budget.as_ref()?)));
        let mut gap = "";
        for (link, budget) in budgets {
            show_budget(f, link, budget, *paint)?;
            gap = "\n";
        }
        let months = rows(links, "MONTH", |link| {
            link.months.iter().map(|it| (it.month.clone(), it.amount)).collect()
        });
        if months.len() > 1 {
            write!(f, "{gap}")?;
            table(f, &months, *paint)?;
        }
        let days = rows(links, "DAY", |link| {
            let most = match days {
                Days::None => 0,
                Days::Last => LAST_DAYS,
                Days::All => link.days.len(),
            };
            let last = link.days.iter().rev().take(most).rev();
            last.map(|it| (it.day.to_string(), it.amount)).collect()
        });
        if days.len() > 1 {
            writeln!(f)?;
            table(f, &days, *paint)?;
        }
        Ok(())
    }
}

/// A table with a line of each link at each of its times, the newest last.
fn rows(
    links: &[LinkUsage],
    time: &str,
    of: impl Fn(&LinkUsage) -> Vec<(String, Amount)>,
) -> Vec<[Cell; 6]> {
    let mut rows = vec![head(["LINK", time, "UP", "DOWN", "TOTAL", "STANDBY"])];
    for link in links {
        rows.extend(of(link).into_iter().map(|(time, amount)| {
            let Amount { sent_bytes, received_bytes, upkeep_bytes } = amount;
            let bytes = [sent_bytes, received_bytes, amount.total(), upkeep_bytes];
            let [up, down, total, upkeep] = bytes.map(|it| Bytes(it).to_string());
            [link.link.clone(), time, up, down, total, upkeep].map(|text| (PLAIN, text))
        }));
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        clock::Date,
        config::{Budget, OverBudget, Period},
        daemon::{status::SCHEMA, usage::BudgetStatus},
    };

    #[test]
    fn the_longest_names_and_numbers_fit_into_80_columns() {
        let first: Date = "2026-10-30".parse().unwrap();
        let amount = Amount {
            sent_bytes: 999_900_000_000,
            received_bytes: 999_900_000_000,
            upkeep_bytes: 999_900_000_000,
        };
        let days: BTreeMap<_, _> = (0..20).map(|day| (first.plus(day), amount)).collect();
        let period = Period::Month { first: 31 };
        let budget = Budget { bytes: 888_800_000_000, period, over: OverBudget::HoldBulk };
        let status = BudgetStatus::new(&budget, 2 * 999_900_000_000, first);
        let links = vec![LinkUsage::new("enx00e04c680001", Some(status), &days)];
        let usage = Usage { schema: SCHEMA, links, unsaved: None };
        let shown = |days| Text { usage: &usage, days, paint: Paint::none() }.to_string();
        let text = shown(Days::Last);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("2026-11-")).count(), 14, "{text}");
        assert!(text.contains("2026-10  2.0 TB"), "{text}");
        assert!(text.contains("large transfers wait"), "{text}");
        assert!(!shown(Days::None).contains("2026-11-01"));
        assert!(shown(Days::All).contains("2026-10-30"));
    }
}
