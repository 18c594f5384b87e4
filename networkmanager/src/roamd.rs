//! The program knows what a file means: `roamd network-manager` (src/cli/network_manager.rs) is asked.
//!
//! Items are names and texts, each with a NUL after it; first those that may be seen, then an empty name, then secrets.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// The one that the service runs, not one of the same name that the user has.
const PROGRAM: &str = "/usr/bin/roamd";

/// What a connection keeps.
#[derive(Default)]
pub(crate) struct Items {
    pub(crate) data: Vec<(CString, CString)>,
    pub(crate) secrets: Vec<(CString, CString)>,
}

/// The items of a file; an error is for people.
pub(crate) fn import(path: &Path) -> Result<Items, String> {
    // A desktop would wait at a pipe for as long as nobody writes to it.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(format!("{} is no plain file", path.display()));
    }
    let mut command = Command::new(PROGRAM);
    let asked = command.args(["network-manager", "--import"]).arg(path).stdin(Stdio::null());
    items(&said(asked.output())?).ok_or_else(|| "roamd is of another version".into())
}

/// Writes the file that is the same as the items.
pub(crate) fn export(items: &Items, path: &Path) -> Result<(), String> {
    let mut command = Command::new(PROGRAM);
    let asked = command.args(["network-manager", "--export"]);
    asked.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = asked.spawn().and_then(|mut child| {
        // It reads all before it writes. One that ended says why.
        let _ = child.stdin.take().map(|mut input| input.write_all(&bytes(items)));
        child.wait_with_output()
    });
    let text = said(output)?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(&text));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

fn said(output: io::Result<Output>) -> Result<Vec<u8>, String> {
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()),
        Err(error) => Err(format!("cannot run {PROGRAM}: {error}")),
    }
}

fn items(bytes: &[u8]) -> Option<Items> {
    let (mut items, mut is_secret) = (Items::default(), false);
    let mut parts = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let text = |part: &[u8]| CString::new(part).ok();
    while let Some(name) = parts.next() {
        if name.is_empty() {
            is_secret = true;
            continue;
        }
        let list = if is_secret { &mut items.secrets } else { &mut items.data };
        list.push((text(name)?, text(parts.next()?)?));
    }
    is_secret.then_some(items)
}

fn bytes(items: &Items) -> Vec<u8> {
    let put = |(name, text): &(CString, CString)| {
        [name.as_bytes_with_nul(), text.as_bytes_with_nul()].concat()
    };
    let data: Vec<_> = items.data.iter().flat_map(put).collect();
    let secrets: Vec<_> = items.secrets.iter().flat_map(put).collect();
    [data, vec![0], secrets].concat()
}
