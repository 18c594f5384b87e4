//! The notifications on this desktop (Desktop Notifications Specification 1.2), one for each matter.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::time::timeout;
use tracing::{debug, info};
use zbus::{Connection, Variant, proxy};

use super::{
    markup::escaped,
    matters::{Action, Key, Note},
    owners::Owners,
};

const NAME: &str = "org.freedesktop.Notifications";
/// How long the desktop may take; D-Bus itself waits for ever.
const LIMIT: Duration = Duration::from_secs(3);
/// What opens a page: a click on the notification itself, and a button. Each key is followed by words.
const OPEN: [&str; 4] = ["default", "Open browser", "open", "Open browser"];
/// `expire_timeout` of a notification that stays until it is closed.
const STAYS: i32 = 0;

#[proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[expect(clippy::too_many_arguments, reason = "the specification has so many")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;
    fn close_notification(&self, id: u32) -> zbus::Result<()>;
    fn get_capabilities(&self) -> zbus::Result<Vec<String>>;
    #[zbus(signal)]
    fn action_invoked(&self, id: u32, action_key: String) -> zbus::Result<()>;
    #[zbus(signal)]
    fn notification_closed(&self, id: u32, reason: u32) -> zbus::Result<()>;
}

/// The desktop's notification service, or where there will be one.
pub(super) struct Board {
    service: NotificationsProxy<'static>,
    clicks: ActionInvokedStream,
    closed: NotificationClosedStream,
    owners: Owners,
    /// Whether the service reads markup, of which text has none.
    reads_markup: bool,
    /// What is to be seen, by matter.
    pinned: BTreeMap<Key, Pinned>,
}

/// What somebody else did.
pub(super) enum Happened {
    /// A person wants to see this page.
    Click(String),
    /// A service came.
    Service,
    /// The bus is gone.
    End,
}

struct Pinned {
    note: Note,
    /// The service's number for it; none if it does not show it.
    id: Option<u32>,
    /// A person has closed it, or it has vanished: another service does not show it.
    is_dismissed: bool,
}

impl Board {
    pub(super) async fn new(bus: &Connection) -> zbus::Result<Self> {
        let service = NotificationsProxy::new(bus).await?;
        Ok(Self {
            clicks: service.receive_action_invoked().await?,
            closed: service.receive_notification_closed().await?,
            owners: Owners::of(bus, NAME).await?,
            reads_markup: true,
            service,
            pinned: BTreeMap::new(),
        })
    }

    pub(super) async fn act(&mut self, action: Action) {
        match action {
            Action::Show(key, note) => {
                info!(tunnel = key.0, title = note.title, "told");
                let before = self.pinned.remove(&key).and_then(|pinned| pinned.id);
                let id = self.show(&note, before).await;
                self.pinned.insert(key, Pinned { note, id, is_dismissed: false });
            }
            Action::Conclude(key, note) => {
                info!(tunnel = key.0, title = note.title, "told");
                let id = self.pinned.remove(&key).and_then(|pinned| pinned.id);
                self.show(&note, id).await;
            }
            Action::Close(key) => self.close(&key).await,
        }
    }

    async fn close(&mut self, key: &Key) {
        if let Some(Pinned { id: Some(id), .. }) = self.pinned.remove(key) {
            let closed = timeout(LIMIT, self.service.close_notification(id)).await;
            debug!(?closed, "a matter is over");
        }
    }

    /// Closes all: nobody would any more.
    pub(super) async fn clear(&mut self) {
        let keys: Vec<_> = self.pinned.keys().cloned().collect();
        for key in keys {
            self.close(&key).await;
        }
    }

    /// Shows it; the service's number for it. Without a service it waits for one.
    async fn show(&self, note: &Note, replaces: Option<u32>) -> Option<u32> {
        let mut hints = HashMap::from([
            ("urgency", Variant::from(note.urgency as u8)),
            ("category", Variant::from(note.category)),
            ("desktop-entry", Variant::from("roamd")),
        ]);
        if note.vanishes.is_some() {
            hints.insert("transient", Variant::from(true));
        }
        let body = if self.reads_markup { escaped(&note.body) } else { note.body.clone() };
        let actions: &[&str] = if note.page.is_some() { &OPEN } else { &[] };
        let lasts = note.vanishes.map_or(STAYS, |it| it.as_millis() as i32);
        let shown = self.service.notify(
            "roamd",
            replaces.unwrap_or_default(),
            "network-vpn-symbolic",
            &note.title,
            &body,
            actions,
            hints,
            lasts,
        );
        match timeout(LIMIT, shown).await {
            Ok(Ok(id)) => Some(id),
            failed => {
                debug!(?failed, "nobody shows notifications: waiting for a service");
                None
            }
        }
    }

    /// Waits for what a person or the desktop does. Cancel safe.
    pub(super) async fn next(&mut self) -> Happened {
        loop {
            tokio::select! {
                Some(click) = self.clicks.next() => {
                    let Ok(click) = click.args() else { continue };
                    let clicked = self.pinned.values().find(|it| it.id == Some(click.id));
                    if let Some(page) = clicked.and_then(|it| it.note.page.clone()) {
                        return Happened::Click(page);
                    }
                }
                Some(closed) = self.closed.next() => {
                    let Ok(closed) = closed.args() else { continue };
                    let pinned = self.pinned.values_mut().find(|it| it.id == Some(closed.id));
                    if let Some(pinned) = pinned {
                        (pinned.id, pinned.is_dismissed) = (None, true);
                    }
                }
                Some(()) = self.owners.next() => return Happened::Service,
                else => return Happened::End,
            }
        }
    }

    /// There is another service, which shows nothing yet.
    pub(super) async fn begin_anew(&mut self) {
        let capabilities = timeout(LIMIT, self.service.get_capabilities()).await;
        if let Ok(Ok(capabilities)) = capabilities {
            self.reads_markup = capabilities.iter().any(|it| it == "body-markup");
        }
        let mut pinned = std::mem::take(&mut self.pinned);
        for pinned in pinned.values_mut().filter(|it| !it.is_dismissed) {
            pinned.id = self.show(&pinned.note, None).await;
        }
        self.pinned = pinned;
    }
}
