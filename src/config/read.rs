//! From a file to a configuration, collecting problems on the way.

use std::path::{Path, absolute};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    ClientConfig, Config, DirectoryFile, client,
    keys::{self, Kind, Role},
    lines::join,
    problem::{ConfigErrors, Problems},
    proxy::Outside,
    raw::{RawClient, RawConfig, RawServer},
    server,
    source::Source,
};

/// Reads `text`, the content of the file at `path`.
pub(super) fn load(
    path: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, RawConfig), ConfigErrors> {
    let file =
        absolute(path).map_err(|error| ConfigErrors::Unreadable { path: path.into(), error })?;

    let mut problems = Problems::default();
    let environment: Vec<_> = environment.into_iter().collect();
    let outside = Outside::of(&environment);
    let mut source = Source::merge(path, text, environment, &mut problems)?;
    let loaded = read(&mut source.tree, &file, &outside, &mut problems);
    problems.judge(path, loaded, |key| source.origin(key))
}

/// What a file says of the directory: the whole of a server's, or one with the sections `[directory]` and `[tun]`
/// alone, without a private key.
pub(super) fn load_directory(
    path: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<DirectoryFile, ConfigErrors> {
    let environment: Vec<_> = environment.into_iter().collect();
    let file =
        absolute(path).map_err(|error| ConfigErrors::Unreadable { path: path.into(), error })?;
    let mut problems = Problems::default();
    let mut source = Source::merge(path, text, environment.clone(), &mut problems)?;
    let is_short = |tree: &Map<String, Value>| {
        tree.keys().all(|key| ["role", "directory", "tun"].contains(&key.as_str()))
    };
    if !source.tree.as_object().is_some_and(is_short) {
        return match load(path, text, environment)?.0 {
            Config::Server(server) => Ok(DirectoryFile {
                directory: server.directory.clone(),
                fleet: server.fleet.clone(),
                networks: server.tun.addresses.clone(),
                server: Some(server),
            }),
            Config::Client(_) => Ok(DirectoryFile::default()),
        };
    }
    let tree = &mut source.tree;
    prune_table(tree, "", Role::Server, &mut problems);
    let raw: Option<RawServer> = deserialize(tree, &mut problems);
    let found = raw.map(|mut raw| server::directory_file(&mut raw, &file, &mut problems));
    problems.judge(path, found, |key| source.origin(key))
}

fn read(
    tree: &mut Value,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<(Config, RawConfig)> {
    match role(tree.as_object_mut()?, problems)? {
        Role::Client => {
            let (config, raw) = read_client(tree, file, outside, problems)?;
            Some((Config::Client(config), RawConfig::Client(raw)))
        }
        Role::Server => {
            prune_table(tree, "", Role::Server, problems);
            let mut raw: RawServer = deserialize(tree, problems)?;
            let config = server::build(&mut raw, file, problems)?;
            Some((Config::Server(config), RawConfig::Server(raw)))
        }
    }
}

/// Reads a client's tree, whose role is known; `file` stands for it in messages.
pub(super) fn read_client(
    tree: &mut Value,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<(ClientConfig, RawClient)> {
    prune_table(tree, "", Role::Client, problems);
    let mut raw: RawClient = deserialize(tree, problems)?;
    let config = client::build(&mut raw, file, outside, problems)?;
    Some((config, raw))
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

/// Takes out what the role does not accept and what serde would take for something else, and
/// makes a list of a single text.
fn prune(value: &mut Value, path: &str, kind: Kind, role: Role, problems: &mut Problems) {
    match kind {
        Kind::Table => prune_table(value, path, role, problems),
        Kind::OneOrMore if !value.is_array() => prune_table(value, path, role, problems),
        Kind::Tables | Kind::OneOrMore => {
            for (index, table) in value.as_array_mut().into_iter().flatten().enumerate() {
                prune_table(table, &format!("{path}[{index}]"), role, problems);
            }
        }
        Kind::List => {
            if value.is_string() {
                *value = Value::Array(vec![value.take()]);
            }
            for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                refuse_nan(element, &format!("{path}[{index}]"), problems);
            }
        }
        Kind::Text | Kind::Number | Kind::Flag => refuse_nan(value, path, problems),
    }
}

/// A struct can be made of a list too, says serde; here it cannot.
fn prune_table(value: &mut Value, path: &str, role: Role, problems: &mut Problems) {
    let Value::Object(table) = value else {
        problems.refuse(path, text(&value.take()));
        return;
    };
    table.retain(|key, value| {
        let path = join(path, key);
        let Some(key) = keys::find(&path).filter(|key| key.is_for(role)) else {
            problems.unknown(&path, Some(role));
            return false;
        };
        // An empty list asks for nothing.
        let asks = value.as_array().is_none_or(|list| !list.is_empty());
        if asks && let Some(feature) = keys::missing_feature(&path, role) {
            let reason =
                format!("needs the feature {feature:?}, which this build of roamd is without");
            problems.add(&path, Some(text(value)), reason);
            return false;
        }
        prune(value, &path, key.kind, role, problems);
        true
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

/// As in a message: a text that could be taken for a number keeps its quotes.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) if serde_json::from_str::<Value>(text).is_err() => text.clone(),
        Value::Object(_) => "{...}".to_owned(),
        Value::String(_) | Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {
            value.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;
    use crate::config::raw::{RawDirectory, RawPaths, RawPeer, RawPreference, Secret};
    use crate::identity::PrivateKey;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn paths(value: &Value, path: &str, into: &mut BTreeSet<String>) {
        for element in value.as_array().into_iter().flatten() {
            paths(element, path, into);
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = join(path, key);
            paths(value, &path, into);
            into.insert(path);
        }
    }

    fn known(role: Role) -> BTreeSet<String> {
        keys::all(Some(role)).map(|key| key.path.to_owned()).collect()
    }

    fn written(raw: &RawConfig) -> BTreeSet<String> {
        let mut written = BTreeSet::new();
        paths(&serde_json::to_value(raw).unwrap(), "", &mut written);
        written
    }

    #[test]
    fn the_known_keys_are_those_of_the_raw_structs() {
        let prefer = Some(vec![Some(RawPreference::default())]);
        let client = RawClient {
            server: Some(Default::default()),
            tun: Some(Default::default()),
            home: Some(Default::default()),
            paths: Some(RawPaths { prefer, ..Default::default() }),
            quic: Some(Default::default()),
            log: Some(Default::default()),
            metrics: Some(Default::default()),
            private_key: Some(Secret(String::new().into())),
            ..Default::default()
        };
        let server = RawServer {
            tun: Some(Default::default()),
            quic: Some(Default::default()),
            log: Some(Default::default()),
            metrics: Some(Default::default()),
            directory: Some(RawDirectory {
                etcd: Some(Default::default()),
                server: Some(vec![Some(Default::default())]),
                ..Default::default()
            }),
            private_key: Some(Secret(String::new().into())),
            peer: Some(vec![Some(RawPeer::default())]),
            ..Default::default()
        };
        assert_eq!(written(&RawConfig::Client(client)), known(Role::Client));
        assert_eq!(written(&RawConfig::Server(server)), known(Role::Server));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[0-9a-z:./*]{0,8}".prop_map(Value::from),
            "[1-9]{1,2}(s|ms|h)".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let key = prop_oneof!["[a-z]{1,3}", Just("name".to_owned()), Just("link".to_owned())];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    fn any_file() -> impl Strategy<Value = Value> {
        let known = known(Role::Client).union(&known(Role::Server)).cloned().collect::<Vec<_>>();
        let entry = (prop::sample::select(known), any_value());
        (any::<bool>(), prop::collection::vec(entry, 0..8)).prop_map(|(is_client, entries)| {
            let role = if is_client { Role::Client } else { Role::Server };
            let mut file = Value::Object(Map::new());
            file["role"] = role.to_string().into();
            for (path, value) in entries {
                let (section, key) = path.split_once('.').unwrap_or((&path, ""));
                match file[section].is_object() && !key.is_empty() {
                    true => file[section][key] = value,
                    false if key.is_empty() => file[section] = value,
                    false => file[section] = Map::from_iter([(key.to_owned(), value)]).into(),
                }
            }
            file
        })
    }

    proptest! {
        #[test]
        fn every_unusable_value_is_reported_as_a_problem(mut file in any_file()) {
            let directory = tempfile::tempdir().unwrap();
            let key = directory.path().join("host.key");
            fs::write(&key, PrivateKey::generate().unwrap().to_base64()).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            file["private-key-file"] = "host.key".into();

            let mut problems = Problems::default();
            let loaded = read(&mut file, &directory.path().join("file"), &Outside::default(), &mut problems);
            prop_assert!(loaded.is_some() || !problems.is_empty());
            for problem in problems.into_vec(|_| (Origin::File { line: None }, true)) {
                prop_assert!(!problem.reason.contains("invalid type"), "{}", problem);
            }
        }
    }
}
