//! The menu of the tray icon: tunnels in, entries out. Pure.

use std::collections::BTreeMap;

use super::{
    markup::escaped,
    seen::{Choice, Seen, Way},
};
use crate::{daemon::control::Request, wire::foreign::Foreign};

/// What "Pause for an hour" means, in seconds.
const HOUR: u32 = 3600;

/// An entry of the menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) label: String,
    pub(super) kind: Kind,
    /// What a click asks of the tunnel with this name.
    pub(super) asks: Option<(String, Request)>,
    pub(super) children: Vec<Self>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It says something.
    Words,
    /// It does something.
    Button,
    /// One of several, of which one is on.
    Choice {
        is_on: bool,
    },
    Menu,
    Separator,
}

impl Entry {
    fn new(kind: Kind, label: impl Into<String>) -> Self {
        Self { label: label.into(), kind, asks: None, children: Vec::new() }
    }

    fn asking(self, tunnel: &str, request: Request) -> Self {
        Self { asks: Some((tunnel.into(), request)), ..self }
    }

    fn separator() -> Self {
        Self::new(Kind::Separator, "")
    }
}

/// The entries: those of the only tunnel, or a menu for each of several.
pub(super) fn entries(tunnels: &BTreeMap<&str, &Seen>) -> Vec<Entry> {
    match tunnels.len() {
        0 => vec![Entry::new(Kind::Words, "No tunnel runs")],
        1 => tunnels.iter().flat_map(|(name, seen)| of_tunnel(name, seen)).collect(),
        _ => {
            let menu = |(name, seen): (&&str, &&Seen)| Entry {
                children: of_tunnel(name, seen),
                ..Entry::new(Kind::Menu, Foreign::of(name).as_str())
            };
            tunnels.iter().map(menu).collect()
        }
    }
}

fn of_tunnel(name: &str, seen: &Seen) -> Vec<Entry> {
    let state = format!("{}: {}", Foreign::of(name), words(seen));
    let mut entries = vec![Entry::new(Kind::Words, state)];
    let links = seen.links.iter().map(|link| {
        let request = Request::Switch { link: link.name.clone(), pin: false };
        choice(link).asking(name, request)
    });
    let links: Vec<_> = links.collect();
    if !links.is_empty() {
        entries.push(Entry::separator());
        entries.push(Entry::new(Kind::Words, "Path"));
        entries.extend(links);
    }
    if seen.servers.len() > 1 && seen.way != Way::Paused {
        entries.push(Entry::separator());
        entries.push(Entry::new(Kind::Words, "Server"));
        entries.extend(seen.servers.iter().map(|server| {
            choice(server).asking(name, Request::SwitchServer { name: server.name.clone() })
        }));
    }
    entries.push(Entry::separator());
    if seen.way == Way::Paused {
        entries.push(Entry::new(Kind::Button, "Resume").asking(name, Request::Resume));
    } else {
        let automatic = Entry::new(Kind::Button, "Choose path and server automatically");
        entries.push(automatic.asking(name, Request::Auto));
        let button = |label: &str, seconds| {
            Entry::new(Kind::Button, label).asking(name, Request::Pause { seconds })
        };
        entries.extend([button("Pause for an hour", Some(HOUR)), button("Pause", None)]);
    }
    entries
}

fn choice(choice: &Choice) -> Entry {
    let name = Foreign::of(&choice.name);
    let label = match choice.remark {
        Some(remark) => format!("{name} ({remark})"),
        None => name.to_string(),
    };
    Entry::new(Kind::Choice { is_on: choice.in_use }, label)
}

/// The state of a tunnel in few words.
fn words(seen: &Seen) -> String {
    match (&seen.in_use, &seen.portal) {
        _ if seen.way == Way::Paused => match seen.resumes_in {
            Some(seconds) => format!("paused, {:.0} min left", (seconds / 60.0).ceil()),
            None => "paused".into(),
        },
        (Some((link, _)), _) if seen.metered => format!("connected over {link}, metered"),
        (Some((link, _)), _) if seen.way == Way::Poor => format!("no sign over {link}"),
        (Some((link, _)), _) => format!("connected over {link}"),
        (None, Some(portal)) => format!("{} wants a login", portal.link),
        (None, None) if seen.refused => "refused by the server".into(),
        (None, None) => "not connected".into(),
    }
}

/// What is said of all tunnels when the pointer rests on the icon, a line for each. Trays read it as markup.
pub(super) fn tooltip(tunnels: &BTreeMap<&str, &Seen>) -> String {
    let lines = tunnels.iter().map(|(name, seen)| {
        let server = seen.servers.iter().find(|server| server.in_use);
        let server = server.map(|it| format!(", {}", Foreign::of(&it.name))).unwrap_or_default();
        let rtt = seen.in_use.as_ref().and_then(|(_, rtt)| *rtt);
        let rtt = rtt.map(|rtt| format!(", {rtt:.0} ms")).unwrap_or_default();
        escaped(&format!("{}: {}{server}{rtt}", Foreign::of(name), words(seen)))
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() { "No tunnel runs".into() } else { lines.join("\n") }
}

/// The worst way of all tunnels; without any, none.
pub(super) fn worst(tunnels: &BTreeMap<&str, &Seen>) -> Way {
    tunnels.values().map(|seen| seen.way).max().unwrap_or(Way::None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::seen::tests::seen, *};

    fn labels(entries: &[Entry]) -> Vec<String> {
        let label = |entry: &Entry| match entry.kind {
            Kind::Choice { is_on: true } => format!("* {}", entry.label),
            Kind::Separator => "-".into(),
            _ => entry.label.clone(),
        };
        entries.iter().map(label).collect()
    }

    fn shown(changes: Value) -> Vec<Entry> {
        let seen = seen(changes);
        entries(&BTreeMap::from([("home", &seen)]))
    }

    fn server(name: &str, state: &str) -> Value {
        json!({"name": name, "public-key": "", "addresses": [], "state": state})
    }

    #[test]
    fn a_connected_tunnel_offers_its_paths_its_servers_and_a_pause() {
        let servers = [server("berlin", "in-use"), server("paris", "reserve")];
        let entries = shown(json!({ "servers": servers }));
        let expected = [
            "home: connected over wlan0",
            "-",
            "Path",
            "* wlan0",
            "wwan0 (metered)",
            "-",
            "Server",
            "* berlin",
            "paris",
            "-",
            "Choose path and server automatically",
            "Pause for an hour",
            "Pause",
        ];
        assert_eq!(labels(&entries), expected);
        let asks: Vec<_> = entries.iter().filter_map(|entry| entry.asks.clone()).collect();
        assert!(asks.iter().all(|(tunnel, _)| tunnel == "home"));
        assert_eq!(asks[1].1, Request::Switch { link: "wwan0".into(), pin: false });
        assert_eq!(asks[3].1, Request::SwitchServer { name: "paris".into() });
        assert_eq!(asks[6].1, Request::Pause { seconds: None });
    }

    #[test]
    fn a_paused_tunnel_offers_to_go_on_and_nothing_else() {
        let entries = shown(json!({"state": "paused", "paths": []}));
        assert_eq!(labels(&entries), ["home: paused", "-", "Resume"]);
        assert_eq!(entries[2].asks, Some(("home".into(), Request::Resume)));
        let entries = shown(json!({"state": "paused", "paths": [], "next-attempt": 541.0}));
        assert_eq!(entries[0].label, "home: paused, 10 min left");
    }

    #[test]
    fn a_tunnels_name_is_no_markup_and_printable() {
        let seen = seen(json!({ "servers": [server("<i>", "in-use")] }));
        let tunnels = BTreeMap::from([("<img src='file:///etc/passwd'>\n", &seen)]);
        let tooltip = tooltip(&tunnels);
        assert!(!tooltip.contains(['<', '>', '\n']), "{tooltip}");
        assert!(!entries(&tunnels)[0].label.contains('\n'));
    }

    #[test]
    fn each_of_several_tunnels_has_a_menu() {
        let (one, other) = (seen(json!({})), seen(json!({"state": "waiting", "paths": []})));
        let tunnels = BTreeMap::from([("home", &one), ("work", &other)]);
        let entries = entries(&tunnels);
        assert_eq!(labels(&entries), ["home", "work"]);
        assert_eq!(entries[1].children[0].label, "work: not connected");
        assert_eq!(worst(&tunnels), Way::None);
        assert_eq!(tooltip(&tunnels), "home: connected over wlan0, 12 ms\nwork: not connected");
    }
}
