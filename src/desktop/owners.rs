//! Who offers a service of the desktop: it may come, go and be replaced.

use futures_util::StreamExt as _;
use zbus::{
    Connection,
    fdo::{DBusProxy, NameOwnerChangedStream},
};

/// The owners of one name on the bus, one after another.
pub(super) struct Owners(NameOwnerChangedStream);

impl Owners {
    /// Those that come from here on.
    pub(super) async fn of(bus: &Connection, name: &str) -> zbus::Result<Self> {
        let bus = DBusProxy::new(bus).await?;
        Ok(Self(bus.receive_name_owner_changed_with_args(&[(0, name)]).await?))
    }

    /// Waits for another one; none comes once the bus is gone. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<()> {
        while let Some(change) = self.0.next().await {
            if change.args().is_ok_and(|change| change.new_owner.is_some()) {
                return Some(());
            }
        }
        None
    }
}
