//! Opens a page: through the desktop portal where there is one, else by xdg-open(1).

use std::{collections::HashMap, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use tracing::{debug, warn};
use zbus::{Connection, OwnedObjectPath, Variant, proxy};

/// How long the desktop may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

#[proxy(
    interface = "org.freedesktop.portal.OpenURI",
    default_service = "org.freedesktop.portal.Desktop",
    default_path = "/org/freedesktop/portal/desktop"
)]
trait OpenUri {
    #[zbus(name = "OpenURI")]
    fn open_uri(
        &self,
        parent_window: &str,
        uri: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<OwnedObjectPath>;
}

/// Opens the page, one of ours (see [`Portal::page`](super::seen::Portal)), in the user's browser.
pub(super) async fn open(bus: &Connection, page: &str) {
    let asked = async { OpenUriProxy::new(bus).await?.open_uri("", page, HashMap::new()).await };
    match timeout(LIMIT, asked).await {
        Ok(Ok(_request)) => return,
        failed => debug!(?failed, "there is no desktop portal"),
    }
    let mut command = Command::new("xdg-open");
    command.arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = command.spawn() {
        warn!(page, %error, "cannot open a browser: xdg-open(1) of xdg-utils cannot be run");
    }
}
