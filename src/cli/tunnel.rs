//! A tunnel as people name it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::builder::{
    OsStringValueParser, TryMapValueParser, TypedValueParser as _, ValueParserFactory,
};

use super::exit::Exit;
use crate::{
    daemon::control::ControlError,
    host::instance::{Instance, configurations},
};

/// What every configuration's name ends with.
const SUFFIX: &str = "toml";

/// A tunnel by its name, such as `home` for `/etc/roamd/home.toml`, or by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel(OsString);

/// What is written names no tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tunnel has a name, such as home, or a file, such as ./home.toml")]
pub struct NoTunnel;

impl TryFrom<OsString> for Tunnel {
    type Error = NoTunnel;

    fn try_from(written: OsString) -> Result<Self, NoTunnel> {
        let is_folder = written.as_encoded_bytes().ends_with(b"/");
        // Nothing, "/", "." and ".." have no file's name.
        if is_folder || Path::new(&written).file_name().is_none() {
            return Err(NoTunnel);
        }
        Ok(Self(written))
    }
}

impl ValueParserFactory for Tunnel {
    type Parser = TryMapValueParser<OsStringValueParser, fn(OsString) -> Result<Self, NoTunnel>>;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().try_map(Self::try_from)
    }
}

impl Tunnel {
    /// Whether it is written as the path of a file.
    fn is_path(&self) -> bool {
        self.0.as_encoded_bytes().contains(&b'/') || is_configuration(Path::new(&self.0))
    }

    fn file(&self) -> PathBuf {
        let mut name = self.0.clone();
        if self.is_path() {
            return name.into();
        }
        name.push(".");
        name.push(SUFFIX);
        configurations().join(name)
    }
}

/// The tunnel's configuration; without a tunnel the only one in `/etc/roamd`.
pub(crate) fn file(tunnel: Option<&Tunnel>) -> anyhow::Result<PathBuf> {
    match tunnel {
        Some(tunnel) => Ok(tunnel.file()),
        None => only(&configurations()),
    }
}

/// The tunnel's daemon; without a tunnel the only one that runs.
pub(crate) fn instance(tunnel: Option<&Tunnel>) -> Result<Instance, ControlError> {
    let Some(tunnel) = tunnel else { return Instance::only() };
    let instance = Instance::of_file(&tunnel.file());
    Ok(if tunnel.is_path() { instance } else { instance.called() })
}

/// The configurations in `folder`, by name.
pub(crate) fn in_folder(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // What begins with a dot is half written.
    let is_hidden =
        |path: &Path| path.file_name().is_some_and(|it| it.as_encoded_bytes()[0] == b'.');
    let files = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        files.filter(|path| is_configuration(path) && !is_hidden(path)).collect();
    files.sort();
    Ok(files)
}

fn only(folder: &Path) -> anyhow::Result<PathBuf> {
    let shown = folder.display();
    let mut files = in_folder(folder).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::NoInput,
        };
        exit.because(anyhow!("cannot read {shown}, so name the tunnel: {error}"))
    })?;
    match files.len() {
        0 => Err(Exit::NoInput.because(anyhow!("no tunnel is configured in {shown}: name a file"))),
        1 => Ok(files.remove(0)),
        _ => {
            let names = names(&files);
            Err(Exit::Usage
                .because(anyhow!("several tunnels are configured in {shown}, name one: {names}")))
        }
    }
}

/// The names of the tunnels with these files.
pub(crate) fn names(files: &[PathBuf]) -> String {
    let names = files.iter().map(|file| Instance::of_file(file).name().to_owned());
    names.collect::<Vec<_>>().join(", ")
}

/// Whether it is named as a configuration.
pub(crate) fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_slash_or_the_suffix_is_a_file_and_anything_else_a_name() {
        for (written, file, name) in [
            ("home", "/etc/roamd/home.toml", "home"),
            ("home.toml", "home.toml", "home"),
            ("./home", "./home", "home"),
            ("/srv/home.conf", "/srv/home.conf", "home"),
            ("office.berlin", "/etc/roamd/office.berlin.toml", "office.berlin"),
        ] {
            let tunnel = Tunnel::try_from(OsString::from(written)).unwrap();
            assert_eq!(tunnel.file(), Path::new(file), "{written}");
            assert_eq!(instance(Some(&tunnel)).unwrap().name(), name, "{written}");
        }
    }

    #[test]
    fn a_folder_and_nothing_at_all_name_no_tunnel() {
        for written in ["", "/", ".", "..", "home/", "./home.toml/", "/etc/roamd/..", "//"] {
            let tunnel = Tunnel::try_from(OsString::from(written));
            assert_eq!(tunnel, Err(NoTunnel), "{written}");
        }
    }

    #[test]
    fn without_a_name_the_only_configuration_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let said = |folder: &Path| {
            let error = only(folder).unwrap_err();
            (Exit::of(&error).map(Exit::code), error.to_string())
        };
        let shown = folder.path().display();
        let none = (Some(66), format!("no tunnel is configured in {shown}: name a file"));
        assert_eq!(said(folder.path()), none);
        assert_eq!(said(&folder.path().join("absent")).0, Some(66));
        for name in ["home.toml", ".roamd-x.toml", "home.key"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(only(folder.path()).unwrap(), folder.path().join("home.toml"));
        fs::write(folder.path().join("berlin.toml"), "").unwrap();
        let several = "several tunnels are configured in";
        let several = (Some(64), format!("{several} {shown}, name one: berlin, home"));
        assert_eq!(said(folder.path()), several);
    }
}
