//! Which links cost money, as NetworkManager knows it (over D-Bus): phones and hotspots say so themselves.
//! Without NetworkManager the configuration alone says so.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use tokio::time::sleep;
use tracing::debug;
use zbus::{Connection, proxy, zvariant::OwnedObjectPath};

/// From one look to the next.
const PACE: Duration = Duration::from_secs(10);
/// The same where there is no NetworkManager to ask.
const SLOW_PACE: Duration = Duration::from_secs(60);
/// `NM_METERED_YES` and `NM_METERED_GUESS_YES`.
const YES: [u32; 2] = [1, 3];

#[proxy(
    interface = "org.freedesktop.NetworkManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager",
    gen_blocking = false
)]
trait Manager {
    fn get_devices(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
}

#[proxy(
    interface = "org.freedesktop.NetworkManager.Device",
    default_service = "org.freedesktop.NetworkManager",
    gen_blocking = false
)]
trait Device {
    #[zbus(property(emits_changed_signal = "false"))]
    fn interface(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn metered(&self) -> zbus::Result<u32>;
}

/// Looks for ever; tells each time which links are metered.
pub async fn watch(tell: impl Fn(HashSet<String>)) -> Infallible {
    loop {
        match look().await {
            Ok(links) => {
                tell(links);
                sleep(PACE).await;
            }
            Err(error) => {
                debug!(%error, "NetworkManager does not tell which links are metered");
                sleep(SLOW_PACE).await;
            }
        }
    }
}

async fn look() -> zbus::Result<HashSet<String>> {
    let bus = Connection::system().await?;
    let mut metered = HashSet::new();
    for device in ManagerProxy::new(&bus).await?.get_devices().await? {
        let device = DeviceProxy::builder(&bus).path(device)?.build().await?;
        if YES.contains(&device.metered().await?) {
            metered.insert(device.interface().await?);
        }
    }
    Ok(metered)
}
