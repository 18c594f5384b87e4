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
    advice::{quoted, stops},
    exit::Exit,
    tunnel::{self, Tunnel},
};
use crate::host::instance::{Instance, configurations};

/// Starts the tunnel, now and at every boot.
pub(crate) fn up(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let file = tunnel::file(tunnel)?;
    // systemd would enable it nevertheless.
    if let Some(error) = absent(&file) {
        return Err(error);
    }
    let unit = Unit::of(&file).ok_or_else(|| {
        let there = configurations().join(format!("{}.toml", Instance::of_file(&file).name()));
        let [from, to] = [&file, &there].map(|it| quoted(&it.to_string_lossy()));
        // Another tunnel's file must not be overwritten by somebody who pastes this.
        let advice = match there.symlink_metadata() {
            Ok(_) => format!("There is {to} already; save {from} there under another name"),
            Err(_) => format!(
                "Make {from} one of them:\n  sudo install -m 600 -o roamd -g roamd {from} {to}"
            ),
        };
        Exit::Usage.because(anyhow!(
            "systemd starts files of {} that end in .toml. {advice}\n\
             or run it in this terminal: sudo roamd run {from}",
            configurations().display()
        ))
    })?;
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
    let file = tunnel::file(tunnel)?;
    let unit = Unit::of(&file).ok_or_else(|| {
        let (folder, file) = (configurations(), file.display());
        Exit::Usage.because(anyhow!(
            "systemd runs files of {} that end in .toml, and not {file}: end that with Ctrl-C where it runs",
            folder.display()
        ))
    })?;
    // systemd calls any name stopped. One without a file may run on.
    if let Some(error) = absent(&file)
        && unit.is_unknown()?
    {
        let running = Instance::named(&unit.name).called();
        return Err(match running.name() == unit.name {
            true => error,
            false => anyhow!("NetworkManager has {}: {}", unit.name, stops(&running)),
        });
    }
    if !unit.systemctl(&["disable", "--now"])? {
        bail!("roamd@{} is not stopped", unit.name);
    }
    Ok(writeln!(io::stdout().lock(), "{}: stopped", unit.name)?)
}

/// Why there is no such configuration, if there is none.
fn absent(file: &Path) -> Option<anyhow::Error> {
    let error = fs::metadata(file).err().filter(|it| it.kind() == io::ErrorKind::NotFound)?;
    let others = tunnel::in_folder(&configurations()).unwrap_or_default();
    let others = match tunnel::names(&others) {
        names if names.is_empty() => names,
        names => format!("; there is {names}"),
    };
    Some(Exit::NoInput.because(anyhow!("cannot read {}: {error}{others}", file.display())))
}

/// The unit of a tunnel.
struct Unit {
    name: String,
}

impl Unit {
    /// That of this configuration, if systemd finds it.
    fn of(file: &Path) -> Option<Self> {
        // As seen from the folder itself, it is written without one.
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let [folder, configurations] = [folder.unwrap_or(Path::new(".")), &configurations()]
            .map(|it| fs::canonicalize(it).unwrap_or_else(|_| it.to_owned()));
        let is_there = folder == configurations && tunnel::is_configuration(file);
        is_there.then(|| Self { name: Instance::of_file(file).name().to_owned() })
    }

    /// Whether nothing of this name runs, has failed or starts at boot.
    fn is_unknown(&self) -> anyhow::Result<bool> {
        let shown = self.show(&["ActiveState", "UnitFileState"])?;
        let is_known = |property: (&str, &str)| match property {
            ("ActiveState", state) => state != "inactive",
            (_, state) => state.starts_with("enabled"),
        };
        Ok(!shown.lines().filter_map(|it| it.split_once('=')).any(is_known))
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
        let shown = self.show(&["StatusText"])?;
        Ok(shown.strip_prefix("StatusText=").unwrap_or_default().to_owned())
    }

    /// Properties of the unit, as `NAME=VALUE` lines in systemd's order.
    fn show(&self, properties: &[&str]) -> anyhow::Result<String> {
        let properties = format!("--property={}", properties.join(","));
        let mut command = self.command(&["show", &properties]);
        let output = command.stderr(Stdio::inherit()).output().context("cannot run systemctl")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
