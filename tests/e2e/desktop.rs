//! `roamd notify` on a message bus of our own, with something on it that shows notifications, and a tray.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use roamd_lab::Process;
use zbus::{
    Connection, OwnedVariant, Proxy, Variant, connection::Builder, interface,
    object_server::SignalEmitter,
};

use crate::{
    harness::{Host, Net, PROGRAM, eventually},
    metered::Bus,
};

/// What a desktop was told.
#[derive(Clone, Debug, Default)]
struct Desktop(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    /// Titles and bodies, by number.
    shown: HashMap<u32, (String, String)>,
    last: u32,
    /// The bus name of the tray icon.
    item: Option<String>,
}

#[interface(name = "org.freedesktop.Notifications")]
impl Desktop {
    #[expect(clippy::too_many_arguments, reason = "the specification has so many")]
    fn notify(
        &self,
        _app_name: &str,
        replaces_id: u32,
        _app_icon: &str,
        summary: &str,
        body: &str,
        _actions: Vec<String>,
        _hints: HashMap<String, OwnedVariant>,
        _expire_timeout: i32,
    ) -> u32 {
        let mut told = self.0.lock().unwrap();
        told.last += 1;
        let id = if replaces_id > 0 { replaces_id } else { told.last };
        told.shown.insert(id, (summary.into(), body.into()));
        id
    }

    async fn close_notification(
        &self,
        id: u32,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) {
        self.0.lock().unwrap().shown.remove(&id);
        // 3: closed by a call.
        Self::notification_closed(&emitter, id, 3).await.unwrap();
    }

    fn get_capabilities(&self) -> Vec<String> {
        vec!["body".into(), "body-markup".into()]
    }

    #[zbus(signal)]
    async fn notification_closed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        reason: u32,
    ) -> zbus::Result<()>;
}

struct Watcher(Desktop);

#[interface(name = "org.kde.StatusNotifierWatcher")]
impl Watcher {
    fn register_status_notifier_item(&self, service: String) {
        self.0.0.lock().unwrap().item = Some(service);
    }
}

type Properties = HashMap<String, OwnedVariant>;
/// Icon name, pixmaps, title and words.
type ToolTip = (String, Vec<(i32, i32, Vec<u8>)>, String, String);
type Layout = (i32, Properties, Vec<OwnedVariant>);

/// The icon, as a tray has it.
struct Icon {
    menu: Proxy<'static>,
    item: Proxy<'static>,
}

impl Icon {
    async fn of(bus: &Connection, name: String) -> Self {
        let menu = Proxy::new(bus, name.clone(), "/MenuBar", "com.canonical.dbusmenu").await;
        let item = Proxy::new(bus, name, "/StatusNotifierItem", "org.kde.StatusNotifierItem").await;
        Self { menu: menu.unwrap(), item: item.unwrap() }
    }

    /// The labels of the menu, and their numbers.
    async fn labels(&self) -> Vec<(i32, String)> {
        let asked = self.menu.call("GetLayout", &(0, -1, Vec::<String>::new())).await;
        let (_revision, (_, _, children)): (u32, Layout) = asked.unwrap();
        let entries =
            children.into_iter().map(|child| Layout::try_from(Variant::from(child)).unwrap());
        let label = |properties: Properties| {
            let label = properties.get("label").cloned();
            label.map(|it| String::try_from(it).unwrap()).unwrap_or_default()
        };
        entries.map(|(id, properties, _)| (id, label(properties))).collect()
    }

    async fn click(&self, label: &str) {
        let labels = self.labels().await;
        let (id, _) = labels.iter().find(|(_, it)| it == label).unwrap();
        let event = (*id, "clicked", Variant::from(0), 0u32);
        self.menu.call::<_, _, ()>("Event", &event).await.unwrap();
    }

    async fn tooltip(&self) -> String {
        let (_, _, _, words): ToolTip = self.item.get_property("ToolTip").await.unwrap();
        words
    }
}

fn notify(client: &Host, bus: &Bus) -> Process {
    let mut command = client.namespace.command(PROGRAM);
    command.arg("notify").env("ROAMD_RUNTIME_DIR", client.folder());
    command.env("DBUS_SESSION_BUS_ADDRESS", &bus.address);
    client.namespace.spawn("notify", command, client.folder()).unwrap()
}

#[test]
fn a_desktop_is_told_of_metered_data_and_its_tray_icon_pauses_the_tunnel() {
    let mut net = Net::new(1);
    net.clients[0]
        .amend("[server]\n", "[paths]\nprefer = [{ link = \"eth0\", metered = true }]\n[server]\n");
    let bus = Bus::start();
    // Before there is a desktop, and before there is a tunnel.
    let _notify = notify(&net.clients[0], &bus);
    net.start();
    let client = &net.clients[0];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let desktop = Desktop::default();
    let serving = Builder::address(&*bus.address)
        .name("org.freedesktop.Notifications")
        .serve_at("/org/freedesktop/Notifications", desktop.clone())
        .name("org.kde.StatusNotifierWatcher")
        .serve_at("/StatusNotifierWatcher", Watcher(desktop.clone()));
    let serving = runtime.block_on(serving.build()).unwrap();
    let titles = || {
        let told = desktop.0.lock().unwrap();
        told.shown.values().map(|(title, _)| title.clone()).collect::<Vec<_>>()
    };
    let metered = "roamd: on metered data";
    eventually("the desktop is told", || titles().contains(&metered.to_owned()).then_some(()));
    let name = eventually("the tray has an icon", || desktop.0.lock().unwrap().item.clone());
    let icon = runtime.block_on(Icon::of(&serving, name));
    let tooltip = runtime.block_on(icon.tooltip());
    assert!(tooltip.starts_with("roamd: connected over eth0, metered"), "{tooltip}");
    let labels = |runtime: &tokio::runtime::Runtime| runtime.block_on(icon.labels());
    let has = |label: &str| labels(&runtime).iter().any(|(_, it)| it == label);
    assert!(has("eth0 (metered)"), "{:?}", labels(&runtime));
    runtime.block_on(icon.click("Pause"));
    eventually("the tunnel is paused", || {
        (client.try_status()?["state"] == "paused").then_some(())
    });
    eventually("the notification is closed", || titles().is_empty().then_some(()));
    eventually("the menu offers to go on", || has("Resume").then_some(()));
    runtime.block_on(icon.click("Resume"));
    client.connected();
    client.assert_ping("10.66.0.1", &[]);
}
