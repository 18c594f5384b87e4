//! What a client's values mean.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::{
    Budget, ClientConfig, ClientTun, Exclude, HomeMode, HostPort, OverBudget, Paths, Period,
    Preference, Relay, ServerPeer,
    budget::{self, Written},
    check::{self, elements, is_name},
    fleet::Distinct,
    problem::Problems,
    proxy::{self, Outside},
    raw::{
        List, RawClient, RawClientTun, RawHome, RawPaths, RawPreference, RawServerPeer, RawServers,
    },
};
use crate::identity::{PrivateKey, PublicKey};

/// Less is less than a handshake takes on a slow link; more keeps a dead path from its retry.
const MIN_STANDBY_CHECK: Duration = Duration::from_secs(5);
const MAX_STANDBY_CHECK: Duration = Duration::from_secs(600);
/// Bytes a minute.
const MOST_COPIES: u32 = 1_000_000;
/// Each is known by name, admitted through the kill switch, and tried when those before it do not answer.
pub(super) const MOST_SERVERS: usize = 8;
/// Each is a path of its own over each link of its network.
const MOST_HOME_ADDRESSES: usize = 4;
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Fills in every default in `raw`.
pub(super) fn build(
    raw: &mut RawClient,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<ClientConfig> {
    let private_key =
        check::private_key(&raw.private_key, &mut raw.private_key_file, file, problems);
    let own = private_key.as_ref().map(PrivateKey::public_key);
    let mut servers = servers(raw.server.get_or_insert_default(), own, file, outside, problems);
    let (addresses, mode) = home(raw.home.get_or_insert_default(), problems);
    if let Some(preferred) = servers.iter_mut().flatten().next() {
        preferred.home = addresses;
    }
    let tun = tun(raw.tun.get_or_insert_default(), problems);
    if mode == Some(HomeMode::Off) && tun.as_ref().is_some_and(|tun| tun.kill_switch) {
        let reason = "lets traffic out of the tunnel, which tun.kill-switch forbids";
        problems.add("home.mode", Some("off".into()), reason);
    }
    let paths = paths(raw.paths.get_or_insert_default(), problems);
    let quic = check::quic(raw.quic.get_or_insert_default(), problems);
    let log = check::log(raw.log.get_or_insert_default());
    let metrics = check::metrics(raw.metrics.get_or_insert_default(), problems);
    Some(ClientConfig {
        private_key: private_key?,
        servers: servers?,
        home: mode?,
        tun: tun?,
        paths: paths?,
        quic: quic?,
        log: log?,
        metrics,
    })
}

fn servers(
    raw: &mut RawServers,
    own: Option<PublicKey>,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<Vec<ServerPeer>> {
    let sections: Vec<_> = match raw {
        RawServers::One(raw) => vec![("server".to_owned(), raw)],
        RawServers::Several(all) => {
            if all.is_empty() {
                problems.add("server", None, "is an empty list; it must have one server or more");
            } else if all.len() > MOST_SERVERS {
                let reason = format!("has {} elements; it may have {MOST_SERVERS}", all.len());
                problems.add("server", None, reason);
            }
            let numbered = all.iter_mut().enumerate();
            numbered.filter_map(|(i, raw)| Some((format!("server[{i}]"), raw.as_mut()?))).collect()
        }
    };
    let (mut distinct, mut servers) = (Distinct::new(), Some(Vec::new()));
    for (section, raw) in sections {
        let server = server(&section, raw, own, file, outside, problems);
        if let Some(server) = &server {
            distinct.claim(&section, server, problems);
        }
        servers = servers.zip(server).map(|(servers, server)| [servers, vec![server]].concat());
    }
    servers.filter(|servers| !servers.is_empty())
}

/// The server in this `section` of the file.
fn server(
    section: &str,
    raw: &mut RawServerPeer,
    own: Option<PublicKey>,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<ServerPeer> {
    let key = |name: &str| format!("{section}.{name}");
    problems.require_some(&key("address"), &raw.address);
    let tcp_port = problems.accept(&key("tcp-port"), raw.tcp_port, |port| *port > 0);
    let addresses: Vec<_> = raw.address.iter().flatten().flatten().cloned().collect();
    let proxy = proxy::of(section, &mut raw.proxy, &addresses, tcp_port, file, outside, problems);
    let relay = raw.relay.as_ref().and_then(|template| {
        let relay = Relay::parse(template);
        if relay.is_none() {
            problems.refuse(&key("relay"), template);
        }
        relay
    });
    let name = problems.accept(&key("name"), raw.name.clone(), |name| is_name(name));
    let name = name.or_else(|| addresses.first().map(ToString::to_string));
    let public_key = problems.require(&key("public-key"), raw.public_key)?;
    if own == Some(public_key) {
        let reason = "is this host's own key; it must be the server's";
        problems.add(&key("public-key"), Some(public_key.to_string()), reason);
    }
    let proxy = proxy.map(Box::new);
    let home = Vec::new();
    Some(ServerPeer { name: name?, addresses, tcp_port, proxy, relay, home, public_key })
}

/// The addresses of the preferred server in its own network, and what is done there.
fn home(raw: &RawHome, problems: &mut Problems) -> (Vec<SocketAddr>, Option<HomeMode>) {
    let elements = elements("home.addresses", &raw.addresses);
    if elements.len() > MOST_HOME_ADDRESSES {
        let reason = format!("has {} elements; it may have {MOST_HOME_ADDRESSES}", elements.len());
        problems.add("home.addresses", None, reason);
    }
    let mut addresses = Vec::new();
    for (key, HostPort { host, port }) in elements {
        match host.parse::<IpAddr>() {
            Ok(host) if is_host(host) => addresses.push(SocketAddr::new(host, port)),
            Ok(_) | Err(_) => problems.refuse(&key, host),
        }
    }
    (addresses, raw.mode)
}

fn tun(raw: &RawClientTun, problems: &mut Problems) -> Option<ClientTun> {
    let name = check::tun_name(&raw.name, problems);
    let mtu = check::tun_mtu(raw.mtu, problems);
    let routes = check::tun_routes(&raw.routes, problems);
    let exclude = exclude(&raw.exclude, problems);
    if raw.kill_switch == Some(true) && raw.routes.is_none() {
        let reason =
            "needs tun.routes: what the server offers is not known before the tunnel stands";
        problems.add("tun.kill-switch", Some("true".into()), reason);
    }
    let dns = check::dns(&raw.dns, &raw.search_domains, problems);
    Some(ClientTun {
        name: name?,
        mtu: mtu?,
        offload: raw.offload?,
        routes: raw.routes.as_ref().map(|_| routes),
        exclude,
        kill_switch: raw.kill_switch?,
        dns: raw.dns.as_ref().map(|_| dns),
    })
}

fn exclude(raw: &List<String>, problems: &mut Problems) -> Exclude {
    let mut exclude = Exclude::default();
    for (key, prefix) in elements("tun.exclude", raw) {
        match prefix.as_str() {
            "lan" => exclude.lan = true,
            "captive-portal" => exclude.portal = true,
            prefix => match check::net(&key, prefix, problems) {
                Some(net) if net.prefix_len() == 0 => problems.refuse(&key, net),
                found => exclude.nets.extend(found),
            },
        }
    }
    exclude
}

fn paths(raw: &RawPaths, problems: &mut Problems) -> Option<Paths> {
    let probe_timeout =
        problems.accept_duration("paths.probe-timeout", raw.probe_timeout, |timeout| {
            (MIN_PROBE_TIMEOUT..=MAX_PROBE_TIMEOUT).contains(&timeout)
        });
    let standby_check =
        problems.accept_duration("paths.standby-check", raw.standby_check, |check| {
            check.is_zero() || (MIN_STANDBY_CHECK..=MAX_STANDBY_CHECK).contains(&check)
        });
    let metered_copies =
        problems.accept("paths.metered-copies", raw.metered_copies, |most| *most <= MOST_COPIES);
    let ignore = elements("paths.ignore", &raw.ignore)
        .into_iter()
        .filter_map(|(key, link)| problems.accept(&key, Some(link), |link| is_pattern(link)))
        .collect();
    let mut prefer = Vec::new();
    for (key, preference) in elements("paths.prefer", &raw.prefer) {
        let budget = budget(&key, &preference, problems);
        let key = format!("{key}.link");
        let link = problems.require(&key, preference.link);
        let link = problems.accept(&key, link, |link| is_pattern(link));
        let preference = link.zip(preference.metered);
        prefer.extend(preference.map(|(link, metered)| Preference { link, metered, budget }));
    }
    Some(Paths {
        probe_timeout: probe_timeout?,
        standby_check: Some(standby_check?).filter(|check| !check.is_zero()),
        metered_copies: metered_copies?,
        metered_reserve: raw.metered_reserve?,
        prefer,
        ignore,
    })
}

/// The budget of the links in this element of `paths.prefer`.
fn budget(element: &str, raw: &RawPreference, problems: &mut Problems) -> Option<Budget> {
    let key = |name: &str| format!("{element}.{name}");
    let day = problems.accept(&key("budget-day"), raw.budget_day, |day| (1..=31).contains(day));
    let (day, over) = (day.unwrap_or(1), raw.over_budget.unwrap_or_default());
    let Some(text) = &raw.budget else {
        let is_other = over != OverBudget::default();
        let is_started = raw.budget_start.is_some();
        for (name, is_set) in
            [("budget-day", day != 1), ("budget-start", is_started), ("over-budget", is_other)]
        {
            if is_set {
                problems.add(&key(name), None, "needs a budget beside it");
            }
        }
        return None;
    };
    let Some((bytes, written)) = budget::parse(text) else {
        problems.refuse(&key("budget"), text);
        return None;
    };
    if day != 1 && written != Written::Month {
        problems.add(&key("budget-day"), None, "needs a budget for each month");
    }
    let start = raw.budget_start;
    if start.is_some() && !matches!(written, Written::Days(_)) {
        let reason = r#"needs a budget for some days, such as "2 GB/28 days""#;
        problems.add(&key("budget-start"), None, reason);
    }
    let period = match written {
        Written::Day => Period::Day,
        Written::Week => Period::Week,
        Written::Month => Period::Month { first: day },
        Written::Days(count) => {
            Period::Days { count, start: problems.require(&key("budget-start"), start)? }
        }
    };
    Some(Budget { bytes, period, over })
}

fn is_pattern(link: &str) -> bool {
    !link.is_empty() && !link.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
}

/// Whether a server can have this address in a network with others.
fn is_host(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !is_link_local && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}
