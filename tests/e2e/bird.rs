//! A real BIRD in a namespace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use roamd_lab::{Namespace, Process};

/// The configuration that is shipped for a server, with other values for those that a test names.
pub(crate) fn shipped(changes: &[(&str, String)]) -> String {
    let mut text = include_str!("../../config/bird.conf").to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "no {from:?} in {text}");
        text = text.replace(from, to);
    }
    text
}

pub(crate) fn run(namespace: &Namespace, text: &str, folder: &Path) -> Process {
    let name = format!("bird-{}", namespace.label());
    let file = folder.join(&name).with_extension("conf");
    fs::write(&file, text).unwrap();
    let mut command = namespace.command("bird");
    command.arg("-f").arg("-c").arg(&file).arg("-s").arg(socket(namespace, folder));
    namespace.spawn(&name, command, folder).unwrap()
}

/// Where birdc finds it.
pub(crate) fn socket(namespace: &Namespace, folder: &Path) -> PathBuf {
    folder.join(format!("bird-{}.ctl", namespace.label()))
}
