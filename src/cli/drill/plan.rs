//! What a drill will cut.

use std::{net::IpAddr, time::Duration};

use anyhow::bail;

use crate::daemon::status::{ClientStatus, PathStatus};

/// Bytes that the drill's own keystrokes and the answers cost at most in one second: ten each way, and their
/// acknowledgements.
const PER_SECOND: u64 = 20 * 2 * 150;

/// What a drill does.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// The TUN device, and the tunnel's own addresses.
    pub(super) interface: String,
    pub(super) addresses: Vec<IpAddr>,
    /// The inner address of the server.
    pub(super) server: IpAddr,
    /// The links that are cut, the one in use first.
    pub(super) links: Vec<Link>,
    /// Those that are not, and why.
    pub(super) left_out: Vec<(String, &'static str)>,
    /// The metered links that work: they carry the tunnel for a while, cut or not.
    pub(super) metered: Vec<String>,
    /// The link that a person chose before.
    pub(super) chosen: Option<String>,
}

/// A link with a path that works.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) is_metered: bool,
    /// Milliseconds.
    pub(super) rtt: Option<f64>,
}

impl Plan {
    /// A drill of the links that work, of metered ones if they are wanted.
    pub(super) fn new(status: &ClientStatus, metered: bool) -> anyhow::Result<Self> {
        if let Some(path) = status.paths.iter().find(|path| path.pinned) {
            bail!(
                "{} is pinned, no other link would take over: roamd switch --auto first",
                path.link
            );
        }
        // The routes to the server's own addresses come first.
        let mut hosts = status.routes.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        let Some(server) = hosts.next() else {
            bail!("the server announced no inner address, so that there is nothing to ping");
        };
        let mut paths: Vec<&PathStatus> = status.paths.iter().collect();
        paths.sort_by_key(|path| path.state);
        let (mut links, mut left_out): (Vec<Link>, Vec<(String, &str)>) = (Vec::new(), Vec::new());
        let mut charged = Vec::new();
        for path in paths {
            let is_known = links.iter().any(|link| link.name == path.link)
                || left_out.iter().any(|(link, _)| *link == path.link);
            if is_known {
                continue;
            }
            let works = path.state.is_usable();
            if works && path.metered {
                charged.push(path.link.clone());
            }
            if !works {
                left_out.push((path.link.clone(), "no path over it works"));
            } else if path.metered && !metered {
                left_out.push((path.link.clone(), "it is metered, --metered cuts it, too"));
            } else {
                let (name, is_metered, rtt) = (path.link.clone(), path.metered, path.rtt);
                links.push(Link { name, is_metered, rtt });
            }
        }
        if links.is_empty() {
            let why: Vec<_> = left_out.iter().map(|(link, why)| format!("{link}: {why}")).collect();
            bail!("there is no link to cut; {}", why.join("; "));
        }
        Ok(Self {
            interface: status.interface.clone(),
            addresses: status.addresses.iter().map(|net| net.addr()).collect(),
            server: server.addr(),
            links,
            left_out,
            metered: charged,
            chosen: status.paths.iter().find(|path| path.chosen).map(|path| path.link.clone()),
        })
    }

    /// What the drill's own packets cost at most over a link that carries the tunnel for so long, in kilobytes.
    pub(super) fn cost(time: Duration) -> u64 {
        (PER_SECOND * time.as_millis() as u64).div_ceil(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Condition;
    use crate::{daemon::status::Gaps, tunnel::counters::Snapshot};

    fn status(paths: &[(&str, Condition, bool)]) -> ClientStatus {
        let paths = paths.iter().map(|(link, state, metered)| {
            serde_json::json!({
                "link": link, "local": "10.0.0.2", "server": "192.0.2.1:4433", "state": state,
                "rtt": 12.0, "sent-bytes": 0, "received-bytes": 0, "errors": 0, "last-heard": null,
                "mtu": null, "loss": null, "portal": false, "metered": metered, "why": "",
            })
        });
        let status = serde_json::json!({
            "state": "connected", "interface": "roam0", "addresses": ["10.66.0.2/32"],
            "routes": ["10.66.0.0/24", "10.66.0.1/32"], "mtu": 1400, "uptime": 1.0, "sessions": 1,
            "last-error": null, "refused-since": null, "next-attempt": null, "portal": null,
            "session": null, "paths": paths.collect::<Vec<_>>(), "switches": [],
            "switches-by-reason": {}, "gaps": Gaps::default(), "queued-bytes": 0,
            "queue-delay": 0.0, "traffic": Snapshot::default(),
        });
        serde_json::from_value(status).unwrap()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.links.iter().map(|link| link.name.as_str()).collect()
    }

    const PATHS: [(&str, Condition, bool); 5] = [
        ("wwan0", Condition::Standby, true),
        ("wlan0", Condition::Waiting, false),
        ("wlan0", Condition::Active, false),
        ("eth0", Condition::Standby, false),
        ("eth1", Condition::Failed, false),
    ];

    #[test]
    fn links_that_work_are_cut_once_each_and_the_one_in_use_first() {
        let plan = Plan::new(&status(&PATHS), false).unwrap();
        assert_eq!(names(&plan), ["wlan0", "eth0"]);
        assert_eq!((plan.server, plan.interface.as_str()), ("10.66.0.1".parse().unwrap(), "roam0"));
        let left_out: Vec<_> = plan.left_out.iter().map(|(link, _)| link.as_str()).collect();
        assert_eq!(left_out, ["wwan0", "eth1"]);
        assert_eq!(plan.metered, ["wwan0"], "it steps in all the same");
    }

    #[test]
    fn a_metered_link_is_cut_if_that_is_wanted() {
        assert_eq!(names(&Plan::new(&status(&PATHS), true).unwrap()), ["wlan0", "wwan0", "eth0"]);
        let error = Plan::new(&status(&PATHS[..1]), false).unwrap_err().to_string();
        assert!(error.contains("wwan0: it is metered"), "{error}");
    }

    #[test]
    fn what_a_person_chose_is_respected() {
        let mut status = status(&PATHS);
        status.paths[3].chosen = true;
        assert_eq!(Plan::new(&status, false).unwrap().chosen.as_deref(), Some("eth0"));
        status.paths[3].pinned = true;
        let error = Plan::new(&status, false).unwrap_err().to_string();
        assert!(error.starts_with("eth0 is pinned"), "{error}");
    }

    #[test]
    fn without_an_address_of_the_server_there_is_nobody_to_type_to() {
        let mut status = status(&PATHS);
        status.routes.pop();
        assert!(Plan::new(&status, false).unwrap_err().to_string().contains("no inner address"));
    }
}
