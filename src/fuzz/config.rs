//! A configuration file.

use std::{
    collections::BTreeSet, fs::File, io::Write as _, ops::RangeInclusive, os::fd::AsRawFd as _,
    path::Path, sync::LazyLock,
};

use crate::config::{ConfigErrors, Loaded, Origin, Problem};

/// RFC 8032 §7.1, test 1.
const KEY: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=\n";
/// Every key and section at the top of a file.
const TOP: [&str; 11] = [
    "role",
    "private-key",
    "private-key-file",
    "server",
    "listen",
    "tun",
    "peer",
    "paths",
    "quic",
    "log",
    "metrics",
];
/// Formatting characters that hide text or turn its direction.
const INVISIBLE: [RangeInclusive<char>; 3] =
    ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2066}'..='\u{2069}'];

/// The one key file that inputs may name. It has no name of its own, so that none is left behind.
static KEY_FILE: LazyLock<File> = LazyLock::new(|| {
    let mut file = tempfile::tempfile().expect("a place for temporary files");
    file.write_all(KEY.as_bytes()).expect("room for a key");
    file
});

/// Reads `data` as the text of a configuration file.
///
/// A configuration that can be used amounts to the same when it is written and read again. Each problem names its
/// key and, if the key is in the file, its line; a message has one line for each problem and moves no cursor.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let table = text.parse::<toml::Table>();
    // A key in the file is used as it is; otherwise no other file than ours may be opened.
    let has_key =
        table.as_ref().is_ok_and(|table| table.get("private-key").is_some_and(toml::Value::is_str));
    match load(text, !has_key) {
        Ok(loaded) => {
            let table = table.expect("a file that is TOML");
            assert!(table.keys().all(|key| TOP.contains(&key.as_str())), "{table}");
            check_effective(&loaded, !has_key);
        }
        Err(ConfigErrors::Problems { path, problems }) => {
            let table = table.expect("problems are those of a file that is TOML");
            let top = TOP.into_iter().chain(table.keys().map(String::as_str)).collect();
            problems.iter().for_each(|problem| check_problem(problem, text, &top));
            let message = ConfigErrors::Problems { path, problems: problems.clone() }.to_string();
            assert!(!problems.is_empty());
            assert_eq!(message.lines().count(), problems.len(), "{message}");
            check_printable(&message);
        }
        Err(error @ ConfigErrors::Syntax { line, .. }) => {
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            check_printable(&error.to_string());
        }
        Err(error @ ConfigErrors::Unreadable { .. }) => panic!("{error}"),
    }
}

fn load(text: &str, with_key_file: bool) -> Result<Loaded, ConfigErrors> {
    let key_file = format!("/proc/self/fd/{}", KEY_FILE.as_raw_fd());
    let environment = with_key_file.then(|| ("ROAMD_PRIVATE_KEY_FILE".to_owned(), key_file));
    Loaded::of_text(Path::new("/fuzz/roamd.toml"), text, environment)
}

fn check_effective(loaded: &Loaded, with_key_file: bool) {
    let written = loaded.to_toml().expect("a configuration can be written");
    assert!(!written.contains(KEY.trim()));
    if with_key_file {
        let again = load(&written, true).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(again.to_toml().ok(), Some(written));
    }
}

fn check_problem(problem: &Problem, text: &str, top: &BTreeSet<&str>) {
    let Problem { origin, key, reason, .. } = problem;
    let is_named = |name: &&str| key.starts_with(*name) || key.starts_with(&format!("{name:?}"));
    assert!(top.iter().any(is_named), "no such key: {problem}");
    assert!(problem.to_string().starts_with(key.as_str()) && !reason.is_empty());
    assert!(!reason.contains("invalid type") && !reason.ends_with(' '), "{problem}");
    if let Origin::File { line: Some(line) } = origin {
        assert!((1..=text.matches('\n').count() + 1).contains(line), "{problem}");
    }
}

fn check_printable(message: &str) {
    let is_harmless =
        |c: char| c == '\n' || !c.is_control() && !INVISIBLE.iter().any(|range| range.contains(&c));
    assert!(message.chars().all(is_harmless), "{message:?}");
}
