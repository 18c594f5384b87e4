//! Writes what packages need beside the program: manual pages, made from its command line and from
//! docs/configuration.md, and completions.
//!
//! `cargo run --example assets -- target/assets`

#[path = "assets/command.rs"]
mod command;
#[path = "assets/configuration.rs"]
mod configuration;
#[path = "assets/markdown.rs"]
mod markdown;
#[path = "assets/page.rs"]
mod page;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::ensure;
use clap::CommandFactory as _;
use roamd::internals::Cli;

/// A shell asks the program itself what to offer. It gets the function for that from the program, too, so that both are
/// of the same version; see src/cli/complete.rs.
const COMPLETIONS: [(&str, &str); 3] = [
    ("roamd.bash", "eval \"$(_ROAMD_COMPLETE=bash roamd)\"\n"),
    ("roamd.fish", "_ROAMD_COMPLETE=fish roamd | source\n"),
    (
        "_roamd",
        "#compdef roamd\neval \"$(_ROAMD_COMPLETE=zsh roamd)\"\n_clap_dynamic_completer_roamd \"$@\"\n",
    ),
];

fn main() -> anyhow::Result<()> {
    let to = env::args_os().nth(1).unwrap_or_else(|| "target/assets".into());
    let to = Path::new(&to);
    fs::create_dir_all(to)?;
    for (file, script) in COMPLETIONS {
        fs::write(to.join(file), script)?;
    }
    fs::write(to.join("changelog.Debian"), debian_changelog()?)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command::pages(&command, to)?;
    configuration::page(Path::new(env!("CARGO_MANIFEST_DIR")), to)
}

/// An entry for this version; what has changed is in the upstream changelog, which lies beside it. Its date is
/// `$SOURCE_DATE_EPOCH`, so that a package can be made again, or now.
fn debian_changelog() -> anyhow::Result<String> {
    let date =
        env::var("SOURCE_DATE_EPOCH").map_or_else(|_| "now".into(), |time| format!("@{time}"));
    let date = said(Command::new("date").args(["-uR", "-d", &date]))?;
    let maintainer = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/maintainer");
    let (maintainer, version) = (said(&mut Command::new(maintainer))?, env!("CARGO_PKG_VERSION"));
    Ok(format!(
        "roamd ({version}-1) unstable; urgency=medium\n\n  * Release {version}.\n\n -- {maintainer}  {date}\n"
    ))
}

/// The line that a program prints.
fn said(program: &mut Command) -> anyhow::Result<String> {
    let output = program.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{program:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
