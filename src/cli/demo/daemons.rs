//! The two daemons: their configuration, as a user would write it, and their processes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use roamd_lab::{
    Namespace, Process, Scene,
    scene::{SERVER_V4, SERVER_V6},
};

use super::keys;
use crate::host::instance::Instance;

const PORT: u16 = 4433;
const TCP_PORT: u16 = 443;

/// The running daemons. Dropped, they end.
#[derive(Debug)]
pub(super) struct Daemons {
    client: Process,
    server: Process,
    control: Instance,
}

/// Where the configuration files are.
#[derive(Debug)]
pub(super) struct Configuration {
    client: PathBuf,
    server: PathBuf,
}

impl Configuration {
    /// Makes keys and writes both files into `folder`.
    pub(super) fn write(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let client_key = keys::generate(program, &folder.join("laptop.key"))?;
        let server_key = keys::generate(program, &folder.join("server.key"))?;
        let write = |name: &str, content: String| {
            let file = folder.join(name);
            fs::write(&file, content)
                .with_context(|| format!("cannot write {}", file.display()))?;
            anyhow::Ok(file)
        };
        Ok(Self {
            client: write("laptop.toml", client_configuration(&server_key))?,
            server: write("server.toml", server_configuration(&client_key))?,
        })
    }
}

impl Daemons {
    /// Starts the server, then the client.
    pub(super) fn start(
        program: &Path,
        configuration: &Configuration,
        scene: &Scene,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let start = |name: &str, namespace: &Namespace, file: &Path| {
            let runtime = folder.join(format!("run-{name}"));
            fs::create_dir(&runtime)?;
            let mut command = namespace.command(program);
            command.arg("run").arg(file).env("STATE_DIRECTORY", &runtime);
            command.env("ROAMD_RUNTIME_DIR", runtime);
            anyhow::Ok(namespace.spawn(name, command, folder)?)
        };
        let server = start("server", scene.server(), &configuration.server)?;
        let client = start("laptop", scene.client(), &configuration.client)?;
        let control = Instance::within(&folder.join("run-laptop"), "laptop");
        Ok(Self { client, server, control })
    }

    pub(super) fn all(&self) -> [&Process; 2] {
        [&self.client, &self.server]
    }

    /// Where the client can be asked.
    pub(super) fn control(&self) -> &Instance {
        &self.control
    }

    /// Fails when one of them has ended.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for daemon in self.all() {
            anyhow::ensure!(daemon.is_running(), "the daemon of the {} has ended", daemon.name());
        }
        Ok(())
    }
}

fn client_configuration(server_key: &str) -> String {
    format!(
        r#"role = "client"
private-key-file = "laptop.key"
[server]
address = ["{SERVER_V4}:{PORT}", "[{SERVER_V6}]:{PORT}"]
tcp-port = {TCP_PORT}
public-key = "{server_key}"
[tun]
name = "roam0"
routes = ["10.66.0.0/24", "fd66::/64"]
"#
    )
}

fn server_configuration(client_key: &str) -> String {
    format!(
        r#"role = "server"
private-key-file = "server.key"
listen = "[::]:{PORT}"
listen-tcp = "[::]:{TCP_PORT}"
[tun]
name = "roam0"
addresses = ["10.66.0.1/24", "fd66::1/64"]
[[peer]]
name = "laptop"
public-key = "{client_key}"
addresses = ["10.66.0.2", "fd66::2"]
"#
    )
}
