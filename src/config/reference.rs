//! What docs/configuration.md says of each key is so.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::Value;
use toml::Table;

use super::{
    ConfigErrors,
    keys::{self, Key, Kind, Role},
    lines::join,
    raw::{RawClient, RawConfig, RawPaths, RawPreference, RawServer},
    read::load,
};

const PAGE: &str = include_str!("../../docs/configuration.md");
/// What a cell says where there is nothing to say.
const NOTHING: &str = "–";

/// What the page says of a key.
struct Row {
    key: &'static Key,
    role: &'static str,
    default: &'static str,
    accepted: &'static str,
}

fn rows() -> impl Iterator<Item = Row> {
    PAGE.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, path, role, default, accepted, _reload, _meaning, _] = cells[..] else {
            panic!("{line}")
        };
        let path = path.trim_matches('`');
        let key = keys::find(path).unwrap_or_else(|| panic!("{path} is no key"));
        Row { key, role, default, accepted }
    })
}

/// What a file with nothing in it amounts to, as TOML.
fn defaults(role: Role) -> Value {
    let prefer = Some(vec![Some(RawPreference::default())]);
    let paths = RawPaths { prefer, ..Default::default() };
    let (quic, log) = (Some(Default::default()), Some(Default::default()));
    let raw = match role {
        Role::Client => RawConfig::Client(RawClient {
            server: Some(Default::default()),
            tun: Some(Default::default()),
            home: Some(Default::default()),
            paths: Some(paths),
            quic,
            log,
            ..Default::default()
        }),
        Role::Server => RawConfig::Server(RawServer {
            tun: Some(Default::default()),
            peer: Some(Vec::new()),
            quic,
            log,
            ..Default::default()
        }),
    };
    let toml = toml::to_string(&raw).unwrap();
    toml::from_str(&toml).unwrap()
}

#[test]
fn every_key_has_a_row_with_its_role_and_default() {
    let mut described = BTreeSet::new();
    for Row { key, role, default: shown, .. } in rows() {
        let path = key.path;
        assert_eq!(role, key.role.map_or("both".into(), |role| role.to_string()), "{path}");
        let defaults = defaults(key.role.unwrap_or(Role::Client));
        let default = path.split('.').try_fold(&defaults, |value, name| match value {
            Value::Array(tables) => tables.first()?.get(name),
            value => value.get(name),
        });
        let expected = match default {
            Some(Value::Object(_)) | None => NOTHING.to_owned(),
            Some(Value::Array(tables)) if tables.iter().any(Value::is_object) => "`[]`".into(),
            Some(value) => format!("`{value}`"),
        };
        assert!(path == "role" || shown == expected, "{path}: {shown}, {expected}");
        assert!(described.insert(path), "{path} has two rows");
    }
    let undescribed: Vec<_> =
        keys::all(None).map(|key| key.path).filter(|it| !described.contains(it)).collect();
    assert!(undescribed.is_empty(), "{undescribed:?}");
}

/// A client's file has a budget for the keys that need one beside them.
fn file(role: Role) -> Table {
    let file = match role {
        Role::Client => "role = 'client'\n[[paths.prefer]]\nbudget = '2 GB/month'",
        Role::Server => "role = 'server'",
    };
    toml::from_str(file).unwrap()
}

/// Writes `key = value`, a value as in TOML, into a file.
fn set(file: &mut Table, key: &Key, value: &str) {
    let (mut table, mut path) = (file, String::new());
    for section in key.section().split('.').filter(|section| !section.is_empty()) {
        path = join(&path, section);
        let is_list = keys::find(&path).unwrap().kind == Kind::Tables;
        let empty = if is_list { vec![Table::new()].into() } else { Table::new().into() };
        table = match table.entry(section).or_insert(empty) {
            toml::Value::Array(tables) => tables[0].as_table_mut().unwrap(),
            section => section.as_table_mut().unwrap(),
        };
    }
    let value = toml::from_str::<Table>(&format!("value = {value}")).unwrap().remove("value");
    table.insert(key.name().to_owned(), value.unwrap());
}

/// Whether a file may have this value, whatever else it lacks.
fn is_accepted(key: &Key, value: &str) -> bool {
    let mut file = file(key.role.unwrap_or(Role::Client));
    set(&mut file, key, value);
    match load(Path::new("/home.toml"), &toml::to_string(&file).unwrap(), []) {
        Ok(_) => true,
        Err(ConfigErrors::Problems { problems, .. }) => {
            problems.iter().all(|it| keys::find(&it.key).is_none_or(|it| it.path != key.path))
        }
        Err(error) => panic!("{} = {value}: {error}", key.path),
    }
}

/// A number or a duration that is a little larger, or smaller; none below zero.
fn beyond(value: &str, is_larger: bool) -> Option<String> {
    if let Ok(number) = value.parse::<u64>() {
        return Some(if is_larger { number + 1 } else { number.checked_sub(1)? }.to_string());
    }
    let (duration, little) =
        (humantime::parse_duration(value.trim_matches('"')).unwrap(), Duration::from_millis(1));
    let beyond = if is_larger { duration + little } else { duration.checked_sub(little)? };
    Some(format!("\"{}\"", humantime::format_duration(beyond)))
}

#[test]
fn values_in_the_page_are_accepted_and_those_beyond_a_range_are_refused() {
    let mut ranges = 0;
    for Row { key, accepted, .. } in rows() {
        let path = key.path;
        let values: Vec<_> = accepted.split('`').skip(1).step_by(2).collect();
        for value in &values {
            assert!(is_accepted(key, value), "{path} = {value}");
        }
        if accepted.contains("` to `") {
            let [.., least, most] = values[..] else { panic!("{path}: {accepted}") };
            for value in [beyond(least, false), beyond(most, true)].into_iter().flatten() {
                assert!(!is_accepted(key, &value), "{path} = {value}");
            }
            ranges += 1;
        } else {
            assert_ne!(key.kind, Kind::Number, "{path} has no range");
        }
    }
    assert!(ranges > 8, "{ranges}");
}

#[test]
fn texts_in_the_page_are_as_long_as_they_may_be() {
    let mut lengths = 0;
    for Row { key, accepted, .. } in rows() {
        let words: Vec<_> = accepted.split(' ').collect();
        let [least, "to", most, "characters" | "bytes", ..] = words[..] else { continue };
        let (Ok(least), Ok(most)) = (least.parse::<usize>(), most.parse::<usize>()) else {
            continue;
        };
        for (length, is_good) in
            [(least - 1, false), (least, true), (most, true), (most + 1, false)]
        {
            let value = format!("\"{}\"", "x".repeat(length));
            assert_eq!(is_accepted(key, &value), is_good, "{} = {value}", key.path);
        }
        lengths += 1;
    }
    assert!(lengths > 3, "{lengths}");
}
