//! The tray icon: a StatusNotifierItem and its menu (com.canonical.dbusmenu), as KDE, GNOME's AppIndicator extension, XFCE
//! and others show them.
//!
//! Written on zbus itself: what crates there are bring a second D-Bus implementation along.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future,
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};
use tracing::debug;
use zbus::{
    Connection, ObjectPath, OwnedVariant, Variant, fdo, interface,
    object_server::{InterfaceRef, SignalEmitter},
    proxy,
};

use super::{
    icon::{self, Pixmap},
    menu::{self, Entry, Kind},
    owners::Owners,
    seen::{Seen, Way},
};
use crate::{daemon::control::Request, mutex::Mutex};

const ITEM: &str = "/StatusNotifierItem";
const MENU: &str = "/MenuBar";
const WATCHER: &str = "org.kde.StatusNotifierWatcher";
/// Where packages put the icons for themes.
const THEME: &str = "/usr/share/icons/hicolor/symbolic/apps";
/// Clicks that wait to be obeyed.
const CLICKS: usize = 4;
const LIMIT: Duration = Duration::from_secs(3);

#[proxy(
    interface = "org.kde.StatusNotifierWatcher",
    default_service = "org.kde.StatusNotifierWatcher",
    default_path = "/StatusNotifierWatcher"
)]
trait Watcher {
    fn register_status_notifier_item(&self, service: &str) -> zbus::Result<()>;
}

/// What a click asks of which tunnel.
pub(super) type Click = (String, Request);

/// The icon, on a desktop with a tray or without one.
pub(super) struct Tray {
    shown: Arc<Mutex<Shown>>,
    item: InterfaceRef<Item>,
    menu: InterfaceRef<Menu>,
    watcher: WatcherProxy<'static>,
    owners: Owners,
}

/// What is to be seen of the icon.
#[derive(Debug)]
struct Shown {
    way: Way,
    tooltip: String,
    entries: Vec<Flat>,
    /// Grows with each other layout of the menu.
    revision: u32,
    /// The number of the first entry below the root. Numbers are not used again, so that a click on a menu of before does
    /// nothing else than it said.
    base: i32,
}

/// An entry among all, its children by their places. The first one is the root.
#[derive(Clone, Debug, PartialEq)]
struct Flat {
    entry: Entry,
    children: Vec<usize>,
}

impl Tray {
    /// Serves the icon, and tells the tray of it as soon as there is one.
    pub(super) async fn new(bus: &Connection) -> zbus::Result<(Self, mpsc::Receiver<Click>)> {
        let (click, clicks) = mpsc::channel(CLICKS);
        let shown = Arc::new(Mutex::new(Shown {
            way: Way::None,
            tooltip: String::new(),
            entries: flat(Vec::new()),
            revision: 1,
            base: 1,
        }));
        let has_theme = Path::new(THEME).join(format!("{}.svg", icon::name(Way::Good))).exists();
        let server = bus.object_server();
        server.at(ITEM, Item { shown: shown.clone(), has_theme }).await?;
        server.at(MENU, Menu { shown: shown.clone(), click }).await?;
        let tray = Self {
            shown,
            item: server.interface(ITEM).await?,
            menu: server.interface(MENU).await?,
            watcher: WatcherProxy::new(bus).await?,
            owners: Owners::of(bus, WATCHER).await?,
        };
        tray.register(bus).await;
        Ok((tray, clicks))
    }

    /// Tells the tray of the icon, if there is one.
    pub(super) async fn register(&self, bus: &Connection) {
        let name = bus.unique_name().map(ToString::to_string).unwrap_or_default();
        let registered = self.watcher.register_status_notifier_item(&name);
        let registered = timeout(LIMIT, registered).await;
        debug!(?registered, "the tray was told of the icon");
    }

    /// Waits for another tray. Cancel safe.
    pub(super) async fn next(&mut self) {
        if self.owners.next().await.is_none() {
            future::pending().await
        }
    }

    /// Shows these tunnels.
    pub(super) async fn show(&self, tunnels: &BTreeMap<&str, &Seen>) -> zbus::Result<()> {
        let (way, tooltip) = (menu::worst(tunnels), menu::tooltip(tunnels));
        let entries = flat(menu::entries(tunnels));
        let (is_other_way, is_other_tooltip, revision) = {
            let mut shown = self.shown.lock();
            let is_other_way = std::mem::replace(&mut shown.way, way) != way;
            let is_other_tooltip = shown.tooltip != tooltip;
            shown.tooltip = tooltip;
            let is_other_menu = shown.entries != entries;
            if is_other_menu {
                // Back to 1 before `i32` overflows: no menu stays open for that long.
                let next = shown.base.checked_add(shown.entries.len() as i32);
                shown.base = next.filter(|next| *next < i32::MAX / 2).unwrap_or(1);
                shown.revision += 1;
                shown.entries = entries;
            }
            (is_other_way, is_other_tooltip, is_other_menu.then_some(shown.revision))
        };
        let item = self.item.signal_emitter();
        if is_other_way {
            Item::new_icon(item).await?;
        }
        if is_other_tooltip {
            Item::new_tool_tip(item).await?;
        }
        if let Some(revision) = revision {
            Menu::layout_updated(self.menu.signal_emitter(), revision, 0).await?;
        }
        Ok(())
    }
}

/// All entries in order, behind a root.
fn flat(entries: Vec<Entry>) -> Vec<Flat> {
    let root = Entry { label: String::new(), kind: Kind::Menu, asks: None, children: entries };
    let mut all = Vec::new();
    flatten(root, &mut all);
    all
}

fn flatten(mut entry: Entry, all: &mut Vec<Flat>) -> usize {
    let (place, children) = (all.len(), std::mem::take(&mut entry.children));
    all.push(Flat { entry, children: Vec::new() });
    let children = children.into_iter().map(|child| flatten(child, all)).collect();
    all[place].children = children;
    place
}

/// See the specification of StatusNotifierItem.
struct Item {
    shown: Arc<Mutex<Shown>>,
    /// Whether an icon theme has our icons.
    has_theme: bool,
}

#[interface(name = "org.kde.StatusNotifierItem")]
impl Item {
    #[zbus(property(emits_changed_signal = "const"))]
    fn category(&self) -> &'static str {
        "Communications"
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> &'static str {
        "roamd"
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn title(&self) -> &'static str {
        "roamd"
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn status(&self) -> &'static str {
        "Active"
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn icon_name(&self) -> String {
        if self.has_theme { icon::name(self.shown.lock().way).into() } else { String::new() }
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn icon_pixmap(&self) -> Vec<Pixmap> {
        icon::pixmaps(self.shown.lock().way)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn tool_tip(&self) -> (String, Vec<Pixmap>, String, String) {
        (String::new(), Vec::new(), "roamd".into(), self.shown.lock().tooltip.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn item_is_menu(&self) -> bool {
        true
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn menu(&self) -> ObjectPath<'static> {
        ObjectPath::from_static_str_unchecked(MENU)
    }

    /// The error makes panels show the menu.
    fn activate(&self, _x: i32, _y: i32) -> fdo::Result<()> {
        Err(fdo::Error::UnknownMethod("there is a menu".into()))
    }

    #[zbus(signal)]
    async fn new_icon(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn new_tool_tip(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

/// See com.canonical.dbusmenu.
struct Menu {
    shown: Arc<Mutex<Shown>>,
    click: mpsc::Sender<Click>,
}

type Properties = HashMap<&'static str, Variant<'static>>;
/// An entry's number, what differs from the defaults, and the entries below it, which are `Layout`s.
type Layout = (i32, Properties, Vec<Variant<'static>>);

impl Shown {
    /// The entry with this number.
    fn place(&self, id: i32) -> Option<usize> {
        let place = if id == 0 { 0 } else { usize::try_from(id.checked_sub(self.base)?).ok()? + 1 };
        (place < self.entries.len()).then_some(place)
    }

    fn id(&self, place: usize) -> i32 {
        if place == 0 { 0 } else { self.base + place as i32 - 1 }
    }

    /// What differs from the defaults.
    fn properties(&self, place: usize) -> Properties {
        let Entry { label, kind, .. } = &self.entries[place].entry;
        // An underscore marks a key.
        let mut properties = Properties::from([("label", label.replace('_', "__").into())]);
        match kind {
            Kind::Words => drop(properties.insert("enabled", false.into())),
            Kind::Button => {}
            Kind::Choice { is_on } => {
                properties.insert("toggle-type", "radio".into());
                properties.insert("toggle-state", i32::from(*is_on).into());
            }
            Kind::Menu => drop(properties.insert("children-display", "submenu".into())),
            Kind::Separator => properties = Properties::from([("type", "separator".into())]),
        }
        properties
    }

    /// The entry with those below it, so many levels deep; less than none means all.
    fn layout(&self, place: usize, depth: i32) -> Layout {
        let children = self.entries[place].children.iter();
        let below = depth.saturating_sub(1);
        let children = children.map(|child| Variant::from(self.layout(*child, below)));
        let children = if depth == 0 { Vec::new() } else { children.collect() };
        (self.id(place), self.properties(place), children)
    }
}

#[interface(name = "com.canonical.dbusmenu")]
impl Menu {
    fn get_layout(
        &self,
        parent_id: i32,
        recursion_depth: i32,
        _property_names: Vec<String>,
    ) -> fdo::Result<(u32, Layout)> {
        let shown = self.shown.lock();
        let place = shown.place(parent_id).ok_or_else(no_such)?;
        Ok((shown.revision, shown.layout(place, recursion_depth)))
    }

    fn get_group_properties(
        &self,
        ids: Vec<i32>,
        _property_names: Vec<String>,
    ) -> Vec<(i32, Properties)> {
        let shown = self.shown.lock();
        // Each once, however often it is asked for.
        let places: BTreeSet<_> = match ids[..] {
            [] => (0..shown.entries.len()).collect(),
            _ => ids.iter().filter_map(|id| shown.place(*id)).collect(),
        };
        places.into_iter().map(|place| (shown.id(place), shown.properties(place))).collect()
    }

    fn get_property(&self, id: i32, name: &str) -> fdo::Result<Variant<'static>> {
        let shown = self.shown.lock();
        let place = shown.place(id).ok_or_else(no_such)?;
        shown.properties(place).remove(name).ok_or_else(no_such)
    }

    fn event(&self, id: i32, event_id: &str, _data: OwnedVariant, _timestamp: u32) {
        if event_id != "clicked" {
            return;
        }
        let shown = self.shown.lock();
        let asks = shown.place(id).and_then(|place| shown.entries[place].entry.asks.clone());
        if let Some(asks) = asks
            && self.click.try_send(asks).is_err()
        {
            debug!("too many clicks");
        }
    }

    fn event_group(&self, events: Vec<(i32, String, OwnedVariant, u32)>) -> Vec<i32> {
        let unknown = events.iter().map(|it| it.0);
        let unknown = unknown.filter(|id| self.shown.lock().place(*id).is_none()).collect();
        for (id, event, data, timestamp) in events {
            self.event(id, &event, data, timestamp);
        }
        unknown
    }

    fn about_to_show(&self, _id: i32) -> bool {
        false
    }

    fn about_to_show_group(&self, _ids: Vec<i32>) -> (Vec<i32>, Vec<i32>) {
        (Vec::new(), Vec::new())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> u32 {
        3
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn status(&self) -> &'static str {
        "normal"
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn text_direction(&self) -> &'static str {
        "ltr"
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn icon_theme_path(&self) -> Vec<String> {
        Vec::new()
    }

    #[zbus(signal)]
    async fn layout_updated(
        emitter: &SignalEmitter<'_>,
        revision: u32,
        parent: i32,
    ) -> zbus::Result<()>;
}

fn no_such() -> fdo::Error {
    fdo::Error::InvalidArgs("there is no such entry any more".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [i32; 8] = [i32::MIN, i32::MIN + 1, -2, -1, 4, 5, i32::MAX - 1, i32::MAX];
    /// The number of the first entry.
    const BASE: i32 = 7;

    /// A menu with a menu in it, and what is clicked there.
    fn menu() -> (Menu, mpsc::Receiver<Click>) {
        let entry = |label: &str, kind, children| Entry {
            label: label.into(),
            kind,
            asks: Some(("home".into(), Request::Resume)),
            children,
        };
        let inner = vec![entry("wlan0", Kind::Button, Vec::new())];
        let entries = flat(vec![entry("home", Kind::Menu, inner)]);
        let (way, tooltip, revision, base) = (Way::Good, String::new(), 1, BASE);
        let shown = Shown { way, tooltip, entries, revision, base };
        let (click, clicks) = mpsc::channel(CLICKS);
        (Menu { shown: Arc::new(Mutex::new(shown)), click }, clicks)
    }

    fn nothing() -> OwnedVariant {
        OwnedVariant::from(0i32)
    }

    #[test]
    fn a_layout_is_as_deep_as_it_is_asked_for_whatever_number_that_is() {
        let (menu, _clicks) = menu();
        for depth in NUMBERS {
            let (_, (id, _, children)) = menu.get_layout(0, depth, Vec::new()).unwrap();
            assert_eq!((id, children.len()), (0, 1), "{depth}");
            let (_, (id, ..)) = menu.get_layout(BASE + 1, depth, Vec::new()).unwrap();
            assert_eq!(id, BASE + 1);
        }
        let (_, (_, _, children)) = menu.get_layout(0, 0, Vec::new()).unwrap();
        assert!(children.is_empty());
    }

    #[test]
    fn numbers_of_no_entry_are_refused_and_click_nothing() {
        let (menu, mut clicks) = menu();
        for id in NUMBERS {
            assert!(menu.get_layout(id, -1, Vec::new()).is_err(), "{id}");
            assert!(menu.get_property(id, "label").is_err(), "{id}");
            menu.event(id, "clicked", nothing(), u32::MAX);
        }
        assert!(menu.get_property(BASE, &"x".repeat(1 << 20)).is_err());
        assert!(clicks.try_recv().is_err());
    }

    #[test]
    fn a_flood_of_one_message_is_answered_briefly_and_clicks_little() {
        let (menu, mut clicks) = menu();
        let ids = [&NUMBERS[..], &[0, BASE, BASE + 1]].concat().repeat(10_000);
        let found = menu.get_group_properties(ids, Vec::new());
        let found: Vec<_> = found.into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, [0, BASE, BASE + 1]);
        let click = |id| (id, "clicked".to_owned(), nothing(), 0);
        let events = (0..10_000).flat_map(|_| [click(BASE + 1), click(i32::MIN)]).collect();
        assert_eq!(menu.event_group(events), vec![i32::MIN; 10_000]);
        let clicked = std::iter::from_fn(|| clicks.try_recv().ok()).count();
        assert_eq!(clicked, CLICKS);
    }
}
