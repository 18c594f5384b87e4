//! Every key of a configuration: its role, its shape, and the values that it accepts. Messages
//! about a key all come from here.

use std::fmt;

use strsim::normalized_damerau_levenshtein;

/// Which side of the tunnel a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

impl Role {
    pub(super) const ALL: [Self; 2] = [Self::Client, Self::Server];

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.to_string() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Flag,
    /// A list of texts; a single text stands for a list of one.
    List,
    /// A section: `[tun]`.
    Table,
    /// A list of tables: `[[peer]]`. The environment cannot set it.
    Tables,
    /// One table or several: `[server]` or `[[server]]`. The environment sets the keys of a single one.
    OneOrMore,
}

#[derive(Debug)]
pub(super) struct Key {
    /// Dotted, without indices: `peer.public-key`.
    pub(super) path: &'static str,
    /// `None`: accepted from both.
    pub(super) role: Option<Role>,
    pub(super) kind: Kind,
    /// Completes "must be …"; for a list, what each of its elements must be.
    accepted: &'static str,
}

const CLIENT: Option<Role> = Some(Role::Client);
const SERVER: Option<Role> = Some(Role::Server);

const KEYS: &[Key] = &[
    key("role", None, Kind::Text, r#""client" or "server""#),
    key(PRIVATE_KEY, None, Kind::Text, "44 characters of base64, as roamd genkey prints them"),
    key("private-key-file", None, Kind::Text, "the path of a file that roamd genkey has written"),
    key(
        "server",
        CLIENT,
        Kind::OneOrMore,
        "a table: [server]; or a list of tables, each headed by [[server]]",
    ),
    key(
        "server.name",
        CLIENT,
        Kind::Text,
        "a name for people: 1 to 64 characters, no control characters",
    ),
    key(
        "server.address",
        CLIENT,
        Kind::List,
        r#"a name or address such as "vpn.example.net:4433" or "[2001:db8::1]:4433" (port 4433 when there is none)"#,
    ),
    key("server.tcp-port", CLIENT, Kind::Number, "a TCP port from 1 to 65535"),
    key(
        PROXY,
        CLIENT,
        Kind::Text,
        r#"the URL of an HTTP proxy, such as "http://proxy.example.net:3128" or "http://user:password@192.0.2.8:3128""#,
    ),
    key(
        "server.relay",
        CLIENT,
        Kind::Text,
        r#"an https:// URL with {target_host} and {target_port}, such as "https://relay.example.net/.well-known/masque/udp/{target_host}/{target_port}/" (RFC 9298 §2)"#,
    ),
    key("server.public-key", CLIENT, Kind::Text, PUBLIC_KEY),
    key("home", CLIENT, Kind::Table, "a table: [home]"),
    key(
        "home.addresses",
        CLIENT,
        Kind::List,
        r#"an address of the server in its own network, such as "192.168.1.10" or "[fd00::10]:4433" (port 4433 when there is none); no name"#,
    ),
    key("home.mode", CLIENT, Kind::Text, r#""direct" or "off""#),
    key("listen", SERVER, Kind::List, r#"an IP address with a port, such as "[::]:4433""#),
    key("listen-tcp", SERVER, Kind::Text, r#"an IP address with a TCP port, such as "[::]:443""#),
    key(
        "drain",
        SERVER,
        Kind::Text,
        r#"a duration up to 1h, such as "5s", or "0s" for no time at all"#,
    ),
    key("tun", None, Kind::Table, "a table: [tun]"),
    key(
        "tun.name",
        None,
        Kind::Text,
        r#"a name for an interface: 1 to 15 bytes, no white space, "/", ":", "%", "*", "\" or quotes, and not "." or "..""#,
    ),
    key(
        "tun.mtu",
        None,
        Kind::Number,
        "a number from 1280 (the least that IPv6 works with, RFC 8200 §5) to 9000",
    ),
    key("tun.offload", None, Kind::Flag, "true or false"),
    key(
        "tun.addresses",
        SERVER,
        Kind::List,
        r#"this host's address inside the tunnel with the prefix that its peers share, such as "10.66.0.1/24" or "fd66::1/64""#,
    ),
    key(
        "tun.routes",
        None,
        Kind::List,
        r#"a prefix such as "10.66.0.0/24" or "fd66::/64", or "default" for 0.0.0.0/0 and ::/0"#,
    ),
    key(
        "tun.exclude",
        CLIENT,
        Kind::List,
        r#"a prefix such as "192.168.0.0/16", "lan" for whatever this host has a route to that is not its default route, or "captive-portal" for everything while a login page keeps the tunnel down"#,
    ),
    key("tun.kill-switch", CLIENT, Kind::Flag, "true or false"),
    key(
        "tun.dns",
        None,
        Kind::List,
        r#"the address of a resolver inside the tunnel, such as "10.66.0.1""#,
    ),
    key(
        "tun.search-domains",
        None,
        Kind::List,
        r#"a domain that is looked up inside the tunnel, such as "corp.example""#,
    ),
    key("tun.nat", SERVER, Kind::Flag, "true or false"),
    key("tun.peer-routes", SERVER, Kind::Flag, "true or false"),
    key("directory", SERVER, Kind::Table, "a table: [directory]"),
    key(
        "directory.name",
        SERVER,
        Kind::Text,
        "this server's name for the others: 1 to 64 characters, no control characters",
    ),
    key(
        "directory.etcd",
        SERVER,
        Kind::Table,
        r#"a table such as { endpoints = ["https://10.0.0.1:2379"], prefix = "/roamd/home", ca = "ca.pem" }"#,
    ),
    key(
        "directory.etcd.endpoints",
        SERVER,
        Kind::List,
        r#"the URL of a member of etcd, such as "https://10.0.0.1:2379", without a path"#,
    ),
    key(
        "directory.etcd.prefix",
        SERVER,
        Kind::Text,
        r#"what the names of all keys begin with, such as "/roamd/home": a slash first and none at the end, 200 bytes at most"#,
    ),
    key("directory.etcd.ca", SERVER, Kind::Text, PEM),
    key("directory.etcd.cert", SERVER, Kind::Text, PEM),
    key("directory.etcd.key", SERVER, Kind::Text, PEM),
    key(TICKET_KEY_FILE, SERVER, Kind::Text, "the path of a file that roamd genkey has written"),
    key(
        "directory.server",
        SERVER,
        Kind::Tables,
        "a list of tables, each headed by [[directory.server]]",
    ),
    key(
        "directory.server.name",
        SERVER,
        Kind::Text,
        "a name for people: 1 to 64 characters, no control characters",
    ),
    key(
        "directory.server.address",
        SERVER,
        Kind::List,
        r#"a name or address such as "vpn.example.net:4433" or "[2001:db8::1]:4433" (port 4433 when there is none)"#,
    ),
    key("directory.server.tcp-port", SERVER, Kind::Number, "a TCP port from 1 to 65535"),
    key("directory.server.public-key", SERVER, Kind::Text, PUBLIC_KEY),
    key("peer", SERVER, Kind::Tables, "a list of tables, each headed by [[peer]]"),
    key(
        "peer.name",
        SERVER,
        Kind::Text,
        "a name for people: 1 to 64 characters, no control characters",
    ),
    key("peer.public-key", SERVER, Kind::Text, PUBLIC_KEY),
    key(
        "peer.addresses",
        SERVER,
        Kind::List,
        r#"the peer's address inside the tunnel, without a prefix, such as "10.66.0.2" or "fd66::2""#,
    ),
    key("paths", CLIENT, Kind::Table, "a table: [paths]"),
    key("paths.probe-timeout", CLIENT, Kind::Text, r#"a duration from 500ms to 30s, such as "5s""#),
    key(
        "paths.standby-check",
        CLIENT,
        Kind::Text,
        r#"a duration from 5s to 10m, such as "15s", or "0s" for never"#,
    ),
    key(
        "paths.metered-copies",
        CLIENT,
        Kind::Number,
        "a number of bytes a minute from 0 to 1000000",
    ),
    key("paths.metered-reserve", CLIENT, Kind::Flag, "true or false"),
    key("paths.ignore", CLIENT, Kind::List, LINK),
    key(
        "paths.prefer",
        CLIENT,
        Kind::Tables,
        r#"a list of tables such as [{ link = "en*" }, { link = "ww*", metered = true }]"#,
    ),
    key("paths.prefer.link", CLIENT, Kind::Text, LINK),
    key("paths.prefer.metered", CLIENT, Kind::Flag, "true or false"),
    key(
        "paths.prefer.budget",
        CLIENT,
        Kind::Text,
        r#"a size from 1 MB to 1000 TB for each day, week, month or number of days, such as "500 MB/day", "2 GB/month" or "2 GB/28 days" (units kB, MB, GB, TB of powers of ten, KiB, MiB, GiB, TiB of powers of two)"#,
    ),
    key(
        "paths.prefer.budget-day",
        CLIENT,
        Kind::Number,
        "the day from 1 to 31 on which a month of the budget begins, in shorter months the last one",
    ),
    key(
        "paths.prefer.budget-start",
        CLIENT,
        Kind::Text,
        r#"the day on which one of the budget's periods of some days begins, such as "2026-11-29""#,
    ),
    key(
        "paths.prefer.over-budget",
        CLIENT,
        Kind::Text,
        r#""hold-bulk" (large transfers wait), "stop" (the link is not used) or "warn" (nothing but a warning)"#,
    ),
    key("quic", None, Kind::Table, "a table: [quic]"),
    key(
        "quic.idle-timeout",
        None,
        Kind::Text,
        "a duration from 5s to 60s: both ends take the smaller of their two (RFC 9000 §10.1) and \
         NATs forget UDP after about 30s; an outage that lasts longer is bridged by \
         reconnecting, which keeps the session",
    ),
    key(
        "quic.keep-alive",
        None,
        Kind::Text,
        r#"a duration from 1s to less than half of quic.idle-timeout, such as "10s""#,
    ),
    key("quic.congestion", None, Kind::Text, r#""cubic" or "bbr""#),
    key("quic.dscp", None, Kind::Number, "a number from 0 to 63 (DSCP, RFC 2474 §3)"),
    key("log", None, Kind::Table, "a table: [log]"),
    key(
        "log.level",
        None,
        Kind::Text,
        r#""error", "warn", "info", "debug", "trace" or "off", also by module: "info,roamd::path=debug""#,
    ),
    key("log.format", None, Kind::Text, r#""text" or "json""#),
    key("metrics", None, Kind::Table, "a table: [metrics]"),
    key(
        "metrics.listen",
        None,
        Kind::Text,
        r#"a loopback address with a port, such as "127.0.0.1:9433", or the absolute path of a UNIX socket"#,
    ),
];

/// The paths of files. In the environment they start from where the shell stands.
pub(super) const FILES: [&str; 5] = [
    "private-key-file",
    "directory.etcd.ca",
    "directory.etcd.cert",
    "directory.etcd.key",
    TICKET_KEY_FILE,
];
/// A secret that only a file may hold.
pub(super) const PRIVATE_KEY: &str = "private-key";
/// A secret of all servers of a fleet.
pub(super) const TICKET_KEY_FILE: &str = "directory.ticket-key-file";
/// It may hold a password.
pub(super) const PROXY: &str = "server.proxy";
const PUBLIC_KEY: &str = "44 characters of base64, as roamd pubkey prints them";
const PEM: &str = "the path of a PEM file";
const LINK: &str =
    r#"a link's name, in which * and ? are wildcards, such as "docker*" (no white space, no "/")"#;

const fn key(path: &'static str, role: Option<Role>, kind: Kind, accepted: &'static str) -> Key {
    Key { path, role, kind, accepted }
}

impl Key {
    pub(super) fn is_for(&self, role: Role) -> bool {
        self.role.is_none_or(|only| only == role)
    }

    /// The last part of the path.
    pub(super) fn name(&self) -> &'static str {
        split(self.path).1
    }

    /// All but the last part of the path.
    pub(super) fn section(&self) -> &'static str {
        split(self.path).0
    }
}

/// The key at a path such as `peer[1].public-key`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let path = without_indices(path);
    KEYS.iter().find(|key| key.path == path)
}

/// What the value at this path has to be; completes "must be …".
pub(super) fn accepted(path: &str) -> String {
    match find(path) {
        Some(Key { kind: Kind::List, accepted, .. }) if !path.ends_with(']') => {
            format!("a list, each element {accepted}")
        }
        Some(Key { kind: Kind::Tables | Kind::OneOrMore, .. }) if path.ends_with(']') => {
            "a table".to_owned()
        }
        Some(key) => key.accepted.to_owned(),
        None => "absent".to_owned(),
    }
}

/// Whether one of several tables encloses this path: the environment cannot reach there.
pub(super) fn is_in_tables(path: &str) -> bool {
    KEYS.iter().any(|key| key.kind == Kind::Tables && is_within(path, key.path))
}

/// What a build may leave out: the key that asks for it, of which role, and the feature that it needs.
const FEATURES: &[(&str, Option<Role>, &str, bool)] = &[
    ("metrics.listen", None, "metrics", cfg!(feature = "metrics")),
    ("tun.dns", CLIENT, "dbus", cfg!(feature = "dbus")),
    ("tun.search-domains", CLIENT, "dbus", cfg!(feature = "dbus")),
    ("directory.etcd", SERVER, "etcd", cfg!(feature = "etcd")),
];

/// The feature that this build would need for the key.
pub(super) fn missing_feature(path: &str, role: Role) -> Option<&'static str> {
    let needs = |(key, of, ..): &&(&str, Option<Role>, &str, bool)| {
        *key == path && of.is_none_or(|of| of == role)
    };
    FEATURES.iter().find(needs).and_then(|(.., feature, is_there)| (!is_there).then_some(*feature))
}

/// The keys directly in this section.
pub(super) fn in_section(section: &str, role: Option<Role>) -> impl Iterator<Item = &'static Key> {
    let section = without_indices(section);
    all(role).filter(move |key| key.section() == section)
}

/// The key that was probably meant.
pub(super) fn nearest(path: &str, role: Option<Role>) -> Option<&'static Key> {
    const SIMILAR: f64 = 0.5;
    let path = without_indices(path).replace('_', "-").to_lowercase();
    let (section, name) = split(&path);
    let likeness = |key: &Key| normalized_damerau_levenshtein(key.name(), name);
    in_section(section, role)
        .filter(|key| likeness(key) >= SIMILAR)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .or_else(|| all(role).find(|key| key.name() == name))
}

/// The keys that this role accepts, or both roles together.
pub(super) fn all(role: Option<Role>) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| role.is_none_or(|role| key.is_for(role)))
}

/// Whether `path` is `outer` or lies inside it.
pub(super) fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The section that a key is in, and its name there. A dot in quotes belongs to the name.
pub(super) fn split(path: &str) -> (&str, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut dot = None;
    for (at, c) in path.char_indices() {
        match c {
            '"' if !is_escaped => is_quoted = !is_quoted,
            '.' if !is_quoted => dot = Some(at),
            _ => {}
        }
        is_escaped = is_quoted && c == '\\' && !is_escaped;
    }
    dot.map_or(("", path), |at| (&path[..at], &path[at + 1..]))
}

pub(super) fn without_indices(path: &str) -> String {
    let mut depth = 0;
    path.chars()
        .filter(|c| {
            depth += i32::from(*c == '[');
            let keep = depth == 0;
            depth -= i32::from(*c == ']');
            keep
        })
        .collect()
}
