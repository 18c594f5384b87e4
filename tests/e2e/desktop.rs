//! `roamd notify` on a message bus of our own, with something on it that shows notifications, and a tray.

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use roamd_lab::Process;
use tokio::runtime::Runtime;
use zbus::{
    Connection, OwnedVariant, Proxy, Variant, connection::Builder, interface,
    object_server::SignalEmitter,
};

use crate::{
    harness::{Host, Net, PROGRAM, eventually},
    metered::Bus,
};

const NOTIFICATIONS: &str = "/org/freedesktop/Notifications";

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
    async fn action_invoked(
        emitter: &SignalEmitter<'_>,
        id: u32,
        action_key: &str,
    ) -> zbus::Result<()>;

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

/// A message bus with a desktop on it.
struct Session {
    bus: Bus,
    runtime: Runtime,
    desktop: Desktop,
    /// There is one from [`Self::log_in`] on.
    connection: Option<Connection>,
}

impl Session {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Self { bus: Bus::start(), runtime, desktop: Desktop::default(), connection: None }
    }

    /// Notifications and a tray are there from here on.
    fn log_in(&mut self) {
        let serving = Builder::address(&*self.bus.address)
            .name("org.freedesktop.Notifications")
            .serve_at(NOTIFICATIONS, self.desktop.clone())
            .name("org.kde.StatusNotifierWatcher")
            .serve_at("/StatusNotifierWatcher", Watcher(self.desktop.clone()));
        self.connection = Some(self.runtime.block_on(serving.build()).unwrap());
    }

    /// Starts `roamd notify` for the tunnels of a host. What it opens a browser with writes the page into the file `opened`.
    fn notify(&self, client: &Host) -> Process {
        let folder = client.folder();
        let xdg_open = folder.join("xdg-open");
        let script = format!("#!/bin/sh\necho \"$1\" > {}/opened\n", folder.display());
        fs::write(&xdg_open, script).unwrap();
        fs::set_permissions(&xdg_open, Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let mut command = client.namespace.command(PROGRAM);
        command.arg("notify").env("ROAMD_RUNTIME_DIR", folder).env("PATH", path);
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.bus.address);
        client.namespace.spawn("notify", command, folder).unwrap()
    }

    /// Waits for a notification with this title; its number.
    fn told(&self, title: &str) -> u32 {
        eventually(title, || {
            let told = self.desktop.0.lock().unwrap();
            told.shown.iter().find_map(|(id, (shown, _))| (shown == title).then_some(*id))
        })
    }

    /// A person clicks on a notification.
    fn click(&self, id: u32) {
        let server = self.connection.as_ref().unwrap().object_server();
        self.runtime.block_on(async {
            let served = server.interface::<_, Desktop>(NOTIFICATIONS).await.unwrap();
            Desktop::action_invoked(served.signal_emitter(), id, "default").await.unwrap();
        });
    }
}

#[test]
fn a_desktop_is_told_of_metered_data_and_its_tray_icon_pauses_the_tunnel() {
    let (mut net, mut session) = (Net::new(1), Session::start());
    let metered = "[paths]\nprefer = [{ link = \"eth0\", metered = true }]\n[server]\n";
    net.clients[0].amend("[server]\n", metered);
    // Before there is a desktop, and before there is a tunnel.
    let _notify = session.notify(&net.clients[0]);
    net.start();
    let client = &net.clients[0];
    session.log_in();
    session.told("roamd: on metered data");
    let name =
        eventually("the tray has an icon", || session.desktop.0.lock().unwrap().item.clone());
    let Session { runtime, connection: Some(connection), .. } = &session else { unreachable!() };
    let icon = runtime.block_on(Icon::of(connection, name));
    let tooltip = runtime.block_on(icon.tooltip());
    assert!(tooltip.starts_with("roamd: connected over eth0, metered"), "{tooltip}");
    let has = |label: &str| runtime.block_on(icon.labels()).iter().any(|(_, it)| it == label);
    assert!(has("eth0 (metered)"));
    runtime.block_on(icon.click("Pause"));
    eventually("the tunnel is paused", || {
        (client.try_status()?["state"] == "paused").then_some(())
    });
    eventually("the notification is closed", || {
        session.desktop.0.lock().unwrap().shown.is_empty().then_some(())
    });
    eventually("the menu offers to go on", || has("Resume").then_some(()));
    runtime.block_on(icon.click("Resume"));
    client.connected();
    client.assert_ping("10.66.0.1", &[]);
}

#[test]
fn a_click_on_the_notification_of_a_portal_opens_the_servers_own_address() {
    let (mut net, mut session) = (Net::new(1), Session::start());
    session.log_in();
    let _notify = session.notify(&net.clients[0]);
    // A hotel answers in the server's place.
    net.nft(&[
        "add table inet hotel",
        "add chain inet hotel input { type filter hook input priority 0; }",
        "add rule inet hotel input udp dport 4433 drop",
    ]);
    let bind = || TcpListener::bind("10.77.0.1:80").unwrap();
    let hotel = net.server.namespace.run(bind).unwrap();
    std::thread::spawn(move || {
        for stream in hotel.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let login = "HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\n\r\n";
            let _ = stream.write_all(login.as_bytes());
        }
    });
    net.clients[0].start();
    session.click(session.told("roamd: eth0 wants a login"));
    let opened = net.clients[0].folder().join("opened");
    let page = eventually("a browser is opened", || {
        fs::read_to_string(&opened).ok().filter(|page| page.ends_with('\n'))
    });
    assert_eq!(page, "http://10.77.0.1/\n");
}
