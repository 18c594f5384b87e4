//! What of a client's status is for a desktop. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use crate::{
    daemon::{
        status::{ClientState, ClientStatus, PathStatus, RemoteState},
        usage::BudgetLevel,
    },
    link::candidate::Transport,
    path::Condition,
    wire::foreign::Foreign,
};

/// A client as a desktop shows it. All texts are printable and short.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) way: Way,
    /// The link in use, and its round trip in milliseconds.
    pub(crate) in_use: Option<(Foreign, Option<f64>)>,
    /// Whether the link in use costs money.
    pub(crate) metered: bool,
    /// The link behind a captive portal.
    pub(crate) portal: Option<Portal>,
    /// Whether the server refuses this client.
    pub(crate) refused: bool,
    /// Why there is no session.
    pub(crate) reason: Option<Foreign>,
    /// The links that have carried most of their budget, or all of it.
    pub(crate) near_budget: BTreeSet<String>,
    /// Seconds until a pause is over.
    pub(crate) resumes_in: Option<f64>,
    /// The links with a path, in the order of the status, each once.
    pub(crate) links: Vec<Choice>,
    /// The servers, the preferred one first.
    pub(crate) servers: Vec<Choice>,
}

/// How well the tunnel carries packets. Declared best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// It does.
    Good,
    /// It does, and the path in use costs money or is silent.
    Poor,
    /// A person paused it.
    Paused,
    /// It does not.
    None,
}

/// A captive portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portal {
    pub(crate) link: Foreign,
    /// Where a browser meets the portal: the server itself, in whose place the portal answers. The portal does not choose
    /// it.
    pub(crate) page: Option<String>,
}

/// Something that a person can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// As the daemon names it.
    pub(crate) name: String,
    pub(crate) in_use: bool,
    /// What is worth knowing of it.
    pub(crate) remark: Option<&'static str>,
}

impl Seen {
    /// What is to be seen of this status.
    #[must_use]
    pub(crate) fn of(status: &ClientStatus) -> Self {
        let is_connected = status.state == ClientState::Connected;
        let in_use = status.paths.iter().find(|path| is_in_use(path)).filter(|_| is_connected);
        let metered = in_use.is_some_and(|path| path.metered);
        let way = match in_use {
            _ if status.state == ClientState::Paused => Way::Paused,
            Some(path) if metered || path.state == Condition::Suspect => Way::Poor,
            Some(_) => Way::Good,
            None => Way::None,
        };
        let near_budget = status
            .links
            .iter()
            .filter(|link| link.budget.as_ref().is_some_and(|it| it.level != BudgetLevel::Within));
        Self {
            way,
            in_use: in_use.map(|path| (Foreign::of(&path.link), path.rtt)),
            metered,
            portal: portal(status, is_connected),
            refused: status.refused_since.is_some(),
            reason: status.last_error.as_deref().map(Foreign::from).filter(|_| !is_connected),
            near_budget: near_budget.map(|it| Foreign::of(&it.link).to_string()).collect(),
            resumes_in: status.next_attempt.filter(|_| way == Way::Paused),
            links: if is_connected { links(&status.paths) } else { Vec::new() },
            servers: servers(status),
        }
    }
}

fn is_in_use(path: &PathStatus) -> bool {
    path.state.is_in_use()
}

fn portal(status: &ClientStatus, is_connected: bool) -> Option<Portal> {
    let of_path = status.paths.iter().find(|path| path.portal).map(|path| &path.link);
    // Without a session the status has the link that was suspected last, which may be down by now.
    let is_unused = |link: &&String| status.unused_links.iter().any(|it| it.link == **link);
    let suspected = status.portal.as_ref().filter(|link| !is_connected && !is_unused(link));
    let link = of_path.or(suspected).filter(|_| status.state != ClientState::Paused)?;
    let server = |path: &&PathStatus| path.transport == Transport::Udp;
    let of_link = status.paths.iter().filter(|path| path.link == *link).find(server);
    let path = of_link.or_else(|| status.paths.iter().find(server));
    let page = match path {
        Some(path) => Some(page_of_address(path.server.ip())),
        None => status.server.first().and_then(|server| page(server)),
    };
    Some(Portal { link: Foreign::of(link), page })
}

/// The page of a server whose address is configured like this: `vpn.example.net:4433`.
fn page(server: &str) -> Option<String> {
    if let Ok(address) = server.parse::<SocketAddr>() {
        return Some(page_of_address(address.ip()));
    }
    let (host, _port) = server.rsplit_once(':')?;
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-'));
    is_name.then(|| format!("http://{host}/"))
}

fn page_of_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    }
}

fn links(paths: &[PathStatus]) -> Vec<Choice> {
    let mut links: Vec<Choice> = Vec::new();
    for path in paths {
        let remark = match path.state {
            _ if path.portal => Some("wants a login"),
            Condition::Failed | Condition::Waiting => Some("no answer"),
            _ if path.metered => Some("metered"),
            Condition::Active | Condition::Suspect | Condition::Standby | Condition::Probing => {
                None
            }
        };
        let in_use = is_in_use(path);
        match links.iter_mut().find(|link| link.name == path.link) {
            Some(known) if in_use => (known.in_use, known.remark) = (true, remark),
            Some(_) => {}
            None => links.push(Choice { name: path.link.clone(), in_use, remark }),
        }
    }
    links
}

fn servers(status: &ClientStatus) -> Vec<Choice> {
    let choices = status.servers.iter().map(|server| Choice {
        name: server.name.clone(),
        in_use: server.state == RemoteState::InUse,
        remark: None,
    });
    choices.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A client's status with these differences from one that is connected over wlan0.
    pub(in super::super) fn status(changes: Value) -> ClientStatus {
        let mut status = json!({
            "state": "connected", "server": ["vpn.example.net:4433"], "interface": "roam0",
            "addresses": [], "routes": [], "mtu": 1400, "uptime": 1.0, "sessions": 1,
            "paths": [path("wlan0", "active"), path("wwan0", "standby")],
            "switches": [], "switches-by-reason": {},
            "gaps": { "counts": [0,0,0,0,0,0,0,0,0,0], "sum": 0.0 },
            "queued-bytes": 0, "queue-delay": 0.0,
            "traffic": serde_json::to_value(crate::tunnel::counters::Snapshot::default()).unwrap(),
        });
        for (key, value) in changes.as_object().unwrap() {
            status[key] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    pub(in super::super) fn path(link: &str, state: &str) -> Value {
        json!({
            "link": link, "local": "192.0.2.2", "server": "192.0.2.1:4433", "transport": "udp",
            "state": state, "rtt": 12.0, "sent-bytes": 0, "received-bytes": 0, "errors": 0,
            "metered": link.starts_with("ww"), "portal": false, "why": "",
        })
    }

    pub(in super::super) fn seen(changes: Value) -> Seen {
        Seen::of(&status(changes))
    }

    #[test]
    fn a_way_is_as_good_as_the_path_in_use() {
        for (changes, way) in [
            (json!({}), Way::Good),
            (json!({"paths": [path("wwan0", "active")]}), Way::Poor),
            (json!({"paths": [path("wlan0", "suspect")]}), Way::Poor),
            (json!({"paths": [path("wlan0", "failed")]}), Way::None),
            (json!({"state": "waiting", "paths": [path("wlan0", "probing")]}), Way::None),
            (json!({"state": "paused", "paths": []}), Way::Paused),
        ] {
            assert_eq!(seen(changes.clone()).way, way, "{changes}");
        }
    }

    #[test]
    fn the_page_behind_a_portal_is_the_servers_and_nobody_elses() {
        let waiting = |server: &str, paths: Vec<Value>| {
            let changes =
                json!({"state": "waiting", "portal": "wlan0", "server": [server], "paths": paths});
            seen(changes).portal.unwrap().page
        };
        let name = "vpn.example.net:4433";
        let probing = vec![path("wlan0", "probing")];
        assert_eq!(waiting(name, probing).as_deref(), Some("http://192.0.2.1/"));
        assert_eq!(waiting(name, Vec::new()).as_deref(), Some("http://vpn.example.net/"));
        let six = "[2001:db8::1]:4433";
        assert_eq!(waiting(six, Vec::new()).as_deref(), Some("http://[2001:db8::1]/"));
        for hostile in ["a b:1", "x/../y:1", "-", "\u{202e}:1", "user@host:1"] {
            assert_eq!(waiting(hostile, Vec::new()), None, "{hostile}");
        }
    }

    #[test]
    fn a_portal_on_a_link_that_is_down_is_none() {
        let changes = json!({
            "state": "waiting", "portal": "wlan0", "paths": [],
            "unused-links": [{"link": "wlan0", "why": "it is down"}],
        });
        assert_eq!(seen(changes).portal, None);
    }

    #[test]
    fn a_link_with_several_paths_is_one_choice() {
        let paths = [path("wlan0", "failed"), path("wlan0", "active"), path("wwan0", "standby")];
        let links = seen(json!({ "paths": paths })).links;
        let shown: Vec<_> = links.iter().map(|it| (&*it.name, it.in_use, it.remark)).collect();
        assert_eq!(shown, [("wlan0", true, None), ("wwan0", false, Some("metered"))]);
    }

    #[test]
    fn text_of_foreign_origin_is_printable_and_short() {
        let hostile = "\u{1b}[2J\n".repeat(1000);
        let reason = seen(json!({"state": "waiting", "last-error": hostile})).reason.unwrap();
        assert!(reason.as_str().chars().count() <= 201 && !reason.as_str().contains('\n'));
    }
}
