//! What NetworkManager says of links: a bus of our own, with something on it that answers as it does.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use roamd_lab::{Access, emulator::Direction};
use zbus::{OwnedObjectPath, interface};

use crate::{harness::eventually, roaming::Laptop};

/// A message bus (dbus-daemon(1)), gone with the test.
pub(crate) struct Bus {
    daemon: Child,
    pub(crate) address: String,
}

impl Bus {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("dbus-daemon");
        command.args(["--session", "--nofork", "--print-address"]).stdout(Stdio::piped());
        let mut daemon = command.spawn().expect("apt-get install dbus-daemon");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { daemon, address: address.trim().to_owned() }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

struct Manager(Vec<OwnedObjectPath>);

#[interface(name = "org.freedesktop.NetworkManager")]
impl Manager {
    fn get_devices(&self) -> Vec<OwnedObjectPath> {
        self.0.clone()
    }
}

struct Device {
    link: &'static str,
    metered: u32,
}

#[interface(name = "org.freedesktop.NetworkManager.Device")]
impl Device {
    #[zbus(property)]
    fn interface(&self) -> &str {
        self.link
    }

    #[zbus(property)]
    fn metered(&self) -> u32 {
        self.metered
    }
}

/// Answers on the bus: `NM_METERED_GUESS_YES` (3) for wifi, which is a phone's then, and
/// `NM_METERED_NO` (2) for lte.
async fn answer(address: &str) -> zbus::Result<zbus::Connection> {
    let devices = HashMap::from([("wifi0", 3), ("lte0", 2)]);
    let path = |link: &str| format!("/org/freedesktop/NetworkManager/Devices/{link}");
    let paths = devices.keys().map(|link| OwnedObjectPath::try_from(path(link)));
    let manager = Manager(paths.collect::<Result<_, _>>()?);
    let mut bus = zbus::connection::Builder::address(address)
        .name("org.freedesktop.NetworkManager")
        .serve_at("/org/freedesktop/NetworkManager", manager);
    for (link, metered) in devices {
        bus = bus.serve_at(path(link), Device { link, metered });
    }
    bus.build().await
}

#[test]
fn a_link_that_network_manager_calls_metered_is_not_preferred() {
    let bus = Bus::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _answering = runtime.block_on(answer(&bus.address)).unwrap();
    // The kernel's routes prefer wifi.
    let mut laptop = Laptop::connected();
    laptop.client.daemon = None;
    laptop.client.start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)]);
    laptop.client.connected();
    laptop.until_active(Access::Lte);
    eventually("wifi is a standby", || {
        let status = laptop.client.try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        (paths.find(|path| path["link"] == "wifi0")?["state"] == "standby").then_some(())
    });
}

#[test]
fn a_standby_that_is_never_checked_is_silent() {
    let laptop = Laptop::with("10.77.9.2:4433", "[paths]\nstandby-check = \"0s\"", |_| {});
    // The kernel looks for routers meanwhile.
    sleep(Duration::from_secs(15));
    let passed = || Direction::BOTH.map(|it| laptop.scene.air(Access::Lte).counters(it).passed);
    let before = passed();
    // Longer than a keep-alive takes.
    sleep(Duration::from_secs(15));
    assert_eq!(passed(), before);
    // It is there when it is needed.
    laptop.scene.disconnect(Access::Wifi).unwrap();
    laptop.until_active(Access::Lte);
    laptop.client.assert_ping("10.66.0.1", &[]);
}
