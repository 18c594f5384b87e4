//! `roamd up` and `roamd down`: the unit `roamd@NAME.service`, told through systemctl(1), which also asks for a password
//! where one is needed.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, anyhow, bail};

use super::{
    exit::Exit,
    tunnel::{self, Tunnel},
};
use crate::host::instance::{Instance, configurations};

/// Starts the tunnel, now and at every boot.
pub(crate) fn up(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let file = tunnel::file(tunnel)?;
    let unit = Unit::of(&file)?;
    // systemd would enable it nevertheless.
    if let Err(error) = fs::metadata(&file)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(Exit::NoInput.because(anyhow!("cannot read {}: {error}", file.display())));
    }
    let started = unit.systemctl(&["enable", "--now"])?;
    let status = unit.status()?;
    if !started {
        let Unit { name, .. } = &unit;
        let reason = if status.is_empty() { "it did not start".into() } else { status };
        bail!("{reason}; see journalctl -u roamd@{name}");
    }
    Ok(writeln!(io::stdout().lock(), "{}: {status}", unit.name)?)
}

/// Stops the tunnel, now and at every boot.
pub(crate) fn down(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let unit = Unit::of(&tunnel::file(tunnel)?)?;
    if !unit.systemctl(&["disable", "--now"])? {
        bail!("roamd@{} is not stopped", unit.name);
    }
    Ok(writeln!(io::stdout().lock(), "{}: stopped", unit.name)?)
}

/// The unit of a tunnel.
struct Unit {
    name: String,
}

impl Unit {
    fn of(file: &Path) -> anyhow::Result<Self> {
        let folder = configurations();
        if file.parent() != Some(&folder) {
            let (file, folder) = (file.display(), folder.display());
            return Err(Exit::Usage.because(anyhow!(
                "systemd runs the tunnels of {folder}: install {file} there, or use roamd run {file}"
            )));
        }
        Ok(Self { name: Instance::of_file(file).name().to_owned() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("systemctl");
        command.args(arguments).arg("--").arg(format!("roamd@{}.service", self.name));
        command
    }

    /// Whether it did that; if not, it has said why.
    fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<bool> {
        let ended = self.command(&[&["--quiet"], arguments].concat()).status();
        Ok(ended.context("cannot run systemctl")?.success())
    }

    /// What the daemon says of itself, and at last why it ended.
    fn status(&self) -> anyhow::Result<String> {
        let mut command = self.command(&["show", "--property=StatusText", "--value"]);
        let output = command.stderr(Stdio::inherit()).output().context("cannot run systemctl")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
