//! A client's configuration, ready for use.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::anyhow;
use toml_edit::{Array, Value};
use zeroize::Zeroizing;
#[cfg(feature = "qr")]
use {
    anyhow::Context as _,
    qrcode::{EcLevel, QrCode, render::unicode::Dense1x2},
};

use crate::{
    cli::exit::Exit,
    config::{DEFAULT_PORT, HostPort, ServerConfig, ServerPeer, rights},
    identity::{PrivateKey, PublicKey},
};

/// What the file says of a server.
pub(super) struct Server {
    name: Option<String>,
    addresses: Vec<HostPort>,
    tcp_port: Option<u16>,
    /// Without one a person fills it in.
    public_key: Option<PublicKey>,
}

impl Server {
    /// The one at these endpoints, of which more may be known.
    pub(super) fn at(endpoints: &[HostPort], known: Option<&ServerConfig>) -> Self {
        Self {
            name: None,
            addresses: endpoints.iter().flat_map(|it| with_ports(it, known)).collect(),
            tcp_port: None,
            public_key: known.map(|server| server.private_key.public_key()),
        }
    }

    /// One of a fleet, of which more may be known: if it is this one.
    pub(super) fn of(fleet: &ServerPeer, known: Option<&ServerConfig>) -> Self {
        let known = known.filter(|it| it.private_key.public_key() == fleet.public_key);
        Self {
            name: Some(fleet.name.clone()),
            tcp_port: fleet.tcp_port,
            public_key: Some(fleet.public_key),
            ..Self::at(&fleet.addresses, known)
        }
    }
}

/// The whole file.
pub(super) fn toml(
    servers: &[Server],
    key: Option<&PrivateKey>,
    routes: &[String],
) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from("role = \"client\"\n"));
    match key {
        Some(key) => {
            text.push_str(
                "# Whoever has this key is this client: this file is for its owner alone.\n",
            );
            text.extend(["private-key = \"", key.to_base64().as_str(), "\"\n"]);
        }
        None => text.push_str("private-key-file = \"the path of this client's key\"\n"),
    }
    let head = if servers.len() > 1 { "[[server]]" } else { "[server]" };
    for server in servers {
        text.push_str(&format!("\n{head}\n"));
        if let Some(name) = &server.name {
            text.push_str(&format!("name = {}\n", Value::from(name)));
        }
        text.push_str(&format!("address = {}\n", list(&server.addresses)));
        if let Some(port) = server.tcp_port {
            text.push_str(&format!("tcp-port = {port}\n"));
        }
        let public_key = match server.public_key {
            Some(key) => key.to_string(),
            None => "the server's key, as roamd pubkey prints it there".into(),
        };
        text.push_str(&format!("public-key = \"{public_key}\"\n"));
    }
    if !routes.is_empty() {
        text.push_str(&format!("\n[tun]\nroutes = {}\n", list(routes)));
    }
    text
}

fn list(elements: &[impl ToString]) -> Array {
    elements.iter().map(ToString::to_string).collect()
}

/// An endpoint that names no port is there at all UDP ports of the server: some network lets only one of them out.
fn with_ports(endpoint: &HostPort, server: Option<&ServerConfig>) -> Vec<HostPort> {
    let listen = server.map_or(&[][..], |server| &server.listen);
    // Port 0 stands for one that the kernel chooses.
    let mut ports: Vec<_> = listen.iter().map(SocketAddr::port).filter(|port| *port != 0).collect();
    let mut seen = HashSet::new();
    ports.retain(|port| seen.insert(*port));
    if endpoint.port != DEFAULT_PORT || ports.is_empty() {
        return vec![endpoint.clone()];
    }
    ports.into_iter().map(|port| HostPort { port, ..endpoint.clone() }).collect()
}

/// Writes a file that only its owner can read, and never over an existing file.
pub(super) fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let cannot = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::CannotCreate,
        };
        exit.because(anyhow!("cannot create {}: {error}", path.display()))
    };
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(cannot)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| rights::give(&file, path))
        .and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(path);
        cannot(error)
    })
}

/// Draws it on the terminal.
#[cfg(feature = "qr")]
pub(super) fn show_qr(text: &str) -> anyhow::Result<()> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L)
        .context("the configuration does not fit a QR code")?;
    // Light on dark, as terminals are.
    let drawn =
        code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(writeln!(io::stdout().lock(), "{drawn}")?)
}
