//! Keys for the daemons, made the way a user makes them.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::Context;

/// Makes a private key in `file` and returns its public key as configuration files take it.
pub(super) fn generate(program: &Path, file: &Path) -> anyhow::Result<String> {
    let file = file.to_str().context("the temporary folder's name is not UTF-8")?;
    output(program, &["genkey", "--output", file])?;
    let public = output(program, &["pubkey", file])?;
    Ok(String::from_utf8_lossy(&public.stdout).trim().to_owned())
}

fn output(program: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let command = format!("{} {}", program.display(), arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run `{command}`"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`{command}` failed: {}", complaint.trim());
    Ok(output)
}
