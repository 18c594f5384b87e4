//! Writes what packages need beside the program, made from its command line: manual pages and completions.
//!
//! `cargo run --example assets -- target/assets`

use std::{env, fs, path::PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use roamd::internals::Cli;

/// System administration (man(1)).
const SECTION: &str = "8";

fn main() -> anyhow::Result<()> {
    let to = env::args_os().nth(1).map_or_else(|| "target/assets".into(), PathBuf::from);
    fs::create_dir_all(&to)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), "roamd", &to)?;
    }
    let mut command = Cli::command();
    command.build();
    pages(&command, "roamd", &to)
}

/// A page for the command and for each of its own.
fn pages(command: &Command, name: &str, to: &PathBuf) -> anyhow::Result<()> {
    // What a page of its own says of itself.
    let named: &'static str = name.to_owned().leak();
    let mut page = Vec::new();
    Man::new(command.clone().name(named)).section(SECTION).render(&mut page)?;
    fs::write(to.join(format!("{name}.{SECTION}")), page)?;
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        pages(inner, &format!("{name}-{}", inner.get_name()), to)?;
    }
    Ok(())
}
