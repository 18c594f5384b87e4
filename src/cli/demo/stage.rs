//! The stage: networks, daemons and the server at the far end.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Context;
use tempfile::TempDir;

use super::{
    daemons::{Configuration, Daemons},
    echo::EchoServer,
    screen::Screen,
};
use crate::{
    cli::{interrupt::Interrupt, record::Watch},
    clock,
};
use roamd_lab::{Access, Scene};

/// How long the tunnel may take until it carries packets.
const TUNNEL_DEADLINE: Duration = Duration::from_secs(15);

/// How long one attempt to connect through it may take: several round trips over either network.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Between two attempts that fail at once, because there is no tunnel yet.
const PAUSE: Duration = Duration::from_millis(50);

/// Everything that the session needs. Dropped, it is gone, in the order of the fields.
#[derive(Debug)]
pub(super) struct Stage {
    daemons: Daemons,
    echo: EchoServer,
    scene: Scene,
    _folder: TempDir,
}

impl Stage {
    /// Makes the networks, keys and configuration, and starts the daemons.
    pub(super) fn set(program: &Path, screen: &mut Screen<'_>) -> anyhow::Result<Self> {
        let start = clock::now();
        let mut scene = Scene::new().context("cannot make the networks")?;
        scene.without_v4(Access::Lte).context("cannot take IPv4 from lte")?;
        let echo = EchoServer::start(scene.server()).context("cannot start the echo server")?;
        screen.step("networks made, in namespaces of their own", start)?;

        let start = clock::now();
        let folder = tempfile::Builder::new()
            .prefix("roamd-demo-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let configuration = Configuration::write(program, folder.path())?;
        screen.step("keys and configuration written", start)?;

        let daemons = Daemons::start(program, &configuration, &scene, folder.path())
            .context("cannot start the daemons")?;
        Ok(Self { daemons, echo, scene, _folder: folder })
    }

    /// Connects from the client to the echo server at `server`, trying until the tunnel is there.
    pub(super) fn connect(
        &self,
        server: IpAddr,
        screen: &mut Screen<'_>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<TcpStream> {
        let start = clock::now();
        let server = SocketAddr::new(server, self.echo.port()?);
        loop {
            interrupt.check()?;
            self.check()?;
            let attempt = || TcpStream::connect_timeout(&server, ATTEMPT);
            match self.scene.client().run(attempt)? {
                Ok(connection) => {
                    screen.step("daemons started, the tunnel carries packets", start)?;
                    return Ok(connection);
                }
                Err(error) if clock::now().duration_since(start) > TUNNEL_DEADLINE => {
                    return Err(error).with_context(|| {
                        format!(
                            "no connection to {server} through the tunnel in {TUNNEL_DEADLINE:?}"
                        )
                    });
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Fails when a daemon has ended.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.daemons.check()
    }

    pub(super) fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Watches the client from here on.
    pub(super) fn watch(&self) -> std::io::Result<Watch> {
        Watch::start(self.daemons.control().clone())
    }

    /// Shows how the daemons' logs end.
    pub(super) fn print_logs(&self, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        for daemon in self.daemons.all() {
            screen.log(daemon.name(), &daemon.log()?)?;
        }
        Ok(())
    }
}
