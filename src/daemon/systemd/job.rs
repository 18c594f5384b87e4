//! What systemd is about to do with this process, as its D-Bus interface says.

use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;
use zbus::{Connection, OwnedObjectPath, proxy};

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

#[proxy(interface = "org.freedesktop.systemd1.Job", default_service = "org.freedesktop.systemd1")]
trait Job {
    #[zbus(property)]
    fn job_type(&self) -> zbus::Result<String>;
}

/// How long systemd may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// Whether systemd stops this process to start it again (org.freedesktop.systemd1(5)).
pub(crate) async fn is_restarting() -> bool {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    let asked = async {
        let bus = Connection::system().await?;
        let unit = ManagerProxy::new(&bus).await?.get_unit_by_pid(std::process::id()).await?;
        let (_, job) = UnitProxy::builder(&bus).path(unit).build().await?.job().await?;
        JobProxy::builder(&bus).path(job).build().await?.job_type().await
    };
    match timeout(ANSWER, asked).await {
        Ok(Ok(job)) => matches!(job.as_str(), "restart" | "try-restart"),
        Ok(Err(error)) => {
            debug!(%error, "systemd does not say what it is at");
            false
        }
        Err(_elapsed) => false,
    }
}
