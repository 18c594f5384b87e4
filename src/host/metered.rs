//! Which links cost money, as NetworkManager knows it (over D-Bus): phones and hotspots say so themselves.
//! Without NetworkManager the configuration alone says so.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use tokio::time::sleep;
use tracing::debug;
use zbus::{Connection, OwnedObjectPath, fdo, proxy};

/// From one look to the next.
const PACE: Duration = Duration::from_secs(10);
/// The same where there is no NetworkManager to ask.
const SLOW_PACE: Duration = Duration::from_secs(60);
/// `NM_METERED_YES` and `NM_METERED_GUESS_YES`.
const YES: [u32; 2] = [1, 3];

#[proxy(
    interface = "org.freedesktop.NetworkManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager"
)]
trait Manager {
    fn get_devices(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
}

#[proxy(
    interface = "org.freedesktop.NetworkManager.Device",
    default_service = "org.freedesktop.NetworkManager"
)]
trait Device {
    #[zbus(property(emits_changed_signal = "false"))]
    fn interface(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn metered(&self) -> zbus::Result<u32>;
}

/// Looks for ever; tells each time which links are metered.
pub(crate) async fn watch(tell: impl Fn(HashSet<String>)) -> Infallible {
    loop {
        match Connection::system().await {
            Ok(bus) => {
                let failed = keep_looking(&bus, &tell).await.map(|never| match never {});
                debug!(?failed, "NetworkManager does not tell which links are metered");
            }
            Err(error) => debug!(%error, "there is no D-Bus to ask for metered links"),
        }
        sleep(SLOW_PACE).await;
    }
}

async fn keep_looking(
    bus: &Connection,
    tell: &impl Fn(HashSet<String>),
) -> zbus::Result<Infallible> {
    loop {
        let mut metered = HashSet::new();
        for device in ManagerProxy::new(bus).await?.get_devices().await? {
            match metered_interface(bus, device).await {
                Ok(interface) => metered.extend(interface),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        tell(metered);
        sleep(PACE).await;
    }
}

/// The interface of this device, if it is metered.
async fn metered_interface(
    bus: &Connection,
    device: OwnedObjectPath,
) -> zbus::Result<Option<String>> {
    let device = DeviceProxy::builder(bus).path(device).build().await?;
    if YES.contains(&device.metered().await?) {
        return device.interface().await.map(Some);
    }
    Ok(None)
}

/// Whether the device has been removed since NetworkManager listed it: containers come and go. NetworkManager's library for
/// D-Bus, GDBus, says `UnknownMethod` where there is no such object; others say `UnknownObject`.
fn is_gone(error: &zbus::Error) -> bool {
    let zbus::Error::FDO(error) = error else { return false };
    matches!(**error, fdo::Error::UnknownObject(_) | fdo::Error::UnknownMethod(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_gone_is_passed_over_and_a_networkmanager_that_is_gone_is_not() {
        let said = |error: fdo::Error| is_gone(&error.into());
        let path = "Object does not exist at path /org/freedesktop/NetworkManager/Devices/7";
        assert!(said(fdo::Error::UnknownMethod(path.into())));
        assert!(said(fdo::Error::UnknownObject(path.into())));
        assert!(!said(fdo::Error::ServiceUnknown("org.freedesktop.NetworkManager".into())));
        assert!(!said(fdo::Error::NoReply("disconnected".into())));
    }
}
