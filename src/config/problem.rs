//! What is wrong with a configuration, as data; and the messages made of it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{
    keys::{self, Key, Kind, Role},
    lines::join,
    rights,
};

/// Longer values are cut in messages.
const MAX_SHOWN: usize = 80;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file could not be read.
    #[error("cannot read {}: {error}{}", path.display(), advice(path, error))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is no TOML. Its text is not shown, since a key may have been pasted there.
    #[error("{path}:{line}:{column}: this is not TOML: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in characters.
        column: usize,
        /// What the parser missed.
        message: String,
    },
    /// The file says something that roamd cannot do; at least one thing.
    #[error("{}", lines(path, problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of the file, those of the environment last.
        problems: Vec<Problem>,
    },
}

impl ConfigErrors {
    /// Those of these keys that something is wrong with, if nothing else is wrong.
    #[cfg(feature = "networkmanager")]
    pub(crate) fn among<'a>(&self, names: &[&'a str]) -> Option<Vec<&'a str>> {
        let Self::Problems { problems, .. } = self else { return None };
        let is_about = |problem: &Problem, name: &str| {
            keys::is_within(&keys::without_indices(&problem.key), name)
        };
        let is_all = problems.iter().all(|it| names.iter().any(|name| is_about(it, name)));
        let is_wrong = |name: &&str| problems.iter().any(|it| is_about(it, name));
        is_all.then(|| names.iter().copied().filter(is_wrong).collect())
    }
}

fn advice(path: &std::path::Path, error: &io::Error) -> String {
    rights::advice(path, error).map_or_else(String::new, |advice| format!(": {advice}"))
}

fn lines(path: &std::path::Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| match &problem.origin {
        Origin::File { line: Some(line) } => format!("{}:{line}: {problem}", path.display()),
        Origin::File { line: None } => format!("{}: {problem}", path.display()),
        Origin::Environment { variable } => format!("{variable}: {problem}"),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file; at no line when it is missing there.
    File {
        /// The line, from 1.
        line: Option<usize>,
    },
    /// By a variable of the environment.
    Environment {
        /// Its name.
        variable: String,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where to mend it.
    pub origin: Origin,
    /// The key's path: `peer[1].public-key`, counting from 0.
    pub key: String,
    /// Its value, where there is one that may be shown.
    pub value: Option<String>,
    /// What is wrong and what would be accepted; follows key and value in a sentence.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value} {}", self.key, self.reason),
            None => write!(f, "{} {}", self.key, self.reason),
        }
    }
}

/// Whether the key's value may not be shown: it is a secret, or may hold one.
fn is_secret(key: &str) -> bool {
    let key = keys::without_indices(key);
    let holds = |secret: &str| keys::is_within(&key, secret) || keys::is_within(secret, &key);
    [keys::PRIVATE_KEY, keys::PROXY].into_iter().any(holds)
}

/// The problems found so far, and whether a key is among them.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// `key = value reason`
    pub(super) fn add(&mut self, key: &str, value: Option<String>, reason: impl Into<String>) {
        self.0.push(Problem {
            origin: Origin::File { line: None },
            key: key.to_owned(),
            value: value.as_deref().map(shown).filter(|_| !is_secret(key)),
            reason: reason.into(),
        });
    }

    /// `key = value must be …`
    pub(super) fn refuse(&mut self, key: &str, value: impl fmt::Display) {
        let reason = format!("must be {}", keys::accepted(key));
        self.add(key, Some(value.to_string()), reason);
    }

    /// Passes a value on; reports it as missing unless it was there and already reported.
    pub(super) fn require<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.is_reported(key) {
            self.add(key, None, format!("is required; it must be {}", keys::accepted(key)));
        }
        value
    }

    /// What was read of the file at `path`, if it has no problem; `origin` says where a key was set, and whether it was.
    pub(super) fn judge<T>(
        self,
        path: &std::path::Path,
        read: Option<T>,
        origin: impl Fn(&str) -> (Origin, bool),
    ) -> Result<T, ConfigErrors> {
        match read {
            Some(read) if self.is_empty() => Ok(read),
            _ => Err(ConfigErrors::Problems { path: path.into(), problems: self.into_vec(origin) }),
        }
    }

    fn is_reported(&self, key: &str) -> bool {
        self.0.iter().any(|problem| keys::is_within(key, &problem.key))
    }

    /// A key that no role has, or only the other role.
    pub(super) fn unknown(&mut self, key: &str, role: Option<Role>) {
        let reason = match (keys::find(key), role) {
            (Some(Key { role: Some(only), .. }), Some(role)) => {
                format!(r#"is accepted only with role = "{only}", and here role = "{role}""#)
            }
            _ => unknown_key(key, role),
        };
        self.add(key, None, reason);
    }

    /// All of them, each with its origin, in the order of origins.
    pub(super) fn into_vec(self, origin: impl Fn(&str) -> (Origin, bool)) -> Vec<Problem> {
        let mut problems = self.0;
        for problem in &mut problems {
            let (place, is_set) = origin(&problem.key);
            problem.origin = place;
            if let (false, Some(value)) = (is_set, &mut problem.value) {
                value.push_str(" (the default)");
            }
        }
        problems.sort_by(|a, b| {
            a.origin.cmp(&b.origin).then_with(|| indices(&a.key).cmp(indices(&b.key)))
        });
        problems
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `peer[1].addresses[0]`: 1, 0
fn indices(key: &str) -> impl Iterator<Item = usize> {
    key.split(['[', ']']).filter_map(|part| part.parse().ok())
}

fn unknown_key(key: &str, role: Option<Role>) -> String {
    let (section, _) = keys::split(key);
    let section = if keys::find(section).is_some() { section } else { "" };
    let hint = match keys::nearest(key, role) {
        Some(near) if near.section() == keys::without_indices(section) => {
            format!(" (did you mean {}?)", join(section, near.name()))
        }
        Some(near) => format!(" (did you mean {}?)", near.path),
        None => String::new(),
    };
    let place = match keys::find(section) {
        Some(Key { kind: Kind::Tables, path, .. }) => format!("[[{path}]]"),
        Some(Key { kind: Kind::OneOrMore, path, .. }) if section.ends_with(']') => {
            format!("[[{path}]]")
        }
        Some(Key { path, .. }) => format!("[{path}]"),
        None => "the top level".to_owned(),
    };
    let accepted: Vec<_> = keys::in_section(section, role).map(Key::name).collect();
    format!("is not a known key{hint}; {place} accepts {}", accepted.join(", "))
}

/// A value as it stands in a message: quoted where it would not be clear otherwise.
fn shown(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() || (c.is_alphanumeric() && !c.is_ascii());
    let cut = match value.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    };
    if !value.is_empty() && value.chars().all(is_plain) { cut } else { format!("{cut:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_only_where_it_helps() {
        assert_eq!(shown("40s"), "40s");
        assert_eq!(shown(""), r#""""#);
        assert_eq!(shown("a b"), r#""a b""#);
        assert_eq!(shown("\u{1b}[31m"), r#""\u{1b}[31m""#);
        assert_eq!(shown(&"x".repeat(100)), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn a_key_in_a_reported_section_is_not_reported_as_missing() {
        let mut problems = Problems::default();
        problems.refuse("server", 5);
        assert_eq!(problems.require::<u8>("server.address", None), None);
        assert_eq!(problems.0.len(), 1);
    }
}
