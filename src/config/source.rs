//! Lays the environment over the file.

use std::collections::HashMap;
use std::path::{self, Path};

use config::{ConfigError, Map, Value, ValueKind};

use super::{
    keys::{self, Key, Kind},
    lines::Lines,
    problem::{ConfigErrors, Origin, Problems},
};
use crate::identity::PrivateKey;

const PREFIX: &str = "ROAMD_";

/// Variables that start with [`PREFIX`] and are no configuration.
const OTHER_VARIABLES: [&str; 2] = ["ROAMD_CONFIG_DIR", "ROAMD_RUNTIME_DIR"];
/// What the file's table hangs from while it is merged. The library reads keys at the top as paths, and those below as
/// names: a dot in quotes belongs to the name.
const ROOT: &str = "file";
const IN_TABLES: &str = "is in a list of tables, which only the file can set";

/// The merged values, and where each came from.
#[derive(Debug)]
pub(super) struct Source {
    lines: Lines,
    /// Variables by the keys that they set.
    variables: HashMap<String, String>,
    pub(super) tree: serde_json::Value,
}

impl Source {
    pub(super) fn merge(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        problems: &mut Problems,
    ) -> Result<Self, ConfigErrors> {
        let (lines, table) = Lines::new(path, text)?;
        let is_list = |section: &str| table.get(section).is_some_and(toml::Value::is_array);
        let mut overrides = Vec::new();
        let mut variables = HashMap::new();
        let mut environment: Vec<_> = environment.into_iter().collect();
        environment.sort();
        for (variable, text) in environment {
            let Some(key) = key_of(&variable).filter(|_| !text.is_empty()) else { continue };
            if is_list(keys::split(&key).0) {
                problems.add(&key, None, IN_TABLES);
            } else if let Some(value) = value_of(&key, &text, problems) {
                overrides.push((key.clone(), value));
            }
            variables.insert(key, variable);
        }
        let tree = tree(path, table, overrides)?;
        Ok(Self { lines, variables, tree })
    }

    /// Where `key` was set or would have to be; and whether it is set at all.
    pub(super) fn origin(&self, key: &str) -> (Origin, bool) {
        match self.variables.iter().find(|(set, _)| keys::is_within(key, set)) {
            Some((_, variable)) => (Origin::Environment { variable: variable.clone() }, true),
            None => {
                let (line, is_set) = self.lines.of(key);
                (Origin::File { line }, is_set)
            }
        }
    }
}

/// `ROAMD_QUIC__IDLE_TIMEOUT` is `quic.idle-timeout`.
fn key_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix(PREFIX)?;
    let is_key = !OTHER_VARIABLES.contains(&variable);
    is_key.then(|| name.to_lowercase().replace("__", ".").replace('_', "-"))
}

fn value_of(key: &str, text: &str, problems: &mut Problems) -> Option<Value> {
    let kind = match keys::find(key) {
        None => {
            problems.unknown(key, None);
            return None;
        }
        Some(_) if keys::is_in_tables(key) => {
            problems.add(key, None, IN_TABLES);
            return None;
        }
        Some(_) if key == keys::PRIVATE_KEY => {
            problems.add(key, None, "is a secret, which only a file may hold");
            return None;
        }
        Some(Key { kind, .. }) => *kind,
    };
    match kind {
        Kind::Table | Kind::Tables | Kind::OneOrMore => {
            problems.add(key, None, "is a table: the environment sets its keys one by one, as in ROAMD_LOG__LEVEL=debug");
            None
        }
        Kind::List => Some(text.split(',').map(str::trim).collect::<Vec<_>>().into()),
        Kind::Number => Some(text.parse::<i64>().map_or_else(|_| text.into(), Into::into)),
        Kind::Text | Kind::Flag if keys::FILES.contains(&key) => Some(from_here(text).into()),
        Kind::Text | Kind::Flag => Some(text.into()),
    }
}

/// A path in a shell's environment is meant from where the shell stands.
fn from_here(file: &str) -> String {
    let is_key = file.parse::<PrivateKey>().is_ok();
    match path::absolute(file) {
        Ok(path) if !is_key => path.to_string_lossy().into_owned(),
        _ => file.to_owned(),
    }
}

/// The table of the file at `path`, with other values at some of its keys.
pub(super) fn tree(
    path: &Path,
    table: toml::Table,
    overrides: impl IntoIterator<Item = (String, Value)>,
) -> Result<serde_json::Value, ConfigErrors> {
    let merge = || {
        let mut builder = config::Config::builder().add_source(File(table));
        for (key, value) in overrides {
            builder = builder.set_override(format!("{ROOT}.{key}"), value)?;
        }
        builder.build()?.get(ROOT)
    };
    merge().map_err(|error: ConfigError| {
        let message = error.to_string();
        ConfigErrors::Syntax { path: path.into(), line: 1, column: 1, message }
    })
}

/// The file's table.
#[derive(Clone, Debug)]
struct File(toml::Table);

impl config::Source for File {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), map(self.0.clone()).into())]))
    }
}

fn map(table: toml::Table) -> Map<String, Value> {
    table.into_iter().map(|(key, inner)| (key, value(inner))).collect()
}

/// Dates, which no key is, become texts. In [`tree`] `nan` and `inf` are null.
fn value(toml: toml::Value) -> Value {
    let kind: ValueKind = match toml {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(list) => ValueKind::Array(list.into_iter().map(value).collect()),
        toml::Value::Table(table) => map(table).into(),
    };
    kind.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_name_keys() {
        for (variable, key) in [
            ("ROAMD_QUIC__IDLE_TIMEOUT", Some("quic.idle-timeout")),
            ("ROAMD_PRIVATE_KEY_FILE", Some("private-key-file")),
            ("ROAMD_RUNTIME_DIR", None),
            ("ROAMD_CONFIG_DIR", None),
            ("HOME", None),
        ] {
            assert_eq!(key_of(variable).as_deref(), key);
        }
    }
}
