//! Every target, on every input of its corpus.

use std::{collections::BTreeSet, fs, panic, path::Path};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 9] = [
    ("capsule", super::capsule),
    ("config", super::config),
    ("datagram", super::datagram),
    ("fragment", super::fragment),
    ("message", super::message),
    ("offload", super::offload),
    ("paths", super::paths),
    ("portal", super::portal),
    ("repair", super::repair),
];

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

#[test]
fn every_target_holds_for_its_corpus() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let corpus = folder().join("corpus").join(name);
        for input in names(&corpus) {
            let data = fs::read(corpus.join(&input)).unwrap();
            if panic::catch_unwind(|| target(&data)).is_err() {
                failed.push(format!("{name}/{input}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_is_replayed_and_has_a_corpus() {
    let replayed: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let targets = names(&folder().join("fuzz_targets"));
    assert_eq!(replayed.iter().map(|name| format!("{name}.rs")).collect::<BTreeSet<_>>(), targets);
    assert_eq!(replayed, names(&folder().join("corpus")));
}
