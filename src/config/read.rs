//! From a file to a configuration, collecting problems on the way.

use std::fs;
use std::path::{Path, absolute};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::keys::{self, Kind, Role};
use super::lines::join;
use super::problem::{ConfigErrors, Problems};
use super::raw::{RawClient, RawConfig, RawServer};
use super::source::Source;
use super::{Config, client, server};

pub(super) fn load(
    path: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, RawConfig), ConfigErrors> {
    let unreadable = |error| ConfigErrors::Unreadable { path: path.into(), error };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let file = absolute(path).map_err(unreadable)?;
    let directory = file.parent().unwrap_or(Path::new("/"));

    let mut problems = Problems::default();
    let mut source = Source::merge(path, &text, environment, &mut problems)?;
    match read(&mut source.tree, directory, &mut problems) {
        Some(loaded) if problems.is_empty() => Ok(loaded),
        _ => Err(ConfigErrors::Problems {
            path: path.into(),
            problems: problems.into_vec(|key| source.origin(key)),
        }),
    }
}

fn read(
    tree: &mut Value,
    directory: &Path,
    problems: &mut Problems,
) -> Option<(Config, RawConfig)> {
    match role(tree.as_object_mut()?, problems)? {
        Role::Client => {
            prune(tree, "", Role::Client, problems);
            let mut raw: RawClient = deserialize(tree, problems)?;
            let config = client::build(&mut raw, directory, problems)?;
            Some((Config::Client(config), RawConfig::Client(raw)))
        }
        Role::Server => {
            prune(tree, "", Role::Server, problems);
            let mut raw: RawServer = deserialize(tree, problems)?;
            let config = server::build(&mut raw, directory, problems)?;
            Some((Config::Server(config), RawConfig::Server(raw)))
        }
    }
}

/// Takes the role out of the tree. Where it is wrong, the sections may tell it, so that the
/// rest of the file can be checked too.
fn role(tree: &mut Map<String, Value>, problems: &mut Problems) -> Option<Role> {
    let value = problems.require("role", tree.shift_remove("role"));
    if let Some(value) = value {
        let role = value.as_str().and_then(Role::parse);
        if role.is_some() {
            return role;
        }
        problems.refuse("role", text(&value));
    }
    let is_told = |role: &Role| {
        tree.keys().any(|key| keys::find(key).is_some_and(|key| key.role == Some(*role)))
    };
    let mut told = Role::ALL.into_iter().filter(is_told);
    told.next().filter(|_| told.next().is_none())
}

/// Takes out what the role does not accept, and makes a list of a single text.
fn prune(value: &mut Value, path: &str, role: Role, problems: &mut Problems) {
    let kind = keys::find(path).map_or(Kind::Table, |key| key.kind);
    if kind == Kind::List && value.is_string() {
        *value = Value::Array(vec![value.take()]);
    }
    if let Value::Array(elements) = value {
        for (index, element) in elements.iter_mut().enumerate() {
            prune_element(element, &format!("{path}[{index}]"), role, problems);
        }
    } else if matches!(kind, Kind::Table | Kind::Tables) {
        prune_table(value, path, role, problems);
    }
    refuse_nan(value, path, problems);
}

fn prune_element(value: &mut Value, path: &str, role: Role, problems: &mut Problems) {
    if value.is_object() {
        prune_table(value, path, role, problems);
    }
    refuse_nan(value, path, problems);
}

fn prune_table(value: &mut Value, path: &str, role: Role, problems: &mut Problems) {
    let Value::Object(table) = value else { return };
    table.retain(|key, value| {
        let path = join(path, key);
        let is_accepted = keys::find(&path).is_some_and(|key| key.is_for(role));
        match is_accepted {
            true => prune(value, &path, role, problems),
            false => problems.unknown(&path, Some(role)),
        }
        is_accepted
    });
}

/// TOML has no null: one in the tree was `nan` or `inf`.
fn refuse_nan(value: &Value, path: &str, problems: &mut Problems) {
    if value.is_null() {
        problems.refuse(path, "nan");
    }
}

/// Deserializes, and again without the value that did not fit, until the rest fits.
fn deserialize<T: DeserializeOwned>(tree: &mut Value, problems: &mut Problems) -> Option<T> {
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(&*tree) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        let key = error.path().to_string();
        match tree.pointer_mut(&pointer(&key)) {
            Some(value) if !value.is_null() => problems.refuse(&key, text(&value.take())),
            _ => {
                problems.add(&key, None, error.inner().to_string());
                return None;
            }
        }
    }
}

/// `peer[1].name` is `/peer/1/name` (RFC 6901).
fn pointer(path: &str) -> String {
    format!("/{}", path.replace(['.', '['], "/").replace(']', ""))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
