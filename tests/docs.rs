//! What the documents claim of the tests.

#![cfg(test)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The names of all functions below `folder`.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|suffix| suffix == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let mut exist = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root().join(folder), &mut exist);
    }
    let page = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(|it| it.contains('_')).collect();
    let tests =
        |name: &&&str| name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
    let missing: Vec<_> =
        named.iter().filter(tests).filter(|name| !exist.contains(**name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
    assert!(named.len() > 40, "{named:?}");
}
